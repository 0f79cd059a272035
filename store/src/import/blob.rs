//! A file of an image, wherever the image is stored.

use std::io::{Cursor, Read};

use super::sha::Sha;
use crate::error::Result;

/// The bytes of one file, and their number.
pub(super) struct Blob {
    pub reader: Box<dyn Read + Send>,
    pub size: u64,
}

impl Blob {
    pub fn of(bytes: &[u8]) -> Blob {
        Blob { reader: Box::new(Cursor::new(bytes.to_vec())), size: bytes.len() as u64 }
    }
}

/// The file, or why there is none of that name, in words that follow the name.
pub(super) type Found = std::result::Result<Blob, &'static str>;

/// Opens files by name. Names are untrusted: only regular files are opened, and nothing outside the image.
pub(super) trait Files {
    fn open(&self, name: &str) -> Result<Found>;
    /// Whether there is such a file, even if it cannot be opened yet ([`super::blobs::Archive::unpack`]).
    fn has(&self, name: &str) -> Result<bool> {
        Ok(self.open(name)?.is_ok())
    }
    /// The name of the file with the blob of this digest.
    fn blob_name(&self, digest: Sha) -> String {
        format!("blobs/sha256/{}", digest.hex())
    }
    /// The names of files and directories at the top.
    fn names(&self) -> Result<Vec<String>>;
    /// The image's name in messages.
    fn source(&self) -> &str;
}
