//! A host that is full or fails: which errors programs in the mount get, what stays, and how it recovers.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::mount::support::Mount;

/// A separate file system that fills up soon.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    const BYTES: u64 = 48 << 20;

    fn tmpfs() -> SmallDisk {
        let dir = tempfile::tempdir().expect("directory");
        let size = format!("size={}", SmallDisk::BYTES);
        mount(Some("none"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            .expect("these tests need the right to mount (run them as root)");
        SmallDisk(dir)
    }

    pub fn ext4() -> SmallDisk {
        let dir = tempfile::tempdir().expect("directory");
        let image = dir.path().with_extension("img");
        fs::File::create(&image).and_then(|f| f.set_len(SmallDisk::BYTES)).expect("image");
        let run = |command: &mut Command| {
            let output = command.output().expect("these tests need mkfs.ext4 and mount");
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-b", "4096"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(dir.path()));
        // From here on only the mount keeps it.
        fs::remove_file(&image).expect("remove");
        SmallDisk(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A process that another test has just forked may hold it for a moment: the mount then goes with that
        // process.
        if let Err(errno) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {errno}", self.0.path().display());
        }
    }
}

/// Code shared by the scripts. `fill` writes until neither a single byte nor a journal record fits.
const COMMON: &str = r#"
import errno, os, sys
def fill():
    fd = os.open('filler', os.O_CREAT | os.O_WRONLY)
    os.lseek(fd, 0, os.SEEK_END)
    for size in (1 << 20, 1 << 12, 1):
        try:
            while True: os.write(fd, b'f' * size)
        except OSError as e: assert e.errno == errno.ENOSPC, e
    os.close(fd)
    try:
        while True: os.chmod('filler', 0o600); os.chmod('filler', 0o640)
    except OSError as e: assert e.errno == errno.ENOSPC, e
def full(what, *args, **more):
    try: what(*args, **more)
    except OSError as e: assert e.errno == errno.ENOSPC, (what, args, e)
    else: raise SystemExit('%s%r should have met a full disk' % (what.__name__, args))
def put(name, data, at=None):
    fd = os.open(name, os.O_WRONLY | (os.O_APPEND if at is None else 0))
    try: assert os.pwrite(fd, data, at or 0) == len(data)
    finally: os.close(fd)
"#;

fn python(mount: &Mount, script: &str) -> String {
    mount.ok("python3", &format!("{COMMON}\n{script}"))
}

/// Names, kinds, modes, sizes, times, attributes and contents.
fn tree(mount: &Mount) -> String {
    let script = "find . -printf '%p %y %m %n %s %T@ %l\\n' | sort; getfattr -Rd -m - . 2>&1; \
                  find . -type f -print0 | sort -z | xargs -0 sha256sum";
    mount.ok("bash", script)
}

fn fills_up(disk: &SmallDisk) {
    let mount = Mount::below(disk.path(), |_| {});
    python(
        &mount,
        r#"
os.makedirs('lower/dir')
for name, size in (('large', 3 << 20), ('small', 5000), ('linked', 10), ('dir/a', 10), ('dir/b', 10)):
    open('lower/' + name, 'wb').write(os.urandom(size))
for i in range(300): open('lower/many%d' % i, 'w').close()
"#,
    );
    mount.commit();
    python(
        &mount,
        r#"
free = lambda: os.statvfs('.').f_bavail * os.statvfs('.').f_frsize
before = free()
open('upper', 'wb').write(os.urandom(2 << 20))
fd = os.open('upper', os.O_RDWR); os.fsync(fd); os.close(fd)
assert before - free() >= 2 << 20, 'free space falls after a write: %d, %d' % (before, free())
open('ballast', 'wb').write(os.urandom(2 << 20))
os.mkdir('made'); open('made/file', 'w').write('text'); os.setxattr('made/file', 'user.a', b'1')
fill()
"#,
    );
    let before = tree(&mount);
    python(
        &mount,
        r#"
full(put, 'upper', b'x' * (1 << 20))
full(put, 'lower/small', b'x', 0)
full(put, 'lower/large', b'x', 1 << 20)
full(os.truncate, 'lower/small', 10)
full(os.truncate, 'lower/large', 10)
full(os.truncate, 'upper', 100 << 20)
full(os.posix_fallocate, os.open('upper', os.O_RDWR), 0, 40 << 20)
full(os.open, 'new', os.O_CREAT)
full(os.mkdir, 'new'); full(os.mkfifo, 'new'); full(os.symlink, 'a', 'new'); full(os.link, 'lower/linked', 'new')
full(os.rename, 'lower/small', 'new'); full(os.rename, 'lower/dir', 'new'); full(os.rename, 'made/file', 'lower/small')
full(os.setxattr, 'lower/small', 'user.a', b'1'); full(os.setxattr, 'made/file', 'user.a', b'2')
full(os.removexattr, 'made/file', 'user.a')
full(os.chmod, 'lower/small', 0o600); full(os.chown, 'lower/dir', 1, 1); full(os.utime, 'lower/large', (1, 1))
"#,
    );
    assert_eq!(tree(&mount), before, "what met a full disk changed nothing");
    assert!(crate::common::commit::commit(&mount.view, &mut |_| unreachable!("there was room")).is_err());
    assert_eq!(tree(&mount), before, "nor did a commit");

    // Allocated blocks can be overwritten. Removing files frees space, and then everything works again.
    python(
        &mount,
        r#"
put('upper', b'over', 0)
os.unlink('ballast')
for i in range(300): os.unlink('lower/many%d' % i)
put('upper', b'x' * 1000)
put('lower/small', b'x', 0); put('lower/large', b'x', 1 << 20); os.rename('lower/dir', 'new'); os.mkdir('newer')
os.setxattr('made/file', 'user.a', b'2')
fill()
os.truncate('upper', 100)
assert os.stat('upper').st_size == 100
put('upper', b'again')
fill()
fd = os.open('filler', os.O_WRONLY | os.O_TRUNC); os.close(fd)
open('newer/file', 'w').write('text')
fill()
"#,
    );
    let before = tree(&mount);
    let again = mount.reopened();
    assert_eq!(again.stats().dirty_inodes, mount.view.stats().dirty_inodes);
    drop(again);
    assert_eq!(tree(&mount), before);
    mount.ok("bash", "rm -r ./*; [ -z \"$(ls)\" ]; echo back > again; [ \"$(cat again)\" = back ]");
}

#[test]
fn a_full_tmpfs_stops_nothing_for_good() {
    fills_up(&SmallDisk::tmpfs());
}

#[test]
fn a_full_ext4_stops_nothing_for_good() {
    fills_up(&SmallDisk::ext4());
}
