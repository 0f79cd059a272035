"""The measurements of scripts/bench, which makes what they need: see there.

python3 tests/bench --disk DIRECTORY --rootfs TAR --karapace PROGRAM --fuse-overlayfs-2 PROGRAM --b3sum PROGRAM
    --json FILE [--quick] [GROUP...]
"""

import argparse
import pathlib
import sys

import large
import scale
import trees
from systems import FuseOverlay, Karapace, Native, Overlay, run
from table import Table

GROUPS = ("warm", "cold", "writes", "changes", "large", "many", "store", "sessions")


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench")
    for name in ("disk", "rootfs", "karapace", "fuse-overlayfs-2", "b3sum", "json"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="some of: " + " ".join(GROUPS))
    given = parser.parse_args()
    unknown = [group for group in given.groups if group not in GROUPS]
    if unknown:
        parser.error("there is no group %s; there are %s" % (", ".join(unknown), " ".join(GROUPS)))
    return given


def main():
    given = arguments()
    quick = given.quick
    rounds = given.rounds or (3 if quick else 7)
    size = large.GIB // 4 if quick else large.GIB
    files = 50_000 if quick else 500_000
    count = 50_000 if quick else 1_000_000
    top = pathlib.Path(given.disk)
    wanted = given.groups or GROUPS
    table = Table()

    say("unpacking %s" % given.rootfs)
    lower = top / "lower"
    lower.mkdir()
    run("tar", "xpf", given.rootfs, "--xattrs", "--xattrs-include=*", "--exclude=./dev/*", "-C", lower)
    archive = trees.entries_archive(lower, top / "entries.tar")
    trees.repository(lower)
    small = top / "small"
    (small / "srv").mkdir(parents=True)
    if "large" in wanted:
        large.make(small / "srv/big", size)

    def systems(place, below):
        here = top / place
        return [
            Native(here, below),
            Overlay(here, below),
            FuseOverlay(here, below, "fuse-overlayfs 1.10", "fuse-overlayfs"),
            FuseOverlay(here, below, "fuse-overlayfs 2.0", given.fuse_overlayfs_2),
            Karapace(here, below, given.karapace),
        ]

    of_trees = systems("trees", lower)
    of_one = systems("one", small)
    karapace, single = of_trees[-1], of_one[-1]
    works = {
        "warm": [lambda: trees.warm(table, of_trees, rounds)],
        "cold": [lambda: trees.cold(table, of_trees, rounds)],
        "writes": [lambda: trees.writes(table, of_trees, rounds, archive)],
        "changes": [lambda: trees.lower_changes(table, of_trees, rounds)],
        "large": [
            lambda: large.sequential(table, of_one, rounds, size),
            lambda: large.first_write(table, of_one, rounds),
            lambda: large.random_reads(table, of_one[0], single, rounds, size),
            lambda: large.commits(table, single, rounds),
        ],
        "many": [lambda: scale.many(table, single, rounds, files)],
        "store": [
            lambda: trees.importing(table, karapace, rounds, given.rootfs),
            lambda: scale.new_files(table, karapace, rounds, files // 10, given.b3sum),
            lambda: scale.objects(table, single, min(rounds, 3), count, given.b3sum),
        ],
        "sessions": [lambda: trees.executing(table, karapace, rounds)],
    }
    for group in GROUPS:
        if group in wanted:
            say("measuring: " + group)
            for work in works[group]:
                work()
    print(table.text())
    table.write(given.json, {"quick": quick, "rounds": rounds})
    print("\n%d targets missed; samples in %s" % (table.missed(), given.json))


def say(text):
    print(text, file=sys.stderr, flush=True)


main()
