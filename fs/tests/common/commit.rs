//! A commit as the engine makes it, without its records.

use karapace_fs::Result;
use karapace_fs::attr::HeadRef;
use karapace_fs::view::{Published, View};
use karapace_store::id::ObjectId;

/// Puts the view into the store; it stands then on what `head` answers for the new root object. `None` when
/// nothing differed.
pub fn commit(view: &View, head: &mut dyn FnMut(ObjectId) -> HeadRef) -> Result<Option<HeadRef>> {
    view.store(None, &mut |stored| {
        let (old, new) = (&stored.old, &stored.root);
        if (&old.inode, old.links) == (&new.inode, new.links) {
            return Ok(None);
        }
        Ok(Some(Published { head: head(stored.id), next_ino: new.next_ino }))
    })
}
