//! Sessions as real processes, as root and as an ordinary user, on a small root file system made of the
//! machine's own /bin/sh and a few tools.
//!
//! Not libtest: the tests need a program that calls `karapace::runtime::run` and nothing else, from its main
//! thread, and this binary is that program too (`runtime session ROOT [option…] -- COMMAND…`). Arguments that
//! do not start with a dash choose tests by substring of their name.

mod end;
mod inside;
mod policy;
mod rootfs;
mod streams;
mod sys;
mod terminal;

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output, Stdio, exit};

use karapace::description::manifest::Manifest;
use karapace::runtime::backend;
use karapace::runtime::{Caller, Choices, HomeMode, Policy, Session};
use rootfs::RootFs;

/// Ids for sessions of an ordinary user when the tests run as root. No account needs to exist.
const USER: u32 = 54_321;

/// Who runs the sessions of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Root,
    User,
}

/// What a test works with.
struct Bench {
    who: Who,
    root: RootFs,
}

type Test = (&'static str, fn(&Bench));

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|a| a.to_str()) {
        Some("session") => session(&args[1..]),
        Some("on-tty") => on_tty(&args[1..]),
        Some("call") => call(&args[1..]),
        _ => run_tests(&args),
    }
}

/// Signals that whoever started the tests ignores (`nohup` does with SIGHUP) are ignored by every child and
/// cannot be trapped in a shell: the tests run with all of them as they are by default.
fn with_default_signals(args: &[OsString]) {
    const DONE: &str = "KARAPACE_RUNTIME_TEST_SIGNALS";
    if std::env::var_os(DONE).is_some() {
        return;
    }
    let tests = std::env::current_exe().expect("the path of the tests");
    let error = Command::new("env")
        .args(["--default-signal", &format!("{DONE}=default")])
        .arg(tests)
        .args(args)
        .exec();
    panic!("cannot run env: {error}");
}

/// Prints what libtest would, for scripts that read it.
fn run_tests(args: &[OsString]) -> ExitCode {
    with_default_signals(args);
    let words = || args.iter().filter_map(|a| a.to_str());
    let filters: Vec<_> = words().filter(|a| !a.starts_with('-')).collect();
    let quiet = words().any(|a| a == "-q" || a == "--quiet");
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("NOT ROOT: sessions of root are NOT tested, only those of this user");
    }
    let all: Vec<Test> = [inside::TESTS, policy::TESTS, end::TESTS, streams::TESTS, terminal::TESTS].concat();
    let (mut passed, mut failed, mut filtered) = (0, 0, 0);
    for who in [Who::Root, Who::User] {
        if who == Who::Root && !root {
            continue;
        }
        let bench = Bench { who, root: RootFs::build((root && who == Who::User).then_some(USER)) };
        for (name, test) in &all {
            let name = format!("{name} ({who:?})");
            if !filters.is_empty() && !filters.iter().any(|f| name.contains(f)) {
                filtered += 1;
                continue;
            }
            let good = catch_unwind(AssertUnwindSafe(|| test(&bench))).is_ok();
            *(if good { &mut passed } else { &mut failed }) += 1;
            if !good || !quiet {
                println!("test {name} ... {}", if good { "ok" } else { "FAILED" });
            }
        }
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {filtered} filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The program under test.
fn session(args: &[OsString]) -> ! {
    let mut rest = args.iter();
    let mut session = Session {
        root: PathBuf::from(rest.next().expect("a root")),
        served: false,
        overlay: None,
        argv: Vec::new(),
        user: None,
        workdir: None,
        env: Vec::new(),
        hostname: "inside".into(),
        mask_control: false,
        policy: Policy::default(),
        seen: None,
        output: None,
        preserved: 0,
    };
    let mut manifest = Manifest::for_image("none");
    let mut choices = Choices::default();
    while let Some(option) = rest.next() {
        let mut value = || rest.next().expect("a value").to_str().expect("text").to_owned();
        match option.to_str() {
            Some("--user") => session.user = Some(value()),
            Some("--workdir") => session.workdir = Some(value().into()),
            Some("--hostname") => session.hostname = value(),
            Some("--env") => {
                let pair = value();
                let (key, value) = pair.split_once('=').expect("K=V");
                session.env.push((key.into(), value.into()));
            }
            Some("--preserve-fds") => session.preserved = value().parse().expect("a number"),
            Some("--privileged") => choices.privileged = true,
            Some("--mask") => session.mask_control = true,
            Some("--manifest") => manifest = Manifest::read(value().as_ref()).expect("a manifest"),
            Some("--home") => choices.home = if value() == "ro" { HomeMode::Ro } else { HomeMode::Share },
            Some("--") => break,
            other => panic!("option {other:?}"),
        }
    }
    session.argv = rest.cloned().collect();
    let caller = Caller {
        instance: "test",
        manifest_dir: manifest.directory.as_deref(),
        variable: &|name| std::env::var_os(name),
    };
    let done = Policy::new(&manifest, &choices, &caller).and_then(|policy| {
        session.policy = policy;
        backend(manifest.runtime.backend).run(&session)
    });
    match done {
        Ok(ended) => {
            if let Some(interrupt) = ended.interrupt {
                karapace::process::die_of(interrupt);
            }
            exit(ended.status)
        }
        Err(error) => {
            eprintln!("runtime: {error}");
            exit(error.exit_status())
        }
    }
}

/// `call NUMBER ARGUMENT ARGUMENT`: makes a system call and says what came of it.
fn call(args: &[OsString]) -> ! {
    let number = |at: usize| args[at].to_str().and_then(|a| a.parse().ok()).expect("a number");
    match sys::call(number(0), number(1), number(2)) {
        Ok(()) => println!("OK"),
        Err(errno) => println!("{errno:?}"),
    }
    exit(0)
}

/// `on-tty PATH COMMAND…`: the command with that terminal as its controlling one and its standard streams.
fn on_tty(args: &[OsString]) -> ! {
    nix::unistd::setsid().expect("setsid");
    // A session leader without a terminal gets the first one that it opens.
    let tty = OpenOptions::new().read(true).write(true).open(&args[0]).expect("open the terminal");
    let copy = || Stdio::from(tty.try_clone().expect("dup"));
    let error = Command::new(&args[1]).args(&args[2..]).stdin(copy()).stdout(copy()).stderr(copy()).exec();
    panic!("{:?}: {error}", args[1])
}

impl Bench {
    /// The program under test, run by the right user; options and `--` and the command are to be added.
    fn program(&self) -> Command {
        let mut command = Command::new(self.root.program());
        self.become_user(&mut command);
        command.arg("session").arg(self.root.path());
        command
    }

    fn become_user(&self, command: &mut Command) {
        command.env_clear().env("TERM", "dumb").env("PATH", "/usr/bin:/bin").current_dir("/");
        if let Some(id) = self.root.owner() {
            command.uid(id).gid(id);
        }
    }

    /// Runs `sh -c script` inside with nothing on its standard input.
    fn sh(&self, script: &str) -> Output {
        self.run(&[], ["sh", "-c", script])
    }

    fn run<S: AsRef<OsStr>>(&self, options: &[&str], argv: impl IntoIterator<Item = S>) -> Output {
        let mut command = self.program();
        command.args(options).arg("--").args(argv).stdin(Stdio::null());
        command.output().expect("run a session")
    }
}

/// What a session wrote to standard output, after it went well.
#[track_caller]
fn stdout(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && err.is_empty(), "{}\nstdout: {out}\nstderr: {err}", output.status);
    out.into_owned()
}

#[track_caller]
fn assert_status(output: &Output, status: i32) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{}\nstdout: {out}\nstderr: {err}", output.status);
}
