//! What others write to files while one kernel may have stores in the same pages.
//!
//! Before a change of data, the kernel that caches writes back what was stored through mappings, and drops
//! the pages. Programs there may store again before the change is made. Such a page, written back afterwards,
//! has the old bytes beside the new store; those that are being rewritten are left out.

use std::iter;
use std::ops::Range;
use std::sync::Arc;

use karapace_store::inode::Ino;
use parking_lot::{Mutex, RwLock};

/// What others are writing now. Held shared while this kernel's pages are written.
#[derive(Default)]
pub(super) struct Rewrites(RwLock<Vec<Arc<Rewrite>>>);

struct Rewrite {
    ino: Ino,
    range: Range<u64>,
    left_out: Mutex<Vec<Stored>>,
}

/// An offset, and what was to be written there.
type Stored = (u64, Box<[u8]>);

/// A change of data that has begun. The bytes are no longer left out when it is dropped.
pub(super) struct Rewriting<'a> {
    all: &'a Rewrites,
    this: Arc<Rewrite>,
}

impl Rewriting<'_> {
    /// What was left out for this change so far.
    pub fn left_out(&self) -> Vec<Stored> {
        std::mem::take(&mut *self.this.left_out.lock())
    }
}

impl Drop for Rewriting<'_> {
    fn drop(&mut self) {
        self.all.0.write().retain(|other| !Arc::ptr_eq(other, &self.this));
    }
}

impl Rewrites {
    /// Begins a change of `range` of a file. Waits for the writes of pages that are under way.
    pub fn begin(&self, ino: Ino, range: Range<u64>) -> Rewriting<'_> {
        let this = Arc::new(Rewrite { ino, range, left_out: Mutex::default() });
        self.0.write().push(this.clone());
        Rewriting { all: self, this }
    }

    /// Writes a page with `write`, but for the bytes that others are writing. Returns the number of bytes
    /// that count as written.
    ///
    /// # Errors
    /// As of `write`.
    pub fn write_around<E>(
        &self,
        ino: Ino,
        (offset, data): (u64, &[u8]),
        mut write: impl FnMut(u64, &[u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let rewrites = self.0.read();
        let mut parts: Vec<_> = iter::once(offset..offset + data.len() as u64).collect();
        let bytes = |part: &Range<u64>| &data[(part.start - offset) as usize..(part.end - offset) as usize];
        for rewrite in rewrites.iter().filter(|rewrite| rewrite.ino == ino) {
            for part in &parts {
                let both = part.start.max(rewrite.range.start)..part.end.min(rewrite.range.end);
                if !both.is_empty() {
                    rewrite.left_out.lock().push((both.start, bytes(&both).into()));
                }
            }
            parts = parts.into_iter().flat_map(|part| outside(part, &rewrite.range)).collect();
        }
        for part in parts {
            let written = write(part.start, bytes(&part))?;
            if (written as u64) < part.end - part.start {
                return Ok((part.start - offset) as usize + written);
            }
        }
        Ok(data.len())
    }
}

/// The parts of a range that are not in another.
fn outside(part: Range<u64>, other: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let before = part.start..part.end.min(other.start);
    let after = part.start.max(other.end)..part.end;
    let whole = other.is_empty().then(|| part.clone());
    let cut = [before, after].into_iter().filter(move |_| !other.is_empty()).filter(|part| !part.is_empty());
    whole.into_iter().chain(cut)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn pages_are_written_but_for_what_others_write() {
        let all = Rewrites::default();
        let write = |ino, data: &[u8]| {
            let mut parts = Vec::new();
            let written = all.write_around::<Infallible>(ino, (10, data), |at, bytes| {
                parts.push((at, String::from_utf8(bytes.to_vec()).unwrap()));
                Ok(bytes.len())
            });
            assert_eq!(written, Ok(data.len()));
            parts
        };
        let page = b"abcdefgh";
        let whole = vec![(10, "abcdefgh".to_owned())];
        assert_eq!(write(1, page), whole);
        let middle = all.begin(1, 12..14);
        assert_eq!(write(1, page), [(10, "ab".to_owned()), (14, "efgh".to_owned())]);
        assert_eq!(write(2, page), whole);
        let end = all.begin(1, 16..u64::MAX);
        assert_eq!(write(1, page), [(10, "ab".to_owned()), (14, "ef".to_owned())]);
        assert_eq!(end.left_out(), [(16, b"gh".to_vec().into())]);
        drop(end);
        let nothing = all.begin(1, 11..11);
        assert_eq!(write(1, page), [(10, "ab".to_owned()), (14, "efgh".to_owned())]);
        drop((middle, nothing));
        assert_eq!(write(1, page), whole);
        let beside = [all.begin(1, 0..10), all.begin(1, 18..20)];
        assert_eq!(write(1, page), whole);
        drop(beside);
        let _covering = all.begin(1, 0..20);
        assert_eq!(write(1, page), []);
    }
}
