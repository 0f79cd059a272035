//! Everything that is worked out before any process is made. May allocate and read files, and refuses
//! requests.
//!
//! [`session`] is the request. [`seen`] is what the environment's own files say; [`user`] and [`account`]
//! find who runs the command; [`prepare`] puts together what the processes inside are given, and [`oci`] does
//! so for an OCI runtime. May use `policy`, and `inside` for the types that it fills in.

pub(super) mod account;
pub(super) mod environment;
pub(super) mod files;
pub(super) mod hosts;
pub(super) mod mounts;
pub(super) mod oci;
pub(super) mod prepare;
pub(super) mod seccomp;
pub(super) mod seen;
pub(super) mod session;
pub(super) mod strings;
pub(super) mod user;
