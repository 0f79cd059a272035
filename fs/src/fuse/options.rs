//! The options of a mount.

use serde::{Deserialize, Serialize};

use crate::locks::LockScope;

/// Whether and how the control directory is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CtlDir {
    /// Reachable by name, not listed.
    #[default]
    Hidden,
    /// Listed too.
    Visible,
    /// There is no control directory; its name stays reserved.
    Disabled,
}

impl CtlDir {
    /// Each value with the word that users write.
    pub const WORDS: [(&str, CtlDir); 3] =
        [("hidden", CtlDir::Hidden), ("visible", CtlDir::Visible), ("disabled", CtlDir::Disabled)];
}

/// A flag of mount(8) that the kernel enforces by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    /// Every change is refused, including writes to the control files, until `mount -o remount,rw`.
    ReadOnly,
    /// Set-user-id, set-group-id and file capabilities are ignored.
    NoSuid,
    /// Device nodes cannot be opened.
    NoDev,
    /// No file can be executed.
    NoExec,
}

impl Flag {
    /// Each flag with its name in mount(8).
    pub const WORDS: [(&str, Flag); 4] =
        [("ro", Flag::ReadOnly), ("nosuid", Flag::NoSuid), ("nodev", Flag::NoDev), ("noexec", Flag::NoExec)];

    /// Its name in mount(8).
    pub(crate) fn word(self) -> &'static str {
        Flag::WORDS.iter().find(|(_, flag)| *flag == self).map_or("", |(word, _)| word)
    }
}

/// How to mount. Serialisable, because the process that serves a mount may not be the one that was asked to
/// mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountOptions {
    /// Refuse every change with `EROFS`. The kernel still lets control files be written: the engine decides
    /// which commands are allowed.
    pub read_only: bool,
    /// Further restrictions for the kernel to enforce. A mount made by an ordinary user always has
    /// [`Flag::NoSuid`] and [`Flag::NoDev`].
    pub flags: Vec<Flag>,
    /// The control directory.
    pub ctl_dir: CtlDir,
    /// Let other users in, with permissions checked by the kernel. A mount made by root always does; an
    /// ordinary user needs `user_allow_other` in /etc/fuse.conf.
    pub allow_other: bool,
    /// Number of threads that serve requests; at least 1.
    pub threads: usize,
    /// Let the kernel read a large file directly from its object, once the whole file has been verified. Only
    /// has an effect on a read-only mount made by root.
    pub passthrough: bool,
    /// Let root make id-mapped mounts of this one (mount_setattr(2), MOUNT_ATTR_IDMAP; Linux 6.12). The
    /// kernel then sends the caller's ids only with requests that create something, so there is no control
    /// directory. Only has an effect on a mount made by root.
    pub idmap: bool,
    /// Which locks on files exclude each other. The same for all mounts of a view.
    pub locks: LockScope,
    /// The view may be mounted elsewhere at the same time. Before the kernel reads from its cache, it then
    /// asks for the modification time, unless it knows that.
    pub shares: bool,
    /// The mount is for the sessions of the environment: of several mounts, its kernel is the one that
    /// caches.
    pub for_sessions: bool,
    /// Show the tree's ids from 1 on as these. Only has an effect on a mount made by an ordinary user and
    /// open to no other: where others have access, what each of them makes must show as theirs.
    pub sub_ids: Option<SubIds>,
}

/// The ids of the host that an ordinary user may use besides its own, as /etc/subuid and /etc/subgid list
/// them: ranges in order, each as its first id and its count. The ids of a kind are ignored if their ranges
/// overlap, contain 0 or the user's own id, or are not all mapped in the process's user namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubIds {
    /// User ids.
    pub uids: Vec<(u32, u32)>,
    /// Group ids.
    pub gids: Vec<(u32, u32)>,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            read_only: false,
            flags: Vec::new(),
            ctl_dir: CtlDir::default(),
            allow_other: false,
            threads: MountOptions::DEFAULT_THREADS,
            passthrough: false,
            idmap: false,
            locks: LockScope::default(),
            shares: false,
            for_sessions: false,
            sub_ids: None,
        }
    }
}

impl MountOptions {
    /// Default number of serving threads. More do not speed up a single caller; the second keeps a slow
    /// request (a cold read) from blocking the others.
    pub const DEFAULT_THREADS: usize = 2;

    /// The options as they take effect on a mount made by root, or by an ordinary user.
    pub(crate) fn in_effect(&self, by_root: bool) -> MountOptions {
        MountOptions {
            allow_other: self.allow_other || by_root,
            threads: self.threads.max(1),
            passthrough: self.passthrough && self.read_only && by_root,
            idmap: self.idmap && by_root,
            sub_ids: self.sub_ids.clone().filter(|_| !by_root && !self.allow_other),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_users_private_mount_shows_sub_ids() {
        let sub_ids = Some(SubIds { uids: vec![(100_000, 65_536)], gids: vec![(100_000, 65_536)] });
        let private = MountOptions { sub_ids: sub_ids.clone(), ..MountOptions::default() };
        let open = MountOptions { allow_other: true, ..private.clone() };
        assert_eq!(private.in_effect(false).sub_ids, sub_ids);
        assert_eq!((private.in_effect(true).sub_ids, open.in_effect(false).sub_ids), (None, None));
    }
}
