//! Downloaded archives, `<store>/images/<key>/`: the archive, what is known of it, and what of the next one
//! has come so far.

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

/// What is known of a downloaded archive: `validators.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    url: String,
    size: u64,
    sha256: String,
    #[serde(flatten)]
    validators: Validators,
}

/// The cache directory of one address or name, locked: two downloads of one thing do not mix.
pub(super) struct Cached {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Cached {
    /// Opens the directory of `key` below `cache`, making it if it is not there; waits while another command
    /// has it.
    pub fn open(cache: &Path, key: &str) -> Result<Cached, ImageError> {
        let key = &blake3::hash(key.as_bytes()).to_hex()[..32];
        let dir = cache.join(key);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(cache).map_err(at("create", cache))?;
        let files = Files::at(cache).map_err(at("open", cache))?;
        files.make_dirs(&dir).map_err(at("create", &dir))?;
        let handle = files.open_dir(&dir).map_err(at("open", &dir))?;
        let lock = Flock::lock(handle, FlockArg::LockExclusive)
            .map_err(|(_, errno)| at("lock", &dir)(errno.into()))?;
        // Nobody else gets into the directory: what is ours now stays ours.
        for path in files.names(&dir).map_err(at("list", &dir))?.iter().map(|name| dir.join(name)) {
            files.open_to_change(&path).map_err(at("open", &path))?;
        }
        Ok(Cached { dir, _lock: lock })
    }

    /// What was downloaded before, if it is whole. `what` is for the message; `sha256` is what it must be.
    pub fn offline(&self, what: &str, sha256: Option<&str>) -> Result<Fetched, ImageError> {
        match self.known()?.filter(|known| sha256.is_none_or(|sha256| sha256 == known.sha256)) {
            Some(known) => Ok(self.fetched(known)),
            None => Err(ImageError::Offline { what: what.to_owned() }),
        }
    }

    /// The file behind `source`: the one that is here if its bytes are those wanted or the server says that
    /// it has no other, else downloaded.
    pub fn fetch(&self, source: &Source, http: &Http<'_>) -> Result<Fetched, ImageError> {
        let known = match (self.known()?, &source.sha256) {
            // Of another time, which took more.
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
                reason: "the server says that nothing has changed, and nothing is here".to_owned(),
            }),
            (Ok(Answer::Here(validators)), _) => self.keep(source, validators, &part),
            (Err(ImageError::Download { url, reason }), Some(_)) => Err(ImageError::Download {
                url,
                reason: format!("{reason} (an earlier download is kept: use it with --offline)"),
            }),
            (Err(error), _) => Err(error),
        }
    }

    /// Removes the archive and what is known of it.
    pub fn discard(&self) -> Result<(), ImageError> {
        remove_if_there(&self.known_path())?;
        remove_if_there(&self.archive())
    }

    /// Puts a whole download in the place of the archive, if it is what it should be.
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
        // What is known of the old archive must never stand beside the new one.
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

    /// What is known of the archive, when it is there with the bytes that were downloaded.
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
        tracing::warn!("{} is damaged and not used", archive.display());
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

/// sha256 of a file in hex, and its length.
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
