//! One HTTP request: the head of the response, and its body in pieces, exactly as sent.
//!
//! A thread of its own does the network I/O. Whatever a resolver, a proxy or a server does or fails to do,
//! the caller waits at most as long as [`Patience`] says. An abandoned thread ends with its connection, or
//! with the program.
//!
//! Redirects are followed here: from https only to https, a limited number of them, and each with exactly the
//! given headers, so that credentials in an address reach only its own host.

use std::io::Read;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

/// How many redirects to follow.
const MOST_HOPS: usize = 10;

/// The size of a piece in bytes, and how many pieces may be queued.
const PIECE: usize = 256 << 10;
const QUEUE: usize = 4;

/// How many characters of a server's text a message repeats.
const MOST_SHOWN: usize = 100;

/// How long to wait for a server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Until the response begins, including redirects.
    pub answer: Duration,
    /// For each step of a connection, and for the next bytes of a body.
    pub silence: Duration,
    /// In each period of this length...
    pub period: Duration,
    /// ...at least this many bytes must arrive.
    pub least: u64,
}

impl Default for Patience {
    /// The silence that cargo, apt and dnf tolerate, and dnf's minimum of 1000 bytes a second.
    fn default() -> Patience {
        let (silence, period) = (Duration::from_secs(30), Duration::from_secs(120));
        Patience { answer: Duration::from_secs(120), silence, period, least: 120_000 }
    }
}

/// Measures whether data arrives fast enough.
pub(super) struct Pace {
    patience: Patience,
    since: Instant,
    bytes: u64,
    /// When [`Pace::add`] was last called.
    asked: Instant,
}

impl Pace {
    pub fn new(patience: Patience) -> Pace {
        let now = Instant::now();
        Pace { patience, since: now, bytes: 0, asked: now }
    }

    /// Counts received bytes. The error says that they arrive too slowly.
    pub fn add(&mut self, bytes: u64) -> Result<(), String> {
        // No read waits that long, so the whole program was stopped (Ctrl-Z): start over.
        if self.asked.elapsed() > self.patience.silence * 3 {
            *self = Pace::new(self.patience);
        }
        self.asked = Instant::now();
        self.bytes += bytes;
        if self.since.elapsed() < self.patience.period {
            return Ok(());
        }
        let came = std::mem::take(&mut self.bytes);
        self.since = Instant::now();
        if came >= self.patience.least {
            return Ok(());
        }
        Err(format!("too slow: {came} bytes in {} s", self.patience.period.as_secs_f32()))
    }
}

/// A response: its head, and its body as it arrives.
pub(super) struct Reply {
    pub status: u16,
    headers: HeaderMap,
    /// The length of the body in bytes, if the server states it.
    pub length: Option<u64>,
    pieces: Receiver<Result<Vec<u8>, String>>,
    silence: Duration,
}

/// The first message from the thread: status, headers and body length.
type Head = Result<(u16, HeaderMap, Option<u64>), String>;

/// Requests `url` with these headers. Returns when the response's head has arrived.
///
/// # Errors
/// What went wrong, without the address.
pub(super) fn get(
    agent: &Agent,
    url: &str,
    headers: &[(&'static str, String)],
    patience: Patience,
) -> Result<Reply, String> {
    let (head, answered) = sync_channel(1);
    let (send, pieces) = sync_channel(QUEUE);
    let (agent, url, headers) = (agent.clone(), url.to_owned(), headers.to_owned());
    let work = move || {
        let (told, body) = match follow(&agent, url, &headers) {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                (Ok((parts.status.as_u16(), parts.headers, body.content_length())), Some(body))
            }
            Err(reason) => (Err(reason), None),
        };
        if head.send(told).is_ok()
            && let Some(body) = body
        {
            pump(body, &send);
        }
    };
    let thread = thread::Builder::new().name("karapace-download".to_owned()).spawn(work);
    thread.map_err(|e| format!("cannot start a thread: {e}"))?;
    let head: Head = answered.recv_timeout(patience.answer).unwrap_or_else(|e| match e {
        RecvTimeoutError::Timeout => Err(format!("no answer within {} s", patience.answer.as_secs_f32())),
        RecvTimeoutError::Disconnected => Err("the requesting thread stopped".to_owned()),
    });
    let (status, headers, length) = head?;
    Ok(Reply { status, headers, length, pieces, silence: patience.silence })
}

impl Reply {
    /// The value of a header, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The encoding of the body, if the body is not the file itself.
    pub fn encoding(&self) -> Option<String> {
        let strange = |name: &str, plain: &str| {
            let values = self.headers.get_all(name).iter();
            let mut values = values.map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned());
            let found = values.find(|value| !value.is_empty() && !value.eq_ignore_ascii_case(plain));
            found.map(|value| format!("{name}: {:?}", shown(&value)))
        };
        strange("Content-Encoding", "identity").or_else(|| strange("Transfer-Encoding", "chunked"))
    }

    /// The next bytes of the body; `None` at its end.
    pub fn next(&self) -> Result<Option<Vec<u8>>, String> {
        match self.pieces.recv_timeout(self.silence) {
            Ok(Ok(piece)) if piece.is_empty() => Ok(None),
            Ok(Ok(piece)) => Ok(Some(piece)),
            Ok(Err(reason)) => Err(format!("the connection broke: {reason}")),
            Err(RecvTimeoutError::Timeout) => {
                Err(format!("nothing was received for {} s", self.silence.as_secs_f32()))
            }
            Err(RecvTimeoutError::Disconnected) => Err("the reading thread stopped".to_owned()),
        }
    }
}

/// Follows redirects up to the first other response.
fn follow(
    agent: &Agent,
    mut url: String,
    headers: &[(&'static str, String)],
) -> Result<Response<Body>, String> {
    let mut secure = false;
    for _ in 0..=MOST_HOPS {
        secure |= has_scheme(&url, "https");
        let mut request = agent.get(&url);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let response = request.call().map_err(|e| e.to_string())?;
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(response);
        }
        let location = response.headers().get("location").and_then(|value| value.to_str().ok());
        let location = location.ok_or("the server's redirect has no Location")?;
        url = next_hop(&url, location, secure)?;
    }
    Err(format!("there are more than {MOST_HOPS} redirects"))
}

/// The address that a redirect leads to, or why it may not be followed. `secure`: an https address was
/// requested before.
fn next_hop(url: &str, location: &str, secure: bool) -> Result<String, String> {
    let next = resolve(url, location);
    let words = shown(&next);
    if has_scheme(&next, "http") && secure {
        return Err(format!(
            "the server redirects from https to {words}, where the file could be changed in transit: it was not downloaded; use \
             another URL"
        ));
    }
    if !has_scheme(&next, "http") && !has_scheme(&next, "https") {
        return Err(format!("the server redirects to {words}, which is not an http(s) URL"));
    }
    Ok(next)
}

/// Sends the body in pieces, and an empty piece at its end.
fn pump(body: Body, send: &SyncSender<Result<Vec<u8>, String>>) {
    let mut body = body.into_reader();
    let mut buffer = vec![0; PIECE];
    loop {
        let read = match body.read(&mut buffer) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            read => read,
        };
        let last = !matches!(read, Ok(1..));
        let piece = read.map(|length| buffer[..length].to_vec()).map_err(|e| e.to_string());
        // It is no failure if the receiver is gone.
        if send.send(piece).is_err() || last {
            return;
        }
    }
}

fn shown(words: &str) -> String {
    words.chars().take(MOST_SHOWN).collect()
}

fn has_scheme(url: &str, scheme: &str) -> bool {
    url.split_once("://").is_some_and(|(found, _)| found.eq_ignore_ascii_case(scheme))
}

/// Resolves `location`, relative to the http(s) address `base` (RFC 3986 §5.2). The fragment is dropped.
fn resolve(base: &str, location: &str) -> String {
    let location = location.split('#').next().unwrap_or_default();
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    };
    if location.split_once(':').is_some_and(|(scheme, _)| is_scheme(scheme)) {
        return location.to_owned();
    }
    let (scheme, rest) = base.split_once("://").unwrap_or(("http", base));
    if location.starts_with("//") {
        return format!("{scheme}:{location}");
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, page) = rest.split_at(end);
    let page = page.split('?').next().unwrap_or_default();
    let (path, query) = location.split_at(location.find('?').unwrap_or(location.len()));
    let path = match path {
        "" => page.to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("{}/{path}", page.rsplit_once('/').map_or("", |(above, _)| above)),
    };
    let mut parts: Vec<&str> = Vec::new();
    let mut is_directory = false;
    for part in path.split('/').skip(1) {
        is_directory = matches!(part, "" | "." | "..");
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            // A trailing slash is handled below.
            part => parts.push(part),
        }
    }
    if is_directory && parts.last() == Some(&"") {
        parts.pop();
    }
    let slash = if is_directory && !parts.is_empty() { "/" } else { "" };
    format!("{scheme}://{host}/{}{slash}{query}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_redirect_leads() {
        let base = "https://me:pw@host:8/a/b?q";
        for (location, expected) in [
            ("http://other/x", "http://other/x"),
            ("HTTP:x", "HTTP:x"),
            ("file:///etc/passwd", "file:///etc/passwd"),
            ("//other/x#part", "https://other/x"),
            ("/x/./y/../z", "https://me:pw@host:8/x/z"),
            ("c:d", "c:d"),
            ("./c:d?e=/../f", "https://me:pw@host:8/a/c:d?e=/../f"),
            ("../../../c/", "https://me:pw@host:8/c/"),
            ("..", "https://me:pw@host:8/"),
            ("?r", "https://me:pw@host:8/a/b?r"),
            ("", "https://me:pw@host:8/a/b"),
            ("/", "https://me:pw@host:8/"),
        ] {
            assert_eq!(resolve(base, location), expected, "{location}");
        }
        assert_eq!(resolve("http://host", "x"), "http://host/x");
    }

    #[test]
    fn https_leads_to_https_only() {
        for (url, location, secure, refused) in [
            ("https://h/a", "http://h/a", true, Some("from https to http://h/a")),
            ("https://h/a", "HTTP://h/a", true, Some("from https to")),
            ("https://h/a", "http:h/a", true, Some("not an http(s) URL")),
            ("https://h/a", "//other/a", true, None),
            ("https://h/a", "b", true, None),
            ("http://h/a", "https://h/a", false, None),
            ("http://h/a", "http://other/a", false, None),
            ("http://h/a", "file:///etc/passwd", false, Some("not an http(s) URL")),
            ("http://h/a", "ftp://h/a", false, Some("not an http(s) URL")),
        ] {
            let next = next_hop(url, location, secure);
            match refused {
                Some(words) => assert!(next.clone().unwrap_err().contains(words), "{location}: {next:?}"),
                None => assert!(next.is_ok(), "{location}: {next:?}"),
            }
        }
    }
}
