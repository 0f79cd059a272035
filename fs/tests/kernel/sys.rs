//! The few calls that have no safe wrapper.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};

/// How a store through a mapping is pushed out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// msync(MS_SYNC), the mapping stays.
    Sync,
    /// munmap after the descriptor was closed.
    Unmap,
}

/// Stores `text` at the start of `file`'s first page through a shared mapping and pushes it out.
pub fn store_through_mapping(file: File, text: &[u8], push: Push) -> io::Result<()> {
    let length = NonZeroUsize::new(4096).expect("not zero");
    assert!(text.len() <= length.get());
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice; nothing else in this process knows it.
    let at = unsafe { mmap(None, length, prot, MapFlags::MAP_SHARED, file.as_fd(), 0)? };
    drop(file);
    // SAFETY: the mapping is 4096 bytes long and writable, `text` is not longer, and the two cannot overlap.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), at.as_ptr().cast::<u8>(), text.len()) };
    match push {
        // SAFETY: exactly the mapping made above.
        Push::Sync => unsafe { msync(at, length.get(), MsFlags::MS_SYNC)? },
        // SAFETY: exactly the mapping made above, not used afterwards.
        Push::Unmap => unsafe { munmap(at, length.get())? },
    }
    Ok(())
}

/// Runs `command` as root of a new user namespace (and mount namespace) with the given id maps.
pub fn output_in_user_namespace(command: &mut Command, map: &str) -> io::Result<Output> {
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
        // spawn() returns when the child has executed the program, so its ids are mapped from here meanwhile.
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
        fs::write(format!("{process}/uid_map"), map)?;
        fs::write(format!("{process}/gid_map"), map)?;
        go.write_all(b"g")?;
        running.join().expect("the thread that waits for the child")
    })
}
