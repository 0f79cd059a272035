//! What differs: the view from a layer, or two layers.

use std::collections::BTreeMap;

use karapace_fs::attr::DiffKind;
use karapace_store::layer::LayerRecord;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::Metadata;
use karapace_store::tree::{Change, Trees, diff};

use super::reference::{self, LayerRef};
use super::socket::Changed;
use super::text::PathText;
use super::{Engine, Result};

impl Engine {
    /// What stands uncommitted in `env`.
    pub fn diff(&self, env: &Metadata) -> Result<Vec<Changed>> {
        self.request_diff(env)
    }

    /// What the view of `env` has different from the layer `from`.
    pub fn diff_since(&self, env: &Metadata, from: &str) -> Result<Vec<Changed>> {
        let from = reference::resolve(env, from)?;
        let uncommitted = self.request_diff(env)?;
        // Read after: a commit in between moves changes from the one to the other, and a path in both counts once.
        let env = self.find(&env.instance.to_hex())?;
        let head = LayerRef { hash: env.head, record: env.head_record };
        Ok(joined(self.diff_layers(&from, &head)?, uncommitted))
    }

    /// What the layer `to` has different from the layer `from`.
    pub fn diff_between(&self, env: &Metadata, from: &str, to: &str) -> Result<Vec<Changed>> {
        self.diff_layers(&reference::resolve(env, from)?, &reference::resolve(env, to)?)
    }

    fn diff_layers(&self, from: &LayerRef, to: &LayerRef) -> Result<Vec<Changed>> {
        let store = self.store();
        let _shared = StoreLock::shared(store)?;
        let trees = Trees::new(store.clone());
        let root = |layer: &LayerRef| -> Result<_> {
            Ok(trees.root(&LayerRecord::read(store, &layer.record)?.tree)?)
        };
        let mut changes = Vec::new();
        diff(&trees, Some(&*root(from)?), &*root(to)?, &mut |path, change| {
            let kind = match change {
                Change::Added(_) => DiffKind::Added,
                Change::Removed(_) => DiffKind::Deleted,
                Change::Modified { .. } => DiffKind::Modified,
            };
            changes.push(Changed::new(kind, path.to_vec()));
            Ok(())
        })?;
        Ok(changes)
    }
}

/// Two steps as one: `first` from a layer to the head, `second` from the head to the view. A path that was changed twice
/// counts as modified even where the second change undid the first.
fn joined(first: Vec<Changed>, second: Vec<Changed>) -> Vec<Changed> {
    /// Whether the path was there before the first step and is there after the last.
    struct Span {
        before: bool,
        after: bool,
    }
    let mut paths: BTreeMap<Vec<Vec<u8>>, (Vec<u8>, Span)> = BTreeMap::new();
    for change in first.into_iter().chain(second) {
        let path = change.path.0;
        let key = path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        let after = change.kind != 'D';
        let (_, span) = paths.entry(key).or_insert((path, Span { before: change.kind != 'A', after }));
        span.after = after;
    }
    let merged = paths.into_values().filter_map(|(path, span)| {
        let kind = match (span.before, span.after) {
            (false, true) => 'A',
            (true, true) => 'M',
            (true, false) => 'D',
            (false, false) => return None,
        };
        Some(Changed { kind, path: PathText(path) })
    });
    merged.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(text: &str) -> Vec<Changed> {
        text.split_whitespace()
            .map(|word| Changed {
                kind: word.chars().next().unwrap(),
                path: PathText(word.as_bytes()[1..].to_vec()),
            })
            .collect()
    }

    #[test]
    fn two_steps_joined() {
        let table = [
            ("A/a M/b D/c", "", "A/a M/b D/c"),
            ("", "A/a M/b D/c", "A/a M/b D/c"),
            ("A/a", "M/a", "A/a"),
            ("A/a", "D/a", ""),
            ("M/a", "D/a", "D/a"),
            ("D/a", "A/a", "M/a"),
            ("D/a A/a", "", "M/a"),
            ("A/d A/d/x A/d-e", "", "A/d A/d/x A/d-e"),
        ];
        for (first, second, expected) in table {
            assert_eq!(joined(changes(first), changes(second)), changes(expected), "{first} + {second}");
        }
    }
}
