//! Where a base image comes from: the forms of `base.image` (SPEC §3.1) that this version knows, and downloads.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use karapace_store::atomic;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::engine::Report;

/// How long a server may be silent before a download is given up.
const SILENCE: Duration = Duration::from_secs(60);

/// Suffixes that make a bare word a path rather than an image name.
const ARCHIVE_SUFFIXES: [&str; 7] = [".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst", ".tzst"];

/// An image that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A form that SPEC §3.1 names and this version does not have.
    #[error(
        "base image {image:?} is {what}, which this version does not support yet; give the path, file:// or http(s):// address of a root filesystem (archive, directory, OCI layout, or what `docker save` writes)"
    )]
    Unsupported {
        /// As written.
        image: String,
        /// What it is.
        what: &'static str,
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
    /// `--offline` and nothing in the cache.
    #[error("{url} has not been downloaded yet, and --offline was given")]
    Offline {
        /// The address.
        url: String,
    },
    /// The download failed.
    #[error("downloading {url}: {reason}")]
    Download {
        /// The address.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// The cache of downloads failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Cache {
        /// The verb, as in "cannot VERB PATH".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A parsed image reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// An archive, a directory or an image on this machine.
    Local(PathBuf),
    /// An archive behind http or https.
    Remote(String),
}

impl Image {
    /// Reads `base.image`; relative paths are taken from `base_dir`. Touches no file.
    ///
    /// # Errors
    /// [`ImageError::Unsupported`] for the forms that come later, so that an image name is never taken for a path.
    pub fn parse(image: &str, base_dir: &Path) -> Result<Image, ImageError> {
        let unsupported = |what| ImageError::Unsupported { image: image.to_owned(), what };
        if image.starts_with("http://") || image.starts_with("https://") {
            return Ok(Image::Remote(image.to_owned()));
        }
        if let Some(path) = image.strip_prefix("file://") {
            let path = percent_decode(path).filter(|p| p.starts_with(b"/"));
            let path = path.ok_or_else(|| ImageError::BadFileAddress { image: image.to_owned() })?;
            return Ok(Image::Local(PathBuf::from(
                <std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(path),
            )));
        }
        if image.starts_with("oci://") {
            return Err(unsupported("an image in an OCI registry"));
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
        } else {
            Err(unsupported("the name of a published image"))
        }
    }

    /// Makes the image available as a local path: a remote one is downloaded below `cache`, or taken from there
    /// when the server says that it has not changed, or unasked when `offline`.
    pub fn fetch(&self, cache: &Path, offline: bool, report: &dyn Report) -> Result<PathBuf, ImageError> {
        match self {
            Image::Local(path) => {
                fs::metadata(path).map_err(|source| ImageError::Path { path: path.clone(), source })?;
                Ok(path.clone())
            }
            Image::Remote(url) => Cached::open(cache, url)?.fetch(offline, report),
        }
    }
}

/// What is known of a downloaded archive: enough to ask the server whether it has changed.
#[derive(Debug, Serialize, Deserialize)]
struct Validators {
    url: String,
    size: u64,
    etag: Option<String>,
    last_modified: Option<String>,
}

/// The cache directory of one address, locked: two downloads of one address do not mix.
struct Cached<'a> {
    url: &'a str,
    dir: PathBuf,
    _lock: Flock<File>,
}

impl<'a> Cached<'a> {
    fn open(cache: &Path, url: &'a str) -> Result<Cached<'a>, ImageError> {
        let key = &blake3::hash(url.as_bytes()).to_hex()[..32];
        let dir = cache.join(key);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(at("create", &dir))?;
        let handle = File::open(&dir).map_err(at("open", &dir))?;
        let lock = Flock::lock(handle, FlockArg::LockExclusive)
            .map_err(|(_, errno)| at("lock", &dir)(errno.into()))?;
        Ok(Cached { url, dir, _lock: lock })
    }

    fn archive(&self) -> PathBuf {
        self.dir.join("archive")
    }

    fn validators_path(&self) -> PathBuf {
        self.dir.join("validators.json")
    }

    /// The validators, when the archive that they speak of is there whole.
    fn validators(&self) -> Option<Validators> {
        let bytes = fs::read(self.validators_path()).ok()?;
        let known: Validators = serde_json::from_slice(&bytes).ok()?;
        let size = fs::metadata(self.archive()).ok()?.len();
        (known.url == self.url && known.size == size).then_some(known)
    }

    fn fetch(&self, offline: bool, report: &dyn Report) -> Result<PathBuf, ImageError> {
        let known = self.validators();
        if offline {
            return match known {
                Some(_) => Ok(self.archive()),
                None => Err(ImageError::Offline { url: self.url.to_owned() }),
            };
        }
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .http_status_as_error(false)
            .user_agent(concat!("karapace/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .build()
            .new_agent();
        let mut request = agent.get(self.url);
        if let Some(etag) = known.as_ref().and_then(|k| k.etag.as_deref()) {
            request = request.header("If-None-Match", etag);
        }
        if let Some(date) = known.as_ref().and_then(|k| k.last_modified.as_deref()) {
            request = request.header("If-Modified-Since", date);
        }
        let hint = if known.is_some() { " (an earlier download is kept: use it with --offline)" } else { "" };
        let response = request.call().map_err(|e| self.failed(format!("{e}{hint}")))?;
        match response.status().as_u16() {
            304 if known.is_some() => Ok(self.archive()),
            200 => {
                report.begin("downloading", response.body().content_length());
                let downloaded = self.download(response, report);
                report.end();
                downloaded
            }
            status => Err(self.failed(format!("the server answered {status}{hint}"))),
        }
    }

    fn download(
        &self,
        response: ureq::http::Response<ureq::Body>,
        report: &dyn Report,
    ) -> Result<PathBuf, ImageError> {
        let header =
            |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (etag, last_modified) = (header("etag"), header("last-modified"));
        let length = response.body().content_length();
        let part = self.dir.join("archive.part");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)
            .map_err(at("create", &part))?;
        let size = self.copy(&mut response.into_body().into_reader(), &mut file, &part, report)?;
        if length.is_some_and(|length| length != size) {
            return Err(self.failed(format!("the connection ended after {size} bytes")));
        }
        file.sync_all().map_err(at("sync", &part))?;
        // Validators of the old archive must never stand beside the new one.
        remove_if_there(&self.validators_path())?;
        fs::rename(&part, self.archive()).map_err(at("rename", &part))?;
        let validators = Validators { url: self.url.to_owned(), size, etag, last_modified };
        let bytes = serde_json::to_vec_pretty(&validators).map_err(|e| self.failed(e.to_string()))?;
        atomic::write_file(&self.validators_path(), &bytes).map_err(|e| self.failed(e.to_string()))?;
        Ok(self.archive())
    }

    fn copy(
        &self,
        from: &mut impl Read,
        to: &mut File,
        part: &Path,
        report: &dyn Report,
    ) -> Result<u64, ImageError> {
        let mut buffer = vec![0; 256 << 10];
        let mut size = 0;
        loop {
            let n = match from.read(&mut buffer) {
                Ok(0) => return Ok(size),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.failed(format!("after {size} bytes: {e}"))),
            };
            to.write_all(&buffer[..n]).map_err(at("write", part))?;
            size += n as u64;
            report.add(n as u64, 0);
        }
    }

    fn failed(&self, reason: String) -> ImageError {
        ImageError::Download { url: self.url.to_owned(), reason }
    }
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Cache { action, path, source }
}

fn remove_if_there(path: &Path) -> Result<(), ImageError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(e)),
        _ => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Silent;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    #[test]
    fn forms() {
        let base = Path::new("/m");
        let local = |p: &str| Some(Image::Local(PathBuf::from(p)));
        let table = [
            ("/a/rootfs", local("/a/rootfs")),
            ("./rootfs", local("/m/./rootfs")),
            ("../x", local("/m/../x")),
            ("rootfs.tar.zst", local("/m/rootfs.tar.zst")),
            ("dir/rootfs.tar", local("/m/dir/rootfs.tar")),
            ("file:///a/b%20c", local("/a/b c")),
            ("https://h/x.tar", Some(Image::Remote("https://h/x.tar".into()))),
            ("http://h/x", Some(Image::Remote("http://h/x".into()))),
            ("debian/12", None),
            ("rolling", None),
            ("oci://docker.io/library/debian:12", None),
            ("ftp://h/x.tar", None),
            ("file://host/x", None),
            ("file:///a%2", None),
        ];
        for (text, expected) in table {
            assert_eq!(Image::parse(text, base).ok(), expected, "{text}");
        }
        let message = Image::parse("debian/12", base).unwrap_err().to_string();
        assert!(message.contains("does not support yet"), "{message}");
    }

    /// Answers each request in turn and returns the requests' heads.
    fn serve(answers: Vec<String>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/image.tar", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let mut heads = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = String::new();
                for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                    let line = line.unwrap();
                    if line.is_empty() {
                        break;
                    }
                    head.push_str(&line.to_lowercase());
                    head.push('\n');
                }
                heads.push(head);
                stream.write_all(answer.as_bytes()).unwrap();
            }
            heads
        });
        (url, server)
    }

    #[test]
    fn downloads_once_and_revalidates() {
        let body = "HTTP/1.1 200 OK\r\nETag: \"v1\"\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
        let unchanged = "HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n";
        let broken = "HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let (url, server) = serve(vec![body.into(), unchanged.into(), broken.into()]);
        let cache = tempfile::tempdir().unwrap();
        let image = Image::parse(&url, Path::new("/")).unwrap();
        assert!(matches!(image.fetch(cache.path(), true, &Silent), Err(ImageError::Offline { .. })));
        let path = image.fetch(cache.path(), false, &Silent).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello");
        assert_eq!(image.fetch(cache.path(), false, &Silent).unwrap(), path);
        let error = image.fetch(cache.path(), false, &Silent).unwrap_err().to_string();
        assert!(error.contains("500") && error.contains("--offline"), "{error}");
        assert_eq!(image.fetch(cache.path(), true, &Silent).unwrap(), path);
        let heads = server.join().unwrap();
        assert!(
            !heads[0].contains("if-none-match") && heads[1].contains("if-none-match: \"v1\""),
            "{heads:?}"
        );
    }

    #[test]
    fn a_short_download_is_not_kept() {
        let short = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhello";
        let (url, server) = serve(vec![short.into()]);
        let cache = tempfile::tempdir().unwrap();
        let image = Image::parse(&url, Path::new("/")).unwrap();
        assert!(matches!(image.fetch(cache.path(), false, &Silent), Err(ImageError::Download { .. })));
        assert!(matches!(image.fetch(cache.path(), true, &Silent), Err(ImageError::Offline { .. })));
        server.join().unwrap();
    }
}
