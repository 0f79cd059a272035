//! What others write to files while one kernel may have stores in the same pages.
//!
//! Before a change of data, the kernel that caches writes back what was stored through mappings, and drops
//! the pages. Programs there may store again before the change is made. Such a page, written back afterwards,
//! has the old bytes beside the new store; those that were rewritten are left out. While the change is made,
//! no page is written back, so that it is known what it rewrote.

use std::iter;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use karapace_store::inode::Ino;
use parking_lot::RwLock;

/// Files of one shard wait for each other.
const SHARDS: usize = 16;

/// What has been rewritten, for one connection.
#[derive(Default)]
pub(super) struct Rewrites {
    /// Held shared while a page of this kernel is written, exclusively while others change data.
    shards: [RwLock<Vec<Rewrite>>; SHARDS],
    last: AtomicU64,
}

struct Rewrite {
    number: u64,
    ino: Ino,
    range: Range<u64>,
}

impl Rewrites {
    fn shard(&self, ino: Ino) -> &RwLock<Vec<Rewrite>> {
        &self.shards[(ino % SHARDS as u64) as usize]
    }

    /// Runs `work`, which changes a file and returns what part of its data it wrote. This is left out of
    /// pages until [`Rewrites::end`] is called with the number that is returned.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn change<T, E>(
        &self,
        ino: Ino,
        work: impl FnOnce() -> Result<(T, Range<u64>), E>,
    ) -> Result<(T, u64), E> {
        let mut rewrites = self.shard(ino).write();
        let (result, range) = work()?;
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        rewrites.push(Rewrite { number, ino, range });
        Ok((result, number))
    }

    /// Leaves this part of a file out of pages until [`Rewrites::end`] is called with the number that is
    /// returned.
    pub fn add(&self, ino: Ino, range: Range<u64>) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        self.shard(ino).write().push(Rewrite { number, ino, range });
        number
    }

    pub fn end(&self, ino: Ino, number: u64) {
        self.shard(ino).write().retain(|rewrite| rewrite.number != number);
    }

    /// Writes with `write` what a page has of a file, but for what was rewritten, and for what is beyond the
    /// end, which `size` tells: a page never makes a file longer, but this kernel may not know yet that it
    /// was cut. Returns the number of bytes that count as written.
    ///
    /// # Errors
    /// Those of `size` and `write`.
    pub fn write_page<E>(
        &self,
        ino: Ino,
        (offset, data): (u64, &[u8]),
        size: impl FnOnce() -> Result<u64, E>,
        mut write: impl FnMut(u64, &[u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let rewrites = self.shard(ino).read();
        let end = size()?.clamp(offset, offset + data.len() as u64);
        let mut parts: Vec<_> = iter::once(offset..end).collect();
        for rewrite in rewrites.iter().filter(|rewrite| rewrite.ino == ino) {
            parts = parts.into_iter().flat_map(|part| outside(part, &rewrite.range)).collect();
        }
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            let bytes = &data[(part.start - offset) as usize..(part.end - offset) as usize];
            let written = write(part.start, bytes)?;
            if written < bytes.len() {
                return Ok((part.start - offset) as usize + written);
            }
        }
        Ok(data.len())
    }
}

/// The parts of a range before and after another, which may be empty.
fn outside(part: Range<u64>, other: &Range<u64>) -> [Range<u64>; 2] {
    if other.is_empty() {
        return [part.clone(), part.end..part.end];
    }
    [part.start..part.end.min(other.start), part.start.max(other.end)..part.end]
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn pages_are_written_but_for_what_others_wrote_and_for_what_is_beyond_the_end() {
        let all = Rewrites::default();
        let written = |ino, size| {
            let mut parts = String::new();
            let count = all.write_page::<Infallible>(
                ino,
                (10, b"abcdefgh"),
                || Ok(size),
                |at, bytes| {
                    parts += &format!("{at}:{} ", String::from_utf8(bytes.to_vec()).unwrap());
                    Ok(bytes.len())
                },
            );
            assert_eq!(count, Ok(8));
            parts
        };
        let begin = |range| all.change::<_, Infallible>(1, || Ok(((), range))).unwrap().1;
        assert_eq!(written(1, 100), "10:abcdefgh ");
        assert_eq!(written(1, 13), "10:abc ");
        assert_eq!(written(1, 5), "");
        let middle = begin(12..14);
        assert_eq!(written(1, 100), "10:ab 14:efgh ");
        assert_eq!(written(2, 100), "10:abcdefgh ");
        let tail = begin(16..200);
        assert_eq!(written(1, 100), "10:ab 14:ef ");
        all.end(1, tail);
        let nothing = begin(11..11);
        assert_eq!(written(1, 15), "10:ab 14:e ");
        all.end(1, middle);
        all.end(1, nothing);
        let beside = [begin(0..10), begin(18..20)];
        assert_eq!(written(1, 100), "10:abcdefgh ");
        for number in beside {
            all.end(1, number);
        }
        begin(0..20);
        assert_eq!(written(1, 100), "");
    }
}
