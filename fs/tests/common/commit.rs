//! A commit as the engine makes it, but without layer records.

use karapace_fs::Result;
use karapace_fs::attr::HeadRef;
use karapace_fs::view::{Published, View};
use karapace_store::id::ObjectId;

/// Stores the view, which then stands on what `head` returns for the new root object. `None` if nothing
/// differed.
pub fn commit(view: &View, head: &mut dyn FnMut(ObjectId) -> HeadRef) -> Result<Option<HeadRef>> {
    view.store(None, &mut |stored| {
        let (old, new) = (&stored.old, &stored.root);
        if (&old.inode, old.links) == (&new.inode, new.links) {
            return Ok(None);
        }
        Ok(Some(Published { head: head(stored.id), next_ino: new.next_ino }))
    })
}
