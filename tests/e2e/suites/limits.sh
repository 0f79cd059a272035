#!/usr/bin/env bash
# The caller's process state (limits, umask, nice, signals, OOM score, directory) applies to its command only: a server
# starts in a clean state, whoever starts it, and sessions do not affect each other.
# runs as: root user
# files: MINBASE
# seconds: 40
. "$(dirname "$0")/../checks.sh"
ENV=dev
export ENV
DIR=$MOUNTS/$ENV

setup() {
    karapace import "$MINBASE_TAR" --name "$ENV"
    karapace mount "$ENV"
    state "$(server_of "$ENV")" >"$TMPDIR/clean.mount"
    karapace umount "$ENV"
    session exec
    state "$(server_of "$ENV")" >"$TMPDIR/clean.session"
    stop
    cat "$TMPDIR/clean.mount"
}
unmount() { karapace umount "$ENV" 2>/dev/null || true; }
mounts() { karapace mount "$ENV" "$DIR"; }
# session COMMAND [CALLER]: begins one that sleeps, as a caller with that about it does.
session() {
    state_of_caller "${2:-nothing}" karapace "$1" "$ENV" -- sleep 75001 </dev/null >"$TMPDIR/session" 2>&1 &
    until_true sleeps_or_is_gone "$!"
    pgrep -fx 'sleep 75001' >/dev/null || wrong "did not begin: $(cat "$TMPDIR/session")"
}
sleeps_or_is_gone() { pgrep -fx 'sleep 75001' || gone "$1"; }
# stop: ends the session and its mount, also where its server is dead.
stop() {
    karapace stop --time 1 "$ENV" 2>/dev/null || true
    until_true no_server || karapace umount --force "$ENV"
}

# state PID: the state that a process inherited; its directory only if that may be read.
state() {
    python3 - "$1" <<'PYTHON'
import os, sys
proc = f"/proc/{sys.argv[1]}"
for line in open(f"{proc}/limits"):
    name = line[:26].strip()
    if name in ("Max cpu time", "Max file size", "Max data size", "Max stack size", "Max core file size", "Max processes",
                "Max open files", "Max locked memory", "Max address space", "Max resident set"):
        print(f"{name}: {line[26:47].strip()} (soft)")
for line in open(f"{proc}/status"):
    if line.startswith(("SigBlk:", "SigIgn:", "Umask:")):
        print(" ".join(line.split()))
print("oom_score_adj", open(f"{proc}/oom_score_adj").read().strip())
print("nice", open(f"{proc}/stat").read().rsplit(")", 1)[1].split()[16])
try:
    print("cwd", os.readlink(f"{proc}/cwd"))
except OSError:
    print("cwd /")
PYTHON
}

# as_clean KIND: the environment's server must be like one that a clean caller started.
as_clean() {
    state "$(server_of "$ENV")" >"$TMPDIR/state"
    diff "$TMPDIR/clean.$1" "$TMPDIR/state" || wrong "the server has it from its caller (<: as it should be)"
}
# state_of_caller WHAT COMMAND...: runs a command with that about it.
state_of_caller() (
    local what=$1 run=()
    shift
    case $what in
    soft-limits) ulimit -S -f 1000 -t 1 -v 4000000 -n 64 -c 0 -d 3000000 -s 1024 ;;
    limits) ulimit -f 1000 -t 1 -v 4000000 -d 3000000 ;;
    umask-077) umask 077 ;;
    umask-000) umask 000 ;;
    nice) renice -n 10 -p "$BASHPID" >/dev/null ;;
    oom-score) echo 500 >"/proc/$BASHPID/oom_score_adj" ;;
    ignored) trap '' INT HUP TERM USR1 XFSZ ;;
    no-children) trap '' CHLD ;;
    blocked) run=(blocked) ;;
    deleted) mkdir -p "$TMPDIR/gone" && cd "$TMPDIR/gone" && rmdir "$TMPDIR/gone" ;;
    busy) mkdir -p "$TMPDIR/busy" && cd "$TMPDIR/busy" ;;
    all-at-once)
        umask 077
        echo 500 >"/proc/$BASHPID/oom_score_adj"
        trap '' INT HUP TERM USR1 XFSZ
        mkdir -p "$TMPDIR/gone" && cd "$TMPDIR/gone" && rmdir "$TMPDIR/gone"
        ulimit -S -f 1000 -t 1 -v 4000000 -n 64 -c 0 -d 3000000 -s 1024
        run=(blocked)
        ;;
    esac
    "${run[@]}" "$@"
)
# What Python itself ignores is not passed on.
blocked() {
    python3 -c 'import os, signal, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD, signal.SIGXCPU})
os.execvp(sys.argv[1], sys.argv[1:])' "$@"
}
# What an ordinary user, or root in some containers, cannot undo (a hard limit, nice) is not expected to be reset.
lifts_hard_limits() { (ulimit -f 1000 && ulimit -f unlimited) 2>/dev/null; }
CALLERS=(soft-limits umask-077 umask-000 oom-score ignored blocked deleted busy)
[ "$ACTOR" = user ] || CALLERS+=(nice)
! lifts_hard_limits || CALLERS+=(limits)

clean_mount() {
    trap unmount EXIT
    state_of_caller "$1" karapace mount "$ENV" "$DIR"
    as_clean mount
}
clean_session() {
    trap stop EXIT
    session "$1" "$2"
    as_clean session
}
# A limit is an error of the write, and not the end of the server.
ignores_the_limit_signal() {
    trap 'unmount; stop' EXIT
    local ignored server
    karapace mount "$ENV" "$DIR"
    server=$(server_of "$ENV")
    ignored=$(sed -n 's/^SigIgn:\t//p' "/proc/$server/status")
    [ $((0x$ignored >> 24 & 1)) = 1 ] || wrong "SIGXFSZ kills the server of a mount (SigIgn $ignored)"
    unmount
    session exec
    server=$(server_of "$ENV")
    ignored=$(sed -n 's/^SigIgn:\t//p' "/proc/$server/status")
    [ $((0x$ignored >> 24 & 1)) = 1 ] || wrong "SIGXFSZ kills the server of a session (SigIgn $ignored)"
}
clean_all() {
    trap 'karapace umount --all >/dev/null 2>&1 || true; stop' EXIT
    local pid
    karapace mount --all "$HOME/all" >/dev/null
    until_true test -e "$HOME/all/$ENV/etc"
    state "$(server_of "$ENV")" >"$TMPDIR/clean.all"
    pid=$(pgrep -f 'karapace.* mount --all' | head -n1)
    state "$pid" >"$TMPDIR/clean.warden"
    karapace umount --all >/dev/null
    until_true gone "$pid"
    state_of_caller "$1" karapace mount --all "$HOME/all" >/dev/null
    until_true test -e "$HOME/all/$ENV/etc"
    as_clean all
    pid=$(pgrep -f 'karapace.* mount --all' | head -n1)
    state "$pid" | diff "$TMPDIR/clean.warden" - || wrong "mount --all itself has it from its caller"
}

# writes MIB: a write by another shell.
writes() { head -c $(($1 << 20)) /dev/urandom >"$DIR/root/large" && sync -f "$DIR/root/large"; }
lives() {
    kill -0 "$1"
    equal server "$1" "$(server_of "$ENV")"
    echo small >"$DIR/root/small"
    equal small small "$(cat "$DIR/root/small")"
    grep -q ID "$DIR/etc/os-release"
}
large_write() {
    local options=$1 server
    trap unmount EXIT
    # shellcheck disable=SC2086 # several options
    (ulimit $options && karapace mount "$ENV" "$DIR")
    server=$(server_of "$ENV")
    if ! lifts_hard_limits && [[ $options != *-S* ]]; then
        # A hard limit stays; it must be an error of the write, and no more.
        writes 8 2>"$TMPDIR/said" || grep -q 'File too large' "$TMPDIR/said" || wrong "$(cat "$TMPDIR/said")"
    else
        writes 8
        equal size $((8 << 20)) "$(stat -c %s "$DIR/root/large")"
    fi
    lives "$server"
    rm -f "$DIR/root/large"
}
processor_time() {
    trap unmount EXIT
    (ulimit -S -t 1 && karapace mount "$ENV" "$DIR")
    local server end=$((SECONDS + 300))
    server=$(server_of "$ENV")
    while [ "$(work_of "$server" || echo 9999)" -lt 1300 ] && [ "$SECONDS" -lt "$end" ]; do
        cp -r "$DIR/usr/share" "$DIR/root/copy" && rm -r "$DIR/root/copy"
    done
    lives "$server"
    at_least "ms of work" 1300 "$(work_of "$server")"
}

# The command inherits the caller's state, like one that is run without karapace.
of_the_caller() {
    local what script
    # shellcheck disable=SC2016 # for the shell inside
    script='ulimit -f; ulimit -t; ulimit -n; umask; sed -n "s/^Sig\(Blk\|Ign\):\t//p" /proc/self/status; cat /proc/self/oom_score_adj; sed "s/.*) //" /proc/self/stat | cut -d" " -f17'
    for what in soft-limits umask-077 umask-000 nice oom-score ignored blocked limits; do
        state_of_caller "$what" sh -c "$script" >"$TMPDIR/beside"
        state_of_caller "$what" karapace exec "$ENV" -- sh -c "$script" >"$TMPDIR/inside"
        diff "$TMPDIR/beside" "$TMPDIR/inside" || wrong "$what: the command does not have what the caller has (<: the caller)"
    done
}

own_limit() {
    local status=0
    (ulimit -S -f 1000 && karapace exec "$ENV" -- sh -c 'exec head -c 4000000 /dev/zero >/root/over') || status=$?
    equal "killed by SIGXFSZ" 153 "$status"
    status=0
    (ulimit -S -f 1000 && karapace exec "$ENV" -- sh -c 'trap "" XFSZ; head -c 4000000 /dev/zero >/root/over') 2>"$TMPDIR/said" || status=$?
    [ "$status" -ne 0 ]
    grep -q 'File too large' "$TMPDIR/said" || wrong "$(cat "$TMPDIR/said")"
    karapace exec "$ENV" -- sh -c 'head -c 4000000 /dev/zero >/root/over; [ "$(stat -c %s /root/over)" = 4000000 ]; rm /root/over'
}

# The first session's caller has every restriction; the second's has none.
beside_another() {
    trap stop EXIT
    local what
    # shellcheck disable=SC2016 # for the shell inside
    local script='ulimit -f; ulimit -t; ulimit -n; umask; cat /proc/self/oom_score_adj; sed -n "s/^Sig\(Blk\|Ign\):\t//p" /proc/self/status'
    for what in soft-limits umask-077 oom-score ignored; do
        stop
        session exec "$what"
        sh -c "$script" >"$TMPDIR/beside"
        karapace exec "$ENV" -- sh -c "$script" >"$TMPDIR/inside"
        diff "$TMPDIR/beside" "$TMPDIR/inside" || wrong "$what of another session reached a command"
        karapace exec "$ENV" -- sh -ec 'umask 022; head -c 8388608 /dev/urandom >/root/large; sync; mkdir /root/made
            [ "$(stat -c "%s %a" /root/large)" = "8388608 644" ]; [ "$(stat -c %a /root/made)" = 755 ]; rm -r /root/large /root/made' ||
            wrong "$what of another session: a write of 8 MiB failed"
        stop
    done
}

need "a Debian, and the state of its server without limits" setup
check "a write of 8 MiB through a mount that was made with ulimit -S -f 1000" large_write '-S -f 1000'
check "a write of 8 MiB through a mount that was made with ulimit -f 1000" large_write '-f 1000'
check "a mount that was made with ulimit -t 1 outlives a second" processor_time
for what in "${CALLERS[@]}"; do
    check "mount by a caller with $what: the server is unaffected" clean_mount "$what"
done
check "the server ignores SIGXFSZ" ignores_the_limit_signal
for what in soft-limits umask-077 ignored blocked all-at-once; do
    check "exec by a caller with $what: the server is unaffected" clean_session exec "$what"
done
check "enter by a caller with all-at-once: the server is unaffected" clean_session enter all-at-once
check "mount --all by a caller with all-at-once: the servers are unaffected" clean_all all-at-once
check "the command has its caller's limits" of_the_caller
check "a limit stops only the command that reaches it" own_limit
check "one session's limits do not reach another session" beside_another
# Last, because if it fails, what it started stays.
check "mount by a caller that ignores SIGCHLD: the server is unaffected" clean_mount no-children
check "exec by a caller that ignores SIGCHLD: the server is unaffected" clean_session exec no-children
check "the store is intact" karapace verify-store
finish_suite
