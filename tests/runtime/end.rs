//! How commands end, and what their end takes with it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Bench, Test, assert_status, stdout};

pub const TESTS: &[Test] = &[
    ("exit statuses", statuses),
    ("messages of what cannot be run", messages),
    ("signals to karapace reach the command", forwarding),
    ("what is left behind is killed", leftovers),
    ("kill -9 of karapace kills everything", killed),
    ("kill -9 of process 1 is a status", init_killed),
    ("zombies are reaped", zombies),
    ("signal state is clean", signal_state),
];

fn statuses(bench: &Bench) {
    for (script, status) in [
        ("exit 42", 42),
        ("exit 0", 0),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
        ("kill -INT $$", 130),
        ("kill -34 $$", 162),
    ] {
        assert_status(&bench.sh(script), status);
    }
}

fn messages(bench: &Bench) {
    for (program, status) in [
        ("no-such-program", 127),
        ("/no/such", 127),
        ("/plain/x", 127),
        ("", 127),
        ("/plain", 126),
        ("/etc", 126),
    ] {
        let output = bench.run(&[], [program]);
        assert_status(&output, status);
        assert!(String::from_utf8_lossy(&output.stderr).contains(program));
    }
    bench.root.write("tmp/garbage", "\u{1}\u{2}");
    let path = bench.root.path().join("tmp/garbage");
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_status(&bench.run(&["--env", "PATH=/nowhere:/tmp:/bin"], ["garbage"]), 126);
    assert_status(&bench.run(&["--env", "PATH="], ["true"]), 0);
}

fn forwarding(bench: &Bench) {
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2] {
        let name = &signal.as_str()[3..];
        let script =
            format!("trap 'echo got; exit 9' {name}; echo ready; sleep 1000 & while :; do wait; done");
        let (mut child, mut lines) = start(bench, &script);
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "got", "{name}");
        assert_eq!(child.wait().unwrap().code(), Some(9));
    }
    let (mut child, mut lines) = start(bench, "echo ready; exec sleep 1000");
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

fn leftovers(bench: &Bench) {
    let mark = mark(bench);
    assert_eq!(stdout(&bench.sh(&format!("sleep {mark} >/dev/null 2>&1 & echo done"))), "done\n");
    assert_eq!(marked(&mark), 0);
}

fn killed(bench: &Bench) {
    let mark = mark(bench);
    let (mut child, mut lines) =
        start(bench, &format!("sleep {mark} & sleep {mark} & echo ready; sleep {mark}"));
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    wait_for(|| marked(&mark) == 3);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    wait_for(|| marked(&mark) == 0);
}

fn init_killed(bench: &Bench) {
    let mark = mark(bench);
    let (mut child, mut lines) = start(bench, &format!("echo ready; exec sleep {mark}"));
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let is_init = |pid: &&str| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "karapace-init\n")
    };
    let init = children.split_whitespace().find(is_init).expect("a process 1");
    kill(Pid::from_raw(init.parse().unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(137));
    assert_eq!(marked(&mark), 0);
}

fn zombies(bench: &Bench) {
    let script =
        "(sleep 0.02 & sleep 0.03 &); tries=; while [ ${#tries} -lt 100 ]; do tries=x$tries; sleep 0.2
        states=$(cat /proc/[0-9]*/stat | while read -r pid name state rest; do echo $name $state; done)
        case $states in *Z*|*sleep*) ;; *) break; esac; done; echo \"$states\"";
    let states = stdout(&bench.sh(script));
    let is_left = |line: &str| line.ends_with('Z') || line.contains("sleep");
    assert!(!states.lines().any(is_left) && (2..=6).contains(&states.lines().count()), "{states}");
}

fn signal_state(bench: &Bench) {
    let field = |status: &str, name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).expect("a line of /proc/self/status");
        u64::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap()
    };
    let inner = stdout(&bench.run(&[], ["cat", "/proc/self/status"]));
    let outer = fs::read_to_string("/proc/self/status").unwrap();
    let pipe = 1 << (Signal::SIGPIPE as u32 - 1);
    assert_eq!(field(&inner, "SigBlk"), field(&outer, "SigBlk"));
    // As the caller had them, but for SIGPIPE, which only Rust programs start out ignoring, and the two that
    // glibc keeps for itself (32 and 33): who begins a program by posix_spawn ignores them, a shell does not.
    let of_libc = 0b11 << 31;
    assert_eq!(field(&inner, "SigIgn") & !of_libc, field(&outer, "SigIgn") & !(pipe | of_libc));
    assert_eq!(stdout(&bench.sh("yes | head -n 1")), "y\n");
}

fn start(bench: &Bench, script: &str) -> (Child, std::io::Lines<BufReader<std::process::ChildStdout>>) {
    let mut command = bench.program();
    command.args(["--", "sh", "-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

/// A number of seconds that no other process sleeps.
pub fn mark(bench: &Bench) -> String {
    format!("9{}{}", std::process::id(), bench.who as u8)
}

/// How many processes of the whole machine sleep for this long.
pub fn marked(mark: &str) -> usize {
    let wanted = format!("sleep\0{mark}\0");
    let processes = fs::read_dir("/proc").unwrap().map(|e| e.unwrap().path().join("cmdline"));
    processes.filter(|path| fs::read(path).is_ok_and(|line| line == wanted.as_bytes())).count()
}

#[track_caller]
pub fn wait_for(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain");
        std::thread::sleep(Duration::from_millis(10));
    }
}
