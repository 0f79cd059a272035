//! Downloads one file over HTTP, into a file next to the cached one. An interrupted download is resumed where
//! it stopped (RFC 9110 §14: Range, If-Range), in this run or a later one. What is refused, because it is too
//! large or not the file itself, is removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use karapace_store::atomic;
use serde::{Deserialize, Serialize};

use super::ImageError;
use super::error::{at, remove_if_there};
use super::transfer::{Pace, Patience, Reply, get};
use crate::report::Report;

/// How often in a row a connection may break without having received more than the longest one before it.
const FUTILE: u32 = 3;

/// The pause before a retry after a connection that made no progress.
const PAUSE: Duration = Duration::from_secs(1);

/// What to download.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// The address.
    pub url: String,
    /// The digest that the bytes must have, if it is known.
    pub sha256: Option<String>,
    /// The length in bytes, if it is known; used when the server does not state it. For the progress bar
    /// only.
    pub size: Option<u64>,
    /// The most to accept, whatever the server announces and sends.
    pub limit: Limit,
}

/// The largest size of a file in bytes, and the reason for it, in words that follow the number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub bytes: u64,
    pub why: &'static str,
}

impl Limit {
    /// For an image about which nothing else is known.
    pub const IMAGE: Limit = Limit { bytes: 64 << 30, why: "the limit for an image" };

    fn refusal(&self) -> String {
        format!("it has more than {} bytes, {}; nothing of it was kept", self.bytes, self.why)
    }
}

/// How a server identifies a version of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Validators {
    etag: Option<String>,
    last_modified: Option<String>,
}

impl Validators {
    fn of(reply: &Reply) -> Validators {
        let header = |name| reply.header(name).map(str::to_owned);
        Validators { etag: header("etag"), last_modified: header("last-modified") }
    }

    /// The validator for a range request: a weak ETag does not promise equal bytes.
    fn strong(&self) -> Option<&str> {
        let etag = self.etag.as_deref().filter(|etag| !etag.starts_with("W/"));
        etag.or(self.last_modified.as_deref())
    }
}

/// The result of a download.
pub(super) enum Answer {
    /// The server still has the version that the validators name.
    Unchanged,
    /// The whole file has arrived and is on disk.
    Here(Validators),
}

/// The result of one request.
enum Outcome {
    Ended(Answer),
    /// The connection ended early, for this reason.
    Broken(String),
    /// The partial file was of no use and has been removed.
    StartOver,
}

/// Downloads files and reports progress.
pub(super) struct Http<'a> {
    agent: ureq::Agent,
    patience: Patience,
    report: &'a dyn Report,
}

/// The first part of an incomplete download, `archive.part`, and the record of what it belongs to,
/// `archive.part.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Begun {
    url: String,
    validators: Validators,
    /// Bytes received so far. Not in the record: it is the length of the file.
    #[serde(skip)]
    length: u64,
}

impl<'a> Http<'a> {
    pub fn new(report: &'a dyn Report, patience: Patience) -> Http<'a> {
        let silence = Some(patience.silence);
        let agent = ureq::Agent::config_builder()
            .timeout_resolve(silence)
            .timeout_connect(silence)
            .timeout_send_request(silence)
            .timeout_recv_response(silence)
            .timeout_per_read(silence)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("karapace/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .build()
            .new_agent();
        Http { agent, patience, report }
    }

    /// Downloads into `part`, unless the server still has what `known` names. Continues an earlier download
    /// in `part` if the server still has the same version of the file.
    pub fn download(
        &self,
        source: &Source,
        known: Option<&Validators>,
        part: &Path,
    ) -> Result<Answer, ImageError> {
        let (mut futile, mut longest) = (0, 0);
        let mut pace = Pace::new(self.patience);
        loop {
            let reason = match self.attempt(source, known, part, &mut pace)? {
                Outcome::Ended(answer) => return Ok(answer),
                Outcome::StartOver => continue,
                Outcome::Broken(reason) => reason,
            };
            let kept = fs::metadata(part).map_or(0, |m| m.len());
            // Receiving the same bytes again is no progress, nor is receiving too slowly.
            let slow = pace.add(0).err();
            if kept > longest && slow.is_none() {
                (futile, longest) = (0, kept);
                tracing::info!("{}: {reason}; resuming", source.url);
            } else if futile < FUTILE && slow.is_none() {
                futile += 1;
                tracing::info!("{}: {reason}; trying again", source.url);
                std::thread::sleep(PAUSE);
            } else {
                return Err(given_up(source, slow.unwrap_or(reason), kept));
            }
        }
    }

    fn attempt(
        &self,
        source: &Source,
        known: Option<&Validators>,
        part: &Path,
        pace: &mut Pace,
    ) -> Result<Outcome, ImageError> {
        let begun = Begun::load(source, part);
        let mut headers = Vec::new();
        if let Some(etag) = known.and_then(|k| k.etag.clone()) {
            headers.push(("If-None-Match", etag));
        }
        if let Some(date) = known.and_then(|k| k.last_modified.clone()) {
            headers.push(("If-Modified-Since", date));
        }
        if let Some(begun) = &begun {
            headers.push(("Range", format!("bytes={}-", begun.length)));
            if let Some(version) = begun.validators.strong() {
                headers.push(("If-Range", version.to_owned()));
            }
        }
        let reply = get(&self.agent, &source.url, &headers, self.patience);
        let reply = reply.map_err(|reason| failed(source, reason))?;
        if let (200 | 206, Some(encoding)) = (reply.status, reply.encoding()) {
            let reason = format!(
                "the server sends it encoded ({encoding}), although an unencoded file was requested; nothing of it was kept: \
                 use another URL, or give the file itself"
            );
            return Err(refused(source, part, reason));
        }
        match (reply.status, begun) {
            (304, begun) if known.is_some() => {
                if begun.is_some() {
                    Begun::discard(part)?;
                }
                Ok(Outcome::Ended(Answer::Unchanged))
            }
            (200, _) => {
                let begun = Begun::start(source, &reply, part)?;
                self.receive(source, reply, begun, part, pace)
            }
            (206, Some(begun)) if first_byte(&reply) == Some(begun.length) => {
                self.receive(source, reply, begun, part, pace)
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
        reply: Reply,
        begun: Begun,
        part: &Path,
        pace: &mut Pace,
    ) -> Result<Outcome, ImageError> {
        let end = reply.length.map(|rest| begun.length.saturating_add(rest));
        if end.is_some_and(|end| end > source.limit.bytes) {
            return Err(refused(source, part, source.limit.refusal()));
        }
        self.report.begin("downloading", end.or(source.size));
        self.report.add(begun.length, 0);
        let received = self.append(source, &reply, begun.length, part, pace);
        self.report.end();
        let (length, broken) = received?;
        match (broken, end) {
            (Some(reason), _) => Ok(Outcome::Broken(reason)),
            (None, Some(end)) if end != length => {
                Ok(Outcome::Broken(format!("the connection ended after {length} bytes")))
            }
            (None, _) => {
                File::open(part).and_then(|file| file.sync_all()).map_err(at("sync", part))?;
                remove_if_there(&record_of(part))?;
                Ok(Outcome::Ended(Answer::Here(begun.validators)))
            }
        }
    }

    /// Appends what the server sends to the `length` bytes that exist. Returns the new length and, if the
    /// body ended early, the reason.
    fn append(
        &self,
        source: &Source,
        reply: &Reply,
        mut length: u64,
        part: &Path,
        pace: &mut Pace,
    ) -> Result<(u64, Option<String>), ImageError> {
        let mut file = OpenOptions::new().append(true).open(part).map_err(at("open", part))?;
        loop {
            let piece = match reply.next() {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok((length, None)),
                Err(reason) => return Ok((length, Some(reason))),
            };
            let more = piece.len() as u64;
            if length + more > source.limit.bytes {
                return Err(refused(source, part, source.limit.refusal()));
            }
            if let Err(error) = file.write_all(&piece) {
                // The disk is full: a kept partial file would leave no room for anything else.
                if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) {
                    Begun::discard(part)?;
                }
                return Err(at("write", part)(error));
            }
            length += more;
            self.report.add(more, 0);
            pace.add(more).map_err(|reason| given_up(source, reason, length))?;
        }
    }
}

impl Begun {
    /// The partial download of `source`, if it can be continued: the server can tell whether it still has
    /// that version, or the checksum will.
    fn load(source: &Source, part: &Path) -> Option<Begun> {
        let record = fs::read(record_of(part)).ok()?;
        let begun: Begun = serde_json::from_slice(&record).ok()?;
        let length = fs::metadata(part).ok()?.len();
        let usable = begun.url == source.url
            && length > 0
            && (begun.validators.strong().is_some() || source.sha256.is_some());
        usable.then_some(Begun { length, ..begun })
    }

    /// Starts over with an empty partial file.
    fn start(source: &Source, reply: &Reply, part: &Path) -> Result<Begun, ImageError> {
        Begun::discard(part)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(part).map_err(at("create", part))?;
        let begun = Begun { url: source.url.clone(), validators: Validators::of(reply), length: 0 };
        let record = record_of(part);
        serde_json::to_vec(&begun)
            .map_err(io::Error::from)
            .and_then(|bytes| atomic::write_file(&record, &bytes).map_err(io::Error::other))
            .map_err(at("write", &record))?;
        Ok(begun)
    }

    fn discard(part: &Path) -> Result<(), ImageError> {
        // The record first: a partial file without one is never continued.
        remove_if_there(&record_of(part))?;
        remove_if_there(part)
    }
}

fn record_of(part: &Path) -> PathBuf {
    part.with_extension("part.json")
}

/// Returns N of `Content-Range: bytes N-M/TOTAL`.
fn first_byte(reply: &Reply) -> Option<u64> {
    let range = reply.header("content-range")?;
    let (first, _) = range.trim().strip_prefix("bytes")?.trim_start().split_once('-')?;
    first.parse().ok()
}

fn failed(source: &Source, reason: String) -> ImageError {
    ImageError::Download { url: source.url.clone(), reason }
}

/// The error for a download that may be resumed later.
fn given_up(source: &Source, reason: String, kept: u64) -> ImageError {
    failed(source, format!("{reason}; {kept} bytes are kept: the next try resumes there"))
}

/// The error for a file that is refused; removes what was received of it.
fn refused(source: &Source, part: &Path, reason: String) -> ImageError {
    Begun::discard(part).err().unwrap_or_else(|| failed(source, reason))
}
