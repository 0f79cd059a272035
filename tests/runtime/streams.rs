//! Standard streams go through untouched.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use super::end::wait_for;
use super::{Bench, Test, assert_status, stdout};

pub const TESTS: &[Test] = &[
    ("64 MiB of any bytes through a pipe", pipe),
    ("no output but the command's", silence),
    ("further descriptors are passed on as asked for", descriptors),
    ("a closed pipe is seen as closed", closed_pipe),
    ("the processes of the session are closed to root inside", closed_processes),
];

fn pipe(bench: &Bench) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let data: Vec<u8> = (0..8 << 20)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect();
    let mut command = bench.program();
    let mut child = command.args(["--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut back = Vec::with_capacity(data.len());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(&data).unwrap();
            drop(stdin);
        });
        stdout.read_to_end(&mut back).unwrap();
    });
    assert!(child.wait().unwrap().success());
    assert!(back == data, "{} bytes came back", back.len());
}

fn silence(bench: &Bench) {
    let output = bench.sh("echo out; echo err >&2; exit 5");
    assert_status(&output, 5);
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
}

fn descriptors(bench: &Bench) {
    let open = |options: &[&str], script: &str| {
        let mut command = Command::new("/bin/sh");
        bench.become_user(&mut command);
        let open = "exec 3</etc/hostname 4</etc/hostname 7</etc/hostname; exec \"$@\"";
        command.args(["-c", open, "sh"]).arg(bench.root.program()).arg("session");
        command.arg(bench.root.path()).args(options).args(["--", "sh", "-c", script]).stdin(Stdio::null());
        stdout(&command.output().unwrap())
    };
    let host = std::fs::read_to_string("/etc/hostname").unwrap();
    // Without a pipe, which the shell itself would have open for a moment.
    let list = "for fd in 0 1 2 3 4 5 6 7 8 9; do [ ! -e /proc/$$/fd/$fd ] || echo $fd; done";
    assert_eq!(open(&[], list), "0\n1\n2\n");
    assert_eq!(open(&["--preserve-fds", "2"], list), "0\n1\n2\n3\n4\n");
    assert_eq!(open(&["--preserve-fds", "1"], "cat <&3"), host);
}

/// Process 1 and the monitor must not hold what the command has closed.
fn closed_pipe(bench: &Bench) {
    let mut command = bench.program();
    command.args(["--", "sh", "-c", "echo said >&2; exec 2>&-; read -r line; exit 3"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // karapace itself has it open for its own messages: only those inside can be asked, by what /proc says of
    // them.
    let pipe = |pid: &str| std::fs::read_link(format!("/proc/{pid}/fd/2")).unwrap();
    let own = pipe(&child.id().to_string());
    let mut said = [0; 5];
    child.stderr.as_mut().unwrap().read_exact(&mut said).unwrap();
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let inside: Vec<_> = children.split_whitespace().collect();
    assert_eq!(inside.len(), 2, "process 1 and the monitor");
    for pid in inside {
        // By its numbers: its path is one of the inside.
        wait_for(|| {
            let found = std::fs::metadata(format!("/proc/{pid}/fd/2")).unwrap();
            found.rdev() == std::fs::metadata("/dev/null").unwrap().rdev()
        });
        let held = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let held: Vec<_> = held.filter_map(|e| std::fs::read_link(e.unwrap().path()).ok()).collect();
        assert!(!held.contains(&own), "{held:?}");
    }
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

/// What they have open, the program that they are and what karapace was started with is out of reach for root
/// inside.
fn closed_processes(bench: &Bench) {
    let script =
        "for pid in 1 $PPID; do readlink /proc/$pid/exe /proc/$pid/cwd /proc/$pid/fd/*; done; echo tried";
    assert_eq!(stdout(&bench.sh(script)), "tried\n");
    let mut command = bench.program();
    let strings = "cat /proc/$PPID/cmdline /proc/1/cmdline";
    command.env("CANARY", "secret").args(["--", "sh", "-c", strings]).stdin(Stdio::null());
    assert_eq!(stdout(&command.output().unwrap()).replace('\0', ""), "");
}
