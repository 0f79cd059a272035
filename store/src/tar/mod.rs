//! Tar streams: the reader used by imports, the writer, the identity tar whose hash names a layer, and the
//! full tar for export.
//!
//! `decode` reads; `header`, `pax`, `sparse`, `acl` and `member` are its parts. `encode` writes. `layer`
//! produces a tree's entries in path order; `identity` hashes them, and `full` writes them for other
//! programs.

mod acl;
mod decode;
mod encode;
mod full;
mod header;
mod identity;
mod layer;
mod member;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

pub use decode::{Reader, TarError};
pub use encode::{Encoder, EntryHeader, Records};
pub use full::{Dialect, FullTar, Written};
pub use identity::{TarHash, content_digest, identity_hash};
pub use member::{Member, MemberKind};

/// Tar's block size in bytes: a header is one block, bodies are padded to a multiple.
const BLOCK: usize = 512;
