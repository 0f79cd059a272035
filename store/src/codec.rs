//! Encodes and decodes the binary formats: LEB128 numbers and length-prefixed bytes. Each value has exactly
//! one encoding.

use crate::error::{Result, StoreError};
use crate::id::ObjectId;

/// Reads a byte string from front to back. It allocates nothing itself, and every length is checked against
/// what is left, so corrupt input cannot demand more memory than its size.
///
/// A read that needs more bytes than are left fails with [`StoreError::Corrupt`].
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    position: usize,
    kind: &'static str,
}

impl<'a> Decoder<'a> {
    /// A decoder of `bytes`; `kind` names their format in errors ("tree").
    pub fn new(kind: &'static str, bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0, kind }
    }

    /// The number of bytes read.
    pub fn position(&self) -> usize {
        self.position
    }

    /// The number of bytes left.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// A [`StoreError::Corrupt`] that gives the position.
    pub fn error(&self, reason: impl Into<String>) -> StoreError {
        StoreError::Corrupt {
            kind: self.kind,
            id: format!("(at byte {})", self.position),
            reason: reason.into(),
        }
    }

    /// Fails unless all bytes were read.
    pub fn finish(&self) -> Result<()> {
        if self.remaining() == 0 { Ok(()) } else { Err(self.error("there are bytes after its end")) }
    }

    /// The next `length` bytes.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        if length > self.remaining() {
            return Err(self.error(format!("needs {length} bytes, {} are left", self.remaining())));
        }
        let bytes = &self.bytes[self.position..self.position + length];
        self.position += length;
        Ok(bytes)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// A LEB128 number. An encoding that is longer than necessary is an error.
    pub fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(self.error("a number exceeds 64 bits"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift != 0 {
                    return Err(self.error("a number has a longer encoding than necessary"));
                }
                return Ok(value);
            }
        }
        Err(self.error("a number exceeds 64 bits"))
    }

    /// A LEB128 number that fits in 32 bits.
    pub fn varint32(&mut self) -> Result<u32> {
        let value = self.varint()?;
        u32::try_from(value).map_err(|_| self.error(format!("{value} exceeds 32 bits")))
    }

    /// A signed number (zigzag).
    pub fn signed(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A count of items that take at least `minimum` (not 0) bytes each. It is safe to reserve memory for
    /// that many.
    pub fn count(&mut self, minimum: usize) -> Result<usize> {
        let count = self.varint()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.remaining() / minimum => Ok(count),
            _ => Err(self.error(format!("{count} items do not fit in the remaining bytes"))),
        }
    }

    /// Bytes preceded by their length.
    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.count(1)?;
        self.take(length)
    }

    /// An object id.
    pub fn id(&mut self) -> Result<ObjectId> {
        self.array().map(ObjectId::from_bytes)
    }
}

/// Appends a LEB128 number.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed number (zigzag).
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, (value as u64) << 1 ^ (value >> 63) as u64);
}

/// Appends bytes preceded by their length.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends an object id.
pub fn put_id(out: &mut Vec<u8>, id: &ObjectId) {
    out.extend_from_slice(id.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_round_trip(value: u64, signed: i64, bytes: Vec<u8>) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_signed(&mut out, signed);
            put_bytes(&mut out, &bytes);
            let mut decoder = Decoder::new("test", &out);
            prop_assert_eq!(decoder.varint().unwrap(), value);
            prop_assert_eq!(decoder.signed().unwrap(), signed);
            prop_assert_eq!(decoder.bytes().unwrap(), &bytes[..]);
            decoder.finish().unwrap();
        }

        /// Each value has exactly one encoding: what decodes is encoded to the same bytes.
        #[test]
        fn garbage_is_refused_or_canonical(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut decoder = Decoder::new("test", &bytes);
            if let Ok(value) = decoder.varint() {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                prop_assert_eq!(&out[..], &bytes[..decoder.position()]);
            }
        }
    }

    #[test]
    fn extremes() {
        for value in [0, 1, 127, 128, u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(Decoder::new("test", &out).varint().unwrap(), value);
        }
        assert!(Decoder::new("test", &[0x80, 0]).varint().is_err());
        assert!(Decoder::new("test", &[0xff; 11]).varint().is_err());
        assert!(Decoder::new("test", &[0xff, 0xff, 0xff, 0x7f]).bytes().is_err());
    }
}
