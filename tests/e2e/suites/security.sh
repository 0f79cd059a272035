#!/usr/bin/env bash
# What runs inside stays inside: a hostile program (hostile/poll.c) that looks for processes of karapace from its first
# instruction, while more than 300 sessions of others begin and end beside it.
# runs as: root user
# files: MINBASE
# seconds: 40
. "$(dirname "$0")/../checks.sh"
ENV=guest
PROJECT=$(mktemp -d /tmp/karapace-security.XXXXXX)
trap 'rm -rf "$PROJECT"' EXIT
cd "$PROJECT" || exit 1
# A program of the user's own, which a hostile program could change.
mkdir -p "$HOME/bin" "$HOME/outside"
cp "$(command -v karapace)" "$HOME/bin/karapace"
PATH=$HOME/bin:$PATH
# What a caller may hold: a secret in a variable, and an open directory of the host.
export SECRET_CANARY="canary-$$-$RANDOM$RANDOM"
exec 7<"$HOME/outside"
# Who the hostile program is inside. Root in a session of root is root on the host too (docs/SECURITY.md), so there it runs
# as another user; what karapace keeps out of sessions is also looked for as root.
HOSTILE=(--user 0)
[ "$ACTOR" = user ] || HOSTILE=(--user www-data)
SESSIONS=$TMPDIR/sessions
: >"$SESSIONS"

setup() {
    gcc -O2 -static -Wall -Wextra -Werror -o "$TMPDIR/poll" "$SCRATCH/tree/e2e/hostile/poll.c"
    printf '%s\n' 'manifest_version = 1' '[base]' "image = \"$MINBASE_TAR\"" >karapace.toml
    karapace build --name "$ENV"
    place "$ENV"
    printf '%s\n' '[runtime]' 'backend = "oci"' >>karapace.toml
    karapace build --name boxed
    place boxed
}
# place ENV: copies the program in, and a decoy that it must find, which shows that it can find anything.
place() {
    karapace exec "$1" -- sh -euc 'cd /usr/local/bin; cat >poll; cp /usr/bin/sleep karapace-decoy; chmod 755 poll karapace-decoy' <"$TMPDIR/poll"
}

# attack NAME ENV OPTION...: starts a session that runs the hostile program; its output goes to a file of that name.
attack() {
    local loot=$TMPDIR/loot.$1 env=$2
    shift 2
    echo "begin" >>"$loot"
    karapace exec "$@" "$env" -- /usr/local/bin/poll "$SECRET_CANARY" "$(stat -c %d:%i "$HOME/outside")" \
        "$(stat -c %d:%i "$HOME/bin/karapace")" </dev/null >>"$loot" 2>>"$TMPDIR/hostile.err" &
    echo $! >"$TMPDIR/hostile.pid"
    until_true is_ready "$loot" || { cat "$TMPDIR/hostile.err"; return 1; }
}
# Waits until the last one started is ready.
is_ready() { [ "$(grep -cx ready "$1")" = "$(grep -cx begin "$1")" ]; }

# over ENV: ends all sessions, including the hostile one, which ignores SIGTERM.
over() {
    karapace stop --time 0 "$1"
    wait "$(cat "$TMPDIR/hostile.pid")" || true
}

# sessions COUNT COMMAND...: runs it so often, as another caller would, and notes how each ended.
sessions() {
    local count=$1 number status
    shift
    for ((number = 0; number < count; number++)); do
        status=0
        timeout --foreground --kill-after=5 "$PATIENCE" "$@" >/dev/null 2>>"$TMPDIR/sessions.err" </dev/null || status=$?
        echo "$status $*" >>"$SESSIONS"
    done
}
# decoy NAME ENV OPTION...: a process that the hostile program of that name is to find; where the machine is busy, another one.
decoy() {
    local name=$1 env=$2
    shift 2
    for _ in {1..20}; do
        sessions 1 karapace exec "$@" -e "SECRET_CANARY=$SECRET_CANARY" "$env" -- /usr/local/bin/karapace-decoy 0.3
        if has_found_decoy "$name" >/dev/null; then break; fi
    done
}
# has_found_decoy NAME: by every kind of success.
has_found_decoy() {
    local kind
    for kind in environ fd memory trace adjust; do
        grep -qE "^$kind [0-9]+ karapace-decoy " "$TMPDIR/loot.$1" || wrong "$1: no $kind of the decoy" || return 1
    done
}

joining() {
    attack joins "$ENV" "${HOSTILE[@]}"
    decoy joins "$ENV" "${HOSTILE[@]}"
    sessions 60 karapace exec "$ENV" -- true
    sessions 20 karapace exec --user www-data "$ENV" -- true
    # Long enough for all that may be seen of a command itself.
    sessions 2 karapace exec "${HOSTILE[@]}" "$ENV" -- sleep 0.2
    sessions 20 karapace exec --user self "$ENV" -- true
    sessions 20 karapace enter --workdir /srv "$ENV" -- true
    over "$ENV"
    attack joins "$ENV" --ctl "${HOSTILE[@]}"
    sessions 20 karapace exec --ctl "$ENV" -- true
    over "$ENV"
}

on_a_terminal() {
    attack terminal "$ENV" "${HOSTILE[@]}"
    decoy terminal "$ENV" "${HOSTILE[@]}"
    sessions 60 script -qec "karapace exec $ENV -- true" /dev/null
    sessions 20 script -qec "karapace enter $ENV -- true </dev/null" /dev/null
    sessions 2 script -qec "karapace enter ${HOSTILE[*]} $ENV -- sleep 0.2" /dev/null
    over "$ENV"
}

# The one that sends SIGTERM inside comes last: process 1, the hostile session's own monitor and the hostile program are
# before it.
stopping() {
    for _ in {1..25}; do
        attack sender "$ENV" "${HOSTILE[@]}"
        over "$ENV"
    done
    for _ in {1..5}; do
        attack stop "$ENV" "${HOSTILE[@]}"
        decoy stop "$ENV" "${HOSTILE[@]}"
        sessions 1 karapace exec "${HOSTILE[@]}" "$ENV" -- sleep 0.2
        over "$ENV"
    done
}

on_a_host_mount() {
    karapace mount "$ENV"
    attack mounted "$ENV" "${HOSTILE[@]}"
    decoy mounted "$ENV" "${HOSTILE[@]}"
    sessions 60 karapace exec "${HOSTILE[@]}" "$ENV" -- true
    over "$ENV"
    karapace umount "$ENV"
}

with_a_runtime() {
    attack oci boxed "${HOSTILE[@]}"
    sessions 30 karapace exec boxed -- true
    sessions 10 script -qec "karapace exec boxed -- true" /dev/null
    over boxed
}

as_root_of_roots() {
    attack root "$ENV" --user 0
    decoy root "$ENV"
    sessions 60 karapace exec "$ENV" -- true
    sessions 10 script -qec "karapace exec $ENV -- true" /dev/null
    over "$ENV"
}

# found KINDS [NAME...]: what the hostile program found, of these kinds and in these parts, except the decoy.
found() {
    local kinds=$1 name
    shift
    for name in "${@:-joins terminal stop sender mounted oci}"; do
        # shellcheck disable=SC2086 # several names
        for part in $name; do grep -hE "^($kinds) " "$TMPDIR/loot.$part" | grep -v ' karapace-decoy ' | sed "s/^/$part: /" || true; done
    done
}
# nothing KINDS [NAME...]
nothing() {
    found "$@" >"$TMPDIR/found"
    [ ! -s "$TMPDIR/found" ] || {
        echo "$(wc -l <"$TMPDIR/found") times; of each kind:"
        sort -t' ' -k2,2 -k4,4 -u "$TMPDIR/found" | head -n 20
        return 1
    }
}
ANY='environ|fd|exe|memory|trace|inject|adjust'

finds_the_decoy() {
    local name
    for name in joins terminal stop mounted; do has_found_decoy "$name"; done
    echo "note: $(wc -l <"$SESSIONS") sessions"
    at_least sessions 300 "$(wc -l <"$SESSIONS")"
}

undisturbed() {
    if grep -v '^0 ' "$SESSIONS" | sort | uniq -c; then tail -n 5 "$TMPDIR/sessions.err"; wrong "sessions did not end as they do alone"; fi
}

program_unchanged() {
    equal mode 755 "$(stat -c %a "$HOME/bin/karapace")"
    nothing exe
}

need "environments with a hostile program" setup
check "sessions that join" joining
check "sessions on a terminal" on_a_terminal
check "sessions that are stopped" stopping
check "sessions on a host mount" on_a_host_mount
check "sessions of the oci backend" with_a_runtime
check "the hostile program finds what it can access" finds_the_decoy
check "the sessions of others were not disturbed" undisturbed
check "no variable of a caller is read" nothing environ
check "no descriptor of a caller is read or opened" nothing fd
check "karapace's program is not opened, and its mode is unchanged" program_unchanged
check "no process of karapace is inspected" nothing 'memory|adjust'
check "no process of karapace is traced" nothing trace
check "nothing is typed into a caller's terminal" nothing inject
check "nothing at all: joining" nothing "$ANY" joins
check "nothing at all: on a terminal" nothing "$ANY" terminal
check "nothing at all: sessions that are stopped" nothing "$ANY" 'stop sender'
check "nothing at all: the process that sends SIGTERM inside" nothing "($ANY) ([4-9]|[0-9]{2,})" sender
check "nothing at all: on a host mount" nothing "$ANY" mounted
check "nothing at all: the oci backend" nothing "$ANY" oci
if [ "$ACTOR" = root ]; then
    check "sessions of root, with root watching" as_root_of_roots
    check "root inside reads no variable of root's caller" nothing environ root
    check "root inside finds no descriptor of root's caller" nothing 'fd [0-9]+ [^ ]+ descriptor [0-9]+ is the' root
fi
check "the store is intact" karapace verify-store
finish_suite
