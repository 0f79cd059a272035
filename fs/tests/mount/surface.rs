//! The surface of a mount beside that of ext4: the scripts of `surface/` print what each of them does, and both print the
//! same. Where Karapace differs on purpose is in `differences`.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::space::SmallDisk;
use crate::support::Mount;

/// What a script prints of the file system that `base` is on.
fn observed(name: &str, script: &str, base: &Path, other: &Path, who: &str) -> String {
    let program = format!("{}\n{script}\nrun()\n", include_str!("surface/common.py"));
    let mut python = Command::new("python3");
    python.args(["-c", &program]).arg(base).arg(other).arg(who).env("LC_ALL", "C.UTF-8");
    let output = python.output().expect("these tests need python3");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && !text.contains("Traceback"), "{name} on {}:\n{text}", base.display());
    text
}

/// Runs a script in a new directory of the mount and in one of `plain`, with `other` on a third file system.
pub fn same(name: &str, script: &str, mount: &Path, plain: &Path, who: &str) {
    let other = tempfile::tempdir_in("/dev/shm").expect("a directory in /dev/shm");
    let base = mount.join(name);
    fs::create_dir(&base).expect("mkdir");
    let ours = observed(name, script, &base, other.path(), who);
    let base = plain.join(name);
    fs::create_dir(&base).expect("mkdir");
    let theirs = observed(name, script, &base, other.path(), who);
    let (ours, theirs): (Vec<_>, Vec<_>) = (ours.lines().collect(), theirs.lines().collect());
    for (number, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours, theirs, "{name}, line {number} as {who}: the mount, and ext4");
    }
    assert_eq!(ours.len(), theirs.len(), "{name} as {who}");
}

/// Name and text of each script.
pub const SCRIPTS: [(&str, &str); 5] = [
    ("attributes", include_str!("surface/attributes.py")),
    ("data", include_str!("surface/data.py")),
    ("locks", include_str!("surface/locks.py")),
    ("names", include_str!("surface/names.py")),
    ("special", include_str!("surface/special.py")),
];

fn as_root(name: &str) {
    let (mount, disk) = (Mount::new(), SmallDisk::ext4());
    let (_, script) = SCRIPTS.iter().find(|(n, _)| *n == name).expect("a script");
    same(name, script, &mount.path(""), disk.path(), "root");
}

#[test]
fn attributes() {
    as_root("attributes");
}

#[test]
fn data() {
    as_root("data");
}

#[test]
fn locks() {
    as_root("locks");
}

#[test]
fn names() {
    as_root("names");
}

#[test]
fn special() {
    as_root("special");
}
