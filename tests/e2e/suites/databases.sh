#!/usr/bin/env bash
# SQLite with several writing processes, one of them killed: nothing that was acknowledged is lost, as on ext4.
# runs as: root user
. "$(dirname "$0")/../checks.sh"
ENV=databases
WORK=$MOUNTS/$ENV/srv/work

setup() {
    mounted_fixture "$TMPDIR/fixture"
    mkdir "$WORK" "$PLAIN/work"
    # A writer: rows 1.. each in a transaction of its own; writes down each that the database has acknowledged.
    cat >"$TMPDIR/writer.py" <<'PYTHON'
import os, sqlite3, sys

path, writer, rows, log = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
acknowledged = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
database = sqlite3.connect(path, timeout=60, isolation_level=None)
database.execute("PRAGMA synchronous=FULL")
# Small pages in the cache make it spill before the commit.
database.execute("PRAGMA cache_size=5")
for n in range(1, rows + 1):
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO t VALUES (?, ?, ?)", (writer, n, f"{writer}-{n}" * (n % 50 + 1) * 10))
    database.execute("UPDATE total SET n = n + 1")
    database.execute("COMMIT")
    os.write(acknowledged, b"%d\n" % n)
PYTHON
}

# write_and_kill DATABASE MODE: three writers of 60 rows, and a fourth without end that is killed.
write_and_kill() (
    set -euo pipefail
    local log=$TMPDIR/acknowledged writer
    rm -f "$log".*
    : >"$log.4"
    sqlite3 "$1" "PRAGMA journal_mode=$2; CREATE TABLE total (n INT); INSERT INTO total VALUES (0);
        CREATE TABLE t (writer INT, n INT, text TEXT, PRIMARY KEY (writer, n));"
    pids=()
    for writer in 1 2 3; do
        python3 "$TMPDIR/writer.py" "$1" "$writer" 60 "$log.$writer" &
        pids+=($!)
    done
    python3 "$TMPDIR/writer.py" "$1" 4 1000000 "$log.4" &
    killed=$!
    until [ "$(wc -l <"$log.4")" -ge 20 ]; do
        kill -0 "$killed"
        sleep 0.01
    done
    kill -KILL "$killed"
    wait "$killed" || true
    for pid in "${pids[@]}"; do wait "$pid"; done
    has_all "$1"
    # The database remembers WAL alone; a new connection begins with `delete`.
    equal "journal mode" "$2" "$(sqlite3 "$1" 'PRAGMA journal_mode' | sed "s/delete/$2/")"
)

# has_all DATABASE: it is intact and has every acknowledged row; of the killed writer at most one more, which was in
# progress.
has_all() {
    equal integrity ok "$(sqlite3 "$1" 'PRAGMA integrity_check')"
    equal "rows of the three" "1|60|60 2|60|60 3|60|60" \
        "$(sqlite3 "$1" 'SELECT writer, count(*), max(n) FROM t WHERE writer < 4 GROUP BY writer' | paste -sd' ')"
    local rows acknowledged
    rows=$(sqlite3 "$1" 'SELECT count(*) FROM t WHERE writer = 4')
    acknowledged=$(wc -l <"$TMPDIR/acknowledged.4")
    echo "acknowledged $acknowledged, found $rows"
    [ "$rows" -eq "$acknowledged" ] || [ "$rows" -eq $((acknowledged + 1)) ]
    # Counters are updated in the same transactions: none is applied by half.
    equal "counted" $((180 + rows)) "$(sqlite3 "$1" 'SELECT n FROM total')"
    equal "checked text" 0 "$(sqlite3 "$1" "SELECT count(*) FROM t
        WHERE text != replace(printf('%0*d', (n % 50 + 1) * 10, 0), '0', writer || '-' || n)")"
}

in_mode() {
    write_and_kill "$PLAIN/work/$1.db" "$1"
    write_and_kill "$WORK/$1.db" "$1"
    local database query="SELECT * FROM t WHERE writer < 4 ORDER BY writer, n"
    for database in "$PLAIN/work/$1.db" "$WORK/$1.db"; do sqlite3 "$database" "$query" | sha256sum; done | uniq | wc -l |
        equal "different results" 1 "$(cat)"
}

# A commit seals the files beneath the database while it is open.
under_commits() {
    local database=$WORK/commits.db log=$TMPDIR/acknowledged.4 writer
    rm -f "$TMPDIR"/acknowledged.*
    sqlite3 "$database" "PRAGMA journal_mode=WAL; CREATE TABLE total (n INT); INSERT INTO total VALUES (0);
        CREATE TABLE t (writer INT, n INT, text TEXT, PRIMARY KEY (writer, n));"
    for writer in 1 2 3; do python3 "$TMPDIR/writer.py" "$database" "$writer" 60 "$TMPDIR/acknowledged.$writer" & done
    python3 "$TMPDIR/writer.py" "$database" 4 40 "$log" &
    for _ in 1 2 3; do
        sleep 0.2
        commit "$ENV" >"$TMPDIR/middle"
    done
    wait
    has_all "$database"
}
# A snapshot that was made while it was written opens as after a power cut.
snapshot_is_whole() {
    mkdir "$PLAIN/work/snapshot"
    cp "$MOUNTS/$ENV/.karapace/snapshots/$(cat "$TMPDIR/middle")"/srv/work/commits.db* "$PLAIN/work/snapshot/"
    equal integrity ok "$(sqlite3 "$PLAIN/work/snapshot/commits.db" 'PRAGMA integrity_check')"
    [ "$(sqlite3 "$PLAIN/work/snapshot/commits.db" 'SELECT n = (SELECT count(*) FROM t) FROM total')" -eq 1 ]
}
# The server killed: what was acknowledged is there.
server_killed() {
    local database=$WORK/server.db writer
    cp "$WORK/wal.db" "$database"
    rm -f "$TMPDIR/acknowledged".*
    sqlite3 "$database" "DELETE FROM t; UPDATE total SET n = 0"
    for writer in 1 2 3; do python3 "$TMPDIR/writer.py" "$database" "$writer" 60 "$TMPDIR/acknowledged.$writer"; done
    python3 "$TMPDIR/writer.py" "$database" 4 1000000 "$TMPDIR/acknowledged.4" &
    until_true grep -qx 20 "$TMPDIR/acknowledged.4"
    local server
    server=$(server_of "$ENV")
    kill -KILL "$server"
    wait $! || true
    until_true gone "$server"
    karapace mount "$ENV"
    has_all "$database"
}
is_whole() {
    karapace umount "$ENV"
    karapace verify-store
}

need "an environment" setup
check "four writers in WAL mode, one killed" in_mode wal
check "four writers with a rollback journal, one killed" in_mode delete
check "four writers with a journal that stays, one killed" in_mode persist
check "four writers while commits are made" under_commits
check "a snapshot of that moment opens" snapshot_is_whole
check "the server killed under a writer" server_killed
check "umount and verify-store" is_whole
finish_suite
