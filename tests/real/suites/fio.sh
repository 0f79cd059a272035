#!/usr/bin/env bash
# fio with verification: io_uring, libaio, mmap, psync; direct and buffered, holes and several jobs, commits beside it
# runs as: root user
. "$(dirname "$0")/../common.sh"
environment fio

# run_fio DIRECTORY NAME OPTION...: writes, and reads back what it wrote with the checksum of each block.
run_fio() {
    local directory=$1 name=$2
    shift 2
    (cd "$TMPDIR" && fio --name="$name" --directory="$directory" --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=7 --allrandrepeat=1 \
        --size=24M --bs=4k --numjobs=2 --group_reporting --minimal "$@") >"$TMPDIR/fio.log" 2>&1 || {
        cut -c 1-400 "$TMPDIR/fio.log" | tail -n 20
        wrong "fio failed on $directory"
    }
    if grep -E 'verify:|err=' "$TMPDIR/fio.log"; then return 1; fi
}
# verified NAME OPTION...: on ext4; in the mount with commits beside it; what was written is there after a remount, and is written over
# when it is the lower view's. fio puts the time into each block, so no two runs write the same.
verified() {
    local name=$1
    run_fio "$EXT4" "$@"
    with_commits "$MOUNTS/$ENV" run_fio "$WORK" "$@"
    diff <(sizes "$EXT4" "$name") <(sizes "$WORK" "$name")
    sums "$name" >"$TMPDIR/sums"
    commit "$ENV" >"$TMPDIR/hash"
    remounted
    sums "$name" | diff "$TMPDIR/sums" -
    with_commits "$MOUNTS/$ENV" run_fio "$WORK" "$@" --randseed=8
    sums "$name" | cmp -s "$TMPDIR/sums" - && wrong "nothing was written"
    rm "$EXT4/$name".* "$WORK/$name".*
}
sums() { (cd "$WORK" && sha256sum "$1".*); }
sizes() { (cd "$1" && stat -c '%n %s' "$2".*); }

# The server killed under it: each block that is no hole is whole, and where it belongs.
server_killed() {
    (cd "$TMPDIR" && exec fio --name=killed --directory="$WORK" --filename=killed --verify=crc32c --bs=4k --size=64M --rw=randwrite --fsync=1 \
        --ioengine=psync --verify_state_save=0 --do_verify=0 --time_based --runtime=60 --minimal >"$TMPDIR/fio.log" 2>&1) &
    sleep 4
    kill_server
    wait $! || true
    karapace mount "$ENV"
    python3 - "$WORK/killed" <<'PYTHON'
import struct, sys
blocks = written = 0
with open(sys.argv[1], "rb") as file:
    while block := file.read(4096):
        if block.strip(b"\0"):
            written += 1
            # As fio begins each: a magic number, the sort of checksum, its length, a seed, its offset.
            magic, _, length, _, offset = struct.unpack_from("<HHIQQ", block)
            assert (magic, length, offset) == (0xACCA, 4096, blocks * 4096), (blocks, magic, length, offset)
            # Random bytes to its end.
            assert block[-64:].strip(b"\0"), blocks
        blocks += 1
print(f"note: {written} blocks of {blocks}")
assert written > 20
PYTHON
    rm "$WORK/killed"
}

restored() {
    run_fio "$WORK" kept --rw=randwrite --ioengine=psync
    sums kept >"$TMPDIR/sums"
    ctl "$ENV" "commit name=then"
    run_fio "$WORK" kept --rw=randwrite --ioengine=mmap --randseed=11
    sums kept | cmp -s "$TMPDIR/sums" - && wrong "nothing was written"
    ctl "$ENV" "restore then"
    sums kept | diff "$TMPDIR/sums" -
    run_fio "$WORK" kept --rw=randwrite --ioengine=io_uring --randseed=12
}

need "an environment" make_environment
# Nothing here goes around the cache but where the kernel is asked for it.
while read -r name options; do
    # shellcheck disable=SC2086 # words
    check "fio $name: $options" verified "$name" $options
done <<'JOBS'
uring --ioengine=io_uring --iodepth=16 --rw=randwrite
uring-direct --ioengine=io_uring --iodepth=16 --direct=1 --rw=randwrite
uring-mixed --ioengine=io_uring --iodepth=16 --rw=randrw --bsrange=1k-64k --verify_backlog=64
aio --ioengine=libaio --iodepth=16 --direct=1 --rw=randwrite
aio-mixed --ioengine=libaio --iodepth=8 --direct=1 --rw=randrw --bsrange=4k-128k --blockalign=4k --verify_backlog=64
mmap --ioengine=mmap --rw=randwrite
mmap-msync --ioengine=mmap --rw=randrw --fsync=32 --verify_backlog=64
psync-holes --ioengine=psync --rw=randwrite --io_size=6M --fallocate=none
psync-sync --ioengine=psync --rw=write --bs=128k --fdatasync=8
sync-trunc --ioengine=sync --rw=randwrite --overwrite=0 --fallocate=keep --end_fsync=1
JOBS
check "kill -9 of the mount's server under fsync" server_killed
check "a restore in the middle" restored
check "umount and verify-store" is_whole
finish_suite
