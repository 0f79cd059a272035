//! A disk whose power can be cut: the file `image` of a FUSE mount, which a loop device lies on. It knows
//! which writes came since the last flush: these a power cut may lose, each by itself, as the volatile cache
//! of a real disk does; the others not.
//!
//! Why so: device mapper (dm-flakey, dm-log-writes) is not there on every machine, a copy of an image file is
//! not of one moment, and neither loses what a disk had in its cache.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, WriteFlags,
};

use crate::model::Random;

const BLOCK: usize = 4096;
const IMAGE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);

type Block = Arc<[u8; BLOCK]>;
/// Blocks by number; one that is missing is zero.
pub type Image = BTreeMap<u64, Block>;

#[derive(Default)]
struct State {
    /// As of the last flush.
    durable: Image,
    /// What was written since, in this order.
    pending: Vec<(u64, Block)>,
    /// Both together.
    current: Image,
}

impl State {
    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset as usize + done;
            let (number, within) = ((at / BLOCK) as u64, at % BLOCK);
            let n = (BLOCK - within).min(data.len() - done);
            let mut block = self.current.get(&number).map_or([0; BLOCK], |block| **block);
            block[within..within + n].copy_from_slice(&data[done..done + n]);
            let block = Arc::new(block);
            self.current.insert(number, block.clone());
            self.pending.push((number, block));
            done += n;
        }
    }
}

/// The disk; clones are the same one.
#[derive(Clone)]
pub struct Disk {
    size: u64,
    state: Arc<Mutex<State>>,
}

impl Disk {
    /// A disk with an empty ext4.
    pub fn formatted(dir: &Path, size: u64) -> io::Result<Disk> {
        let path = dir.join("format");
        File::create(&path)?.set_len(size)?;
        run(Command::new("mkfs.ext4")
            .args(["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg(&path))?;
        let disk = Disk { size, state: Arc::default() };
        let (file, mut buffer) = (File::open(&path)?, [0; BLOCK]);
        for number in 0..size / BLOCK as u64 {
            file.read_exact_at(&mut buffer, number * BLOCK as u64)?;
            if buffer != [0; BLOCK] {
                disk.lock().current.insert(number, Arc::new(buffer));
            }
        }
        fs::remove_file(&path)?;
        let mut state = disk.lock();
        state.durable = state.current.clone();
        drop(state);
        Ok(disk)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the disk")
    }

    /// What is there when the power goes now: all that was flushed, and of the rest each write with even odds
    /// (or all of it).
    pub fn cut(&self, random: &mut Random) -> Image {
        let state = self.lock();
        let mut image = state.durable.clone();
        let all = random.below(3) == 0;
        for (number, block) in &state.pending {
            if all || random.below(2) == 0 {
                image.insert(*number, block.clone());
            }
        }
        image
    }

    /// Serves the disk as `dir/image`.
    pub fn serve(&self, dir: &Path) -> io::Result<BackgroundSession> {
        fuser::spawn_mount(self.clone(), dir, &Config::default())
    }

    fn attr(&self, ino: INodeNo) -> FileAttr {
        let (kind, size) =
            if ino == IMAGE { (FileType::RegularFile, self.size) } else { (FileType::Directory, 0) };
        let epoch = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: epoch,
            mtime: epoch,
            ctime: epoch,
            crtime: epoch,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK as u32,
            flags: 0,
        }
    }
}

impl Filesystem for Disk {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == "image" {
            true => reply.entry(&TTL, &self.attr(IMAGE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.lock();
        let end = (offset + u64::from(size)).min(self.size);
        let mut out = Vec::with_capacity(size as usize);
        let mut at = offset;
        while at < end {
            let within = (at % BLOCK as u64) as usize;
            let n = (BLOCK - within).min((end - at) as usize);
            match state.current.get(&(at / BLOCK as u64)) {
                Some(block) => out.extend_from_slice(&block[within..within + n]),
                None => out.resize(out.len() + n, 0),
            }
            at += n as u64;
        }
        reply.data(&out);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.lock().write(offset, data);
        reply.written(data.len() as u32);
    }

    /// The loop device makes a flush of the disk's cache an fsync.
    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let mut state = self.lock();
        let State { durable, pending, .. } = &mut *state;
        durable.extend(pending.drain(..));
        reply.ok();
    }
}

/// Writes an image to a file, zero blocks as holes.
pub fn write_image(image: &Image, size: u64, path: &Path) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(size)?;
    for (number, block) in image {
        file.write_all_at(&block[..], number * BLOCK as u64)?;
    }
    Ok(())
}

/// Runs a tool that must succeed.
pub fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(io::Error::other(format!("{command:?}: {}: {said}", output.status)))
        }
    }
}
