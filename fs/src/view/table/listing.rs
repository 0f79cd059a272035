//! A directory listing, cached for its readers.
//!
//! Entries are ordered by a hash of their names, and an entry's cookie is that hash. So a cookie stays valid
//! while other entries come and go, across commits and restores, and from one mount to the next.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;

use karapace_store::inode::{FileKind, Ino};

/// Cookies of `.` and `..`; all others are larger.
pub(crate) const DOT: u64 = 1;
pub(crate) const DOT_DOT: u64 = 2;
/// How many entries are searched for a name among equal hashes.
const SAME_HASH: usize = 4;
/// Number of bits in a cookie; some programs keep cookies in signed or short fields.
const COOKIE_BITS: u32 = 62;

/// A directory's entries in cookie order, for one version of the directory.
#[derive(Default)]
pub(crate) struct Listing {
    pub version: u32,
    pub entries: Vec<ListedEntry>,
}

impl Listing {
    pub fn new(version: u32, mut entries: Vec<ListedEntry>) -> Listing {
        entries.sort_unstable_by(|a, b| (a.cookie, &a.name).cmp(&(b.cookie, &b.name)));
        let mut last = 0;
        for entry in &mut entries {
            // Names with equal hashes get distinct cookies, so that a reader who stops between them does not
            // miss one.
            entry.cookie = entry.cookie.max(last + 1);
            last = entry.cookie;
        }
        Listing { version, entries }
    }

    /// Index of the entry with this name.
    pub fn position(&self, name: &[u8]) -> Option<usize> {
        let hash = cookie(name);
        let from = self.entries.partition_point(|e| e.cookie < hash);
        // Names with the same hash are adjacent.
        let same = self.entries[from..].iter().take(SAME_HASH);
        same.enumerate().find(|(_, e)| *e.name == *name).map(|(i, _)| from + i)
    }
}

pub(crate) struct ListedEntry {
    pub cookie: u64,
    pub ino: Ino,
    pub kind: FileKind,
    pub name: Box<[u8]>,
}

/// The cookie of a name.
pub(crate) fn cookie(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    (hasher.finish() >> (64 - COOKIE_BITS)).max(DOT_DOT + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_hash_have_cookies_of_their_own() {
        let entry =
            |cookie, name: &[u8]| ListedEntry { cookie, ino: 7, kind: FileKind::Fifo, name: name.into() };
        let listing = Listing::new(0, vec![entry(9, b"c"), entry(5, b"b"), entry(5, b"a"), entry(6, b"d")]);
        let found: Vec<_> = listing.entries.iter().map(|e| (e.cookie, &*e.name)).collect();
        assert_eq!(found, [(5, &b"a"[..]), (6, b"b"), (7, b"d"), (9, b"c")]);
    }
}
