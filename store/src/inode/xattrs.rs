//! Extended attributes of one inode.

use crate::codec::{Decoder, put_bytes, put_varint};
use crate::error::Result;

/// Names and values, sorted by name. The empty value allocates nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xattrs(Vec<Attribute>);

/// Name and value.
type Attribute = (Box<[u8]>, Box<[u8]>);

impl Xattrs {
    /// No attributes.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The value of `name` (with its prefix, as in `user.x`).
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.find(name).ok().map(|i| &*self.0[i].1)
    }

    /// Sets `name`, replacing a value that it had.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        match self.find(name) {
            Ok(i) => self.0[i].1 = value.into(),
            Err(i) => self.0.insert(i, (name.into(), value.into())),
        }
    }

    /// Removes `name`; false if it was not there.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        self.find(name).map(|i| self.0.remove(i)).is_ok()
    }

    /// Names and values in the order of names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Whether this can be an attribute's name.
    pub(super) fn is_name(name: &[u8]) -> bool {
        (1..=255).contains(&name.len()) && !name.contains(&0)
    }

    fn find(&self, name: &[u8]) -> std::result::Result<usize, usize> {
        self.0.binary_search_by(|(n, _)| (**n).cmp(name))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.0.len() as u64);
        for (name, value) in &self.0 {
            put_bytes(out, name);
            put_bytes(out, value);
        }
    }

    pub(super) fn decode(decoder: &mut Decoder<'_>) -> Result<Self> {
        // A name takes its length and a byte, a value its length.
        let count = decoder.count(3)?;
        if count == 0 {
            return Err(decoder.error("an empty list of attributes is written out"));
        }
        // No reservation: an attribute in memory is larger than the shortest in bytes.
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
        Ok(Self(list))
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
