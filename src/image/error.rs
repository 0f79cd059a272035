//! Why an image is not available.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use karapace_store::error::hint;

/// An image that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// An address of an unsupported kind, such as that of a registry.
    #[error(
        "base image {image:?} is {what}, which is not supported; give a name (debian/12), or the path or file:// or http(s):// \
         URL of a root filesystem (archive, directory, OCI layout, or the output of `docker save` or `skopeo copy … dir:`)"
    )]
    Unsupported {
        /// As written.
        image: String,
        /// What kind of reference it is.
        what: &'static str,
    },
    /// The text after `#` is not a checksum.
    #[error("base image {image:?}: only sha256= and 64 hex digits may follow #")]
    BadChecksum {
        /// As written.
        image: String,
    },
    /// An invalid file:// address.
    #[error("base image {image:?}: write a file:// URL as file:///absolute/path")]
    BadFileAddress {
        /// As written.
        image: String,
    },
    /// The file does not exist or cannot be opened.
    #[error("base image {}: {source}", path.display())]
    Path {
        /// The file.
        path: PathBuf,
        /// The error from the system.
        source: io::Error,
    },
    /// No archive can be read from standard input.
    #[error("cannot import standard input: {reason}")]
    Pipe {
        /// Why, and what to do.
        reason: String,
    },
    /// `--offline` was given, and the cache has no such image.
    #[error("{what} has not been downloaded yet, and --offline was given")]
    Offline {
        /// The address or name.
        what: String,
    },
    /// The download failed.
    #[error("cannot download {url}: {reason}")]
    Download {
        /// The address.
        url: String,
        /// What went wrong and, if anything helps, what to do.
        reason: String,
    },
    /// The bytes do not have the expected digest.
    #[error(
        "{url} has the wrong content: its sha256 is {found}, not {expected}; it was changed, or damaged in transit; nothing of \
         it was kept"
    )]
    Checksum {
        /// The address.
        url: String,
        /// The digest in the index or the manifest.
        expected: String,
        /// The digest of the received bytes.
        found: String,
    },
    /// The image server's lists do not have the image, or cannot be read.
    #[error("base image {name:?}: {reason}")]
    Index {
        /// As written.
        name: String,
        /// What is wrong, and which images the server has instead.
        reason: String,
    },
    /// An operation on the download cache failed.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
    Cache {
        /// The verb, as in "cannot VERB PATH".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error from the system.
        source: io::Error,
    },
}

/// Builds the error of an operation on `path`; `action` is its verb.
pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Cache { action, path, source }
}

/// Removes a file of the cache. It is no error if it does not exist.
pub(super) fn remove_if_there(path: &Path) -> Result<(), ImageError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(e)),
        _ => Ok(()),
    }
}
