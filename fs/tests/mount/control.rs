//! The control directory as shells and programs use it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use karapace_fs::control::Command;
use karapace_fs::session::CtlDir;

use crate::mount::support::{FakePlane, Mount};

const SHELLS: [&str; 2] = ["bash", "dash"];

fn commit() -> Command {
    Command::Commit { name: None, message: None, paths: Vec::new() }
}

#[test]
fn shells_write_commands_in_every_form() {
    let mount = Mount::new();
    for shell in SHELLS {
        for (script, commands) in [
            ("echo commit > .karapace/ctl", vec![commit()]),
            ("echo commit >> .karapace/ctl", vec![commit()]),
            ("set -C; echo commit >| .karapace/ctl", vec![commit()]),
            ("printf commit > .karapace/ctl", vec![commit()]),
            ("printf 'commit\\n\\ncommit\\n' > .karapace/ctl", vec![commit(), commit()]),
            ("{ echo commit; echo; echo commit; } > .karapace/ctl", vec![commit(), commit()]),
            ("echo > .karapace/ctl", vec![]),
            ("> .karapace/ctl", vec![]),
            (
                "cd .karapace && echo 'restore 000' > ctl",
                vec![Command::Restore { reference: "000".into(), paths: Vec::new(), times: None }],
            ),
        ] {
            mount.plane.asked.lock().clear();
            mount.ok(shell, script);
            assert_eq!(*mount.plane.asked.lock(), commands, "{shell}: {script}");
        }
    }
}

#[test]
fn errors_reach_the_shell_and_change_nothing() {
    let mount = Mount::new();
    for shell in SHELLS {
        for (script, message, last) in [
            (
                "echo nonsense > .karapace/ctl",
                "Invalid argument",
                "error EINVAL unknown command \"nonsense\"",
            ),
            (
                "env printf 'commit\\nnonsense\\n' >> .karapace/ctl",
                "Invalid argument",
                "error EINVAL line 2: ",
            ),
            (
                "echo restore 9999 > .karapace/ctl",
                "No such file",
                "error ENOENT no snapshot\\nmatches 9999\n",
            ),
            ("dd if=/dev/zero of=.karapace/ctl bs=4097 count=1", "Argument list too long", "error E2BIG "),
            (
                "echo restore panic > .karapace/ctl",
                "Input/output error",
                "error EIO restore failed with an internal error",
            ),
        ] {
            let error = mount.fails(shell, script);
            // dash's echo says "I/O error" whatever the errno was.
            assert!(
                error.contains(message) || error.contains("echo: I/O error"),
                "{shell}: {script}: {error}"
            );
            let outcome = mount.read_control("last");
            assert!(outcome.starts_with(last), "{shell}: {script}: {outcome}");
            assert_eq!(outcome.matches('\n').count(), 1);
        }
        assert!(mount.plane.snapshots.lock().is_empty());
    }
}

#[test]
fn commands_run_up_to_the_first_failure() {
    let mount = Mount::new();
    // Uses env, because bash's own printf writes line by line.
    mount.fails("bash", "env printf 'commit\\nrestore 9999\\ncommit' > .karapace/ctl");
    assert_eq!(mount.plane.asked.lock().len(), 2);
    assert_eq!(mount.plane.snapshots.lock().len(), 1);
}

#[test]
fn each_open_reads_its_own_outcome() {
    let mount = Mount::new();
    let open = || OpenOptions::new().read(true).write(true).open(mount.control("ctl")).expect("ctl");
    let (mut first, mut second) = (open(), open());
    first.write_all(b"commit\n").expect("commit");
    assert_eq!(second.write_all(b"restore 9999\n").expect_err("fails").kind(), ErrorKind::NotFound);
    let (mut a, mut b) = (String::new(), String::new());
    first.read_to_string(&mut a).expect("read");
    second.read_to_string(&mut b).expect("read");
    assert_eq!(a, format!("ok commit {}\n", FakePlane::hash(1)));
    assert_eq!(b, "error ENOENT no snapshot\\nmatches 9999\n");
    // The next outcome on the same descriptor.
    first.write_all(b"commit\n").expect("commit");
    a.clear();
    first.read_to_string(&mut a).expect("read");
    assert_eq!(a, format!("ok commit {}\n", FakePlane::hash(2)));
    first.write_all(b"nonsense\n").expect_err("fails");
    a.clear();
    first.read_to_string(&mut a).expect("read");
    assert!(a.starts_with("error EINVAL unknown"), "{a}");
    assert_eq!(mount.read_control("ctl"), "", "a new open has nothing to say");
    let bash = "exec 3<>.karapace/ctl; echo 'gc' >&3; read -r line <&3; echo \"$line\"";
    assert_eq!(mount.ok("bash", bash), "ok job 1\n");
}

#[test]
fn python_writes_and_reads() {
    let mount = Mount::new();
    let script = r#"
import errno, os
c = '.karapace/'
fd = os.open(c + 'ctl', os.O_RDWR)
os.write(fd, b'commit message=hello world\n')
assert os.read(fd, 4096).startswith(b'ok commit '), 'outcome at the offset'
os.lseek(fd, 0, os.SEEK_SET)
assert os.read(fd, 4096).strip().startswith(b'ok commit '), 'outcome from the start'
os.close(fd)
with open(c + 'ctl', 'r+') as f:
    f.write('commit\n'); f.flush()
    assert f.read().startswith('ok commit ')
for text, want in (('nonsense', errno.EINVAL), ('restore 9999', errno.ENOENT), ('x' * 5000, errno.E2BIG)):
    try:
        with open(c + 'ctl', 'w') as f: f.write(text)
    except OSError as e: assert e.errno == want, e
    else: raise SystemExit('no error for ' + text[:20])
for name in os.listdir(c):
    if os.path.isfile(c + name):
        text = open(c + name, 'rb').read()
        if name not in ('ctl', 'diff'): assert text.endswith(b'\n'), name
assert set(os.listdir(c)) >= {'ctl', 'help', 'last', 'status.json', 'snapshots', 'refs', 'jobs'}
"#;
    mount.ok("python3", script);
    assert_eq!(mount.plane.snapshots.lock()[0].message.as_deref(), Some("hello world"));
}

#[test]
fn files_read_whole_by_any_tool() {
    let mount = Mount::new();
    let dir = mount.path("").canonicalize().expect("path");
    let mut hash = String::new();
    for shell in SHELLS {
        mount.ok("bash", "echo commit > .karapace/ctl");
        hash = FakePlane::hash(mount.plane.snapshots.lock().len());
        let read = mount.ok(shell, "cat .karapace/status");
        let lines: Vec<_> = read.lines().collect();
        assert_eq!(lines[..2], ["state: Built".to_owned(), format!("head: {hash}")]);
        assert_eq!(lines[2].trim_end_matches('/'), format!("mount: {}", dir.display()).trim_end_matches('/'));
        assert!(mount.ok(shell, "head -n 1 .karapace/help").starts_with("ctl "));
        assert_eq!(mount.ok(shell, "grep -c . .karapace/last"), "1\n");
        assert_eq!(mount.ok(shell, "read -r a b c < .karapace/last; echo $c"), format!("{hash}\n"));
        assert_eq!(mount.ok(shell, "wc -c < .karapace/refs/head"), "65\n");
        assert_eq!(mount.ok(shell, "for f in diff help id last status status.json version refs/base; do cp .karapace/$f ../copy && cmp ../copy .karapace/$f; done"), "");
        mount.ok(shell, "echo verify > text && cp text .karapace/ctl && tee .karapace/ctl < text && dd if=text of=.karapace/ctl; rm text");
        assert!(mount.ok(shell, "cat .karapace/version").starts_with("karapace "));
        mount.ok(shell, "cat .karapace/ctl");
    }
    let json: serde_json::Value = serde_json::from_str(&mount.read_control("status.json")).expect("JSON");
    assert_eq!(json["state"], "Built");
    assert_eq!(json["head"], hash.as_str());
    for number in ["dirty_files", "dirty_bytes", "generation"] {
        assert!(json[number].is_u64(), "{number}: {json}");
    }
    assert!(json["mount"].is_string());
}

#[test]
fn status_follows_the_view() {
    let mount = Mount::new();
    let generation = || {
        let json: serde_json::Value = serde_json::from_str(&mount.read_control("status.json")).expect("JSON");
        json["generation"].as_u64().expect("a number")
    };
    let before = generation();
    fs::write(mount.path("new"), "x").expect("write");
    assert!(generation() > before);
    assert!(mount.read_control("diff").contains("A /new\n"));
    fs::remove_file(mount.path("new")).expect("remove");
    assert!(!mount.read_control("diff").contains("/new"));
}

#[test]
fn nothing_but_ctl_takes_a_write() {
    let mount = Mount::new();
    for script in [
        "echo x > .karapace/status",
        "echo x > .karapace/new",
        "rm .karapace/ctl",
        "mkdir .karapace/x",
        "rmdir .karapace/refs",
        "mv .karapace/ctl .karapace/x",
        "mv .karapace/ctl x",
        "ln .karapace/ctl x",
        "ln -s x .karapace/snapshots/x",
        "chmod 777 .karapace/ctl",
        "chown 1:1 .karapace",
        "truncate -s 10 .karapace/ctl",
    ] {
        mount.fails("bash", script);
    }
    mount.ok("bash", "touch .karapace/ctl && : > .karapace/ctl && cat .karapace/ctl");
}

#[test]
fn the_name_is_reserved_at_the_root_only() {
    for ctl in [CtlDir::Hidden, CtlDir::Visible, CtlDir::Disabled] {
        let mount = Mount::with(|o| o.ctl_dir = ctl);
        fs::write(mount.path("f"), "").expect("write");
        fs::create_dir(mount.path("d")).expect("mkdir");
        let name = mount.path(".karapace");
        let exists = |result: std::io::Result<()>| {
            assert_eq!(result.expect_err("reserved").raw_os_error(), Some(libc::EEXIST), "{ctl:?}");
        };
        exists(fs::create_dir(&name));
        exists(std::os::unix::fs::symlink("x", &name));
        exists(fs::hard_link(mount.path("f"), &name));
        assert!(fs::rename(mount.path("f"), &name).is_err());
        assert!(fs::rename(mount.path("d"), &name).is_err());
        assert!(File::create(&name).is_err());
        for gone in [fs::remove_dir(&name), fs::remove_file(&name), fs::rename(&name, mount.path("x"))] {
            assert!(gone.is_err());
        }
        assert_eq!(name.exists(), ctl != CtlDir::Disabled);
        let listed = mount.ok("bash", "ls -A").contains(".karapace");
        assert_eq!(listed, ctl == CtlDir::Visible);
        fs::create_dir(mount.path("d/.karapace")).expect("below the root it is a name like any other");
        assert_eq!(fs::read_dir(mount.path("d")).expect("list").count(), 1);
    }
}

#[test]
fn listings_follow_and_directories_stay() {
    let mount = Mount::with(|o| o.ctl_dir = CtlDir::Visible);
    let list = |below: &str| {
        let mut names: Vec<String> = fs::read_dir(mount.control(below))
            .expect(below)
            .map(|e| e.expect("entry").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        names
    };
    let top = [
        "ctl",
        "diff",
        "help",
        "id",
        "jobs",
        "last",
        "refs",
        "snapshots",
        "status",
        "status.json",
        "version",
    ];
    assert_eq!(list(""), top);
    assert_eq!(list("refs"), ["base", "head"]);
    assert_eq!(list("snapshots"), [""; 0]);
    for round in 1..4 {
        mount.ok("bash", &format!("echo commit name=n{round} > .karapace/ctl"));
        assert_eq!(list("snapshots").len(), 2 * round);
        assert_eq!(list("refs").len(), 3 + round);
        assert_eq!(mount.read_control(&format!("refs/n{round}")), FakePlane::hash(round) + "\n");
    }
    let inode = |below: &str| fs::metadata(mount.control(below)).expect(below).ino();
    for below in ["", "snapshots", "refs", "jobs", "snapshots/n1"] {
        assert_eq!(inode(below), inode(below), "{below}");
    }
    assert_ne!(inode("ctl"), inode("ctl"));
    mount.ok("bash", "find .karapace -maxdepth 2 > /dev/null && ls -laR .karapace > /dev/null");
}

#[test]
fn snapshots_are_directories() {
    let mount = Mount::new();
    fs::create_dir(mount.control("snapshots/v1")).expect("commits");
    let hash = FakePlane::hash(1);
    assert_eq!(mount.plane.snapshots.lock()[0].name.as_deref(), Some("v1"));
    let again = fs::create_dir(mount.control("snapshots/v1")).expect_err("taken");
    assert_eq!(again.raw_os_error(), Some(libc::EEXIST));
    let bad = fs::create_dir(mount.control("snapshots/a b")).expect_err("bad name");
    assert_eq!(bad.raw_os_error(), Some(libc::EINVAL));
    assert!(mount.read_control("last").starts_with("error EINVAL bad name"));
    for name in ["v1", &hash] {
        let dir = mount.control("snapshots").join(name);
        assert_eq!(fs::read_to_string(dir.join("base-file")).expect("content"), "base\n");
        let refused = fs::write(dir.join("new"), "x").expect_err("read-only");
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        let names: Vec<_> =
            fs::read_dir(&dir).expect("list").map(|e| e.expect("entry").file_name()).collect();
        assert!(names.contains(&"base-file".into()), "{names:?}");
    }
    let across =
        fs::hard_link(mount.control("snapshots/v1/base-file"), mount.path("l")).expect_err("two views");
    assert_eq!(across.raw_os_error(), Some(libc::EXDEV));
    mount.ok("bash", "cp -a .karapace/snapshots/v1/base-file copied && cmp copied base-file");
    fs::remove_dir(mount.control("snapshots/v1")).expect("drops the name");
    assert!(!mount.control("snapshots/v1").exists());
    assert!(mount.control("snapshots").join(&hash).exists());
    let kept = fs::remove_dir(mount.control("snapshots").join(&hash)).expect_err("a hash is no name");
    assert_eq!(kept.raw_os_error(), Some(libc::EPERM));
}

#[test]
fn a_running_command_blocks_nobody_else() {
    let mount = Mount::with(|o| o.threads = 1);
    mount.plane.hold.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let writers: Vec<_> =
            (0..3).map(|_| scope.spawn(|| fs::write(mount.control("ctl"), "restore wait"))).collect();
        let end = Instant::now() + Duration::from_secs(60);
        while mount.plane.asked.lock().len() < 3 {
            assert!(Instant::now() < end, "the writers wait for one another");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(mount.read_control("status").starts_with("state: "));
        fs::write(mount.path("f"), "x").expect("the view is served");
        mount.plane.hold.store(false, Ordering::SeqCst);
        for writer in writers {
            writer.join().expect("no panic").expect("restored");
        }
    });
}

#[test]
fn jobs_answer_at_once() {
    let mount = Mount::new();
    mount.plane.hold.store(true, Ordering::SeqCst);
    mount.ok("bash", "echo gc dry_run=1 > .karapace/ctl; echo commit async=1 > .karapace/ctl");
    assert_eq!(mount.read_control("last"), "ok job 2\n");
    assert_eq!(mount.read_control("jobs/1/status"), "running gc\n");
    let busy = mount.fails("bash", "echo forget > .karapace/jobs/1/ctl");
    assert!(busy.contains("busy"), "{busy}");
    mount.plane.hold.store(false, Ordering::SeqCst);
    let wait_for = |job: &str, wanted: &str| {
        let end = Instant::now() + Duration::from_secs(60);
        while mount.read_control(job) != wanted {
            assert!(Instant::now() < end, "{job}: {}", mount.read_control(job));
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait_for("jobs/1/status", "ok gc 0 objects\n");
    wait_for("jobs/2/status", &format!("ok commit {}\n", FakePlane::hash(1)));
    mount.ok("bash", "echo verify > .karapace/ctl");
    wait_for("jobs/3/status", "error EIO object 00 is corrupt\n");
    mount.ok("bash", "echo forget > .karapace/jobs/1/ctl");
    assert_eq!(mount.ok("bash", "ls .karapace/jobs"), "2\n3\n");
    assert!(!mount.control("jobs/1").exists());
}

#[test]
fn only_the_owner_and_root_get_in() {
    let mount = Mount::new();
    let mode = |below: &str| fs::metadata(mount.control(below)).expect(below).permissions().mode() & 0o7777;
    assert_eq!((mode(""), mode("ctl"), mode("status")), (0o700, 0o600, 0o400));
    // Another user, as on a mount by root that is open to all users.
    let python = r#"
import os, sys
fd = os.open('.', os.O_RDONLY)
os.setgid(12345); os.setuid(12345)
for path in ('.karapace/status', '.karapace/ctl', '.karapace/snapshots'):
    try: os.stat(path, dir_fd=fd)
    except PermissionError: pass
    else: sys.exit(path)
os.stat('.karapace', dir_fd=fd)
"#;
    fs::set_permissions(mount.path(""), fs::Permissions::from_mode(0o755)).expect("chmod");
    mount.ok("python3", python);
}

#[test]
fn read_only_mounts_take_commands() {
    let mount = Mount::with(|o| o.read_only = true);
    let refused = fs::write(mount.path("f"), "x").expect_err("read-only");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    mount.ok("bash", "echo gc > .karapace/ctl && cat .karapace/jobs/1/status");
}
