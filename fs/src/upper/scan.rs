//! Reading the records of a journal, and telling a torn end from damage.
//!
//! A power loss may take any part of what was written since the last sync of the journal, so behind a record
//! that is torn there may be sound ones: all of them had not returned as durable, and the records before the
//! torn one are a prefix of the operations. Every record says how many of those before it were durable when
//! it was written. So a sound record that calls the torn one durable proves that the disk, or somebody,
//! damaged it: what follows was promised, and must not be dropped in silence.

use crate::error::Result;
use crate::upper::record::{Item, decode_all};

/// No operation writes more than its inode's xattrs and a content's extents.
pub(super) const MAX_RECORD: u32 = 256 << 20;
/// Bytes of records that are hashed, at most, for each byte of journal in the search behind a torn record:
/// input made up so that every place in it looks like a long record ends the search, not the program.
const EFFORT: u64 = 16;

/// How the records of a journal are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `KAJ1`: without the number of durable records.
    Plain,
    /// `KAJ2`.
    Stamped,
}

impl Form {
    /// Bytes before a record's payload.
    pub const fn header(self) -> usize {
        match self {
            Form::Plain => 16,
            Form::Stamped => 24,
        }
    }
}

/// What lies behind the sound records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Nothing.
    Clean,
    /// Records that were not durable, or a part of one.
    Torn,
    /// A record that was durable and is not what it was.
    Damaged {
        /// Sound records behind it.
        behind: u64,
    },
}

/// What the bytes of a journal, header excluded, hold.
#[derive(Debug)]
pub(crate) struct Scan {
    /// Items of the sound records from the first on.
    pub items: Vec<Item>,
    /// Their length in bytes.
    pub sound: u64,
    /// The next record's number.
    pub next_sequence: u64,
    /// How many records are known to be durable.
    pub durable: u64,
    pub tail: Tail,
}

/// One record found.
struct Record<'a> {
    durable: u64,
    payload: &'a [u8],
    length: usize,
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// The record with this number at `at`, if a sound one is there.
fn record(bytes: &[u8], at: usize, form: Form, sequence: u64) -> Option<Record<'_>> {
    let head = bytes.get(at..at + form.header())?;
    let word = |at: usize| head[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
    let (length, crc) = (word(0), word(4));
    if length > MAX_RECORD || u64_at(head, 8) != sequence {
        return None;
    }
    let length = form.header() + length as usize;
    let covered = bytes.get(at + 8..at + length)?;
    if crc32fast::hash(covered) != crc {
        return None;
    }
    let durable = if form == Form::Stamped { u64_at(head, 16) } else { 0 };
    Some(Record { durable, payload: &covered[form.header() - 8..], length })
}

/// Reads records up to the first that is not sound, and looks at what follows.
///
/// # Errors
/// When a record whose checksum is right holds what cannot be an item: a newer karapace wrote it.
pub(crate) fn scan(bytes: &[u8], form: Form) -> Result<Scan> {
    let (mut at, mut items, mut next_sequence, mut durable) = (0, Vec::new(), 1, 0);
    while let Some(found) = record(bytes, at, form, next_sequence) {
        items.extend(decode_all(found.payload)?);
        durable = durable.max(found.durable);
        at += found.length;
        next_sequence += 1;
    }
    let tail = match bytes.len() - at {
        0 => Tail::Clean,
        _ => look_behind(bytes, at, form, next_sequence),
    };
    Ok(Scan { items, sound: at as u64, next_sequence, durable, tail })
}

/// What lies behind the place where record `torn` should be and is not.
fn look_behind(bytes: &[u8], torn_at: usize, form: Form, torn: u64) -> Tail {
    let most = ((bytes.len() - torn_at) / form.header()) as u64;
    let (mut behind, mut durable, mut hashed) = (0, 0, 0);
    let effort = (bytes.len() as u64).saturating_mul(EFFORT);
    let mut at = torn_at + 1;
    while at + form.header() <= bytes.len() && hashed < effort {
        let sequence = u64_at(bytes, at + 8);
        if sequence <= torn || sequence - torn > most {
            at += 1;
            continue;
        }
        match record(bytes, at, form, sequence) {
            Some(found) => {
                behind += 1;
                durable = durable.max(found.durable);
                at += found.length;
            }
            None => {
                let length = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
                hashed += u64::from(length).min((bytes.len() - at) as u64);
                at += 1;
            }
        }
    }
    if durable >= torn { Tail::Damaged { behind } } else { Tail::Torn }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upper::record::encode_all;

    /// Records numbered from 1, each with how many were durable when it was written; and where each begins.
    fn journal(form: Form, durable: &[u64]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut starts) = (Vec::new(), Vec::new());
        for (i, durable) in durable.iter().enumerate() {
            let mut covered = (i as u64 + 1).to_le_bytes().to_vec();
            if form == Form::Stamped {
                covered.extend(durable.to_le_bytes());
            }
            let fixed = covered.len();
            encode_all(&[Item::Next { ino: 100 + i as u64 }], &mut covered);
            starts.push(bytes.len());
            bytes.extend(((covered.len() - fixed) as u32).to_le_bytes());
            bytes.extend(crc32fast::hash(&covered).to_le_bytes());
            bytes.extend(covered);
        }
        (bytes, starts)
    }

    fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 0x10;
        bytes
    }

    #[test]
    fn damage_to_what_was_durable_is_told_from_a_torn_end() {
        // Records 1 to 3 were durable when the fifth was written.
        let (bytes, starts) = journal(Form::Stamped, &[0, 0, 1, 1, 3, 3]);
        assert_eq!(scan(&bytes, Form::Stamped).unwrap().tail, Tail::Clean);
        for (i, start) in starts.iter().enumerate() {
            let end = starts.get(i + 1).copied().unwrap_or(bytes.len());
            for at in *start..end {
                let found = scan(&flipped(&bytes, at), Form::Stamped).unwrap();
                assert_eq!((found.sound, found.items.len()), (*start as u64, i), "bit of byte {at}");
                let expected = if i < 3 { Tail::Damaged { behind: 5 - i as u64 } } else { Tail::Torn };
                assert_eq!(found.tail, expected, "byte {at} of record {}", i + 1);
            }
        }
    }

    #[test]
    fn what_a_power_loss_leaves_is_a_torn_end() {
        let (bytes, starts) = journal(Form::Stamped, &[0, 0, 1, 1, 3, 3]);
        for length in 0..bytes.len() {
            let tail = scan(&bytes[..length], Form::Stamped).unwrap().tail;
            assert_eq!(tail == Tail::Clean, starts.contains(&length), "cut to {length}");
            assert!(!matches!(tail, Tail::Damaged { .. }), "cut to {length}");
        }
        // A block of zeros in what was not synced, with sound records behind it.
        let mut holed = bytes.clone();
        holed[starts[3]..starts[4]].fill(0);
        assert_eq!(scan(&holed, Form::Stamped).unwrap().tail, Tail::Torn);
        // Zeros in place of what was durable.
        let mut holed = bytes.clone();
        holed[starts[0]..starts[2]].fill(0);
        assert_eq!(scan(&holed, Form::Stamped).unwrap().tail, Tail::Damaged { behind: 4 });
    }

    #[test]
    fn the_form_before_says_nothing_of_what_was_durable() {
        let (bytes, starts) = journal(Form::Plain, &[0; 4]);
        let found = scan(&flipped(&bytes, starts[1]), Form::Plain).unwrap();
        assert_eq!((found.items.len(), found.tail), (1, Tail::Torn));
    }

    #[test]
    fn the_search_ends_soon_in_bytes_made_up_to_delay_it() {
        // Every place looks like record 2, as long as what is left.
        let bytes: Vec<u8> = [0, 0, 2, 0, 0, 0, 0, 2].repeat(40_000);
        let begun = std::time::Instant::now();
        scan(&bytes, Form::Stamped).unwrap();
        assert!(begun.elapsed().as_secs() < 20);
    }
}
