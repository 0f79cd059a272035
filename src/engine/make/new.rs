//! Writing a first manifest from a template.

use std::path::{Path, PathBuf};

use karapace_store::{atomic, metadata};

use crate::description::manifest::Manifest;
use crate::engine::{Error, Result};

/// What a manifest starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Template {
    /// Debian 12 as it is
    Minimal,
    /// Debian 12 with a C compiler, git, curl and ssh, and the manifest's directory at /workspace
    Dev,
    /// dev with access to GPU and sound, and with a graphical editor
    GuiDev,
    /// Debian 13 with the packages of dev, cargo, rustc, rustfmt and clippy
    RustDev,
    /// Ubuntu 24.04 with the packages of dev
    UbuntuDev,
}

impl Template {
    /// The template's manifest, without a name or another image.
    fn text(self) -> &'static str {
        match self {
            Template::Minimal => include_str!("new/minimal.toml"),
            Template::Dev => include_str!("new/dev.toml"),
            Template::GuiDev => include_str!("new/gui-dev.toml"),
            Template::RustDev => include_str!("new/rust-dev.toml"),
            Template::UbuntuDev => include_str!("new/ubuntu-dev.toml"),
        }
    }
}

/// The path for a new manifest in `dir`.
///
/// # Errors
/// [`Error::FileExists`] if there is one already, unless `force` is given.
pub fn free_path(dir: &Path, force: bool) -> Result<PathBuf> {
    let path = dir.join("karapace.toml");
    if !force && path.symlink_metadata().is_ok() {
        return Err(Error::FileExists { path });
    }
    Ok(path)
}

/// Writes `karapace.toml` in `dir` for an environment `name` from a template, with `image` in place of the
/// template's base image if given. Returns the file's path.
///
/// # Errors
/// [`Error::FileExists`] as for [`free_path`], and errors in the name or the image; nothing is written then.
pub fn new_manifest(
    dir: &Path,
    name: &str,
    template: Template,
    image: Option<&str>,
    force: bool,
) -> Result<PathBuf> {
    metadata::check_name(name)?;
    let path = free_path(dir, force)?;
    let mut text = template.text().to_owned();
    if let Some(image) = image {
        text = Manifest::with_image(&text, &path, image)?;
    }
    let text = format!("# karapace build --name {name}\n{text}");
    // Report errors in the image before the file is written.
    Manifest::parse(&text, &path)?;
    atomic::write_user_file(&path, text.as_bytes())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: Template = Template::Minimal;

    /// Each template with its image, its packages, and the devices that it asks for.
    #[test]
    fn every_template_is_a_manifest() {
        let dev = ["build-essential", "ca-certificates", "curl", "git", "less", "openssh-client"];
        let rust = ["cargo", "libssl-dev", "pkg-config", "rust-clippy", "rustc", "rustfmt"];
        let gui = ["fonts-dejavu-core", "libgl1-mesa-dri", "mesa-utils"];
        let table = [
            (Template::Minimal, "debian/12", vec![], vec![]),
            (Template::Dev, "debian/12", dev.to_vec(), vec![]),
            (Template::GuiDev, "debian/12", [&dev[..], &gui].concat(), vec!["geany"]),
            (Template::RustDev, "debian/13", [&dev[..], &rust].concat(), vec![]),
            (Template::UbuntuDev, "ubuntu/24.04", dev.to_vec(), vec![]),
        ];
        assert_eq!(table.len(), <Template as clap::ValueEnum>::value_variants().len());
        for (template, image, mut packages, apps) in table {
            packages.sort_unstable();
            for given in [None, Some("./a \"b\".tar")] {
                let dir = tempfile::tempdir().unwrap();
                let path = new_manifest(dir.path(), "dev", template, given, false).unwrap();
                let manifest = Manifest::read(&path).unwrap();
                assert_eq!(manifest.base.image, given.unwrap_or(image), "{template:?}");
                assert_eq!(manifest.system.packages, packages, "{template:?}");
                assert_eq!(manifest.gui.apps, apps, "{template:?}");
                let devices = (manifest.hardware.gpu, manifest.hardware.audio);
                let is_gui = template == Template::GuiDev;
                assert_eq!(devices, (is_gui, is_gui));
                assert_eq!(manifest.mounts.contains_key("workspace"), template != Template::Minimal);
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(text.starts_with("# karapace build --name dev\nmanifest_version = 1\n"), "{text}");
            }
        }
    }

    /// The commented-out parts are valid too.
    #[test]
    fn the_comments_of_the_minimal_one_are_a_manifest() {
        let text = MINIMAL.text();
        let plain = |line: &str| line.strip_prefix("# ").unwrap_or(line).to_owned();
        let is_toml = |line: &String| line.is_empty() || line.starts_with('[') || line.contains(" = ");
        let all: Vec<String> = text.lines().map(plain).filter(is_toml).collect();
        let manifest = Manifest::parse(&all.join("\n"), Path::new("karapace.toml")).unwrap();
        assert_eq!((manifest.system.packages.len(), manifest.mounts.len()), (2, 1));
        assert_eq!(manifest.snapshot.ignore.len(), 2);
    }

    #[test]
    fn an_existing_manifest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name, image, force| new_manifest(dir.path(), name, MINIMAL, Some(image), force);
        let path = make("dev", "one.tar", false).unwrap();
        assert!(matches!(make("dev", "two.tar", false), Err(Error::FileExists { .. })));
        assert_eq!(Manifest::read(&path).unwrap().base.image, "one.tar");
        make("dev", "two.tar", true).unwrap();
        assert_eq!(Manifest::read(&path).unwrap().base.image, "two.tar");
        assert!(make("a/b", "two.tar", true).is_err());
        for bad in ["", "x#content=1"] {
            assert!(make("dev", bad, true).unwrap_err().to_string().contains("base.image"), "{bad}");
        }
        assert_eq!(Manifest::read(&path).unwrap().base.image, "two.tar");
    }
}
