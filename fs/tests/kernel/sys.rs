//! The few calls that have no safe wrapper.

#[path = "../sys/mapping.rs"]
mod mapping;

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};

pub use mapping::Mapping;

/// Runs `command` as root of a new user namespace (and mount namespace) with the given id maps. Once: what it is to do before it
/// executes the program stays with the command.
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
        let mapped = fs::write(format!("{process}/uid_map"), map)
            .and_then(|()| fs::write(format!("{process}/gid_map"), map));
        // Also when that failed: the child waits for it, and the thread for the child.
        go.write_all(b"g")?;
        mapped.and(running.join().expect("the thread that waits for the child"))
    })
}
