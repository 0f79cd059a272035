//! Files that are never cached, with a new inode for every look-up: the basis of `/.karapace/ctl`.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;

use crate::kernel::harness::Mounted;
use crate::kernel::toy::Op;

/// A failing WRITE fails write(2) with the same errno, in a shell too.
#[test]
fn an_error_reaches_the_writer() {
    let mounted = Mounted::new();
    let mut file = OpenOptions::new().write(true).open(mounted.path("ctl")).unwrap();
    assert_eq!(file.write(b"nonsense\n").unwrap_err().raw_os_error(), Some(libc::EINVAL));
    let output = mounted.shell_as(0, "echo nonsense > ctl");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("Invalid argument"), "{output:?}");
    for redirection in [">", ">>", ">|", "1<>"] {
        let output = mounted.shell_as(0, &format!("echo command {redirection} ctl"));
        assert!(output.status.success(), "{redirection}: {output:?}");
    }
}

/// After a write, reading from the same descriptor returns what the server added.
#[test]
fn the_reply_is_read_from_the_same_descriptor() {
    let mounted = Mounted::new();
    let mut file = OpenOptions::new().read(true).write(true).open(mounted.path("ctl")).unwrap();
    file.write_all(b"command\n").unwrap();
    let mut reply = String::new();
    file.read_to_string(&mut reply).unwrap();
    assert_eq!(reply, "ok done\n");
    let output = mounted.shell_as(0, "exec 3<>ctl; echo command >&3; cat <&3");
    assert_eq!(output.stdout, b"ok done\n");
}

/// Two opens get two inodes with separate contents.
#[test]
fn each_open_has_its_own_inode() {
    let mounted = Mounted::new();
    let open = || OpenOptions::new().read(true).write(true).open(mounted.path("ctl")).unwrap();
    let (mut first, mut second) = (open(), open());
    assert_ne!(first.metadata().unwrap().ino(), second.metadata().unwrap().ino());
    first.write_all(b"command of the first\n").unwrap();
    let mut text = String::new();
    second.read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
}

/// A slow command blocks neither another writer of the same name nor anything else.
#[test]
fn a_slow_command_holds_up_nothing() {
    let mounted = Mounted::new();
    mounted.toy.file("f", b"text");
    mounted.toy.hold(Op::Write, "command slow\n");
    let path = mounted.path("ctl");
    let slow =
        std::thread::spawn(move || OpenOptions::new().write(true).open(path)?.write_all(b"command slow\n"));
    mounted.toy.wait_held();
    fs::write(mounted.path("ctl"), b"command fast\n").unwrap();
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"text");
    assert!(!slow.is_finished());
    mounted.toy.release();
    slow.join().unwrap().unwrap();
}

/// Time-to-live zero: each path look-up asks again, and then once more, because the answer has another inode
/// than the entry being revalidated. The inode of the unused answer is forgotten at once.
#[test]
fn a_control_name_is_looked_up_each_time() {
    let mounted = Mounted::new();
    for _ in 0..3 {
        fs::metadata(mounted.path("ctl")).unwrap();
    }
    assert_eq!(mounted.toy.count(Op::Lookup), 1 + 2 + 2);
    let live =
        |inner: &mut crate::kernel::toy::Inner| inner.nodes.values().filter(|node| node.refs > 0).count();
    assert!(mounted.toy.wait(|inner| live(inner) <= 1), "four of five inodes were given back");
}

/// A caller whose request is unanswered cannot be killed, so slow operations must reply at once and continue
/// elsewhere.
#[test]
fn an_unanswered_caller_cannot_be_killed() {
    let mounted = Mounted::new();
    mounted.toy.hold(Op::Write, "command wait\n");
    let mut child = std::process::Command::new("sh")
        .args(["-c", "exec > \"$0\"; echo command wait"])
        .arg(mounted.path("ctl"))
        .spawn()
        .unwrap();
    mounted.toy.wait_held();
    child.kill().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(
        child.try_wait().unwrap().is_none(),
        "the kernel now lets such a caller go: rejoice and say so in KERNEL.md"
    );
    mounted.toy.release();
    assert!(!child.wait().unwrap().success());
}
