//! Set-user-id and set-group-id, as far as who asks decides what becomes of them: on a mount that handles
//! privileges itself (FUSE_HANDLE_KILLPRIV_V2) the kernel leaves that to us, and does not say all that it
//! knows of the caller.

use std::fs;

use fuser::Request;
use karapace_store::inode::{FileKind, Ino};

use super::Shared;
use crate::attr::{Attr, SetAttr};
use crate::error::Result;
use crate::view::View;

/// What the kernel sends as user id where it sends none: on a mount that may be id-mapped (FUSE_ALLOW_IDMAP),
/// with all requests but those that make something (`fuse_get_req` in fs/fuse/dev.c).
const NO_ID: u32 = u32::MAX;

impl Shared {
    /// The user id that the caller accesses files with, as the host has it. Where the request has none it is
    /// what /proc says of the caller, who waits for the answer; [`NO_ID`] for a process in another process
    /// namespace.
    pub(super) fn caller_uid(req: &Request) -> u32 {
        if req.uid() != NO_ID {
            return req.uid();
        }
        let status = status_of(req.pid());
        ids_in(&status, "Uid:").nth(FILE_ACCESS_ID).unwrap_or(NO_ID)
    }

    /// Whether a request that asks for nothing but that set-user-id goes is to be heeded. The kernel sends it
    /// before a write, for which it has seen a right to write, but also when anybody at all asks chown(2) to
    /// change nobody: that must not take set-user-id from a program of another's. (A write through an
    /// inherited descriptor says again what it takes, and fallocate(2) is asked about in
    /// [`Shared::drop_set_id_for`].)
    pub(super) fn may_drop_privileges(&self, req: &Request, view: &View, ino: Ino) -> Result<bool> {
        let attr = view.getattr(ino)?;
        let uid = Shared::caller_uid(req);
        let owns = uid == 0 || (req.uid() != NO_ID && uid == self.ids.uid(attr.uid));
        Ok(!self.kernel_permissions || owns || attr.mode & 0o022 != 0)
    }

    /// Drops set-user-id, set-group-id and file capabilities: the same as a chown to who owns it.
    pub(super) fn drop_set_id(view: &View, ino: Ino) -> Result<Attr> {
        view.setattr(ino, &SetAttr { kill_priv: true, ..SetAttr::default() })
    }

    /// Before fallocate(2), which has no word for it as a write has: drops what a caller who is not root may
    /// not keep.
    pub(super) fn drop_set_id_for(&self, req: &Request, view: &View, ino: Ino) -> Result<()> {
        let set_id = view.getattr(ino)?.mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        if !self.kernel_permissions || !set_id || Shared::caller_uid(req) == 0 {
            return Ok(());
        }
        self.drop_foreign_set_gid(req, view, ino)?;
        Shared::drop_set_id(view, ino).map(drop)
    }

    /// Drops set-group-id if the caller is not in the group: before it changes the content or the owner of a
    /// file, where the view does not see to it because the bit does not mean execution
    /// (`setattr_should_drop_sgid` of the kernel).
    pub(super) fn drop_foreign_set_gid(&self, req: &Request, view: &View, ino: Ino) -> Result<()> {
        let mode = view.getattr(ino)?.mode;
        let file = FileKind::from_mode(mode) != Some(FileKind::Directory);
        if file && mode & libc::S_IXGRP == 0 { self.drop_any_foreign_set_gid(req, view, ino) } else { Ok(()) }
    }

    /// Drops set-group-id if the caller is not in the group.
    pub(super) fn drop_any_foreign_set_gid(&self, req: &Request, view: &View, ino: Ino) -> Result<()> {
        let attr = view.getattr(ino)?;
        if attr.mode & libc::S_ISGID == 0 || is_in_group(req, self.ids.gid(attr.gid)) {
            return Ok(());
        }
        view.setattr(ino, &SetAttr { without: libc::S_ISGID, ..SetAttr::default() }).map(drop)
    }
}

/// The place of the id for file access in the lines `Uid:` and `Gid:` of proc_pid_status(5).
const FILE_ACCESS_ID: usize = 3;

/// Whether the caller is in a group, by its file access group or its supplementary ones, or is root, who need
/// not be. The caller waits for the answer to its request, so what /proc tells of it holds. Nobody but root
/// counts as in a group where requests have no ids: /proc has the host's, the mount may show others.
fn is_in_group(req: &Request, gid: u32) -> bool {
    if Shared::caller_uid(req) == 0 {
        return true;
    }
    req.uid() != NO_ID
        && (req.gid() == gid || ids_in(&status_of(req.pid()), "Groups:").any(|group| group == gid))
}

/// proc_pid_status(5) of a caller; empty for one in another process namespace, which has its own numbers.
fn status_of(pid: u32) -> String {
    let path = format!("/proc/{pid}/status");
    fs::read_to_string(&path).unwrap_or_else(|error| {
        tracing::debug!(path, %error, "the caller's ids are not known");
        String::new()
    })
}

/// The ids in one line of proc_pid_status(5).
fn ids_in<'a>(status: &'a str, name: &str) -> impl Iterator<Item = u32> + use<'a> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or("").split_ascii_whitespace().filter_map(|id| id.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_process() {
        let status = "Name:\tcat\nUid:\t1\t2\t3\t4\nGid:\t7\t7\t7\t7\nGroups:\t4 24 1000 \nNStgid:\t9\n";
        assert_eq!(ids_in(status, "Groups:").collect::<Vec<_>>(), [4, 24, 1000]);
        assert_eq!(ids_in(status, "Uid:").nth(FILE_ACCESS_ID), Some(4));
        assert_eq!(ids_in("Groups:\t \n", "Groups:").count() + ids_in("", "Groups:").count(), 0);
    }
}
