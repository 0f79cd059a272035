//! Importing an archive that comes from a pipe, a FIFO or a socket: what cannot seek.

use std::io::Read;
use std::sync::Arc;

use super::archive::{Body, Counted, Uncounted, broken, spool_whole};
use super::{Imported, Intake, image};
use crate::error::Result;
use crate::open::Store;
use crate::progress::Progress;

/// How much is read before it is decided what it is. An archive says so in its first members.
const HEAD: u64 = 1 << 20;

/// Imports an archive as [`super::import_path`] does, from a stream that `source` names in messages. A root
/// filesystem goes into the store as it comes; an image, whose documents and layers lie in any order, is put
/// into an unnamed file of the store first.
///
/// # Errors
/// As [`super::import_path`].
pub fn import_stream(
    store: &Arc<Store>,
    input: impl Read + Send,
    source: &str,
    progress: &dyn Progress,
) -> Result<Imported> {
    // Its bytes are counted as they come.
    let again = Uncounted(progress);
    Intake::of(store, &again, |intake| {
        let mut input = Counted { input, progress };
        let mut head = Vec::new();
        input.by_ref().take(HEAD).read_to_end(&mut head).map_err(|error| broken(source, &error))?;
        if head.is_empty() {
            return Err(broken(
                source,
                &"the archive is truncated to nothing: see whether the command that should give it failed",
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
