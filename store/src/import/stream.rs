//! Imports an archive from a pipe, a FIFO or a socket, which cannot seek.

use std::io::Read;
use std::sync::Arc;

use super::archive::{Body, Counted, Uncounted, broken, spool_whole};
use super::{Imported, Intake, image};
use crate::error::Result;
use crate::open::Store;
use crate::progress::Progress;

/// How many bytes are read before the kind of archive is decided. Its first members show it.
const HEAD: u64 = 1 << 20;

/// Imports an archive like [`super::import_path`], from a stream that `source` names in messages. A root
/// filesystem is stored as it arrives; an image, whose documents and layers may be in any order, is first
/// copied to an unnamed file of the store.
///
/// # Errors
/// Those of [`super::import_path`].
pub fn import_stream(
    store: &Arc<Store>,
    input: impl Read + Send,
    source: &str,
    progress: &dyn Progress,
) -> Result<Imported> {
    // The bytes are counted on arrival.
    let again = Uncounted(progress);
    Intake::of(store, &again, |intake| {
        let mut input = Counted { input, progress };
        let mut head = Vec::new();
        input.by_ref().take(HEAD).read_to_end(&mut head).map_err(|error| broken(source, &error))?;
        if head.is_empty() {
            return Err(broken(
                source,
                &"the archive is empty: check whether the command that writes it failed",
            ));
        }
        if !image::begins_like_one(&head, source)? {
            return image::root_filesystem(intake, head.chain(input), source);
        }
        let mut whole = head.chain(input);
        let mut body = Body { reader: &mut whole, failed: None };
        let file = spool_whole(store, &mut body, u64::MAX);
        match body.failed {
            Some(reason) => Err(broken(source, &reason)),
            None => image::in_archive(intake, &Arc::new(file?), source),
        }
    })
}
