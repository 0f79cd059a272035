#!/usr/bin/env bash
# PostgreSQL with page checksums: the host's program on a data directory in the mount; kill -9 of it, and of the mount's server
# runs as: root user
. "$(dirname "$0")/../databases.sh"
environment postgres
PROGRAMS=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
export PATH=$PROGRAMS:$PATH PGUSER=postgres PGDATABASE=postgres
SOCKETS=$TMPDIR/sockets
mkdir "$SOCKETS"

# It refuses to run as root: there it is another user's, in whose directory root has made one for it.
as_its_user() { "$@"; }
if [ "$ACTOR" = root ]; then
    as_its_user() { setpriv --reuid=tester --regid=tester --clear-groups "$@"; }
    chown tester: "$SOCKETS"
fi

make_database() {
    mkdir "$1/db"
    [ "$ACTOR" = user ] || chown tester: "$1/db"
    as_its_user initdb --pgdata "$1/db" --data-checksums --auth trust --username postgres --encoding UTF8 --no-locale >/dev/null
}
# A socket for each, which begins with the port.
port_of() { echo $((5000 + $(cksum <<<"$1" | cut -d' ' -f1) % 50000)); }
start() {
    as_its_user pg_ctl --pgdata "$1/db" --wait --timeout 120 --log "$SOCKETS/log" \
        -o "-k $SOCKETS -p $(port_of "$1") -c listen_addresses= -c checkpoint_timeout=30s -c max_wal_size=64MB" start >/dev/null || {
        tail -n 20 "$SOCKETS/log"
        return 1
    }
    head -n 1 "$1/db/postmaster.pid" >"$TMPDIR/postmaster.$(port_of "$1")"
}
stop() { as_its_user pg_ctl --pgdata "$1/db" --wait --mode fast stop >/dev/null; }
kill_database() {
    local postmaster pids
    postmaster=$(<"$TMPDIR/postmaster.$(port_of "$1")")
    # The postmaster first, which would begin anew; each of the others would end by itself when it sees that. Where the mount's
    # server is gone it may have ended.
    kill -STOP "$postmaster" 2>/dev/null || true
    pids=$(pgrep -P "$postmaster" | tr '\n' ' ') || true
    # shellcheck disable=SC2086 # numbers
    kill -KILL $postmaster $pids 2>/dev/null || true
    local pid
    for pid in $postmaster $pids; do until_true gone "$pid"; done
    rm -f "$SOCKETS/.s.PGSQL.$(port_of "$1")"*
}
sql() { psql -h "$SOCKETS" -p "$(port_of "$1")" -X -q -A -t -v ON_ERROR_STOP=1 -c "$2"; }
client() { psql -h "$SOCKETS" -p "$(port_of "$1")" -X -q -A -t -v ON_ERROR_STOP=1 -f -; }
checked() { as_its_user pg_checksums --check --pgdata "$1/db" | has '^Bad checksums: *0'; }
dumped() {
    pg_dump -h "$SOCKETS" -p "$(port_of "$1")" --inserts | grep -v '^\\\(un\)\?restrict '
    pg_amcheck -h "$SOCKETS" -p "$(port_of "$1")" --install-missing --heapallindexed >&2
}
copy_of() {
    mkdir "$2"
    cp -a "$1/db" "$2/db"
    # The process that it names is another one now.
    rm -f "$2/db/postmaster.pid"
}

database_checks "$(postgres --version)"
