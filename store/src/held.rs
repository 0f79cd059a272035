//! Small files that are valid only while the process that made them lives: pins and WAL entries.
//!
//! The maker of each file holds a flock on it; a file that nobody holds is left over from a crash. Files
//! appear complete (written under a temporary name, then renamed), and are made and swept under a lock on
//! their directory, so that a sweep never removes a file that is about to be held. Each ends with a line that
//! has the blake3 of the content: one wrong digit in an id would be another id.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;

use crate::error::{IoContext, Result};
use crate::fail;
use crate::files::Files;
use crate::id::random_name;

/// Size limit of a file when scanning, in bytes: far above what a maker writes.
const MAX_BYTES: u64 = 16 << 20;

/// A file held by this process; dropping it removes the file.
pub(crate) struct HeldFile {
    files: Files,
    path: PathBuf,
    _file: Flock<File>,
    keep: bool,
    durable: bool,
}

impl HeldFile {
    /// Makes `dir/<random>` with `bytes`. If `durable`, it is so on return; others may be missing or damaged
    /// after a power failure, when their makers are dead.
    pub fn create(files: &Files, dir: &Path, bytes: &[u8], durable: bool) -> Result<HeldFile> {
        let path = dir.join(random_name()?);
        let _guard = lock_dir(files, dir)?;
        let file = write(files, &path, bytes, durable)?;
        Ok(HeldFile { files: files.clone(), path, _file: file, keep: false, durable })
    }

    /// Replaces the content atomically. The file is held throughout.
    pub fn replace(&mut self, bytes: &[u8]) -> Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let _guard = lock_dir(&self.files, dir)?;
        self._file = write(&self.files, &self.path, bytes, self.durable)?;
        Ok(())
    }

    /// Releases the file without removing it.
    pub fn leave(mut self) {
        self.keep = true;
    }

    /// Removes the file, durably.
    pub fn remove(mut self) -> Result<()> {
        self.keep = true;
        let removed = fail::point("held.remove").and_then(|()| self.files.remove(&self.path));
        removed.at("remove", &self.path)?;
        self.files.sync_dir(self.path.parent().unwrap_or(Path::new(".")))
    }
}

impl Drop for HeldFile {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        match self.files.remove(&self.path) {
            Ok(()) => {}
            // If nothing can be removed, nothing is collected either.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ReadOnlyFilesystem) => {}
            Err(e) => tracing::warn!("cannot remove {}: {e}", self.path.display()),
        }
    }
}

/// A file that a scan found. If its maker is dead, we now hold it (`dead`).
pub(crate) struct Found {
    pub path: PathBuf,
    /// The content without its checksum, or why it cannot be read.
    pub content: std::result::Result<Vec<u8>, String>,
    pub dead: Option<HeldFile>,
}

impl Found {
    /// Parses the content, which is JSON; or returns why it cannot be read.
    pub fn parse<T: DeserializeOwned>(&self) -> std::result::Result<T, String> {
        let bytes = self.content.as_ref().map_err(Clone::clone)?;
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }
}

/// Returns every complete file of `dir`. Removes temporary files of dead makers.
pub(crate) fn scan(files: &Files, dir: &Path) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    if !has_files(files, dir)? {
        return Ok(found);
    }
    let _guard = lock_dir(files, dir)?;
    for name in files.names(dir).at("list", dir)? {
        let path = dir.join(&name);
        if name.as_encoded_bytes().starts_with(b".") {
            // Under the directory's lock no maker is between creating and renaming its file.
            match files.remove(&path) {
                Err(e) if e.kind() == ErrorKind::ReadOnlyFilesystem => {}
                removed => removed.at("remove", &path)?,
            }
            continue;
        }
        // A maker removes its file without the directory's lock.
        let file = match files.open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            file => file.at("open", &path)?,
        };
        let mut bytes = Vec::new();
        (&file).take(MAX_BYTES).read_to_end(&mut bytes).at("read", &path)?;
        let dead = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok();
        // Not dead: its maker has removed the file and let go of it since it was opened.
        if dead.is_some() && !path.try_exists().at("stat", &path)? {
            continue;
        }
        let dead = dead.map(|file| HeldFile {
            files: files.clone(),
            path: path.clone(),
            _file: file,
            keep: false,
            durable: false,
        });
        found.push(Found { path, content: content(bytes), dead });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Splits off and verifies the checksum; returns the content.
fn content(mut bytes: Vec<u8>) -> std::result::Result<Vec<u8>, String> {
    let length = bytes.len().checked_sub(SUM).ok_or("it is too short for its checksum")?;
    let sum = bytes.split_off(length);
    match sum == checksum(&bytes) {
        true => Ok(bytes),
        false => Err("its checksum does not match its content".to_owned()),
    }
}

/// Length in bytes of the checksum: a newline, 64 hexadecimal digits, a newline.
const SUM: usize = 66;

fn checksum(bytes: &[u8]) -> Vec<u8> {
    format!("\n{}\n", blake3::hash(bytes).to_hex()).into_bytes()
}

/// Files whose content cannot be read, and why.
pub(crate) type Unreadable = Vec<(PathBuf, String)>;

/// Avoids locking an empty directory for a scan.
fn has_files(files: &Files, dir: &Path) -> Result<bool> {
    match files.names(dir) {
        Ok(names) => Ok(!names.is_empty()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).at("list", dir),
    }
}

/// Locks the directory. Held only briefly: a holder never waits for anything else.
pub(crate) fn lock_dir(files: &Files, dir: &Path) -> Result<Flock<File>> {
    let file = files.open_dir(dir).at("open", dir)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).at("lock", dir)
}

/// Locks the directory unless another process has; then `None`.
pub(crate) fn try_lock_dir(files: &Files, dir: &Path) -> Result<Option<Flock<File>>> {
    let file = files.open_dir(dir).at("open", dir)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno).at("lock", dir),
    }
}

fn write(files: &Files, path: &Path, bytes: &[u8], durable: bool) -> Result<Flock<File>> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temp = dir.join(format!(".{name}"));
    let file = files.replace(&temp).at("create", &temp)?;
    let mut file =
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno).at("lock", &temp)?;
    let bytes = encoded(bytes);
    fail::point("held.write").and_then(|()| file.write_all(&bytes)).at("write", &temp)?;
    if durable {
        file.sync_data().at("sync", &temp)?;
    }
    fail::point("held.rename").and_then(|()| files.rename(&temp, path)).at("rename", &temp)?;
    if durable {
        files.sync_name(dir, &file).at("sync", dir)?;
    }
    Ok(file)
}

/// The bytes of a file with this content.
pub(crate) fn encoded(content: &[u8]) -> Vec<u8> {
    [content, &checksum(content)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn any_flipped_bit_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::at(dir.path()).unwrap();
        let file = HeldFile::create(&files, dir.path(), br#"{"a":"00"}"#, true).unwrap();
        let whole = fs::read(&file.path).unwrap();
        let parsed = || scan(&files, dir.path()).unwrap()[0].parse::<serde_json::Value>();
        assert_eq!(parsed().unwrap()["a"], "00");
        // Written in place, because its maker's lock is on this file.
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file.path, &bytes).unwrap();
            parsed().unwrap_err();
        }
        fs::write(&file.path, &whole[..whole.len() - 1]).unwrap();
        parsed().unwrap_err();
    }
    #[test]
    fn a_file_that_its_maker_removes_is_never_taken_for_a_dead_makers() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::at(dir.path()).unwrap();
        std::thread::scope(|scope| {
            let makers = [1, 2].map(|_| {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        HeldFile::create(&files, dir.path(), b"held", false).unwrap().remove().unwrap();
                        drop(HeldFile::create(&files, dir.path(), b"held", false).unwrap());
                    }
                })
            });
            while makers.iter().any(|maker| !maker.is_finished()) {
                for found in scan(&files, dir.path()).unwrap() {
                    assert!(found.dead.is_none(), "{} was taken for a dead maker's", found.path.display());
                }
            }
        });
    }
}
