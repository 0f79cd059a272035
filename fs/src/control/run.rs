//! Runs commands: the effect of a write to `ctl`, a `mkdir` or a `rmdir`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::command::{Command, Line, MAX_TEXT, parse_commands};
use super::nodes::{Dir, FileNode, Role};
use super::{CommandError, ControlDir, ControlPlane, Found};
use crate::errno::errno_name;
use crate::error::{Error, Result};
use karapace_store::inode::Ino;
use karapace_store::text;

/// Result of a command.
#[derive(Clone, Debug)]
pub(super) struct Outcome(pub std::result::Result<String, CommandError>);

impl Outcome {
    fn failed(errno: i32, reason: impl Into<String>) -> Outcome {
        Outcome(Err(CommandError { errno, reason: reason.into() }))
    }

    /// `ok commit <hash>` or `error EINVAL <reason>`: always one line, whatever the reason contains.
    pub fn line(&self) -> String {
        let line = match &self.0 {
            Ok(text) => format!("ok {text}"),
            Err(e) => format!("error {} {}", errno_name(e.errno), e.reason),
        };
        text::line(line.trim_end()).into_owned()
    }
}

/// Runs one command to completion.
pub(super) fn execute(plane: &dyn ControlPlane, command: &Command) -> Outcome {
    let _span = tracing::debug_span!("command", from = "control", ?command).entered();
    Outcome(contained(command, || plane.execute(command)).and_then(|result| result))
}

/// Calls `perform`, which performs `command` in a process that serves others too.
///
/// # Errors
/// EIO if it panicked; the panic ends here.
pub fn contained<T>(command: &Command, perform: impl FnOnce() -> T) -> std::result::Result<T, CommandError> {
    catch_unwind(AssertUnwindSafe(perform)).map_err(|_| {
        tracing::error!(?command, "a command panicked");
        let reason = format!("{} failed with an internal error; see the log of the mount", command.word());
        CommandError { errno: libc::EIO, reason }
    })
}

impl ControlDir {
    /// Handles a write of `data` at `offset` to a file. Blocks until the commands are done.
    ///
    /// # Errors
    /// The errno of the first command that failed; the commands before it have run.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8]) -> std::result::Result<usize, i32> {
        let node = self.nodes.get(ino).map_err(|e| e.errno())?;
        let outcomes = match node.role {
            Role::Text => return Err(libc::EACCES),
            Role::Ctl => self.run_text(data),
            Role::JobCtl(job) => vec![self.run_job_text(job, data)],
        };
        let result = match outcomes.last() {
            Some(Outcome(Err(e))) => Err(e.errno),
            _ => Ok(data.len()),
        };
        // A failed write leaves the descriptor's offset unchanged.
        let at = offset + if result.is_ok() { data.len() as u64 } else { 0 };
        self.answer(&node, at, &outcomes);
        result
    }

    /// Whether commands may be written to this node.
    pub fn is_writable(&self, ino: Ino) -> bool {
        self.nodes.get(ino).is_ok_and(|node| node.role != Role::Text)
    }

    /// `mkdir snapshots/<name>`: commits under that name. Blocks until the commit is durable.
    pub fn mkdir(&self, parent: Ino, name: &[u8]) -> std::result::Result<Found, i32> {
        if Dir::from_ino(parent) != Some(Dir::Snapshots) {
            return Err(libc::EPERM);
        }
        let outcome = match std::str::from_utf8(name) {
            Ok(name) => {
                let command = Command::Commit { name: Some(name.into()), message: None, paths: Vec::new() };
                match command.check() {
                    Ok(()) => execute(&*self.plane, &command),
                    Err(reason) => Outcome::failed(libc::EINVAL, reason),
                }
            }
            Err(_) => Outcome::failed(libc::EINVAL, "bad name: not UTF-8"),
        };
        self.remember(&outcome);
        match outcome.0 {
            Err(e) => Err(e.errno),
            Ok(_) => self.find_snapshot(name).ok_or(libc::EIO),
        }
    }

    /// `rmdir snapshots/<name>`: removes the name from its snapshot.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> std::result::Result<(), i32> {
        if Dir::from_ino(parent) != Some(Dir::Snapshots) {
            return Err(libc::EPERM);
        }
        let named = self.plane.snapshots().into_iter().filter_map(|s| s.name).find(|n| n.as_bytes() == name);
        let Some(name) = named else {
            // A hash is not a name; `karapace snapshots rm` removes snapshots.
            return Err(if self.find_snapshot(name).is_some() { libc::EPERM } else { libc::ENOENT });
        };
        let outcome = execute(&*self.plane, &Command::DropName { name });
        self.remember(&outcome);
        outcome.0.map(drop).map_err(|e| e.errno)
    }

    fn run_text(&self, data: &[u8]) -> Vec<Outcome> {
        if data.len() > MAX_TEXT {
            return vec![Outcome::failed(libc::E2BIG, format!("more than {MAX_TEXT} bytes of commands"))];
        }
        let lines = match parse_commands(data) {
            Ok(lines) => lines,
            Err(reason) => return vec![Outcome::failed(libc::EINVAL, reason)],
        };
        let mut outcomes = Vec::new();
        for Line { command, is_job } in lines {
            let outcome = if is_job {
                Outcome(self.jobs.start(&self.plane, command).map(|number| format!("job {number}")))
            } else {
                execute(&*self.plane, &command)
            };
            let failed = outcome.0.is_err();
            outcomes.push(outcome);
            if failed {
                break;
            }
        }
        outcomes
    }

    fn run_job_text(&self, job: u64, data: &[u8]) -> Outcome {
        match data.trim_ascii() {
            b"forget" => Outcome(self.jobs.forget(job).map(|()| format!("forget {job}"))),
            other => Outcome::failed(
                libc::EINVAL,
                format!("unknown command {:?}; known: forget", String::from_utf8_lossy(other)),
            ),
        }
    }

    /// Sets the outcome lines as the reply at offset `at`, and the last of them as `last`.
    fn answer(&self, node: &FileNode, at: u64, outcomes: &[Outcome]) {
        let reply: String = outcomes.iter().map(|o| o.line() + "\n").collect();
        node.set_reply(at, reply.into_bytes());
        if let Some(outcome) = outcomes.last() {
            self.remember(outcome);
        }
    }

    fn remember(&self, outcome: &Outcome) {
        *self.last.lock() = outcome.line();
    }

    /// Waits for commits that run as jobs, before the mount ends. Other jobs can be started again later.
    pub fn finish_commits(&self) {
        self.jobs.join_commits();
    }

    /// Checks a change of attributes: only truncating a `ctl` to zero and setting times are allowed.
    pub fn may_setattr(&self, ino: Ino, size: Option<u64>, owner_or_mode: bool) -> Result<()> {
        if owner_or_mode {
            return Err(Error::NotPermitted);
        }
        let Some(size) = size else { return Ok(()) };
        if Dir::from_ino(ino).is_some() {
            return Err(Error::IsDirectory);
        }
        let node = self.nodes.get(ino)?;
        match (node.role, size) {
            (Role::Text, _) => Err(Error::Access),
            (_, 0) => {
                node.clear();
                Ok(())
            }
            _ => Err(Error::Invalid("a control file can only be truncated to 0")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_one_line_of_text() {
        let outcome = Outcome::failed(libc::EINVAL, "no such path: /a\x1b[2J\nok commit\r\u{9b}\n");
        assert_eq!(outcome.line(), "error EINVAL no such path: /a\\033[2J\\nok commit\\r\\302\\233");
        assert_eq!(Outcome(Ok("commit abc".to_owned())).line(), "ok commit abc");
    }
}
