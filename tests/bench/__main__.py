"""The measurements of scripts/bench, which makes what they need: see there.

python3 tests/bench --disk DIRECTORY --rootfs TAR --karapace PROGRAM --fuse-overlayfs-2 PROGRAM --b3sum PROGRAM
    --json FILE [--quick] [--rounds N] [GROUP...]
"""

import argparse
import pathlib
import sys
import time

import copies
import large
import scale
import trees
from systems import FuseOverlay, Karapace, Native, Overlay, run
from table import Table

GROUPS = ("warm", "cold", "writes", "changes", "storms", "large", "many", "store", "objects", "sessions", "copies")


class Full:
    """The sizes that the targets are for. Rounds cost most where fuse-overlayfs writes."""

    rounds = dict(warm=5, cold=2, writes=2, changes=2, storms=2, large=2, many=2, store=2, objects=1, sessions=5, copies=3)
    archive = trees.ARCHIVED
    names = 2000
    large = large.GIB
    many = 500_000
    new = 50_000
    objects = 1_000_000


class Quick:
    """Shows in three minutes what became slower."""

    rounds = dict(warm=2, cold=2, writes=1, changes=1, storms=1, large=1, many=1, store=1, objects=1, sessions=2, copies=1)
    archive = trees.ARCHIVED[:2]
    names = 1000
    large = 128 * large.MIB
    many = 10_000
    new = 2_000
    objects = 10_000


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench")
    for name in ("disk", "rootfs", "karapace", "fuse-overlayfs-2", "b3sum", "json"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--rounds", type=int, help="as many of every group")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="some of: " + " ".join(GROUPS))
    given = parser.parse_args()
    unknown = [group for group in given.groups if group not in GROUPS]
    if unknown:
        parser.error("there is no group %s; there are %s" % (", ".join(unknown), " ".join(GROUPS)))
    return given


def main():
    given = arguments()
    size = Quick if given.quick else Full
    rounds = {name: given.rounds or count for name, count in size.rounds.items()}
    top = pathlib.Path(given.disk)
    wanted = given.groups or GROUPS
    table = Table()
    began = time.monotonic()

    def say(text):
        print("%4.0f s: %s" % (time.monotonic() - began, text), file=sys.stderr, flush=True)

    say("unpacking %s" % given.rootfs)
    lower = top / "lower"
    lower.mkdir()
    run("tar", "xpf", given.rootfs, "--xattrs", "--xattrs-include=*", "--exclude=./dev/*", "-C", lower)
    archive, entries = trees.entries_archive(lower, top / "entries.tar", size.archive)
    trees.repository(lower)
    copies.prepare(lower, archive)
    few = trees.part_of(lower, top / "few")
    small = top / "small"
    (small / "srv").mkdir(parents=True)
    if "large" in wanted:
        large.make(small / "srv/big", size.large)

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
    of_few = systems("part", few)
    of_one = systems("one", small)
    karapace, single = of_trees[-1], of_one[-1]
    many = Karapace(top / "many", None, given.karapace)
    store = Karapace(top / "objects", None, given.karapace)
    works = {
        "warm": [lambda: trees.warm(table, of_trees, rounds["warm"])],
        "cold": [lambda: trees.cold(table, of_trees, rounds["cold"])],
        "writes": [lambda: trees.writes(table, of_few, rounds["writes"], archive, entries, size.names)],
        "changes": [lambda: trees.lower_changes(table, of_few, rounds["changes"])],
        "storms": [lambda: trees.storms(table, of_few, rounds["storms"], size.names)],
        "large": [
            lambda: large.sequential(table, of_one, rounds["large"], size.large),
            lambda: large.first_write(table, of_one, rounds["large"], size.large),
            lambda: large.random_reads(table, of_one[0], single, rounds["large"], size.large),
            lambda: large.commits(table, single, rounds["large"]),
        ],
        "many": [lambda: scale.many(table, many, rounds["many"], size.many)],
        "store": [
            lambda: trees.importing(table, karapace, rounds["store"], given.rootfs),
            lambda: scale.new_files(table, karapace, rounds["store"], size.new, given.b3sum),
        ],
        "objects": [lambda: scale.objects(table, store, rounds["objects"], size.objects, given.b3sum)],
        "sessions": [lambda: trees.executing(table, karapace, rounds["sessions"])],
        "copies": [lambda: copies.kept(table, of_trees, rounds["copies"], entries)],
    }
    for group in GROUPS:
        if group in wanted:
            say("measuring: " + group)
            for work in works[group]:
                work()
    took = time.monotonic() - began
    print(table.text())
    table.write(given.json, {"quick": given.quick, "rounds": rounds, "seconds": round(took)})
    print("\n%d targets missed; %d minutes; samples in %s" % (table.missed(), round(took / 60), given.json))


main()
