//! Resolves a base image: the forms of `base.image` (docs/MANIFEST.md).
//!
//! - `mod`: parses references;
//! - `streams`: looks names up in an image server's lists;
//! - `cache`: keeps downloads, and checks that they are intact;
//! - `download`: downloads one file over HTTP, resuming it if it was interrupted, up to a size limit;
//! - `pipe`: reads standard input and FIFOs, for imports only;
//! - `transfer`: makes one HTTP request with time limits.

mod cache;
mod download;
mod error;
mod pipe;
mod streams;
#[cfg(test)]
mod tests;
mod transfer;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use karapace_store::input;

use crate::report::Report;
use cache::Cached;
use download::{Http, Limit, Source};
use transfer::Patience;

pub use error::ImageError;
pub use pipe::Pipe;

/// Suffixes that mark a bare word as a path rather than the name of an image.
const ARCHIVE_SUFFIXES: [&str; 7] = [".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst", ".tzst"];

/// A parsed image reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// A local archive, directory or image.
    Local(PathBuf),
    /// An archive at an http or https address.
    Remote {
        /// The address.
        url: String,
        /// The digest of its bytes, if `#sha256=…` follows the address: 64 hex digits in lower case.
        sha256: Option<String>,
    },
    /// The name of an image on the image server.
    Named(String),
}

/// An image that is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The archive, directory or layout.
    pub path: PathBuf,
    /// Where it was downloaded from; `None` for a local image.
    pub origin: Option<Origin>,
}

/// A downloaded file: its address and its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The address.
    pub url: String,
    /// sha256 of the bytes, 64 hex digits in lower case.
    pub sha256: String,
}

impl Image {
    /// Parses `base.image`; relative paths are relative to `base_dir`. Accesses no file.
    ///
    /// # Errors
    /// [`ImageError::Unsupported`] if it is neither a path nor a supported address nor a possible name;
    /// [`ImageError::BadFileAddress`], [`ImageError::BadChecksum`].
    pub fn parse(image: &str, base_dir: &Path) -> Result<Image, ImageError> {
        let unsupported = |what| ImageError::Unsupported { image: image.to_owned(), what };
        if image.starts_with("http://") || image.starts_with("https://") {
            return remote(image);
        }
        if let Some(path) = image.strip_prefix("file://") {
            let path = percent_decode(path).filter(|p| p.starts_with(b"/"));
            let path = path.ok_or_else(|| ImageError::BadFileAddress { image: image.to_owned() })?;
            return Ok(Image::Local(PathBuf::from(OsString::from_vec(path))));
        }
        if image.starts_with("oci://") {
            return Err(unsupported("an image in an OCI registry"));
        }
        if image == pipe::STDIN {
            return Err(unsupported("standard input, which only `karapace import` reads"));
        }
        if image.contains("://") {
            return Err(unsupported("a URL of an unknown kind"));
        }
        let is_path = image.starts_with('/')
            || image == "."
            || image == ".."
            || image.starts_with("./")
            || image.starts_with("../")
            || ARCHIVE_SUFFIXES.iter().any(|suffix| image.ends_with(suffix));
        if is_path {
            Ok(Image::Local(base_dir.join(image)))
        } else if streams::is_name(image) {
            Ok(Image::Named(image.to_owned()))
        } else {
            Err(unsupported("not a URL, a path (put ./ before it) or a name"))
        }
    }

    /// Makes the image available as a local path. A remote image is downloaded below `cache`, or taken from
    /// there if it has the pinned digest or the server says that it is current. With `offline` the server is
    /// not asked.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn fetch(&self, cache: &Path, offline: bool, report: &dyn Report) -> Result<Fetched, ImageError> {
        let http = Http::new(report, Patience::default());
        match self {
            Image::Local(path) => {
                input::open(path).map_err(|source| ImageError::Path { path: path.clone(), source })?;
                Ok(Fetched { path: path.clone(), origin: None })
            }
            Image::Remote { url, sha256 } => {
                let (url, sha256) = (url.clone(), sha256.clone());
                let source = Source { url, sha256, size: None, limit: Limit::IMAGE };
                let cached = Cached::open(cache, &source.url)?;
                if offline {
                    return cached.offline(&source.url, source.sha256.as_deref());
                }
                cached.fetch(&source, &http)
            }
            Image::Named(name) => {
                let server = streams::server();
                let cached = Cached::open(cache, &format!("{server} {name}"))?;
                if offline {
                    return cached.offline(name, None);
                }
                cached.fetch(&streams::find(&server, name, cache, &http)?, &http)
            }
        }
    }
}

fn remote(image: &str) -> Result<Image, ImageError> {
    let Some((url, fragment)) = image.split_once('#') else {
        return Ok(Image::Remote { url: image.to_owned(), sha256: None });
    };
    let digits = fragment.strip_prefix("sha256=").filter(|d| is_sha256(d));
    let digits = digits.ok_or_else(|| ImageError::BadChecksum { image: image.to_owned() })?;
    Ok(Image::Remote { url: url.to_owned(), sha256: Some(digits.to_ascii_lowercase()) })
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Decodes percent-encoding; `None` if a percent sign is not followed by two hex digits.
fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
            out.push((digit()? * 16 + digit()?) as u8);
        } else {
            out.push(byte);
        }
    }
    Some(out)
}
