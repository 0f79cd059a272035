//! Ending a mount that does not answer any more.
//!
//! What returned is in the upper, journal and data, since before it returned: cutting the mount off, or
//! killing the process that serves it, loses nothing of it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use karapace_store::metadata::Metadata;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::engine::At as _;
use crate::engine::mountpoint;
use crate::engine::server::client::Client;
use crate::engine::server::keeper::is_over;
use crate::engine::{Engine, Error, Result};

/// Where the kernel lists its FUSE connections, by the device number of the mount.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// How long the serving process may take to end by itself.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long it may take to die once it was killed.
const PATIENCE: Duration = Duration::from_secs(20);

/// What became of a mount that was ended by force.
#[derive(Debug)]
pub struct Forced {
    /// Where it was.
    pub dir: PathBuf,
    /// What was done, in order, each a short sentence without a full stop.
    pub done: Vec<String>,
}

impl Engine {
    /// Ends the mount that `target` names as [`Engine::umount`] does, asking neither the process that serves
    /// it nor anyone who uses it: detached, cut off, and what serves it ended.
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
        // Where it is not mounted here any more, what was recorded counts, as long as it is served: then no
        // other has the number.
        let recorded = match (&env, &server) {
            (Some(env), Some(_)) => self.recorded_mount(&env.instance)?.and_then(|mount| mount.device),
            _ => None,
        };
        let connection = here.or(recorded);
        if here.is_some() {
            // Who serves it may be what keeps it from being detached; then it goes once that is gone.
            match mountpoint::unmount(&forced.dir, true) {
                Ok(()) => forced.done.push(format!("detached {}", forced.dir.display())),
                Err(error) => tracing::info!("not detached yet: {error}"),
            }
        }
        if let Some(number) = connection
            && abort(number)
        {
            forced.done.push("cut the connection off".to_owned());
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

    /// The process that serves an environment, held so that no other can take its id.
    fn server_of(&self, env: &Metadata) -> Result<Option<(Pid, OwnedFd)>> {
        let dir = self.env_dir(&env.instance);
        loop {
            let Some(pid) = self.listener(&dir)? else { return Ok(None) };
            match pidfd_open(pid, PidfdFlags::empty()) {
                // It listens still, so it is the process that the id meant all the time.
                Ok(process) if self.listener(&dir)? == Some(pid) => return Ok(Some((pid, process))),
                Ok(_) | Err(rustix::io::Errno::SRCH) => {}
                Err(errno) => return Err(Error::io("hold the process that serves", &dir, errno.into())),
            }
        }
    }

    /// Who listens on an environment's socket. The kernel knows, and it needs no answer.
    fn listener(&self, env_dir: &Path) -> Result<Option<Pid>> {
        let Some(client) = Client::connect(self.store().files(), env_dir)? else { return Ok(None) };
        let pid = client.server().at("ask who serves", env_dir)?;
        Ok(Pid::from_raw(pid))
    }
}

/// Has the kernel fail everything that waits for this connection. Whether it did; not everyone may, and not
/// every system has the files for it.
fn abort(number: u32) -> bool {
    let connection = Path::new(CONNECTIONS).join(number.to_string());
    match fs::write(connection.join("abort"), "1") {
        Ok(()) => true,
        Err(error) => {
            tracing::info!("not cut off by {}: {error}", connection.display());
            false
        }
    }
}

/// Ends the serving process: asks it, and kills it when it does not end. Says which.
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
        return Ok(format!("the process that served it ({number}) has ended"));
    }
    send(Signal::KILL)?;
    if is_over(process, PATIENCE) {
        return Ok(format!("killed the process that served it ({number}), which did not end by itself"));
    }
    Err(Error::Invalid(format!(
        "process {number}, which serves it, was killed and does not die: it hangs in the kernel, most likely on the disk of \
         the store; see `cat /proc/{number}/stack`"
    )))
}
