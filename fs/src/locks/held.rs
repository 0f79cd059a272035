//! The locks of one kind on one file, as ranges.

use std::time::Instant;

/// Who has a lock: a connection, and the number that its kernel gives a process (POSIX) or an open file
/// (OFD, flock).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub link: u64,
    pub number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

/// A lock, held or wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lock {
    pub owner: Owner,
    pub mode: Mode,
    /// The first and the last byte.
    pub range: (u64, u64),
    /// The process that asked for it; 0 if it has no number here.
    pub pid: u32,
    /// The open file through which it was asked for.
    pub handle: u64,
    /// When a descriptor of that open file was last closed since. It may have been the only one.
    pub closed: Option<Instant>,
}

impl Lock {
    fn is_of(&self, link: u64, handle: u64) -> bool {
        self.owner.link == link && self.handle == handle
    }

    fn overlaps(&self, (first, last): (u64, u64)) -> bool {
        self.range.0 <= last && first <= self.range.1
    }

    /// Whether `wanted` cannot be had beside this.
    pub fn excludes(&self, wanted: &Lock) -> bool {
        self.owner != wanted.owner
            && (self.mode == Mode::Exclusive || wanted.mode == Mode::Exclusive)
            && self.overlaps(wanted.range)
    }
}

/// Held locks in the order of their first bytes. Those of one owner do not overlap, and do not touch if they
/// are alike.
#[derive(Debug, Default)]
pub(crate) struct Held(Vec<Lock>);

impl Held {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The locks beside which `wanted` cannot be had.
    pub fn against<'a>(&'a self, wanted: &'a Lock) -> impl Iterator<Item = &'a Lock> {
        self.0.iter().filter(|held| held.excludes(wanted))
    }

    /// The mode of an owner's lock on the first byte.
    pub fn mode_of(&self, owner: Owner) -> Option<Mode> {
        self.0.iter().find(|held| held.owner == owner && held.range.0 == 0).map(|held| held.mode)
    }

    /// Gives an owner a lock, in place of what it has in the range. Nothing may exclude it.
    pub fn put(&mut self, lock: Lock) {
        self.free(lock.owner, lock.range);
        let mut merged = lock;
        self.0.retain(|held| {
            let alike = held.owner == lock.owner && held.mode == lock.mode;
            let touches = held.range.1.checked_add(1) == Some(merged.range.0)
                || merged.range.1.checked_add(1) == Some(held.range.0);
            if alike && touches {
                merged.range = (held.range.0.min(merged.range.0), held.range.1.max(merged.range.1));
            }
            !(alike && touches)
        });
        self.insert(merged);
    }

    /// Takes a range from an owner.
    pub fn free(&mut self, owner: Owner, range: (u64, u64)) {
        let mut rests = Vec::new();
        self.0.retain(|held| {
            let is_hit = held.owner == owner && held.overlaps(range);
            if is_hit {
                if held.range.0 < range.0 {
                    rests.push(Lock { range: (held.range.0, range.0 - 1), ..*held });
                }
                if held.range.1 > range.1 {
                    rests.push(Lock { range: (range.1 + 1, held.range.1), ..*held });
                }
            }
            !is_hit
        });
        rests.into_iter().for_each(|rest| self.insert(rest));
    }

    /// Takes everything from an owner.
    pub fn free_owner(&mut self, owner: Owner) {
        self.0.retain(|held| held.owner != owner);
    }

    /// Takes what was had through an open file.
    pub fn free_handle(&mut self, link: u64, handle: u64) {
        self.0.retain(|held| !held.is_of(link, handle));
    }

    /// Takes what was had through a connection.
    pub fn free_link(&mut self, link: u64) {
        self.0.retain(|held| held.owner.link != link);
    }

    /// A descriptor of an open file was closed.
    pub fn note_close(&mut self, link: u64, handle: u64, now: Instant) {
        self.0.iter_mut().filter(|held| held.is_of(link, handle)).for_each(|held| held.closed = Some(now));
    }

    fn insert(&mut self, lock: Lock) {
        let at = self.0.partition_point(|held| held.range.0 <= lock.range.0);
        self.0.insert(at, lock);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BYTES: u64 = 12;

    /// The mode that each owner has on each byte.
    type Model = [[Option<Mode>; BYTES as usize]; 3];

    fn modes() -> impl Strategy<Value = Option<Mode>> {
        prop_oneof![Just(None), Just(Some(Mode::Shared)), Just(Some(Mode::Exclusive))]
    }

    /// Byte `BYTES - 1` stands for all that follow.
    fn range(a: u64, b: u64) -> (u64, u64) {
        let (first, last) = (a.min(b), a.max(b));
        (first, if last == BYTES - 1 { u64::MAX } else { last })
    }

    fn shown(held: &Held) -> Model {
        let mut model = Model::default();
        for lock in &held.0 {
            let last = lock.range.1.min(BYTES - 1);
            for byte in lock.range.0..=last {
                let place = &mut model[lock.owner.number as usize][byte as usize];
                assert_eq!(*place, None, "an owner's locks overlap: {held:?}");
                *place = Some(lock.mode);
            }
        }
        model
    }

    proptest! {
        #[test]
        fn ranges_are_as_byte_by_byte(
            steps in prop::collection::vec((0..3u64, 0..BYTES, 0..BYTES, modes()), 1..60)
        ) {
            let (mut held, mut model) = (Held::default(), Model::default());
            for (number, a, b, mode) in steps {
                let owner = Owner { link: 1, number };
                let range = range(a, b);
                let bytes = a.min(b) as usize..=a.max(b) as usize;
                let Some(mode) = mode else {
                    held.free(owner, range);
                    model[number as usize][bytes].fill(None);
                    prop_assert_eq!(shown(&held), model);
                    continue;
                };
                let wanted = Lock { owner, mode, range, pid: 0, handle: 0, closed: None };
                let excluded = (0..3).filter(|other| *other != number).any(|other| {
                    model[other as usize][bytes.clone()].iter().flatten().any(|theirs| {
                        *theirs == Mode::Exclusive || mode == Mode::Exclusive
                    })
                });
                prop_assert_eq!(held.against(&wanted).next().is_some(), excluded);
                if !excluded {
                    held.put(wanted);
                    model[number as usize][bytes].fill(Some(mode));
                }
                prop_assert_eq!(shown(&held), model);
                let starts: Vec<_> = held.0.iter().map(|lock| lock.range.0).collect();
                prop_assert!(starts.is_sorted());
                let touching = held.0.iter().any(|one| held.0.iter().any(|other| {
                    (one.owner, one.mode) == (other.owner, other.mode)
                        && one.range.1.checked_add(1) == Some(other.range.0)
                }));
                prop_assert!(!touching, "not merged: {:?}", held);
            }
        }
    }

    #[test]
    fn what_an_open_file_or_a_connection_had_is_taken() {
        let lock = |link, handle, first| Lock {
            owner: Owner { link, number: handle },
            mode: Mode::Shared,
            range: (first, first),
            pid: 0,
            handle,
            closed: None,
        };
        let mut held = Held::default();
        [lock(1, 5, 0), lock(1, 6, 0), lock(2, 5, 0), lock(2, 5, 9)].into_iter().for_each(|l| held.put(l));
        held.free_handle(2, 5);
        assert_eq!(held.0, [lock(1, 5, 0), lock(1, 6, 0)]);
        held.free_owner(Owner { link: 1, number: 6 });
        assert_eq!(held.0, [lock(1, 5, 0)]);
        held.free_link(2);
        assert_eq!(held.len(), 1);
        held.free_link(1);
        assert!(held.is_empty());
    }
}
