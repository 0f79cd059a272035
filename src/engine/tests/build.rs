//! Tests of what `build` and `pin` report and write.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::Place;
use crate::description::locked::{LockFile, LockedPackage};
use crate::description::manifest::Manifest;
use crate::engine::make::build::BuildOptions;
use crate::engine::make::new::{Template, new_manifest};
use crate::engine::{Error, Silent};

#[test]
fn a_taken_name_is_refused_before_anything_is_installed() {
    let place = Place::new();
    let mut env = place.import("dev");
    let path = place.manifest("[system]\npackages = [\"git\"]\n");
    let named = BuildOptions { name: Some("dev".to_owned()), ..BuildOptions::default() };
    let build = |options: &BuildOptions| place.engine.build(&path, options, &Silent);
    // The image has no package manager: a build that gets that far fails with this error.
    assert!(matches!(build(&named), Err(Error::OtherBuild { .. })));
    // An environment whose record has this content is returned without asking for versions.
    let digest = LockFile::parse(&env.lock, &path).unwrap().base_image_digest;
    let git = LockedPackage { name: "git".to_owned(), version: "1.0".to_owned() };
    let lock = LockFile::resolve(&Manifest::read(&path).unwrap(), &digest, vec![git]);
    (env.lock, env.env_id) = (lock.to_toml(), lock.env_id.clone());
    env.save(place.engine.store()).unwrap();
    let update = BuildOptions { update: true, ..named.clone() };
    assert!(matches!(build(&update), Err(Error::NoPackageManager { .. })));
    let again = build(&named).unwrap();
    assert!(!again.created && again.metadata == env);
    assert_eq!(LockFile::read(&again.lock_path).unwrap(), Some(lock));
    fs::write(place.rootfs().join("etc/hostname"), "other\n").unwrap();
    fs::remove_file(&again.lock_path).unwrap();
    assert!(matches!(build(&update), Err(Error::OtherBuild { .. })));
}

#[test]
fn files_for_git_have_the_default_mode() {
    let place = Place::new();
    let path = place.manifest("");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let plain = mode(&path);
    let pin = || place.engine.pin(&path, true, false, &Silent).unwrap();
    let lock = pin().lock.unwrap();
    assert_eq!((mode(&path), mode(&lock)), (plain, plain));
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(&lock, Permissions::from_mode(0o604)).unwrap();
    fs::write(place.rootfs().join("etc/hostname"), "other\n").unwrap();
    assert!(pin().changed);
    assert_eq!((mode(&path), mode(&lock)), (0o640, 0o604));
    let units =
        place.engine.install_unit(Path::new("/bin/true"), Path::new("/srv"), place.dir.path()).unwrap();
    let manifest = new_manifest(&place.rootfs(), "dev", Template::Minimal, None, false).unwrap();
    assert_eq!((mode(&units), mode(&manifest)), (plain, plain));
}
