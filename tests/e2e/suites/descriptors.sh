#!/usr/bin/env bash
# The caller's descriptors: neither the server nor processes inside keep any; the command gets 0 to 2, and more on
# request.
# runs as: root user
# files: MINBASE
. "$(dirname "$0")/../checks.sh"
ENV=q
export ENV
DIR=$MOUNTS/$ENV
LOCK=$HOME/lock
: >"$LOCK"

setup() { karapace import "$MINBASE_TAR" --name "$ENV"; }
unmount() { karapace umount "$ENV" 2>/dev/null || true; }

# in_time COMMAND...: must end within a generous time.
in_time() {
    local status=0
    timeout --kill-after=5 "$PATIENCE" "$@" || status=$?
    if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then wrong "does not end: $*"; fi
    return "$status"
}
# unlocked: nobody holds the lock that `flock` had taken for a command which is over. flock(2) locks belong to all copies of
# a descriptor.
unlocked() { flock -n "$LOCK" true || wrong "a process still holds the caller's descriptor"; }

locked_mount() {
    trap unmount EXIT
    flock "$LOCK" karapace mount "$ENV" "$DIR"
    unlocked
    test -e "$DIR/etc/os-release"
}

# beside_another MARK COMMAND...: a session that is begun by the command, and runs $WAITS; ends while another sleeps on.
WAITS='echo up; until [ -e /root/go ]; do sleep 0.05; done'
export WAITS
beside_another() {
    local mark=$1
    shift
    until_true no_server
    rm -f "$TMPDIR/up"
    "$@" </dev/null &
    local first=$!
    until_true test -s "$TMPDIR/up"
    karapace exec "$ENV" -- sleep "$mark" </dev/null >/dev/null 2>&1 &
    until_true pgrep -fx "sleep $mark"
    karapace exec "$ENV" -- touch /root/go
    wait "$first"
    karapace exec "$ENV" -- rm /root/go
    # The server and process 1 that it began live on.
    pgrep -fx "sleep $mark" >/dev/null
}

locked_session() {
    trap 'karapace stop --time 1 "$ENV" || true' EXIT
    beside_another 74001 sh -c 'flock "$0" karapace "$1" "$ENV" -- sh -c "$WAITS" >"$TMPDIR/up"' "$LOCK" "$1"
    unlocked
}

locked_all() {
    trap 'karapace umount --all >/dev/null 2>&1 || true' EXIT
    flock "$LOCK" karapace mount --all "$HOME/all"
    until_true test -e "$HOME/all/$ENV/etc/os-release"
    unlocked
}

locked_build() {
    cd "$TMPDIR"
    printf '%s\n' 'manifest_version = 1' '[base]' "image = \"$MINBASE_TAR\"" >karapace.toml
    flock "$LOCK" karapace build --name built
    unlocked
    karapace destroy -y built
}

# A process left running inside has only the descriptors that it was given.
left_running() {
    trap 'karapace stop --time 1 "$ENV" || true' EXIT
    karapace exec "$ENV" -- sleep 74002 </dev/null >/dev/null 2>&1 &
    until_true pgrep -fx 'sleep 74002'
    flock "$LOCK" karapace exec "$ENV" -- sh -c 'setsid sleep 74003 </dev/null >/dev/null 2>&1 &'
    unlocked
}

with_make() {
    trap unmount EXIT
    mkdir -p "$TMPDIR/made"
    cd "$TMPDIR/made"
    printf 'all: one two\none:\n\t+karapace mount %s %s\ntwo:\n\t@echo two\n' "$ENV" "$DIR" >Makefile
    in_time bash -c 'set -o pipefail; make -j2 2>&1 3>&- | cat'
    mounted "$DIR"
    # Below another make, which counts the tokens that its jobs took and gave back.
    unmount
    printf 'all:\n\t+$(MAKE) -f Makefile one two\n' >Outer
    in_time bash -c 'set -o pipefail; make -j2 -f Outer 2>&1 | cat'
    mounted "$DIR"
    # And without make: a jobserver's pipe ends when all its writers are gone.
    unmount
    in_time bash -c '{ MAKEFLAGS="-j2 --jobserver-auth=3,4" karapace mount "$ENV" >/dev/null; } 4>&1 3</dev/null | cat'
}

pipe_of_mount() {
    trap unmount EXIT
    in_time bash -c '{ karapace mount "$ENV" "$0"; } 3>&1 | cat' "$DIR"
    unmount
    in_time bash -c '{ karapace mount "$ENV" "$0"; } 9>&1 | cat' "$DIR"
    unmount
    # Its own streams as well.
    in_time bash -c 'karapace mount "$ENV" "$0" 2>&1 | cat' "$DIR"
}

pipe_of_exec() {
    local command
    for command in exec enter; do
        in_time bash -c '{ karapace $0 "$ENV" -- sh -c "sleep 300 >/dev/null 2>&1 </dev/null &"; } 3>&1 | cat' "$command"
    done
    trap 'karapace stop --time 1 "$ENV" || true' EXIT
    beside_another 74004 in_time bash -c '{ karapace exec "$ENV" -- sh -c "$WAITS" >"$TMPDIR/up"; } 3>&1 | cat'
}

# `ls` itself has the directory open, as the next number that is free.
inside() {
    local command
    for command in exec enter; do
        equal "$command" "0 1 2 3" "$(karapace "$command" "$ENV" 3</etc/passwd 5</etc 9>/dev/null 77</etc/hostname -- ls /proc/self/fd </dev/null 2>/dev/null | sort -n | xargs)"
        equal "$command, nothing given" "0 1 2 3" "$(karapace "$command" "$ENV" -- ls /proc/self/fd </dev/null | sort -n | xargs)"
    done
}

preserved() {
    local command
    echo first >"$TMPDIR/3"
    for command in exec enter; do
        : >"$TMPDIR/4"
        karapace "$command" --preserve-fds 2 "$ENV" 3<"$TMPDIR/3" 4>"$TMPDIR/4" 5</etc/passwd -- sh -c 'cat <&3 >&4; echo second >&4'
        equal "written by $command" "first second" "$(xargs <"$TMPDIR/4")"
        equal "$command" "0 1 2 3 4 5" "$(karapace "$command" --preserve-fds 2 "$ENV" 3<"$TMPDIR/3" 4>"$TMPDIR/4" 5</etc/passwd 8</etc -- ls /proc/self/fd </dev/null | sort -n | xargs)"
        equal "$command, none" "0 1 2 3" "$(karapace "$command" --preserve-fds 0 "$ENV" 3<"$TMPDIR/3" -- ls /proc/self/fd </dev/null | sort -n | xargs)"
    done
    # Only the command has the passed descriptors, and no process that stays.
    trap 'karapace stop --time 1 "$ENV" || true' EXIT
    karapace exec "$ENV" -- sleep 74005 </dev/null >/dev/null 2>&1 &
    until_true pgrep -fx 'sleep 74005'
    (
        exec 3<"$LOCK"
        flock 3
        karapace exec --preserve-fds 1 "$ENV" -- true
    )
    unlocked
}

# The server as its owner sees it.
server_has_none() {
    trap unmount EXIT
    (
        exec 3<"$LOCK" 4</etc 200<"$LOCK"
        karapace mount "$ENV"
    )
    python3 - "$(server_of "$ENV")" "$LOCK" /etc <<'PYTHON'
import os, sys
caller = {(s.st_dev, s.st_ino) for s in map(os.stat, sys.argv[2:])}
directory = f"/proc/{sys.argv[1]}/fd"
found = []
for name in os.listdir(directory):
    try:
        s = os.stat(f"{directory}/{name}")
    except OSError:
        continue
    if (s.st_dev, s.st_ino) in caller:
        found.append(f"{name} -> {os.readlink(f'{directory}/{name}')}")
sys.exit(f"the server has {found}" if found else 0)
PYTHON
    equal cwd / "$(readlink "/proc/$(server_of "$ENV")/cwd")"
}

need "a Debian" setup
check "flock around a mount" locked_mount
check "flock around exec, whose server keeps running" locked_session exec
check "flock around enter, whose server keeps running" locked_session enter
check "flock around exec that leaves something running" left_running
check "flock around mount --all" locked_all
check "flock around build" locked_build
check "make -j with a recipe that mounts" with_make
check "a pipe that a mount was given ends" pipe_of_mount
check "a pipe that exec and enter were given ends" pipe_of_exec
check "the server has none of the caller's descriptors" server_has_none
need "a mount" karapace mount "$ENV"
check "the command sees 0 to 2" inside
check "--preserve-fds passes as many more" preserved
check "the store is intact" karapace verify-store
finish_suite
