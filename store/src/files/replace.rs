//! Replaces whole files.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use super::{Files, TEMP_PREFIX};
use crate::error::{IoContext as _, Result};
use crate::fail;
use crate::id::random_name;

impl Files {
    /// Replaces a file by one with these bytes, atomically: a reader sees the whole old or the whole new
    /// content. Durable on return. The directory must exist.
    pub fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let file = self.put(path, bytes, true)?;
        let dir = path.parent().unwrap_or(path);
        fail::point("file.sync-dir").at("sync", dir)?;
        self.sync_name(dir, &file).at("sync", dir)
    }

    /// The same for what no longer counts after a restart of the machine, and may then be missing or damaged.
    pub fn write_passing(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.put(path, bytes, false).map(drop)
    }

    fn put(&self, path: &Path, bytes: &[u8], durable: bool) -> Result<File> {
        let dir = path.parent().unwrap_or(path);
        let temp = dir.join(format!("{TEMP_PREFIX}{}", random_name()?));
        let mut file = self.make(&temp).at("create a temporary file in", dir)?;
        let written = fail::point("file.write").and_then(|()| file.write_all(bytes)).at("write", &temp);
        let synced = written.and_then(|()| match durable {
            true => fail::point("file.sync").and_then(|()| file.sync_all()).at("sync", &temp),
            false => Ok(()),
        });
        let named = synced.and_then(|()| {
            fail::point("file.rename").and_then(|()| self.rename(&temp, path)).at("replace", path)
        });
        if let Err(error) = named {
            // The error above matters more than a leftover temporary file, which is swept later.
            if let Err(error) = self.remove(&temp) {
                tracing::debug!("removing {}: {error}", temp.display());
            }
            return Err(error);
        }
        Ok(file)
    }
}
