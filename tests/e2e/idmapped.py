#!/usr/bin/env python3
"""Mounts SOURCE on TARGET with each id raised by FIRST: idmapped.py SOURCE TARGET FIRST COUNT.

What `mount --bind -o X-mount.idmap=` of util-linux 2.39 does, by mount_setattr(2).
"""

import ctypes
import errno
import os
import struct
import subprocess
import sys

# asm-generic/unistd.h; the same on every architecture.
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
AT_EMPTY_PATH, AT_FDCWD = 0x1000, -100
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_IDMAP = 0x00100000

libc = ctypes.CDLL(None, use_errno=True)


def call(name, number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        sys.exit(f"{name}: {errno.errorcode[error]} ({os.strerror(error)})")
    return result


def main():
    source, target, first, count = sys.argv[1:]
    # Its ids are those that a user namespace maps, so one is made for it; the mount keeps it.
    holder = subprocess.Popen(["unshare", "--user", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        for kind in "uid", "gid":
            with open(f"/proc/{holder.pid}/{kind}_map", "w") as file:
                file.write(f"0 {first} {count}\n")
        namespace = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY)
        tree = call("open_tree", OPEN_TREE, AT_FDCWD, source.encode(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
        # struct mount_attr of mount_setattr(2): set, cleared, propagation, user namespace.
        attributes = struct.pack("=QQQQ", MOUNT_ATTR_IDMAP, 0, 0, namespace)
        call("mount_setattr", MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, attributes, len(attributes))
        call("move_mount", MOVE_MOUNT, tree, b"", AT_FDCWD, target.encode(), MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        holder.kill()
        holder.wait()


main()
