//! What a verification finds, in a form for people and for programs.

use std::fmt;
use std::path::Path;

use serde::Serialize;

/// What is wrong, or worth knowing. The names in `--json` are these with dashes; docs/DURABILITY.md describes
/// each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// An object's bytes are not those its name says, or cannot be read.
    CorruptObject,
    /// An object that something refers to is not there.
    MissingObject,
    /// A root, tree or block list cannot be read as what it should be.
    CorruptTree,
    /// A layer record cannot be read, or contradicts itself.
    CorruptLayer,
    /// An environment's record cannot be read.
    CorruptEnvironment,
    /// A reference names what is not there, or not what it should be.
    BadReference,
    /// Checkpoint or journal of what an environment has changed cannot be read.
    CorruptUpper,
    /// A data file of an upper is not there or cannot be read.
    MissingData,
    /// The pin of a running mount cannot be read.
    CorruptPin,
    /// The intent of an operation under way cannot be read.
    CorruptIntent,
    /// A directory of the store is not there.
    MissingDirectory,
    /// A data file of an upper is shorter than when the last checkpoint was written. A power loss does that.
    ShortData,
    /// An environment's directory has no record.
    OrphanEnvironment,
    /// Modes or owners of the store's files that others could harm it by.
    WrongPermissions,
    /// A file that does not belong where it is.
    Stray,
    /// What a crash left, which the next mount or collection removes.
    Leftover,
    /// Objects that nothing refers to: a collection frees them.
    Orphans,
    /// What an earlier repair set aside.
    Quarantined,
}

impl Kind {
    /// Whether something is damaged; otherwise it is only worth knowing.
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

/// One thing that is wrong, or worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// Whether something is damaged.
    pub damage: bool,
    /// The object, layer record or environment that it is about: its id.
    pub object: Option<String>,
    /// The file on the host that it is about.
    pub file: Option<String>,
    /// A path inside the environments that needs it; there may be more.
    pub path: Option<String>,
    /// The environments that need it: their names, or ids where a name cannot be read.
    pub environments: Vec<String>,
    /// Where they need it: `ENV@base`, `ENV@head`, `ENV@NAME` or `ENV@HASH` of a snapshot, `ENV` of what is
    /// not committed.
    pub affected: Vec<String>,
    /// All of it in words.
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

    /// Whether something is damaged; otherwise it is only worth knowing.
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
