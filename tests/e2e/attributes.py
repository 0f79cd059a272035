"""Prints every attribute that a copy of a directory should keep, one path a line, to be compared with diff.

A path is named by what it is: kind, mode, owner, links, size, device, modification time in nanoseconds, link target,
content, where its data lies, extended attributes, and which path it shares its inode with. A directory's own size is
left out: it is the file system's. With --no-owners owners are left out, with --no-times times, with --no-holes where data lies.
"""

import hashlib
import os
import stat
import sys

# File systems keep data in blocks of up to this many bytes; holes are compared in these steps.
STEP = 65536


def data(descriptor, size):
    """The steps in which there is data, as ranges."""
    ranges, position = [], 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:
            break
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        first, last = start // STEP, -(-position // STEP)
        if ranges and ranges[-1][1] >= first:
            first = ranges.pop()[0]
        ranges.append((first, last))
    return ",".join(f"{first}-{last}" for first, last in ranges)


def content(path, size, holes):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = data(descriptor, size) if holes else "anywhere"
        os.lseek(descriptor, 0, os.SEEK_SET)
        with open(descriptor, "rb", closefd=False) as file:
            return f"{hashlib.file_digest(file, 'sha256').hexdigest()} data {found}"
    finally:
        os.close(descriptor)


def describe(path, first_names, owners, times, holes):
    status = os.lstat(path)
    mode = status.st_mode
    words = [stat.filemode(mode), f"links {status.st_nlink}"]
    if owners:
        words.append(f"{status.st_uid}:{status.st_gid}")
    if times:
        words.append(f"mtime {status.st_mtime_ns}")
    if not stat.S_ISDIR(mode):
        words.append(f"size {status.st_size}")
        words.append(f"as {first_names.setdefault(status.st_ino, path)!r}")
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        words.append(f"device {os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
    if stat.S_ISLNK(mode):
        words.append(f"-> {os.readlink(path)!r}")
    if stat.S_ISREG(mode):
        words.append(content(path, status.st_size, holes))
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        words.append(f"{name}={os.getxattr(path, name, follow_symlinks=False).hex()}")
    return f"{path!r} " + " ".join(words)


def paths(directory):
    yield directory
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if stat.S_ISDIR(os.lstat(path).st_mode):
            yield from paths(path)
        else:
            yield path


options, directory = sys.argv[1:-1], sys.argv[-1]
os.chdir(directory)
first_names = {}
for path in paths(b"."):
    told = [f"--no-{what}" not in options for what in ("owners", "times", "holes")]
    print(describe(path, first_names, *told))
