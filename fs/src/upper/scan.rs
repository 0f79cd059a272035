//! Reads the records of a journal, and distinguishes a torn end from damage.
//!
//! A power loss may lose any part of what was written since the journal was last synced, so a torn record may
//! be followed by intact ones. None of these was reported durable, and the records before the torn one are a
//! prefix of the operations. Every record says how many records were durable when it was written. So if an
//! intact record says that the torn one was durable, the disk or someone damaged it: what follows was
//! promised to be kept, and must not be dropped silently.

use crate::error::Result;
use crate::upper::record::{Item, decode_all};

/// No operation writes more than one inode's xattrs and a content's extents.
pub(super) const MAX_RECORD: u32 = 256 << 20;
/// Limit on the search behind a torn record: bytes hashed per byte of journal. Keeps crafted input, in which
/// every position looks like a long record, from making it run forever.
const EFFORT: u64 = 16;

/// Format of a journal's records.
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

/// What follows the intact records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Nothing.
    Clean,
    /// Records that were not durable, or part of one.
    Torn,
    /// A durable record that is damaged.
    Damaged {
        /// Number of intact records behind it.
        behind: u64,
    },
}

/// Contents of a journal's bytes, without the header.
#[derive(Debug)]
pub(crate) struct Scan {
    /// Items of the intact records from the start.
    pub items: Vec<Item>,
    /// Length of those records in bytes.
    pub sound: u64,
    /// The next record's number.
    pub next_sequence: u64,
    /// Number of the last record known to be durable.
    pub durable: u64,
    pub tail: Tail,
}

/// One record.
struct Record<'a> {
    durable: u64,
    payload: &'a [u8],
    length: usize,
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// The record with this number at offset `at`, if it is intact.
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

/// Reads records up to the first that is not intact, and inspects what follows.
///
/// # Errors
/// If a record with a correct checksum does not decode to items: a newer karapace wrote it.
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

/// Classifies what follows the offset at which record `torn` should be.
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

    /// Records numbered from 1, each with how many were durable when it was written; and their offsets.
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
        // A block of zeros in the unsynced part, with intact records behind it.
        let mut holed = bytes.clone();
        holed[starts[3]..starts[4]].fill(0);
        assert_eq!(scan(&holed, Form::Stamped).unwrap().tail, Tail::Torn);
        // Zeros in place of durable records.
        let mut holed = bytes.clone();
        holed[starts[0]..starts[2]].fill(0);
        assert_eq!(scan(&holed, Form::Stamped).unwrap().tail, Tail::Damaged { behind: 4 });
    }

    #[test]
    fn the_previous_format_does_not_say_what_was_durable() {
        let (bytes, starts) = journal(Form::Plain, &[0; 4]);
        let found = scan(&flipped(&bytes, starts[1]), Form::Plain).unwrap();
        assert_eq!((found.items.len(), found.tail), (1, Tail::Torn));
    }

    #[test]
    fn the_search_ends_soon_in_bytes_made_up_to_delay_it() {
        // Every position looks like record 2, extending to the end of the bytes.
        let bytes: Vec<u8> = [0, 0, 2, 0, 0, 0, 0, 2].repeat(40_000);
        let begun = std::time::Instant::now();
        scan(&bytes, Form::Stamped).unwrap();
        assert!(begun.elapsed().as_secs() < 20);
    }
}
