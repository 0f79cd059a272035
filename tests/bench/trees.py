"""Rows over the trees of a Debian development root filesystem."""

import os
import pathlib
import shutil
import subprocess
import time

from systems import Karapace, drop_caches, run, settle

MODULES = (
    "json argparse email.message http.client urllib.request xml.etree.ElementTree sqlite3 asyncio ctypes "
    "multiprocessing unittest logging.config csv zipfile tarfile subprocess decimal difflib inspect typing"
).split()

# Some 9,000 entries of small and middle files; the first two are a third of them.
ARCHIVED = ["usr/include", "usr/lib/python3.11", "usr/share/man", "usr/share/doc", "usr/share/perl", "usr/share/zoneinfo"]


def timed(argv, **options):
    """Seconds that a command takes; what it prints is read by nobody."""
    start = time.perf_counter()
    done = subprocess.run([str(a) for a in argv], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise SystemExit("%s failed: %s" % (argv, done.stderr.decode()[-2000:]))
    return seconds


def shell(script, directory):
    return timed(["sh", "-c", "set -e; " + script], cwd=directory)


def each(items, act):
    """Seconds that `act` takes on each of the items, by the item."""
    start = time.perf_counter()
    for item in items:
        act(item)
    return (time.perf_counter() - start) / len(items)


def repository(lower):
    """A git repository of some thousand files in the lower directory, for `git status`."""
    repo = lower / "srv/repo"
    repo.mkdir(parents=True)
    for part in ("usr/include", "usr/share/perl", "usr/lib/python3.11"):
        run("cp", "-a", lower / part, repo / part.replace("/", "-"))
    git = ["git", "-c", "user.name=b", "-c", "user.email=b@localhost", "-c", "gc.auto=0"]
    run(*git, "init", "-q", cwd=repo)
    run(*git, "add", "-A", cwd=repo)
    run(*git, "commit", "-q", "-m", "all", cwd=repo)


def part_of(lower, to):
    """A small part of the lower directory, for what is only written to: the host's file system has to be given a copy of it each
    time."""
    for part in ("usr/include", "usr/share/zoneinfo"):
        (to / part).parent.mkdir(parents=True, exist_ok=True)
        run("cp", "-a", lower / part, to / part)
    (to / "srv").mkdir()
    return to


def read_each(directory):
    """Opens, reads and closes 1,100 files."""
    files = []
    for path, _, names in os.walk(directory / "usr/include"):
        files += [os.path.join(path, name) for name in names if not os.path.islink(os.path.join(path, name))]
    files = sorted(files)[:1100]

    def act(path):
        descriptor = os.open(path, os.O_RDONLY)
        while os.read(descriptor, 131072):
            pass
        os.close(descriptor)

    each(files, act)
    return each(files, act) * len(files)


def warm(table, systems, rounds):
    group = "warm reads (seconds)"
    works = {
        "find -ls": lambda d: shell("find . -xdev -ls", d),
        "tar of usr/lib": lambda d: shell("tar cf - usr/lib | cat", d),
        "grep -r in usr/include": lambda d: shell("grep -rc xyzzy usr/include || true", d),
        "git status": lambda d: shell("git -c safe.directory='*' -C srv/repo status --short", d),
        "open, read, close of 1,100 files": read_each,
        "python3 with 20 imports": lambda d: timed(
            ["chroot", d, "/usr/bin/python3", "-c", "import " + ", ".join(MODULES)]
        ),
    }
    for system in systems:
        system.open()
        # The first is for the caches, and for git's index, which the copy made stale.
        for work in works.values():
            work(system.dir)
            work(system.dir)
    for number in range(rounds):
        for system in rotated(systems, number):
            for name, work in works.items():
                table.row(group, name, ("native", 1.15)).add(system.name, work(system.dir))
    for system in systems:
        system.close()


def cold(table, systems, rounds):
    group = "cold reads, caches dropped and mounted anew (seconds)"
    works = {
        "find -ls": lambda d: shell("find . -xdev -ls", d),
        "tar of usr/lib": lambda d: shell("tar cf - usr/lib | cat", d),
    }
    for system in systems:
        system.open()
    for number in range(rounds):
        for system in rotated(systems, number):
            for name, work in works.items():
                system.detach()
                drop_caches()
                system.attach()
                table.row(group, name, ("overlay", 1.5)).add(system.name, work(system.dir))
    for system in systems:
        system.close()


def writes(table, systems, rounds, archive, entries, count):
    group = "writes (seconds; of create, rename and unlink: a file)"
    targets = (("fuse-overlayfs 2.0", 0.5), ("overlay", 3.0))
    git = "git -c user.name=b -c user.email=b@localhost -c gc.auto=0"
    payload = bytes(range(256)) * 16

    def create(path):
        with open(path, "wb", buffering=0) as file:
            file.write(payload)

    for number in range(rounds):
        for system in rotated(systems, number):
            system.open()
            top = system.dir / "srv/work"
            top.mkdir()

            def add(name, value):
                table.row(group, name, *targets).add(system.name, value)
                system.settle()

            add("untar of {:,} entries".format(entries), shell("tar xf %s" % archive, top))
            shell("git init -q", top)
            add("git add -A", shell(git + " add -A", top))
            add("cp -a of them", shell("cp -a work copy", system.dir / "srv"))
            add("rm -rf of them", shell("rm -rf copy", system.dir / "srv"))
            names = [str(top / ("file%d" % n)) for n in range(count)]
            add("create of 4 KiB", each(names, create))
            add("rename", each(names, lambda name: os.rename(name, name + ".new")))
            add("unlink", each(names, lambda name: os.unlink(name + ".new")))
            system.close()


def lower_changes(table, systems, rounds):
    group = "changes of lower files (seconds; but for the first: a file)"
    for number in range(rounds):
        for system in rotated(systems, number):
            system.open()
            files = [str(p) for p in sorted((system.dir / "usr/include").rglob("*.h")) if not p.is_symlink()][:1000]

            def add(name, value):
                table.row(group, name, ("native", 1.5)).add(system.name, value)
                system.settle()

            source, target = system.dir / "usr/share/zoneinfo", system.dir / "usr/share/moved"
            add("mv of a directory of 1,300", shell("mv %s %s" % (source, target), system.dir))
            for path in files:
                os.lstat(path)
            add("chmod", each(files, lambda path: os.chmod(path, 0o600)))
            add("chown", each(files, lambda path: os.chown(path, 12, 34)))
            add("setxattr", each(files, lambda path: os.setxattr(path, "user.k", b"v")))
            add("link", each(files, lambda path: os.link(path, path + ".l")))
            add("rename", each(files, lambda path: os.rename(path, path + ".r")))
            system.close()


def storms(table, systems, rounds, count):
    """Many small calls to one new file or directory, which nothing but their number makes dear."""
    group = "small calls in a row (seconds a call)"

    def write(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        try:
            return each(range(count), lambda _: os.write(descriptor, bytes(512)))
        finally:
            os.close(descriptor)

    def attribute(path):
        os.setxattr(path, "user.k", b"v")
        os.getxattr(path, "user.k")
        os.listxattr(path)
        os.removexattr(path, "user.k")

    def link(path):
        os.link(path, path + ".l")
        os.unlink(path + ".l")

    for number in range(rounds):
        for system in rotated(systems, number):
            system.open()
            path = str(system.dir / "srv/file")

            def add(name, value):
                table.row(group, name).add(system.name, value)
                system.settle()

            add("write of 512 bytes (dd bs=512)", write(path))
            add("setxattr, getxattr, listxattr, removexattr", each([path] * count, attribute) / 4)
            add("link and unlink", each([path] * count, link) / 2)
            add("mkdir and rmdir", each([path + ".d"] * count, lambda d: (os.mkdir(d), os.rmdir(d))) / 2)
            system.close()


def importing(table, karapace, rounds, archive):
    """The import of the archive against `tar xf` and its sync."""
    row = table.row("the store (seconds)", "import of %d MB" % (os.path.getsize(archive) // 1000000), ("native", 1.2))
    top = karapace.top / "import"
    for _ in range(rounds):
        top.mkdir()
        drop_caches()
        shell("cat %s >/dev/null" % archive, "/")
        row.add("native", shell("mkdir tree && tar xpf %s -C tree && sync -f tree" % archive, top))
        shutil.rmtree(top / "tree")
        settle(top)
        other = Karapace(top, None, karapace.program)
        start = time.perf_counter()
        other.bring_in(archive, "one")
        row.add("karapace", time.perf_counter() - start)
        shutil.rmtree(top)
        settle(karapace.top)


def executing(table, karapace, rounds):
    group = "sessions (milliseconds)"
    row = table.row(group, "exec true, mounted", ("unshare", 3.0), (None, 15, "ms"))
    karapace.open()
    argv = [karapace.program, "--store", karapace.store, "exec", karapace.env, "--", "true"]
    bare = ["unshare", "-Urmpf", "--mount-proc", "chroot", karapace.dir, "true"]
    for _ in range(10 * rounds):
        row.add("unshare", timed(bare) * 1000)
        row.add("karapace", timed(argv) * 1000)
    copy = [karapace.program, "--store", karapace.store, "run", karapace.env, "--", "true"]
    row = table.row(group, "run true, mounted", (None, 25, "ms"))
    for _ in range(5 * rounds):
        row.add("karapace", timed(copy) * 1000)
    karapace.detach()
    row = table.row(group, "exec true, not mounted", (None, 100, "ms"))
    for _ in range(3 * rounds):
        row.add("karapace", timed(argv) * 1000)
    row = table.row(group, "run true, not mounted", (None, 60, "ms"))
    for _ in range(3 * rounds):
        row.add("karapace", timed(copy) * 1000)
    karapace.attach()
    karapace.close()


def rotated(systems, number):
    """Each round another one is first."""
    number %= len(systems)
    return systems[number:] + systems[:number]


def entries_archive(lower, to, parts):
    """Parts of the lower directory as an archive; how many entries it has."""
    run("tar", "cf", to, "-C", lower, *parts)
    return pathlib.Path(to), len(run("tar", "tf", to).splitlines())
