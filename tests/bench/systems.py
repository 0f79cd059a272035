"""The file systems that are compared: each shows the same lower directory and takes writes of its own."""

import json
import os
import pathlib
import shutil
import subprocess
import time


def run(*argv, **options):
    """A command that must succeed; its output is shown when it does not."""
    done = subprocess.run([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode != 0:
        raise SystemExit("%s\nfailed with %d:\n%s" % (" ".join(map(str, argv)), done.returncode, done.stdout.decode()))
    return done.stdout.decode()


def drop_caches():
    """So that what comes next is cold."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3\n")


def settle(path):
    """Waits until what was written to the file system of `path` is on the disk."""
    run("sync", "-f", path)


class System:
    """One way of having a writable copy of a lower directory."""

    name = ""

    def __init__(self, top, lower):
        self.lower = lower
        self.top = pathlib.Path(top) / self.name.replace(" ", "-")
        self.top.mkdir(parents=True)
        self.dir = self.top / "merged"

    def open(self):
        """A copy with nothing changed."""
        raise NotImplementedError

    def attach(self):
        """Mounts what `detach` unmounted."""
        raise NotImplementedError

    def detach(self):
        run("umount", self.dir)

    def settle(self):
        """Waits until what was written is on the disk, so that no later measurement pays for it: first what the system
        itself holds back, then the disk's."""
        settle(self.dir)
        settle(self.top)

    def close(self):
        """Ends it and removes what was written."""
        raise NotImplementedError


class Native(System):
    """The host's file system: a plain copy."""

    name = "native"

    def open(self):
        run("cp", "-a", self.lower, self.dir)
        self.settle()

    def attach(self):
        pass

    def detach(self):
        pass

    def close(self):
        shutil.rmtree(self.dir)


class Overlay(System):
    """The kernel's overlayfs."""

    name = "overlay"

    def open(self):
        for part in ("upper", "work", "merged"):
            (self.top / part).mkdir()
        self.attach()

    def options(self):
        return "lowerdir=%s,upperdir=%s,workdir=%s" % (self.lower, self.top / "upper", self.top / "work")

    def attach(self):
        run("mount", "-t", "overlay", "overlay", "-o", self.options(), self.dir)

    def close(self):
        self.detach()
        for part in ("upper", "work", "merged"):
            shutil.rmtree(self.top / part)


class FuseOverlay(Overlay):
    """fuse-overlayfs, in the version that `program` is."""

    def __init__(self, top, lower, name, program):
        self.name = name
        self.program = program
        super().__init__(top, lower)

    def attach(self):
        run(self.program, "-o", self.options(), self.dir)


class Karapace(System):
    """An environment of a store on the same disk."""

    name = "karapace"

    def __init__(self, top, lower, program):
        super().__init__(top, lower)
        self.program = program
        self.store = self.top / "store"
        self.count = 0
        self.env = None

    def do(self, *argv):
        return run(self.program, "--store", self.store, *argv)

    def bring_in(self, image, name):
        """An environment from a directory or an archive."""
        self.do("import", image, "--name", name)
        return name

    def open(self, base=None):
        if base is None:
            base = "lower"
            if self.count == 0:
                self.bring_in(self.lower, base)
        self.count += 1
        self.env = "run%d" % self.count
        self.do("clone", base, "--name", self.env)
        self.attach()

    def attach(self, *options):
        self.do("mount", self.env, self.dir, *options)

    def detach(self):
        # The process ends after the mount; what it still writes belongs to this.
        pid = self.server()
        self.do("umount", self.env)
        while pathlib.Path("/proc/%d" % pid).exists():
            time.sleep(0.005)

    def close(self):
        self.detach()
        self.do("destroy", "-y", "--snapshots", self.env)

    def server(self):
        """The serving process."""
        return json.loads(self.do("--json", "inspect", self.env))["mount"]["pid"]

    def control(self, command):
        """Writes one command to the control file."""
        with open(self.dir / ".karapace/ctl", "w") as file:
            file.write(command + "\n")

    def memory(self, which):
        """Bytes of memory of the serving process: VmRSS is all of it, RssAnon what it allocated."""
        for line in open("/proc/%d/status" % self.server()):
            if line.startswith(which + ":"):
                return int(line.split()[1]) * 1024
        raise SystemExit("the kernel tells no " + which)
