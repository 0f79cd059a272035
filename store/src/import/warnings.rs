//! Warnings about what an import could not keep.

use std::collections::BTreeMap;

use super::builder::why_not_settable;
use crate::inode::FileKind;

/// Maximum number of warnings kept verbatim.
const MAX_WARNINGS: usize = 100;

/// How many names of dropped attributes are listed; an archive may have any number.
const MAX_NAMES: usize = 20;

/// Collects warnings; beyond the limit they are only counted.
#[derive(Default)]
pub(super) struct Warnings {
    kept: Vec<String>,
    more: u64,
    /// Warnings that each stand for many; not limited.
    totals: Vec<String>,
    /// Dropped attributes, by name and reason.
    attributes: BTreeMap<(Vec<u8>, &'static str), LeftOut>,
}

/// The files that had a dropped attribute.
struct LeftOut {
    files: u64,
    first: String,
}

impl Warnings {
    pub fn push(&mut self, warning: String) {
        if self.kept.len() < MAX_WARNINGS {
            self.kept.push(warning);
        } else {
            self.more += 1;
        }
    }

    /// Adds a warning that stands for many; there are few of these.
    pub fn push_total(&mut self, warning: String) {
        self.totals.push(warning);
    }

    /// Whether an attribute of `path` can be kept; records it if not. One warning stands for all files with
    /// an attribute of that name.
    pub fn keeps(&mut self, path: &[u8], kind: FileKind, attribute: &[u8]) -> bool {
        let Some(reason) = why_not_settable(attribute, kind) else { return true };
        let key = (attribute.to_vec(), reason);
        if let Some(left_out) = self.attributes.get_mut(&key) {
            left_out.files += 1;
        } else if self.attributes.len() < MAX_NAMES {
            let first = String::from_utf8_lossy(path).into_owned();
            self.attributes.insert(key, LeftOut { files: 1, first });
        } else {
            self.more += 1;
        }
        false
    }

    pub fn into_vec(mut self) -> Vec<String> {
        for ((name, reason), LeftOut { files, first }) in self.attributes {
            let name = String::from_utf8_lossy(&name);
            let of = match files {
                1 => format!("{first:?}"),
                _ => format!("{files} files (the first is {first:?})"),
            };
            self.kept.push(format!("the extended attribute {name:?} of {of} was left out: {reason}"));
        }
        if self.more > 0 {
            self.kept.push(format!("and {} more of that kind", self.more));
        }
        self.kept.append(&mut self.totals);
        self.kept
    }
}
