//! Walks two trees, with entries of the new one overridden.

use super::super::*;
use super::{Place, listing, name};
use std::collections::HashSet;

/// What was visited: the path, whether the old side has it, and what the new side has: the inode, and whether
/// it overrides the listing.
type Seen = (Vec<u8>, bool, Option<(u64, bool)>);

struct Notes(Vec<Seen>);

impl Visitor for Notes {
    type Over = u64;
    type Error = StoreError;

    fn is_one(&mut self, _: &Target, new: &New<u64>) -> Result<bool> {
        Ok(!matches!(new, New::Over(66)))
    }

    fn visit(
        &mut self,
        path: &[u8],
        old: Option<Target>,
        new: Option<New<u64>>,
    ) -> Result<Option<Below<u64>>> {
        let new = new.map(|new| match new {
            New::Listed(target) => (target.ino(), false),
            New::Over(ino) => (ino, true),
        });
        self.0.push((path.to_vec(), old.is_some(), new));
        Ok(None)
    }
}

#[test]
fn what_lies_over_a_listing_is_visited_in_its_place() {
    let place = Place::new();
    let old = place.write(&listing([1, 2, 3, 5])).tree;
    let new = place.write(&listing([1, 2, 4, 5])).tree;
    let path = |i: u64| [&b"/"[..], &name(i)].concat();
    let visits = |old: Option<ObjectId>, over: &[(u64, Option<u64>)]| {
        let over = over.iter().map(|(i, ino)| (name(*i), *ino)).collect();
        let mut notes = Notes(Vec::new());
        let none = HashSet::new();
        let below = Below { old, new, links: false, over };
        compare(&place.trees, Linked::Some(&none), below, &mut notes).unwrap();
        notes.0
    };
    let differ = [(path(3), true, None), (path(4), false, Some((5, false)))];
    assert_eq!(visits(old, &[]), differ);
    // Overriding an equal name, hidden, overriding a differing name, on neither side, split in two visits, a
    // new name.
    let over = [(1, Some(70)), (2, None), (4, Some(71)), (44, None), (5, Some(66)), (6, Some(72))];
    assert_eq!(
        visits(old, &over),
        [
            (path(1), true, Some((70, true))),
            (path(2), true, None),
            (path(3), true, None),
            (path(4), false, Some((71, true))),
            (path(5), true, None),
            (path(5), false, Some((66, true))),
            (path(6), false, Some((72, true))),
        ]
    );
    // Equal listings: only the overridden entries are visited.
    assert_eq!(visits(new, &over[..1]), [(path(1), true, Some((70, true)))]);
}
