//! What is done with any bytes, decoder by decoder: it must not panic, and what is accepted must be written
//! again as it was, where there is one encoding for one value.

use std::path::Path;

use karapace::description::locked::LockFile;
use karapace::description::manifest::Manifest;
use karapace_store::codec::Decoder;
use karapace_store::content::BlockList;
use karapace_store::inode::InodeRecord;
use karapace_store::layer::LayerRecord;
use karapace_store::metadata::Metadata;
use karapace_store::root::Root;
use karapace_store::tree::{Tree, check_index};

/// What a decoder does with bytes.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const ALL: [(&str, Target); 13] = [
    ("tree", tree),
    ("root", root),
    ("inode", inode),
    ("block_list", block_list),
    ("layer_record", layer_record),
    ("metadata", metadata),
    ("checkpoint", karapace_fs::fuzzing::checkpoint),
    ("journal", karapace_fs::fuzzing::journal),
    ("tar", karapace_store::import::fuzzing::archive),
    ("image", karapace_store::import::fuzzing::image),
    ("manifest", manifest),
    ("lockfile", lockfile),
    ("commands", commands),
];

/// A listing: a leaf or an index.
pub fn tree(bytes: &[u8]) {
    if let Ok(tree) = Tree::parse(bytes.to_vec()) {
        for entry in tree.iter() {
            // A record is decoded when it is asked for, and may be broken still.
            if entry.to_target().is_ok() {
                assert!(entry.ino() != 0);
            }
            assert!(tree.get(entry.name()).is_some());
        }
    }
    if let Some(again) = check_index(bytes) {
        assert_eq!(again, bytes);
    }
}

/// What a layer's tree begins with.
pub fn root(bytes: &[u8]) {
    if let Ok(root) = Root::decode(bytes) {
        assert_eq!(root.encode(), bytes);
    }
}

/// One inode.
pub fn inode(bytes: &[u8]) {
    let mut decoder = Decoder::new("inode", bytes);
    if let Ok(inode) = InodeRecord::decode(&mut decoder) {
        let mut again = Vec::new();
        inode.encode(&mut again);
        assert_eq!(again, &bytes[..decoder.position()]);
    }
}

/// The hashes of a large file's blocks.
pub fn block_list(bytes: &[u8]) {
    if let Ok(list) = BlockList::decode(bytes) {
        assert_eq!(list.encode(), bytes);
    }
}

/// A layer's record.
pub fn layer_record(bytes: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<LayerRecord>(bytes) {
        let bytes = record.to_bytes().unwrap();
        assert_eq!(serde_json::from_slice::<LayerRecord>(&bytes).unwrap(), record);
    }
}

/// An environment's record.
pub fn metadata(bytes: &[u8]) {
    if let Ok(metadata) = serde_json::from_slice::<Metadata>(bytes) {
        let bytes = serde_json::to_vec(&metadata).unwrap();
        assert_eq!(serde_json::from_slice::<Metadata>(&bytes).unwrap(), metadata);
    }
}

/// karapace.toml.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(manifest) = Manifest::parse(text, Path::new("(input)")) {
        let again = Manifest::parse(&manifest.to_toml(), Path::new("(again)"));
        assert_eq!(again.unwrap(), manifest);
    }
}

/// karapace.lock.
pub fn lockfile(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(lock) = LockFile::parse(text, Path::new("(input)")) {
        let again = LockFile::parse(&lock.to_toml(), Path::new("(again)"));
        assert_eq!(again.unwrap(), lock);
    }
}

/// What is written to a mount's ctl.
pub fn commands(bytes: &[u8]) {
    if let Ok(commands) = karapace_fs::control::command::parse_commands(bytes) {
        assert!(commands.len() <= bytes.len());
    }
}
