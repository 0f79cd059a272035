#!/usr/bin/env bash
# LMDB through its Python module, with and without a writable map: writers killed, copies of an open one, kill -9 of the server
# runs as: root user
. "$(dirname "$0")/../common.sh"
environment lmdb

setup() {
    make_environment
    cat >"$TMPDIR/writer.py" <<'PYTHON'
import lmdb, os, sys

path, writer, count, log, writemap = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5] == "writemap"
acknowledged = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
database = lmdb.open(path, map_size=256 << 20, subdir=False, writemap=writemap)
for n in range(1, count + 1):
    with database.begin(write=True) as transaction:
        transaction.put(f"{writer}-{n:08}".encode(), f"{writer}-{n} ".encode() * (n % 90 + 1))
        if n % 10 == 0:
            transaction.delete(f"{writer}-{n - 5:08}".encode())
        total = int(transaction.get(b"total", b"0"))
        transaction.put(b"total", b"%d" % (total + 1))
    os.write(acknowledged, b"%d\n" % n)
PYTHON
    cat >"$TMPDIR/reader.py" <<'PYTHON'
# Checks every pair, and that those of each writer are there as far as was acknowledged; prints how many there were.
import lmdb, os, sys

path, logs = sys.argv[1], sys.argv[2:]
# The copy of a running one has a lock file of its own.
database = lmdb.open(path, map_size=256 << 20, subdir=False, readonly=True, lock=False)
last = {}
with database.begin() as transaction:
    for key, value in transaction.cursor():
        if key == b"total":
            continue
        writer, n = key.decode().split("-")
        n = int(n)
        assert value == f"{writer}-{n} ".encode() * (n % 90 + 1), key
        last[writer] = max(last.get(writer, 0), n)
    total = int(transaction.get(b"total", b"0"))
    assert total == sum(last.values()), (total, last)
for log in logs:
    writer = log.rsplit(".", 1)[1]
    acknowledged = len(open(log).readlines())
    assert last.get(writer, 0) in (acknowledged, acknowledged + 1), (writer, last.get(writer), acknowledged)
print(total)
PYTHON
}
write() { /usr/bin/python3 "$TMPDIR/writer.py" "$@"; }
# holds DATABASE [LOG...]: also by LMDB's own tools.
holds() {
    /usr/bin/python3 "$TMPDIR/reader.py" "$@"
    mdb_stat -n "$1" >/dev/null
}

# fill DIRECTORY MODE: the same each time.
fill() {
    rm -f "$TMPDIR/log".*
    write "$1/$2" a 1500 "$TMPDIR/log.a" "$2"
    holds "$1/$2" "$TMPDIR/log.a"
    mdb_dump -n "$1/$2" >"$1/$2.dump"
    mdb_copy -n "$1/$2" >"$1/$2.copy"
}
the_same() {
    on_both fill "$1"
    cmp "$EXT4/$1" "$WORK/$1"
    cmp "$EXT4/$1.dump" "$WORK/$1.dump"
    cmp "$EXT4/$1.copy" "$WORK/$1.copy"
}

# begin DIRECTORY MODE: two writers in the background. Not by `write`: of a function that runs in the background the shell is killed, and
# the writer would go on.
begin() {
    rm -f "$TMPDIR/log".* "$1/$2"*
    local writer
    PIDS=()
    for writer in b c; do
        : >"$TMPDIR/log.$writer"
        /usr/bin/python3 "$TMPDIR/writer.py" "$1/$2" "$writer" 1000000 "$TMPDIR/log.$writer" "$2" 2>/dev/null &
        PIDS+=($!)
    done
    for writer in b c; do until_true grep -qx 50 "$TMPDIR/log.$writer"; done
}
end() {
    kill -KILL "${PIDS[@]}" 2>/dev/null || true
    local pid
    for pid in "${PIDS[@]}"; do wait "$pid" || true; done
}
killed() {
    local directory=$1 mode=$2
    shift 2
    begin "$directory" "$mode"
    "$@" sleep 2
    end
    echo "note: $(holds "$directory/$mode" "$TMPDIR"/log.*) transactions"
    # Who was killed holds no lock.
    write "$directory/$mode" d 10 "$TMPDIR/log.d" "$mode"
    holds "$directory/$mode" "$TMPDIR/log.d"
}

# What others see of one that is open, and has been committed to: cp and tar ask for its holes.
copies() {
    /usr/bin/python3 - "$WORK/open" "$TMPDIR/go" "$1" <<'PYTHON' &
import lmdb, os, sys, time
database = lmdb.open(sys.argv[1], map_size=16 << 20, subdir=False, writemap=sys.argv[3] == "writemap", sync=False, metasync=False)
with database.begin(write=True) as transaction:
    for n in range(1000):
        transaction.put(f"w-{n + 1:08}".encode(), f"w-{n + 1} ".encode() * ((n + 1) % 90 + 1))
    transaction.put(b"total", b"1000")
open(sys.argv[2], "w").close()
while os.path.exists(sys.argv[2]):
    time.sleep(0.05)
PYTHON
    local holder=$!
    until_true test -e "$TMPDIR/go"
    cp "$WORK/open" "$EXT4/cp"
    tar -C "$WORK" -Scf - open | tar -C "$EXT4" -xf -
    rsync --sparse "$WORK/open" "$EXT4/rsync"
    commit "$ENV" >"$TMPDIR/hash"
    local copy
    for copy in cp open rsync; do equal "$copy" 1000 "$(holds "$EXT4/$copy")"; done
    equal snapshot 1000 "$(holds "$MOUNTS/$ENV/.karapace/snapshots/$(<"$TMPDIR/hash")/srv/work/open")"
    rm "$TMPDIR/go"
    wait "$holder"
    rm "$WORK/open"* "$EXT4"/{cp,open,rsync}
}

server_killed() {
    begin "$WORK" "$1"
    sleep 1
    kill_server
    end
    karapace mount "$ENV"
    echo "note: $(holds "$WORK/$1" "$TMPDIR"/log.*) transactions"
}

restored() {
    local sum
    fill "$WORK" plain
    sum=$(sha256sum <"$WORK/plain")
    ctl "$ENV" "commit name=then"
    write "$WORK/plain" e 200 "$TMPDIR/log.e" plain
    [ "$sum" != "$(sha256sum <"$WORK/plain")" ]
    ctl "$ENV" "restore then"
    equal "sum" "$sum" "$(sha256sum <"$WORK/plain")"
    rm -f "$WORK/plain-lock"
    write "$WORK/plain" f 200 "$TMPDIR/log.f" plain
    holds "$WORK/plain" "$TMPDIR/log.f"
    remounted
    holds "$WORK/plain" "$TMPDIR/log.f"
}

need "an environment" setup
for mode in plain writemap; do
    check "$mode: the same bytes, dump and compact copy" the_same "$mode"
    check "$mode: writers killed, on ext4" killed "$EXT4" "$mode"
    check "$mode: writers killed" killed "$WORK" "$mode"
    check "$mode: writers killed, with commits beside them" killed "$WORK" "$mode" with_commits "$MOUNTS/$ENV"
    check "$mode: cp, tar and rsync of an open one, and a snapshot" copies "$mode"
    check "$mode: kill -9 of the mount's server" server_killed "$mode"
done
check "a restore in the middle, and a remount" restored
check "umount and verify-store" is_whole
finish_suite
