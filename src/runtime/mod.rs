//! Running a command inside an environment, in namespaces of its own.
//!
//! ```text
//! karapace ── monitor ── command        karapace (a second session) ── monitor ── command
//!    orders →          ← reports
//!                          process 1 (one for all of them)
//! ```
//!
//! An *inside* is a set of namespaces with its process 1 ([`Backend::start`]); any number of sessions run a
//! command each in it ([`Backend::join`]). As root it has mount, pid, uts and ipc namespaces of its own and
//! shares the caller's ids. As an ordinary user it also has a user namespace: one with the whole range of ids
//! that /etc/subuid gives the user ([`ranges`]), if the root is mounted in such a one, else one in which the
//! caller's own id is shown as root's (or as the chosen user's) and no other id exists. No program of the
//! host is run, but for newuidmap and newgidmap.
//!
//! - **Root.** The directory becomes `/` (pivot_root). On it come a new `/proc`, the host's `/sys` read-only,
//!   a small `/dev` (null, zero, full, random, urandom, tty, pts, shm, the usual links, and console where
//!   there is a terminal), the host's `resolv.conf`, read-only, an `/etc/hosts` that knows the session's host
//!   name, and what the [`Policy`] lets in. `/run` and `/tmp` are the environment's own. Missing mount points
//!   are made in the environment. On the host nothing is mounted.
//! - **Streams.** Standard input, output and error are the caller's own descriptors, and so are as many
//!   others as are asked for ([`Session::preserved`]). Nothing is copied or added.
//! - **Signals.** HUP, INT, QUIT, USR1, USR2, ALRM, TERM and WINCH sent to karapace go to the command, which
//!   is a process group of its own; how the terminal is shared stands in `terminal`. Real-time signals are
//!   not passed on.
//! - **End.** When the command ends, everything it left behind inside is killed. When karapace dies, however
//!   it dies, so does everything that its command started. With the last session ends process 1, and all else
//!   that may live inside.
//! - **Privileges.** Some system calls are denied (`seccomp`), and a command that has one id cannot gain
//!   privileges by executing a program. What karapace itself has inside shows nothing of the caller
//!   (`conceal`). A root session is no cage: its root has most capabilities of the caller's (`capabilities`).
//!
//! ## Rooms
//!
//! | | |
//! |---|---|
//! | `policy` | what of the host the manifest and the caller let in |
//! | `plan` | everything that a session's processes need, worked out before there is any; may allocate |
//! | `inside` | what runs after `clone`; must not allocate, lock, print or panic |
//! | `supervise` | karapace's own side, which makes the processes and lives on beside them |
//!
//! Arrows: `supervise` → `plan` → `inside`; `policy` below `plan`. Below them all stand `channel` (what the
//! two sides tell each other), `sys`, `error` and `limits`. The engine uses what is named here and nothing
//! else.
//!
//! Needs Linux 5.12 (`openat2`, the fd-based mount calls, `mount_setattr`).

mod channel;
mod error;
mod inside;
mod limits;
mod plan;
mod policy;
mod supervise;
mod sys;

pub use error::RuntimeError;
pub use inside::namespaces::Namespaces;
pub use limits::Limits;
pub use plan::account::{Accounts, SELF};
pub use plan::seen::Seen;
pub use plan::session::Session;
pub use plan::user::User;
pub use policy::home::HomeMode;
pub use policy::host_mounts::check_mounts;
pub use policy::{Caller, Choices, Policy, Share, ShareKind};
pub use supervise::backend;
pub use supervise::backend::Backend;
pub use supervise::join::signal_all;
pub use supervise::namespaces::NamespaceId;
pub use supervise::ranges;
pub use supervise::running::Ended;
pub use supervise::start::Started;

pub(crate) use plan::environment::PATH;
pub(crate) use plan::prepare::has_ids;
pub(crate) use plan::user::{SHELL, root_shell};
