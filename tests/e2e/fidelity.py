#!/usr/bin/env python3
"""A tree with one of everything that a file system keeps, feature by feature.

fidelity.py make DIR root|user     makes DIR/<feature>/ for each feature that the actor may make; prints their names
fidelity.py describe DIR           says everything that there is to know of what is below, one line a path
fidelity.py change DIR             changes every inode below in place
"""
import hashlib
import os
import socket
import stat
import struct
import sys

BLOCK = 65536
FEATURES = {}


def feature(name, only=None):
    def register(function):
        FEATURES[name] = (function, only)
        return function
    return register


def write(path, data=b"content\n"):
    with open(path, "wb") as file:
        file.write(data)


@feature("plain-and-empty")
def _():
    write("file", b"some text\n")
    write("empty", b"")
    write("a-mebibyte-and-more", b"0123456789abcdef" * 70000)
    os.mkdir("empty-directory")
    os.makedirs("one/two/three")
    write("one/two/three/file")


@feature("modes-setuid-setgid-sticky")
def _():
    for mode in (0o4755, 0o2755, 0o6711, 0o1644, 0o0000, 0o0400, 0o7777):
        write(f"f{mode:o}")
        os.chmod(f"f{mode:o}", mode)
        os.mkdir(f"d{mode:o}")
        os.chmod(f"d{mode:o}", mode | 0o700)


@feature("ids-above-2097151")
def _():
    for name, uid, gid in (("low", 12, 34), ("high", 3000000, 4000000), ("highest", 4294967294, 2097152)):
        write(name)
        os.chown(name, uid, gid)
        os.mkdir(name + ".d")
        os.chown(name + ".d", uid, gid)
        os.symlink("x", name + ".l")
        os.chown(name + ".l", uid, gid, follow_symlinks=False)


@feature("xattrs-user")
def _():
    write("file")
    os.mkdir("directory")
    for path in ("file", "directory"):
        os.setxattr(path, "user.text", b"value")
        os.setxattr(path, "user.binary", bytes(range(256)) * 8)
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, b"user.odd=%name\xc3\xa9", b"x")


@feature("xattrs-trusted-security", only="root")
def _():
    write("file")
    os.symlink("nowhere", "link")
    os.mkfifo("fifo")
    for path in ("file", "link", "fifo"):
        os.setxattr(path, "trusted.note", b"kept", follow_symlinks=False)
        os.setxattr(path, "security.other", b"kept too", follow_symlinks=False)


@feature("selinux-label", only="root")
def _():
    write("file")
    os.setxattr("file", "security.selinux", b"system_u:object_r:etc_t:s0\0")


@feature("file-capabilities", only="root")
def _():
    write("file")
    os.chmod("file", 0o755)
    # VFS_CAP_REVISION_2 with the effective bit: cap_net_raw and cap_net_bind_service.
    os.setxattr("file", "security.capability", struct.pack("<5I", 0x02000001, (1 << 13) | (1 << 10), 0, 0, 0))


def acl(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF


@feature("acls-access-and-default", only="root")
def _():
    write("file")
    entries = ((1, 6, NOBODY), (2, 4, 77), (4, 4, NOBODY), (8, 6, 88), (16, 6, NOBODY), (32, 0, NOBODY))
    os.setxattr("file", "system.posix_acl_access", acl(*entries))
    os.mkdir("directory")
    os.setxattr("directory", "system.posix_acl_access", acl(*entries))
    os.setxattr("directory", "system.posix_acl_default", acl(*entries))
    write("directory/inherits")
    assert "system.posix_acl_access" in os.listxattr("directory/inherits")


@feature("sparse-with-its-holes")
def _():
    with open("holes", "wb") as file:
        for block in (1, 2, 7, 20):
            file.seek(block * BLOCK)
            file.write(bytes([block]) * BLOCK)
        file.truncate(40 * BLOCK)
    with open("only-a-hole", "wb") as file:
        file.truncate(3 * BLOCK + 5)
    assert holes("holes") == [(1, 3), (7, 8), (20, 21)], holes("holes")


@feature("sparse-above-8-gib")
def _():
    with open("large", "wb") as file:
        file.seek(8 << 30)
        file.write(b"x" * BLOCK)
        file.truncate(9 << 30)


@feature("hard-links")
def _():
    os.mkdir("directory")
    write("first")
    os.link("first", "second")
    os.link("first", "directory/third")
    os.symlink("target", "link")
    os.link("link", "link-too", follow_symlinks=False)


@feature("symlinks")
def _():
    os.symlink("x" * 4000, "long")
    os.symlink("does/not/exist", "dangling")
    os.symlink("/etc/passwd", "absolute")
    os.symlink("../../..", "upwards")
    os.symlink(b"bytes \xff\n", "odd")
    os.symlink("itself", "itself")


@feature("fifos-and-sockets")
def _():
    os.mkfifo("fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")


@feature("devices", only="root")
def _():
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod("high", stat.S_IFCHR | 0o600, os.makedev(4000, 1000000))
    os.mknod("disk", stat.S_IFBLK | 0o660, os.makedev(8, 1))


@feature("names-of-any-bytes")
def _():
    names = [b"new\nline", b"\xff\xfe invalid", b"x" * 255, "\u00e4".encode() * 127, b".wh.x", b".wh..wh..opq", b".wh.",
             b"-dash", b" ", b"..x", b"a\\b", b'q"uote', b"\x01\x7f", b"%41="]
    for name in names:
        write(name, name)
        if len(name) < 250:
            os.mkdir(name + b".d")
            write(name + b".d/" + name, name)


@feature("deep-paths")
def _():
    top = os.getcwd()
    for _ in range(60):
        os.mkdir("d" * 100)
        os.chdir("d" * 100)
    write("deep")
    os.chdir(top)


TIMES = {"nanoseconds": 981173106789012345, "before-1970": -157766399876543211, "epoch": 0, "one": 1,
         "year-2100": 4102444800000000001}


@feature("times")
def _():
    for name, time in TIMES.items():
        write(name)
        os.utime(name, ns=(time, time))
        os.symlink("x", name + ".l")
        os.utime(name + ".l", ns=(time, time), follow_symlinks=False)
        os.mkdir(name + ".d")
        os.utime(name + ".d", ns=(time, time))


@feature("deletions-and-replacements")
def _():
    # What the base has here (the suite sees to it) goes; a directory is replaced by another one of its name.
    os.unlink("gone")
    os.unlink("gone-too/x")
    os.rmdir("gone-too")
    os.unlink("replaced/old")
    os.rmdir("replaced")
    os.mkdir("replaced", 0o711)
    write("replaced/new")
    os.unlink("kind")
    os.mkdir("kind")
    os.rename("moved", "moved-here")


def holes(path):
    """The blocks that hold data, as ranges."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found, at = [], 0
        size = os.fstat(descriptor).st_size
        while at < size:
            try:
                start = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(descriptor, start, os.SEEK_HOLE)
            found.append((start // BLOCK, (at + BLOCK - 1) // BLOCK))
        return found
    finally:
        os.close(descriptor)


def content(path):
    """Hash of what is not a hole, with where it is."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for start, end in holes(path):
            file.seek(start * BLOCK)
            digest.update(b"%d:" % start)
            digest.update(file.read((end - start) * BLOCK))
    return digest.hexdigest()


def describe(directory, path, links, out):
    """Goes by descriptors: a path may be longer than a system call takes."""
    for name in sorted(os.listdir(directory)):
        raw = os.fsencode(name)
        at = path + b"/" + raw
        here = f"/proc/self/fd/{directory}/{name}"
        info = os.lstat(here)
        kind = stat.S_IFMT(info.st_mode)
        links.setdefault(info.st_ino, at)
        words = [repr(at), oct(info.st_mode), info.st_uid, info.st_gid, "mtime", info.st_mtime_ns]
        if kind != stat.S_IFDIR:
            words += ["size", info.st_size, "links", info.st_nlink, "first", repr(links[info.st_ino])]
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            words += ["device", os.major(info.st_rdev), os.minor(info.st_rdev)]
        if kind == stat.S_IFLNK:
            words += ["to", repr(os.readlink(os.fsencode(here)))]
        for attribute in sorted(os.listxattr(here, follow_symlinks=False)):
            words += [attribute, os.getxattr(here, attribute, follow_symlinks=False).hex()]
        if kind == stat.S_IFREG:
            mode = stat.S_IMODE(info.st_mode)
            if mode & 0o400 == 0 and os.getuid() != 0:
                words += ["unreadable"]
            else:
                words += ["data", holes(here), content(here)]
        out.append(" ".join(str(word) for word in words))
        if kind == stat.S_IFDIR:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            describe(below, at, links, out)
            os.close(below)


def change(directory):
    for name in os.listdir(directory):
        here = f"/proc/self/fd/{directory}/{name}"
        info = os.lstat(here)
        kind = stat.S_IFMT(info.st_mode)
        for attribute in os.listxattr(here, follow_symlinks=False):
            os.removexattr(here, attribute, follow_symlinks=False)
        if kind == stat.S_IFDIR:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            change(below)
            os.close(below)
        if kind == stat.S_IFREG:
            os.chmod(here, 0o600)
            with open(here, "r+b") as file:
                file.truncate(info.st_size // 2)
                file.seek(3)
                file.write(b"changed")
        if kind == stat.S_IFLNK:
            os.unlink(here)
            os.symlink("changed", here)
        os.chown(here, 5, 6, follow_symlinks=False)
        if kind != stat.S_IFLNK:
            os.chmod(here, 0o755)
            os.setxattr(here, "user.changed", b"x") if kind in (stat.S_IFREG, stat.S_IFDIR) else None
        os.utime(here, ns=(7, 7), follow_symlinks=False)


def main():
    command, top = sys.argv[1], sys.argv[2]
    sys.setrecursionlimit(5000)
    os.umask(0o022)
    if command == "make":
        for name, (make, only) in FEATURES.items():
            if only in (None, sys.argv[3]):
                directory = os.path.join(top, name)
                os.makedirs(directory, exist_ok=True)
                os.chdir(directory)
                make()
                print(name)
        return
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    if command == "describe":
        out = []
        describe(descriptor, b"", {}, out)
        print("\n".join(out))
    else:
        change(descriptor)


main()
