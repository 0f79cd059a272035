"""Rows whose point is the number of files."""

import os
import pathlib
import shutil
import subprocess
import time

from systems import drop_caches, run, settle

BLOCK = 512


def archive(path, files, content):
    """A tar of `files` files in directories of 500; content(n) gives the bytes of each, in any number as many and at most
    a block. Written by hand: tarfile takes minutes for a million."""
    size = len(content(0))
    rest = b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000000\0"
    end = b" 0" + bytes(100) + b"ustar\x0000"
    fixed = sum(rest) + 8 * ord(" ") + sum(end[1:])
    with open(path, "wb") as tar:
        for number in range(files):
            name = b"d%d/s%d/f%d" % (number // 250000, number // 500, number)
            head = name.ljust(100, b"\0") + rest + b"%06o\0" % (fixed + sum(name)) + end
            tar.write(head.ljust(BLOCK, b"\0") + content(number).ljust(BLOCK, b"\0"))
        tar.write(bytes(2 * BLOCK))


def forgotten(karapace):
    """Bytes that the serving process has allocated once the kernel has forgotten all that it may."""
    left, same = None, 0
    deadline = time.monotonic() + 30
    # What is free goes back to the system in the background.
    while same < 30 and time.monotonic() < deadline:
        # Each time, the kernel passes over what was used since the last; it sends what it forgot in the background.
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("2\n")
        time.sleep(0.2)
        before, left = left, karapace.memory("RssAnon")
        same = same + 1 if left == before else 0
    return left


def many(table, karapace, rounds, files):
    """Mount, memory, a small commit and restores in an environment of many files, which share their contents."""
    group = "an environment of %d files" % files
    tar = karapace.top / "many.tar"
    archive(tar, files, lambda n: b"%03d\n" % (n % 1000))
    karapace.bring_in(tar, "many")
    tar.unlink()
    for number in range(rounds):
        settle(karapace.top)
        karapace.open("many")
        karapace.detach()
        start = time.perf_counter()
        karapace.attach()
        milliseconds = (time.perf_counter() - start) * 1000
        table.row(group, "mount (ms)", (None, 50, "ms")).add("karapace", milliseconds)
        row = table.row(group, "memory when mounted (MiB of RSS)", (None, 30, "MiB"))
        row.add("karapace", karapace.memory("VmRSS") / (1 << 20))
        before = karapace.memory("RssAnon")
        run("sh", "-c", "find . -ls | wc -l", cwd=karapace.dir)
        after = karapace.memory("RssAnon")
        each = (after - before) / files
        table.row(group, "memory after a walk (bytes an entry)", (None, 400, "bytes")).add("karapace", each)
        left = (forgotten(karapace) - before) / files
        table.row(group, "memory after FORGET (bytes an entry)", (None, 40, "bytes")).add("karapace", left)
        karapace.control("commit name=start%d" % number)
        with open(karapace.dir / "d0/s7/f3600", "w") as file:
            file.write("changed %d\n" % number)
        start = time.perf_counter()
        karapace.control("commit name=one%d" % number)
        row = table.row(group, "commit of one changed file (ms)", (None, 20, "ms"))
        row.add("karapace", (time.perf_counter() - start) * 1000)
        for name in ("start%d" % number, "one%d" % number):
            start = time.perf_counter()
            karapace.control("restore " + name)
            row = table.row(group, "restore of what differs by one file (ms)", (None, 20, "ms"))
            row.add("karapace", (time.perf_counter() - start) * 1000)
        karapace.close()


def new_files(table, karapace, rounds, files, b3sum):
    """A commit of many new files against tar and blake3 of them and a sync."""
    row = table.row("the store (seconds)", "commit of %d new files" % files, ("native", 1.5))
    for number in range(rounds):
        karapace.open()
        for top in (karapace.top / "plain", karapace.dir / "srv/plain"):
            for n in range(files):
                if n % 500 == 0:
                    directory = top / str(n // 500)
                    directory.mkdir(parents=True)
                with open(directory / str(n), "wb", buffering=0) as file:
                    file.write(b"%d in round %d\n" % (n, number) * 30)
        # The copy beside is written when the sync of the comparison comes, as the upper's is when the commit comes.
        start = time.perf_counter()
        tar = subprocess.Popen(["tar", "c", "-C", karapace.top, "plain"], stdout=subprocess.PIPE)
        run(b3sum, stdin=tar.stdout)
        tar.wait()
        settle(karapace.top)
        row.add("native", time.perf_counter() - start)
        start = time.perf_counter()
        karapace.control("commit")
        row.add("karapace", time.perf_counter() - start)
        shutil.rmtree(karapace.top / "plain")
        karapace.close()


def objects(table, karapace, rounds, count, b3sum):
    """gc against find, verify-store against reading and hashing, over a store of many objects."""
    group = "a store of %d objects (seconds)" % count
    tar = karapace.top / "objects.tar"
    archive(tar, count, lambda n: b"object %07d " % n * 20)
    karapace.bring_in(tar, "objects")
    tar.unlink()
    store = karapace.store / "store"
    sums = "find %s -type f -print0 | xargs -0 cat | %s" % (store / "objects", b3sum)
    for _ in range(rounds):
        for name, most, theirs, ours in (
            ("gc", 3.0, "find %s -type f -size -1 -ls" % store, ["gc"]),
            ("verify-store", 1 / 0.7, sums, ["verify-store"]),
        ):
            row = table.row(group, name, ("native", most))
            drop_caches()
            start = time.perf_counter()
            run("sh", "-c", theirs)
            row.add("native", time.perf_counter() - start)
            drop_caches()
            start = time.perf_counter()
            memory = peak(karapace, ours)
            row.add("karapace", time.perf_counter() - start)
            table.row(group, "memory of %s (MiB)" % name, (None, 200, "MiB")).add("karapace", memory / 1024)


def peak(karapace, argv):
    """Runs a command; gives the KiB that it had at most, which getrusage cannot tell of a child: it counts what this process
    had when it forked."""
    process = subprocess.Popen([karapace.program, "--store", karapace.store, *argv], stdout=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        for line in open("/proc/%d/status" % process.pid):
            if line.startswith("VmHWM:"):
                most = int(line.split()[1])
        time.sleep(0.02)
    if process.returncode != 0:
        raise SystemExit("karapace %s ended with %d" % (argv, process.returncode))
    return most
