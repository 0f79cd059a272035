//! Names damaged objects by the paths that need them.

use std::sync::Arc;

use karapace_store::Store;
use karapace_store::error::StoreError;
use karapace_store::id::ObjectId;
use karapace_store::integrity::place_of;

use crate::engine::Error;

/// Adds to an error about an object the path that needs it. `roots` are root objects of the environment
/// `env`.
pub(in crate::engine) fn named(store: &Arc<Store>, env: &str, roots: &[ObjectId], error: Error) -> Error {
    let (kind, id, reason) = match &error {
        Error::Store(found) | Error::Fs(karapace_fs::Error::Store(found)) => match found {
            StoreError::Corrupt { kind, id, reason } => (*kind, id, reason.as_str()),
            StoreError::Missing { kind, id } => (*kind, id, "it is not in the store"),
            _ => return error,
        },
        _ => return error,
    };
    let Ok(object) = id.parse::<ObjectId>() else { return error };
    match roots.iter().find_map(|root| place_of(store, root, &object)) {
        Some(place) => StoreError::corrupt(kind, id, format!("{reason}; {place} in {env} needs it")).into(),
        None => error,
    }
}
