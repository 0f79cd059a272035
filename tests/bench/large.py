"""Rows over one large file."""

import mmap
import os
import random
import time

from systems import drop_caches, run
from trees import rotated, shell

GIB = 1 << 30
MIB = 1 << 20


def make(path, size):
    """A file that does not compress and has no holes."""
    block = random.Random(7).randbytes(MIB)
    with open(path, "wb", buffering=0) as file:
        for number in range(size // MIB):
            file.write(number.to_bytes(8, "little") + block[8:])


def sequential(table, systems, rounds, size):
    group = "one file of %d MiB (seconds)" % (size // MIB)
    block = random.Random(8).randbytes(MIB)

    def write(path):
        start = time.perf_counter()
        with open(path, "wb", buffering=0) as file:
            for _ in range(size // MIB):
                file.write(block)
        return time.perf_counter() - start

    for number in range(rounds):
        for system in rotated(systems, number):
            system.open()
            big = system.dir / "srv/big"

            def add(name, value):
                # At least 0.9 of the speed is at most 1/0.9 of the time.
                table.row(group, name, ("native", 1 / 0.9)).add(system.name, value)

            system.detach()
            drop_caches()
            system.attach()
            add("sequential read, cold", shell("cat %s >/dev/null" % big, "/"))
            add("sequential read, warm", shell("cat %s | cat >/dev/null" % big, "/"))
            add("sequential write", write(system.dir / "srv/new"))
            system.settle()
            add("sequential write over it", write(system.dir / "srv/new"))
            system.close()


def first_write(table, systems, rounds, size):
    group = "writes into a committed file of %d MiB (milliseconds)" % (size // MIB)
    for number in range(rounds):
        for system in rotated(systems, number):
            system.open()
            descriptor = os.open(system.dir / "srv/big", os.O_WRONLY)
            times = []
            for place in (size // 3, size // 3 + 4096):
                start = time.perf_counter()
                os.pwrite(descriptor, b"x" * 4096, place)
                times.append((time.perf_counter() - start) * 1000)
            os.close(descriptor)
            table.row(group, "second write").add(system.name, times[1])
            targets = [(None, 5, "ms")]
            table.row(group, "first write, beyond the second", *targets).add(system.name, times[0] - times[1])
            system.settle()
            system.close()


def random_reads(table, native, karapace, rounds, size):
    group = "random 4 KiB reads of the large file, read-only mount of root (seconds for 20,000)"
    chance = random.Random(9)
    places = [chance.randrange(size // 4096) * 4096 for _ in range(20000)]

    def reads(path):
        descriptor = os.open(path, os.O_RDONLY)
        start = time.perf_counter()
        for place in places:
            os.pread(descriptor, 4096, place)
        seconds = time.perf_counter() - start
        os.close(descriptor)
        return seconds

    def mapped(path):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
            memory.madvise(mmap.MADV_RANDOM)
            start = time.perf_counter()
            total = 0
            for place in places:
                total += memory[place]
            return time.perf_counter() - start

    def both(system, name):
        path = system.dir / "srv/big"
        for kind, work in (("pread", reads), ("mmap", mapped)):
            drop_caches()
            for state in ("cold", "warm"):
                row = table.row(group, "%s, %s" % (kind, state), ("native", 1 / 0.8))
                row.add(name, work(path))

    native.open()
    karapace.open()
    for number in range(rounds):
        both(native, "native")
        for name, options in rotated([("karapace", ["--passthrough"]), ("by requests", [])], number):
            karapace.detach()
            karapace.attach("--read-only", *options)
            if options:
                drop_caches()
                start = time.perf_counter()
                os.close(os.open(karapace.dir / "srv/big", os.O_RDONLY))
                milliseconds = (time.perf_counter() - start) * 1000
                table.row("passthrough (milliseconds)", "first open of the large file, cold").add("karapace", milliseconds)
            both(karapace, name)
    native.close()
    karapace.close()


def commits(table, karapace, rounds):
    """A commit after one byte, a chmod and a move costs what changed."""
    group = "commits of the large file (milliseconds; growth in MiB)"
    for _ in range(rounds):
        karapace.open()
        big = karapace.dir / "srv/big"

        def commit(name):
            karapace.settle()
            before = used(karapace.store / "store/objects")
            start = time.perf_counter()
            karapace.control("commit")
            row = table.row(group, "after " + name, (None, 30, "ms"))
            row.add("karapace", (time.perf_counter() - start) * 1000)
            row = table.row(group, "growth after " + name, (None, 1, "MiB"))
            row.add("karapace", (used(karapace.store / "store/objects") - before) / MIB)

        descriptor = os.open(big, os.O_RDWR)
        os.pwrite(descriptor, b"y", 1000)
        commit("one byte")
        os.pwrite(descriptor, b"z", MIB)
        commit("one byte more")
        os.close(descriptor)
        big.chmod(0o600)
        commit("chmod")
        (karapace.dir / "srv").rename(karapace.dir / "moved")
        commit("mv of its directory")
        karapace.close()


def used(directory):
    """Bytes on the disk."""
    return int(run("du", "-s", "--block-size=1", directory).split()[0])
