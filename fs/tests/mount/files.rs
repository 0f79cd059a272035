//! What the front-end does with ordinary requests.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};

use crate::mount::support::Mount;

#[test]
fn common_work() {
    let mount = Mount::new();
    let script = r#"
set -e
mkdir -p a/b/c; echo hello > a/b/c/f; ln a/b/c/f a/g; ln -s b/c/f a/s
[ "$(cat a/s)" = hello ]; [ "$(stat -c %h a/g)" = 2 ]
mv a/b a/d; [ ! -e a/b ]; [ "$(cat a/d/c/f)" = hello ]
chmod 4750 a/g; [ "$(stat -c %a a/d/c/f)" = 4750 ]
mkfifo p; [ -p p ]; mknod null c 1 3; [ "$(stat -c %t:%T null)" = 1:3 ]; echo x > null
mknod big b 259 70000; [ "$(stat -c %t:%T big)" = 103:11170 ]
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("sock")'; [ -S sock ]
ln -s loop loop; ! cat loop 2>/dev/null
seq 1 100000 > n; [ "$(tail -n 1 n)" = 100000 ]; truncate -s 10 n; [ "$(stat -c %s n)" = 10 ]
rm -r a; [ ! -e a ]
umask 027; touch u; [ "$(stat -c %a u)" = 640 ]; mkdir v; [ "$(stat -c %a v)" = 750 ]
"#;
    mount.ok("bash", script);
}

#[test]
fn times_keep_their_nanoseconds_on_both_sides_of_1970() {
    let mount = Mount::new();
    let path = mount.path("f");
    fs::write(&path, "").expect("write");
    for (date, secs, nanos) in [
        ("@1.000000001", 1, 1),
        ("@-1.2", -2, 800_000_000),
        ("@-86400", -86400, 0),
        ("@4294967296.5", 1 << 32, 500_000_000),
    ] {
        mount.ok("bash", &format!("touch -d {date} f"));
        let meta = fs::metadata(&path).expect("stat");
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (secs, nanos), "{date}");
        assert_eq!((meta.atime(), meta.atime_nsec()), (secs, nanos), "{date}");
    }
}

#[test]
fn a_file_lives_while_it_is_open() {
    let mount = Mount::new();
    let path = mount.path("f");
    fs::write(&path, "content").expect("write");
    let mut open = File::options().read(true).write(true).open(&path).expect("open");
    fs::remove_file(&path).expect("remove");
    assert!(!path.exists());
    let mut text = String::new();
    open.read_to_string(&mut text).expect("read");
    open.write_all(b" more").expect("write");
    assert_eq!(text, "content");
    assert_eq!(open.metadata().expect("stat").size(), 12);
}

#[test]
fn set_user_id_goes_when_another_writes() {
    let mount = Mount::new();
    fs::set_permissions(mount.path(""), fs::Permissions::from_mode(0o777)).expect("chmod");
    let prepare = "echo x > f; chmod 6777 f";
    let as_other = |what: &str| format!("import os; os.setgid(12345); os.setuid(12345); {what}");
    for what in ["open('f', 'a').write('y')", "os.truncate('f', 0)"] {
        mount.ok("bash", prepare);
        mount.ok("python3", &as_other(what));
        assert_eq!(mount.ok("bash", "stat -c %a f"), "777\n", "{what}");
    }
    mount.ok("bash", prepare);
    mount.ok("bash", "echo z >> f; truncate -s 0 f");
    assert_eq!(mount.ok("bash", "stat -c %a f"), "6777\n", "root keeps them");
    mount.ok("bash", "chown 1:1 f");
    assert_eq!(mount.ok("bash", "stat -c %a f"), "777\n", "a new owner does not");
}

/// Any user may call chown(2) without ids, and the kernel then asks to drop set-user-id.
#[test]
fn set_user_id_stays_when_another_changes_no_owner() {
    let mount = Mount::new();
    let chown = "import os; os.chown('p', -1, -1)";
    let script = format!(
        r#"touch p; chmod 4755 p
        setpriv --reuid 1000 --regid 1000 --clear-groups python3 -c "{chown}" && [ "$(stat -c %a p)" = 4755 ]
        python3 -c "{chown}" && [ "$(stat -c %a p)" = 755 ]"#
    );
    mount.ok("bash", &script);
}

#[test]
fn names_of_any_bytes_and_long_ones() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let mount = Mount::new();
    let name = OsStr::from_bytes(b"\xff\x01 \n'\"");
    fs::write(mount.path("").join(name), "x").expect("write");
    let listed: Vec<_> =
        fs::read_dir(mount.path("")).expect("list").map(|e| e.expect("entry").file_name()).collect();
    assert!(listed.contains(&name.to_owned()));
    fs::write(mount.path(&"n".repeat(255)), "x").expect("255 bytes");
    let long = fs::write(mount.path(&"n".repeat(256)), "x").expect_err("256 bytes");
    assert_eq!(long.raw_os_error(), Some(libc::ENAMETOOLONG));
}

#[test]
fn listings_of_many_names_are_complete_and_current() {
    let mount = Mount::new();
    let dir = mount.path("d");
    fs::create_dir(&dir).expect("mkdir");
    let count = || fs::read_dir(&dir).expect("list").filter(|e| e.is_ok()).count();
    for number in 0..3000 {
        File::create(dir.join(format!("name-{number:05}"))).expect("create");
    }
    assert_eq!(count(), 3000);
    assert_eq!(count(), 3000, "from the kernel's cache");
    for number in (0..3000).step_by(2) {
        fs::remove_file(dir.join(format!("name-{number:05}"))).expect("remove");
    }
    assert_eq!(count(), 1500);
    mount.ok("bash", "ls -l d | wc -l && find d -type f | wc -l | grep -qx 1500 && rm -r d");
}

#[test]
fn extended_attributes() {
    let mount = Mount::new();
    let script = r#"
import os, errno
open('f', 'w').close()
os.setxattr('f', 'user.a', b'\x00\xff' * 100)
assert os.getxattr('f', 'user.a') == b'\x00\xff' * 100
assert os.listxattr('f') == ['user.a'], os.listxattr('f')
os.removexattr('f', 'user.a')
for call in (lambda: os.getxattr('f', 'user.a'), lambda: os.removexattr('f', 'user.a')):
    try: call()
    except OSError as e: assert e.errno == errno.ENODATA, e
    else: raise SystemExit('no error')
"#;
    mount.ok("python3", script);
}

#[test]
fn statfs_and_mount_options() {
    let mount = Mount::new();
    let dir = mount.path("").canonicalize().expect("path");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let dir = dir.to_str().expect("text").trim_end_matches('/');
    let line = mounts.lines().find(|l| l.split(' ').nth(1) == Some(dir)).expect("mounted");
    assert!(line.starts_with("karapace+test ") && line.contains(" fuse.karapace "), "{line}");
    for option in ["default_permissions", "allow_other", "noatime"] {
        assert!(line.contains(option), "{option}: {line}");
    }
    for absent in ["nosuid", "nodev"] {
        assert!(!line.contains(absent), "{absent}: {line}");
    }
    mount.ok("bash", "df . > /dev/null && [ $(stat -f -c %l .) = 255 ]");
}

#[test]
fn append_and_truncate_on_open() {
    let mount = Mount::new();
    let path = mount.path("f");
    let mut file = File::options().append(true).create(true).mode(0o600).open(&path).expect("create");
    file.write_all(b"one").expect("write");
    File::options().append(true).open(&path).expect("open").write_all(b"two").expect("write");
    file.write_all(b"three").expect("write");
    assert_eq!(fs::read_to_string(&path).expect("read"), "onetwothree");
    File::create(&path).expect("truncate");
    assert_eq!(fs::metadata(&path).expect("stat").size(), 0);
}

#[test]
fn data_by_every_road() {
    let mount = Mount::new();
    let script = r#"
import fcntl, mmap, os, subprocess
data = os.urandom(5_000_000)
with open('f', 'wb') as f:
    f.write(data); f.flush(); os.fsync(f.fileno())
fd = os.open('.', os.O_RDONLY); os.fsync(fd); os.close(fd)
assert open('f', 'rb').read() == data
fd = os.open('f', os.O_RDWR)
m = mmap.mmap(fd, 0)
m[100:105] = b'HELLO'; m.flush(); m.close()
assert os.pread(fd, 5, 100) == b'HELLO'
data = data[:100] + b'HELLO' + data[105:]
out = os.open('copy', os.O_RDWR | os.O_CREAT)
done = 0
while done < len(data): done += os.copy_file_range(fd, out, len(data) - done)
assert os.pread(out, len(data) + 1, 0) == data
fcntl.flock(fd, fcntl.LOCK_EX); fcntl.lockf(out, fcntl.LOCK_EX)
if hasattr(os, 'O_DIRECT'):
    d = os.open('f', os.O_RDONLY | os.O_DIRECT)
    page = mmap.mmap(-1, 8192)
    assert os.preadv(d, [page], 4096) == 8192 and page[:] == data[4096:12288]
os.ftruncate(out, 10 << 30)
assert os.fstat(out).st_size == 10 << 30
assert os.lseek(out, 0, os.SEEK_HOLE) < 10 << 30
os.ftruncate(out, 3); assert os.pread(out, 9, 0) == data[:3]
open('run', 'w').write('#!/bin/sh\necho ran\n'); os.chmod('run', 0o755)
assert subprocess.check_output('./run') == b'ran\n'
os.link('run', 'run2'); os.rename('run2', 'run'); assert sorted(os.listdir('.')) == ['base-file', 'copy', 'f', 'run', 'run2']
"#;
    mount.ok("python3", script);
}

#[test]
fn access_control_lists() {
    let mount = Mount::new();
    let script = r#"
import os, struct
NOBODY = 0xffffffff
def acl(*entries):
    return struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *e) for e in entries)
os.mkdir('d'); os.chmod('d', 0o755)
os.setxattr('d', 'system.posix_acl_default',
            acl((1, 7, NOBODY), (2, 6, 1000), (4, 5, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY)))
os.umask(0o077)
open('d/f', 'w').write('text')
assert os.stat('d/f').st_mode & 0o777 == 0o660, 'the default ACL counts, not the umask'
assert 'system.posix_acl_access' in os.listxattr('d/f')
os.setxattr('d/f', 'system.posix_acl_access',
            acl((1, 6, NOBODY), (2, 4, 12345), (4, 0, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY)))
assert os.stat('d/f').st_mode & 0o777 == 0o640, 'the mode follows the ACL'
def can(uid, mode):
    pid = os.fork()
    if pid == 0:
        os.setgid(uid); os.setuid(uid)
        try: open('d/f', mode)
        except PermissionError: os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0
assert can(12345, 'r') and not can(12345, 'a') and not can(12346, 'r')
os.chmod('d/f', 0o600)
assert not can(12345, 'r'), 'chmod sets the mask'
"#;
    mount.ok("bash", "chmod 755 .");
    mount.ok("python3", script);
}
