//! Writing objects together, with one durability barrier.

mod barriers;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, RenameFlags, renameat, renameat2};
use nix::libc;
use nix::unistd::{linkat, syncfs};

use crate::durability::Barrier;
use crate::error::{IoContext as _, Result, StoreError};
use crate::fail;
use crate::held::lock_dir;
use crate::id::{ObjectId, random_name};
use crate::object::read_verified;
use crate::open::Store;
use crate::parallel::in_pieces;

/// Once this many bytes are staged, writeback is started early, so that the final barrier has little left to
/// wait for.
const EARLY: u64 = 64 << 20;

/// Mode of a published object.
const MODE: u32 = 0o444;

/// What a batch has published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchStats {
    /// Objects that the store did not have before.
    pub objects: u64,
    /// The total size of these objects in bytes.
    pub bytes: u64,
}

/// Objects written together: staged under `staging/<random>/`, made durable by one barrier, then renamed into
/// place.
///
/// Nothing is visible before [`Batch::commit`]; dropping the batch removes what was staged. The staging
/// directory is locked with a `flock` while the batch lives, so that a sweep can tell it from that of a dead
/// process.
///
/// Objects that the store already has are skipped. A caller that refers to such an object must hold the
/// store's shared lock until the reference is durable, or gc may sweep the object in between.
#[derive(Debug)]
pub struct Batch {
    store: Arc<Store>,
    /// How the batch is made durable.
    barrier: Barrier,
    dir: PathBuf,
    /// `dir`, locked. The descriptor was opened before anything was staged, so `syncfs` through it reports
    /// every write error since.
    lock: Flock<File>,
    /// Bytes staged since writeback was last started.
    unwritten: u64,
    /// The thread that runs the early `syncfs`.
    writing: Option<JoinHandle<nix::Result<()>>>,
    staged: HashMap<ObjectId, Staged>,
    /// First bytes of the ids that the store already had: another batch may have added them and not yet made
    /// their directory entries durable.
    skipped: BTreeSet<u8>,
    /// For the first byte of an id, whether its directory was missing when an object in it was first looked
    /// up; then no further lookups are needed.
    bare: BTreeMap<u8, bool>,
    /// Number of the next staged file.
    next: u64,
    /// Whether the umask clears bits of [`MODE`]; known after the first file.
    needs_chmod: Option<bool>,
    /// Whether adopted files can be hard linked from where they are; known after the first one.
    links: Option<bool>,
}

#[derive(Clone, Debug)]
struct Staged {
    at: At,
    bytes: u64,
}

/// Where the bytes of an object are before it is published.
#[derive(Clone, Debug)]
enum At {
    /// In this file of the staging directory, which becomes the object.
    Staging(u64),
    /// In a finished file elsewhere, to which the object becomes a hard link.
    Elsewhere(Box<Path>),
}

impl Batch {
    /// An empty batch.
    pub fn new(store: &Arc<Store>) -> Result<Batch> {
        let staging = store.layout().staging();
        let barrier = store.file_systems()?.first().map_or(Barrier::Named, |found| found.barrier);
        let dir = staging.join(random_name()?);
        let lock = {
            // No sweep takes the new directory for a dead batch's before it is locked.
            let _guard = lock_dir(store.files(), &staging)?;
            store.files().make_dir(&dir).at("create", &dir)?;
            let handle = store.files().open_dir(&dir).at("open", &dir)?;
            Flock::lock(handle, FlockArg::LockExclusiveNonblock)
                .map_err(|(_, errno)| errno)
                .at("lock", &dir)?
        };
        fail::point("batch.stage").at("lock", &dir)?;
        Ok(Batch {
            store: Arc::clone(store),
            barrier,
            dir,
            lock,
            unwritten: 0,
            writing: None,
            staged: HashMap::new(),
            skipped: BTreeSet::new(),
            bare: BTreeMap::new(),
            next: 0,
            needs_chmod: None,
            links: None,
        })
    }

    /// The store that this batch writes to.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Adds an object with these bytes; one that already exists is not written again.
    pub fn put(&mut self, bytes: &[u8]) -> Result<ObjectId> {
        let id = ObjectId::of(bytes);
        if !self.has(&id)? {
            let (file, path, mut handle) = self.create()?;
            fail::point("batch.put").and_then(|()| handle.write_all(bytes)).at("write", &path)?;
            self.stage(id, Staged { at: At::Staging(file), bytes: bytes.len() as u64 })?;
        }
        Ok(id)
    }

    /// Starts an object whose bytes are written piece by piece.
    pub fn writer(&mut self) -> Result<ObjectWriter> {
        let (number, path, file) = self.create()?;
        Ok(ObjectWriter { number, path, file, hasher: blake3::Hasher::new(), bytes: 0 })
    }

    /// Adds a finished private file of `bytes` bytes as the object `id`, which the caller computed from its
    /// content. The file is hard linked where the file system can, else reflinked or copied. It must already
    /// have the mode of an object ([`protect`]), stay at `path` until the batch is committed, and never be
    /// written to again. Its mtime stays old: its age is told by ctime.
    pub fn adopt(&mut self, path: PathBuf, bytes: u64, id: ObjectId) -> Result<()> {
        if self.staged.contains_key(&id) {
            return Ok(());
        }
        fail::point("batch.adopt").at("link", &path)?;
        let at = match self.links {
            // Linked at commit, which also shows whether the store already has the object.
            Some(true) => At::Elsewhere(path.into()),
            Some(false) => self.copy(&path)?,
            None => self.try_link(&path)?,
        };
        self.stage(id, Staged { at, bytes })
    }

    /// Links the first adopted file into the staging directory, or copies it.
    fn try_link(&mut self, path: &Path) -> Result<At> {
        let number = self.next;
        match fs::hard_link(path, self.path(number)) {
            Ok(()) => {
                self.next += 1;
                self.links = Some(true);
                Ok(At::Staging(number))
            }
            Err(error) if !link_is_impossible(&error) => Err(error).at("link", path),
            Err(_) => {
                self.links = Some(false);
                self.copy(path)
            }
        }
    }

    /// Whether the object was added and is not published yet.
    pub(crate) fn stages(&self, id: &ObjectId) -> bool {
        self.staged.contains_key(id)
    }

    /// Reads an object of this batch or of the store, verified; see [`crate::object::Objects::read`].
    pub fn read(&self, id: &ObjectId, max: u64) -> Result<Vec<u8>> {
        match self.staged.get(id) {
            Some(staged) => {
                let path = self.path_of(staged);
                read_verified(self.open_staged(&path)?, path, id, max)
            }
            None => self.store.objects().read(id, max),
        }
    }

    /// Opens an object of this batch or of the store for reading, unverified.
    pub fn open(&self, id: &ObjectId) -> Result<File> {
        match self.staged.get(id) {
            Some(staged) => {
                let path = self.path_of(staged);
                self.open_staged(&path)
            }
            None => self.store.objects().open(id),
        }
    }

    /// Opens a file that is about to become an object.
    pub(crate) fn open_staged(&self, path: &Path) -> Result<File> {
        if path.starts_with(self.store.root()) {
            return self.store.files().open_object(path).at("open", path);
        }
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        File::options().read(true).custom_flags(flags).open(path).at("open", path)
    }

    /// Publishes everything that was added. On return the objects and their directory entries are durable,
    /// including the entries of objects that were skipped because the store had them.
    pub fn commit(mut self) -> Result<BatchStats> {
        let staged = std::mem::take(&mut self.staged);
        self.end_writing()?;
        fail::point("batch.sync").at("sync", &self.dir)?;
        self.make_durable(&staged)?;
        let (stats, new_dirs) = self.publish_all(&staged)?;
        fail::point("batch.sync-names").at("sync", self.store.objects().dir())?;
        self.make_names_durable(&staged, new_dirs)?;
        fail::passed("batch.done");
        Ok(stats)
    }

    /// Renames or links all staged objects into place; returns the counts and whether it made directories.
    fn publish_all(&self, staged: &HashMap<ObjectId, Staged>) -> Result<(BatchStats, bool)> {
        // Sorted by directory, so that threads do not work in the same one.
        let mut staged: Vec<(&ObjectId, &Staged)> = staged.iter().collect();
        staged.sort_unstable_by_key(|(id, _)| id.as_bytes()[0]);
        let published: Vec<Result<_>> = in_pieces(&staged, |piece| {
            let (mut stats, mut new_dirs) = (BatchStats::default(), false);
            let mut known = None;
            for (id, staged) in piece {
                if known.replace(id.as_bytes()[0]) != Some(id.as_bytes()[0]) {
                    self.look_at_directory(id)?;
                }
                fail::point("batch.publish").at("publish", &self.dir)?;
                match self.publish(id, staged)? {
                    Published::Present => continue,
                    Published::InNewDirectory => new_dirs = true,
                    Published::New => {}
                }
                stats.objects += 1;
                stats.bytes += staged.bytes;
            }
            Ok((stats, new_dirs))
        });
        let (mut all, mut new_dirs) = (BatchStats::default(), false);
        for part in published {
            let (stats, new) = part?;
            all.objects += stats.objects;
            all.bytes += stats.bytes;
            new_dirs |= new;
        }
        Ok((all, new_dirs))
    }

    /// Refuses a directory of objects that is a symbolic link or otherwise not the store's.
    fn look_at_directory(&self, id: &ObjectId) -> Result<()> {
        let dir = self.store.objects().shard(id.as_bytes()[0]);
        match self.store.files().open_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("open", &dir),
            _ => Ok(()),
        }
    }

    /// Records a staged object, and starts writeback once enough bytes have accumulated.
    fn stage(&mut self, id: ObjectId, staged: Staged) -> Result<()> {
        self.unwritten += staged.bytes;
        self.staged.insert(id, staged);
        if self.unwritten < EARLY || self.writing.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        self.end_writing()?;
        let dir = self.lock.try_clone().at("open", &self.dir)?;
        let thread = thread::Builder::new().name("karapace-sync".to_owned());
        self.writing = Some(thread.spawn(move || syncfs(&dir)).at("start a thread to sync", &self.dir)?);
        self.unwritten = 0;
        Ok(())
    }

    /// Waits for the early `syncfs`. It may have consumed a write error that no later sync reports.
    fn end_writing(&mut self) -> Result<()> {
        match self.writing.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result.at("sync the file system of", &self.dir),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }

    /// Whether `id` is already staged or stored, so that it need not be written.
    fn has(&mut self, id: &ObjectId) -> Result<bool> {
        if self.staged.contains_key(id) {
            return Ok(true);
        }
        let byte = id.as_bytes()[0];
        if self.bare.get(&byte) == Some(&true) {
            return Ok(false);
        }
        let published = self.store.objects().refresh(id)?;
        if published {
            self.skipped.insert(byte);
        } else if let Entry::Vacant(unknown) = self.bare.entry(byte) {
            unknown.insert(self.store.objects().shard(byte).symlink_metadata().is_err());
        }
        Ok(published)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(number.to_string())
    }

    fn path_of(&self, staged: &Staged) -> PathBuf {
        match &staged.at {
            At::Staging(number) => self.path(*number),
            At::Elsewhere(path) => path.to_path_buf(),
        }
    }

    /// Makes a new staged file with the mode of an object.
    fn create(&mut self) -> Result<(u64, PathBuf, File)> {
        let number = self.next;
        self.next += 1;
        let path = self.path(number);
        let file = self.store.files().make_as(&path, MODE).at("create", &path)?;
        let needs_chmod = match self.needs_chmod {
            Some(known) => known,
            None => file.metadata().at("stat", &path)?.permissions().mode() & 0o7777 != MODE,
        };
        self.needs_chmod = Some(needs_chmod);
        if needs_chmod {
            protect(&file).at("set the mode of", &path)?;
        }
        Ok((number, path, file))
    }

    fn copy(&mut self, from: &Path) -> Result<At> {
        // `io::copy` reflinks or copies in the kernel if possible.
        let mut source = self.open_staged(from)?;
        let (number, _, mut target) = self.create()?;
        io::copy(&mut source, &mut target).at("copy", from)?;
        Ok(At::Staging(number))
    }

    /// Renames or links an object into place, unless the store has it by now: another batch was faster, or
    /// the store was not checked before.
    fn publish(&self, id: &ObjectId, staged: &Staged) -> Result<Published> {
        let from = self.path_of(staged);
        let to = self.store.objects().path(id);
        let mut published = Published::New;
        loop {
            let named = match staged.at {
                At::Staging(_) => rename_new(&from, &to),
                At::Elsewhere(_) => linkat(AT_FDCWD, &from, AT_FDCWD, &to, AtFlags::empty()),
            };
            match named {
                Ok(()) => return Ok(published),
                Err(Errno::EEXIST) if self.store.objects().refresh(id)? => return Ok(Published::Present),
                Err(Errno::ENOENT) if matches!(published, Published::New) => {
                    published = Published::InNewDirectory;
                    let dir = self.store.objects().shard(id.as_bytes()[0]);
                    match self.store.files().make_dir(&dir) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                            return Err(error).at("create", &dir);
                        }
                        _ => {}
                    }
                }
                Err(errno) => return Err(errno).at("publish", &to),
            }
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Err(error) = self.end_writing() {
            tracing::debug!("{error}; nothing was published");
        }
        // A directory that cannot be removed counts as a dead batch's: gc sweeps it.
        if let Err(error) = self.store.files().remove_tree(&self.dir) {
            tracing::warn!("cannot remove {}: {error}; gc will", self.dir.display());
        }
    }
}

/// Sets the mode of an object on a finished file: nobody may write to it any more.
///
/// # Errors
/// When its mode cannot be set.
pub fn protect(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(MODE))
}

/// How an object got into the store.
enum Published {
    New,
    /// As the first one in its directory.
    InNewDirectory,
    /// It was already there.
    Present,
}

/// Renames a file; fails with `EEXIST` if the new name is taken.
fn rename_new(from: &Path, to: &Path) -> nix::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // The file system does not support the flag. Objects of one name are equal, so a race does no harm.
        Err(Errno::EINVAL) if to.symlink_metadata().is_ok() => Err(Errno::EEXIST),
        Err(Errno::EINVAL) => renameat(AT_FDCWD, from, AT_FDCWD, to),
        other => other,
    }
}

/// Whether a hard link failed for a reason that does not prevent a copy: another file system, too many links,
/// a file system without links, or fs.protected_hardlinks.
fn link_is_impossible(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EXDEV | Errno::EMLINK | Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS))
}

/// An object that is being written; it is hashed on the way. Unless finished, it is removed with its batch.
#[derive(Debug)]
pub struct ObjectWriter {
    number: u64,
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl ObjectWriter {
    /// Adds the object to `batch`, which must be the one that made this writer.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for another batch.
    pub fn finish(self, batch: &mut Batch) -> Result<ObjectId> {
        if self.path.parent() != Some(&batch.dir) {
            return Err(StoreError::invalid("an object was begun in one batch and finished in another"));
        }
        let id = ObjectId::from(self.hasher.finalize());
        if batch.has(&id)? {
            batch.store.files().remove(&self.path).at("remove", &self.path)?;
        } else {
            batch.stage(id, Staged { at: At::Staging(self.number), bytes: self.bytes })?;
        }
        Ok(id)
    }

    /// The number of bytes written so far.
    pub fn position(&self) -> u64 {
        self.bytes
    }
}

impl Write for ObjectWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buf)?;
        self.hasher.update(&buf[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
