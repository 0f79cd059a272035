//! Entry points for tests that feed arbitrary bytes to the decoders (tests/decoders).

use std::path::Path;

use karapace_store::id::ObjectId;

use super::checkpoint::Checkpoint;
use super::record::{decode_all, encode_all};
use super::scan::{Form, scan};

/// Decodes a checkpoint after correcting its checksum, so that the decoder sees past the checksum test.
pub fn checkpoint(bytes: &[u8]) {
    let body = &bytes[..bytes.len().saturating_sub(32)];
    let whole = [body, ObjectId::of(body).as_bytes()].concat();
    if let Ok(checkpoint) = Checkpoint::decode(&whole, Path::new("(input)")) {
        assert!(checkpoint.items.len() <= whole.len());
    }
}

/// Scans a journal; and decodes the bytes as items, which must encode to the same bytes again.
pub fn journal(bytes: &[u8]) {
    for form in [Form::Plain, Form::Stamped] {
        if let Ok(found) = scan(bytes, form) {
            assert!(found.sound <= bytes.len() as u64);
        }
    }
    if let Ok(items) = decode_all(bytes) {
        let mut again = Vec::new();
        encode_all(&items, &mut again);
        assert_eq!(again, bytes);
    }
}
