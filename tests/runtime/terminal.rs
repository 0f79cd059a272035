//! Sessions on a terminal: keys, job control, window size. An interactive shell of the machine runs on a
//! pseudo-terminal and is typed at, as a person would.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};

use super::end::{mark, marked, wait_for};
use super::{Bench, Test};

pub const TESTS: &[Test] = &[
    ("Ctrl-C reaches the command, not karapace", interrupt),
    ("Ctrl-C in a pipeline", interrupt_pipeline),
    ("Ctrl-C ends a loop of the shell, and a script's", interrupt_loop),
    ("an interrupt of their own stays inside", own_interrupt),
    ("a pipeline lends the terminal", lent),
    ("a shell started in the background", shell_in_background),
    ("Ctrl-Z and fg", suspend),
    ("bg and then fg", background),
    ("job control of a shell inside", inner_jobs),
    ("a plain sh inside ends in silence", plain_shell),
    ("window size", window_size),
    ("the terminal comes back to a script", reclaim),
    ("a session without a shell above", no_shell_above),
    ("started in the background", started_in_background),
    ("console and tty", console),
    ("a closed window ends everything", hang_up),
];

const PATIENCE: Duration = Duration::from_secs(60);
const PROMPT: &str = "outer> ";

/// A shell on a terminal, and what it has shown so far.
struct Typist {
    master: File,
    child: Child,
    /// Output not consumed by [`Typist::see`] yet.
    seen: String,
}

impl Typist {
    /// An interactive bash, run by the bench's user. `$S` there begins a session.
    fn shell(bench: &Bench) -> Typist {
        let mut typist = Typist::start(bench, &["/bin/bash", "--norc", "--noprofile", "--noediting", "-i"]);
        let session =
            format!("S='{} session {}'", bench.root.program().display(), bench.root.path().display());
        typist.say(&format!("PS1='outer''> '; bind 'set enable-bracketed-paste off' 2>/dev/null; {session}"));
        typist.see(PROMPT);
        typist
    }

    fn start(bench: &Bench, argv: &[&str]) -> Typist {
        let size = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        for fd in [pty.master.as_fd(), pty.slave.as_fd()] {
            // Or the children keep the terminal alive for one another.
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        let tty = nix::unistd::ttyname(&pty.slave).unwrap();
        if let Some(owner) = bench.root.owner() {
            std::os::unix::fs::chown(&tty, Some(owner), None).unwrap();
        }
        let mut command = Command::new(bench.root.program());
        bench.become_user(&mut command);
        command.arg("on-tty").arg(&tty).args(argv).stdin(Stdio::null());
        let child = command.spawn().unwrap();
        // The slave must stay open until the child has it, or reading fails.
        let stat = format!("/proc/{}/stat", child.id());
        wait_for(|| controlling_terminal(&std::fs::read_to_string(&stat).unwrap()) != "0");
        drop(pty.slave);
        Typist { master: pty.master.into(), child, seen: String::new() }
    }

    /// Waits until the shell says that its job is stopped.
    #[track_caller]
    fn see_stopped_job(&mut self) {
        let end = Instant::now() + PATIENCE;
        loop {
            self.say("jobs; echo lis''ted");
            let listed = self.see("listed\r\n");
            self.see(PROMPT);
            if listed.contains("Stopped") {
                return;
            }
            assert!(Instant::now() < end, "not stopped: {listed:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Types a line.
    fn say(&mut self, line: &str) {
        self.keys(&format!("{line}\n"));
    }

    fn keys(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the terminal shows this, and returns what it showed before it.
    #[track_caller]
    fn see(&mut self, what: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(what) {
                let before = self.seen[..at].to_owned();
                self.seen.drain(..at + what.len());
                return before;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero() && self.read(left), "{what:?} does not appear in {:?}", self.seen);
        }
    }

    /// Takes in more output; false at the end of it.
    fn read(&mut self, wait: Duration) -> bool {
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::try_from(wait).unwrap()).unwrap() == 0 {
            return true;
        }
        let mut buffer = [0; 4096];
        match self.master.read(&mut buffer) {
            Ok(n) if n > 0 => {
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
                true
            }
            _ => false,
        }
    }

    /// Closes the terminal's window.
    fn hang_up(&mut self) {
        self.master = File::open("/dev/null").unwrap();
    }

    /// Ends the outer shell and checks that it is the one in the foreground.
    #[track_caller]
    fn leave(mut self) {
        self.say("exit 0");
        while self.read(PATIENCE) {}
        assert!(self.child.wait().unwrap().success());
    }
}

/// The number of a process's controlling terminal, as `/proc/PID/stat` has it; `0` of one that has none.
fn controlling_terminal(stat: &str) -> &str {
    let after_name = stat.rsplit(')').next().unwrap();
    after_name.split_whitespace().nth(4).unwrap()
}

/// After a failure the hang-up ends what still runs.
impl Drop for Typist {
    fn drop(&mut self) {
        self.hang_up();
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            std::thread::sleep(Duration::from_millis(200));
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

fn interrupt(bench: &Bench) {
    let mut t = Typist::shell(bench);
    t.say("$S -- sh -c 'trap \"echo in\"\"ner; exit 7\" INT; echo rea\"\"dy; sleep 1000 & while :; do wait; done'; echo st=$?.");
    t.see("ready");
    t.keys("\x03");
    t.see("inner");
    t.see("st=7.");
    t.see(PROMPT);
    t.say("$S -- sh -c 'echo rea\"\"dy; exec sleep 1000'");
    t.see("ready");
    t.keys("\x03");
    t.see(PROMPT);
    t.say("echo st=$?.");
    t.see("st=130.");
    t.leave();
}

fn interrupt_pipeline(bench: &Bench) {
    let mut t = Typist::shell(bench);
    t.say("$S -- sh -c 'trap \"echo in\"\"ner; exit 7\" INT; echo rea\"\"dy; sleep 1000 & while :; do wait; done' | (trap '' INT; cat); echo st=${PIPESTATUS[0]}.");
    t.see("ready");
    t.keys("\x03");
    t.see("inner");
    t.see("st=7.");
    t.see(PROMPT);
    t.leave();
}

fn interrupt_loop(bench: &Bench) {
    let mut t = Typist::shell(bench);
    let forever = "for i in 1 2 3; do $S -- sh -c 'echo r''eady; exec sleep 1000'; done";
    t.say(forever);
    t.see("ready");
    t.keys("\x03");
    assert!(!t.see(PROMPT).contains("ready"));
    // A script dies of it as well.
    t.say(&format!("export S; bash -c \"{}\"", forever.replace('$', "\\$")));
    t.see("ready");
    t.keys("\x03");
    assert!(!t.see(PROMPT).contains("ready"));
    t.say("echo st=$?.");
    t.see("st=130.");
    t.leave();
}

/// Only the keyboard interrupts the caller.
fn own_interrupt(bench: &Bench) {
    let mut t = Typist::shell(bench);
    t.say(
        "sh -c \"$S -- sh -c 'kill -INT \\$\\$'; echo st=\\$?.; $S -- sh -c 'kill -TERM 0'; echo nd=\\$?.\"",
    );
    t.see("st=130.");
    t.see("nd=143.");
    t.see(PROMPT);
    t.leave();
}

/// With its output redirected the command has not got the foreground, until it wants it.
fn lent(bench: &Bench) {
    let mut t = Typist::shell(bench);
    t.say("$S -- sh -c 'read line; echo got=$line. >/dev/tty; stty -echo; stty echo; echo a''fter' | cat; echo s''t=$?.");
    std::thread::sleep(Duration::from_millis(300));
    t.say("words");
    t.see("got=words.");
    t.see("after");
    t.see("st=0.");
    t.see(PROMPT);
    t.leave();
}

fn shell_in_background(bench: &Bench) {
    let mut t = Typist::shell(bench);
    t.say("$S -- bash --norc --noprofile --noediting -i &");
    t.see(PROMPT);
    t.see_stopped_job();
    t.say("echo ou''ter");
    t.see("outer\r\n");
    t.see(PROMPT);
    t.say("fg");
    t.say("PS1='inner''> '");
    t.see("inner> ");
    t.say("exit 5");
    t.see(PROMPT);
    t.say("echo st=$?.");
    t.see("st=5.");
    t.leave();
}

fn suspend(bench: &Bench) {
    let mut t = Typist::shell(bench);
    t.say("$S -- sh -c 'echo rea\"\"dy; exec cat'; echo st=$?.");
    t.see("ready");
    for _ in 0..3 {
        t.keys("\x1a");
        t.see("Stopped");
        t.see(PROMPT);
        t.say("fg");
        t.see("cat");
        t.say("hello");
        t.see("hello\r\n");
        t.see("hello\r\n");
    }
    t.keys("\x04");
    t.see(PROMPT);
    t.leave();
}

fn background(bench: &Bench) {
    let mut t = Typist::shell(bench);
    t.say("$S -- sh -c 'trap \"echo t\"\"ick\" USR1; echo rea\"\"dy; sleep 1000 & while :; do wait; done'");
    t.see("ready");
    t.keys("\x1a");
    t.see("Stopped");
    t.see(PROMPT);
    t.say("bg");
    t.see(PROMPT);
    t.say("kill -USR1 %1");
    t.see("tick");
    t.say("echo still=$((6*7))");
    t.see("still=42");
    for _ in 0..2 {
        t.say("fg");
        t.see("sh -c");
        // The shell says so before it does so.
        std::thread::sleep(Duration::from_millis(200));
        t.keys("\x1a");
        t.see("Stopped");
        t.see(PROMPT);
        t.say("bg");
        t.see(PROMPT);
    }
    t.say("fg");
    t.see("sh -c");
    std::thread::sleep(Duration::from_millis(200));
    t.keys("\x03");
    t.see(PROMPT);
    t.say("echo st=$?.");
    t.see("st=130.");
    t.leave();
}

fn inner_jobs(bench: &Bench) {
    let mut t = Typist::shell(bench);
    t.say("$S -- bash --norc --noprofile --noediting -i");
    t.say("PS1='inner''> '");
    let banner = t.see("inner> ");
    assert!(!banner.contains("job control"), "{banner}");
    t.say("sh -c 'echo rea''dy; exec sleep 1000'");
    t.see("ready");
    t.keys("\x1a");
    t.see("Stopped");
    t.see("inner> ");
    t.say("bg; jobs");
    t.see("Running");
    t.see("inner> ");
    t.say("fg");
    t.see("exec sleep");
    // The shell says so before it does so.
    std::thread::sleep(Duration::from_millis(200));
    t.keys("\x03");
    t.see("inner> ");
    t.say("echo code=$?.");
    t.see("code=130.");
    t.see("inner> ");
    t.say("suspend");
    t.see("Stopped");
    t.see(PROMPT);
    t.say("fg");
    t.say("echo b''ack");
    t.see("back\r\n");
    t.say("exit 7");
    t.see(PROMPT);
    t.say("echo st=$?.");
    t.see("st=7.");
    t.leave();
}

fn plain_shell(bench: &Bench) {
    let mut t = Typist::shell(bench);
    t.say("$S; echo st=$?.");
    t.say("PS1='inner''> '");
    let banner = t.see("inner> ");
    t.say("exit 4");
    let end = t.see("st=4.");
    for text in [banner, end] {
        assert!(!text.contains("tty") && !text.contains("job control"), "{text}");
    }
    t.see(PROMPT);
    t.leave();
}

fn window_size(bench: &Bench) {
    let mut t = Typist::shell(bench);
    t.say("$S -- sh -c 'trap \"stty size\" WINCH; stty size; sleep 1000 & while :; do wait; done'");
    t.see("30 100");
    let size = Winsize { ws_row: 31, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
    resize(&t.master, &size);
    t.see("31 77");
    t.keys("\x03");
    t.see(PROMPT);
    t.leave();
}

nix::ioctl_write_ptr_bad!(set_winsize, nix::libc::TIOCSWINSZ, Winsize);

fn resize(terminal: &File, size: &Winsize) {
    // SAFETY: an open descriptor and a pointer to a live Winsize, which the kernel only reads.
    unsafe { set_winsize(terminal.as_raw_fd(), size) }.unwrap();
}

/// A script that is not a shell with job control does not take the terminal back by itself.
fn reclaim(bench: &Bench) {
    let mut t = Typist::shell(bench);
    t.say("sh -c \"$S -- bash -i -c 'sleep 0; exit 3'; echo st=\\$?.; read line; echo got=\\$line.\"");
    t.see("st=3.");
    t.say("words");
    t.see("got=words.");
    t.see(PROMPT);
    t.leave();
}

fn no_shell_above(bench: &Bench) {
    let (program, root) = (bench.root.program(), bench.root.path());
    let argv = [program.to_str().unwrap(), "session", root.to_str().unwrap(), "--", "sh", "-c"];
    let mut t = Typist::start(bench, &[&argv[..], &["echo ready; exec cat"]].concat());
    t.see("ready");
    // Nobody could continue it: the kernel ignores the stop, and so do we.
    t.keys("\x1a");
    t.say("hello");
    t.see("hello\r\n");
    t.see("hello\r\n");
    t.keys("\x03");
    while t.read(PATIENCE) {}
    assert_eq!(t.child.wait().unwrap().signal(), Some(nix::libc::SIGINT));
}

fn started_in_background(bench: &Bench) {
    let mut t = Typist::shell(bench);
    t.say("$S -- sh -c 'read line; echo \"got=$line.\"' &");
    t.see(PROMPT);
    t.see_stopped_job();
    t.say("fg");
    t.see("sh -c");
    t.say("words");
    t.see("got=words.");
    t.leave();
}

fn console(bench: &Bench) {
    let mut t = Typist::shell(bench);
    t.say("$S -- sh -c 'echo c\"\"onsole > /dev/console; echo t\"\"ty > /dev/tty; stty size < /dev/console'");
    t.see("console\r\n");
    t.see("tty\r\n");
    t.see("30 100");
    t.see(PROMPT);
    t.leave();
}

fn hang_up(bench: &Bench) {
    let seconds = mark(bench);
    for pipe in ["", " | cat"] {
        let mut t = Typist::shell(bench);
        t.say(&format!("$S -- sh -c 'echo rea\"\"dy; sleep {seconds}'{pipe}"));
        t.see("ready");
        wait_for(|| marked(&seconds) == 1);
        t.hang_up();
        wait_for(|| marked(&seconds) == 0);
    }
}
