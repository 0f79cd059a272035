//! The set of 64 KiB blocks of a large file that are in the upper.

/// A bitmap of block numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockSet {
    words: Vec<u64>,
    count: u64,
}

impl BlockSet {
    pub fn contains(&self, block: u64) -> bool {
        self.words.get((block / 64) as usize).is_some_and(|w| w & (1 << (block % 64)) != 0)
    }

    pub fn insert(&mut self, block: u64) {
        let word = (block / 64) as usize;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let bit = 1u64 << (block % 64);
        if self.words[word] & bit == 0 {
            self.words[word] |= bit;
            self.count += 1;
        }
    }

    pub fn remove(&mut self, block: u64) {
        if self.contains(block) {
            self.words[(block / 64) as usize] &= !(1 << (block % 64));
            self.count -= 1;
        }
    }

    /// Removes the blocks that are in `other`.
    pub fn subtract(&mut self, other: &BlockSet) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word &= !other;
        }
        self.recount();
    }

    /// Removes the blocks that are not in `other`.
    pub fn intersect(&mut self, other: &BlockSet) {
        self.words.truncate(other.words.len());
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word &= other;
        }
        self.recount();
    }

    fn recount(&mut self) {
        self.count = self.words.iter().map(|w| u64::from(w.count_ones())).sum();
    }

    /// Removes every block at or beyond `first`.
    pub fn truncate(&mut self, first: u64) {
        let word = (first / 64) as usize;
        if word < self.words.len() {
            self.words[word] &= (1u64 << (first % 64)) - 1;
            self.words.truncate(word + 1);
            self.recount();
        }
    }

    /// Number of blocks in the set.
    pub fn len(&self) -> u64 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The blocks, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().enumerate().flat_map(|(i, w)| {
            let base = i as u64 * 64;
            (0..64).filter(move |b| w & (1u64 << b) != 0).map(move |b| base + b)
        })
    }

    /// Maximal runs as (first block, count), ascending.
    pub fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for block in self.iter() {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == block => *count += 1,
                _ => runs.push((block, 1)),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::BlockSet;

    #[test]
    fn holds_what_was_put_in() {
        let mut set = BlockSet::default();
        for b in [0, 1, 63, 64, 200, 201] {
            set.insert(b);
        }
        set.insert(64);
        assert_eq!(set.len(), 6);
        assert_eq!(set.runs(), vec![(0, 2), (63, 2), (200, 2)]);
        set.truncate(64);
        assert_eq!(set.iter().collect::<Vec<_>>(), vec![0, 1, 63]);
        assert_eq!(set.len(), 3);
        assert!(!set.contains(200));
        set.truncate(0);
        assert_eq!(set.len(), 0);
    }

    #[test]
    fn sets_are_taken_from_one_another() {
        let set = |blocks: &[u64]| {
            let mut set = BlockSet::default();
            blocks.iter().for_each(|block| set.insert(*block));
            set
        };
        let blocks = |set: &BlockSet| (set.len(), set.iter().collect::<Vec<_>>());
        let (few, many) = (set(&[1, 64]), set(&[0, 1, 64, 65, 300]));
        for (one, other, left, common) in [
            (&many, &few, vec![0, 65, 300], vec![1, 64]),
            (&few, &many, vec![], vec![1, 64]),
            (&few, &set(&[]), vec![1, 64], vec![]),
        ] {
            let (mut a, mut b) = (one.clone(), one.clone());
            a.subtract(other);
            b.intersect(other);
            assert_eq!((blocks(&a), blocks(&b)), ((left.len() as u64, left), (common.len() as u64, common)));
        }
        let mut set = many;
        set.remove(64);
        set.remove(64);
        set.remove(1000);
        assert_eq!(blocks(&set), (4, vec![0, 1, 65, 300]));
    }
}
