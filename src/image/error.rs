//! Why an image cannot be had.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use karapace_store::error::hint;

/// An image that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// An address that this version does not read, such as one of a registry.
    #[error(
        "base image {image:?} is {what}, which this version does not support; give a name (debian/12), or the path, file:// or http(s):// address of a root filesystem (archive, directory, OCI layout, or what `docker save` or `skopeo copy … dir:` writes)"
    )]
    Unsupported {
        /// As written.
        image: String,
        /// What it is.
        what: &'static str,
    },
    /// What follows the address is not a checksum.
    #[error("base image {image:?}: after # only sha256= and 64 hex digits may stand")]
    BadChecksum {
        /// As written.
        image: String,
    },
    /// A file address that is not one.
    #[error("base image {image:?}: a file:// address is file:///absolute/path")]
    BadFileAddress {
        /// As written.
        image: String,
    },
    /// There is no such file.
    #[error("base image {}: {source}", path.display())]
    Path {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Standard input gives no archive.
    #[error("cannot import standard input: {reason}")]
    Pipe {
        /// Why, and what to do.
        reason: String,
    },
    /// `--offline` and nothing in the cache.
    #[error("{what} has not been downloaded yet, and --offline was given")]
    Offline {
        /// The address or name.
        what: String,
    },
    /// The download failed.
    #[error("downloading {url}: {reason}")]
    Download {
        /// The address.
        url: String,
        /// What went wrong, and what can be done.
        reason: String,
    },
    /// The bytes are not those that were promised.
    #[error(
        "downloading {url}: the bytes have sha256 {found}, not {expected}: the file was changed or damaged on its way; nothing of it was kept"
    )]
    Checksum {
        /// The address.
        url: String,
        /// What the index or the manifest says.
        expected: String,
        /// What came.
        found: String,
    },
    /// The image server's lists do not have the wanted image, or cannot be read.
    #[error("base image {name:?}: {reason}")]
    Index {
        /// As written.
        name: String,
        /// What is wrong, and what there is instead.
        reason: String,
    },
    /// The cache of downloads failed.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
    Cache {
        /// The verb, as in "cannot VERB PATH".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Says what was done to `path` when it failed.
pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Cache { action, path, source }
}

/// Removes a file of the cache, which may be gone already.
pub(super) fn remove_if_there(path: &Path) -> Result<(), ImageError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(e)),
        _ => Ok(()),
    }
}
