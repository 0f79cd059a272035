//! The order in which snapshots were made.

use std::collections::HashSet;

use super::SnapshotEntry;

/// The snapshots of a list in the order in which they were made, each once. A second name for a snapshot is
/// an entry with the record of an earlier one. A snapshot that was made again has a new record, and takes the
/// position of the newest. Timestamps are not used.
pub fn made(list: &[SnapshotEntry]) -> Vec<&SnapshotEntry> {
    let mut made: Vec<&SnapshotEntry> = Vec::new();
    let (mut records, mut hashes) = (HashSet::new(), HashSet::new());
    let first: Vec<bool> = list.iter().map(|entry| records.insert(entry.record)).collect();
    for (entry, _) in list.iter().zip(first).rev().filter(|(_, first)| *first) {
        if hashes.insert(entry.hash) {
            made.push(entry);
        }
    }
    made.reverse();
    made
}

#[cfg(test)]
mod tests {
    use super::super::tests::saved;
    use super::super::{Metadata, SnapshotEntry};
    use crate::id::{LayerHash, RecordId};
    use crate::inode::Timestamp;
    use crate::open::Store;

    #[test]
    fn a_snapshot_is_as_new_as_its_newest_record_whatever_names_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut metadata = saved(&store, "one", &"ab".repeat(32), RecordId::of(b"r"));
        let entry = |hash: u8, record: u8| SnapshotEntry {
            hash: LayerHash::from_bytes([hash; 32]),
            record: RecordId::from_bytes([record; 32]),
            parent: LayerHash::from_bytes([1; 32]),
            name: None,
            message: None,
            created_at: Timestamp { secs: 0, nanos: 0 },
        };
        let told = |list: &[(u8, u8)], metadata: &mut Metadata| {
            metadata.snapshots = list.iter().map(|(hash, record)| entry(*hash, *record)).collect();
            let number = |entry: &SnapshotEntry| entry.hash.as_bytes()[0];
            (metadata.made().into_iter().map(number).collect::<Vec<_>>(), metadata.latest().map(number))
        };
        for (list, made, latest) in [
            (&[][..], &[][..], None),
            (&[(2, 2), (3, 3)], &[2, 3], Some(3)),
            // Named a second time.
            (&[(2, 2), (3, 3), (2, 2)], &[2, 3], Some(3)),
            // Made a second time.
            (&[(2, 2), (3, 3), (2, 4)], &[3, 2], Some(2)),
            (&[(2, 2), (2, 4), (3, 3), (2, 4), (2, 2)], &[2, 3], Some(3)),
            // The base, which is layer 1.
            (&[(1, 1)], &[1], Some(1)),
            (&[(2, 2), (1, 1)], &[2, 1], Some(2)),
        ] {
            assert_eq!(told(list, &mut metadata), (made.to_vec(), latest), "{list:?}");
        }
    }
}
