//! Ending a mount that does not answer.
//!
//! An operation is in the upper (journal and data files) before it returns, so aborting the connection or
//! killing the serving process loses nothing that has returned.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use karapace_fs::session::CONNECTIONS;
use karapace_store::metadata::Metadata;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::engine::At as _;
use crate::engine::mountpoint;
use crate::engine::server::client::Client;
use crate::engine::server::keeper::is_over;
use crate::engine::{Engine, Error, Result};

/// How long the serving process may take to end after SIGTERM.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long it may take to die after SIGKILL: it may hang in the kernel.
const PATIENCE: Duration = Duration::from_secs(20);

/// The result of a forced unmount.
#[derive(Debug)]
pub struct Forced {
    /// Where it was.
    pub dir: PathBuf,
    /// The steps taken, in order; each is a short sentence without a full stop.
    pub done: Vec<String>,
}

impl Engine {
    /// Ends the mount that `target` names (see [`Engine::umount`]), without asking the serving process or
    /// anyone who uses it: detaches the mount, aborts its connection and ends the serving process.
    pub fn umount_by_force(&self, target: &str) -> Result<Forced> {
        let (env, dir) = self.mount_named(target)?;
        let mut forced = Forced { dir, done: Vec::new() };
        let server = match &env {
            Some(env) => self.server_of(env)?,
            None => None,
        };
        let here = mountpoint::fuse_device(&forced.dir)?;
        if server.is_none() && here.is_none() {
            return Err(Error::NotMounted { what: target.to_owned() });
        }
        // If it is no longer mounted here, use the recorded device number, but only while it is served: then
        // no other mount has that number.
        let recorded = match (&env, &server) {
            (Some(env), Some(_)) => self.recorded_mount(&env.instance)?.and_then(|mount| mount.device),
            _ => None,
        };
        let connection = here.or(recorded);
        if here.is_some() {
            // The serving process may be what prevents the detach; then it works once that process is gone.
            match mountpoint::unmount(&forced.dir, true) {
                Ok(()) => forced.done.push(format!("detached {}", forced.dir.display())),
                Err(error) => tracing::info!("cannot detach it yet: {error}"),
            }
        }
        if let Some(number) = connection
            && abort(number)
        {
            forced.done.push("aborted the connection".to_owned());
        }
        if let Some((pid, process)) = server {
            forced.done.push(end(pid, &process)?);
        }
        if mountpoint::is_stale(&forced.dir) {
            mountpoint::clear_stale(&forced.dir)?;
            forced.done.push(format!("detached {}", forced.dir.display()));
        }
        Ok(forced)
    }

    /// The process that serves an environment, with a pidfd so that its id cannot be reused.
    fn server_of(&self, env: &Metadata) -> Result<Option<(Pid, OwnedFd)>> {
        let dir = self.env_dir(&env.instance);
        loop {
            let Some(pid) = self.listener(&dir)? else { return Ok(None) };
            match pidfd_open(pid, PidfdFlags::empty()) {
                // It still listens, so the id has meant this process all the time.
                Ok(process) if self.listener(&dir)? == Some(pid) => return Ok(Some((pid, process))),
                Ok(_) | Err(rustix::io::Errno::SRCH) => {}
                Err(errno) => return Err(Error::io("open the server's process of", &dir, errno.into())),
            }
        }
    }

    /// The process that listens on an environment's socket. The kernel tells; the process need not answer.
    fn listener(&self, env_dir: &Path) -> Result<Option<Pid>> {
        let Some(client) = Client::connect(self.store().files(), env_dir)? else { return Ok(None) };
        let pid = client.server().at("find the server of", env_dir)?;
        Ok(Pid::from_raw(pid))
    }
}

/// Makes the kernel fail everything that waits on this connection. Returns whether it did: not every user
/// may, and not every system has the control files.
fn abort(number: u32) -> bool {
    let connection = Path::new(CONNECTIONS).join(number.to_string());
    match fs::write(connection.join("abort"), "1") {
        Ok(()) => true,
        Err(error) => {
            tracing::info!("cannot abort the connection through {}: {error}", connection.display());
            false
        }
    }
}

/// Ends the serving process: asks it, and kills it if it does not end. Returns which of the two it was, as a
/// sentence.
fn end(pid: Pid, process: &OwnedFd) -> Result<String> {
    let number = pid.as_raw_nonzero();
    let send = |signal| match pidfd_send_signal(process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => {
            let place = PathBuf::from(format!("/proc/{number}"));
            Err(Error::io("signal", &place, io::Error::from(errno)))
        }
    };
    send(Signal::TERM)?;
    if is_over(process, FAREWELL) {
        return Ok(format!("its server ({number}) has ended"));
    }
    send(Signal::KILL)?;
    if is_over(process, PATIENCE) {
        return Ok(format!("killed its server ({number}), which did not end by itself"));
    }
    Err(Error::Invalid(format!(
        "the server, process {number}, was killed but does not end: it hangs in the kernel, most likely on the store's disk; \
         see `cat /proc/{number}/stack`"
    )))
}
