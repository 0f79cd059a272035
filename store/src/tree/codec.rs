//! The encoding of one listing.
//!
//! A leaf is a header (magic, form, keys, two zero bytes, count), a table of offsets (4 bytes each, counted
//! from the end of the table), and the entries: length of the name, the name, a tag, and either the inode
//! record or, for a link, its kind and number. Numbers are little-endian. An index has the same header, then
//! its chunks: first name, object, number of entries, whether any has links.

use crate::codec::{Decoder, put_id, put_varint};
use crate::error::{Result, StoreError};
use crate::id::ObjectId;
use crate::inode::{FileKind, Ino, InodeRecord, RecordHead, decode_ino};

use super::Target;

const MAGIC: &[u8; 4] = b"KTR3";
const LEAF: u8 = 0;
const INDEX: u8 = 1;
/// Length of the header, in bytes; the table of offsets follows.
const HEADER: usize = 12;
/// Size of the shortest entry in bytes: its offset, then name length, one byte of name, tag, kind, number.
const ENTRY_MIN: usize = 4 + 5;
const TAG_INODE: u8 = 0;
const TAG_LINK: u8 = 1;

/// The kind of keys in a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Names of files: a directory.
    Names,
    /// Inode numbers as 8 bytes, big-endian: a link table.
    Inos,
}

impl Keys {
    /// Why `key` cannot be a key of this kind; `None` if it can.
    pub(crate) fn reject(self, key: &[u8]) -> Option<&'static str> {
        match self {
            Keys::Inos if key.len() != 8 => Some("a key of a link table must have 8 bytes"),
            Keys::Inos => None,
            Keys::Names if key.is_empty() || key.len() > 255 => Some("a file name must have 1 to 255 bytes"),
            Keys::Names if key == b"." || key == b".." => Some("a file cannot be named `.` or `..`"),
            Keys::Names if key.iter().any(|byte| matches!(byte, 0 | b'/')) => {
                Some("a file name cannot have a slash or a zero byte")
            }
            Keys::Names => None,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Keys::Names => 0,
            Keys::Inos => 1,
        }
    }
}

/// Whether the header says that this is an index.
pub(super) fn is_index(bytes: &[u8]) -> bool {
    bytes.get(4) == Some(&INDEX)
}

/// Reads the header; returns the keys and the count.
fn decode_header(decoder: &mut Decoder<'_>, form: u8) -> Result<(Keys, u32)> {
    if decoder.array::<4>()? != *MAGIC {
        return Err(decoder.error("it does not start with the header of a tree of format 3"));
    }
    let [found, keys, 0, 0] = decoder.array::<4>()? else {
        return Err(decoder.error("its header has unknown flags"));
    };
    let keys = match keys {
        0 => Keys::Names,
        1 => Keys::Inos,
        _ => return Err(decoder.error("its keys are of an unknown kind")),
    };
    if found != form {
        return Err(decoder.error("its form is unknown"));
    }
    Ok((keys, decoder.u32()?))
}

fn put_header(out: &mut Vec<u8>, form: u8, keys: Keys, count: u32) {
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[form, keys.byte(), 0, 0]);
    out.extend_from_slice(&count.to_le_bytes());
}

/// A leaf: entries sorted by key, which are looked up in its bytes.
#[derive(Clone, Debug)]
pub struct Tree {
    bytes: Vec<u8>,
    count: usize,
    keys: Keys,
}

impl Tree {
    /// Checks the bytes once: bounds, order, keys, and the head of each record. The rest of a record is
    /// checked by [`EntryRef::to_target`].
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a check fails.
    pub fn parse(bytes: Vec<u8>) -> Result<Tree> {
        let mut decoder = Decoder::new("tree", &bytes);
        let (keys, count) = decode_header(&mut decoder, LEAF)?;
        let count = count as usize;
        if count == 0 || count > decoder.remaining() / ENTRY_MIN {
            return Err(decoder.error(format!("it cannot have {count} entries")));
        }
        let tree = Tree { count, keys, bytes };
        tree.check()?;
        Ok(tree)
    }

    fn check(&self) -> Result<()> {
        let fault = |i: usize, reason: &str| StoreError::corrupt("tree", format!("(entry {i})"), reason);
        let area = self.bytes.len() - HEADER - 4 * self.count;
        let mut last: &[u8] = &[];
        for i in 0..self.count {
            let (start, end) = (self.offset(i), self.offset(i + 1));
            if (i == 0 && start != 0) || start >= end || end > area {
                return Err(fault(i, "its offsets are wrong"));
            }
            let mut decoder = Decoder::new("tree", self.area(i));
            let length = decoder.u8()?;
            let name = decoder.take(length.into())?;
            if let Some(reason) = self.keys.reject(name) {
                return Err(fault(i, reason));
            }
            if i > 0 && last >= name {
                return Err(fault(i, "the entries are not sorted"));
            }
            last = name;
            match decoder.u8()? {
                TAG_INODE => drop(RecordHead::decode(&mut decoder)?),
                TAG_LINK if self.keys == Keys::Names => {
                    decode_link(&mut decoder)?;
                    decoder.finish()?;
                }
                _ => return Err(fault(i, "its tag is unknown")),
            }
        }
        Ok(())
    }

    /// The number of entries; never 0.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Always false: an empty directory has no tree.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The kind of its keys.
    pub fn keys(&self) -> Keys {
        self.keys
    }

    /// The entry `name`.
    pub fn get(&self, name: &[u8]) -> Option<EntryRef<'_>> {
        let i = self.lower_bound(name);
        (i < self.count).then(|| self.entry(i)).filter(|entry| entry.name == name)
    }

    /// The position of the first entry whose name is not less than `name`.
    pub(crate) fn lower_bound(&self, name: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if self.entry(middle).name < name {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The entries in the order of names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = EntryRef<'_>> {
        (0..self.count).map(|i| self.entry(i))
    }

    /// Entry `i`, which must be below [`Tree::len`].
    pub(crate) fn entry(&self, i: usize) -> EntryRef<'_> {
        let area = self.area(i);
        let (name, rest) = area[1..].split_at(area[0].into());
        EntryRef { name, target: rest }
    }

    pub(crate) fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    fn area(&self, i: usize) -> &[u8] {
        let base = HEADER + 4 * self.count;
        &self.bytes[base + self.offset(i)..base + self.offset(i + 1)]
    }

    /// Where entry `i` begins, counted from the end of the table; for `i` = count, the end of the last entry.
    fn offset(&self, i: usize) -> usize {
        let at = HEADER + 4 * i;
        if i == self.count {
            return self.bytes.len() - HEADER - 4 * self.count;
        }
        match self.bytes[at..at + 4].try_into() {
            Ok(array) => u32::from_le_bytes(array) as usize,
            Err(_) => 0, // four bytes are an array of four
        }
    }
}

fn decode_link(decoder: &mut Decoder<'_>) -> Result<(Ino, FileKind)> {
    let kind = match FileKind::from_mode(u32::from(decoder.u8()?) << 12) {
        Some(FileKind::Directory) | None => {
            return Err(decoder.error("an entry of this kind cannot be linked"));
        }
        Some(kind) => kind,
    };
    Ok((decode_ino(decoder)?, kind))
}

/// One entry, borrowed from the bytes of its tree.
#[derive(Clone, Copy, Debug)]
pub struct EntryRef<'a> {
    name: &'a [u8],
    /// The tag and what follows.
    target: &'a [u8],
}

/// The head of an entry: what can be read without decoding all of it.
enum Head {
    Inode(RecordHead),
    Link(Ino, FileKind),
}

impl<'a> EntryRef<'a> {
    /// The name.
    pub fn name(&self) -> &'a [u8] {
        self.name
    }

    /// The inode's number.
    pub fn ino(&self) -> Ino {
        match self.head() {
            Some(Head::Inode(head)) => head.ino,
            Some(Head::Link(ino, _)) => ino,
            None => 0,
        }
    }

    /// The inode's kind.
    pub fn kind(&self) -> FileKind {
        match self.head() {
            Some(Head::Inode(head)) => head.kind,
            Some(Head::Link(_, kind)) => kind,
            None => FileKind::Regular,
        }
    }

    /// Whether this is one of several names of an inode, whose record is in the link table.
    pub fn is_link(&self) -> bool {
        self.target.first() == Some(&TAG_LINK)
    }

    /// Whether this is a link, or a directory with one at any depth.
    pub fn has_links(&self) -> bool {
        match self.head() {
            Some(Head::Inode(head)) => head.links(),
            Some(Head::Link(..)) => true,
            None => false,
        }
    }

    /// What the name refers to, decoded.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the record cannot be decoded.
    pub fn to_target(&self) -> Result<Target> {
        let mut decoder = Decoder::new("tree", self.target);
        let target = match decoder.u8()? {
            TAG_LINK => decode_link(&mut decoder).map(|(ino, kind)| Target::Link { ino, kind })?,
            _ => Target::Inode(InodeRecord::decode(&mut decoder)?),
        };
        decoder.finish()?;
        Ok(target)
    }

    /// The encoded target, to compare or copy.
    pub(crate) fn raw(&self) -> &'a [u8] {
        self.target
    }

    /// Always `Some` for an entry of a parsed tree, because parsing decoded its head.
    fn head(&self) -> Option<Head> {
        let mut decoder = Decoder::new("tree", self.target);
        match decoder.u8().ok()? {
            TAG_LINK => decode_link(&mut decoder).ok().map(|(ino, kind)| Head::Link(ino, kind)),
            _ => RecordHead::decode(&mut decoder).ok().map(Head::Inode),
        }
    }
}

/// Appends the encoded target.
pub(super) fn encode_target(out: &mut Vec<u8>, target: &Target) {
    match target {
        Target::Inode(record) => {
            out.push(TAG_INODE);
            record.encode(out);
        }
        Target::Link { ino, kind } => {
            out.push(TAG_LINK);
            out.push((kind.to_mode() >> 12) as u8);
            put_varint(out, *ino);
        }
    }
}

/// Builds the bytes of a leaf from sorted entries.
#[derive(Debug)]
pub(super) struct LeafBuilder {
    offsets: Vec<u8>,
    entries: Vec<u8>,
    count: u32,
    links: bool,
    first: Box<[u8]>,
}

impl LeafBuilder {
    /// Starts a leaf whose first entry, pushed next, is named `first`.
    pub fn new(first: &[u8]) -> Self {
        Self { offsets: Vec::new(), entries: Vec::new(), count: 0, links: false, first: first.into() }
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn links(&self) -> bool {
        self.links
    }

    pub fn first(&self) -> &[u8] {
        &self.first
    }

    /// Adds an entry: a key that was already checked, and its encoded target.
    pub fn push(&mut self, entry: EntryRef<'_>) -> Result<()> {
        if self.entries.len() as u64 > super::TREE_MAX {
            return Err(StoreError::invalid(
                "a directory's listing is too large: its files have too many or too large attributes",
            ));
        }
        self.offsets.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        self.entries.push(entry.name.len() as u8);
        self.entries.extend_from_slice(entry.name);
        self.entries.extend_from_slice(entry.target);
        self.count += 1;
        self.links |= entry.has_links();
        Ok(())
    }

    /// The bytes of the leaf.
    pub fn encode(&self, keys: Keys) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.offsets.len() + self.entries.len());
        put_header(&mut out, LEAF, keys, self.count);
        out.extend_from_slice(&self.offsets);
        out.extend_from_slice(&self.entries);
        out
    }
}

/// An entry made of a key and an encoded target.
pub(super) fn raw_entry<'a>(name: &'a [u8], target: &'a [u8]) -> EntryRef<'a> {
    EntryRef { name, target }
}

/// One chunk of a split directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Its first name.
    pub first: Box<[u8]>,
    /// The leaf.
    pub id: ObjectId,
    /// Its entries.
    pub count: u32,
    /// Whether one of the entries is a link or leads to one.
    pub links: bool,
}

/// A split directory: its chunks in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Index {
    keys: Keys,
    chunks: Vec<Chunk>,
}

impl Index {
    pub fn new(keys: Keys, chunks: Vec<Chunk>) -> Self {
        Self { keys, chunks }
    }

    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut decoder = Decoder::new("tree", bytes);
        let (keys, count) = decode_header(&mut decoder, INDEX)?;
        let count = count as usize;
        // First name with its length, object, number of entries, links.
        if count == 0 || count > decoder.remaining() / (2 + ObjectId::LEN + 4 + 1) {
            return Err(decoder.error(format!("it cannot have {count} chunks")));
        }
        let mut chunks: Vec<Chunk> = Vec::with_capacity(count);
        for _ in 0..count {
            let length = decoder.u8()?;
            let first = decoder.take(length.into())?;
            if let Some(reason) = keys.reject(first) {
                return Err(decoder.error(reason));
            }
            if chunks.last().is_some_and(|last| *last.first >= *first) {
                return Err(decoder.error("its chunks are not sorted"));
            }
            let id = decoder.id()?;
            let count = decoder.u32()?;
            let links = match decoder.u8()? {
                0 => false,
                1 => true,
                _ => return Err(decoder.error("a chunk's flag is unknown")),
            };
            if count == 0 {
                return Err(decoder.error("a chunk is empty"));
            }
            chunks.push(Chunk { first: first.into(), id, count, links });
        }
        decoder.finish()?;
        Ok(Self { keys, chunks })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_header(&mut out, INDEX, self.keys, self.chunks.len() as u32);
        for chunk in &self.chunks {
            out.push(chunk.first.len() as u8);
            out.extend_from_slice(&chunk.first);
            put_id(&mut out, &chunk.id);
            out.extend_from_slice(&chunk.count.to_le_bytes());
            out.push(chunk.links.into());
        }
        out
    }

    pub fn keys(&self) -> Keys {
        self.keys
    }

    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The number of entries in all chunks.
    pub fn len(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.count)).sum()
    }

    /// The number of the chunk in which `name` would be; `None` if it comes before the first.
    pub fn chunk_of(&self, name: &[u8]) -> Option<usize> {
        self.chunks.partition_point(|chunk| *chunk.first <= *name).checked_sub(1)
    }

    /// Checks that `leaf`, read as chunk `i`, matches the index; otherwise lookups and listings would differ.
    pub fn check(&self, i: usize, leaf: &Tree) -> Result<()> {
        let chunk = &self.chunks[i];
        let last = leaf.entry(leaf.len() - 1).name;
        if leaf.len() != chunk.count as usize
            || *leaf.entry(0).name != *chunk.first
            || self.chunks.get(i + 1).is_some_and(|next| *last >= *next.first)
        {
            return Err(StoreError::corrupt(
                "tree",
                chunk.id,
                "it is not the chunk that its index describes",
            ));
        }
        Ok(())
    }

    pub fn cost(&self) -> usize {
        self.chunks.iter().map(|chunk| size_of::<Chunk>() + chunk.first.len() + 16).sum()
    }
}
/// Decodes an index as [`super::Trees`] does and encodes it again, for tests that feed arbitrary bytes to
/// decoders.
#[doc(hidden)]
pub fn check_index(bytes: &[u8]) -> Option<Vec<u8>> {
    Index::parse(bytes).ok().map(|index| index.encode())
}
