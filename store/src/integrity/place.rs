//! Finds where in a tree an object is needed, when a command encounters damage and knows only the hash.

use std::rc::Rc;
use std::sync::Arc;

use crate::content::FileContent;
use crate::error::{Result, StoreError};
use crate::id::ObjectId;
use crate::open::Store;
use crate::reach::{Fault, Met, Reach, Watch};

/// The first place below `root` that needs `id`, which is an object, a listing or the hash of a content: a
/// path, or a description of a place without one. `None` if nothing readable needs it.
pub fn place_of(store: &Arc<Store>, root: &ObjectId, id: &ObjectId) -> Option<String> {
    let mut reach = Reach::new(store.clone());
    reach.root(*root, &Rc::from("the tree"));
    let mut find = Find { id, found: None };
    // The first match ends the walk with an error that has no further meaning.
    match reach.run(&mut find) {
        Ok(()) | Err(_) => find.found.map(|met| met.place()),
    }
}

struct Find<'a> {
    id: &'a ObjectId,
    found: Option<Met>,
}

impl Find<'_> {
    fn compare(&mut self, id: &ObjectId, by: &dyn Fn() -> Met) -> Result<()> {
        if id != self.id {
            return Ok(());
        }
        self.found = Some(by());
        Err(StoreError::Cancelled)
    }
}

impl Watch for Find<'_> {
    fn fault(&mut self, fault: Fault) -> Result<()> {
        self.compare(&fault.id, &|| fault.by.clone())
    }

    fn object(&mut self, id: &ObjectId, by: &dyn Fn() -> Met) -> Result<()> {
        self.compare(id, by)
    }

    fn file(&mut self, content: &FileContent, by: &dyn Fn() -> Met) -> Result<()> {
        self.compare(&content.hash, by)
    }
}
