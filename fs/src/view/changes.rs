//! What operations change, for a kernel that has it cached and did not make the change itself.
//!
//! Items are the only way to change the table, so they tell of every change but those of file data, which
//! operations note themselves.

use std::cell::RefCell;

use karapace_store::inode::Ino;

use crate::attr::Invalidation;
use crate::upper::record::Item;

thread_local! {
    /// What the operations of this thread have changed since [`observed`] began; `None` while nobody asks.
    static CHANGED: RefCell<Option<Vec<Invalidation>>> = const { RefCell::new(None) };
}

/// Runs `work`, and returns what the operations in it changed, sorted and each once.
pub(crate) fn observed<T>(work: impl FnOnce() -> T) -> (T, Vec<Invalidation>) {
    CHANGED.set(Some(Vec::new()));
    let result = work();
    let mut changed = CHANGED.take().unwrap_or_default();
    changed.sort_unstable();
    changed.dedup();
    (result, changed)
}

/// Notes a change of an inode's data.
pub(in crate::view) fn note_data(ino: Ino) {
    note(|changed| changed.push(Invalidation::Inode { ino }));
}

/// Notes what these items change.
pub(in crate::view) fn note_items(items: &[Item]) {
    note(|changed| {
        for item in items {
            if let Item::Name { dir, name, .. } = item {
                changed.push(Invalidation::Entry { parent: *dir, name: name.clone() });
            }
            changed.extend(item.ino().map(|ino| Invalidation::Inode { ino }));
        }
    });
}

fn note(add: impl FnOnce(&mut Vec<Invalidation>)) {
    CHANGED.with_borrow_mut(|changed| changed.as_mut().map(add));
}
