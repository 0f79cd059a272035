//! Retention: which snapshots are kept when old ones are removed.

use std::time::Duration;

use karapace_store::id::LayerHash;
use karapace_store::inode::Timestamp;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::{Metadata, SnapshotEntry, made};
use karapace_store::rfc3339;
use serde::Serialize;

use crate::description::lifecycle;
use crate::engine::{Engine, Report, Result};

/// What to keep of each environment's snapshots. A snapshot stays if one of the rules keeps it, if it has a
/// name, or if it is the head.
#[derive(Debug, Clone, Copy, Default)]
pub struct Keep {
    /// Keep this many of the newest.
    pub last: Option<usize>,
    /// Keep those that are not older than this.
    pub within: Option<Duration>,
}

/// A snapshot that is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Expired {
    /// Its environment.
    pub env: String,
    /// Its hash.
    pub hash: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Its message.
    pub message: Option<String>,
}

/// What was removed, or would be.
#[derive(Debug, Default)]
pub struct Expiry {
    /// Grouped by environment, oldest first.
    pub snapshots: Vec<Expired>,
    /// For a dry run: the bytes that a collection would free in addition to what it frees anyway.
    pub bytes: u64,
}

impl Engine {
    /// Removes the snapshots that `keep` does not keep, as `snapshots rm` does; with `dry_run` only lists
    /// them. Skips frozen and archived environments. An environment whose snapshots cannot be removed now
    /// keeps them; this is reported.
    pub fn expire(&self, keep: &Keep, now: Timestamp, dry_run: bool, report: &dyn Report) -> Result<Expiry> {
        let (environments, unreadable) = self.readable()?;
        for error in unreadable {
            report.note(&error.to_string());
        }
        let mut expiry = Expiry::default();
        let mut gone: Vec<(&Metadata, Vec<LayerHash>)> = Vec::new();
        for env in environments.iter().filter(|env| lifecycle::is_writable(env.state)) {
            tell_of_the_future(env, now, report);
            let hashes = expired(&env.snapshots, &env.head, keep, now);
            if hashes.is_empty() {
                continue;
            }
            if !dry_run {
                let references: Vec<String> = hashes.iter().map(LayerHash::to_hex).collect();
                if let Err(error) = self.remove_snapshots(env, &references) {
                    report.note(&format!("no snapshots of {} were removed: {error}", env.name));
                    continue;
                }
            }
            expiry.snapshots.extend(hashes.iter().map(|hash| line(env, hash)));
            gone.push((env, hashes));
        }
        if dry_run && !gone.is_empty() {
            let _shared = StoreLock::shared(self.store())?;
            expiry.bytes = self.held_by(&gone)?;
        }
        Ok(expiry)
    }
}

/// The hashes of the snapshots to remove, oldest first. Several entries may have one hash; they stay or go
/// together.
fn expired(snapshots: &[SnapshotEntry], head: &LayerHash, keep: &Keep, now: Timestamp) -> Vec<LayerHash> {
    let newest_first: Vec<&SnapshotEntry> = made(snapshots).into_iter().rev().collect();
    let limit = keep.within.map(|within| now.secs.saturating_sub_unsigned(within.as_secs()));
    let stays = |(rank, entry): (usize, &SnapshotEntry)| {
        entry.hash == *head
            || keep.last.is_some_and(|last| rank < last)
            || limit.is_some_and(|limit| entry.created_at.secs >= limit)
            || snapshots.iter().any(|other| other.hash == entry.hash && other.name.is_some())
    };
    let mut gone: Vec<LayerHash> = newest_first
        .iter()
        .enumerate()
        .filter(|(rank, entry)| !stays((*rank, entry)))
        .map(|(_, e)| e.hash)
        .collect();
    gone.reverse();
    gone
}

/// Reports snapshots dated in the future. Their ages are wrong because a clock was wrong, and every age limit
/// keeps them.
fn tell_of_the_future(env: &Metadata, now: Timestamp, report: &dyn Report) {
    for entry in env.snapshots.iter().filter(|entry| entry.created_at.secs > now.secs) {
        report.note(&format!(
            "snapshot {:.12} of {} was made at {}, which is in the future: the clock is or was wrong; its age counts as zero",
            entry.hash,
            env.name,
            rfc3339::format(entry.created_at)
        ));
    }
}

fn line(env: &Metadata, hash: &LayerHash) -> Expired {
    let newest = env.made().into_iter().find(|s| s.hash == *hash);
    Expired {
        env: env.name.clone(),
        hash: hash.to_hex(),
        created_at: newest.map(|s| rfc3339::format(s.created_at)).unwrap_or_default(),
        message: newest.and_then(|s| s.message.clone()),
    }
}

/// Parses an age: a whole number and `m`, `h`, `d` or `w`.
///
/// # Errors
/// A message that says how to write an age.
pub fn parse_age(text: &str) -> std::result::Result<Duration, String> {
    let wrong = || format!("{text:?} is not an age: write a number with m, h, d or w (12h, 7d, 4w)");
    let seconds = match text.as_bytes().last() {
        Some(b'm') => 60,
        Some(b'h') => 3600,
        Some(b'd') => 86_400,
        Some(b'w') => 604_800,
        _ => return Err(wrong()),
    };
    let number = &text[..text.len() - 1];
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use karapace_store::id::RecordId;

    const DAY: u64 = 86_400;

    fn hash(n: u8) -> LayerHash {
        LayerHash::from_bytes([n; 32])
    }

    /// A snapshot made `days_ago` days before day 100.
    fn entry(n: u8, days_ago: i64, name: Option<&str>) -> SnapshotEntry {
        SnapshotEntry {
            hash: hash(n),
            record: RecordId::from_bytes([n; 32]),
            parent: hash(0),
            name: name.map(str::to_owned),
            message: None,
            created_at: Timestamp { secs: (100 - days_ago) * DAY as i64, nanos: 0 },
        }
    }

    #[test]
    fn what_either_rule_keeps_stays() {
        let now = Timestamp { secs: 100 * DAY as i64, nanos: 0 };
        let list = [
            entry(1, 50, None),
            entry(2, 40, Some("release")),
            entry(3, 30, None),
            entry(3, 30, Some("alias")),
            entry(4, 20, None),
            entry(5, 10, None),
            entry(6, 1, None),
            entry(7, -5, None),
        ];
        let gone = |last: Option<usize>, within: Option<u64>, head: u8| -> Vec<u8> {
            let keep = Keep { last, within: within.map(|days| Duration::from_secs(days * DAY)) };
            let gone = expired(&list, &hash(head), &keep, now);
            gone.iter().map(|hash| hash.as_bytes()[0]).collect()
        };
        assert_eq!(gone(Some(2), None, 6), [1, 4, 5]);
        assert_eq!(gone(Some(2), None, 1), [4, 5]);
        assert_eq!(gone(None, Some(10), 7), [1, 4]);
        assert_eq!(gone(None, Some(0), 0), [1, 4, 5, 6]);
        assert_eq!(gone(Some(4), Some(10), 7), [1]);
        assert_eq!(gone(Some(0), None, 7), [1, 4, 5, 6]);
        assert_eq!(gone(Some(100), None, 7), [] as [u8; 0]);
    }

    #[test]
    fn ages() {
        let table = [
            ("90m", Some(5400)),
            ("12h", Some(43_200)),
            ("7d", Some(7 * DAY)),
            ("4w", Some(28 * DAY)),
            ("0d", Some(0)),
            ("", None),
            ("d", None),
            ("7", None),
            ("-7d", None),
            ("+7d", None),
            ("7 d", None),
            ("1.5d", None),
            ("7é", None),
            ("99999999999999999w", None),
        ];
        for (text, seconds) in table {
            assert_eq!(parse_age(text).ok().map(|age| age.as_secs()), seconds, "{text}");
        }
    }
}
