//! `env/<instance>/control.sock`: the protocol between a command and the process that serves an environment.
//!
//! A connection carries one JSON line in each direction; namespaces are passed as descriptors. Only the user
//! can enter the directory (mode 0700), so every process that can connect may send requests, except programs
//! inside (`peer.rs`). A socket that nobody listens on is stale: connecting is refused, and it counts as
//! absent.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use karapace_fs::control::Command;
use karapace_fs::session::MountOptions;
use karapace_store::files::Files;
use karapace_store::input::by_descriptor;
use parking_lot::{Condvar, Mutex};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use super::peer;
use super::perform::Outcome;
use crate::engine::At as _;
use crate::engine::{Error, Result};
use crate::runtime::Seen;

/// File name of the socket in an environment's directory.
pub(super) const NAME: &str = "control.sock";

/// How the reason begins for which a server of any version refuses what it does not know as a request.
pub(super) const NOT_A_REQUEST: &str = "not a request: ";

/// Longest accepted request, in bytes.
const MAX_REQUEST: usize = 4 << 20;

/// Maximum number of descriptors in one message.
const MAX_DESCRIPTORS: usize = 16;

/// How long pending answers may take to be written when the server ends.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long to wait for the request of a process that may not send one.
const BRIEF: Duration = Duration::from_millis(100);

/// A request to the serving process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// How to enter the environment.
    Enter {
        /// The user that will run the command, for a client that cannot look users up itself.
        user: Option<String>,
        /// It wants the caller's own id inside, and no others: the host's mount then, if there is one.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        own_id: bool,
    },
    /// What a process, whose pidfd is sent along, makes in the mount are mount points of its session. Sent
    /// before process 1 of a new inside makes any.
    MakesMountPoints,
    /// Keep a new inside for sessions that join later. Sent with the descriptors of its lifeline, a pidfd of
    /// its process 1, and its namespaces.
    Hold {
        /// The options that it was made with.
        shape: Shape,
        /// The kinds of the namespaces, in the order of their descriptors.
        namespaces: Vec<String>,
        /// The mount on which it was made, from [`Entrance::mount`].
        mount: Option<u64>,
    },
    /// End the inside, if there is one, with all its processes.
    EndInside,
    /// End the sessions' mount. Refused while there is a session.
    EndSessions,
    /// The inside, if there is one, and nothing else: answered whatever state the mounts are in.
    Inside,
    /// Mount on this directory, which may be missing or must be empty, beside the mount of the sessions.
    Mount {
        /// An absolute path.
        dir: PathBuf,
        /// How.
        options: MountOptions,
    },
    /// Unmount. Answered once unmounted; the process exits soon after, unless sessions go on in a mount.
    Unmount,
    /// Perform a command.
    #[serde(untagged)]
    Command(Command),
}

/// The options that all sessions of an inside share, by name.
pub type Shape = BTreeMap<String, String>;

/// The answer to [`Request::Enter`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entrance {
    /// Where the environment is mounted.
    pub dir: PathBuf,
    /// The number of that mount, which the server gave it.
    pub mount: Option<u64>,
    /// The namespaces in which it is mounted, if it is in a ground. Their descriptors come first.
    pub ground: Vec<String>,
    /// What a session needs to know of the environment, if there is a ground: only there is the mount seen.
    pub seen: Option<Box<Seen>>,
    /// Why an ordinary user has a single id inside, and what helps.
    pub one_id: Option<String>,
    /// The existing inside, if any: its shape and its namespaces, whose descriptors follow the ground's.
    pub inside: Option<(Shape, Vec<String>)>,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To `Enter`.
    Entrance(Entrance),
    /// To `MakesMountPoints`.
    MakerKnown,
    /// To `Inside`: the kinds of its namespaces; their descriptors come with it.
    Inside {
        /// Empty if there is no inside.
        namespaces: Vec<String>,
    },
    /// To `Hold`.
    Held,
    /// To `Hold`: another session was faster, or the mount has ended.
    Taken,
    /// To `EndInside`.
    InsideEnded,
    /// To `Mount`.
    Mounted {
        /// Where, without symlinks.
        dir: PathBuf,
    },
    /// To `Unmount` and `EndSessions`.
    Unmounted,
    /// It failed.
    Failed {
        /// Its errno.
        errno: i32,
        /// Its message.
        reason: String,
    },
    /// The process is ending: repeat the request to the next server, or open the environment in this process.
    Ending,
    /// To `Command`: it is done.
    #[serde(untagged)]
    Done(Outcome),
}

impl Answer {
    /// Decodes the line that a server answers.
    pub(super) fn parse(line: &[u8]) -> serde_json::Result<Answer> {
        // As an outcome first: serde would hold a value that may be of several types in memory before it
        // decodes it, and a diff can have a million paths.
        match serde_json::from_slice(line) {
            Ok(outcome) => Ok(Answer::Done(outcome)),
            Err(_) => serde_json::from_slice(line),
        }
    }
}

/// A handler's reply.
pub struct Reply {
    /// The answer.
    pub answer: Answer,
    /// Descriptors sent with it.
    pub descriptors: Vec<OwnedFd>,
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Reply {
        Reply { answer, descriptors: Vec::new() }
    }
}

/// A server of the control socket, with threads of its own.
pub struct Server {
    files: Files,
    path: PathBuf,
    busy: Arc<Busy>,
}

/// Connections in progress.
#[derive(Default)]
struct Busy {
    count: Mutex<usize>,
    idle: Condvar,
}

impl Server {
    /// Listens in `env_dir` and answers with `handler`. The caller holds the environment's lock, so an
    /// existing socket is stale.
    pub fn start(
        files: &Files,
        env_dir: &Path,
        handler: impl Fn(Request, Vec<OwnedFd>) -> Reply + Send + Sync + 'static,
    ) -> Result<Server> {
        let path = env_dir.join(NAME);
        match files.remove(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &path, e)),
            _ => {}
        }
        let dir = files.open_dir(env_dir).at("open", env_dir)?;
        // Bound through the directory's descriptor: a socket address has room for 108 bytes, and a store's
        // path may be longer.
        let listener = UnixListener::bind(by_descriptor(&dir).join(NAME))
            .and_then(|listener| files.set_mode(&path, 0o600).map(|()| listener))
            .at("listen on", &path)?;
        let busy = Arc::new(Busy::default());
        let (handler, count) = (Arc::new(handler), busy.clone());
        let accept = move || {
            for stream in listener.incoming() {
                match stream {
                    Ok(stream) => converse(stream, handler.clone(), count.clone()),
                    Err(error) => {
                        // Most likely out of descriptors: do not spin.
                        tracing::warn!("cannot accept a connection: {error}");
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("karapace-socket".to_owned());
        thread.spawn(accept).at("start a thread for", &path)?;
        Ok(Server { files: files.clone(), path, busy })
    }

    /// Removes the socket and waits until pending answers are written.
    pub fn stop(&self) {
        if let Err(error) = self.files.remove(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
        let mut count = self.busy.count.lock();
        while *count > 0 {
            if self.busy.idle.wait_for(&mut count, FAREWELL).timed_out() {
                tracing::warn!("{} connections get no answer", *count);
                return;
            }
        }
    }
}

/// Answers one connection on a thread of its own.
fn converse<H: Fn(Request, Vec<OwnedFd>) -> Reply + Send + Sync + 'static>(
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
        tracing::warn!("cannot start a thread for a request: {error}");
    }
}

struct Guard(Arc<Busy>);

impl Drop for Guard {
    fn drop(&mut self) {
        *self.0.count.lock() -= 1;
        self.0.idle.notify_all();
    }
}

fn answer(stream: &UnixStream, handler: &dyn Fn(Request, Vec<OwnedFd>) -> Reply) -> io::Result<()> {
    let is_ours = peer::is_of_ours(stream);
    // A connection that sends nothing (a client checks whether we are alive) must not keep a thread. From a
    // process that may not send requests, read only enough for the refusal to arrive.
    let (patience, most) = if is_ours { (FAREWELL, MAX_REQUEST) } else { (BRIEF, 1) };
    stream.set_read_timeout(Some(patience))?;
    let (line, descriptors) = receive(stream, most)?;
    if line.is_empty() {
        return Ok(());
    }
    if !is_ours {
        let reason = "requests from inside a session or a container are refused: run this command outside, or use the control \
                      directory in a session started with `karapace enter --ctl`";
        let refused = Answer::Failed { errno: libc::EPERM, reason: reason.to_owned() };
        return transmit(stream, &refused, &[]);
    }
    let reply = match serde_json::from_slice::<Request>(&line) {
        Ok(request) => tracing::debug_span!("command", from = "socket", ?request)
            .in_scope(|| handler(request, descriptors)),
        Err(error) => {
            Answer::Failed { errno: libc::EINVAL, reason: format!("{NOT_A_REQUEST}{error}") }.into()
        }
    };
    let descriptors: Vec<_> = reply.descriptors.iter().map(AsFd::as_fd).collect();
    transmit(stream, &reply.answer, &descriptors)
}

/// Writes one line, and sends the descriptors with its first byte.
pub(super) fn transmit(
    stream: &UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("more descriptors than a message can carry"));
    }
    let sent = sendmsg(stream, &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL)?;
    let mut stream = stream;
    stream.write_all(&line[sent..])
}

/// Reads to the end of a line or of the stream, and stops once it has `most` bytes. Receives the descriptors
/// that were sent along.
pub(super) fn receive(stream: &UnixStream, most: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; 64 << 10];
    while line.last() != Some(&b'\n') && line.len() < most {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got =
            match recvmsg(stream, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)
            {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::other("more descriptors than a message can carry"));
        }
        if got.bytes == 0 {
            break;
        }
        line.extend_from_slice(&buffer[..got.bytes]);
    }
    Ok((line, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::instance::diff::Changed;
    use crate::engine::server::client::Client;
    use karapace_fs::attr::DiffKind;
    use karapace_fs::path_text::PathText;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::fs::{self, File};

    #[test]
    fn asks_and_answers_below_a_long_path() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::at(root.path()).unwrap();
        let dir = root.path().join("x".repeat(100)).join("y".repeat(100));
        fs::create_dir_all(&dir).unwrap();
        assert!(Client::connect(&files, &dir).unwrap().is_none());
        let server = Server::start(&files, &dir, |request, descriptors| match request {
            Request::Command(Command::Diff { .. }) => {
                Answer::Done(Outcome::Diff(vec![Changed::new(DiffKind::Added, b"/a\xff".to_vec())])).into()
            }
            _ => Reply { answer: Answer::Ending, descriptors },
        })
        .unwrap();
        let client = Client::connect(&files, &dir).unwrap().expect("a server");
        match client.request(&Request::Command(Command::Diff { since: None })).unwrap() {
            Some(Answer::Done(Outcome::Diff(paths))) => assert_eq!(paths[0].path.0, b"/a\xff"),
            other => panic!("{other:?}"),
        }
        let mut client = Client::connect(&files, &dir).unwrap().expect("a server");
        client.stream.write_all(b"nonsense\n").unwrap();
        let (reply, _) = receive(&client.stream, MAX_REQUEST).unwrap();
        assert!(String::from_utf8_lossy(&reply).contains("not a request"), "{reply:?}");
        let client = Client::connect(&files, &dir).unwrap().expect("a server");
        assert_eq!(client.server().unwrap(), std::process::id() as i32);
        let mut file = tempfile::tempfile().unwrap();
        let reply = client.exchange(&Request::EndInside, &[file.as_fd()]).unwrap().expect("an answer");
        file.write_all(b"the same file").unwrap();
        let back: Vec<_> = reply.descriptors.into_iter().map(File::from).collect();
        assert_eq!(back.iter().map(|f| f.metadata().unwrap().len()).collect::<Vec<_>>(), [13]);
        server.stop();
        assert!(Client::connect(&files, &dir).unwrap().is_none());
    }

    #[test]
    fn a_server_that_goes_away_is_ending_as_long_as_nothing_was_done() {
        let commit = Request::Command(Command::Commit { name: None, message: None, paths: Vec::new() });
        let ask = |request: &Request, server: &dyn Fn(UnixListener)| {
            let dir = tempfile::tempdir().unwrap();
            let (files, listener) =
                (Files::at(dir.path()).unwrap(), UnixListener::bind(dir.path().join(NAME)).unwrap());
            let client = Client::connect(&files, dir.path()).unwrap().expect("a server");
            server(listener);
            client.request(request).unwrap()
        };
        // Never accepted; accepted and closed at once; closed with the request unread.
        let gone: [&dyn Fn(UnixListener); 2] = [&drop, &|listener| drop(listener.accept().unwrap())];
        for server in gone {
            assert!(matches!(ask(&commit, server), Some(Answer::Ending)));
        }
        let after = |read: bool| {
            let dir = tempfile::tempdir().unwrap();
            let (files, listener) =
                (Files::at(dir.path()).unwrap(), UnixListener::bind(dir.path().join(NAME)).unwrap());
            let client = Client::connect(&files, dir.path()).unwrap().expect("a server");
            let server = std::thread::spawn(move || {
                let stream = listener.accept().unwrap().0;
                let mut events = [PollFd::new(&stream, PollFlags::IN)];
                poll(&mut events, None).unwrap();
                if read {
                    receive(&stream, MAX_REQUEST).unwrap();
                }
            });
            let answer = client.request(&commit).unwrap();
            server.join().unwrap();
            answer
        };
        assert!(matches!(after(false), Some(Answer::Ending)));
        // The request was read, so it may have been done.
        assert!(after(true).is_none());
    }

    #[test]
    fn the_lines_are_those_of_earlier_builds() {
        let commit = Command::Commit {
            name: Some("n".to_owned()),
            message: None,
            paths: vec![PathText(b"/a".to_vec()), PathText(b"/\xff".to_vec())],
        };
        for (request, line) in [
            (
                Request::Command(commit),
                r#"{"op":"commit","name":"n","message":null,"paths":["/a",{"hex":"2fff"}]}"#,
            ),
            (Request::Command(Command::Status), r#"{"op":"status"}"#),
            (Request::Enter { user: None, own_id: false }, r#"{"op":"enter","user":null}"#),
            (Request::Unmount, r#"{"op":"unmount"}"#),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), line);
            assert_eq!(serde_json::from_str::<Request>(line).unwrap(), request);
        }
        for line in [
            r#"{"status":{"dirty_files":1,"dirty_bytes":2}}"#,
            r#"{"diff":[{"kind":"A","path":"/a"}]}"#,
            r#"{"failed":{"errno":2,"reason":"r"}}"#,
            r#""ending""#,
        ] {
            let answer = Answer::parse(line.as_bytes()).unwrap();
            assert_eq!(serde_json::to_string(&answer).unwrap(), line);
        }
    }

    #[test]
    fn a_server_of_another_version_is_named() {
        for (line, wanted) in [
            (
                r#"{"failed":{"errno":22,"reason":"not a request: unknown variant"}}"#,
                "does not know this request",
            ),
            (r#"{"news":1}"#, "whose answer this one does not know"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (files, listener) =
                (Files::at(dir.path()).unwrap(), UnixListener::bind(dir.path().join(NAME)).unwrap());
            let client = Client::connect(&files, dir.path()).unwrap().expect("a server");
            let server = std::thread::spawn(move || {
                let mut stream = listener.accept().unwrap().0;
                receive(&stream, MAX_REQUEST).unwrap();
                stream.write_all(format!("{line}\n").as_bytes()).unwrap();
            });
            let error = client.request(&Request::Command(Command::Verify)).unwrap_err().to_string();
            server.join().unwrap();
            assert!(error.contains(wanted) && error.contains("mount it again"), "{error}");
        }
    }

    #[test]
    fn a_stale_socket_is_not_a_server() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::at(dir.path()).unwrap();
        drop(UnixListener::bind(dir.path().join(NAME)).unwrap());
        assert!(dir.path().join(NAME).exists());
        assert!(Client::connect(&files, dir.path()).unwrap().is_none());
        let server = Server::start(&files, dir.path(), |_, _| Answer::Unmounted.into()).unwrap();
        assert!(Client::connect(&files, dir.path()).unwrap().is_some());
        server.stop();
    }
}
