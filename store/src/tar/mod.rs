//! Tar streams: the reader that imports use, the writer, and the identity tar that names a layer.

mod acl;
mod decode;
mod encode;
mod header;
mod identity;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

pub use decode::{Member, MemberKind, Reader, TarError};
pub use encode::{Encoder, EntryHeader, Records};
pub use identity::{TarHash, content_digest, identity_hash};

/// Tar's unit: headers are one, bodies are padded to a multiple.
const BLOCK: usize = 512;
