//! A supply for tests, which the crates above include as well; the including module imports the store's
//! names.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::{IoContext as _, Layout, ObjectId, Result, Store, Supply};

/// A supply that promises the objects in a directory. It can be made unreachable.
#[derive(Debug)]
pub struct Elsewhere {
    pub dir: PathBuf,
    pub is_reachable: AtomicBool,
    asked: Mutex<Vec<ObjectId>>,
}

impl Elsewhere {
    pub fn new(dir: &Path) -> Arc<Elsewhere> {
        fs::create_dir(dir).unwrap();
        let is_reachable = AtomicBool::new(true);
        Arc::new(Elsewhere { dir: dir.to_owned(), is_reachable, asked: Mutex::default() })
    }

    /// Moves the wanted objects of a store here; returns how many bytes of disk space that frees in the
    /// store.
    pub fn take(&self, store: &Store, is_wanted: impl Fn(&ObjectId) -> bool) -> u64 {
        let mut bytes = 0;
        for shard in fs::read_dir(Layout::new(store.root()).objects()).unwrap() {
            let shard = shard.unwrap();
            for object in fs::read_dir(shard.path()).unwrap() {
                let object = object.unwrap();
                let hex =
                    [shard.file_name(), object.file_name()].map(|name| name.into_string().unwrap()).concat();
                let id: ObjectId = hex.parse().unwrap();
                if is_wanted(&id) {
                    bytes += store.objects().on_disk(&id).unwrap();
                    fs::rename(object.path(), self.dir.join(hex)).unwrap();
                }
            }
        }
        bytes
    }

    /// The objects that were asked for since the last call.
    pub fn asked(&self) -> Vec<ObjectId> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl Supply for Elsewhere {
    fn open(&self, id: &ObjectId) -> Result<Option<File>> {
        self.asked.lock().unwrap().push(*id);
        let path = self.dir.join(id.to_hex());
        if self.promised(id).is_none() {
            return Ok(None);
        }
        if !self.is_reachable.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::HostUnreachable)).at("fetch", &path);
        }
        File::open(&path).at("open", &path).map(Some)
    }

    fn promised(&self, id: &ObjectId) -> Option<u64> {
        self.dir.join(id.to_hex()).metadata().ok().map(|metadata| metadata.len())
    }
}
