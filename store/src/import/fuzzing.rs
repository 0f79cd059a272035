//! Entry points for the tests that feed arbitrary bytes to decoders (tests/decoders): no store, no files.

use super::blob::{Blob, Files, Found};
use super::builder::{Attributes, Builder, Content, Way};
use super::copied::Copied;
use super::legacy;
use super::oci;
use super::sha::Sha;
use crate::content::FileContent;
use crate::error::Result;
use crate::tar::{MemberKind, Reader};

/// Reads the documents of an image: `bytes` are an index and blobs, separated by NULs. In each, `@N` stands
/// for the digest of the N-th blob and `#N` for its size, so that the test chooses what refers to what, and
/// digests are correct.
pub fn image(bytes: &[u8]) {
    let mut documents: Vec<Vec<u8>> = bytes.split(|&b| b == 0).take(10).map(<[u8]>::to_vec).collect();
    for later in (1..documents.len()).rev() {
        let (digest, size) = (Sha::of(&documents[later]).to_string(), documents[later].len().to_string());
        for earlier in &mut documents[..later] {
            replace(earlier, &format!("@{later}"), &digest);
            replace(earlier, &format!("#{later}"), &size);
        }
    }
    let files = Documents(documents);
    // All readers are tried, whatever the input looks like; an error is a valid result.
    let copied = Copied::of(&files).ok().flatten().map(|copied| oci::of_layout(&copied));
    let images = [oci::of_layout(&files), oci::of_saved(&files)].into_iter().chain(copied).flatten();
    for image in images.chain(legacy::image(&files).ok().flatten()) {
        assert!(image.layers.len() <= 512);
    }
}

fn replace(document: &mut Vec<u8>, what: &str, by: &str) {
    let what = what.as_bytes();
    while document.len() < 1 << 16
        && let Some(at) = document.windows(what.len()).position(|window| window == what)
    {
        document.splice(at..at + what.len(), by.bytes());
    }
}

struct Documents(Vec<Vec<u8>>);

impl Files for Documents {
    fn open(&self, name: &str) -> Result<Found> {
        let found = match name {
            "oci-layout" => Some(&br#"{"imageLayoutVersion":"1.0.0"}"#[..]),
            "index.json" | "manifest.json" | "repositories" => self.0.first().map(Vec::as_slice),
            _ if name.ends_with("/layer.tar") => Some(&b""[..]),
            _ => self.0.iter().map(Vec::as_slice).find(|document| match name.strip_suffix("/json") {
                Some(id) => {
                    let own = format!("\"id\":\"{id}\"");
                    document.windows(own.len()).any(|window| window == own.as_bytes())
                }
                None => Sha::of(document).hex() == name.strip_prefix("blobs/sha256/").unwrap_or(name),
            }),
        };
        Ok(found.map(Blob::of).ok_or("is missing"))
    }

    fn names(&self) -> Result<Vec<String>> {
        Ok(self.0.iter().map(|document| Sha::of(document).hex()).collect())
    }

    fn source(&self) -> &str {
        "the documents"
    }
}

/// Reads a tar archive, and lays it over itself as a layer.
pub fn archive(bytes: &[u8]) {
    let Some(mut tree) = tree_of(bytes, None) else { return };
    let Some(layer) = tree_of(bytes, Some(&tree)) else { return };
    if tree.cover(layer).is_ok() {
        tree.check();
    }
}

/// The tree of an archive's members, without their content; as a layer, if `below` is given. `None` if the
/// archive is refused.
fn tree_of(bytes: &[u8], below: Option<&Builder>) -> Option<Builder> {
    let mut reader = Reader::new(bytes);
    if below.is_some() {
        reader = reader.unterminated();
    }
    let mut builder = Builder::new(64 << 20);
    while let Some(member) = reader.next_member().ok()? {
        let mut path = member.path;
        if let Some(below) = below {
            match builder.follow(below, &path).ok()? {
                Way::Straight => {}
                Way::To(found) => path = found,
                Way::Nowhere(_) => continue,
            }
        }
        let attributes = Attributes {
            mode: member.mode,
            xattrs: member.xattrs.into_iter().collect(),
            ..Attributes::default()
        };
        let put = match member.kind {
            MemberKind::Directory => builder.put_directory(&path, attributes),
            MemberKind::HardLink => builder.put_link(&path, &member.link),
            MemberKind::Symlink => builder.put(&path, attributes, Content::Symlink(member.link.into())),
            _ if below.is_some() && member.mode & 1 == 1 => {
                builder.place(&path).and_then(|(directory, name)| builder.hide(directory, name))
            }
            _ => builder.put(&path, attributes, Content::Regular(FileContent::empty())),
        };
        put.ok()?;
    }
    // The hard links of a layer may lead to what is below it, so they are resolved later.
    if below.is_none() {
        builder.settle().ok()?;
    }
    Some(builder)
}

impl Builder {
    /// Numbers the inodes, as writing the tree does.
    fn check(mut self) {
        if let Ok(order) = self.number() {
            assert!(!order.is_empty());
        }
    }
}
