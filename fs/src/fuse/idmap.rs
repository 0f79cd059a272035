//! How the ids of a tree are shown on a mount.
//!
//! An ordinary user acts as the environment's root: files of id 0 in the tree show as the user's own, and
//! files of the user's id show as root's. This is a swap, so ids map one to one in both directions. Root,
//! including root of a user namespace, sees the ids unchanged.
//!
//! In a mount made inside a user namespace, some ids may not be mapped there. As owners they are sent
//! unchanged: the kernel shows the overflow id and lets nobody change the inode. In an ACL the kernel accepts
//! no such id (the whole ACL would be EINVAL), so entries that name one are left out; no process inside can
//! have it.

use std::fs;

use nix::unistd::{geteuid, getgid, getuid};

/// Maps the tree's ids to those shown: swaps the mounting user's ids with 0, for users and groups separately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdMap {
    uid: u32,
    gid: u32,
    uids: Ranges,
    gids: Ranges,
    /// The mount was made in another user namespace than that of this process.
    is_elsewhere: bool,
}

/// Tags of the ACL entries that contain an id (`ACL_USER`, `ACL_GROUP`).
const ACL_USER: u16 = 2;
const ACL_GROUP: u16 = 8;
/// Version 2 header, then entries of tag, permissions and id, little-endian.
const ACL_HEADER: usize = 4;
const ACL_ENTRY: usize = 8;

impl IdMap {
    /// The map for a mount made by this process.
    pub fn of_this_process() -> IdMap {
        let (uid, gid) = if geteuid().is_root() { (0, 0) } else { (getuid().as_raw(), getgid().as_raw()) };
        let (uids, gids) = (Ranges::read("/proc/self/uid_map"), Ranges::read("/proc/self/gid_map"));
        IdMap { uid, gid, uids, gids, is_elsewhere: false }
    }

    /// The map for a mount made by root of the user namespace in which `process` lives.
    pub fn of_process(process: u32) -> IdMap {
        let ranges = |file: &str| Ranges::read(&format!("/proc/{process}/{file}"));
        IdMap { uid: 0, gid: 0, uids: ranges("uid_map"), gids: ranges("gid_map"), is_elsewhere: true }
    }

    /// Translates a group id that this process reads in /proc for the kernel; `None` if the mount's user namespace
    /// does not have it.
    pub fn own_gid(&self, gid: u32) -> Option<u32> {
        if self.is_elsewhere { self.gids.inside(gid) } else { Some(gid) }
    }

    /// Translates a user id from the tree to the kernel, or back.
    pub fn uid(&self, id: u32) -> u32 {
        swap(self.uid, id)
    }

    /// Translates a group id from the tree to the kernel, or back.
    pub fn gid(&self, id: u32) -> u32 {
        swap(self.gid, id)
    }

    /// Whether to list `trusted.*` attributes to this caller: only to root of the initial user namespace, on
    /// its own mount.
    pub fn shows_trusted(&self, caller: u32) -> bool {
        caller == 0 && self.uid == 0 && self.uids == Ranges::all()
    }

    /// Whether this xattr is the access ACL, which the kernel checks permissions with.
    pub fn is_access_acl(name: &[u8]) -> bool {
        name == b"system.posix_acl_access"
    }

    /// Whether values of this xattr hold ids.
    pub fn has_ids(name: &[u8]) -> bool {
        IdMap::is_access_acl(name) || name == b"system.posix_acl_default"
    }

    /// Translates an ACL xattr value from the tree for the kernel; returns any other layout unchanged.
    pub fn shown_acl(&self, value: &[u8]) -> Vec<u8> {
        self.acl(value, |ranges, id| ranges.contains(id))
    }

    /// Translates an ACL xattr value from the kernel for the tree; returns any other layout unchanged.
    pub fn stored_acl(&self, value: &[u8]) -> Vec<u8> {
        self.acl(value, |_, _| true)
    }

    fn acl(&self, value: &[u8], keep: impl Fn(&Ranges, u32) -> bool) -> Vec<u8> {
        let Some((header, entries)) = value.split_at_checked(ACL_HEADER) else { return value.to_vec() };
        if !entries.len().is_multiple_of(ACL_ENTRY) {
            return value.to_vec();
        }
        let mut out = header.to_vec();
        for entry in entries.chunks_exact(ACL_ENTRY) {
            let tag = u16::from_le_bytes([entry[0], entry[1]]);
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            let (ranges, other) = match tag {
                ACL_USER => (&self.uids, self.uid(id)),
                ACL_GROUP => (&self.gids, self.gid(id)),
                _ => {
                    out.extend_from_slice(entry);
                    continue;
                }
            };
            if keep(ranges, other) {
                out.extend_from_slice(&entry[..4]);
                out.extend_from_slice(&other.to_le_bytes());
            }
        }
        out
    }
}

fn swap(own: u32, id: u32) -> u32 {
    if id == 0 {
        own
    } else if id == own {
        0
    } else {
        id
    }
}

/// The ids mapped in a user namespace, as (first id inside, first id outside, count).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ranges(Vec<(u32, u32, u32)>);

impl Ranges {
    /// All ids, as in the initial user namespace; -1 is not an id.
    fn all() -> Ranges {
        Ranges(vec![(0, 0, u32::MAX)])
    }

    /// Reads a map file of user_namespaces(7); all ids if it cannot be read.
    fn read(path: &str) -> Ranges {
        let parsed = fs::read_to_string(path)
            .map_err(|e| e.to_string())
            .and_then(|text| Ranges::parse(&text).ok_or_else(|| format!("not an id map: {text:?}")));
        parsed.unwrap_or_else(|reason| {
            tracing::warn!(path, reason, "treating all ids as mapped");
            Ranges::all()
        })
    }

    /// Parses lines of first id inside, first id outside, count.
    fn parse(text: &str) -> Option<Ranges> {
        let line = |line: &str| -> Option<(u32, u32, u32)> {
            let mut fields = line.split_ascii_whitespace().map(|field| field.parse().ok());
            Some((fields.next()??, fields.next()??, fields.next()??))
        };
        text.lines().map(line).collect::<Option<_>>().map(Ranges)
    }

    fn contains(&self, id: u32) -> bool {
        self.0.iter().any(|(first, _, count)| id.checked_sub(*first).is_some_and(|n| n < *count))
    }

    /// The id inside of an id outside.
    fn inside(&self, id: u32) -> Option<u32> {
        self.0.iter().find_map(|(inside, outside, count)| {
            id.checked_sub(*outside).filter(|n| n < count).map(|n| inside + n)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(uid: u32, gid: u32) -> IdMap {
        IdMap { uid, gid, uids: Ranges::all(), gids: Ranges::all(), is_elsewhere: false }
    }

    fn acl(entries: &[(u16, u32)]) -> Vec<u8> {
        let entry = |(tag, id): &(u16, u32)| {
            [&tag.to_le_bytes()[..], &7u16.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        [2u32.to_le_bytes().to_vec(), entries.iter().flat_map(entry).collect()].concat()
    }

    #[test]
    fn ids_are_swapped_and_swapped_back() {
        let ids = map(1000, 100);
        assert_eq!((ids.uid(0), ids.uid(1000), ids.uid(33)), (1000, 0, 33));
        assert_eq!((ids.gid(0), ids.gid(100), ids.gid(1000)), (100, 0, 1000));
        assert_eq!(ids.uid(ids.uid(7)), 7);
        assert_eq!(map(0, 0).uid(0), 0);
    }

    #[test]
    fn ids_in_acls() {
        let ids = map(1000, 1000);
        let (tree, shown) =
            (acl(&[(1, u32::MAX), (2, 0), (8, 33)]), acl(&[(1, u32::MAX), (2, 1000), (8, 33)]));
        assert_eq!(ids.shown_acl(&tree), shown);
        assert_eq!(ids.stored_acl(&shown), tree);
        assert_eq!(ids.shown_acl(&[1, 2, 3]), [1, 2, 3]);
        assert_eq!(ids.shown_acl(&[2, 0, 0, 0, 1]), [2, 0, 0, 0, 1]);
    }

    #[test]
    fn acl_entries_for_ids_that_a_namespace_lacks_are_left_out() {
        let uids =
            Ranges::parse("         0      54321          1\n         1     100000      65535\n").unwrap();
        let ids = IdMap { uids, gids: Ranges(vec![(0, 7, 10)]), ..map(0, 0) };
        let tree = acl(&[(1, u32::MAX), (2, 65535), (2, 65536), (8, 9), (8, 10), (16, u32::MAX)]);
        assert_eq!(ids.shown_acl(&tree), acl(&[(1, u32::MAX), (2, 65535), (8, 9), (16, u32::MAX)]));
    }

    #[test]
    fn maps_of_ids() {
        assert_eq!(Ranges::parse("         0          0 4294967295\n"), Some(Ranges::all()));
        assert!(Ranges::all().contains(u32::MAX - 1) && !Ranges::all().contains(u32::MAX));
        assert_eq!(Ranges::parse("0 1\n"), None);
        let ranges = Ranges::parse("0 1000 1\n1 100000 65536\n").unwrap();
        let inside = [1000, 100_000, 165_535, 0, 165_536].map(|id| ranges.inside(id));
        assert_eq!(inside, [Some(0), Some(1), Some(65_536), None, None]);
        assert!(map(0, 0).shows_trusted(0) && !map(0, 0).shows_trusted(1) && !map(5, 5).shows_trusted(0));
    }
}
