//! One file over HTTP, into a file beside the cache's own. What broke off is taken up where it ended (RFC 9110 §14: Range,
//! If-Range), in this run or a later one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use karapace_store::atomic;
use serde::{Deserialize, Serialize};
use ureq::Body;
use ureq::http::Response;

use super::ImageError;
use super::cache::remove_if_there;
use super::error::at;
use crate::engine::Report;

/// How long a server may be silent before a download is given up.
const SILENCE: Duration = Duration::from_secs(60);

/// How often in a row a connection may break off with nothing received.
const FUTILE: u32 = 3;

/// The pause before a connection is tried again that gave nothing.
const PAUSE: Duration = Duration::from_secs(1);

/// What is wanted.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// The address.
    pub url: String,
    /// What the bytes must be, where it is known.
    pub sha256: Option<String>,
    /// How many they are, where it is known and the server does not say. For the progress bar only.
    pub size: Option<u64>,
}

/// What a server calls one version of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Validators {
    etag: Option<String>,
    last_modified: Option<String>,
}

impl Validators {
    fn of(response: &Response<Body>) -> Validators {
        Validators { etag: header(response, "etag"), last_modified: header(response, "last-modified") }
    }

    /// What a range may be asked for against: a weak etag does not promise equal bytes.
    fn strong(&self) -> Option<&str> {
        let etag = self.etag.as_deref().filter(|etag| !etag.starts_with("W/"));
        etag.or(self.last_modified.as_deref())
    }
}

/// How a download went.
pub(super) enum Answer {
    /// The server has what the validators name.
    Unchanged,
    /// The whole file came, and is on the disk.
    Here(Validators),
}

/// How one request went.
enum Outcome {
    Ended(Answer),
    /// The connection ended early; `progress` says whether anything came.
    Broken {
        progress: bool,
        reason: String,
    },
    /// What there was of the file is of no use and has been removed.
    StartOver,
}

/// Downloads, and tells how far they are.
pub(super) struct Http<'a> {
    agent: ureq::Agent,
    report: &'a dyn Report,
}

/// The first part of a file that did not come whole, `archive.part`, and what it is a part of, `archive.part.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Begun {
    url: String,
    validators: Validators,
    /// Bytes that are there. Not recorded: the file says it.
    #[serde(skip)]
    length: u64,
}

impl<'a> Http<'a> {
    pub fn new(report: &'a dyn Report) -> Http<'a> {
        let agent = ureq::Agent::config_builder()
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .http_status_as_error(false)
            .user_agent(concat!("karapace/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .build()
            .new_agent();
        Http { agent, report }
    }

    /// Downloads into `part`, unless the server still has what `known` names. What an earlier download left in `part` is
    /// used where the server still has the file that it is of.
    pub fn download(
        &self,
        source: &Source,
        known: Option<&Validators>,
        part: &Path,
    ) -> Result<Answer, ImageError> {
        let mut futile = 0;
        loop {
            match self.attempt(source, known, part)? {
                Outcome::Ended(answer) => return Ok(answer),
                Outcome::StartOver => {}
                Outcome::Broken { progress: true, reason } => {
                    futile = 0;
                    tracing::info!("{}: {reason}; taken up again", source.url);
                }
                Outcome::Broken { progress: false, reason } if futile < FUTILE => {
                    futile += 1;
                    tracing::info!("{}: {reason}; tried again", source.url);
                    std::thread::sleep(PAUSE);
                }
                Outcome::Broken { reason, .. } => {
                    let kept = fs::metadata(part).map_or(0, |m| m.len());
                    let reason = format!("{reason}; {kept} bytes are kept: the next try goes on from there");
                    return Err(failed(source, reason));
                }
            }
        }
    }

    fn attempt(
        &self,
        source: &Source,
        known: Option<&Validators>,
        part: &Path,
    ) -> Result<Outcome, ImageError> {
        let begun = Begun::load(source, part);
        let mut request = self.agent.get(&source.url);
        if let Some(etag) = known.and_then(|k| k.etag.as_deref()) {
            request = request.header("If-None-Match", etag);
        }
        if let Some(date) = known.and_then(|k| k.last_modified.as_deref()) {
            request = request.header("If-Modified-Since", date);
        }
        if let Some(begun) = &begun {
            request = request.header("Range", format!("bytes={}-", begun.length));
            if let Some(version) = begun.validators.strong() {
                request = request.header("If-Range", version);
            }
        }
        let response = request.call().map_err(|e| failed(source, e.to_string()))?;
        match (response.status().as_u16(), begun) {
            (304, begun) if known.is_some() => {
                if begun.is_some() {
                    Begun::discard(part)?;
                }
                Ok(Outcome::Ended(Answer::Unchanged))
            }
            (200, _) => {
                let begun = Begun::start(source, &response, part)?;
                self.receive(source, response, begun, part)
            }
            (206, Some(begun)) if first_byte(&response) == Some(begun.length) => {
                self.receive(source, response, begun, part)
            }
            (206 | 416, Some(_)) => {
                Begun::discard(part)?;
                Ok(Outcome::StartOver)
            }
            (status, _) => Err(failed(source, format!("the server answered {status}"))),
        }
    }

    fn receive(
        &self,
        source: &Source,
        response: Response<Body>,
        begun: Begun,
        part: &Path,
    ) -> Result<Outcome, ImageError> {
        let length = response.body().content_length();
        let total = length.map(|rest| begun.length + rest).or(source.size);
        self.report.begin("downloading", total);
        self.report.add(begun.length, 0);
        let received = self.append(response.into_body().into_reader(), part);
        self.report.end();
        let (received, broken) = received?;
        let progress = received > 0;
        match (broken, length) {
            (Some(reason), _) => Ok(Outcome::Broken { progress, reason }),
            (None, Some(length)) if length != received => {
                let reason = format!("the connection ended after {} bytes", begun.length + received);
                Ok(Outcome::Broken { progress, reason })
            }
            (None, _) => {
                File::open(part).and_then(|file| file.sync_all()).map_err(at("sync", part))?;
                remove_if_there(&record_of(part))?;
                Ok(Outcome::Ended(Answer::Here(begun.validators)))
            }
        }
    }

    /// Appends what the server sends; gives its length, and why it ended before its end.
    fn append(&self, mut from: impl Read, part: &Path) -> Result<(u64, Option<String>), ImageError> {
        let mut file = OpenOptions::new().append(true).open(part).map_err(at("open", part))?;
        let mut buffer = vec![0; 256 << 10];
        let mut received = 0;
        loop {
            let n = match from.read(&mut buffer) {
                Ok(0) => return Ok((received, None)),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Ok((received, Some(format!("the connection broke off: {e}")))),
            };
            file.write_all(&buffer[..n]).map_err(at("write", part))?;
            received += n as u64;
            self.report.add(n as u64, 0);
        }
    }
}

impl Begun {
    /// What there is of `source` already, where it can be gone on with: the server tells whether it still has that version, or
    /// the checksum will.
    fn load(source: &Source, part: &Path) -> Option<Begun> {
        let record = fs::read(record_of(part)).ok()?;
        let begun: Begun = serde_json::from_slice(&record).ok()?;
        let length = fs::metadata(part).ok()?.len();
        let usable = begun.url == source.url
            && length > 0
            && (begun.validators.strong().is_some() || source.sha256.is_some());
        usable.then_some(Begun { length, ..begun })
    }

    /// Begins anew.
    fn start(source: &Source, response: &Response<Body>, part: &Path) -> Result<Begun, ImageError> {
        Begun::discard(part)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(part).map_err(at("create", part))?;
        let begun = Begun { url: source.url.clone(), validators: Validators::of(response), length: 0 };
        let record = record_of(part);
        serde_json::to_vec(&begun)
            .map_err(io::Error::from)
            .and_then(|bytes| atomic::write_file(&record, &bytes).map_err(io::Error::other))
            .map_err(at("write", &record))?;
        Ok(begun)
    }

    fn discard(part: &Path) -> Result<(), ImageError> {
        // The record first: bytes without one are never gone on with.
        remove_if_there(&record_of(part))?;
        remove_if_there(part)
    }
}

fn record_of(part: &Path) -> PathBuf {
    part.with_extension("part.json")
}

fn header(response: &Response<Body>, name: &str) -> Option<String> {
    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// N of `Content-Range: bytes N-M/TOTAL`.
fn first_byte(response: &Response<Body>) -> Option<u64> {
    let range = header(response, "content-range")?;
    let (first, _) = range.trim().strip_prefix("bytes")?.trim_start().split_once('-')?;
    first.parse().ok()
}

fn failed(source: &Source, reason: String) -> ImageError {
    ImageError::Download { url: source.url.clone(), reason }
}
