//! One of the two sides: a directory, descriptors open below it, and the system calls on them.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use karapace_store::id::ObjectId;
use nix::sys::stat::umask;
use nix::unistd::{Gid, Uid, fchdir, setfsgid, setfsuid};
use rustix::fs::{
    self, AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, SeekFrom, Stat,
    Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags,
};
use rustix::io::{self, Errno};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::acl;
use super::ops::{Flags, IDS, Op, SLOTS, Step};
use crate::common::generator::{P, bytes};
use crate::common::sys::Mapping;

/// Result of a call: its return value as text, or its errno.
pub type Outcome = Result<String, Errno>;

/// Whether mtime and ctime changed; `None` if there is no such inode before and after.
type Changed = Option<(bool, bool)>;

/// Inode, modification and change time.
type Stamp = (u64, (i64, u64), (i64, u64));

/// A directory and the descriptors open in it. The calling thread has its own working directory and umask.
pub struct Side {
    pub dir: PathBuf,
    root: Option<OwnedFd>,
    slots: [Option<OwnedFd>; SLOTS],
}

impl Side {
    pub fn new(dir: &Path) -> Side {
        let mut side = Side { dir: dir.to_owned(), root: None, slots: Default::default() };
        side.open();
        side
    }

    /// Opens the directory, after a mount on it.
    pub fn open(&mut self) {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        self.root = Some(fs::open(&self.dir, flags, Mode::empty()).expect("the root of a side"));
    }

    /// Closes all descriptors, so that it can be unmounted.
    pub fn close(&mut self) {
        self.slots = Default::default();
        self.root = None;
        std::env::set_current_dir("/").expect("/");
    }

    /// Makes relative paths start here.
    pub fn go(&self) {
        fchdir(self.root.as_ref().expect("an open side")).expect("the root of a side");
    }

    /// Carries out a step as the user it names. Also returns which of the relevant times changed.
    pub fn apply(&mut self, step: &Step) -> (Outcome, Vec<Changed>) {
        self.go();
        let before = self.stamps(&step.op);
        let id = IDS[usize::from(step.who)];
        fs_ids(id, true);
        let own = umask(nix::sys::stat::Mode::from_bits_truncate(step.umask.into()));
        let outcome = self.call(&step.op);
        umask(own);
        fs_ids(id, false);
        let after = self.stamps(&step.op);
        let changed = before.into_iter().zip(after).map(|(before, after)| {
            let ((ino, mtime, ctime), after) = before.zip(after)?;
            // It is another inode now: there is nothing to compare.
            (ino == after.0).then_some((mtime != after.1, ctime != after.2))
        });
        (outcome, changed.collect())
    }

    /// Times of what the operation concerns: its paths, their directories, its descriptors.
    fn stamps(&self, op: &Op) -> Vec<Option<Stamp>> {
        let mut stats: Vec<Option<Stat>> = Vec::new();
        for path in op.paths() {
            let path = relative(path);
            stats.push(fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW).ok());
            stats.push(fs::statat(CWD, &path, AtFlags::empty()).ok());
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            stats.push(fs::statat(CWD, parent, AtFlags::empty()).ok());
        }
        for (i, slot) in self.slots.iter().enumerate() {
            // The file opened here may have the old inode's number.
            let opened = matches!(op, Op::Open(slot, ..) if usize::from(*slot) == i);
            stats.push(slot.as_ref().filter(|_| !opened).map(|fd| fs::fstat(fd).expect("fstat")));
        }
        let stamp = |stat: Stat| {
            let kept = matches!(
                FileType::from_raw_mode(stat.st_mode),
                FileType::RegularFile | FileType::Directory | FileType::Symlink
            );
            let (mtime, ctime) = ((stat.st_mtime, stat.st_mtime_nsec), (stat.st_ctime, stat.st_ctime_nsec));
            kept.then_some((stat.st_ino, mtime, ctime))
        };
        stats.into_iter().map(|stat| stat.and_then(stamp)).collect()
    }

    fn fd(&self, slot: u8) -> Result<&OwnedFd, Errno> {
        self.slots[usize::from(slot)].as_ref().ok_or(Errno::BADF)
    }

    fn call(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Open(slot, path, flags, mode) => {
                // Close first: the old file may be forgotten because of this.
                self.slots[usize::from(*slot)] = None;
                let fd = fs::openat(CWD, relative(path), open_flags(flags), bits(*mode))?;
                self.slots[usize::from(*slot)] = Some(fd);
                Ok(String::new())
            }
            Op::Close(slot) => Ok(self.slots[usize::from(*slot)].take().map_or("none", |_| "closed").into()),
            Op::Truncate(path, size) => {
                nix::unistd::truncate(&relative(path), (*size).into())
                    .map_err(|e| Errno::from_raw_os_error(e as i32))?;
                Ok(String::new())
            }
            Op::Commit | Op::Checkpoint | Op::Remount => Ok(String::new()),
            _ if op.paths().is_empty() => self.call_on_descriptor(op),
            _ => call_on_path(op),
        }
    }

    fn call_on_descriptor(&self, op: &Op) -> Outcome {
        match op {
            Op::Pread(slot, at, n) => {
                let mut buffer = vec![0; *n as usize];
                let n = io::pread(self.fd(*slot)?, &mut buffer[..], u64::from(*at))?;
                Ok(summary(&buffer[..n]))
            }
            Op::Write(slot, n, seed) => io::write(self.fd(*slot)?, &bytes(*n, *seed)).map(|n| n.to_string()),
            Op::Pwrite(slot, at, n, seed) => {
                io::pwrite(self.fd(*slot)?, &bytes(*n, *seed), u64::from(*at)).map(|n| n.to_string())
            }
            Op::Ftruncate(slot, size) => done(fs::ftruncate(self.fd(*slot)?, u64::from(*size))),
            Op::Fallocate(slot, mode, at, n) => {
                done(fs::fallocate(self.fd(*slot)?, fallocate_mode(*mode), u64::from(*at), u64::from(*n)))
            }
            Op::Seek(slot, at) => self.seek(*slot, u64::from(*at)),
            Op::Copy(from, at, to, to_at, n) => {
                let (mut at, mut to_at) = (u64::from(*at), u64::from(*to_at));
                let n = fs::copy_file_range(
                    self.fd(*from)?,
                    Some(&mut at),
                    self.fd(*to)?,
                    Some(&mut to_at),
                    *n as usize,
                )?;
                Ok(format!("{n}, at {at} and {to_at}"))
            }
            Op::Fsync(slot, true) => done(fs::fdatasync(self.fd(*slot)?)),
            Op::Fsync(slot, false) => done(fs::fsync(self.fd(*slot)?)),
            Op::Mapped(slot, at, n, seed) => self.store_mapped(*slot, u64::from(*at), &bytes(*n, *seed)),
            Op::Flock(slot, kind) => {
                let kinds = [
                    FlockOperation::NonBlockingLockShared,
                    FlockOperation::NonBlockingLockExclusive,
                    FlockOperation::NonBlockingUnlock,
                ];
                done(fs::flock(self.fd(*slot)?, kinds[usize::from(*kind)]))
            }
            Op::Fstat(slot) => Ok(shown(&fs::fstat(self.fd(*slot)?)?)),
            Op::Fchmod(slot, mode) => done(fs::fchmod(self.fd(*slot)?, bits(*mode))),
            _ => unreachable!("{op:?} is no operation on a descriptor"),
        }
    }

    /// Holes must read as zeros; their exact position depends on the file system.
    fn seek(&self, slot: u8, at: u64) -> Outcome {
        let fd = self.fd(slot)?;
        let stat = fs::fstat(fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok("no file".into());
        }
        let position = fs::tell(fd)?;
        let (size, mut hole_from) = (stat.st_size as u64, 0);
        while hole_from < size {
            let data = match fs::seek(fd, SeekFrom::Data(hole_from)) {
                Err(Errno::NXIO) => size,
                other => other?,
            };
            assert_zeros(fd, hole_from, data);
            if data == size {
                break;
            }
            hole_from = fs::seek(fd, SeekFrom::Hole(data))?;
            assert!(data < hole_from && hole_from <= size, "data from {data} to {hole_from} of {size}");
        }
        let beyond = [SeekFrom::Data(at), SeekFrom::Hole(at)].map(|to| fs::seek(fd, to).err());
        let beyond = if at >= size { format!("{beyond:?}") } else { String::new() };
        fs::seek(fd, SeekFrom::Start(position))?;
        Ok(beyond)
    }

    fn store_mapped(&self, slot: u8, at: u64, text: &[u8]) -> Outcome {
        let fd = self.fd(slot)?;
        let stat = fs::fstat(fd)?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !regular || at + text.len() as u64 > stat.st_size as u64 {
            return Ok("not so long".into());
        }
        let file = File::from(fd.try_clone().expect("a descriptor"));
        let mapping = Mapping::store(file, at, text).map_err(|e| errno(&e))?;
        mapping.sync().map_err(|e| errno(&e))?;
        Ok("stored".into())
    }
}

/// Sets the ids that the kernel uses for this thread's file access; a non-root user has no capabilities.
fn fs_ids(id: u32, become_it: bool) {
    if id == 0 {
        return;
    }
    let mut sets = capabilities(None).expect("capabilities");
    if become_it {
        setfsgid(Gid::from_raw(id));
        setfsuid(Uid::from_raw(id));
        sets.effective = CapabilitySet::empty();
        set_capabilities(None, sets).expect("no capabilities");
    } else {
        sets.effective = sets.permitted;
        set_capabilities(None, sets).expect("all capabilities again");
        setfsuid(Uid::from_raw(0));
        setfsgid(Gid::from_raw(0));
    }
}

fn call_on_path(op: &Op) -> Outcome {
    let nofollow = |no: bool| if no { AtFlags::SYMLINK_NOFOLLOW } else { AtFlags::empty() };
    match op {
        Op::Mkdir(p, mode) => done(fs::mkdirat(CWD, relative(p), bits(*mode))),
        Op::Mknod(p, kind, mode) => {
            let (kind, device) = [
                (FileType::RegularFile, 0),
                (FileType::Fifo, 0),
                (FileType::Socket, 0),
                (FileType::CharacterDevice, fs::makedev(1, 3)),
                (FileType::BlockDevice, fs::makedev(259, 70_000)),
            ][usize::from(*kind)];
            done(fs::mknodat(CWD, relative(p), kind, bits(*mode), device))
        }
        Op::Symlink(p, target) => done(fs::symlinkat(relative(target), CWD, relative(p))),
        Op::Link(a, b, follow) => {
            let flags = if *follow { AtFlags::SYMLINK_FOLLOW } else { AtFlags::empty() };
            done(fs::linkat(CWD, relative(a), CWD, relative(b), flags))
        }
        Op::Unlink(p) => done(fs::unlinkat(CWD, relative(p), AtFlags::empty())),
        Op::Rmdir(p) => done(fs::unlinkat(CWD, relative(p), AtFlags::REMOVEDIR)),
        Op::Rename(a, b, how) => {
            let flags =
                [RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE, RenameFlags::WHITEOUT];
            done(fs::renameat_with(CWD, relative(a), CWD, relative(b), flags[usize::from(*how)]))
        }
        Op::Chmod(p, mode) => done(fs::chmodat(CWD, relative(p), bits(*mode), AtFlags::empty())),
        Op::Chown(p, uid, gid, link) => {
            let id = |i: u8| IDS.get(usize::from(i)).copied();
            let (uid, gid) = (id(*uid).map(fs::Uid::from_raw), id(*gid).map(fs::Gid::from_raw));
            done(fs::chownat(CWD, relative(p), uid, gid, nofollow(*link)))
        }
        Op::Utimens(p, access, modification) => {
            let times = Timestamps { last_access: time(*access), last_modification: time(*modification) };
            done(fs::utimensat(CWD, relative(p), &times, AtFlags::SYMLINK_NOFOLLOW))
        }
        Op::SetXattr(p, name, value, flags) => {
            let flags = [XattrFlags::empty(), XattrFlags::CREATE, XattrFlags::REPLACE][usize::from(*flags)];
            let value = xattr_value(*name, *value);
            done(fs::lsetxattr(relative(p), XATTRS[usize::from(*name)], &value, flags))
        }
        Op::RemoveXattr(p, name) => done(fs::lremovexattr(relative(p), XATTRS[usize::from(*name)])),
        Op::GetXattr(p, name) => get_xattr(&relative(p), XATTRS[usize::from(*name)]).map(|v| summary(&v)),
        Op::ListXattr(p) => Ok(format!("{:?}", list_xattrs(&relative(p))?)),
        Op::SetAcl(p, variant) => {
            let (name, value) = acl::variant(*variant);
            done(fs::setxattr(relative(p), name, &value, XattrFlags::empty()))
        }
        Op::RemoveAcl(p, default) => {
            done(fs::removexattr(relative(p), if *default { acl::DEFAULT } else { acl::ACCESS }))
        }
        Op::Stat(p) => Ok(shown(&fs::statat(CWD, relative(p), AtFlags::empty())?)),
        Op::Readdir(p) => {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
            Ok(format!("{:?}", entries(&fs::openat(CWD, relative(p), flags, Mode::empty())?)?))
        }
        Op::Readlink(p) => Ok(format!("{:?}", fs::readlinkat(CWD, relative(p), Vec::new())?)),
        _ => unreachable!("{op:?} is no operation on a path"),
    }
}

/// Attributes to set and remove, and the two ACL attributes, which are read like the others.
const XATTRS: [&str; 8] = [
    "user.a",
    "user.b",
    "security.karapace",
    "trusted.a",
    "system.karapace",
    acl::ACCESS,
    acl::DEFAULT,
    "security.capability",
];

/// Index of the last one. Not used at random: on a file with set-user-id a write by root drops more than on
/// ext4.
pub const CAPABILITY: u8 = 7;

fn xattr_value(name: u8, value: u8) -> Vec<u8> {
    if name == CAPABILITY {
        // struct vfs_cap_data, version 2: cap_net_raw, effective.
        return [0x0200_0001u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    }
    vec![value; usize::from(value)]
}

/// Names and kinds in a directory, sorted.
pub fn entries(dir: impl AsFd) -> Result<Vec<(OsString, FileType)>, Errno> {
    let mut entries = Vec::new();
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
        if name != "." && name != ".." {
            entries.push((name, entry.file_type()));
        }
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(entries)
}

/// The value of an attribute; of a symbolic link itself, not its target.
pub fn get_xattr(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 4096];
    let n = fs::lgetxattr(path, name, &mut value[..])?;
    value.truncate(n);
    Ok(value)
}

/// The names of attributes, sorted.
pub fn list_xattrs(path: &Path) -> Result<Vec<String>, Errno> {
    let mut list = vec![0; 4096];
    let n = fs::llistxattr(path, &mut list[..])?;
    let names = list[..n].split(|b| *b == 0).filter(|name| !name.is_empty());
    let mut names: Vec<String> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    names.sort();
    Ok(names)
}

/// The path from the root of a side.
fn relative(path: &P) -> PathBuf {
    // An empty list of names is the root itself.
    std::iter::once(OsString::from(".")).chain(path.names().into_iter().map(OsString::from_vec)).collect()
}

fn open_flags(flags: &Flags) -> OFlags {
    // Never wait for the other end of a FIFO.
    let mut out = OFlags::CLOEXEC | OFlags::NONBLOCK;
    out |= [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR][usize::from(flags.access)];
    let bits = [
        (flags.create, OFlags::CREATE),
        (flags.exclusive, OFlags::EXCL),
        (flags.truncate, OFlags::TRUNC),
        (flags.append, OFlags::APPEND),
        (flags.nofollow, OFlags::NOFOLLOW),
        (flags.directory, OFlags::DIRECTORY),
    ];
    bits.iter().filter(|(on, _)| *on).fold(out, |out, (_, flag)| out | *flag)
}

/// Collapsing and inserting ranges are refused (docs/SEMANTICS.md).
fn fallocate_mode(mode: u8) -> FallocateFlags {
    [
        FallocateFlags::empty(),
        FallocateFlags::KEEP_SIZE,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        FallocateFlags::ZERO_RANGE,
        FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
    ][usize::from(mode)]
}

/// Omitted, now, and two that are not now.
fn time(choice: u8) -> Timespec {
    match choice {
        0 => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        1 => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        2 => Timespec { tv_sec: 1_234_567_890, tv_nsec: 123_456_789 },
        _ => Timespec { tv_sec: -86_400, tv_nsec: 999_999_999 },
    }
}

fn bits(mode: u16) -> Mode {
    Mode::from_raw_mode(mode.into())
}

/// The fields of `stat` that must agree on both sides.
fn shown(stat: &Stat) -> String {
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let size = if directory { 0 } else { stat.st_size };
    let Stat { st_mode, st_nlink, st_uid, st_gid, st_rdev, .. } = stat;
    format!("{st_mode:o} x{st_nlink} {st_uid}:{st_gid} {size} bytes, device {st_rdev}")
}

fn summary(data: &[u8]) -> String {
    format!("{} bytes {}", data.len(), &ObjectId::of(data).to_hex()[..12])
}

fn assert_zeros(fd: &OwnedFd, from: u64, to: u64) {
    let mut buffer = vec![0; (to - from) as usize];
    // A write-only descriptor can be searched for holes, but not read.
    match io::pread(fd, &mut buffer[..], from) {
        Ok(n) => assert!(buffer[..n].iter().all(|b| *b == 0), "the hole from {from} to {to} has data"),
        Err(errno) => assert_eq!(errno, Errno::BADF),
    }
}

fn done(result: Result<(), Errno>) -> Outcome {
    result.map(|()| String::new())
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
