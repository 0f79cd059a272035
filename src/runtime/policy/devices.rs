//! Host devices that `[hardware]` lets in.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::{Policy, Share, ShareKind};
use crate::description::manifest::Hardware;

/// Prefix of NVIDIA's devices: `nvidia0`, `nvidiactl`, `nvidia-uvm`, `nvidia-caps`.
const NVIDIA: &str = "nvidia";

/// Lets in the devices that are asked for and that the host has. `dev` is the host's `/dev`.
pub(super) fn apply(policy: &mut Policy, hardware: Hardware, dev: &Path) {
    let mut wanted = Vec::new();
    if hardware.gpu {
        wanted.push(("hardware.gpu", "dri".to_owned()));
        let nvidia = names(dev).into_iter().filter(|name| name.starts_with(NVIDIA));
        wanted.extend(nvidia.map(|name| ("hardware.gpu", name)));
    }
    if hardware.audio {
        wanted.push(("hardware.audio", "snd".to_owned()));
    }
    for (what, name) in wanted {
        match share(what, dev, &name) {
            Some(share) => policy.shares.push(share),
            None => tracing::info!("{what}: the host has no {}", dev.join(name).display()),
        }
    }
}

fn names(dev: &Path) -> Vec<String> {
    let entries = fs::read_dir(dev).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn share(what: &str, dev: &Path, name: &str) -> Option<Share> {
    let host = fs::canonicalize(dev.join(name)).ok()?;
    let kind = fs::metadata(&host).ok()?.file_type();
    let directory = kind.is_dir();
    if !directory && !kind.is_char_device() {
        return None;
    }
    let inside = Path::new("/dev").join(name);
    Some(Share {
        what: what.to_owned(),
        host,
        inside,
        kind: ShareKind::Device { directory },
        read_only: false,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn inside(gpu: bool, audio: bool, dev: &Path) -> Vec<String> {
        let mut policy = Policy::default();
        apply(&mut policy, Hardware { gpu, audio }, dev);
        policy.shares.iter().map(|s| format!("{} {}", s.what, s.inside.display())).collect()
    }

    #[test]
    fn only_devices_that_are_requested_and_exist_are_shared() {
        let dev = tempfile::tempdir().unwrap();
        for name in ["dri", "snd", "nvidia-caps", "input"] {
            fs::create_dir(dev.path().join(name)).unwrap();
        }
        symlink("/dev/null", dev.path().join("nvidia0")).unwrap();
        fs::write(dev.path().join("nvidia-file"), "").unwrap();
        let gpu = ["hardware.gpu /dev/dri", "hardware.gpu /dev/nvidia-caps", "hardware.gpu /dev/nvidia0"];
        assert_eq!(inside(true, false, dev.path()), gpu);
        assert_eq!(inside(false, true, dev.path()), ["hardware.audio /dev/snd"]);
        assert!(inside(false, false, dev.path()).is_empty());
        let none = tempfile::tempdir().unwrap();
        assert!(inside(true, true, none.path()).is_empty());
    }
}
