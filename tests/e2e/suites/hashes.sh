#!/usr/bin/env bash
# One content, one hash: whatever file system holds the store or the source, in whatever order, by whom, and under which umask,
# time zone and locale it was made.
# runs as: root
# seconds: 50
. "$(dirname "$0")/../checks.sh"

# build DIRECTORY SEED: the same tree, made in an order of its own.
build() {
    mkdir -p "$1"
    python3 - "$1" "$2" <<'PYTHON'
import os, random, sys
top, seed = sys.argv[1], int(sys.argv[2])
os.umask(0)
things = [("d", f"d{i}", None) for i in range(30)] + [("d", f"d{i}/below", None) for i in range(30)]
files = [("f", f"d{i % 30}/file{i}", b"%d " % i * (i * 37 % 5000)) for i in range(1500)]
files += [("f", "d1/mebibytes", bytes(range(256)) * 12000), ("f", "empty", b""), ("f", "d2/.wh.x", b"x")]
files += [("f", "d2/\udcff\n", b"odd"), ("s", "d3/sparse", None), ("l", "d4/link", "../d1/file1"), ("p", "d5/fifo", None)]
random.Random(seed).shuffle(files)
for kind, path, data in things + files:
    path = os.path.join(top, path)
    if kind == "d":
        os.makedirs(path)
    elif kind == "l":
        os.symlink(data, path)
    elif kind == "p":
        os.mkfifo(path)
    else:
        with open(path, "wb") as file:
            if kind == "s":
                file.seek(9 * 65536)
                file.write(b"y" * 65536)
                file.truncate(40 * 65536)
            else:
                file.write(data)
os.link(os.path.join(top, "d1/file1"), os.path.join(top, "d6/again"))
for directory, directories, names in os.walk(os.fsencode(top), topdown=False):
    for name in names + directories:
        path = os.path.join(directory, name)
        if not os.path.islink(path):
            os.chmod(path, 0o750 if os.path.isdir(path) else 0o640)
        os.utime(path, ns=(10**18, 10**18 + 5), follow_symlinks=False)
os.chmod(top, 0o755)
os.utime(top, ns=(10**18, 10**18 + 5))
PYTHON
}

# changes DIRECTORY SEED: the same changes, in an order of their own.
changes() {
    python3 - "$1" "$2" <<'PYTHON'
import os, random, sys
top, seed = sys.argv[1], int(sys.argv[2])
todo = [("w", f"d{i % 30}/file{i}") for i in range(0, 600, 3)] + [("r", f"d{i % 30}/file{i}") for i in range(602, 900, 3)]
todo += [("w", f"new{i}") for i in range(50)] + [("m", "d7"), ("c", "d8/file8"), ("w", "d3/sparse")]
random.Random(seed).shuffle(todo)
for what, path in todo:
    path = os.path.join(top, path)
    if what == "w":
        with open(path, "r+b" if os.path.exists(path) else "wb") as file:
            file.seek(100)
            file.write(b"changed")
        os.chmod(path, 0o600)
    elif what == "r":
        os.unlink(path)
    elif what == "m":
        os.rename(path, path + ".moved")
    else:
        os.chmod(path, 0o4711)
for what, path in todo:
    if what in "wc":
        os.utime(os.path.join(top, path), ns=(10**18, 2 * 10**18))
PYTHON
}

# hashes LABEL SOURCE SEED COMMAND...: imports SOURCE into a store at $PLACE/LABEL, mounts it, makes the changes, commits; base
# and head must be the first one's. COMMAND... is put before karapace.
hashes() {
    local label=$1 source=$2 seed=$3
    shift 3
    local store=$PLACE/store-$label dir=$HOME/mnt-$label found
    mkdir -p "$dir"
    "$@" karapace --store "$store" import "$source" --name same
    "$@" karapace --store "$store" mount same "$dir"
    changes "$dir" "$seed"
    "$@" karapace --store "$store" commit same >/dev/null
    found=$("$@" karapace --store "$store" --json inspect same | json - 'd["base_layer"] + " " + d["head"]')
    "$@" karapace --store "$store" umount same
    [ -e "$TMPDIR/hashes" ] || echo "$found" >"$TMPDIR/hashes"
    equal "$label" "$(cat "$TMPDIR/hashes")" "$found"
}

PLACE=$PLAIN
on_ext4() {
    equal "file system" ext4 "$(findmnt -no FSTYPE -T "$PLAIN")"
    build "$PLAIN/source" 1
    hashes ext4 "$PLAIN/source" 1
}
shuffled() {
    build "$PLAIN/shuffled" 2
    hashes shuffled "$PLAIN/shuffled" 3
}
# Over several mounts, with something in between that leaves no trace.
with_remounts() {
    local store=$PLAIN/store-remounts dir=$HOME/mnt-remounts i
    mkdir -p "$dir"
    karapace --store "$store" import "$PLAIN/source" --name same
    for i in 4 5; do
        karapace --store "$store" mount same "$dir"
        [ "$i" != 4 ] || touch "$dir/passing"
        [ "$i" != 5 ] || { rm "$dir/passing" && changes "$dir" "$i"; }
        karapace --store "$store" umount same
    done
    karapace --store "$store" commit same >/dev/null
    equal remounts "$(cat "$TMPDIR/hashes")" \
        "$(karapace --store "$store" --json inspect same | json - 'd["base_layer"] + " " + d["head"]')"
}
full_instead_of_sparse() {
    cp -a --sparse=never "$PLAIN/source" "$PLAIN/full"
    hashes full "$PLAIN/full" 6
}
sparse_instead_of_full() {
    cp -a --sparse=always "$PLAIN/source" "$PLAIN/sparse"
    hashes sparse "$PLAIN/sparse" 7
}
other_surroundings() {
    umask 077
    hashes umask "$PLAIN/source" 8 env TZ=Pacific/Kiritimati LC_ALL=C LANG=tr_TR.UTF-8
}
# Everything belongs to root in the archive, for a user's own files are the user's; on a user's mount root is the user.
by_a_user() {
    tar -C "$PLAIN/source" --sparse --owner=0 --group=0 --numeric-owner -cf "$TMPDIR/source.tar" .
    chmod 0644 "$TMPDIR/source.tar"
    hashes archive "$TMPDIR/source.tar" 9
    mkdir -m 0777 "$SCRATCH/user"
    setpriv --reuid=54321 --regid=54321 --clear-groups --inh-caps=-all \
        env HOME="$SCRATCH/user" TMPDIR="$SCRATCH/user" ARCHIVE="$TMPDIR/source.tar" \
        bash -c "$(declare -f changes json); set -euo pipefail
            mkdir \$HOME/mnt
            karapace import \$ARCHIVE --name same >/dev/null
            karapace mount same \$HOME/mnt >/dev/null
            changes \$HOME/mnt 10
            karapace commit same >/dev/null 2>&1
            karapace --json inspect same | json - 'd[\"base_layer\"] + \" \" + d[\"head\"]'
            karapace umount same" >"$TMPDIR/by-user"
    equal "by a user" "$(cat "$TMPDIR/hashes")" "$(tail -n1 "$TMPDIR/by-user")"
}
# on FILE-SYSTEM: store and source both on it.
on() {
    PLACE=$SCRATCH/$1
    mkdir "$PLACE"
    case $1 in
        tmpfs) mount -t tmpfs -o size=256m tmpfs "$PLACE" ;;
        *)
            truncate -s 512M "$SCRATCH/$1.img"
            "mkfs.$1" -q "$SCRATCH/$1.img"
            mount -o loop "$SCRATCH/$1.img" "$PLACE"
            ;;
    esac
    build "$PLACE/source" 11
    hashes "$1" "$PLACE/source" 12
    umount "$PLACE"
    rm -f "$SCRATCH/$1.img"
}
# File systems that the machine lacks are named in the output, and do not count as passed.
supported() {
    command -v "mkfs.$1" >/dev/null || { echo "the package ${2} is not installed"; return 1; }
    grep -qw "$1" /proc/filesystems || modprobe "$1" 2>/dev/null || { echo "the kernel has no $1"; return 1; }
}

need "imported and committed on ext4" on_ext4
check "the same hashes: made in another order" shuffled
check "the same hashes: written in several mounts" with_remounts
check "with files full on the host that were sparse" full_instead_of_sparse
check "with files sparse on the host that were full" sparse_instead_of_full
check "under another umask, time zone and locale" other_surroundings
check "by an ordinary user, from an archive" by_a_user
check "on tmpfs" on tmpfs
for pair in xfs:xfsprogs btrfs:btrfs-progs; do
    if reason=$(supported "${pair%:*}" "${pair#*:}"); then
        check "on ${pair%:*}" on "${pair%:*}"
    else
        echo "SKIPPED on ${pair%:*}: $reason. THE HASH WAS NOT COMPARED THERE."
    fi
done
finish_suite
