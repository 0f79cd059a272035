//! Extended attributes of one inode.

use crate::codec::{Decoder, put_bytes, put_varint};
use crate::error::Result;

/// Names and values, sorted by name. An empty list allocates nothing and takes one word, because most inodes
/// have no attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xattrs(Option<Box<List>>);

/// Never empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct List(Vec<Attribute>);

/// Name and value.
type Attribute = (Box<[u8]>, Box<[u8]>);

impl Xattrs {
    /// No attributes.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list().len()
    }

    /// The value of `name` (with its prefix, as in `user.x`).
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.find(name).ok().map(|i| &*self.list()[i].1)
    }

    /// Sets `name`, replacing any previous value.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        let found = self.find(name);
        let List(list) = &mut **self.0.get_or_insert_default();
        match found {
            Ok(i) => list[i].1 = value.into(),
            Err(i) => list.insert(i, (name.into(), value.into())),
        }
    }

    /// Removes `name`; returns false if it was not there.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        let (Ok(i), Some(List(list))) = (self.find(name), self.0.as_deref_mut()) else { return false };
        list.remove(i);
        if list.is_empty() {
            self.0 = None;
        }
        true
    }

    /// Names and values in the order of names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        self.list().iter().map(|(name, value)| (&**name, &**value))
    }

    fn list(&self) -> &[Attribute] {
        self.0.as_ref().map_or(&[], |list| &list.0)
    }

    /// Whether this is a valid attribute name.
    pub(super) fn is_name(name: &[u8]) -> bool {
        (1..=255).contains(&name.len()) && !name.contains(&0)
    }

    fn find(&self, name: &[u8]) -> std::result::Result<usize, usize> {
        self.list().binary_search_by(|(n, _)| (**n).cmp(name))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.len() as u64);
        for (name, value) in self.list() {
            put_bytes(out, name);
            put_bytes(out, value);
        }
    }

    pub(super) fn decode(decoder: &mut Decoder<'_>) -> Result<Self> {
        // A name takes its length and at least one byte, a value at least its length.
        let count = decoder.count(3)?;
        if count == 0 {
            return Err(decoder.error("an empty list of attributes is stored"));
        }
        // Nothing is reserved: an attribute in memory is larger than the shortest encoded one.
        let mut list: Vec<Attribute> = Vec::new();
        for _ in 0..count {
            let name = decoder.bytes()?;
            let value = decoder.bytes()?;
            if !Self::is_name(name) {
                return Err(decoder.error("an attribute name is empty, too long or has a zero byte"));
            }
            if list.last().is_some_and(|(last, _)| **last >= *name) {
                return Err(decoder.error("attribute names are not sorted"));
            }
            list.push((name.into(), value.into()));
        }
        Ok(Self(Some(Box::new(List(list)))))
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(N, V)> for Xattrs {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(items: I) -> Self {
        let mut xattrs = Self::new();
        for (name, value) in items {
            xattrs.set(name.as_ref(), value.as_ref());
        }
        xattrs
    }
}
