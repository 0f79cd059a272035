"""Work in a temporary copy that is kept, to its durable end, beside the same on the kernel's overlayfs and a sync."""

import shutil

from systems import run, settle
from trees import rotated, timed

# What a session does, after a `cd` to a directory of its own on the disk.
WORKS = {
    "untar of %d entries": "tar xpf /srv/entries.tar",
    "git clone and status": "git clone -q /srv/repo clone && git -C clone status --short",
    "compile 200 files (make -j2)": "cp -r /srv/program . && make -s -C program -j2",
    "copy of the repository, and its removal": "cp -a /srv/repo copy && rm -rf copy",
}


def prepare(lower, archive):
    """Gives the lower directory what the works need: an archive, and a program with many small files."""
    shutil.copy(archive, lower / "srv/entries.tar")
    program = lower / "srv/program"
    program.mkdir()
    names = ["f%d" % number for number in range(200)]
    for name in names:
        (program / (name + ".c")).write_text(
            "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\nint %s(int n) { return printf(\"%%d\", n); }\n" % name
        )
    objects = " ".join(name + ".o" for name in names)
    (program / "Makefile").write_text("all: %s\n\tar rcs all.a %s\n" % (objects, objects))


def kept(table, systems, rounds, entries):
    """`run --keep NAME` against a chroot in the overlay and `sync -f`; then its removal, which is not measured."""
    overlay, karapace = (next(s for s in systems if s.name == name) for name in ("overlay", "karapace"))
    group = "temporary copies that are kept (seconds, to the durable end)"

    def on_overlay(script):
        overlay.open()
        # git and others need /dev/null.
        run("mount", "--bind", "/dev", overlay.dir / "dev")
        took = timed(["chroot", overlay.dir, "sh", "-c", script]) + timed(["sync", "-f", overlay.dir])
        run("umount", overlay.dir / "dev")
        overlay.close()
        settle(overlay.top)
        return took

    def in_copy(script):
        took = timed([karapace.program, "--store", karapace.store, "run", "--keep", "kept", karapace.env, "--", "sh", "-c", script])
        karapace.do("destroy", "-y", "--snapshots", "kept")
        karapace.do("gc")
        settle(karapace.top)
        return took

    karapace.open()
    for number in range(rounds):
        for name, work in WORKS.items():
            row = table.row(group, name % entries if "%d" in name else name, ("overlay", 1.25))
            script = "set -e; mkdir /srv/work; cd /srv/work; export HOME=/root; git config --global safe.directory '*'; " + work
            for system in rotated([(overlay, on_overlay), (karapace, in_copy)], number):
                row.add(system[0].name, system[1](script))
    karapace.close()
    run("sync")
