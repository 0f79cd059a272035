# shellcheck shell=bash
# A writer of rows that are acknowledged one by one, and what must be there of them after a kill. Sourced by the parts of databases,
# which have: `sql DIRECTORY QUERY` prints what the database in DIRECTORY answers; `client DIRECTORY` does what it reads and prints
# each answer at once; `start DIRECTORY`, `stop DIRECTORY`; `kill_database DIRECTORY`, with signal 9, all of it; `checked DIRECTORY` checks
# every checksum of the database when it is stopped, `dumped DIRECTORY` prints all of it while it runs.
# shellcheck source=tests/real/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ROWS=3000
ACKNOWLEDGED=$TMPDIR/acknowledged

# Rows 1.. of one writer, each in a transaction with a counter; the number comes back when the transaction is committed.
statements() {
    awk -v w="$1" -v from="$2" -v to="$3" 'BEGIN { for (n = from; n <= to; n++) printf \
        "BEGIN; INSERT INTO t VALUES (%d, %d, REPEAT(\047%d-%d \047, %d)); UPDATE total SET n = n + 1; COMMIT; SELECT %d;\n",
        w, n, w, n, n % 60 + 1, n }'
}
make_tables() {
    sql "$1" "CREATE TABLE t (writer INT, n INT, body TEXT, PRIMARY KEY (writer, n)); CREATE INDEX of_n ON t (n);
        CREATE TABLE total (n INT); INSERT INTO total VALUES (0);"
}

# begin_writers DIRECTORY: three, in the background, without end.
begin_writers() {
    local writer
    WRITERS=()
    for writer in 1 2 3; do
        : >"$ACKNOWLEDGED.$writer"
        # A transaction that another one makes fail is not acknowledged: the client ends.
        statements "$writer" 1 10000000 | client "$1" >"$ACKNOWLEDGED.$writer" 2>"$TMPDIR/client.$writer" &
        WRITERS+=($!)
    done
    until_true wrote 100
}
wrote() {
    local writer
    for writer in 1 2 3; do [ "$(wc -l <"$ACKNOWLEDGED.$writer")" -ge "$1" ] || return 1; done
}
end_writers() {
    local pid
    kill "${WRITERS[@]}" 2>/dev/null || true
    for pid in "${WRITERS[@]}"; do wait "$pid" || true; done
}

# has_all DIRECTORY: of each writer all that was acknowledged, at most the transaction more that was on its way, and none by half.
has_all() {
    local writer rows acknowledged sum=0
    for writer in 1 2 3; do
        rows=$(sql "$1" "SELECT count(*) FROM t WHERE writer = $writer")
        acknowledged=$(wc -l <"$ACKNOWLEDGED.$writer")
        echo "writer $writer: acknowledged $acknowledged, found $rows"
        [ "$rows" -eq "$acknowledged" ] || [ "$rows" -eq $((acknowledged + 1)) ]
        sum=$((sum + rows))
    done
    is_consistent "$1"
    echo "note: $sum transactions"
}
# Counted in the same transactions, without gaps, and each text what it was.
is_consistent() {
    equal "counted" "$(sql "$1" "SELECT count(*) FROM t")" "$(sql "$1" "SELECT n FROM total")"
    equal "gaps" "" "$(sql "$1" "SELECT writer FROM t GROUP BY writer HAVING count(*) <> max(n)")"
    equal "wrong texts" 0 "$(sql "$1" "SELECT count(*) FROM t WHERE body <> REPEAT(CONCAT(writer, '-', n, ' '), n % 60 + 1)")"
}

begins() {
    make_environment
    on_both make_database
    on_both start
    on_both make_tables
    # A load that is the same each time.
    on_both load
    on_both dumped >"$TMPDIR/dumps"
    on_both stop
    on_both checked
}
load() { { statements 9 1 "$ROWS" && echo "DELETE FROM t WHERE n % 7 = 3; UPDATE total SET n = (SELECT count(*) FROM t);"; } | client "$1" >/dev/null; }
the_same() {
    on_both start
    dumped "$EXT4" >"$TMPDIR/dump.ext4"
    dumped "$WORK" >"$TMPDIR/dump.mount"
    [ "$(wc -l <"$TMPDIR/dump.mount")" -gt 1000 ]
    cmp "$TMPDIR/dump.ext4" "$TMPDIR/dump.mount"
    on_both emptied
    on_both stop
}
emptied() { sql "$1" "DELETE FROM t; UPDATE total SET n = 0"; }

# killed DIRECTORY [COMMAND...]: the database, in the midst of its work.
killed() {
    local directory=$1
    shift
    start "$directory"
    begin_writers "$directory"
    "$@" sleep 3
    kill_database "$directory"
    end_writers
    start "$directory"
    has_all "$directory"
    emptied "$directory"
    stop "$directory"
    checked "$directory"
}
# The server of the mount under it, and then the database, which nothing answers any more.
server_killed() {
    start "$WORK"
    begin_writers "$WORK"
    sleep 2
    kill_server
    sleep 1
    kill_database "$WORK"
    end_writers
    karapace mount "$ENV"
    start "$WORK"
    has_all "$WORK"
    emptied "$WORK"
    stop "$WORK"
    checked "$WORK"
}

# A snapshot of a running one opens as after a power cut, on ext4, with what was acknowledged before the commit.
snapshot_opens() {
    local hash writer before=0
    start "$WORK"
    begin_writers "$WORK"
    for writer in 1 2 3; do before=$((before + $(wc -l <"$ACKNOWLEDGED.$writer"))); done
    hash=$(commit "$ENV")
    sleep 1
    kill_database "$WORK"
    end_writers
    copy_of "$MOUNTS/$ENV/.karapace/snapshots/$hash/srv/work" "$PLAIN/snapshot"
    start "$PLAIN/snapshot"
    is_consistent "$PLAIN/snapshot"
    local found
    found=$(sql "$PLAIN/snapshot" "SELECT n FROM total")
    echo "note: acknowledged $before before the commit, $found in the snapshot"
    [ "$found" -ge "$before" ]
    stop "$PLAIN/snapshot"
    checked "$PLAIN/snapshot"
    start "$WORK"
    has_all "$WORK"
    emptied "$WORK"
    stop "$WORK"
}

# What a restore brings back is the database of then, whatever was done since.
restored() {
    local then_
    start "$WORK"
    load "$WORK"
    then_=$(dumped "$WORK" | sha256sum)
    stop "$WORK"
    ctl "$ENV" "commit name=then"
    start "$WORK"
    emptied "$WORK"
    begin_writers "$WORK"
    kill_database "$WORK"
    end_writers
    ctl "$ENV" "restore then"
    checked "$WORK"
    start "$WORK"
    equal "what it holds" "$then_" "$(dumped "$WORK" | sha256sum)"
    stop "$WORK"
    # And in the lower view, after a remount.
    remounted
    checked "$WORK"
    start "$WORK"
    equal "what it holds" "$then_" "$(dumped "$WORK" | sha256sum)"
    stop "$WORK"
}

# database_checks NAME
database_checks() {
    need "$1: made and filled, on ext4 and in the mount" begins
    check "what a dump says is the same" the_same
    check "kill -9 of it under three writers, on ext4" killed "$EXT4"
    check "kill -9 of it under three writers" killed "$WORK"
    check "the same, with commits beside it" killed "$WORK" with_commits "$MOUNTS/$ENV"
    check "kill -9 of the mount's server under three writers" server_killed
    check "a snapshot made under three writers opens" snapshot_opens
    check "a restore in the middle, and a remount" restored
    check "umount and verify-store" is_whole
    finish_suite
}
