#!/usr/bin/env bash
# An environment that is mounted on the host and has sessions at the same time. An ordinary user's sessions have all ids and
# a mount of their own then: each side sees what the other did, and both come and go.
# runs as: root user
# files: MINBASE
# seconds: 120
. "$(dirname "$0")/../checks.sh"
ENV=both
DIR=$MOUNTS/$ENV

setup() {
    karapace import "$MINBASE_TAR" --name "$ENV"
    karapace mount "$ENV"
}

# begin MARK: a session that sleeps that long, until the end of the check at the latest; its process id in $!.
begin() {
    karapace exec "$ENV" -- sleep "$1" </dev/null >/dev/null 2>&1 &
    # shellcheck disable=SC2064 # this process, now
    trap "kill $! 2>/dev/null || true" EXIT
    until_true pgrep -fx "sleep $1"
}
# leave PROCESS: ends a session.
leave() {
    kill "$1"
    wait "$1" || true
}
sessions() { inspect "$ENV" 'd["sessions"]'; }
has_sessions() { [ "$(sessions)" = "$1" ]; }
# The process that holds the namespaces of the sessions.
holder() { pgrep -fx -u "$(id -u)" 'karapace ground'; }

# stuck: processes that wait uninterruptibly now and did five seconds ago.
stuck() {
    waiting >"$TMPDIR/waiting"
    sleep 5
    waiting | comm -12 "$TMPDIR/waiting" -
}
# With how often each has been switched away from, which tells one that waits from one that waits again.
waiting() {
    ps -eo stat=,pid=,comm= | awk '$1 ~ /^D/ && $3 !~ /^(kworker|jbd2|loop)/ { print $2, $3 }' |
        while read -r pid name; do
            echo "$pid $name $(awk '/ctxt_switches/ { n += $2 } END { print n }' "/proc/$pid/status" 2>/dev/null)"
        done | sort
}

installs() {
    begin 76001
    local session=$!
    x sh -euc 'export DEBIAN_FRONTEND=noninteractive
        apt-get -q update
        apt-get -q -y --no-install-recommends install openssh-client redis-server' >"$TMPDIR/apt" 2>&1 || { tail -n 30 "$TMPDIR/apt"; return 1; }
    equal agent "2755 _ssh" "$(x stat -c '%a %G' /usr/bin/ssh-agent)"
    # A daemon as its own user, with its data in the environment.
    x sh -euc 'mkdir -p /run/redis; chown redis: /run/redis
        setpriv --reuid redis --regid redis --init-groups redis-server --port 0 --unixsocket /run/redis/s --dir /var/lib/redis --daemonize yes >/dev/null
        for n in $(seq 100); do redis-cli -s /run/redis/s ping 2>/dev/null | grep -q PONG && break; sleep 0.1; done
        redis-cli -s /run/redis/s set key value >/dev/null
        redis-cli -s /run/redis/s save >/dev/null'
    x stat -c %U /var/lib/redis/dump.rdb | has -x redis
    # The host has the same file, as the user's own sub-id.
    local id
    id=$(x id -u redis)
    equal "owner on the host" "$(shown_id "$id")" "$(stat -c %u "$DIR/var/lib/redis/dump.rdb")"
    leave "$session"
}

both_ways() {
    begin 76002
    local session=$! n
    for n in $(seq 20); do
        echo "outside $n" >"$DIR/srv/a"
        equal "written outside" "outside $n" "$(x cat /srv/a)"
        x sh -c "echo inside $n >/srv/a; touch /srv/new-$n"
        equal "written inside" "inside $n" "$(cat "$DIR/srv/a")"
        [ -e "$DIR/srv/new-$n" ]
        rm "$DIR/srv/new-$n"
        refused x test -e "/srv/new-$n"
    done
    # As an editor saves: a new file over the old one, and times that git compares.
    git init -q "$DIR/srv/repository"
    echo one >"$DIR/srv/repository/file"
    git -C "$DIR/srv/repository" add file
    git -C "$DIR/srv/repository" -c user.name=a -c user.email=a@b commit -qm one
    equal status "" "$(git -C "$DIR/srv/repository" status --porcelain)"
    x sh -c 'echo two >/srv/repository/file.new; mv /srv/repository/file.new /srv/repository/file'
    equal status " M file" "$(git -C "$DIR/srv/repository" status --porcelain)"
    python3 - "$DIR/srv/repository/file" <<'PYTHON'
import os, sys
path = sys.argv[1]
with open(path + "~", "w") as new:
    new.write("one\n")
    os.fsync(new.fileno())
os.replace(path + "~", path)
PYTHON
    equal "as saved" one "$(x cat /srv/repository/file)"
    equal status "" "$(git -C "$DIR/srv/repository" status --porcelain)"
    leave "$session"
}

commands_under_both() {
    begin 76003
    local session=$! hash
    echo first >"$DIR/srv/state"
    ctl "$ENV" "commit message=first"
    hash=$(last "$ENV" | cut -d' ' -f3)
    x sh -c 'echo second >/srv/state; touch /srv/only-in-second'
    karapace diff "$ENV" | has -E '^M +/srv/state$'
    karapace restore "$ENV" "$hash"
    equal "on the host" first "$(cat "$DIR/srv/state")"
    equal "in the session" first "$(x cat /srv/state)"
    refused x test -e /srv/only-in-second
    [ ! -e "$DIR/srv/only-in-second" ]
    leave "$session"
}

mounts_come_and_go() {
    until_true has_sessions 0
    begin 76004
    local session=$!
    equal sessions 1 "$(sessions)"
    karapace list | has -E "^$ENV .*Running.* $DIR, 1 session$"
    if [ "$ACTOR" = root ]; then
        # Root's sessions use the host's mount.
        refused karapace umount "$ENV"
        says 'karapace stop'
        leave "$session"
        until_true has_sessions 0
        karapace umount "$ENV"
        begin 76004
        session=$!
    else
        karapace umount "$ENV"
    fi
    not_mounted "$DIR"
    refused karapace umount "$ENV"
    says 'karapace stop'
    karapace list | has -E "^$ENV .*Running.* 1 session$"
    x sh -c 'echo unmounted >/srv/a'
    karapace mount "$ENV"
    equal "mounted again" unmounted "$(cat "$DIR/srv/a")"
    refused karapace mount "$ENV" "$TMPDIR/elsewhere"
    says "is mounted at $DIR"
    echo mounted >"$DIR/srv/a"
    equal "in the session" mounted "$(x cat /srv/a)"
    leave "$session"
    until_true has_sessions 0
    equal "the host's mount stays" mounted "$(cat "$DIR/srv/a")"
    # From here on the host's kernel may cache again.
    begin 76005
    session=$!
    equal "a later session" mounted "$(x cat /srv/a)"
    leave "$session"
    karapace umount "$ENV"
    until_true no_server
    begin 76006
    session=$!
    karapace mount --all "$MOUNTS"
    x sh -c 'echo all >/srv/a'
    equal "mount --all" all "$(cat "$DIR/srv/a")"
    leave "$session"
    karapace umount --all
    until_true no_server
    karapace mount "$ENV"
}

# The process of `mount --all` knows what became of a mount that the sessions' server makes and serves.
supervised() {
    karapace umount "$ENV"
    until_true no_server
    begin 76016
    local session=$!
    karapace mount --all "$MOUNTS"
    mountpoint -q "$DIR"
    kill -KILL "$(server)"
    wait "$session" || true
    until_true test -d "$DIR/etc"
    if [ "$ACTOR" = user ]; then
        begin 76017
        session=$!
        karapace umount "$ENV"
        until_true grep -q "$ENV was unmounted" "$STORE/mount-all.log"
        leave "$session"
        until_true no_server
        sleep 2
        not_mounted "$DIR"
        karapace mount "$ENV"
    fi
    karapace umount --all
    until_true no_server
    karapace mount "$ENV"
}

read_only_beside() {
    karapace umount "$ENV"
    begin 76007
    local session=$!
    karapace mount --read-only "$ENV"
    refused touch "$DIR/srv/refused"
    says 'read-only'
    x touch /srv/allowed
    [ -e "$DIR/srv/allowed" ]
    leave "$session"
    karapace umount "$ENV"
    until_true no_server
    karapace mount --read-only "$ENV"
    refused x touch /srv/refused
    says 'read-only'
    karapace umount "$ENV"
    karapace mount "$ENV"
}

# busy [sessions-first]: writers on both sides until they are stopped; their process ids in $TMPDIR/writers.
busy() {
    karapace exec "$ENV" -- sh -c 'cd /srv/busy; while :; do
            echo x >inside; mv inside moved; cat * >/dev/null; head -c 300000 /dev/zero >rewritten
        done' </dev/null >/dev/null 2>&1 &
    echo $! >"$TMPDIR/writers"
    if [ -n "${1:-}" ]; then
        until_true has_sessions 1
        karapace mount "$ENV"
    fi
    (while :; do
        echo y >"$DIR/srv/busy/outside" && mv "$DIR/srv/busy/outside" "$DIR/srv/busy/moved" && ls -l "$DIR/srv/busy"
    done) >/dev/null 2>&1 &
    echo $! >>"$TMPDIR/writers"
    # Here the server tells the kernel that answers to forget what it holds locked for the other reader.
    (while :; do cat "$DIR/srv/busy/rewritten"; done) >/dev/null 2>&1 &
    echo $! >>"$TMPDIR/writers"
    (while :; do stat "$DIR/srv/busy/rewritten"; done) >/dev/null 2>&1 &
    echo $! >>"$TMPDIR/writers"
}
end_busy() {
    local pid
    [ -e "$TMPDIR/writers" ] || return 0
    while read -r pid; do
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done <"$TMPDIR/writers"
}

# What a killed writer had started may still use the mount.
unmounted() {
    karapace umount "$ENV" || true
    no_server
}

# killed WHAT [sessions-first]: under load from both sides, several times, at some moment.
killed() {
    local round
    trap end_busy EXIT
    until_true has_sessions 0
    mkdir -p "$DIR/srv/busy"
    for round in 1 2 3; do
        [ -z "${2:-}" ] || until_true unmounted
        busy "${2:-}"
        until_true test -e "$DIR/srv/busy/moved"
        until_true has_sessions 1
        until_true "$1" >/dev/null
        sleep "0.$((RANDOM % 10))"
        kill -KILL "$($1)"
        equal "stuck after $1 was killed" "" "$(stuck)"
        end_busy
        until_true unmounted
        karapace mount "$ENV"
        rm -f "$DIR/srv/busy/"*
        until_true has_sessions 0
    done
    karapace verify-store
}
server() { server_of "$ENV"; }
session() { head -n 1 "$TMPDIR/writers"; }

holder_is_replaced() {
    begin 76008
    local session=$!
    kill -KILL "$(holder)"
    # The session ends at the latest when the next one needs the mount.
    equal "a later session" there "$(x echo there)"
    wait "$session" || true
    equal "the host's mount" 0 "$(ls "$DIR" >/dev/null; echo $?)"
}

# A session that is refused, because the inside has another shape, changes nothing for those that run.
refused_beside() {
    begin 76012
    local session=$!
    status_of 125 karapace exec --user self --home share "$ENV" -- true
    karapace umount "$ENV"
    x true
    kill -0 "$session"
    pgrep -fx 'sleep 76012'
    leave "$session"
    until_true no_server
    karapace mount "$ENV"
    # The other way round, sessions on the host's mount keep it.
    karapace exec --user self --home share "$ENV" -- sleep 76013 </dev/null >/dev/null 2>&1 &
    session=$!
    # shellcheck disable=SC2064 # this process, now
    trap "kill $session 2>/dev/null || true" EXIT
    until_true pgrep -fx 'sleep 76013'
    status_of 125 x true
    refused holder
    refused karapace umount "$ENV"
    says 'karapace stop'
    mountpoint -q "$DIR"
    leave "$session"
    until_true has_sessions 0
}

# The host's mount was unmounted beside a session, and a process in another mount namespace still has it.
held_elsewhere() {
    karapace umount "$ENV"
    until_true no_server
    begin 76014
    local session=$! holds
    karapace mount "$ENV"
    "${UNSHARE[@]}" sleep 76015 </dev/null >/dev/null 2>&1 &
    holds=$!
    # shellcheck disable=SC2064 # these processes, now
    trap "kill $holds $session 2>/dev/null || true" EXIT
    until_true pgrep -fx 'sleep 76015'
    karapace umount "$ENV"
    not_mounted "$DIR"
    leave "$session"
    # A later session neither hangs nor waits for that process.
    equal "a later session" there "$(timeout 20 karapace exec "$ENV" -- echo there)"
    equal "one more" there "$(timeout 20 karapace exec "$ENV" -- echo there)"
    refused karapace mount "$ENV"
    says 'detached while in use'
    refused karapace umount "$ENV"
    says 'processes still use it'
    kill "$holds"
    wait "$holds" || true
    until_true no_server
    karapace mount "$ENV"
}
UNSHARE=(unshare --mount)
[ "$ACTOR" = root ] || UNSHARE=(unshare --user --map-root-user --mount)

# insert PATH: 200 rows from the host, each of them a transaction.
insert() {
    python3 - "$1" <<'PYTHON'
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=120, isolation_level=None)
for n in range(200):
    database.execute("insert into t values ('outside', ?)", (n,))
PYTHON
}

shared_locks() {
    karapace umount "$ENV"
    until_true no_server
    karapace mount --locks shared "$ENV"
    has -x 'locks: shared' <"$DIR/.karapace/status"
    begin 76009
    local session=$! side
    x sh -euc 'export DEBIAN_FRONTEND=noninteractive
        apt-get -q update
        apt-get -q -y --no-install-recommends install sqlite3' >"$TMPDIR/apt" 2>&1 || { tail -n 30 "$TMPDIR/apt"; return 1; }
    x sqlite3 /srv/db 'create table t (side, n)'
    x sh -euc 'for n in $(seq 0 199); do sqlite3 -cmd ".timeout 120000" /srv/db "insert into t values ('"'inside', \$n"')"; done' &
    local inside=$!
    insert "$DIR/srv/db"
    wait "$inside"
    side=$(x sqlite3 /srv/db 'pragma integrity_check; select side, count(*), count(distinct n) from t group by side order by side')
    equal "seen inside" $'ok\ninside|200|200\noutside|200|200' "$side"
    side=$(python3 -c 'import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
print(database.execute("pragma integrity_check").fetchone()[0], database.execute("select count(*) from t").fetchone()[0])' "$DIR/srv/db")
    equal "seen outside" "ok 400" "$side"
    # flock(1) on either side keeps the other one out, and lets it in at the end.
    touch "$DIR/srv/lock"
    local hold='cd "$1"; touch held; until [ -e go ]; do sleep 0.1; done; rm held go; echo "$2" >turn' holder waker
    flock "$DIR/srv/lock" sh -c "$hold" sh "$DIR/srv" outside &
    holder=$!
    until_true test -e "$DIR/srv/held"
    refused x flock -n /srv/lock true
    equal "timeout" 124 "$(x sh -c 'timeout 1 flock /srv/lock true; echo $?')"
    (sleep 1 && touch "$DIR/srv/go") &
    waker=$!
    equal "after waiting inside" outside "$(x flock /srv/lock cat /srv/turn)"
    wait "$holder" "$waker"
    x flock /srv/lock sh -c "$hold" sh /srv inside &
    holder=$!
    until_true test -e "$DIR/srv/held"
    refused flock -n "$DIR/srv/lock" true
    (sleep 1 && touch "$DIR/srv/go") &
    waker=$!
    equal "after waiting outside" inside "$(flock "$DIR/srv/lock" cat "$DIR/srv/turn")"
    wait "$holder" "$waker"
    flock -n "$DIR/srv/lock" true
    # It stays so for the sessions.
    karapace umount "$ENV"
    refused karapace mount "$ENV"
    says 'mount with --locks shared'
    karapace mount --locks shared "$ENV"
    leave "$session"
    until_true has_sessions 0
    karapace umount "$ENV"
    until_true no_server
    begin 76010
    refused karapace mount --locks shared "$ENV"
    says 'karapace stop'
    leave $!
    until_true no_server
    karapace mount "$ENV"
}

# By default each kernel keeps its own locks, and opens files without asking.
local_locks() {
    has -x 'locks: local' <"$DIR/.karapace/status"
    begin 76011
    local session=$!
    touch "$DIR/srv/lock"
    exec 9>"$DIR/srv/lock"
    flock 9
    x flock -n /srv/lock true
    exec 9>&-
    leave "$session"
    karapace umount "$ENV"
    until_true no_server
    equal "opens and closes asked of the server" 2 "$(asked local)"
    [ "$(asked shared)" -ge 10 ]
    karapace mount "$ENV"
}

# asked SCOPE: how many opens and closes the kernel asks for while a file is read five times, from the first one on.
asked() {
    local log before after
    KARAPACE_LOG='karapace_fs::fuse=trace' karapace mount --locks "$1" "$ENV" >/dev/null
    log=$STORE/env/$(inspect "$ENV" 'd["instance"]')/mount.log
    before=$(grep -cE 'operation="(open|flush)"' "$log" || true)
    for _ in 1 2 3 4 5; do cat "$DIR/etc/os-release"; done >/dev/null
    karapace umount "$ENV"
    until_true no_server
    after=$(grep -cE 'operation="(open|flush)"' "$log" || true)
    echo $((after - before))
}

need "an environment, mounted" setup
check "packages and a daemon in a session beside the mount" installs
check "what one side does, the other sees at once; git, and an editor's save" both_ways
check "commit and restore under both" commands_under_both
check "mounts come and go while sessions run, and sessions beside mounts" mounts_come_and_go
check "mount --all, when the sessions were there first" supervised
check "a read-only mount beside a session that writes" read_only_beside
check "kill -9 of the server under load from both sides: nothing hangs" killed server
check "kill -9 of the server, when the sessions were there first" killed server sessions-first
check "kill -9 of a session under load from both sides: nothing hangs" killed session
check "a mount that is unmounted beside a session, and still used elsewhere" held_elsewhere
if [ "$ACTOR" = user ]; then
    check "a session that is refused beside others" refused_beside
    check "--locks shared: SQLite and flock on both sides" shared_locks
    check "the default: each side has its own locks" local_locks
    check "kill -9 of the process that holds the sessions' mount: nothing hangs" killed holder
    check "after that a new one is made" holder_is_replaced
fi
finish_suite
