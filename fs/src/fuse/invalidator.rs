//! What the engine has to tell kernels that it changed without their knowledge.

use std::io;
use std::sync::Arc;

use super::links::Links;
use crate::attr::Invalidation;

/// Tells the kernels of a view's connections what has changed without their knowledge. Cheap to clone.
#[derive(Clone)]
pub struct Invalidator(Arc<Links>);

impl Invalidator {
    pub(crate) fn new(links: Arc<Links>) -> Invalidator {
        Invalidator(links)
    }

    /// Makes the kernels look up or read again what changed in the live view. Mounts on directories stay.
    /// Waits for operations in progress in the affected directories, so call it without holding a lock of the
    /// view.
    ///
    /// # Errors
    /// If a kernel refuses a notification; the remaining ones are still sent. It is not an error if it does
    /// not know a name or inode.
    pub fn send(&self, invalidations: &[Invalidation]) -> io::Result<()> {
        self.0.send(invalidations)
    }
}
