//! The 512-byte tar header: decodes its fields.

use super::BLOCK;

/// Type flags: byte 156 of a header.
pub(super) mod flag {
    pub const REGULAR: u8 = b'0';
    pub const HARD_LINK: u8 = b'1';
    pub const SYMLINK: u8 = b'2';
    pub const CHAR: u8 = b'3';
    pub const BLOCK: u8 = b'4';
    pub const DIRECTORY: u8 = b'5';
    pub const FIFO: u8 = b'6';
    pub const CONTIGUOUS: u8 = b'7';
    pub const PAX: u8 = b'x';
    pub const PAX_GLOBAL: u8 = b'g';
    pub const GNU_LONG_NAME: u8 = b'L';
    pub const GNU_LONG_LINK: u8 = b'K';
    pub const GNU_SPARSE: u8 = b'S';
    pub const GNU_DUMPDIR: u8 = b'D';
    pub const GNU_VOLUME: u8 = b'V';
    pub const GNU_MULTI_VOLUME: u8 = b'M';
    pub const SOLARIS_ACL: u8 = b'A';
}

/// One header block, as it was read.
pub(super) struct Header(pub [u8; BLOCK]);

impl Header {
    fn field(&self, at: usize, len: usize) -> &[u8] {
        &self.0[at..at + len]
    }

    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|&b| b == 0)
    }

    /// Whether the stored checksum is the sum of the header's bytes (the signed sums of old writers are
    /// accepted too).
    pub fn checksum_holds(&self) -> bool {
        let Some(stored) = number(self.field(148, 8)) else { return false };
        let mut unsigned: i64 = 8 * i64::from(b' ');
        let mut signed = unsigned;
        for (i, &b) in self.0.iter().enumerate() {
            if !(148..156).contains(&i) {
                unsigned += i64::from(b);
                signed += i64::from(b as i8);
            }
        }
        stored == unsigned || stored == signed
    }

    pub fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub fn name(&self) -> Vec<u8> {
        let name = until_nul(self.field(0, 100));
        // GNU's "ustar  \0" headers have times and the sparse map where POSIX has the prefix; star's prefix
        // is shorter.
        let prefix = if self.field(257, 6) != b"ustar\0" {
            &[]
        } else if self.field(508, 4) == b"tar\0" {
            until_nul(self.field(345, 131))
        } else {
            until_nul(self.field(345, 155))
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub fn link_name(&self) -> Vec<u8> {
        until_nul(self.field(157, 100)).to_vec()
    }

    pub fn mode(&self) -> Option<i64> {
        number(self.field(100, 8))
    }

    pub fn uid(&self) -> Option<i64> {
        number(self.field(108, 8))
    }

    pub fn gid(&self) -> Option<i64> {
        number(self.field(116, 8))
    }

    pub fn size(&self) -> Option<i64> {
        number(self.field(124, 12))
    }

    pub fn mtime(&self) -> Option<i64> {
        number(self.field(136, 12))
    }

    pub fn device(&self) -> Option<(i64, i64)> {
        Some((number(self.field(329, 8))?, number(self.field(337, 8))?))
    }

    /// The part of an old GNU sparse header that holds the map: four (offset, length) pairs.
    pub fn gnu_sparse_pairs(&self) -> &[u8] {
        self.field(386, 96)
    }

    pub fn gnu_sparse_continues(&self) -> bool {
        self.0[482] != 0
    }

    pub fn gnu_real_size(&self) -> Option<i64> {
        number(self.field(483, 12))
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

/// A numeric field: octal digits surrounded by blanks, or big-endian two's complement if the first bit is
/// set. An empty field is 0. `None` for anything else, and on overflow.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let start = if first & 0x40 != 0 { -1i64 } else { 0 };
        let top = (start << 6) | i64::from(first & 0x3f);
        return rest.iter().try_fold(top, |value, &b| Some(value.checked_mul(256)? | i64::from(b)));
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|&b| b == 0 || b == b' ').unwrap_or(digits.len());
    digits[..end].iter().try_fold(0i64, |value, &b| match b {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(b - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_octal_and_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"  644 \0\0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"77777777777"), Some(0o77777777777));
        assert_eq!(number(b"12x4"), None);
        assert_eq!(number(&[0x80, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xfe]), Some(-2));
        assert_eq!(number(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
