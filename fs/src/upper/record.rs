//! The items that journal and checkpoint are made of: each states a fact about one inode.
//!
//! An item says what *is*, not what was done, so replaying it twice gives the same table.

use karapace_store::codec::{Decoder, put_bytes, put_varint};
use karapace_store::content::FileContent;
use karapace_store::inode::{Body, Ino, InodeRecord, Timestamp};

use crate::attr::NAME_MAX;
use crate::error::{Error, Result};
use crate::upper::blocks::BlockSet;
use crate::upper::boot::Boot;

/// Where the bytes of a file in the upper are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DataState {
    /// Nothing in the upper: the record's body has everything.
    None,
    /// All in the data file of this generation.
    Whole { generation: u32, size: u64 },
    /// Some blocks in the data file, the rest in the record's content, up to `limit` bytes.
    Blocks { generation: u32, size: u64, limit: u64 },
    /// Like `Blocks`, for a file that was never truncated and whose data file may not be on disk yet. In any
    /// other boot, nothing is in the upper.
    FreshBlocks { generation: u32, size: u64, limit: u64, boot: Boot },
}

impl DataState {
    /// Whether the data is blocks over a content in the store.
    pub fn is_blocks(&self) -> bool {
        matches!(self, DataState::Blocks { .. } | DataState::FreshBlocks { .. })
    }

    /// Generation of the data file, if there is one.
    pub fn generation(&self) -> Option<u32> {
        match *self {
            DataState::None => None,
            DataState::Whole { generation, .. }
            | DataState::Blocks { generation, .. }
            | DataState::FreshBlocks { generation, .. } => Some(generation),
        }
    }
}

/// One name of an inode: the directory that holds it, and the name there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub parent: Ino,
    pub name: Box<[u8]>,
}

/// The attributes that most operations change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttrItem {
    pub ino: Ino,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

/// A complete inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PutItem {
    pub record: InodeRecord,
    pub place: Option<Place>,
    pub linked: bool,
    pub data: DataState,
}

/// A directory's state for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameState {
    /// The name refers to this inode.
    Names(Ino),
    /// The lower entry is hidden.
    Hidden,
    /// As in the lower listing.
    AsBelow,
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// The inode is dirty and looks like this.
    Put(Box<PutItem>),
    /// A dirty inode's attributes.
    Attr(AttrItem),
    /// A dirty inode's extended attribute; `None` if it has none of this name.
    Xattr { ino: Ino, name: Box<[u8]>, value: Option<Box<[u8]>> },
    /// A dirty inode's only name; `None` if it has none or several.
    Place { ino: Ino, place: Option<Place>, linked: bool },
    /// A dirty directory's state for a name.
    Name { dir: Ino, name: Box<[u8]>, state: NameState },
    /// The data file holds these blocks, and they are on disk.
    Blocks { ino: Ino, first: u64, count: u64 },
    /// The data file holds these blocks, valid only in this boot. They lie entirely over bytes of the store,
    /// which count if the blocks are lost.
    Fresh { ino: Ino, boot: Boot, first: u64, count: u64 },
    /// The file was truncated: blocks and base bytes beyond `size` no longer count.
    Cut { ino: Ino, size: u64 },
    /// Size and mtime must be read from the data file.
    Touched { ino: Ino },
    /// The inode is gone; `linked`: the link table still has it.
    Gone { ino: Ino, linked: bool },
    /// Numbers below this are taken.
    Next { ino: Ino },
}

mod tag {
    pub const PUT: u8 = 1;
    pub const ATTR: u8 = 2;
    pub const PLACE: u8 = 3;
    pub const NAME: u8 = 4;
    pub const BLOCKS: u8 = 5;
    pub const CUT: u8 = 6;
    pub const TOUCHED: u8 = 7;
    pub const GONE: u8 = 8;
    pub const NEXT: u8 = 9;
    pub const XATTR: u8 = 10;
    pub const FRESH: u8 = 11;
}

fn put_timestamp(out: &mut Vec<u8>, t: Timestamp) {
    out.extend_from_slice(&t.secs.to_le_bytes());
    out.extend_from_slice(&t.nanos.to_le_bytes());
}

fn timestamp(d: &mut Decoder<'_>) -> Result<Timestamp> {
    let secs = i64::from_le_bytes(d.array()?);
    let nanos = d.u32()?;
    if nanos >= 1_000_000_000 {
        return Err(bad("a time with more than 999999999 ns"));
    }
    Ok(Timestamp { secs, nanos })
}

fn bad(what: &str) -> Error {
    Error::Corrupt(format!("upper record: {what}"))
}

fn put_place(out: &mut Vec<u8>, place: Option<&Place>) {
    match place {
        None => put_varint(out, 0),
        Some(p) => {
            put_varint(out, p.parent);
            put_bytes(out, &p.name);
        }
    }
}

fn place(d: &mut Decoder<'_>) -> Result<Option<Place>> {
    match d.varint()? {
        0 => Ok(None),
        parent => Ok(Some(Place { parent, name: name(d)? })),
    }
}

fn name(d: &mut Decoder<'_>) -> Result<Box<[u8]>> {
    let name = d.bytes()?;
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(bad("a name that is empty or too long"));
    }
    Ok(name.into())
}

fn flag(d: &mut Decoder<'_>) -> Result<bool> {
    match d.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(bad("a flag that is neither 0 nor 1")),
    }
}

impl Item {
    /// The inode that the item is about, if any.
    pub fn ino(&self) -> Option<Ino> {
        match self {
            Item::Put(put) => Some(put.record.ino),
            Item::Attr(attr) => Some(attr.ino),
            Item::Name { dir, .. } => Some(*dir),
            Item::Xattr { ino, .. }
            | Item::Place { ino, .. }
            | Item::Blocks { ino, .. }
            | Item::Fresh { ino, .. }
            | Item::Cut { ino, .. }
            | Item::Touched { ino }
            | Item::Gone { ino, .. } => Some(*ino),
            Item::Next { .. } => None,
        }
    }

    /// Appends the encoding of the item.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Item::Put(put) => {
                out.push(tag::PUT);
                put.record.encode(out);
                put_place(out, put.place.as_ref());
                out.push(u8::from(put.linked));
                put_data(out, &put.data);
            }
            Item::Attr(a) => {
                out.push(tag::ATTR);
                for v in [a.ino, a.mode.into(), a.nlink.into(), a.uid.into(), a.gid.into()] {
                    put_varint(out, v);
                }
                for t in [a.atime, a.mtime, a.ctime] {
                    put_timestamp(out, t);
                }
            }
            Item::Xattr { ino, name, value } => {
                out.push(tag::XATTR);
                put_varint(out, *ino);
                put_bytes(out, name);
                out.push(u8::from(value.is_some()));
                if let Some(value) = value {
                    put_bytes(out, value);
                }
            }
            Item::Place { ino, place, linked } => {
                out.push(tag::PLACE);
                put_varint(out, *ino);
                put_place(out, place.as_ref());
                out.push(u8::from(*linked));
            }
            Item::Name { dir, name, state } => {
                out.push(tag::NAME);
                put_varint(out, *dir);
                put_bytes(out, name);
                match state {
                    NameState::Hidden => out.push(0),
                    NameState::AsBelow => out.push(1),
                    NameState::Names(ino) => {
                        out.push(2);
                        put_varint(out, *ino);
                    }
                }
            }
            Item::Blocks { ino, first, count } => numbers(out, tag::BLOCKS, &[*ino, *first, *count]),
            Item::Fresh { ino, boot, first, count } => {
                numbers(out, tag::FRESH, &[*ino, *first, *count]);
                out.extend_from_slice(&boot.0);
            }
            Item::Cut { ino, size } => numbers(out, tag::CUT, &[*ino, *size]),
            Item::Touched { ino } => numbers(out, tag::TOUCHED, &[*ino]),
            Item::Gone { ino, linked } => numbers(out, tag::GONE, &[*ino, u64::from(*linked)]),
            Item::Next { ino } => numbers(out, tag::NEXT, &[*ino]),
        }
    }

    /// Reads one item.
    pub fn decode(d: &mut Decoder<'_>) -> Result<Item> {
        Ok(match d.u8()? {
            tag::PUT => {
                let record = InodeRecord::decode(d)?;
                let place = place(d)?;
                let linked = flag(d)?;
                let data = data(d)?;
                if data != DataState::None && !matches!(record.body, Body::Regular(_)) {
                    return Err(bad("data of something that is not a regular file"));
                }
                Item::Put(Box::new(PutItem { record, place, linked, data }))
            }
            tag::ATTR => Item::Attr(AttrItem {
                ino: d.varint()?,
                mode: d.varint32()?,
                nlink: d.varint32()?,
                uid: d.varint32()?,
                gid: d.varint32()?,
                atime: timestamp(d)?,
                mtime: timestamp(d)?,
                ctime: timestamp(d)?,
            }),
            tag::XATTR => {
                let (ino, name) = (d.varint()?, name(d)?);
                let value = if flag(d)? { Some(d.bytes()?.into()) } else { None };
                Item::Xattr { ino, name, value }
            }
            tag::PLACE => Item::Place { ino: d.varint()?, place: place(d)?, linked: flag(d)? },
            tag::NAME => {
                let dir = d.varint()?;
                let name = name(d)?;
                let state = match d.u8()? {
                    0 => NameState::Hidden,
                    1 => NameState::AsBelow,
                    2 => NameState::Names(d.varint()?),
                    _ => return Err(bad("an unknown state of a name")),
                };
                Item::Name { dir, name, state }
            }
            tag::BLOCKS => Item::Blocks { ino: d.varint()?, first: d.varint()?, count: d.varint()? },
            tag::FRESH => {
                let (ino, first, count) = (d.varint()?, d.varint()?, d.varint()?);
                Item::Fresh { ino, boot: Boot(d.array()?), first, count }
            }
            tag::CUT => Item::Cut { ino: d.varint()?, size: d.varint()? },
            tag::TOUCHED => Item::Touched { ino: d.varint()? },
            tag::GONE => Item::Gone { ino: d.varint()?, linked: flag(d)? },
            tag::NEXT => Item::Next { ino: d.varint()? },
            _ => return Err(bad("an unknown kind (written by a newer version?)")),
        })
    }
}

fn numbers(out: &mut Vec<u8>, tag: u8, values: &[u64]) {
    out.push(tag);
    for v in values {
        put_varint(out, *v);
    }
}

fn put_data(out: &mut Vec<u8>, data: &DataState) {
    match data {
        DataState::None => out.push(0),
        DataState::Whole { generation, size } => numbers(out, 1, &[u64::from(*generation), *size]),
        DataState::Blocks { generation, size, limit } => {
            numbers(out, 2, &[u64::from(*generation), *size, *limit]);
        }
        DataState::FreshBlocks { generation, size, limit, boot } => {
            numbers(out, 3, &[u64::from(*generation), *size, *limit]);
            out.extend_from_slice(&boot.0);
        }
    }
}

fn data(d: &mut Decoder<'_>) -> Result<DataState> {
    Ok(match d.u8()? {
        0 => DataState::None,
        1 => DataState::Whole { generation: d.varint32()?, size: d.varint()? },
        2 => DataState::Blocks { generation: d.varint32()?, size: d.varint()?, limit: d.varint()? },
        3 => {
            let (generation, size, limit) = (d.varint32()?, d.varint()?, d.varint()?);
            DataState::FreshBlocks { generation, size, limit, boot: Boot(d.array()?) }
        }
        _ => return Err(bad("an unknown kind of data (written by a newer version?)")),
    })
}

/// The empty content in a record whose bytes are all in the upper.
pub(crate) fn no_content() -> Body {
    Body::Regular(FileContent::empty())
}

/// Items that say that the data file of `ino` holds these blocks and they are on disk.
pub(crate) fn safe_blocks(ino: Ino, blocks: &BlockSet) -> Vec<Item> {
    blocks.runs().into_iter().map(|(first, count)| Item::Blocks { ino, first, count }).collect()
}

/// Encodes items one after another.
pub(crate) fn encode_all<'a>(items: impl IntoIterator<Item = &'a Item>, out: &mut Vec<u8>) {
    for item in items {
        item.encode(out);
    }
}

/// Decodes items until the bytes end.
pub(crate) fn decode_all(bytes: &[u8]) -> Result<Vec<Item>> {
    let mut d = Decoder::new("upper record", bytes);
    let mut items = Vec::new();
    while d.remaining() > 0 {
        items.push(Item::decode(&mut d)?);
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_blocks_read_as_written() {
        let boot = Boot([7; 16]);
        let item = Item::Fresh { ino: 300, boot, first: 1 << 20, count: 3 };
        let mut bytes = Vec::new();
        item.encode(&mut bytes);
        assert_eq!(decode_all(&bytes).unwrap(), [item]);
        assert!(decode_all(&bytes[..bytes.len() - 1]).is_err());
        let state = DataState::FreshBlocks { generation: 3, size: 1 << 33, limit: 70_000, boot };
        let mut bytes = Vec::new();
        put_data(&mut bytes, &state);
        let read = |bytes: &[u8]| data(&mut Decoder::new("upper record", bytes));
        assert_eq!(read(&bytes).unwrap(), state);
        assert!(read(&bytes[..bytes.len() - 1]).is_err());
    }

    /// Found by scripts/fuzz: any flag but 0 was read as "linked", and written back as 1.
    #[test]
    fn gone_takes_no_other_flag_than_0_and_1() {
        for linked in [false, true] {
            let item = Item::Gone { ino: 10, linked };
            let mut bytes = Vec::new();
            item.encode(&mut bytes);
            assert_eq!(decode_all(&bytes).unwrap(), [item]);
        }
        assert!(decode_all(&[tag::GONE, 10, b'z']).is_err());
    }
}
