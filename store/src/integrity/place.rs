//! Where in a tree something is needed: asked when a command met what is damaged and knows it by its hash
//! only.

use std::rc::Rc;
use std::sync::Arc;

use crate::content::FileContent;
use crate::error::{Result, StoreError};
use crate::id::ObjectId;
use crate::open::Store;
use crate::reach::{Fault, Met, Reach, Watch};

/// The first place below `root` that needs `id`, an object, a listing or the hash of a content: a path, or in
/// words what has none. `None`: nothing that can be read does.
pub fn place_of(store: &Arc<Store>, root: &ObjectId, id: &ObjectId) -> Option<String> {
    let mut reach = Reach::new(store.clone());
    reach.root(*root, &Rc::from("the tree"));
    let mut find = Find { id, found: None };
    // The first meeting ends the walk, with an error that says nothing more.
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
