//! Where a base image comes from: the forms of `base.image` (docs/MANIFEST.md).
//!
//! - `mod`: what a reference means;
//! - `streams`: names, looked up in an image server's lists;
//! - `cache`: what was downloaded, and whether it is still what it was;
//! - `download`: one file over HTTP, taken up where it broke off, and no more of it than is wanted;
//! - `pipe`: standard input and FIFOs, for imports alone;
//! - `transfer`: one request over HTTP, which does not keep anybody waiting.

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

/// Suffixes that make a bare word a path rather than an image name.
const ARCHIVE_SUFFIXES: [&str; 7] = [".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst", ".tzst"];

/// A parsed image reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// An archive, a directory or an image on this machine.
    Local(PathBuf),
    /// An archive behind http or https.
    Remote {
        /// The address.
        url: String,
        /// What its bytes must have, where `#sha256=…` follows the address: 64 hex digits in lower case.
        sha256: Option<String>,
    },
    /// An image that the image server has under this name.
    Named(String),
}

/// An image that is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The archive, directory or layout.
    pub path: PathBuf,
    /// Where it was downloaded from; `None` for what was here already.
    pub origin: Option<Origin>,
}

/// One downloaded file: where it is to be had, and what its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The address.
    pub url: String,
    /// sha256 of the bytes, 64 hex digits in lower case.
    pub sha256: String,
}

impl Image {
    /// Reads `base.image`; relative paths are taken from `base_dir`. Touches no file.
    ///
    /// # Errors
    /// [`ImageError::Unsupported`] for what is neither a path nor an address nor can be a name.
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
            return Err(unsupported("an address of an unknown kind"));
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
            Err(unsupported("neither an address, nor a path (write ./ before it), nor a name"))
        }
    }

    /// Makes the image available as a local path: a remote one is downloaded below `cache`, or taken from
    /// there when it is what the server has, or unasked when `offline`.
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

/// Undoes `%41`; `None` when a percent sign is not followed by two hex digits.
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
