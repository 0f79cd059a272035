//! Provides objects that are not stored here.

use std::fmt;
use std::fs::File;

use crate::error::Result;
use crate::id::ObjectId;

/// Provides objects that the store does not have (see [`crate::object::Objects::supply_from`]).
///
/// Called from any thread that reads: for a file request, a commit, gc, verify-store. An implementation that
/// waits for a network must limit the wait itself.
pub trait Supply: fmt::Debug + Send + Sync {
    /// Opens an object for reading; `None` if this supply does not have it. The bytes are not trusted: the
    /// reader verifies them against the name.
    ///
    /// # Errors
    /// When the supply should have the object and cannot provide it.
    fn open(&self, id: &ObjectId) -> Result<Option<File>>;

    /// The size in bytes of an object that this supply has promised to provide; `None` for any other. A
    /// promised object that is not stored here is not damage, uses no space, and is not rebuilt. Never waits.
    fn promised(&self, id: &ObjectId) -> Option<u64>;
}

#[cfg(test)]
mod tests;
