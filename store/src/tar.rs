//! tmp
use crate::id::hex_id;
hex_id!(
    /// The blake3 of a layer's identity tar.
    TarHash, 32, "a tar hash"
);
/// tmp
pub fn identity_hash(_: &crate::tree::Trees, _: Option<&crate::root::Root>, new: &crate::root::Root) -> crate::Result<TarHash> { Ok(TarHash::from_bytes(*crate::id::ObjectId::of(&new.encode()).as_bytes())) }
