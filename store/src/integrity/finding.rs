//! The findings of a verification, for people and for programs.

use std::fmt;
use std::path::Path;

use serde::Serialize;

/// What a finding is about. In `--json` these names are written with dashes; docs/DURABILITY.md describes
/// each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// An object's bytes do not match its name, or cannot be read.
    CorruptObject,
    /// An object that something refers to is missing.
    MissingObject,
    /// A root, tree or block list cannot be decoded.
    CorruptTree,
    /// A layer record cannot be read, or is inconsistent.
    CorruptLayer,
    /// An environment's record cannot be read.
    CorruptEnvironment,
    /// The target of a reference is missing, or is not what it should be.
    BadReference,
    /// The checkpoint or journal of an environment's upper cannot be read.
    CorruptUpper,
    /// A data file of an upper is missing or cannot be read.
    MissingData,
    /// The pin of a running mount cannot be read.
    CorruptPin,
    /// The intent of an operation in progress cannot be read.
    CorruptIntent,
    /// A directory of the store is missing.
    MissingDirectory,
    /// A data file of an upper is shorter than when the last checkpoint was written; a power loss can cause
    /// that.
    ShortData,
    /// An environment's directory has no record.
    OrphanEnvironment,
    /// Modes or owners that would let other users damage the store.
    WrongPermissions,
    /// A file that does not belong where it is.
    Stray,
    /// Left over from a crash; the next mount or collection removes it.
    Leftover,
    /// Objects that nothing refers to; a collection frees them.
    Orphans,
    /// Files that an earlier repair quarantined.
    Quarantined,
}

impl Kind {
    /// Whether this is damage; otherwise it is only information.
    pub fn is_damage(self) -> bool {
        !matches!(
            self,
            Self::ShortData
                | Self::WrongPermissions
                | Self::Stray
                | Self::Leftover
                | Self::Orphans
                | Self::Quarantined
        )
    }
}

/// One finding: damage, or information.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What the finding is about.
    pub kind: Kind,
    /// Whether this is damage.
    pub damage: bool,
    /// The id of the object, layer record or environment concerned.
    pub object: Option<String>,
    /// The file on the host.
    pub file: Option<String>,
    /// A path inside the environments that needs it; there may be others.
    pub path: Option<String>,
    /// The names of the environments that need it, or their ids if a name cannot be read.
    pub environments: Vec<String>,
    /// Where they need it: `ENV@base`, `ENV@head`, `ENV@NAME` or `ENV@HASH` for a snapshot, `ENV` for
    /// uncommitted changes.
    pub affected: Vec<String>,
    /// The finding as a sentence.
    pub message: String,
}

impl Finding {
    pub(crate) fn new(kind: Kind, message: String) -> Finding {
        Finding {
            kind,
            damage: kind.is_damage(),
            object: None,
            file: None,
            path: None,
            environments: Vec::new(),
            affected: Vec::new(),
            message,
        }
    }

    pub(crate) fn object(mut self, id: impl fmt::Display) -> Finding {
        self.object = Some(id.to_string());
        self
    }

    pub(crate) fn file(mut self, path: &Path) -> Finding {
        self.file = Some(path.to_string_lossy().into_owned());
        self
    }

    pub(crate) fn path(mut self, path: Option<String>) -> Finding {
        self.path = path;
        self
    }

    pub(crate) fn environment(mut self, name: &str) -> Finding {
        self.environments = vec![name.to_owned()];
        self
    }

    /// Whether this is damage; otherwise it is only information.
    pub fn is_damage(&self) -> bool {
        self.damage
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(path) = self.path.as_ref().filter(|path| !self.message.contains(path.as_str())) {
            write!(f, "; it is part of {path}")?;
        }
        let named = if self.affected.is_empty() { &self.environments } else { &self.affected };
        if !named.is_empty() {
            write!(f, " (affected: {})", named.join(", "))?;
        }
        Ok(())
    }
}
