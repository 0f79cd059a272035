//! Standard streams go through untouched.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use super::{Bench, Test, assert_status, stdout};

pub const TESTS: &[Test] = &[
    ("64 MiB of any bytes through a pipe", pipe),
    ("no output but the command's", silence),
    ("further descriptors are passed on", descriptors),
    ("a closed pipe is seen as closed", closed_pipe),
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
    let mut command = Command::new("/bin/sh");
    bench.become_user(&mut command);
    command.args(["-c", "exec 7</etc/hostname; exec \"$@\"", "sh"]).arg(bench.root.program()).arg("session");
    command.arg(bench.root.path()).args(["--", "sh", "-c", "cat <&7"]).stdin(Stdio::null());
    assert_eq!(stdout(&command.output().unwrap()), std::fs::read_to_string("/etc/hostname").unwrap());
}

/// Process 1 must not hold what the command has closed.
fn closed_pipe(bench: &Bench) {
    let script = "exec 2>&-; ls -l /proc/1/fd | while read -r line; do echo \"${line##*> }\"; done";
    let held = stdout(&bench.sh(script));
    let held: Vec<_> = held.lines().filter(|l| !l.starts_with("total")).collect();
    let expected =
        |name: &&&str| **name == "/dev/null" || name.starts_with("socket:") || name.contains("signalfd");
    assert!(held.len() >= 5 && held.iter().all(|name| expected(&name)), "{held:?}");
}
