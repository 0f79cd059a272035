//! The set of 64 KiB blocks of a large file that the upper holds.

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

    /// Forgets every block at or beyond `first`.
    pub fn truncate(&mut self, first: u64) {
        let word = (first / 64) as usize;
        if word < self.words.len() {
            self.words[word] &= (1u64 << (first % 64)) - 1;
            self.words.truncate(word + 1);
            self.count = self.words.iter().map(|w| u64::from(w.count_ones())).sum();
        }
    }

    /// Number of blocks in the set.
    pub fn len(&self) -> u64 {
        self.count
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
}
