//! Running sessions of an environment: each `enter` or `exec`, and a build for its scratch environment,
//! holds a shared lock on `env/<instance>/sessions` while it runs.
//!
//! It is an open file description lock, so a killed session leaves nothing behind, and the kernel can be
//! asked whether there is a session without taking the lock. The process that clears up after the last
//! session holds the lock exclusively meanwhile: the command that was the last to leave or, if all were
//! killed, the environment's serving process.

use std::convert::Infallible;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use karapace_store::id::InstanceId;
use karapace_store::metadata::{EnvState, Metadata};
use karapace_store::wait;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::engine::At as _;
use crate::engine::{Engine, Error, Result};

/// One session; ends on drop.
pub struct Session {
    file: File,
    path: PathBuf,
}

impl Session {
    /// Joins. Waits while the last of the earlier sessions ends its mount.
    pub fn join(engine: &Engine, instance: &InstanceId) -> Result<Session> {
        let path = path(engine, instance);
        let file = engine.store().files().open_or_make(&path);
        let file = file.at("open", &path)?;
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&lock(libc::F_RDLCK))) {
                Ok(_) => return Ok(Session { file, path }),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::io("lock", &path, errno.into())),
            }
        }
    }

    /// Ends the session. If no other is left, runs `last` before any new session can join.
    pub fn leave(self, last: impl FnOnce() -> Result<()>) -> Result<()> {
        match fcntl(&self.file, FcntlArg::F_OFD_SETLK(&lock(libc::F_WRLCK))) {
            Ok(_) => last(),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(()),
            Err(errno) => Err(Error::io("lock", &self.path, errno.into())),
        }
    }
}

/// Waits until no session is inside. No new session can join while the returned file is open.
pub fn wait_for_last(engine: &Engine, instance: &InstanceId) -> Result<File> {
    let path = path(engine, instance);
    let file = engine.store().files().open_or_make(&path);
    let file = file.at("open", &path)?;
    loop {
        match fcntl(&file, FcntlArg::F_OFD_SETLKW(&lock(libc::F_WRLCK))) {
            Ok(_) => return Ok(file),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::io("lock", &path, errno.into())),
        }
    }
}

/// Whether a session is inside.
pub fn running(engine: &Engine, instance: &InstanceId) -> bool {
    let Ok(file) = engine.store().files().open(&path(engine, instance)) else {
        return false;
    };
    let mut found = lock(libc::F_WRLCK);
    match fcntl(&file, FcntlArg::F_OFD_GETLK(&mut found)) {
        // A write lock belongs to the process that clears up after the last session.
        Ok(_) => i32::from(found.l_type) == libc::F_RDLCK,
        Err(errno) => {
            tracing::warn!("cannot tell whether {instance} has sessions: {errno}");
            false
        }
    }
}

/// How many sessions are inside: the shared locks on the file in /proc/locks (proc_locks(5)). 0 if that
/// cannot be read. Approximate while locks of other files come and go.
pub fn count(engine: &Engine, instance: &InstanceId) -> usize {
    // The kernel may take 10 ms to show that table, during which no file can be locked.
    if !running(engine, instance) {
        return 0;
    }
    let file = engine.store().files().stat(&path(engine, instance));
    let (Ok(file), Ok(table)) = (file, std::fs::read_to_string("/proc/locks")) else { return 0 };
    let inode = format!(":{}", file.st_ino);
    let is_session = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(1) == Some(&"OFDLCK")
            && words.get(3) == Some(&"READ")
            && words.get(5).is_some_and(|place| place.ends_with(&inode))
    };
    // While locks come and go elsewhere, the table may leave out one that is there.
    table.lines().filter(is_session).count().max(1)
}

/// Waits up to `patience` until no session is inside. Returns whether none is.
pub fn end_within(engine: &Engine, instance: &InstanceId, patience: Duration) -> bool {
    let over = || Ok::<_, Infallible>((!running(engine, instance)).then_some(()));
    matches!(wait::until(patience, over), Ok(Some(())))
}

/// The state to show: Running while a session is inside. The record never says Running, because after a kill
/// nothing would reset it.
pub fn shown_state(engine: &Engine, metadata: &Metadata) -> EnvState {
    if metadata.state == EnvState::Built && running(engine, &metadata.instance) {
        EnvState::Running
    } else {
        metadata.state
    }
}

fn path(engine: &Engine, instance: &InstanceId) -> PathBuf {
    engine.env_dir(instance).join("sessions")
}

fn lock(kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_to_leave_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let instance = InstanceId::from_bytes([7; 16]);
        std::fs::create_dir_all(engine.env_dir(&instance)).unwrap();
        assert!(!running(&engine, &instance));
        assert_eq!(count(&engine, &instance), 0);
        let first = Session::join(&engine, &instance).unwrap();
        let second = Session::join(&engine, &instance).unwrap();
        assert!(running(&engine, &instance));
        assert_eq!(count(&engine, &instance), 2);
        let (mut after_first, mut after_second) = (false, false);
        let note = |flag: &mut bool| {
            *flag = true;
            Ok(())
        };
        first.leave(|| note(&mut after_first)).unwrap();
        second.leave(|| note(&mut after_second)).unwrap();
        assert_eq!((after_first, after_second), (false, true));
        assert!(!running(&engine, &instance));
    }
}
