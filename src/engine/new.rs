//! Starting a manifest.

use std::path::{Path, PathBuf};

use karapace_store::{atomic, metadata};

use super::{Error, Result};

/// Writes `karapace.toml` in `dir` for an environment `name` on the base image `image`.
pub fn new_manifest(dir: &Path, name: &str, image: &str, force: bool) -> Result<PathBuf> {
    metadata::check_name(name)?;
    let path = dir.join("karapace.toml");
    if !force && path.symlink_metadata().is_ok() {
        return Err(Error::FileExists { path });
    }
    atomic::write_file(&path, text(name, image).as_bytes())?;
    Ok(path)
}

fn text(name: &str, image: &str) -> String {
    let image = toml::Value::String(image.to_owned());
    format!(
        "# karapace build --name {name}\nmanifest_version = 1\n\n[base]\n\
         # A path, file:// or http(s):// address of a root filesystem archive or directory.\n\
         image = {image}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    #[test]
    fn the_image_is_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_manifest(dir.path(), "dev", "./a \"b\".tar", false).unwrap();
        assert_eq!(Manifest::read(&path).unwrap().base.image, "./a \"b\".tar");
    }

    #[test]
    fn an_existing_manifest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_manifest(dir.path(), "dev", "one.tar", false).unwrap();
        let again = new_manifest(dir.path(), "dev", "two.tar", false);
        assert!(matches!(again, Err(Error::FileExists { .. })));
        assert_eq!(Manifest::read(&path).unwrap().base.image, "one.tar");
        new_manifest(dir.path(), "dev", "two.tar", true).unwrap();
        assert_eq!(Manifest::read(&path).unwrap().base.image, "two.tar");
        assert!(new_manifest(dir.path(), "a/b", "two.tar", true).is_err());
    }
}
