//! Downloaded archives, in `<store>/images/<key>/`: the archive, a record of it, and the part of the next one
//! that has arrived so far.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use karapace_store::atomic;
use karapace_store::files::Files;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::download::{Answer, Http, Source, Validators};
use super::error::{at, remove_if_there};
use super::{Fetched, ImageError, Origin};

/// The record of a downloaded archive: `validators.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    url: String,
    size: u64,
    sha256: String,
    #[serde(flatten)]
    validators: Validators,
}

/// The cache directory of one address or name. It is locked, so that two downloads of the same thing do not
/// mix.
pub(super) struct Cached {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Cached {
    /// Opens the directory of `key` below `cache`, creating it if it does not exist. Waits while another
    /// command holds its lock.
    pub fn open(cache: &Path, key: &str) -> Result<Cached, ImageError> {
        let key = &blake3::hash(key.as_bytes()).to_hex()[..32];
        let dir = cache.join(key);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(cache).map_err(at("create", cache))?;
        let files = Files::at(cache).map_err(at("open", cache))?;
        files.make_dirs(&dir).map_err(at("create", &dir))?;
        let handle = files.open_dir(&dir).map_err(at("open", &dir))?;
        let lock = Flock::lock(handle, FlockArg::LockExclusive)
            .map_err(|(_, errno)| at("lock", &dir)(errno.into()))?;
        // The directory is private to its owner: files that are ours now stay ours.
        for path in files.names(&dir).map_err(at("list", &dir))?.iter().map(|name| dir.join(name)) {
            files.open_to_change(&path).map_err(at("open", &path))?;
        }
        Ok(Cached { dir, _lock: lock })
    }

    /// The archive of an earlier download, if it is intact. `what` names it in the error; `sha256` is the
    /// digest that it must have.
    pub fn offline(&self, what: &str, sha256: Option<&str>) -> Result<Fetched, ImageError> {
        match self.known()?.filter(|known| sha256.is_none_or(|sha256| sha256 == known.sha256)) {
            Some(known) => Ok(self.fetched(known)),
            None => Err(ImageError::Offline { what: what.to_owned() }),
        }
    }

    /// The file at `source`: the cached one if it has the wanted digest or the server says that it is
    /// current, else a download.
    pub fn fetch(&self, source: &Source, http: &Http<'_>) -> Result<Fetched, ImageError> {
        let known = match (self.known()?, &source.sha256) {
            // Downloaded when the limit was larger.
            (Some(known), _) if known.size > source.limit.bytes => {
                self.discard()?;
                None
            }
            (Some(known), Some(sha256)) if known.sha256 == *sha256 => return Ok(self.fetched(known)),
            (Some(known), None) if known.url == source.url => Some(known),
            _ => None,
        };
        let validators = known.as_ref().map(|known| &known.validators);
        let part = self.dir.join("archive.part");
        match (http.download(source, validators, &part), known) {
            (Ok(Answer::Unchanged), Some(known)) => Ok(self.fetched(known)),
            (Ok(Answer::Unchanged), None) => Err(ImageError::Download {
                url: source.url.clone(),
                reason: "the server says that the file has not changed, but there is no earlier download"
                    .to_owned(),
            }),
            (Ok(Answer::Here(validators)), _) => self.keep(source, validators, &part),
            (Err(ImageError::Download { url, reason }), Some(_)) => Err(ImageError::Download {
                url,
                reason: format!("{reason} (an earlier download is kept: use it with --offline)"),
            }),
            (Err(error), _) => Err(error),
        }
    }

    /// Removes the archive and its record.
    pub fn discard(&self) -> Result<(), ImageError> {
        remove_if_there(&self.known_path())?;
        remove_if_there(&self.archive())
    }

    /// Replaces the archive with a complete download, if its digest is the expected one.
    fn keep(&self, source: &Source, validators: Validators, part: &Path) -> Result<Fetched, ImageError> {
        let (sha256, size) = sha256_of(part).map_err(at("read", part))?;
        if let Some(expected) = source.sha256.as_ref().filter(|expected| **expected != sha256) {
            remove_if_there(part)?;
            return Err(ImageError::Checksum {
                url: source.url.clone(),
                expected: expected.clone(),
                found: sha256,
            });
        }
        // The record of the old archive must never stand next to the new archive.
        remove_if_there(&self.known_path())?;
        fs::rename(part, self.archive()).map_err(at("rename", part))?;
        let known = Known { url: source.url.clone(), size, sha256, validators };
        let path = self.known_path();
        serde_json::to_vec_pretty(&known)
            .map_err(io::Error::from)
            .and_then(|bytes| atomic::write_file(&path, &bytes).map_err(io::Error::other))
            .map_err(at("write", &path))?;
        Ok(self.fetched(known))
    }

    /// The record of the archive, if the archive still has the bytes that were downloaded.
    fn known(&self) -> Result<Option<Known>, ImageError> {
        let Ok(bytes) = fs::read(self.known_path()) else { return Ok(None) };
        let Ok(known) = serde_json::from_slice::<Known>(&bytes) else { return Ok(None) };
        let archive = self.archive();
        match fs::metadata(&archive) {
            Ok(there) if there.len() == known.size => {}
            _ => return Ok(None),
        }
        let (sha256, _) = sha256_of(&archive).map_err(at("read", &archive))?;
        if sha256 == known.sha256 {
            return Ok(Some(known));
        }
        tracing::warn!("{} is damaged and will not be used", archive.display());
        Ok(None)
    }

    fn fetched(&self, known: Known) -> Fetched {
        let origin = Origin { url: known.url, sha256: known.sha256 };
        Fetched { path: self.archive(), origin: Some(origin) }
    }

    fn archive(&self) -> PathBuf {
        self.dir.join("archive")
    }

    fn known_path(&self) -> PathBuf {
        self.dir.join("validators.json")
    }
}

/// The sha256 of a file, in hex, and its length in bytes.
fn sha256_of(path: &Path) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                hash.update(&buffer[..n]);
                size += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok((hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), size))
}
