//! `env/<instance>/control.sock`: how a command reaches the process that serves an environment.
//!
//! One JSON line each way a connection. The directory is the user's alone (0700), so whoever can connect may ask.
//! A socket that nobody listens on is stale: connecting says so, and it counts as absent.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use karapace_fs::attr::DiffKind;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use super::instance::{CommitOutcome, RestoreOutcome, Status};
use super::snapshots::RemoveOutcome;
use super::text::PathText;
use super::{Error, Result};

/// File name of the socket in an environment's directory.
const NAME: &str = "control.sock";

/// Longest request taken, in bytes.
const MAX_REQUEST: u64 = 4 << 20;

/// How long the answers under way may take to be written when the server ends.
const FAREWELL: Duration = Duration::from_secs(5);

/// What is asked of the serving process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Make a snapshot.
    Commit {
        /// Its name.
        name: Option<String>,
        /// Its message.
        message: Option<String>,
        /// Only these paths; all when empty.
        paths: Vec<PathText>,
    },
    /// Make the view equal to a snapshot.
    Restore {
        /// As in [`super::reference`].
        reference: String,
        /// Only at these paths; everywhere when empty.
        paths: Vec<PathText>,
    },
    /// Remove snapshots.
    RemoveSnapshots {
        /// As in [`super::reference`].
        references: Vec<String>,
    },
    /// What differs from the head.
    Diff {
        /// From this snapshot instead.
        since: Option<String>,
    },
    /// Figures of the upper.
    Status,
    /// Unmount and end. Answered when it is unmounted; the process ends soon after.
    Unmount,
}

/// One path that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// `A`, `M` or `D`.
    pub kind: char,
    /// The path from the environment's root.
    pub path: PathText,
}

impl Changed {
    /// From what a view says.
    pub fn new(kind: DiffKind, path: Vec<u8>) -> Changed {
        Changed { kind: kind.letter(), path: PathText(path) }
    }
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To `Commit`.
    Commit(CommitOutcome),
    /// To `Restore`.
    Restore(RestoreOutcome),
    /// To `RemoveSnapshots`.
    Removed(RemoveOutcome),
    /// To `Diff`.
    Diff(Vec<Changed>),
    /// To `Status`.
    Status(Status),
    /// To `Unmount`.
    Unmounted,
    /// It failed.
    Failed {
        /// Its errno.
        errno: i32,
        /// Its words.
        reason: String,
    },
    /// The process is ending: ask again, of the next one or the files.
    Ending,
}

/// A server, in threads of its own.
pub struct Server {
    path: PathBuf,
    busy: Arc<Busy>,
}

/// Connections under way.
#[derive(Default)]
struct Busy {
    count: Mutex<usize>,
    idle: Condvar,
}

impl Server {
    /// Listens in `env_dir` and answers with `handler`. The caller holds the environment's lock, so a socket that is there is stale.
    pub fn start(
        env_dir: &Path,
        handler: impl Fn(Request) -> Answer + Send + Sync + 'static,
    ) -> Result<Server> {
        let path = env_dir.join(NAME);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &path, e)),
            _ => {}
        }
        let dir = File::open(env_dir).map_err(|e| Error::io("open", env_dir, e))?;
        let listener = UnixListener::bind(address(&dir)).map_err(|e| Error::io("listen on", &path, e))?;
        let busy = Arc::new(Busy::default());
        let (handler, count) = (Arc::new(handler), busy.clone());
        let accept = move || {
            for stream in listener.incoming() {
                match stream {
                    Ok(stream) => converse(stream, handler.clone(), count.clone()),
                    Err(error) => {
                        // Out of descriptors, most likely: do not spin on it.
                        tracing::warn!("accepting a connection: {error}");
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("karapace-socket".to_owned());
        thread.spawn(accept).map_err(|e| Error::io("start a thread for", &path, e))?;
        Ok(Server { path, busy })
    }

    /// Takes the socket away and lets answers under way be written.
    pub fn stop(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("removing {}: {error}", self.path.display());
        }
        let mut count = self.busy.count.lock();
        while *count > 0 {
            if self.busy.idle.wait_for(&mut count, FAREWELL).timed_out() {
                tracing::warn!("{} connections are left without an answer", *count);
                return;
            }
        }
    }
}

/// Answers one connection on a thread of its own.
fn converse<H: Fn(Request) -> Answer + Send + Sync + 'static>(
    stream: UnixStream,
    handler: Arc<H>,
    busy: Arc<Busy>,
) {
    *busy.count.lock() += 1;
    let guard = Guard(busy);
    let talk = move || {
        let _guard = guard;
        if let Err(error) = answer(&stream, &*handler) {
            tracing::debug!("a connection ended early: {error}");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("karapace-request".to_owned()).spawn(talk) {
        tracing::warn!("starting a thread for a request: {error}");
    }
}

struct Guard(Arc<Busy>);

impl Drop for Guard {
    fn drop(&mut self) {
        *self.0.count.lock() -= 1;
        self.0.idle.notify_all();
    }
}

fn answer(stream: &UnixStream, handler: &dyn Fn(Request) -> Answer) -> io::Result<()> {
    // A connection that says nothing (someone asks whether we live) must not keep a thread.
    stream.set_read_timeout(Some(FAREWELL))?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_REQUEST)).read_line(&mut line)?;
    if line.is_empty() {
        return Ok(());
    }
    let answer = match serde_json::from_str(&line) {
        Ok(request) => handler(request),
        Err(error) => Answer::Failed { errno: libc::EINVAL, reason: format!("not a request: {error}") },
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    let mut stream = stream;
    stream.write_all(&line)
}

/// A connection to a serving process, for one request.
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects; `Ok(None)` when nobody serves.
    pub fn connect(env_dir: &Path) -> Result<Option<Client>> {
        let path = env_dir.join(NAME);
        let dir = match File::open(env_dir) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("open", env_dir, e)),
        };
        match UnixStream::connect(address(&dir)) {
            Ok(stream) => Ok(Some(Client { stream })),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(e) => Err(Error::io("connect to", &path, e)),
        }
    }

    /// Asks and waits for the answer, however long it takes. `Ok(None)`: the process ended without one.
    pub fn request(mut self, request: &Request) -> io::Result<Option<Answer>> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.write_all(&line)?;
        let mut reply = String::new();
        BufReader::new(&self.stream).read_line(&mut reply)?;
        if !reply.ends_with('\n') {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&reply)?))
    }
}

/// The socket through its directory's descriptor: an address holds 108 bytes only, a store's path may be longer.
fn address(dir: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_and_answers_below_a_long_path() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("x".repeat(100)).join("y".repeat(100));
        fs::create_dir_all(&dir).unwrap();
        assert!(Client::connect(&dir).unwrap().is_none());
        let server = Server::start(&dir, |request| match request {
            Request::Diff { .. } => Answer::Diff(vec![Changed::new(DiffKind::Added, b"/a\xff".to_vec())]),
            _ => Answer::Ending,
        })
        .unwrap();
        let client = Client::connect(&dir).unwrap().expect("a server");
        match client.request(&Request::Diff { since: None }).unwrap() {
            Some(Answer::Diff(paths)) => assert_eq!(paths[0].path.0, b"/a\xff"),
            other => panic!("{other:?}"),
        }
        let mut client = Client::connect(&dir).unwrap().expect("a server");
        client.stream.write_all(b"nonsense\n").unwrap();
        let mut reply = String::new();
        BufReader::new(&client.stream).read_line(&mut reply).unwrap();
        assert!(reply.contains("not a request"), "{reply}");
        server.stop();
        assert!(Client::connect(&dir).unwrap().is_none());
    }

    #[test]
    fn a_stale_socket_is_no_server() {
        let dir = tempfile::tempdir().unwrap();
        drop(UnixListener::bind(dir.path().join(NAME)).unwrap());
        assert!(dir.path().join(NAME).exists());
        assert!(Client::connect(dir.path()).unwrap().is_none());
        let server = Server::start(dir.path(), |_| Answer::Unmounted).unwrap();
        assert!(Client::connect(dir.path()).unwrap().is_some());
        server.stop();
    }
}
