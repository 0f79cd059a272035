//! Checks which files are where: required directories, files that do not belong, modes and owners.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, statat};
use rustix::io::Errno;

use super::{Check, Finding, Kind};
use crate::error::{IoContext, Result};
use crate::files::TEMP_PREFIX;
use crate::id::InstanceId;
use crate::layout::Layout;
use crate::metadata::Metadata;
use crate::open::private_directories;
use crate::{files, quarantine, wal};

/// The mode bits by which an object could be modified.
const WRITABLE: u32 = 0o222;

/// Whether a directory held only transient data, so that it can simply be made again.
pub(super) fn can_be_made_anew(layout: &Layout, dir: &Path) -> bool {
    [layout.staging(), layout.wal(), layout.pins(), layout.images()].iter().any(|known| known == dir)
}

impl Check<'_> {
    /// Checks directories, strays at the top, environments' directories and the quarantine.
    pub(super) fn places(&mut self) -> Result<()> {
        let layout = self.store.layout();
        self.owner = self.store.files().owner();
        let owner = self.owner;
        for dir in private_directories(layout) {
            match dir.symlink_metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let message = match can_be_made_anew(layout, &dir) {
                        true => format!("the directory {} is missing: --repair creates it", dir.display()),
                        false => format!(
                            "the directory {} is missing with everything in it: restore it from a backup",
                            dir.display()
                        ),
                    };
                    self.findings.push(Finding::new(Kind::MissingDirectory, message).file(&dir));
                }
                other => {
                    let metadata = other.at("read", &dir)?;
                    let mode = metadata.permissions().mode() & 0o7777;
                    if mode & 0o077 != 0 {
                        self.wrong_permissions(
                            &dir,
                            format!("has mode {mode:04o}, which gives other users access: it should be 0700"),
                        );
                    }
                    if metadata.uid() != owner {
                        self.wrong_permissions(
                            &dir,
                            format!("belongs to uid {}, but the store to {owner}", metadata.uid()),
                        );
                    }
                }
            }
        }
        let known = private_directories(layout);
        let is_known = |path: &Path| {
            let name = files::name(path).unwrap_or_default();
            known.iter().any(|dir| dir == path)
                || [layout.quarantine(), layout.logs(), layout.mount_all(), layout.mount_all_log()]
                    .iter()
                    .any(|own| own == path)
                || path.parent() == Some(layout.store_dir())
                    && (path.symlink_metadata().is_ok_and(|metadata| metadata.is_file())
                        && (name.starts_with('.') || name == "version"))
        };
        for top in [layout.root(), layout.store_dir()] {
            for path in self.store.files().list_if_there(top)? {
                if !is_known(&path) {
                    self.stray(path);
                }
            }
        }
        self.environment_directories()?;
        let set_aside = quarantine::count(self.store)?;
        if set_aside > 0 {
            let message = format!(
                "{set_aside} damaged files are in {}: remove that directory when you no longer need them",
                layout.quarantine().display()
            );
            self.findings.push(Finding::new(Kind::Quarantined, message).file(&layout.quarantine()));
        }
        Ok(())
    }

    /// Checks the environments' directories; reports those with changes but no record.
    fn environment_directories(&mut self) -> Result<()> {
        let layout = self.store.layout();
        for path in self.store.files().list_if_there(&layout.envs())? {
            let Some(instance) = files::name(&path).and_then(|name| name.parse::<InstanceId>().ok()) else {
                self.stray(path);
                continue;
            };
            for file in self.store.files().list_if_there(&path)? {
                if file.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()) {
                    self.stray(file);
                }
            }
            if is_orphan(self.store, &instance)? {
                let message = format!(
                    "{} has uncommitted changes, but the environment's record is missing: restore {} from a backup, or remove \
                     that directory to give them up; until then gc removes nothing",
                    path.display(),
                    Metadata::path(self.store, &instance).display()
                );
                let finding = Finding::new(Kind::OrphanEnvironment, message).object(instance).file(&path);
                self.findings.push(finding.environment(&instance.to_hex()));
            }
        }
        Ok(())
    }

    /// Checks the mode and owner of an object; `shard` is its directory.
    pub(super) fn look_at_object(&mut self, shard: &File, path: &Path) -> Result<()> {
        let stat = match statat(shard, files::name(path).unwrap_or_default(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(io::Error::from).at("read", path)?,
        };
        let mode = stat.st_mode & 0o7777;
        if mode & WRITABLE != 0 {
            self.wrong_permissions(
                path,
                format!("has mode {mode:04o}, which allows writing: it should be 0444"),
            );
        }
        if stat.st_uid != self.owner {
            let (uid, owner) = (stat.st_uid, self.owner);
            self.wrong_permissions(path, format!("belongs to uid {uid}, but the store to {owner}"));
        }
        Ok(())
    }

    fn wrong_permissions(&mut self, path: &Path, what: String) {
        let message = format!("{} {what}", path.display());
        self.findings.push(Finding::new(Kind::WrongPermissions, message).file(path));
    }

    /// Reports a stray file, except for the unfinished files of writers, which come and go.
    pub(super) fn stray(&mut self, path: PathBuf) {
        if !files::name(&path).is_some_and(|name| name.starts_with(TEMP_PREFIX)) {
            let message = format!("{} does not belong there", path.display());
            self.findings.push(Finding::new(Kind::Stray, message).file(&path));
        }
    }
}

/// Whether an environment's directory holds changes, but there is neither a record nor an intent to make or
/// remove it.
pub(crate) fn is_orphan(store: &crate::Store, instance: &InstanceId) -> Result<bool> {
    let there = |path: &Path| path.symlink_metadata().is_ok();
    let upper = store.upper_dir(instance).join("checkpoint");
    // Making or removing an environment has an intent from before its first step until after its last.
    let suspicious = || there(&upper) && !there(&Metadata::path(store, instance));
    if !suspicious() {
        return Ok(false);
    }
    let (intended, _) = wal::read(store)?;
    Ok(!intended.contains(instance) && suspicious())
}
