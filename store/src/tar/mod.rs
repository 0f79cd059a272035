//! Tar streams: the reader that imports use, the writer, the identity tar that names a layer and the full one
//! that is exported.
//!
//! `decode` reads, with `header`, `pax`, `sparse`, `acl` and `member` for the parts; `encode` writes. `layer`
//! gives a tree's entries in path order, which `identity` hashes and `full` writes for other programs.

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

/// Tar's unit: headers are one, bodies are padded to a multiple.
const BLOCK: usize = 512;
