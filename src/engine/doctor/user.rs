//! Checks of what an ordinary user needs.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{User, geteuid};

use super::{Check, on_path};
use crate::private_dir;
use crate::runtime::ranges;

/// Number of ids that an environment's own users and groups need: the id of nobody is 65534.
const RANGE: u32 = 65_534;

pub(super) fn fusermount() -> Check {
    const NAME: &str = "fusermount3";
    let found = on_path(NAME);
    if geteuid().is_root() {
        return Check::ok(NAME, "not needed by root");
    }
    match found {
        None => Check::failed(NAME, "missing: an ordinary user cannot mount", "sudo apt install fuse3"),
        Some(path) if is_setuid_root(&path) => Check::ok(NAME, path.display().to_string()),
        Some(path) => {
            let mend = format!("sudo chown root '{0}' && sudo chmod u+s '{0}'", path.display());
            Check::failed(NAME, format!("{} is not set-user-id root", path.display()), mend)
        }
    }
}

fn is_setuid_root(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.uid() == 0 && m.permissions().mode() & 0o4000 != 0)
}

pub(super) fn id_range() -> Check {
    const NAME: &str = "id range";
    if geteuid().is_root() {
        return Check::ok(NAME, "not needed by root");
    }
    match ranges::available() {
        Ok(ranges) if ranges.count() > RANGE => Check::ok(NAME, format!("{} ids inside", ranges.count())),
        Ok(ranges) => {
            let found = format!(
                "{} ids inside: most distributions need more for their users and groups",
                ranges.count()
            );
            let name = User::from_uid(geteuid()).ok().flatten();
            let name = name.map_or_else(|| geteuid().to_string(), |user| user.name);
            let mend = format!("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}");
            Check::warning(NAME, found, mend)
        }
        Err(reason) => {
            let mend = format!("as root: {}", reason.cure());
            Check::warning(NAME, format!("{reason}: only one id inside"), mend)
        }
    }
}

pub(super) fn allow_other() -> Check {
    const NAME: &str = "user_allow_other";
    if geteuid().is_root() {
        return Check::ok(NAME, "not needed by root");
    }
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if conf.lines().any(|line| line.trim() == NAME) {
        return Check::ok(NAME, "set");
    }
    Check::ok(
        NAME,
        "not set (only needed for --allow-other: echo user_allow_other | sudo tee -a /etc/fuse.conf)",
    )
}

pub(super) fn runtime_dir() -> Check {
    const NAME: &str = "XDG_RUNTIME_DIR";
    let mend = "log in through a session manager, or: sudo loginctl enable-linger $USER";
    let Some(dir) = std::env::var_os(NAME).map(PathBuf::from).filter(|dir| dir.is_absolute()) else {
        return Check::warning(NAME, "not set: no Wayland, audio or D-Bus inside", mend);
    };
    match private_dir::check(&dir) {
        Ok(()) => Check::ok(NAME, dir.display().to_string()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Check::warning(NAME, format!("{}: {e}", dir.display()), mend)
        }
        Err(reason) => {
            let found = format!("{} is not used: {reason}", dir.display());
            Check::warning(NAME, found, format!("chmod 0700 '{}', as its owner", dir.display()))
        }
    }
}
