//! Ways in for the tests that feed decoders any bytes (tests/decoders).

use std::path::Path;

use karapace_store::id::ObjectId;

use super::checkpoint::Checkpoint;
use super::record::{decode_all, encode_all};
use super::scan::{Form, scan};

/// Reads a checkpoint, whose checksum is made right first: damage that it shows is not of interest.
pub fn checkpoint(bytes: &[u8]) {
    let body = &bytes[..bytes.len().saturating_sub(32)];
    let whole = [body, ObjectId::of(body).as_bytes()].concat();
    if let Ok(checkpoint) = Checkpoint::decode(&whole, Path::new("(input)")) {
        assert!(checkpoint.items.len() <= whole.len());
    }
}

/// Reads the records of a journal, and what could stand in one: items, which are written again as they were.
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
