#!/usr/bin/env bash
# MariaDB with page checksums: the host's program on a data directory in the mount; kill -9 of it, and of the mount's server
# runs as: root user
. "$(dirname "$0")/../databases.sh"
environment mariadb
SOCKETS=$TMPDIR/sockets
mkdir "$SOCKETS"

# name_of DIRECTORY: a short one, for a socket and a file of its number.
name_of() { cksum <<<"$1" | cut -d' ' -f1; }
make_database() {
    mariadb-install-db --no-defaults --datadir="$1/db" --auth-root-authentication-method=normal --skip-test-db \
        ${USER:+--user="$USER"} --innodb-checksum-algorithm=full_crc32 >/dev/null
}
start() {
    local socket log
    socket=$SOCKETS/$(name_of "$1") log=$TMPDIR/mariadbd.$(name_of "$1")
    mariadbd --no-defaults --user="$USER" --datadir="$1/db" --socket="$socket" --skip-networking --pid-file="$socket.pid" \
        --innodb-flush-log-at-trx-commit=1 --innodb-buffer-pool-size=32M --innodb-log-file-size=16M --skip-log-bin \
        --innodb-checksum-algorithm=full_crc32 >"$log" 2>&1 </dev/null &
    echo $! >"$socket.process"
    until_true run_client "$1" --execute "CREATE DATABASE IF NOT EXISTS work" || {
        tail -n 20 "$log"
        return 1
    }
}
stop() {
    local process
    process=$(<"$SOCKETS/$(name_of "$1").process")
    kill "$process"
    until_true gone "$process"
}
kill_database() {
    local process
    process=$(<"$SOCKETS/$(name_of "$1").process")
    # Where the mount's server is gone it may have ended.
    kill -KILL "$process" 2>/dev/null || true
    until_true gone "$process"
}
run_client() { mariadb --no-defaults --user=root --socket="$SOCKETS/$(name_of "$1")" --batch --skip-column-names --unbuffered "${@:2}"; }
sql() { run_client "$1" work --execute "$2"; }
client() { run_client "$1" work; }
# Of ibdata1 it knows no better than to complain of the pages that are written there before those of the tables.
checked() {
    local file count=0
    while read -r file; do
        innochecksum "$file"
        count=$((count + 1))
    done < <(find "$1/db" -name '*.ibd')
    [ "$count" -gt 3 ]
}
dumped() {
    sql "$1" "CHECK TABLE t EXTENDED; CHECK TABLE total EXTENDED; SELECT * FROM t ORDER BY writer, n; SELECT * FROM total"
}
copy_of() {
    mkdir "$2"
    cp -a "$1/db" "$2/db"
}

database_checks "$(mariadbd --no-defaults --version)"
