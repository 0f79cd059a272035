//! A set of objects that takes a few bytes for each: what a collection or a verification has met.
//!
//! A Bloom filter. What was added is always found: what a collection reached is never taken for garbage. What
//! was not added may be found too, and is then kept: of a store of a million objects one in four million, of
//! two million one in 59,000. What looks so follows from what was added and in which order, by chance alone
//! but the same each time.
//!
//! Names of objects are hashes already, so their own bytes say where they go: eight choose a block as large
//! as a cache line, and eight more a bit in each of its words.

use crate::id::ObjectId;

/// Blocks of one filter: 8 MiB.
const BLOCKS: usize = 1 << 17;

/// The most objects that one filter takes: 16 in a block on average.
const OBJECTS: u64 = 16 << 17;

type Block = [u64; 8];

/// The set. It takes 8 MiB of memory for each two million objects.
pub(crate) struct Marks {
    filters: Vec<Vec<Block>>,
    /// Blocks of a filter.
    blocks: usize,
    /// The most objects of a filter.
    most: u64,
    /// Objects that the last filter may still take.
    room: u64,
}

impl Marks {
    /// The empty set.
    pub fn new() -> Marks {
        Marks::with(BLOCKS, OBJECTS)
    }

    /// The empty set, with filters of so many blocks for at most so many objects.
    pub fn with(blocks: usize, most: u64) -> Marks {
        Marks { filters: Vec::new(), blocks, most, room: 0 }
    }

    /// Adds an object; false if it was there, or looked so.
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

    /// Whether an object was added; sometimes true of one that was not.
    pub fn contains(&self, id: &ObjectId) -> bool {
        let (block, bits) = self.place(id);
        let has = |filter: &Vec<Block>| filter[block].iter().zip(bits).all(|(word, bit)| word & bit != 0);
        self.filters.iter().any(has)
    }

    /// The block of an object, and its bit in each word there.
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

    /// Of so many objects beyond the first `there`, how many look as if they were among them.
    fn taken_for_others(marks: &Marks, there: u64, tried: u64) -> usize {
        (there..there + tried).filter(|number| marks.contains(&id(*number))).count()
    }

    #[test]
    fn what_was_added_is_found_and_hardly_anything_else() {
        // As full as a filter becomes, but smaller.
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
        // Four times as many: there are four filters, and four times as many others.
        for number in 0..4 * most {
            marks.insert(&id(number));
        }
        assert!((4..=5).contains(&marks.filters.len()), "{}", marks.filters.len());
        assert!((0..4 * most).all(|number| marks.contains(&id(number))));
        let taken = taken_for_others(&marks, 4 * most, 1_000_000);
        assert!((1..100).contains(&taken), "{taken} of a million");
    }

    #[test]
    fn a_full_filter_takes_everything_for_its_own() {
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
