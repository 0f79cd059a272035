//! Running a command inside an environment, in namespaces of its own.
//!
//! ```text
//! karapace ── monitor ── command        karapace (a second session) ── monitor ── command
//!    orders →          ← reports
//!                          process 1 (one for all of them)
//! ```
//!
//! An *inside* is a set of namespaces with its process 1 ([`Backend::start`]); any number of sessions run one
//! command each in it ([`Backend::join`]). For root it has its own mount, pid, uts and ipc namespaces and
//! shares the caller's ids. For an ordinary user it also has a user namespace. If the root is mounted in a
//! ground, a user namespace with the whole range of ids that /etc/subuid grants the user ([`ranges`]), the
//! inside is in that one. Otherwise it gets one that maps only the caller's own id, to root or to the chosen
//! user. The only host programs that are run are newuidmap and newgidmap.
//!
//! - **Root.** The directory becomes `/` (pivot_root). Mounted on it are a new `/proc`, the host's `/sys`
//!   read-only, a small `/dev` (null, zero, full, random, urandom, tty, pts, shm, the usual links, and
//!   console if there is a terminal), the host's `resolv.conf`, an `/etc/hosts` that has the
//!   session's host name, and what the [`Policy`] lets in. `/run` and `/tmp` are the environment's own.
//!   Missing mount points are made by process 1; the server of an environment takes them for placeholders,
//!   which are not written into it. Nothing is mounted on the host.
//! - **Streams.** Standard input, output and error are the caller's own descriptors, and so are as many
//!   others as the caller asks for ([`Session::preserved`]). Karapace neither copies nor adds data.
//! - **Signals.** HUP, INT, QUIT, USR1, USR2, ALRM, TERM and WINCH sent to karapace are forwarded to the
//!   command, which has a process group of its own; `terminal` describes how the terminal is shared.
//!   Real-time signals are not forwarded.
//! - **End.** When the command ends, everything it left behind inside is killed. When karapace dies, however
//!   it dies, everything that its command started dies too. Process 1, and whatever else may live inside,
//!   ends with the last session.
//! - **Privileges.** Some system calls are denied (`seccomp`), and a command that has a single id cannot gain
//!   privileges by executing a program. Karapace's own processes inside reveal nothing of the caller
//!   (`conceal`). A root session is no sandbox: its root has most of the caller's capabilities
//!   (`capabilities`).
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
//! Dependencies: `supervise` → `plan` → `inside`; `policy` is below `plan`. Below all of them are `channel`
//! (the messages between the two sides), `sys`, `error` and `limits`. The engine uses only what is exported
//! here.
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
pub use plan::session::{Overlay, Session};
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
