#!/usr/bin/env python3
"""What a program that watches a tree hears of it.

watcher.py watch DIR LOG      writes a line `EVENT path` for each event to LOG; first, once all is watched, `READY .`
watcher.py hook LOG DIR       git's fsmonitor hook, version 2 (githooks(5)): DIR is the work tree that is watched
watcher.py flips DIR NAME...  stats the names until there is input, and says when each came or went; to stderr `ready` once it has seen
                              what is there, and how often it asked
"""
import ctypes
import os
import select
import struct
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
# Opens and reads are everybody's, and those of the directories are the watcher's own.
EVENTS = {
    0x2: "MODIFY", 0x4: "ATTRIB", 0x8: "CLOSE_WRITE", 0x40: "MOVED_FROM", 0x80: "MOVED_TO", 0x100: "CREATE",
    0x200: "DELETE", 0x400: "DELETE_SELF", 0x4000: "OVERFLOW",
}
MASK = sum(EVENTS)
IS_DIRECTORY = 0x40000000


class Tree:
    """All directories of a tree, watched, those that come later too."""

    def __init__(self, top):
        self.top, self.paths = top, {}
        self.queue = LIBC.inotify_init1(os.O_CLOEXEC)
        for path, _, _ in os.walk(top):
            self.add(path)

    def add(self, path):
        number = LIBC.inotify_add_watch(self.queue, os.fsencode(path), MASK)
        if number >= 0:
            self.paths[number] = path

    def events(self):
        """The events that there are, waited for."""
        data, at = os.read(self.queue, 1 << 20), 0
        while at < len(data):
            number, mask, _, length = struct.unpack_from("iIII", data, at)
            name = data[at + 16 : at + 16 + length].rstrip(b"\0")
            at += 16 + length
            path = os.path.join(self.paths.get(number, self.top), os.fsdecode(name)) if name else self.paths.get(number, self.top)
            if mask & 0x100 and mask & IS_DIRECTORY:
                for below, _, _ in os.walk(path):
                    self.add(below)
            for bit, event in EVENTS.items():
                if mask & bit:
                    yield event, os.path.relpath(path, self.top)


def watch(top, log):
    tree = Tree(top)
    with open(log, "w", encoding="utf-8", errors="surrogateescape", buffering=1) as out:
        out.write("READY .\n")
        while True:
            out.write("".join(f"{event} {path}\n" for event, path in tree.events()))


def hook(log, top, version, token):
    assert version == "2", version
    # What is in the queue before the cookie's event is in the log before it.
    cookie = os.path.join(".git", f"cookie-{os.getpid()}")
    with open(os.path.join(top, cookie), "w", encoding="utf-8"):
        pass
    deadline = time.monotonic() + 30
    while True:
        with open(log, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
        if f"CREATE {cookie}" in lines or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    os.unlink(os.path.join(top, cookie))
    out = sys.stdout.buffer
    out.write(b"%d\0" % len(lines))
    if token.isdigit():
        changed = {line.split(" ", 1)[1] for line in lines[int(token) :]}
        out.write(b"".join(os.fsencode(path) + b"\0" for path in sorted(changed) if not path.startswith(".git")))
    else:
        out.write(b"/\0")


def flips(top, names):
    """Prints a line `NAME there` or `NAME gone` at each change."""
    paths = [os.path.join(top, name) for name in names]
    there = [os.path.lexists(path) for path in paths]
    print("ready", file=sys.stderr, flush=True)
    asked, wrong = 0, False
    while not select.select([sys.stdin], [], [], 0)[0]:
        for index, path in enumerate(paths):
            try:
                now = os.lstat(path).st_mtime != 0
                wrong |= not now
            except FileNotFoundError:
                now = False
            asked += 1
            if now != there[index]:
                there[index] = now
                print(names[index], "there" if now else "gone", flush=True)
    print(asked, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    COMMAND, *ARGUMENTS = sys.argv[1:]
    if COMMAND == "watch":
        watch(*ARGUMENTS)
    elif COMMAND == "hook":
        hook(*ARGUMENTS)
    else:
        sys.exit(flips(ARGUMENTS[0], ARGUMENTS[1:]))
