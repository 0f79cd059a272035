//! Requests to the process that serves an environment, through its control socket.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use karapace_store::files::Files;
use karapace_store::input::by_descriptor;
use karapace_store::wait;
use nix::poll::PollFlags;
use rustix::fs::{FileType, fstat};

use super::socket::{Answer, NAME, NOT_A_REQUEST, Reply, Request, receive, transmit};
use crate::engine::{Error, Result};

/// How long to wait for an answer before checking whether the server is stopped.
const PATIENCE: Duration = Duration::from_secs(1);

/// A connection to a serving process, for one request.
pub struct Client {
    pub(super) stream: UnixStream,
}

impl Client {
    /// Connects; `Ok(None)` if the environment is not served, and always for another user's store.
    ///
    /// # Errors
    /// The path is not a socket of the store's owner, or a process of another user listens on it.
    pub fn connect(files: &Files, env_dir: &Path) -> Result<Option<Client>> {
        let path = env_dir.join(NAME);
        if files.reads_only() {
            return Ok(None);
        }
        match connect(files, &path) {
            Ok(stream) => Ok(Some(Client { stream })),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(e) => Err(Error::io("connect to", &path, e)),
        }
    }

    /// Sends the request and waits for the answer without a limit. `Ok(None)`: the process ended without an
    /// answer, and may have done what it was asked to do.
    pub fn request(self, request: &Request) -> io::Result<Option<Answer>> {
        Ok(self.exchange(request, &[])?.map(|reply| reply.answer))
    }

    /// The same, with descriptors in both directions.
    pub fn exchange(self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<Option<Reply>> {
        match self.talk(request, descriptors) {
            // The kernel returns these errors only if the request was not read to its end: nothing was done,
            // so it can be repeated.
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Ok(Some(Answer::Ending.into()))
            }
            other => other,
        }
    }

    fn talk(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<Option<Reply>> {
        transmit(&self.stream, request, descriptors)?;
        self.await_answer()?;
        let (line, descriptors) = receive(&self.stream, usize::MAX)?;
        if line.last() != Some(&b'\n') {
            return Ok(None);
        }
        match Answer::parse(&line) {
            Ok(Answer::Failed { reason, .. }) if reason.starts_with(NOT_A_REQUEST) => {
                Err(other_version("does not know this request"))
            }
            Ok(answer) => Ok(Some(Reply { answer, descriptors })),
            Err(error) => {
                tracing::debug!("{error} in an answer of {} bytes", line.len());
                Err(other_version("may have done it, but whose answer this one does not know"))
            }
        }
    }

    /// Waits until the answer begins. Logs once if the server is stopped, because the wait would never end.
    fn await_answer(&self) -> io::Result<()> {
        let mut said = false;
        loop {
            if wait::for_event(&self.stream, PollFlags::POLLIN, PATIENCE)? {
                return Ok(());
            }
            let server = self.server()?;
            if !said && is_stopped(server) {
                tracing::warn!(
                    "the server, process {server}, is stopped and does not answer: resume it with `kill -CONT {server}`, \
                     or end it with `karapace umount --force`"
                );
                said = true;
            }
        }
    }

    /// The id of the process that listens at the other end.
    pub fn server(&self) -> io::Result<i32> {
        Ok(rustix::net::sockopt::socket_peercred(&self.stream)?.pid.as_raw_nonzero().get())
    }
}

/// The error for a server that has run since before karapace was replaced by another version.
fn other_version(what: &str) -> io::Error {
    io::Error::other(format!(
        "it runs another version of karapace, which {what}: unmount the environment and mount it again"
    ))
}

/// Whether a process is stopped by a signal or a debugger (the state in proc_pid_stat(5)).
fn is_stopped(process: i32) -> bool {
    let stat = fs::read(format!("/proc/{process}/stat")).unwrap_or_default();
    // The state follows the name. The name may contain anything, so it ends at the last parenthesis.
    let after = stat.iter().rposition(|byte| *byte == b')').map_or(stat.len(), |at| at + 2);
    matches!(stat.get(after), Some(b'T' | b't'))
}

/// Connects to the socket at `path`, after checking that the socket and the listening process belong to the
/// store's owner.
fn connect(files: &Files, path: &Path) -> io::Result<UnixStream> {
    let socket = files.hold(path)?;
    if let Some(reason) = files.stranger(&fstat(&socket)?, FileType::Socket) {
        return Err(io::Error::other(format!("{reason}, so karapace did not make it: remove it")));
    }
    let stream = UnixStream::connect(by_descriptor(&socket))?;
    let server = rustix::net::sockopt::socket_peercred(&stream)?;
    if server.uid.as_raw() != files.owner() {
        let (pid, uid) = (server.pid, server.uid);
        return Err(io::Error::other(format!(
            "process {pid} of user {uid} listens there, which is not trusted"
        )));
    }
    Ok(stream)
}
