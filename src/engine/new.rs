//! Starting a manifest from a template.

use std::path::{Path, PathBuf};

use karapace_store::{atomic, metadata};

use super::{Error, Result};

/// A starting point for a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Template {
    /// A base image and nothing else.
    Minimal,
    /// Compilers and the usual tools.
    Dev,
    /// The same with a graphical program and the GPU.
    GuiDev,
    /// For Rust.
    RustDev,
    /// Compilers on Ubuntu.
    UbuntuDev,
}

impl Template {
    /// Base image and the sections below it.
    fn parts(self) -> (&'static str, &'static str) {
        match self {
            Template::Minimal => ("debian/12", ""),
            Template::Dev => {
                ("debian/12", "\n[system]\npackages = [\"build-essential\", \"curl\", \"git\"]\n")
            }
            Template::GuiDev => (
                "debian/12",
                "\n[system]\npackages = [\"build-essential\", \"curl\", \"git\"]\n\
                 \n[gui]\napps = [\"gedit\"]\n\n[hardware]\ngpu = true\naudio = true\n",
            ),
            Template::RustDev => (
                "debian/12",
                "\n[system]\npackages = [\"build-essential\", \"cargo\", \"git\", \"pkg-config\", \"rustc\"]\n",
            ),
            Template::UbuntuDev => {
                ("ubuntu/24.04", "\n[system]\npackages = [\"build-essential\", \"curl\", \"git\"]\n")
            }
        }
    }
}

/// Writes `karapace.toml` in `dir` for an environment `name`; `image` replaces the template's.
pub fn new_manifest(
    dir: &Path,
    name: &str,
    template: Template,
    image: Option<&str>,
    force: bool,
) -> Result<PathBuf> {
    metadata::check_name(name)?;
    let path = dir.join("karapace.toml");
    if !force && path.symlink_metadata().is_ok() {
        return Err(Error::FileExists { path });
    }
    atomic::write_file(&path, text(name, template, image).as_bytes())?;
    Ok(path)
}

fn text(name: &str, template: Template, image: Option<&str>) -> String {
    let (default_image, rest) = template.parts();
    let image = toml::Value::String(image.unwrap_or(default_image).to_owned());
    format!(
        "# karapace build --name {name}\nmanifest_version = 1\n\n[base]\n\
         # A path, file:// or http(s):// address of a root filesystem archive or directory, or an image's name.\n\
         image = {image}\n{rest}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    #[test]
    fn every_template_is_a_valid_manifest() {
        let all =
            [Template::Minimal, Template::Dev, Template::GuiDev, Template::RustDev, Template::UbuntuDev];
        for template in all {
            let text = text("dev", template, None);
            Manifest::parse(&text, Path::new("karapace.toml")).unwrap_or_else(|e| panic!("{e}\n{text}"));
        }
    }

    #[test]
    fn an_existing_manifest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_manifest(dir.path(), "dev", Template::Minimal, Some("./a \"b\".tar"), false).unwrap();
        assert_eq!(Manifest::read(&path).unwrap().base.image, "./a \"b\".tar");
        let again = new_manifest(dir.path(), "dev", Template::Dev, None, false);
        assert!(matches!(again, Err(Error::FileExists { .. })));
        assert!(Manifest::read(&path).unwrap().system.packages.is_empty());
        new_manifest(dir.path(), "dev", Template::Dev, None, true).unwrap();
        assert!(!Manifest::read(&path).unwrap().system.packages.is_empty());
        assert!(new_manifest(dir.path(), "a/b", Template::Dev, None, true).is_err());
    }
}
