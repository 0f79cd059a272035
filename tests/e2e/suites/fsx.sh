#!/usr/bin/env bash
# fsx: long random sequences of reads, writes, mapped reads and writes, truncations, holes and copies in one file,
# each read compared with what must be there; and the same sequence on ext4 must end in the same file.
# runs as: root user
# tools: fsx
# seconds: 80
#
# KARAPACE_FSX_OPERATIONS  operations of each run (10000); more seeds are cheaper than more of these, for fsx keeps each of
#                          its mapped reads mapped, which makes its truncations ever slower, on ext4 as well
# KARAPACE_FSX_SEEDS       the seeds (three by chance); a failure is repeated with the seed that it names, but for what
#                          depends on the moment of a commit
. "$(dirname "$0")/../checks.sh"
ENV=fsx
DIR=$MOUNTS/$ENV
OPERATIONS=${KARAPACE_FSX_OPERATIONS:-10000}
read -ra SEEDS <<<"${KARAPACE_FSX_SEEDS:-$RANDOM $RANDOM $RANDOM}"

# fsx empties the file it is given, or in block mode writes zeros over all of it. What is of the lower view under its
# operations is what a commit beside it has just taken from the upper: all of the file, some times a second.
setup() {
    mkdir "$TMPDIR/image" "$PLAIN/fsx"
    head -c 70000 /dev/urandom >"$TMPDIR/image/small"
    head -c 3000000 /dev/urandom >"$TMPDIR/image/large"
    cp "$TMPDIR/image/large" "$TMPDIR/image/kept"
    tar -cf "$TMPDIR/image.tar" --owner=0 --group=0 -C "$TMPDIR/image" .
    karapace import "$TMPDIR/image.tar" --name "$ENV"
    karapace mount "$ENV"
    # A mapped store is followed by msync in the first of these, and in the others by munmap alone.
    weights 2 close_open truncate posix_fallocate >"$TMPDIR/new.toml"
    {
        echo 'nomsyncafterwrite = true'
        weights 10 close_open truncate posix_fallocate
    } >"$TMPDIR/small.toml"
    { echo 'flen = 4194304' && cat "$TMPDIR/small.toml"; } >"$TMPDIR/large.toml"
    {
        echo 'blockmode = true'
        echo 'nomsyncafterwrite = true'
        weights 10
    } >"$TMPDIR/kept.toml"
}

# weights MAPWRITE [OPERATION...]: how often each operation comes; those named are for files that may change their size.
weights() {
    # An operation on nothing is refused by posix_fallocate, everywhere.
    printf '[opsize]\nmin = 1\n'
    echo '[weights]'
    printf '%s = 10\n' read write mapread
    printf '%s = 5\n' punch_hole sendfile copy_file_range
    printf '%s = 1\n' invalidate posix_fadvise
    printf '%s = 0.1\n' fsync fdatasync
    echo "mapwrite = $1"
    shift
    [ $# -eq 0 ] || printf '%s = 3\n' "$@"
    [ $# -gt 0 ] || echo 'truncate = 0'
}

# fsx_on NAME SEED DIRECTORY
fsx_on() {
    fsx -f "$TMPDIR/$1.toml" -N "$OPERATIONS" -S "$2" -P "$TMPDIR" "$3/$1" >"$TMPDIR/fsx.log" 2>&1 || {
        # What was wrong is at the beginning; the last operations before it at the end.
        head -n 12 "$TMPDIR/fsx.log"
        tail -n 12 "$TMPDIR/fsx.log"
        wrong "fsx -S $2 -N $OPERATIONS failed on $3/$1"
    }
    grep -q 'completed A-OK' "$TMPDIR/fsx.log"
}

# exercise NAME SEED [COMMAND...]: with what is to go on beside it.
exercise() {
    local name=$1 seed=$2
    shift 2
    "$@" fsx_on "$name" "$seed" "$DIR"
    rm -f "$PLAIN/fsx/$name"
    [ "$name" != kept ] || cp "$TMPDIR/image/kept" "$PLAIN/fsx/kept"
    fsx_on "$name" "$seed" "$PLAIN/fsx"
    cmp "$PLAIN/fsx/$name" "$DIR/$name"
    echo "note: seed $seed, $OPERATIONS operations"
}

outlives_the_mount() {
    local name
    karapace umount "$ENV"
    karapace mount "$ENV"
    for name in new small large kept; do cmp "$PLAIN/fsx/$name" "$DIR/$name"; done
    karapace verify-store
    ctl "$ENV" 'restore base'
    for name in small large kept; do cmp "$TMPDIR/image/$name" "$DIR/$name"; done
    karapace umount "$ENV"
}

need "import and mount" setup
for seed in "${SEEDS[@]}"; do
    check "fsx on a new file" exercise new "$seed"
    check "fsx on a small file of the lower view, commits beside it" exercise small "$seed" with_commits "$DIR"
    check "fsx on a large file of the lower view, commits beside it" exercise large "$seed" with_commits "$DIR"
    check "fsx on a large file that keeps its size, commits beside it" exercise kept "$seed" with_commits "$DIR"
done
check "files of fsx are the same after a remount, and the image's after a restore" outlives_the_mount
finish_suite
