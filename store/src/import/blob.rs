//! A file of an image, whatever the image lies in.

use std::io::{Cursor, Read};

use super::sha::Sha;
use crate::error::Result;

/// Bytes of one file, with their number.
pub(super) struct Blob {
    pub reader: Box<dyn Read + Send>,
    pub size: u64,
}

impl Blob {
    pub fn of(bytes: &[u8]) -> Blob {
        Blob { reader: Box::new(Cursor::new(bytes.to_vec())), size: bytes.len() as u64 }
    }
}

/// A file, or why there is none of the name, in words that follow it.
pub(super) type Found = std::result::Result<Blob, &'static str>;

/// Gives files by their names, which are untrusted; nothing outside is ever opened, and nothing but regular
/// files.
pub(super) trait Files {
    fn open(&self, name: &str) -> Result<Found>;
    /// Whether there is such a file, though it may be one that cannot be opened yet
    /// ([`super::blobs::Archive::unpack`]).
    fn has(&self, name: &str) -> Result<bool> {
        Ok(self.open(name)?.is_ok())
    }
    /// The name of the file with the blob of this digest.
    fn blob_name(&self, digest: Sha) -> String {
        format!("blobs/sha256/{}", digest.hex())
    }
    /// What is at the top, files and directories.
    fn names(&self) -> Result<Vec<String>>;
    /// How messages call it.
    fn source(&self) -> &str;
}
