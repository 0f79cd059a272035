//! The few system calls without a safe wrapper.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};

pub use crate::common::sys::Mapping;

/// Runs `command` as root of a new user namespace (and mount namespace) with the given id maps. Consumes
/// `command`, because its `pre_exec` closure stays attached.
pub fn output_in_user_namespace(mut command: Command, map: &str) -> io::Result<Output> {
    let (mut ready, tell_ready) = io::pipe()?;
    let (wait_go, mut go) = io::pipe()?;
    let mut unblock = tell_ready.try_clone()?;
    let enter = move || {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
        (&tell_ready).write_all(&Pid::this().as_raw().to_ne_bytes())?;
        (&wait_go).read_exact(&mut [0])?;
        setgroups(&[])?;
        let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        Ok(())
    };
    // SAFETY: system calls on descriptors that outlive the fork, and no allocation.
    unsafe { command.pre_exec(enter) };
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    std::thread::scope(|scope| {
        // spawn() returns only after the child has executed the program, so this thread maps its ids
        // meanwhile.
        let running = scope.spawn(|| match command.spawn() {
            Ok(child) => child.wait_with_output(),
            Err(error) => unblock.write_all(&[0; 4]).and(Err(error)),
        });
        let mut pid = [0; 4];
        ready.read_exact(&mut pid)?;
        if pid == [0; 4] {
            return running.join().expect("the thread that waits for the child");
        }
        let process = format!("/proc/{}", i32::from_ne_bytes(pid));
        let mapped = fs::write(format!("{process}/uid_map"), map)
            .and_then(|()| fs::write(format!("{process}/gid_map"), map));
        // Even after a failure: the child waits for this, and the thread for the child.
        go.write_all(b"g")?;
        mapped.and(running.join().expect("the thread that waits for the child"))
    })
}

/// mount_setattr(2): mounts `source` again on `target`, with ids mapped as in the user namespace of process
/// `pid`.
pub fn mount_id_mapped(source: &Path, target: &Path, pid: u32) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/user"))?;
    let path = |path: &Path| std::ffi::CString::new(path.as_os_str().as_bytes());
    let (source, target) = (path(source)?, path(target)?);
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path outlives the call, which returns a descriptor that nothing else owns.
    let tree = unsafe {
        let fd = checked(libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, source.as_ptr(), flags))?;
        OwnedFd::from_raw_fd(fd)
    };
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_fd().as_raw_fd() as u64,
    };
    let (empty, size) = (c"".as_ptr(), size_of_val(&attributes));
    let fd = tree.as_raw_fd();
    // SAFETY: the attributes have the size passed, and they and the path outlive the call.
    unsafe {
        checked(libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            empty,
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size,
        ))?;
    }
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
    // SAFETY: both paths outlive the call.
    unsafe {
        checked(libc::syscall(libc::SYS_move_mount, fd, empty, libc::AT_FDCWD, target.as_ptr(), flags))?;
    }
    Ok(())
}

fn checked(result: libc::c_long) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
