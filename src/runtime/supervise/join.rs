//! Runs a command in an inside, from start to end.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::sched::CloneFlags;
use nix::sys::signal::SigSet;

use super::running::{Ended, Running, SignalMask};
use super::start;
use super::terminal::Terminal;
use crate::runtime::channel::Channel;
use crate::runtime::error::failed;
use crate::runtime::inside::conceal::StartStrings;
use crate::runtime::inside::monitor::{self, Command};
use crate::runtime::inside::namespaces::Namespaces;
use crate::runtime::plan::session::Session;
use crate::runtime::sys::Filter;
use crate::runtime::{RuntimeError, limits, sys};

/// Runs a command in an existing inside. `make` gets the command's terminal ([`Command::terminal`]) and the
/// caller's signal mask.
pub(super) fn join(
    session: &Session,
    namespaces: Namespaces,
    make: impl FnOnce(Option<(OwnedFd, bool)>, SigSet) -> Result<Command, RuntimeError>,
) -> Result<Ended, RuntimeError> {
    let terminal = if session.output.is_some() { None } else { Terminal::of_job() };
    let handle = terminal.as_ref().map(|terminal| Ok((terminal.handle()?, terminal.foreground)));
    let handle = handle.transpose().map_err(failed("share the terminal"))?;
    let mask = SignalMask::block_all().map_err(failed("block signals"))?;
    let mut command = make(handle, mask.before())?;
    // Removed on drop, when no process of the session is left.
    let group = session.policy.limits.enforce();
    command.group = group.as_ref().map(limits::Group::entry).transpose().map_err(failed("limit"))?;
    let (channel, inner) = Channel::pair().map_err(failed("make a socket pair"))?;
    let Some(helper) = sys::clone_process(CloneFlags::empty()).map_err(failed("start a process"))? else {
        // Otherwise the monitor would hold karapace's end open and never see it close.
        drop(channel);
        monitor::enter(&namespaces, &command, &inner)
    };
    // Held any longer, the namespaces would keep their mounts alive.
    drop((inner, namespaces));
    let monitor = start::started(&channel, helper)?;
    let program =
        session.argv.first().map_or_else(|| command.program(), |p| p.to_string_lossy().into_owned());
    let workdir = session.workdir.clone().unwrap_or_else(|| PathBuf::from("/"));
    Running { monitor, channel, terminal, program, workdir, mask: &mask }.wait()
}

/// Sends a signal to every process inside except process 1 and the monitors, and continues stopped ones.
///
/// # Errors
/// [`RuntimeError`]. It is no error if there is no such process.
pub fn signal_all(namespaces: Namespaces, signal: i32) -> Result<(), RuntimeError> {
    let own = (&StartStrings::find()?, &Filter::new()?);
    let mask = SignalMask::block_all().map_err(failed("block signals"))?;
    let (channel, inner) = Channel::pair().map_err(failed("make a socket pair"))?;
    let Some(helper) = sys::clone_process(CloneFlags::empty()).map_err(failed("start a process"))? else {
        drop(channel);
        monitor::signal(&namespaces, signal, own, &inner)
    };
    drop((inner, namespaces));
    let sender = start::started(&channel, helper)?;
    drop(mask);
    start::reap(sender)
}
