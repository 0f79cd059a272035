//! The manifest `karapace.toml`: strict parsing and normalisation. Only [`Manifest::read`] opens a file.
//!
//! Unknown keys anywhere are errors, and every error names the line: a misspelt `pakages` must not silently
//! build an environment without packages.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use karapace_store::input;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::packages::is_package_name;
use super::pin;

/// The manifest version this program reads and writes.
pub const MANIFEST_VERSION: u32 = 1;

/// Largest manifest, in bytes.
pub(crate) const MANIFEST_MAX: u64 = 1 << 20;

/// A manifest that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The file could not be read.
    #[error("cannot read manifest {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error from the system.
        source: std::io::Error,
    },
    /// The text is not a valid manifest.
    #[error("{}:{line}: {reason}", path.display())]
    Invalid {
        /// Where the text came from.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// What is wrong and, if it helps, what would be right.
        reason: String,
    },
}

/// A normalised manifest: lists are trimmed, sorted and free of duplicates; the backend is in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// Always [`MANIFEST_VERSION`].
    pub manifest_version: u32,
    /// The image that the environment starts from.
    pub base: Base,
    /// Packages of the distribution.
    pub system: System,
    /// Graphical programs.
    pub gui: Gui,
    /// Devices that are let in.
    pub hardware: Hardware,
    /// Host directories shown inside, by label.
    pub mounts: BTreeMap<String, Mount>,
    /// How sessions run.
    pub runtime: Runtime,
    /// What a snapshot contains.
    pub snapshot: Snapshot,
    /// The directory of the file that the manifest was read from; not part of the manifest itself.
    #[serde(skip)]
    pub directory: Option<PathBuf>,
}

/// `[base]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Base {
    /// Image reference as written (docs/MANIFEST.md), trimmed.
    pub image: String,
}

/// `[system]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct System {
    /// Package names, sorted.
    pub packages: Vec<String>,
}

/// `[gui]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Gui {
    /// Application names, sorted.
    pub apps: Vec<String>,
}

/// `[hardware]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hardware {
    /// Whether to let `/dev/dri` in.
    pub gpu: bool,
    /// Whether to let `/dev/snd` in.
    pub audio: bool,
}

/// One entry of `[mounts]`, written `host:container`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Host path as written: absolute, relative to the manifest, or in the home directory of the caller who
    /// enters (`~/`).
    pub host: String,
    /// Absolute path inside.
    pub container: String,
}

impl Mount {
    /// For a host path in the caller's home directory, the part after `~/`; empty for `~` itself.
    pub fn from_home(&self) -> Option<&str> {
        if self.host == "~" { Some("") } else { self.host.strip_prefix("~/") }
    }

    /// Whether the host path is relative to the manifest's directory.
    pub fn is_relative(&self) -> bool {
        !self.host.starts_with('/') && self.from_home().is_none()
    }
}

impl Serialize for Mount {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}:{}", self.host, self.container))
    }
}

/// What runs an environment's sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Namespaces made by karapace itself.
    #[default]
    Namespace,
    /// An OCI runtime found on PATH.
    Oci,
    /// For tests.
    Mock,
}

impl Backend {
    /// Its name in manifests, lock files and identities.
    pub fn as_str(self) -> &'static str {
        match self {
            Backend::Namespace => "namespace",
            Backend::Oci => "oci",
            Backend::Mock => "mock",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `[runtime]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Runtime {
    /// The backend that runs sessions.
    pub backend: Backend,
    /// Whether sessions have no network but loopback.
    pub network_isolation: bool,
    /// Limits on sessions.
    pub resource_limits: ResourceLimits,
}

/// `[runtime.resource_limits]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ResourceLimits {
    /// CPU weight of all sessions together, in cgroup v1 shares; above 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// Memory limit in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit_mb: Option<u64>,
}

/// `[snapshot]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Absolute paths that are never stored in a layer, sorted.
    pub ignore: Vec<String>,
}

impl Manifest {
    /// A manifest that names an image and nothing else.
    pub fn for_image(image: &str) -> Manifest {
        Manifest {
            manifest_version: MANIFEST_VERSION,
            base: Base { image: image.to_owned() },
            system: System::default(),
            gui: Gui::default(),
            hardware: Hardware::default(),
            mounts: BTreeMap::new(),
            runtime: Runtime::default(),
            snapshot: Snapshot::default(),
            directory: None,
        }
    }

    /// Reads and parses the manifest at `path`.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn read(path: &Path) -> Result<Manifest, ManifestError> {
        let text = input::read_text(path, MANIFEST_MAX)
            .map_err(|source| ManifestError::Read { path: path.to_owned(), source })?;
        let mut manifest = Manifest::parse(&text, path)?;
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        manifest.directory = Some(directory.to_owned());
        Ok(manifest)
    }

    /// Parses the text of a manifest; errors name `origin`.
    ///
    /// # Errors
    /// [`ManifestError::Invalid`].
    pub fn parse(text: &str, origin: &Path) -> Result<Manifest, ManifestError> {
        let source = Source { text, origin };
        RawManifest::parse(&source)?.normalise(&source)
    }

    /// Replaces `base.image` in the text of a manifest; every other byte stays as it is.
    ///
    /// # Errors
    /// [`ManifestError::Invalid`], if the text cannot be parsed.
    pub fn with_image(text: &str, origin: &Path, image: &str) -> Result<String, ManifestError> {
        let raw = RawManifest::parse(&Source { text, origin })?;
        let mut text = text.to_owned();
        text.replace_range(raw.base.image.span(), &toml::Value::String(image.to_owned()).to_string());
        Ok(text)
    }

    /// The normalised manifest as TOML; [`Manifest::parse`] reads it back equal.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a manifest holds only tables, strings, integers and booleans")
    }
}

/// The text being parsed, kept for the line numbers of errors.
struct Source<'a> {
    text: &'a str,
    origin: &'a Path,
}

impl Source<'_> {
    fn invalid(&self, span: &Range<usize>, reason: impl Into<String>) -> ManifestError {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        ManifestError::Invalid { path: self.origin.to_owned(), line, reason: reason.into() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    manifest_version: Spanned<i64>,
    base: RawBase,
    #[serde(default)]
    system: RawSystem,
    #[serde(default)]
    gui: RawGui,
    #[serde(default)]
    hardware: Hardware,
    #[serde(default)]
    mounts: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    runtime: RawRuntime,
    #[serde(default)]
    snapshot: RawSnapshot,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBase {
    image: Spanned<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawSystem {
    packages: Vec<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawGui {
    apps: Vec<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawRuntime {
    backend: Option<Spanned<String>>,
    network_isolation: bool,
    resource_limits: RawLimits,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    cpu_shares: Option<Spanned<i64>>,
    memory_limit_mb: Option<Spanned<i64>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawSnapshot {
    ignore: Vec<Spanned<String>>,
}

impl RawManifest {
    fn parse(source: &Source<'_>) -> Result<RawManifest, ManifestError> {
        toml::from_str(source.text).map_err(|e| {
            // serde speaks of fields; TOML has keys.
            let reason =
                e.message().replace("unknown field", "unknown key").replace("missing field", "missing key");
            source.invalid(&e.span().unwrap_or(0..0), reason)
        })
    }

    fn normalise(self, source: &Source<'_>) -> Result<Manifest, ManifestError> {
        let version = *self.manifest_version.get_ref();
        if version != i64::from(MANIFEST_VERSION) {
            let reason =
                format!("manifest_version is {version}; this karapace reads version {MANIFEST_VERSION} only");
            return Err(source.invalid(&self.manifest_version.span(), reason));
        }
        let image = self.base.image.get_ref().trim().to_owned();
        if image.is_empty() {
            return Err(source.invalid(&self.base.image.span(), "base.image is empty"));
        }
        pin::check(&image).map_err(|reason| source.invalid(&self.base.image.span(), reason))?;
        let mut mounts = BTreeMap::new();
        for (label, value) in &self.mounts {
            mounts.insert(label.clone(), parse_mount(source, label, value)?);
        }
        let limits = &self.runtime.resource_limits;
        Ok(Manifest {
            manifest_version: MANIFEST_VERSION,
            base: Base { image },
            system: System { packages: word_list(source, "system.packages", &self.system.packages)? },
            gui: Gui { apps: word_list(source, "gui.apps", &self.gui.apps)? },
            hardware: self.hardware,
            mounts,
            runtime: Runtime {
                backend: parse_backend(source, self.runtime.backend.as_ref())?,
                network_isolation: self.runtime.network_isolation,
                resource_limits: ResourceLimits {
                    cpu_shares: positive(source, "cpu_shares", limits.cpu_shares.as_ref())?,
                    memory_limit_mb: positive(source, "memory_limit_mb", limits.memory_limit_mb.as_ref())?,
                },
            },
            snapshot: Snapshot { ignore: ignore_list(source, &self.snapshot.ignore)? },
            directory: None,
        })
    }
}

/// Trims and sorts the words, and removes duplicates. Each must be a single valid name.
fn word_list(source: &Source<'_>, key: &str, raw: &[Spanned<String>]) -> Result<Vec<String>, ManifestError> {
    let mut words = Vec::with_capacity(raw.len());
    for item in raw {
        let word = item.get_ref().trim();
        if word.is_empty() || word.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(
                source.invalid(&item.span(), format!("{key}: {:?} is not a valid name", item.get_ref()))
            );
        }
        if !is_package_name(word) {
            let reason = format!(
                "{key}: {word:?} is not a package name: use letters, digits and + . _ : @ -, and no version"
            );
            return Err(source.invalid(&item.span(), reason));
        }
        words.push(word.to_owned());
    }
    words.sort();
    words.dedup();
    Ok(words)
}

fn parse_mount(source: &Source<'_>, label: &str, value: &Spanned<String>) -> Result<Mount, ManifestError> {
    let bad = |why: &str| {
        let reason =
            format!("mounts.{label}: {why}; write \"host:container\", for example \"./:/workspace\"");
        source.invalid(&value.span(), reason)
    };
    if label.is_empty() || label.contains(':') {
        return Err(bad("a label must not be empty or contain ':'"));
    }
    let (host, container) = value.get_ref().rsplit_once(':').ok_or_else(|| bad("there is no ':'"))?;
    let (host, container) = (host.trim(), container.trim());
    if host.is_empty() {
        return Err(bad("the host path is empty"));
    }
    if !container.starts_with('/') || container.split('/').any(|part| part == "..") {
        return Err(bad("the container path must be absolute and without '..'"));
    }
    Ok(Mount { host: host.to_owned(), container: container.to_owned() })
}

fn parse_backend(source: &Source<'_>, raw: Option<&Spanned<String>>) -> Result<Backend, ManifestError> {
    let Some(value) = raw else { return Ok(Backend::default()) };
    match value.get_ref().trim().to_lowercase().as_str() {
        "namespace" => Ok(Backend::Namespace),
        "oci" => Ok(Backend::Oci),
        "mock" => Ok(Backend::Mock),
        other => {
            let reason = format!("runtime.backend: {other:?} is not one of namespace, oci, mock");
            Err(source.invalid(&value.span(), reason))
        }
    }
}

fn positive(
    source: &Source<'_>,
    key: &str,
    raw: Option<&Spanned<i64>>,
) -> Result<Option<u64>, ManifestError> {
    let Some(value) = raw else { return Ok(None) };
    match u64::try_from(*value.get_ref()) {
        Ok(n) if n > 0 => Ok(Some(n)),
        _ => Err(source.invalid(&value.span(), format!("{key} must be above zero, not {}", value.get_ref()))),
    }
}

fn ignore_list(source: &Source<'_>, raw: &[Spanned<String>]) -> Result<Vec<String>, ManifestError> {
    let mut paths = Vec::with_capacity(raw.len());
    for item in raw {
        let text = item.get_ref().trim();
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if !text.starts_with('/') || parts.is_empty() || parts.contains(&"..") {
            let reason = format!("snapshot.ignore: {text:?} must be an absolute path below / without '..'");
            return Err(source.invalid(&item.span(), reason));
        }
        paths.push(format!("/{}", parts.join("/")));
    }
    paths.sort();
    paths.dedup();
    Ok(paths)
}

#[cfg(test)]
mod tests;
