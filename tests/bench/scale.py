"""Rows whose point is the number of files."""

import io
import os
import shutil
import subprocess
import tarfile
import time

from systems import drop_caches, run, settle

BLOCK = 512


def archive(path, files, content):
    """A tar of `files` files in directories of 500; content(n) gives the bytes of each."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(files):
            entry = tarfile.TarInfo("d%d/s%d/f%d" % (number // 250000, number // 500, number))
            data = content(number)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def many(table, karapace, rounds, files):
    """Mount, memory, a small commit and restores in an environment of many files, which share their contents."""
    group = "an environment of %d files" % files
    tar = karapace.top / "many.tar"
    archive(tar, files, lambda n: b"%d\n" % (n % 1000))
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
        before = karapace.memory()
        table.row(group, "memory when mounted (MiB)", (None, 30, "MiB")).add("karapace", before / (1 << 20))
        run("sh", "-c", "find . -ls | wc -l", cwd=karapace.dir)
        after = karapace.memory()
        each = (after - before) / files
        table.row(group, "memory after a walk (bytes an entry)", (None, 400, "bytes")).add("karapace", each)
        drop_caches()
        # The kernel forgets at its leisure.
        time.sleep(2)
        left = (karapace.memory() - before) / files
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
    archive(tar, count, lambda n: b"object %d " % n * 20)
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
    karapace.do("destroy", "-y", "objects")
    karapace.do("gc")


def peak(karapace, argv):
    """Runs a command; gives the KiB that it had at most."""
    process = subprocess.Popen([karapace.program, "--store", karapace.store, *argv], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit("karapace %s ended with %d" % (argv, status))
    return usage.ru_maxrss
