//! The maps of sparse members: which ranges of the file the archive holds.

use super::header::number;
use super::pax::{Pax, decimal};

/// Maximum number of ranges in one member (16 MiB of memory).
pub(super) const MAX_RANGES: usize = 1 << 20;

/// (offset, length) of the stored ranges, sorted, none empty.
pub(super) type Ranges = Vec<(u64, u64)>;

/// Checks that the ranges ascend, do not overlap, lie within `size` and add up to `stored` bytes. Drops empty
/// ranges.
pub(super) fn check(mut ranges: Ranges, size: u64, stored: u64) -> Result<Ranges, &'static str> {
    let (mut end, mut total) = (0u64, 0u64);
    for &(offset, length) in &ranges {
        if offset < end {
            return Err("its sparse map is out of order");
        }
        end = offset
            .checked_add(length)
            .filter(|&e| e <= size)
            .ok_or("its sparse map reaches beyond the file")?;
        total += length;
    }
    if total != stored {
        return Err("its sparse map and its stored bytes differ in size");
    }
    ranges.retain(|r| r.1 > 0);
    Ok(ranges)
}

/// Appends the pairs of an old GNU header or of a continuation block; a pair of NULs ends them.
pub(super) fn old_gnu(pairs: &[u8], ranges: &mut Ranges) -> Result<(), &'static str> {
    for pair in pairs.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let field =
            |f: &[u8]| number(f).and_then(|n| u64::try_from(n).ok()).ok_or("its sparse map is broken");
        push(ranges, (field(&pair[..12])?, field(&pair[12..])?))?;
    }
    Ok(())
}

/// The map of PAX formats 0.0 (repeated records) and 0.1 (`GNU.sparse.map`); `None` if there is neither.
pub(super) fn from_records(pax: &Pax) -> Result<Option<Ranges>, &'static str> {
    let mut ranges = Vec::new();
    if let Some(map) = pax.get("GNU.sparse.map") {
        let mut numbers = map.split(|&b| b == b',').map(decimal);
        while let Some(offset) = numbers.next() {
            let pair = offset.zip(numbers.next().flatten()).ok_or("its GNU.sparse.map is broken")?;
            push(&mut ranges, pair)?;
        }
    } else if !pax.sparse_pairs.is_empty() {
        for pair in pax.sparse_pairs.chunks(2) {
            match pair {
                [(true, offset), (false, length)] => push(&mut ranges, (*offset, *length))?,
                _ => return Err("its GNU.sparse.offset and numbytes do not alternate"),
            }
        }
    } else {
        return Ok(None);
    }
    Ok(Some(ranges))
}

/// Reads the map of PAX format 1.0, which precedes the data as decimal lines: a count, then offset and length
/// of each range. `byte` returns the next byte of the body.
pub(super) fn from_body<E: From<&'static str>>(byte: &mut dyn FnMut() -> Result<u8, E>) -> Result<Ranges, E> {
    let mut line = || -> Result<u64, E> {
        let mut digits = Vec::new();
        loop {
            match byte()? {
                b'\n' => return decimal(&digits).ok_or(E::from("its sparse map is broken")),
                _ if digits.len() > 20 => return Err(E::from("its sparse map is broken")),
                b => digits.push(b),
            }
        }
    };
    let mut ranges = Vec::new();
    for _ in 0..line()? {
        let pair = (line()?, line()?);
        push(&mut ranges, pair)?;
    }
    Ok(ranges)
}

fn push(ranges: &mut Ranges, pair: (u64, u64)) -> Result<(), &'static str> {
    if ranges.len() >= MAX_RANGES {
        return Err("its sparse map has too many ranges");
    }
    ranges.push(pair);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_checked() {
        assert_eq!(check(vec![(0, 5), (10, 5), (20, 0)], 20, 10), Ok(vec![(0, 5), (10, 5)]));
        assert!(check(vec![(10, 5), (0, 5)], 20, 10).is_err());
        assert!(check(vec![(0, 5), (4, 5)], 20, 10).is_err());
        assert!(check(vec![(16, 5)], 20, 5).is_err());
        assert!(check(vec![(u64::MAX, 5)], 20, 5).is_err());
        assert!(check(vec![(0, 5)], 20, 6).is_err());
    }
}
