//! The visible behaviour of a mount compared with ext4: the scripts in `surface/` print what each of them
//! does, and both outputs must be equal. `differences` has the intended differences.

use std::fs;
use std::path::Path;
use std::process::Command;

use karapace_fs::session::LockScope;

use crate::mount::space::SmallDisk;
use crate::mount::support::Mount;

/// The output of a script about the file system that `base` is on.
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

/// Name and text of every script.
pub const SCRIPTS: [(&str, &str); 6] = [
    ("attributes", include_str!("surface/attributes.py")),
    ("data", include_str!("surface/data.py")),
    ("locks", include_str!("surface/locks.py")),
    ("mapped", include_str!("surface/mapped.py")),
    ("names", include_str!("surface/names.py")),
    ("special", include_str!("surface/special.py")),
];

fn as_root(name: &str) {
    on(&Mount::new(), name);
}

fn on(mount: &Mount, name: &str) {
    let disk = SmallDisk::ext4();
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

/// Kept by the server, they are the same to the programs of one mount.
#[test]
fn shared_locks() {
    on(&Mount::with(|options| options.locks = LockScope::Shared), "locks");
}

#[test]
fn mapped() {
    as_root("mapped");
}

/// Writeback must be answered while the only request thread has an LSEEK to answer.
#[test]
fn mapped_with_one_thread() {
    on(&Mount::with(|options| options.threads = 1), "mapped");
}

/// Holes of a committed file that has not been written since the mount.
#[test]
fn mapped_and_committed() {
    let mount = Mount::new();
    mount.ok("bash", "for f in whole-blocks less; do printf end | dd of=$f bs=1 seek=3000000 status=none; done; truncate -s 900000 less");
    mount.commit();
    let script = r#"
for name in ('whole-blocks', 'less'):
    size = os.stat(name).st_size
    for at in (size - 5, 0, 500000):
        w = Writer(name); w.store(at); fd = os.open(name, os.O_RDONLY)
        assert os.lseek(fd, at, os.SEEK_DATA) == at and os.lseek(fd, at, os.SEEK_HOLE) > at, (name, at)
        for copy in ('cp', 'cp --sparse=always'):
            w.do("m[%d:%d] = b'HELLO'" % (at, at + 5))
            subprocess.check_call('%s %s to; cmp %s to' % (copy, name, name), shell=True)
            assert open('to', 'rb').read()[at:at + 5] == b'HELLO', (name, at)
            w.store(at)
        w.end(); os.close(fd)
"#;
    let shared = [include_str!("surface/common.py"), include_str!("surface/mapped.py")].concat();
    mount.ok("python3", &format!("import sys; sys.argv += ['.', '.', 'root']\n{shared}\n{script}"));
}

#[test]
fn names() {
    as_root("names");
}

#[test]
fn special() {
    as_root("special");
}
