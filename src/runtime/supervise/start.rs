//! Makes an inside: process 1 and its namespaces, in which commands are then run.

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::Pid;

use super::refusal;
use super::running::{SignalMask, skipped};
use crate::runtime::channel::{Channel, MessageBuffer, Order, Report};
use crate::runtime::error::failed;
use crate::runtime::inside::helper;
use crate::runtime::inside::init::{self, Preparation};
use crate::runtime::inside::namespaces::Namespaces;
use crate::runtime::{RuntimeError, sys};

/// An inside that is ready for commands ([`Backend::join`](crate::runtime::Backend::join)). It ends, with
/// everything in it, when all copies of `lifeline` are closed.
#[derive(Debug)]
pub struct Started {
    /// What a process must enter to be inside.
    pub namespaces: Namespaces,
    /// Process 1 lives while a copy of this is open anywhere.
    pub lifeline: OwnedFd,
    /// Process 1, a child of this process.
    pub init: Pid,
}

impl Started {
    /// Closes this copy of the lifeline and waits until every process inside has ended. All other copies must
    /// be closed too.
    ///
    /// # Errors
    /// [`RuntimeError::Supervise`].
    pub fn end(self) -> Result<(), RuntimeError> {
        let Started { namespaces, lifeline, init } = self;
        drop((namespaces, lifeline));
        reap(init)
    }
}

/// What is done with process 1 before it does anything.
pub type Told<'a> = &'a mut dyn FnMut(Pid) -> io::Result<()>;

/// Makes the inside that `preparation` describes. `ground` and `told` as in
/// [`Backend::start`](crate::runtime::Backend::start).
pub(in crate::runtime) fn start(
    mut preparation: Preparation,
    ground: Option<Namespaces>,
    told: Told<'_>,
) -> Result<Started, RuntimeError> {
    let (outer, inner) = Channel::pair().map_err(failed("make a socket pair"))?;
    let mut kinds = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    if preparation.id_map.is_some() {
        kinds |= CloneFlags::CLONE_NEWUSER;
    }
    if preparation.isolate_network {
        kinds |= CloneFlags::CLONE_NEWNET;
    }
    // New processes start with all signals blocked.
    let mask = SignalMask::block_all().map_err(failed("block signals"))?;
    let init = match &ground {
        None => match sys::clone_process(kinds).map_err(refusal::namespaces)? {
            Some(init) => init,
            None => {
                // Otherwise process 1 would hold karapace's end open and never see it close.
                drop(outer);
                init::begin(&mut preparation, kinds, &inner)
            }
        },
        Some(ground) => {
            let Some(helper) = sys::clone_process(CloneFlags::empty()).map_err(failed("start a process"))?
            else {
                drop(outer);
                helper::from_ground(ground, kinds, &mut preparation, &inner)
            };
            started(&outer, helper)?
        }
    };
    drop((inner, mask));
    let told = told(init).map_err(|source| RuntimeError::Supervise { action: "announce process 1", source });
    match told.and_then(|()| prepared(&outer, kinds)) {
        Ok(namespaces) => {
            let namespaces = match ground {
                Some(ground) => namespaces.complete(ground),
                None => namespaces,
            };
            Ok(Started { namespaces, lifeline: outer.into_fd(), init })
        }
        Err(error) => {
            drop(outer);
            reap(init)?;
            Err(error)
        }
    }
}

/// Waits until process 1 has set everything up. Returns its namespaces.
fn prepared(channel: &Channel, kinds: CloneFlags) -> Result<Namespaces, RuntimeError> {
    channel.order(Order::Prepare).map_err(failed("start the session"))?;
    let (mut buffer, mut descriptors) = (MessageBuffer::new(), Vec::new());
    loop {
        let report = channel.next_report_with(&mut buffer, &mut descriptors);
        match report.map_err(failed("receive reports from the session"))? {
            Some(Report::Ready) => {
                let namespaces = Namespaces::announced(kinds, descriptors);
                return namespaces
                    .ok_or(Errno::EBADMSG)
                    .map_err(failed("receive the namespaces of the session"));
            }
            Some(Report::Skipped(failure)) => skipped(&failure),
            Some(Report::Failed(failure)) => return Err(refusal::setup(&failure)),
            other => {
                tracing::debug!(?other, "instead of being ready");
                return Err(failed("start the session")(Errno::ECHILD));
            }
        }
    }
}

/// Returns the process that `helper`, which is about to exit, made for us.
pub(in crate::runtime) fn started(channel: &Channel, helper: Pid) -> Result<Pid, RuntimeError> {
    let mut buffer = MessageBuffer::new();
    let report = channel.next_report(&mut buffer).map_err(failed("receive reports from the session"))?;
    let made = match report {
        Some(Report::Started(pid)) => Ok(Pid::from_raw(pid)),
        Some(Report::Failed(failure)) => Err(refusal::setup(&failure)),
        other => {
            tracing::debug!(?other, "instead of a process");
            Err(failed("enter the session")(Errno::ECHILD))
        }
    };
    reap(helper)?;
    made
}

/// Waits for a child to end. It is no error if the kernel has reaped it already because SIGCHLD is ignored.
pub(in crate::runtime) fn reap(child: Pid) -> Result<(), RuntimeError> {
    match sys::wait(Some(child), 0) {
        Ok(_) | Err(Errno::ECHILD) => Ok(()),
        Err(errno) => Err(failed("wait for the session")(errno)),
    }
}
