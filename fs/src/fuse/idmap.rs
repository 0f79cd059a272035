//! How the ids of a tree are shown on a mount, and which id of the tree is set.
//!
//! An ordinary user acts as the environment's root. 0 of the tree shows as the user's own id. Users and
//! groups are mapped separately, each in one of two ways:
//! - With sub-ids: n of the tree shows as the n-th of them, counted from 1, as in a user namespace that has
//!   them. Ids beyond show as the kernel's overflow id.
//! - Without: the user's own id in the tree shows as 0, and all other ids show as themselves.
//!
//! Setting an id is not the exact inverse, because a program that sets 0 means the environment's root. The
//! user's own id stands for 0, a sub-id for its number, and every other id, 0 included, for itself. So what
//! an id of the tree shows as sets that id again, with two exceptions: without sub-ids the user's own id,
//! which shows as 0, and with sub-ids the ids beyond.
//!
//! Root, including root of a user namespace, sees and sets the ids unchanged.
//!
//! In a mount made inside a user namespace, some ids may not be mapped there. As owners they are sent
//! unchanged: the kernel shows the overflow id and lets nobody change the inode. In an ACL the kernel accepts
//! no such id (the whole ACL would be EINVAL), so entries that name one are left out; no process inside can
//! have it. Entries that would show the overflow id for want of a sub-id are left out as well.

use std::fs;

use nix::unistd::{geteuid, getgid, getuid};

use super::options::SubIds;

/// Translates the tree's ids to those shown, and ids that are set to the tree's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdMap {
    users: Ids,
    groups: Ids,
    /// The group ids of another user namespace, in which the mount was made, as lines of its map.
    elsewhere: Option<Vec<Line>>,
}

/// A line of a map file of user_namespaces(7): first id inside, first id outside, count.
type Line = (u32, u32, u32);

/// The mapping of user ids, or of group ids.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ids {
    /// The mounting user's own id; 0 changes nothing.
    own: u32,
    /// The user's sub-ids. Without any, 0 is shown as `own`, and `own` as 0.
    sub: Ranges,
    /// Shown for ids beyond the sub-ids.
    overflow: u32,
    /// What is mapped in the user namespace of the mount.
    mapped: Ranges,
}

/// Tags of the ACL entries that contain an id (`ACL_USER`, `ACL_GROUP`).
const ACL_USER: u16 = 2;
const ACL_GROUP: u16 = 8;
/// Version 2 header, then entries of tag, permissions and id, little-endian.
const ACL_HEADER: usize = 4;
const ACL_ENTRY: usize = 8;

impl IdMap {
    /// The map for a mount made by this process. Sub-ids that cannot be shown one to one are ignored.
    pub fn of_this_process(sub_ids: Option<&SubIds>) -> IdMap {
        let (uid, gid) = if geteuid().is_root() { (0, 0) } else { (getuid().as_raw(), getgid().as_raw()) };
        let ids = |own, kind: &str, sub: Option<&Vec<(u32, u32)>>| {
            let mapped = Ranges::read(&format!("/proc/self/{kind}_map"));
            Ids::new(own, sub.map_or(&[], Vec::as_slice), overflow(kind), mapped)
        };
        IdMap {
            users: ids(uid, "uid", sub_ids.map(|sub| &sub.uids)),
            groups: ids(gid, "gid", sub_ids.map(|sub| &sub.gids)),
            elsewhere: None,
        }
    }

    /// The map for a mount made by root of the user namespace in which `process` lives.
    pub fn of_process(process: u32) -> IdMap {
        let path = |kind: &str| format!("/proc/{process}/{kind}_map");
        let ids = |kind: &str| Ids::new(0, &[], overflow(kind), Ranges::read(&path(kind)));
        let elsewhere = fs::read_to_string(path("gid")).ok().and_then(|text| lines(&text));
        IdMap { users: ids("uid"), groups: ids("gid"), elsewhere }
    }

    /// The kernel's number on this mount for a group id that this process reads in /proc; `None` if the
    /// mount's user namespace does not have it.
    pub fn own_gid(&self, gid: u32) -> Option<u32> {
        let Some(lines) = &self.elsewhere else { return Some(gid) };
        lines.iter().find_map(|(inside, outside, count)| {
            gid.checked_sub(*outside).filter(|n| n < count).map(|n| inside + n)
        })
    }

    /// The user id to show for one of the tree.
    pub fn shown_uid(&self, id: u32) -> u32 {
        self.users.shown(id)
    }

    /// The group id to show for one of the tree.
    pub fn shown_gid(&self, id: u32) -> u32 {
        self.groups.shown(id)
    }

    /// The tree's user id that a caller means by this one, which it sets or has.
    pub fn stored_uid(&self, id: u32) -> u32 {
        self.users.stored(id)
    }

    /// The tree's group id that a caller means by this one, which it sets or has.
    pub fn stored_gid(&self, id: u32) -> u32 {
        self.groups.stored(id)
    }

    /// Whether to list `trusted.*` attributes to this caller: only to root of the initial user namespace, on
    /// its own mount.
    pub fn shows_trusted(&self, caller: u32) -> bool {
        caller == 0 && self.users.own == 0 && self.users.mapped == Ranges::all()
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
        self.acl(value, |ids, id| ids.can_show(id).then(|| ids.shown(id)))
    }

    /// Translates an ACL xattr value from the kernel for the tree; returns any other layout unchanged.
    pub fn stored_acl(&self, value: &[u8]) -> Vec<u8> {
        self.acl(value, |ids, id| Some(ids.stored(id)))
    }

    /// Leaves out the entries for which `other` has no id.
    fn acl(&self, value: &[u8], other: impl Fn(&Ids, u32) -> Option<u32>) -> Vec<u8> {
        let Some((header, entries)) = value.split_at_checked(ACL_HEADER) else { return value.to_vec() };
        if !entries.len().is_multiple_of(ACL_ENTRY) {
            return value.to_vec();
        }
        let mut out = header.to_vec();
        for entry in entries.chunks_exact(ACL_ENTRY) {
            let tag = u16::from_le_bytes([entry[0], entry[1]]);
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            let ids = match tag {
                ACL_USER => &self.users,
                ACL_GROUP => &self.groups,
                _ => {
                    out.extend_from_slice(entry);
                    continue;
                }
            };
            if let Some(other) = other(ids, id) {
                out.extend_from_slice(&entry[..4]);
                out.extend_from_slice(&other.to_le_bytes());
            }
        }
        out
    }
}

impl Ids {
    fn new(own: u32, sub: &[(u32, u32)], overflow: u32, mapped: Ranges) -> Ids {
        let sub = Ranges(sub.to_vec());
        let sound = sub.are_disjoint() && sub.are_in(&mapped) && !sub.contains(0) && !sub.contains(own);
        if !sound {
            tracing::debug!(own, ?sub, ?mapped, "not showing these sub-ids");
        }
        let sub = if sound && own != 0 { sub } else { Ranges(Vec::new()) };
        Ids { own, sub, overflow, mapped }
    }

    fn shown(&self, id: u32) -> u32 {
        match id {
            _ if self.own == 0 => id,
            0 => self.own,
            _ if !self.sub.0.is_empty() => self.sub.nth(id).unwrap_or(self.overflow),
            _ if id == self.own => 0,
            _ => id,
        }
    }

    fn stored(&self, id: u32) -> u32 {
        if id == self.own { 0 } else { self.sub.number(id).unwrap_or(id) }
    }

    /// Whether an ACL can show this id of the tree.
    fn can_show(&self, id: u32) -> bool {
        let beyond = id != 0 && !self.sub.0.is_empty() && self.sub.nth(id).is_none();
        !beyond && self.mapped.contains(self.shown(id))
    }
}

/// What the kernel shows for ids without a mapping; `kind` is `uid` or `gid`.
fn overflow(kind: &str) -> u32 {
    let read = fs::read_to_string(format!("/proc/sys/kernel/overflow{kind}"));
    read.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(65534)
}

/// The lines of a map file; `None` if it is none.
fn lines(text: &str) -> Option<Vec<Line>> {
    let line = |line: &str| -> Option<Line> {
        let mut fields = line.split_ascii_whitespace().map(|field| field.parse().ok());
        Some((fields.next()??, fields.next()??, fields.next()??))
    };
    text.lines().map(line).collect()
}

/// Ranges of ids, in order, as (first, count).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ranges(Vec<(u32, u32)>);

impl Ranges {
    /// All ids, as in the initial user namespace; -1 is not an id.
    fn all() -> Ranges {
        Ranges(vec![(0, u32::MAX)])
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

    fn parse(text: &str) -> Option<Ranges> {
        Some(Ranges(lines(text)?.into_iter().map(|(inside, _, count)| (inside, count)).collect()))
    }

    fn contains(&self, id: u32) -> bool {
        self.0.iter().any(|(first, count)| id.checked_sub(*first).is_some_and(|n| n < *count))
    }

    /// The n-th id, counted from 1.
    fn nth(&self, n: u32) -> Option<u32> {
        let mut rest = n.checked_sub(1)?;
        for (first, count) in &self.0 {
            match rest.checked_sub(*count) {
                None => return first.checked_add(rest),
                Some(beyond) => rest = beyond,
            }
        }
        None
    }

    /// The n for which `nth` returns this id.
    fn number(&self, id: u32) -> Option<u32> {
        let mut before = 1_u32;
        for (first, count) in &self.0 {
            match id.checked_sub(*first) {
                Some(n) if n < *count => return before.checked_add(n),
                _ => before = before.checked_add(*count)?,
            }
        }
        None
    }

    /// Whether no id is in two of them, and -1, which is not an id, in none.
    fn are_disjoint(&self) -> bool {
        let mut sorted: Vec<_> =
            self.0.iter().map(|(first, count)| (u64::from(*first), u64::from(*count))).collect();
        sorted.sort_unstable();
        sorted.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0)
            && sorted.last().is_none_or(|(first, count)| first + count <= u64::from(u32::MAX))
    }

    /// Whether each of them is part of one of `others`.
    fn are_in(&self, others: &Ranges) -> bool {
        let within = |(first, count): &(u32, u32), (start, length): &(u32, u32)| {
            first
                .checked_sub(*start)
                .is_some_and(|skipped| skipped.checked_add(*count).is_some_and(|end| end <= *length))
        };
        self.0.iter().all(|range| others.0.iter().any(|other| within(range, other)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUB: [(u32, u32); 2] = [(100_000, 65_536), (300_000, 10)];
    /// The number of ids in `SUB`.
    const COUNT: u32 = 65_546;

    fn ids(own: u32, sub: &[(u32, u32)]) -> Ids {
        Ids::new(own, sub, 65_534, Ranges::all())
    }

    fn map(uid: u32, gid: u32, sub: &[(u32, u32)]) -> IdMap {
        IdMap { users: ids(uid, sub), groups: ids(gid, sub), elsewhere: None }
    }

    fn acl(entries: &[(u16, u32)]) -> Vec<u8> {
        let entry = |(tag, id): &(u16, u32)| {
            [&tag.to_le_bytes()[..], &7u16.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        [2u32.to_le_bytes().to_vec(), entries.iter().flat_map(entry).collect()].concat()
    }

    #[test]
    fn without_sub_ids_the_own_id_and_0_are_shown_swapped() {
        let ids = ids(1000, &[]);
        assert_eq!([0, 1000, 33, 100_000].map(|id| ids.shown(id)), [1000, 0, 33, 100_000]);
        assert_eq!([0, 1000, 33, 100_000].map(|id| ids.stored(id)), [0, 0, 33, 100_000]);
    }

    #[test]
    fn with_sub_ids_each_shows_as_its_number() {
        let ids = ids(1000, &SUB);
        let (tree, shown) = (
            [0, 1, 33, 1000, 65_536, 65_537, COUNT, COUNT + 1, 100_000, u32::MAX - 1],
            [1000, 100_000, 100_032, 100_999, 165_535, 300_000, 300_009, 65_534, 65_534, 65_534],
        );
        assert_eq!(tree.map(|id| ids.shown(id)), shown);
        let (set, stored) = (
            [0, 1000, 100_000, 100_032, 165_535, 165_536, 299_999, 300_009, 300_010, 33, 65_534, 99_999],
            [0, 0, 1, 33, 65_536, 165_536, 299_999, COUNT, 300_010, 33, 65_534, 99_999],
        );
        assert_eq!(set.map(|id| ids.stored(id)), stored);
    }

    #[test]
    fn what_a_sub_id_shows_sets_the_same_and_looks_like_no_other() {
        let ids = ids(1000, &SUB);
        let mut seen = std::collections::HashSet::new();
        for id in 0..=COUNT {
            assert_eq!(ids.stored(ids.shown(id)), id);
            assert!(seen.insert(ids.shown(id)), "{id} looks like another");
        }
    }

    #[test]
    fn roots_ids_never_change() {
        for id in [0, 1, 33, 1000, 100_000, u32::MAX] {
            assert_eq!((ids(0, &SUB).shown(id), ids(0, &SUB).stored(id)), (id, id));
        }
    }

    #[test]
    fn sub_ids_that_could_not_be_told_apart_are_not_shown() {
        for sub in [
            &[(0, 10)][..],
            &[(990, 11)],
            &[(2000, 10), (2009, 1)],
            &[(3000, 10), (2000, 1001)],
            &[(u32::MAX, 1)],
        ] {
            assert_eq!(ids(1000, sub), ids(1000, &[]), "{sub:?}");
        }
        // A container may have users with ranges that it does not have itself.
        let mapped = Ranges(vec![(0, 65_536)]);
        assert!(Ids::new(1000, &SUB, 65_534, mapped.clone()).sub.0.is_empty());
        assert_eq!(Ids::new(1000, &[(65_000, 536)], 65_534, mapped).shown(2), 65_001);
    }

    #[test]
    fn users_and_groups_are_mapped_separately() {
        let ids = IdMap { users: ids(1000, &SUB), groups: ids(100, &[]), elsewhere: None };
        assert_eq!((ids.shown_uid(33), ids.shown_gid(33)), (100_032, 33));
        assert_eq!((ids.stored_uid(100_032), ids.stored_gid(100_032)), (33, 100_032));
        assert_eq!((ids.shown_uid(0), ids.shown_gid(0)), (1000, 100));
        assert_eq!((ids.stored_uid(1000), ids.stored_gid(100)), (0, 0));
    }

    #[test]
    fn ids_in_acls() {
        let ids = map(1000, 1000, &[]);
        let (tree, shown) =
            (acl(&[(1, u32::MAX), (2, 0), (8, 33)]), acl(&[(1, u32::MAX), (2, 1000), (8, 33)]));
        assert_eq!(ids.shown_acl(&tree), shown);
        assert_eq!(ids.stored_acl(&shown), tree);
        assert_eq!(ids.stored_acl(&tree), tree, "0 means the environment's root");
        assert_eq!(ids.shown_acl(&[1, 2, 3]), [1, 2, 3]);
        assert_eq!(ids.shown_acl(&[2, 0, 0, 0, 1]), [2, 0, 0, 0, 1]);
    }

    #[test]
    fn sub_ids_in_acls() {
        let ids = map(1000, 1000, &SUB);
        let tree =
            acl(&[(1, u32::MAX), (2, 0), (2, 33), (2, COUNT + 1), (8, 33), (8, 65_534), (16, u32::MAX)]);
        let shown =
            acl(&[(1, u32::MAX), (2, 1000), (2, 100_032), (8, 100_032), (8, 165_533), (16, u32::MAX)]);
        assert_eq!(ids.shown_acl(&tree), shown);
        let kept = acl(&[(1, u32::MAX), (2, 0), (2, 33), (8, 33), (8, 65_534), (16, u32::MAX)]);
        assert_eq!(ids.stored_acl(&shown), kept);
    }

    #[test]
    fn acl_entries_for_ids_that_a_namespace_lacks_are_left_out() {
        let mapped =
            Ranges::parse("         0      54321          1\n         1     100000      65535\n").unwrap();
        let ids = IdMap {
            users: Ids::new(0, &[], 65_534, mapped),
            groups: Ids::new(0, &[], 65_534, Ranges(vec![(0, 10)])),
            elsewhere: None,
        };
        let tree = acl(&[(1, u32::MAX), (2, 65535), (2, 65536), (8, 9), (8, 10), (16, u32::MAX)]);
        assert_eq!(ids.shown_acl(&tree), acl(&[(1, u32::MAX), (2, 65535), (8, 9), (16, u32::MAX)]));
    }

    #[test]
    fn maps_of_ids() {
        assert_eq!(Ranges::parse("         0          0 4294967295\n"), Some(Ranges::all()));
        assert!(Ranges::all().contains(u32::MAX - 1) && !Ranges::all().contains(u32::MAX));
        assert_eq!(Ranges::parse("0 1\n"), None);
        let elsewhere = lines("0 1000 1\n1 100000 65536\n");
        let ids = IdMap { elsewhere, ..map(0, 0, &[]) };
        let inside = [1000, 100_000, 165_535, 0, 165_536].map(|id| ids.own_gid(id));
        assert_eq!(inside, [Some(0), Some(1), Some(65_536), None, None]);
        assert_eq!(map(0, 0, &[]).own_gid(1000), Some(1000));
        let shows = |uid, caller| map(uid, uid, &[]).shows_trusted(caller);
        assert!(shows(0, 0) && !shows(0, 1) && !shows(5, 0));
    }
}
