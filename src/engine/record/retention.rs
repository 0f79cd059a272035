//! Which snapshots are kept when old ones are let go of.

use std::time::Duration;

use karapace_store::id::LayerHash;
use karapace_store::inode::Timestamp;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::{Metadata, SnapshotEntry, made};
use karapace_store::rfc3339;
use serde::Serialize;

use crate::description::lifecycle;
use crate::engine::{Engine, Report, Result};

/// What is kept of each environment's snapshots: what either rule keeps, what has a name, and what the
/// environment stands on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Keep {
    /// So many of the newest.
    pub last: Option<usize>,
    /// What is no older than this.
    pub within: Option<Duration>,
}

/// A snapshot that goes.
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

/// What went, or would go.
#[derive(Debug, Default)]
pub struct Expiry {
    /// By environment, oldest first.
    pub snapshots: Vec<Expired>,
    /// Of a dry run: what a collection would free besides what it frees anyway, in bytes.
    pub bytes: u64,
}

impl Engine {
    /// Removes the snapshots that `keep` does not keep, as `snapshots rm` does; with `dry_run` only says
    /// which. Frozen and archived environments are left alone. An environment whose snapshots cannot be
    /// removed now keeps them; that is told.
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
                    report.note(&format!("the snapshots of {} stay: {error}", env.name));
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

/// The hashes of the snapshots that go, oldest first. One hash may stand in several entries, which stay or go
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

/// A clock that was wrong makes ages wrong: what was made in the future is kept by any age, and the user
/// should know.
fn tell_of_the_future(env: &Metadata, now: Timestamp, report: &dyn Report) {
    for entry in env.snapshots.iter().filter(|entry| entry.created_at.secs > now.secs) {
        report.note(&format!(
            "snapshot {:.12} of {} was made at {}, which is still to come: this clock or that one is wrong, and its age is \
             taken as none",
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

/// An age as people write it: a whole number and `m`, `h`, `d` or `w`.
///
/// # Errors
/// A sentence that says how to write one.
pub fn parse_age(text: &str) -> std::result::Result<Duration, String> {
    let wrong = || format!("{text:?} is no age: write a number with m, h, d or w, as in 12h, 7d or 4w");
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

    /// A snapshot made so many days before day 100.
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
