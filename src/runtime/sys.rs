//! System calls that nix has no safe wrapper for. This is the only unsafe code of the runtime.
//!
//! Nothing here allocates or takes a lock, except [`ExecStrings::new`], so that it may run between `clone`
//! and `exec` in a process whose other threads are gone. Errors are raw [`Errno`]s; the callers name action
//! and path.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::Pid;

/// A seccomp filter: a classic BPF program.
pub(super) struct Filter(pub(super) Vec<libc::sock_filter>);

type Result<T> = std::result::Result<T, Errno>;

/// Strings in the form that `execve` needs: an array of pointers that ends with a null pointer.
pub(super) struct ExecStrings {
    /// Owns what `pointers` point at.
    _strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl ExecStrings {
    /// Takes ownership of the strings; their bytes do not move while `self` lives.
    pub fn new(strings: Vec<CString>) -> ExecStrings {
        let mut pointers: Vec<_> = strings.iter().map(|s| s.as_ptr()).collect();
        pointers.push(std::ptr::null());
        ExecStrings { _strings: strings, pointers }
    }
}

/// Forks the calling thread into a new process, in new namespaces of the given kinds. `None` in the child.
///
/// Does not use the C library's fork: its hooks take locks that other threads may hold. So the child must not
/// allocate, lock or panic, and must end in [`execve`] or [`exit`].
pub(super) fn clone_process(namespaces: CloneFlags) -> Result<Option<Pid>> {
    let flags = libc::c_long::from(namespaces.bits()) | libc::c_long::from(libc::SIGCHLD);
    let none: libc::c_long = 0;
    // SAFETY: no CLONE_VM and no stack, so this behaves as fork(2): the child goes on with a copy of the
    // address space, of which it is the only thread. The remaining arguments are unused without their flags.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    match Errno::result(pid)? {
        0 => Ok(None),
        pid => Ok(Some(Pid::from_raw(pid as libc::pid_t))),
    }
}

/// Ends the process at once, running no destructors.
pub(super) fn exit(status: i32) -> ! {
    // SAFETY: _exit has no preconditions and does not return.
    unsafe { libc::_exit(status) }
}

/// Replaces the process image. Returns only on failure.
pub(super) fn execve(program: &CStr, argv: &ExecStrings, envp: &ExecStrings) -> Errno {
    // SAFETY: `program` is NUL-terminated, and both arrays hold pointers to live NUL-terminated strings and
    // end in a null pointer, as ExecStrings::new made them.
    unsafe { libc::execve(program.as_ptr(), argv.pointers.as_ptr(), envp.pointers.as_ptr()) };
    Errno::last()
}

/// Waits for a child (`None`: any). Returns its process id and raw wait status, or `None` under WNOHANG if no
/// child has changed state. Unlike nix's, it handles children killed by real-time signals.
pub(super) fn wait(child: Option<Pid>, flags: libc::c_int) -> Result<Option<(Pid, libc::c_int)>> {
    let mut status = 0;
    // SAFETY: `status` is a live, writable int.
    let pid = unsafe { libc::waitpid(child.map_or(-1, Pid::as_raw), &raw mut status, flags) };
    match Errno::result(pid)? {
        0 => Ok(None),
        pid => Ok(Some((Pid::from_raw(pid), status))),
    }
}

/// Sends any signal, including real-time ones, which nix cannot name. A process that is gone is no error.
pub(super) fn kill(pid: Pid, signal: libc::c_int) -> Result<()> {
    // SAFETY: plain integers.
    match Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }) {
        Err(Errno::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}

/// Replaces the descriptor `number`, whatever is open there, with a copy of `fd` that survives exec.
pub(super) fn replace_fd(fd: &OwnedFd, number: RawFd) -> Result<()> {
    // SAFETY: only called in processes made by `clone_process`, for descriptors that no owner there uses any
    // more (0 to 2).
    Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), number) }).map(drop)
}

/// Closes every descriptor from `first` on except those in `keep`. The process must not use the closed ones
/// again, through any owner.
pub(super) fn close_all_but(keep: &[Option<&OwnedFd>], first: RawFd) -> Result<()> {
    let close = |first: libc::c_uint, last: libc::c_uint| {
        if first > last {
            return Ok(());
        }
        let flags: libc::c_uint = 0;
        // SAFETY: called in processes made by `clone_process` only, which from here on use those below the
        // first, those in `keep` and what they open later; owners of the closed ones live in frames that
        // never return (all end in `exit`).
        Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
    };
    let mut first = first as libc::c_uint;
    while let Some(kept) =
        keep.iter().flatten().map(|fd| fd.as_raw_fd() as libc::c_uint).filter(|n| *n >= first).min()
    {
        close(first, kept.saturating_sub(1))?;
        first = kept + 1;
    }
    close(first, libc::c_uint::MAX)
}

/// Clears close-on-exec on these descriptors, which are the caller's. EBADF if one is not open.
pub(super) fn keep_across_exec(descriptors: std::ops::Range<RawFd>) -> Result<()> {
    for number in descriptors {
        // SAFETY: plain integers; a number that is not open gives EBADF.
        Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, 0) })?;
    }
    Ok(())
}

/// Switches permanently to the given ids (real, effective and saved) and to exactly these supplementary
/// groups.
///
/// Uses raw system calls: the C library's wrappers would signal threads that a cloned process does not have.
pub(super) fn set_ids(uid: u32, gid: u32, groups: &[libc::gid_t]) -> Result<()> {
    // SAFETY: the pointer and the length describe the live slice `groups`, which the kernel only reads.
    Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    // SAFETY: plain integers.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: plain integers.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Returns a detached copy of the mount at `path` (and of all mounts below it if `recursive`), like a bind
/// mount.
pub(super) fn open_tree(path: &CStr, recursive: bool) -> Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    // SAFETY: `path` is NUL-terminated; the kernel only reads it.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    owned(fd)
}

/// Like [`open_tree`], for what a descriptor refers to; an O_PATH descriptor will do.
pub(super) fn open_tree_at(place: &OwnedFd, recursive: bool) -> Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as libc::c_uint;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    // SAFETY: a live descriptor and an empty NUL-terminated path, which the kernel only reads.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, place.as_raw_fd(), c"".as_ptr(), flags) };
    owned(fd)
}

/// Creates a file system of a type that needs no device, not attached anywhere. `options` are (key, value)
/// strings, `attributes` are `MOUNT_ATTR_*` bits.
pub(super) fn new_filesystem(
    kind: &CStr,
    options: &[(&CStr, Cow<'_, CStr>)],
    attributes: u64,
) -> Result<OwnedFd> {
    let context = new_context(kind)?;
    for (key, value) in options {
        fsconfig(&context, libc::FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())?;
    }
    mount_context(&context, attributes)
}

/// Creates an overlay, not attached anywhere. `flags` are the options that have no value.
pub(super) fn new_overlay(
    places: &[(&CStr, Cow<'_, CStr>)],
    options: &[(&CStr, Cow<'_, CStr>)],
    flags: &[&CStr],
) -> Result<OwnedFd> {
    let context = new_context(c"overlay")?;
    for (key, value) in places.iter().chain(options) {
        fsconfig(&context, libc::FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())?;
    }
    for flag in flags {
        fsconfig(&context, libc::FSCONFIG_SET_FLAG, flag.as_ptr(), std::ptr::null())?;
    }
    mount_context(&context, 0)
}

/// A file system that is not made yet.
fn new_context(kind: &CStr) -> Result<OwnedFd> {
    // SAFETY: `kind` is NUL-terminated; the kernel only reads it.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) })?;
    // The mount table shows this as the device.
    fsconfig(&context, libc::FSCONFIG_SET_STRING, c"source".as_ptr(), kind.as_ptr())?;
    Ok(context)
}

fn mount_context(context: &OwnedFd, attributes: u64) -> Result<OwnedFd> {
    fsconfig(context, libc::FSCONFIG_CMD_CREATE, std::ptr::null(), std::ptr::null())?;
    let attributes = attributes as libc::c_uint;
    // SAFETY: a live descriptor and plain integers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, attributes) })
}

fn fsconfig(
    context: &OwnedFd,
    command: libc::fsconfig_command,
    key: *const libc::c_char,
    value: *const libc::c_char,
) -> Result<()> {
    let aux: libc::c_int = 0;
    // SAFETY: `key` and `value` are null or point to NUL-terminated strings that outlive the call (the
    // callers above pass nothing else), and the kernel only reads them.
    let done = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, aux) };
    Errno::result(done).map(drop)
}

/// Adds `MOUNT_ATTR_*` bits to a detached mount (and to every mount below it if `recursive`).
pub(super) fn add_attributes(mount: &OwnedFd, attributes: u64, recursive: bool) -> Result<()> {
    let change = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty NUL-terminated string, and pointer and size describe the live `change`,
    // which the kernel only reads.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const change,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(done).map(drop)
}

/// Attaches a detached mount at `target`. With `follow`, a symlink there is followed; otherwise the mount
/// covers the symlink itself.
pub(super) fn move_mount(mount: &OwnedFd, target: &CStr, follow: bool) -> Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | if follow { libc::MOVE_MOUNT_T_SYMLINKS } else { 0 };
    // SAFETY: both paths are NUL-terminated, and the kernel only reads them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            flags,
        )
    };
    Errno::result(done).map(drop)
}

fn owned(fd: libc::c_long) -> Result<OwnedFd> {
    let fd = Errno::result(fd)?;
    // SAFETY: the call that returned it has just opened this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Permanently installs a seccomp filter for the calling thread and everything that it starts.
pub(super) fn set_filter(filter: &Filter) -> Result<()> {
    let length = libc::c_ushort::try_from(filter.0.len()).map_err(|_| Errno::E2BIG)?;
    let program = libc::sock_fprog { len: length, filter: filter.0.as_ptr().cast_mut() };
    let flags: libc::c_uint = 0;
    // SAFETY: `program` describes the live instructions of `filter`, which the kernel only reads.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    Errno::result(done).map(drop)
}

/// Marks a network interface as up, as `ip link set NAME up` does. `socket` is any socket in the interface's
/// network namespace. EINVAL if the name is too long.
pub(super) fn raise_interface(socket: &OwnedFd, name: &CStr) -> Result<()> {
    let name = name.to_bytes_with_nul();
    if name.len() > libc::IFNAMSIZ {
        return Err(Errno::EINVAL);
    }
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    let ifr_ifru =
        libc::__c_anonymous_ifr_ifru { ifru_flags: (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short };
    let request = libc::ifreq { ifr_name, ifr_ifru };
    // SAFETY: a live descriptor and a live ifreq, which holds the name and the flags that this request reads.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
        .map(drop)
}
