//! How to make what is written to a file system reliably durable.
//!
//! syncfs(2) makes many files durable at once on some file systems; on others this is unknown, or known to be
//! false: a FUSE server is not even asked. The same holds for names in directories: with a FUSE server
//! without FSYNCDIR, fsync of a directory succeeds and does nothing. Only what is known to work is relied on.
//! docs/DURABILITY.md has the table with its sources.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;

use nix::sys::statfs::{self, FsType, fstatfs};
use rustix::fs::{AtFlags, StatxFlags};

/// How many files and their names are made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// With one syncfs.
    Whole,
    /// With an fsync of each file, and of each directory.
    Each,
    /// With an fsync of each file before it is named and another after it, because an fsync of the directory
    /// may do nothing.
    Named,
}

/// Why data may be lost in a power failure although it was synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The file system is in memory.
    Memory,
    /// A process serves the file system, and may ignore syncs.
    Server,
    /// It is mounted with this option, which weakens syncs.
    Option(&'static str),
    /// Its behaviour has not been examined.
    Unknown,
}

/// The file system of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Its type in the mount table, such as `ext4` or `fuse.bindfs`; `type 0x…` if that has none.
    pub name: String,
    /// How files in it are made durable.
    pub barrier: Barrier,
    /// The reason to doubt its durability, if any.
    pub doubt: Option<Doubt>,
}

/// One line of the mount table.
struct Mount<'a> {
    kind: &'a str,
    options: &'a str,
}

impl FileSystem {
    /// The file system of an open file or directory.
    pub fn of(file: &impl AsFd) -> io::Result<FileSystem> {
        let magic = fstatfs(file)?.filesystem_type();
        // If the table cannot be read, the file system's magic number decides.
        let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let table = String::from_utf8_lossy(&table);
        let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
        Ok(match mount_of(&table, stat.stx_mnt_id) {
            Some(mount) => FileSystem::judged(mount.kind, mount.options),
            None => FileSystem::judged(&name_of(magic), ""),
        })
    }

    /// Judges by the type and options in the mount table.
    fn judged(name: &str, options: &str) -> FileSystem {
        let (barrier, doubt) = match name {
            "ext3" | "ext4" | "xfs" | "btrfs" | "f2fs" | "zfs" | "bcachefs" => (Barrier::Whole, None),
            "tmpfs" | "ramfs" => (Barrier::Whole, Some(Doubt::Memory)),
            // The magic number `ext2/3/4` does not tell which of the three it is.
            "ext2" | "ext2/3/4" | "overlay" | "nfs" | "nfs4" | "ceph" | "virtiofs" | "9p" | "ecryptfs" => {
                (Barrier::Each, None)
            }
            "fuse" | "fuseblk" => (Barrier::Named, Some(Doubt::Server)),
            _ if name.starts_with("fuse.") => (Barrier::Named, Some(Doubt::Server)),
            _ => (Barrier::Named, Some(Doubt::Unknown)),
        };
        let weak = [
            "volatile",
            "fsync=volatile",
            "nobarrier",
            "barrier=0",
            "fsync_mode=nobarrier",
            "journal_flush_disabled",
            "nostrictsync",
        ];
        let weak = weak.into_iter().find(|weak| options.split(',').any(|option| option == *weak));
        FileSystem { name: name.to_owned(), barrier, doubt: weak.map(Doubt::Option).or(doubt) }
    }

    /// What the user should know about durability; `None` if there is nothing to say.
    pub fn remark(&self) -> Option<String> {
        let name = &self.name;
        Some(match self.doubt? {
            Doubt::Memory => {
                format!("{name} is in memory: everything on it is lost when the machine restarts")
            }
            Doubt::Server => format!(
                "on {name} each file is synced separately, which takes longer; what survives a power loss depends on its FUSE \
                 server"
            ),
            Doubt::Option(option) => {
                format!("{name} is mounted with {option}: a power loss may lose or damage what was committed")
            }
            Doubt::Unknown => format!(
                "it is not known what survives a power loss on {name}: each file is synced separately, which takes longer"
            ),
        })
    }
}

/// File systems on which fsync of a directory is known to work. ZFS and bcachefs have no constants for their
/// numbers.
const KEEPS_NAMES: [FsType; 9] = [
    statfs::EXT4_SUPER_MAGIC,
    statfs::XFS_SUPER_MAGIC,
    statfs::BTRFS_SUPER_MAGIC,
    statfs::F2FS_SUPER_MAGIC,
    statfs::TMPFS_MAGIC,
    statfs::OVERLAYFS_SUPER_MAGIC,
    statfs::NFS_SUPER_MAGIC,
    FsType(0x2fc1_2fc1),
    FsType(0xca45_1a4e),
];

/// Whether fsync of this directory may succeed and do nothing. Called for every sync of a directory, so it
/// looks only at the magic number.
pub(crate) fn may_ignore_names(dir: &File) -> io::Result<bool> {
    Ok(!KEEPS_NAMES.contains(&fstatfs(dir)?.filesystem_type()))
}

/// The mount with this id.
fn mount_of(table: &str, id: u64) -> Option<Mount<'_>> {
    table.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        if before.split(' ').next()?.parse() != Ok(id) {
            return None;
        }
        let mut fields = after.split(' ');
        let kind = fields.next()?;
        Some(Mount { kind, options: fields.nth(1).unwrap_or_default() })
    })
}

/// A name for the magic number; some types share one, as ext2 and ext4, or FUSE and virtiofs.
fn name_of(magic: FsType) -> String {
    match magic {
        statfs::EXT4_SUPER_MAGIC => "ext2/3/4".to_owned(),
        statfs::XFS_SUPER_MAGIC => "xfs".to_owned(),
        statfs::BTRFS_SUPER_MAGIC => "btrfs".to_owned(),
        statfs::TMPFS_MAGIC => "tmpfs".to_owned(),
        statfs::OVERLAYFS_SUPER_MAGIC => "overlay".to_owned(),
        statfs::FUSE_SUPER_MAGIC => "fuse".to_owned(),
        FsType(number) => format!("type {:#x}", number as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If one syncfs is not known to write everything, each file is synced by itself.
    #[test]
    fn only_known_good_file_systems_are_synced_as_a_whole() {
        for name in ["ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs"] {
            let found = FileSystem::judged(name, "rw,relatime");
            assert_eq!((found.barrier, found.remark()), (Barrier::Whole, None), "{name}");
        }
        for name in ["ext2", "overlay", "nfs", "nfs4", "ceph", "virtiofs", "9p", "ecryptfs"] {
            let found = FileSystem::judged(name, "rw");
            assert_eq!((found.barrier, found.remark()), (Barrier::Each, None), "{name}");
        }
        for name in
            ["fuse", "fuseblk", "fuse.bindfs", "fuse.mergerfs", "cifs", "fusefs-like", "type 0xef53", ""]
        {
            let found = FileSystem::judged(name, "rw");
            assert_eq!(found.barrier, Barrier::Named, "{name}");
            assert!(found.remark().is_some_and(|said| said.contains(name)), "{name}");
        }
        assert_eq!(FileSystem::judged("tmpfs", "rw").doubt, Some(Doubt::Memory));
    }

    #[test]
    fn options_that_make_a_sync_do_less_are_told() {
        for (name, options, found) in [
            ("overlay", "rw,lowerdir=/a,upperdir=/volatile,workdir=/w", None),
            ("overlay", "rw,lowerdir=/a,upperdir=/u,workdir=/w,volatile", Some("volatile")),
            ("overlay", "rw,fsync=volatile", Some("fsync=volatile")),
            ("ext4", "rw,barrier=0", Some("barrier=0")),
            ("btrfs", "rw,nobarrier,space_cache=v2", Some("nobarrier")),
            ("cifs", "rw,nostrictsync", Some("nostrictsync")),
        ] {
            let judged = FileSystem::judged(name, options);
            assert_eq!(
                judged.doubt.filter(|doubt| *doubt != Doubt::Unknown),
                found.map(Doubt::Option),
                "{options}"
            );
            assert!(found.is_none_or(|option| judged.remark().is_some_and(|said| said.contains(option))));
        }
    }

    #[test]
    fn the_table_of_mounts_is_read_by_number() {
        let table = "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,barrier=0\n\
                     212 21 0:50 / /a\\040b rw,nosuid shared:2 master:3 - fuse.bindfs /x\\040y rw,user_id=0\n\
                     213 21 0:51 / /c rw - overlay overlay rw,volatile";
        let read = |id| mount_of(table, id).map(|mount| (mount.kind, mount.options));
        assert_eq!(read(21), Some(("ext4", "rw,barrier=0")));
        assert_eq!(read(212), Some(("fuse.bindfs", "rw,user_id=0")));
        assert_eq!(read(213), Some(("overlay", "rw,volatile")));
        assert_eq!(read(2), None);
    }

    /// /proc exists everywhere, and nothing in it is durable.
    #[test]
    fn an_open_directory_tells_its_own() {
        let proc = FileSystem::of(&File::open("/proc").unwrap()).unwrap();
        assert_eq!((proc.name.as_str(), proc.doubt), ("proc", Some(Doubt::Unknown)));
        let dir = tempfile::tempdir().unwrap();
        let found = FileSystem::of(&File::open(dir.path()).unwrap()).unwrap();
        assert!(!found.name.is_empty());
        assert!(may_ignore_names(&File::open("/proc").unwrap()).unwrap());
        let known = found.barrier == Barrier::Whole;
        assert!(!known || !may_ignore_names(&File::open(dir.path()).unwrap()).unwrap(), "{}", found.name);
    }
}
