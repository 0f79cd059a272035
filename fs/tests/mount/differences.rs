//! Intended differences of a mount from ext4; docs/SEMANTICS.md gives the reasons.

use crate::mount::support::Mount;

const COMMON: &str = r#"
import ctypes, errno, fcntl, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
def fails(code, what, *args):
    try: what(*args)
    except OSError as e: assert e.errno == code, (what, args, e)
    else: raise SystemExit('%s%r should have failed with %s' % (what.__name__, args, errno.errorcode[code]))
def fallocate(fd, mode, at, length):
    if libc.fallocate64(fd, mode, ctypes.c_long(at), ctypes.c_long(length)): raise OSError(ctypes.get_errno(), 'fallocate')
"#;

fn python(script: &str) {
    Mount::new().ok("python3", &format!("{COMMON}\n{script}"));
}

#[test]
fn what_is_not_offered_is_refused_cleanly() {
    python(
        r#"
fails(errno.EOPNOTSUPP, os.open, '.', os.O_TMPFILE | os.O_RDWR)
open('f', 'wb').write(b'x' * 100000)
fd = os.open('f', os.O_RDWR)
for mode in (0x08, 0x20, 0x40, 0x80):
    fails(errno.EOPNOTSUPP, fallocate, fd, mode, 4096, 4096)
for request in (0x80086601, 0x40086602, 0x801c581f):
    fails(errno.ENOTTY, fcntl.ioctl, fd, request, bytearray(64))
fails(errno.EOPNOTSUPP, fcntl.ioctl, os.open('to', os.O_CREAT | os.O_RDWR), 0x40049409, fd)
assert os.fstat(fd).st_size == 100000 and os.pread(fd, 9, 4096) == b'x' * 9
statx = ctypes.create_string_buffer(256)
assert libc.statx(-100, b'f', 0, 0xfff, statx) == 0
assert not int.from_bytes(statx.raw[:4], 'little') & 0x800, 'a birth time'
"#,
    );
}

/// The kernel handles seeking itself, up to 64 bits, but nothing can be written there.
#[test]
fn offsets_end_where_the_hosts_do() {
    python(
        r#"
fd = os.open('f', os.O_CREAT | os.O_RDWR)
for at in (1 << 50, 1 << 62):
    assert os.lseek(fd, at, os.SEEK_SET) == at and os.read(fd, 1) == b''
    for call in (os.write, fd, b'x'), (os.pwrite, fd, b'x', at), (os.ftruncate, fd, at), (fallocate, fd, 0, at - 4096, 4096):
        fails(errno.EFBIG, *call)
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        fails(errno.ENXIO, os.lseek, fd, at, whence)
assert os.fstat(fd).st_size == 0
fails(errno.EINVAL, os.lseek, fd, -1, os.SEEK_SET)
"#,
    );
}

#[test]
fn calls_for_disk_file_systems_are_refused() {
    python(
        r#"
GETVERSION, FIFREEZE, FITRIM, NOWAIT, QUOTACTL_FD, GETQUOTA = 0x80087601, 0xC0045877, 0xC0185879, 8, 443, 0x800007 << 8
def call(function, *args):
    if function(*args) < 0: raise OSError(ctypes.get_errno(), 'call')
open('f', 'wb').write(bytes(1 << 20)); os.chmod('f', 0o600)
fd, dir = os.open('f', os.O_RDWR), os.open('.', os.O_RDONLY)
fails(errno.ENOTTY, fcntl.ioctl, fd, GETVERSION, bytearray(8))
fails(errno.EOPNOTSUPP, fcntl.ioctl, dir, FIFREEZE, 0)
fails(errno.ENOTTY, fcntl.ioctl, dir, FITRIM, bytearray(b'\0' * 8 + b'\xff' * 8 + b'\0' * 8))
fails(errno.EOPNOTSUPP, os.preadv, fd, [bytearray(5)], 0, NOWAIT)
fails(errno.EOPNOTSUPP, os.pwritev, fd, [b'x'], 0, NOWAIT)
assert os.pwrite(fd, b'SWAPSPACE2', 4086) == 10 and os.pwrite(fd, (1).to_bytes(4, 'little') + (255).to_bytes(4, 'little'), 1024) == 8
fails(errno.EINVAL, call, libc.swapon, b'f', 0)
fails(errno.ENOSYS, call, libc.syscall, QUOTACTL_FD, dir, GETQUOTA, 0, ctypes.create_string_buffer(128))
"#,
    );
}

#[test]
fn what_ext4_cannot_do() {
    python(
        r#"
open('f', 'wb').write(bytes(range(256)) * 64)
fd = os.open('f', os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 8192)
assert os.preadv(fd, [memoryview(page)[1:1001]], 100) == 1000 and page[1:5] == bytes([100, 101, 102, 103])
assert os.pwritev(fd, [memoryview(page)[1:1001]], 10) == 1000
assert open('f', 'rb').read()[10:14] == bytes([100, 101, 102, 103])
for t in (-2207520000 * 10**9, (2**34 - 1) * 10**9 + 999999999, 20000000000 * 10**9, -(2**31 + 5) * 10**9 + 7):
    os.utime('f', ns=(t, t)); assert os.stat('f').st_mtime_ns == t == os.stat('f').st_atime_ns
os.setxattr('f', 'user.large', b'v' * 65536); assert os.getxattr('f', 'user.large') == b'v' * 65536
"#,
    );
}

#[test]
fn access_times_are_not_kept() {
    python(
        r#"
open('f', 'w').write('text'); os.mkdir('d')
os.utime('f', ns=(5, 6)); os.utime('d', ns=(5, 6))
open('f').read(); os.listdir('d')
assert os.stat('f').st_atime_ns == os.stat('d').st_atime_ns == 5
assert os.stat('.').st_size == os.stat('d').st_size == 4096
"#,
    );
}
