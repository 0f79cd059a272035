//! A compact set of objects: those that a collection or a verification has seen.
//!
//! It is a Bloom filter. What was added is always found, so nothing that a collection reached is taken for
//! garbage. An object that was not added may be found too, and is then kept: in a store of a million objects
//! one in four million, of two million one in 59,000. These false positives depend only on what was added and
//! in which order, so they are the same each time.
//!
//! Names of objects are hashes already, so their own bytes are used: eight bytes choose a block the size of a
//! cache line, and eight more a bit in each of its words.

use crate::id::ObjectId;

/// Number of blocks in a filter: 8 MiB.
const BLOCKS: usize = 1 << 17;

/// Capacity of a filter in objects: 16 for each block on average.
const OBJECTS: u64 = 16 << 17;

type Block = [u64; 8];

/// The set. It uses 8 MiB of memory for each two million objects.
pub(crate) struct Marks {
    filters: Vec<Vec<Block>>,
    /// Number of blocks in a filter.
    blocks: usize,
    /// Capacity of a filter in objects.
    most: u64,
    /// How many more objects the last filter may hold.
    room: u64,
}

impl Marks {
    /// An empty set.
    pub fn new() -> Marks {
        Marks::with(BLOCKS, OBJECTS)
    }

    /// An empty set, with filters of `blocks` blocks for at most `most` objects each.
    pub fn with(blocks: usize, most: u64) -> Marks {
        Marks { filters: Vec::new(), blocks, most, room: 0 }
    }

    /// Adds an object; returns false if it was already there, or seemed to be.
    pub fn insert(&mut self, id: &ObjectId) -> bool {
        if self.contains(id) {
            return false;
        }
        if self.room == 0 {
            self.filters.push(vec![Block::default(); self.blocks]);
            self.room = self.most;
        }
        self.room -= 1;
        let (block, bits) = self.place(id);
        if let Some(filter) = self.filters.last_mut() {
            filter[block].iter_mut().zip(bits).for_each(|(word, bit)| *word |= bit);
        }
        true
    }

    /// Whether an object was added; may be true for one that was not.
    pub fn contains(&self, id: &ObjectId) -> bool {
        let (block, bits) = self.place(id);
        let has = |filter: &Vec<Block>| filter[block].iter().zip(bits).all(|(word, bit)| word & bit != 0);
        self.filters.iter().any(has)
    }

    /// The number of an object's block, and its bit in each of the block's words.
    fn place(&self, id: &ObjectId) -> (usize, Block) {
        let bytes = id.as_bytes();
        let block = bytes[8..16].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let mut bits = Block::default();
        bits.iter_mut().zip(&bytes[16..24]).for_each(|(bit, byte)| *bit = 1 << (byte & 63));
        ((block % self.blocks as u64) as usize, bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> ObjectId {
        ObjectId::of(&number.to_le_bytes())
    }

    /// How many of `tried` objects after the first `there` seem to be in the set.
    fn taken_for_others(marks: &Marks, there: u64, tried: u64) -> usize {
        (there..there + tried).filter(|number| marks.contains(&id(*number))).count()
    }

    #[test]
    fn what_was_added_is_found_and_hardly_anything_else() {
        // As full as a filter gets, but smaller.
        let (blocks, most) = (BLOCKS / 64, OBJECTS / 64);
        let mut marks = Marks::with(blocks, most);
        assert!(!marks.contains(&id(0)));
        for number in 0..most {
            marks.insert(&id(number));
        }
        assert_eq!(marks.filters.len(), 1);
        assert!((0..most).all(|number| marks.contains(&id(number))));
        let taken = taken_for_others(&marks, most, 1_000_000);
        assert!((1..20).contains(&taken), "{taken} of a million");
        // Four times as many objects: four filters, and four times as many false positives.
        for number in 0..4 * most {
            marks.insert(&id(number));
        }
        assert!((4..=5).contains(&marks.filters.len()), "{}", marks.filters.len());
        assert!((0..4 * most).all(|number| marks.contains(&id(number))));
        let taken = taken_for_others(&marks, 4 * most, 1_000_000);
        assert!((1..100).contains(&taken), "{taken} of a million");
    }

    #[test]
    fn a_full_filter_matches_everything() {
        let mut marks = Marks::with(1, u64::MAX);
        for number in 0..1000 {
            marks.insert(&id(number));
        }
        assert_eq!((marks.filters.len(), taken_for_others(&marks, 1000, 1000)), (1, 1000));
    }

    #[test]
    fn the_same_objects_in_another_order_are_the_same_set() {
        let (mut up, mut down) = (Marks::with(4, 100), Marks::with(4, 100));
        (0..100).for_each(|number| assert!(up.insert(&id(number))));
        (0..100).rev().for_each(|number| assert!(down.insert(&id(number))));
        (0..100).for_each(|number| assert!(!up.insert(&id(number))));
        assert!((0..10_000).all(|number| up.contains(&id(number)) == down.contains(&id(number))));
    }
}
