//! Commands that continue after their writer has been answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::command::Command;
use super::run::{Outcome, execute};
use super::{CommandError, ControlPlane};
use crate::error::{Error, Result};

/// Number of finished jobs kept for reading.
const KEPT: usize = 64;

struct Job {
    command: Command,
    /// `None` while it runs.
    outcome: Option<Outcome>,
    /// `None` until the thread has started, and once it has been joined.
    thread: Option<JoinHandle<()>>,
}

/// The jobs of a mount, numbered from 1.
#[derive(Default)]
pub(super) struct Jobs {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    last: u64,
    jobs: BTreeMap<u64, Job>,
}

impl Jobs {
    /// Starts `command` on a new thread and returns the job number.
    ///
    /// # Errors
    /// `EAGAIN` if no thread can be started.
    pub fn start(
        self: &Arc<Self>,
        plane: &Arc<dyn ControlPlane>,
        command: Command,
    ) -> std::result::Result<u64, CommandError> {
        let number = {
            let mut table = self.table.lock();
            table.last += 1;
            let number = table.last;
            table.jobs.insert(number, Job { command: command.clone(), outcome: None, thread: None });
            table.prune();
            number
        };
        let (jobs, plane) = (self.clone(), plane.clone());
        let started = std::thread::Builder::new().name(format!("karapace-job-{number}")).spawn(move || {
            let outcome = execute(&*plane, &command);
            tracing::info!(job = number, outcome = %outcome.line(), "job ended");
            if let Some(job) = jobs.table.lock().jobs.get_mut(&number) {
                job.outcome = Some(outcome);
            }
        });
        match started {
            Ok(thread) => {
                // The job may have ended and been forgotten already.
                if let Some(job) = self.table.lock().jobs.get_mut(&number) {
                    job.thread = Some(thread);
                }
                Ok(number)
            }
            Err(e) => {
                self.table.lock().jobs.remove(&number);
                Err(CommandError {
                    errno: libc::EAGAIN,
                    reason: format!("cannot start a thread for the job: {e}"),
                })
            }
        }
    }

    /// Numbers of the jobs that can be read, ascending.
    pub fn numbers(&self) -> Vec<u64> {
        self.table.lock().jobs.keys().copied().collect()
    }

    /// One line: `running <word>`, or the outcome as in `last`.
    ///
    /// # Errors
    /// `NotFound` if there is no such job.
    pub fn status(&self, number: u64) -> Result<String> {
        let table = self.table.lock();
        let job = table.jobs.get(&number).ok_or(Error::NotFound)?;
        Ok(match &job.outcome {
            None => format!("running {}", job.command.word()),
            Some(outcome) => outcome.line(),
        })
    }

    /// Waits for the jobs that are commits.
    pub fn join_commits(&self) {
        let mut threads = Vec::new();
        for job in self.table.lock().jobs.values_mut() {
            if let Command::Commit { .. } = job.command {
                threads.extend(job.thread.take());
            }
        }
        for thread in threads {
            // The job holds the outcome; a panic in the command was caught and is part of it.
            if thread.join().is_err() {
                tracing::error!("the thread of a job panicked");
            }
        }
    }

    /// Removes a finished job from the list.
    pub fn forget(&self, number: u64) -> std::result::Result<(), CommandError> {
        let mut table = self.table.lock();
        match table.jobs.get(&number) {
            None => Err(CommandError { errno: libc::ENOENT, reason: format!("no job {number}") }),
            Some(job) if job.outcome.is_none() => {
                Err(CommandError { errno: libc::EBUSY, reason: format!("job {number} is still running") })
            }
            Some(_) => {
                table.jobs.remove(&number);
                Ok(())
            }
        }
    }
}

impl Table {
    fn prune(&mut self) {
        let finished: Vec<u64> =
            self.jobs.iter().filter(|(_, j)| j.outcome.is_some()).map(|(n, _)| *n).collect();
        for number in finished.iter().take(finished.len().saturating_sub(KEPT)) {
            self.jobs.remove(number);
        }
    }
}
