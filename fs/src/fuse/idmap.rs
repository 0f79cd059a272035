//! Ids on a mount made by an ordinary user.
//!
//! The user acts as the environment's root: what belongs to id 0 in the tree shows as theirs, and what belongs
//! to their own id shows as root's. A swap, so that every id of the tree has exactly one to show and back.

/// Swaps id 0 with the mounting user's, for users and groups apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdMap {
    uid: u32,
    gid: u32,
}

/// Tags of ACL entries that carry an id (`ACL_USER`, `ACL_GROUP`).
const ACL_USER: u16 = 2;
const ACL_GROUP: u16 = 8;
/// Version 2 header, then entries of tag, permissions and id, little-endian.
const ACL_HEADER: usize = 4;
const ACL_ENTRY: usize = 8;

impl IdMap {
    /// The map for a mount by this user and group; the identity for root.
    pub fn new(uid: u32, gid: u32) -> IdMap {
        IdMap { uid, gid }
    }

    /// A user id of the tree as the kernel sees it, and back.
    pub fn uid(&self, id: u32) -> u32 {
        swap(self.uid, id)
    }

    /// A group id of the tree as the kernel sees it, and back.
    pub fn gid(&self, id: u32) -> u32 {
        swap(self.gid, id)
    }

    /// Whether values of this xattr hold ids.
    pub fn has_ids(name: &[u8]) -> bool {
        name == b"system.posix_acl_access" || name == b"system.posix_acl_default"
    }

    /// Swaps the ids in the value of an ACL xattr; any other layout stays as it is.
    pub fn acl(&self, value: &mut [u8]) {
        if value.len() < ACL_HEADER || !(value.len() - ACL_HEADER).is_multiple_of(ACL_ENTRY) {
            return;
        }
        for entry in value[ACL_HEADER..].chunks_exact_mut(ACL_ENTRY) {
            let tag = u16::from_le_bytes([entry[0], entry[1]]);
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            let shown = match tag {
                ACL_USER => self.uid(id),
                ACL_GROUP => self.gid(id),
                _ => continue,
            };
            entry[4..].copy_from_slice(&shown.to_le_bytes());
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swaps_and_back() {
        let map = IdMap::new(1000, 100);
        assert_eq!((map.uid(0), map.uid(1000), map.uid(33)), (1000, 0, 33));
        assert_eq!((map.gid(0), map.gid(100), map.gid(1000)), (100, 0, 1000));
        assert_eq!(map.uid(map.uid(7)), 7);
        assert_eq!(IdMap::new(0, 0).uid(0), 0);
    }

    #[test]
    fn ids_in_acls() {
        let map = IdMap::new(1000, 1000);
        let entry =
            |tag: u16, id: u32| [&tag.to_le_bytes()[..], &7u16.to_le_bytes(), &id.to_le_bytes()].concat();
        let mut value = [&2u32.to_le_bytes()[..], &entry(1, u32::MAX), &entry(2, 0), &entry(8, 33)].concat();
        map.acl(&mut value);
        let wanted = [&2u32.to_le_bytes()[..], &entry(1, u32::MAX), &entry(2, 1000), &entry(8, 33)].concat();
        assert_eq!(value, wanted);
        let mut odd = vec![1, 2, 3];
        map.acl(&mut odd);
        assert_eq!(odd, [1, 2, 3]);
    }
}
