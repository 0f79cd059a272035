//! The operations: system calls with random arguments.

use proptest::prelude::*;

use crate::common::generator::{P, offset, path};

/// Number of descriptors kept open.
pub const SLOTS: usize = 3;

/// Ids that own files and make calls; 0 is root.
pub const IDS: [u32; 4] = [0, 1000, 1001, 1002];

/// One system call by one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Index into [`IDS`].
    pub who: u8,
    pub umask: u16,
    pub op: Op,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Open(u8, P, Flags, u16),
    Close(u8),
    Pread(u8, u32, u32),
    /// Writes at the descriptor's position, or at the end.
    Write(u8, u32, u8),
    Pwrite(u8, u32, u32, u8),
    Ftruncate(u8, u32),
    Fallocate(u8, u8, u32, u32),
    /// Reads the map of data and holes, and seeks both from an offset.
    Seek(u8, u32),
    Copy(u8, u32, u8, u32, u32),
    Fsync(u8, bool),
    Mapped(u8, u32, u32, u8),
    Flock(u8, u8),
    Fstat(u8),
    Fchmod(u8, u16),
    Truncate(P, u32),
    Mkdir(P, u16),
    Mknod(P, u8, u16),
    Symlink(P, P),
    Link(P, P, bool),
    Unlink(P),
    Rmdir(P),
    Rename(P, P, u8),
    Chmod(P, u16),
    Chown(P, u8, u8, bool),
    Utimens(P, u8, u8),
    SetXattr(P, u8, u8, u8),
    RemoveXattr(P, u8),
    GetXattr(P, u8),
    ListXattr(P),
    SetAcl(P, u8),
    RemoveAcl(P, bool),
    Stat(P),
    Readdir(P),
    Readlink(P),
    /// Only on the mount: must have no visible effect.
    Commit,
    Checkpoint,
    Remount,
}

/// Arguments of `open`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// 0 to 2: reading, writing, both.
    pub access: u8,
    pub create: bool,
    pub exclusive: bool,
    pub truncate: bool,
    pub append: bool,
    pub nofollow: bool,
    pub directory: bool,
}

impl Op {
    /// Paths whose times, or whose parents' times, the operation may change.
    pub fn paths(&self) -> Vec<&P> {
        match self {
            Op::Link(a, b, _) | Op::Rename(a, b, _) => vec![a, b],
            Op::Open(_, a, ..)
            | Op::Truncate(a, _)
            | Op::Mkdir(a, _)
            | Op::Mknod(a, ..)
            | Op::Symlink(a, _)
            | Op::Unlink(a)
            | Op::Rmdir(a)
            | Op::Chmod(a, _)
            | Op::Chown(a, ..)
            | Op::Utimens(a, ..)
            | Op::SetXattr(a, ..)
            | Op::RemoveXattr(a, _)
            | Op::GetXattr(a, _)
            | Op::ListXattr(a)
            | Op::SetAcl(a, _)
            | Op::RemoveAcl(a, _)
            | Op::Stat(a)
            | Op::Readdir(a)
            | Op::Readlink(a) => vec![a],
            _ => Vec::new(),
        }
    }
}

fn slot() -> impl Strategy<Value = u8> {
    0..SLOTS as u8
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 0u32..300, 3 => 4000u32..70_000, 1 => 1u32..300_000]
}

fn mode() -> impl Strategy<Value = u16> {
    prop_oneof![
        3 => prop::sample::select(vec![0o644u16, 0o755, 0o777, 0o666, 0o2775, 0o1777, 0o4755, 0o6755, 0o600]),
        1 => 0u16..0o10000,
    ]
}

fn flags() -> impl Strategy<Value = Flags> {
    let rare = || prop::bool::weighted(0.15);
    (0u8..3, prop::bool::weighted(0.6), rare(), rare(), rare(), rare(), prop::bool::weighted(0.08)).prop_map(
        |(access, create, exclusive, truncate, append, nofollow, directory)| Flags {
            access,
            create,
            exclusive,
            truncate,
            append,
            nofollow,
            directory,
        },
    )
}

fn on_descriptors() -> impl Strategy<Value = Op> {
    prop_oneof![
        14 => (slot(), path(), flags(), mode()).prop_map(|(s, p, f, m)| Op::Open(s, p, f, m)),
        2 => slot().prop_map(Op::Close),
        3 => (slot(), offset(), length()).prop_map(|(s, o, n)| Op::Pread(s, o, n)),
        5 => (slot(), length(), any::<u8>()).prop_map(|(s, n, b)| Op::Write(s, n, b)),
        8 => (slot(), offset(), length(), any::<u8>()).prop_map(|(s, o, n, b)| Op::Pwrite(s, o, n, b)),
        4 => (slot(), offset()).prop_map(|(s, n)| Op::Ftruncate(s, n)),
        4 => (slot(), 0u8..5, offset(), length()).prop_map(|(s, m, o, n)| Op::Fallocate(s, m, o, n)),
        3 => (slot(), offset()).prop_map(|(s, o)| Op::Seek(s, o)),
        3 => (slot(), offset(), slot(), offset(), length()).prop_map(|(a, o, b, p, n)| Op::Copy(a, o, b, p, n)),
        1 => (slot(), any::<bool>()).prop_map(|(s, d)| Op::Fsync(s, d)),
        4 => (slot(), offset(), 1u32..9000, any::<u8>()).prop_map(|(s, o, n, b)| Op::Mapped(s, o, n, b)),
        2 => (slot(), 0u8..3).prop_map(|(s, k)| Op::Flock(s, k)),
        2 => slot().prop_map(Op::Fstat),
        1 => (slot(), mode()).prop_map(|(s, m)| Op::Fchmod(s, m)),
    ]
}

fn on_names() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (path(), mode()).prop_map(|(p, m)| Op::Mkdir(p, m)),
        3 => (path(), 0u8..5, mode()).prop_map(|(p, k, m)| Op::Mknod(p, k, m)),
        3 => (path(), path()).prop_map(|(p, t)| Op::Symlink(p, t)),
        5 => (path(), path(), any::<bool>()).prop_map(|(a, b, f)| Op::Link(a, b, f)),
        5 => path().prop_map(Op::Unlink),
        2 => path().prop_map(Op::Rmdir),
        9 => (path(), path(), 0u8..4).prop_map(|(a, b, m)| Op::Rename(a, b, m)),
        2 => path().prop_map(Op::Readdir),
        1 => path().prop_map(Op::Readlink),
    ]
}

fn on_attributes() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (path(), offset()).prop_map(|(p, n)| Op::Truncate(p, n)),
        5 => (path(), mode()).prop_map(|(p, m)| Op::Chmod(p, m)),
        // Not to nobody, for which ext4 too has its own permission rules.
        5 => (path(), 0u8..5, 0u8..4, any::<bool>()).prop_map(|(p, u, g, l)| Op::Chown(p, u, g, l)),
        1 => (path(), 0u8..4, any::<bool>()).prop_map(|(p, u, l)| Op::Chown(p, u, 4, l)),
        3 => (path(), 0u8..4, 0u8..4).prop_map(|(p, a, m)| Op::Utimens(p, a, m)),
        5 => (path(), 0u8..5, 0u8..200, 0u8..3).prop_map(|(p, n, v, f)| Op::SetXattr(p, n, v, f)),
        2 => (path(), 0u8..5).prop_map(|(p, n)| Op::RemoveXattr(p, n)),
        2 => (path(), 0u8..7).prop_map(|(p, n)| Op::GetXattr(p, n)),
        2 => path().prop_map(Op::ListXattr),
        4 => (path(), 0u8..8).prop_map(|(p, a)| Op::SetAcl(p, a)),
        1 => (path(), any::<bool>()).prop_map(|(p, d)| Op::RemoveAcl(p, d)),
        3 => path().prop_map(Op::Stat),
    ]
}

/// Any operation by any user.
pub fn step() -> impl Strategy<Value = Step> {
    let op = prop_oneof![
        50 => on_descriptors(),
        34 => on_names(),
        34 => on_attributes(),
        2 => Just(Op::Commit),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::Remount),
    ];
    let who = prop_oneof![5 => Just(0u8), 3 => Just(1u8), 1 => Just(2u8)];
    let umask = prop_oneof![4 => Just(0o022u16), 1 => Just(0u16), 1 => Just(0o077u16)];
    (who, umask, op).prop_map(|(who, umask, op)| Step { who, umask, op })
}
