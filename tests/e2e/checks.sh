# shellcheck shell=bash
# What the suites share: named and counted checks, and helpers around karapace. Sourced by each suite.
set -uo pipefail

: "${SCRATCH:?run the suites with tests/e2e/run.sh}" "${ACTOR:?}" "${PLAIN:?}" "${HOME:?}"
MOUNTS=$HOME/karapace
STORE=$HOME/.local/share/karapace
CHECKS_PASSED=0
CHECKS_FAILED=0
# Exported for checks that call `has` in another bash.
export LOG=$TMPDIR/check.log

# has PATTERN: like grep -q at the end of a pipe, but reads all of it: under pipefail a writer that meets a closed pipe
# would fail the check. If nothing matches, its input is printed with the failed check.
has() {
    local read=$TMPDIR/has.$BASHPID status=0
    cat >"$read"
    grep "$@" <"$read" >/dev/null || status=$?
    [ "$status" -eq 0 ] || [ -n "${WAITING:-}" ] ||
        { printf 'expected %s, found:\n' "${*@Q}" && head -n 20 "$read" | sed 's/^/  /'; } >>"$LOG"
    rm -f "$read"
    return "$status"
}

# seconds_since START: since that $EPOCHREALTIME, to a tenth.
seconds_since() {
    local tenths=$(((${EPOCHREALTIME/[.,]/} - ${1/[.,]/}) / 100000))
    printf '%d.%d' $((tenths / 10)) $((tenths % 10))
}

# check NAME COMMAND...: passes if the command, run with errexit, succeeds. Prints its output if it fails; otherwise
# only the lines that begin with "note: ". A function given as COMMAND runs in a subshell, so results must be passed
# on in files. $LOG is opened to append: `failed_at` writes there too, wherever the command's own output goes.
check() {
    local name=$1 status start=$EPOCHREALTIME took
    shift
    : >"$LOG"
    (
        set -eEuo pipefail
        trap failed_at ERR
        "$@"
    ) >>"$LOG" 2>&1 </dev/null
    status=$?
    took=$(seconds_since "$start")
    if [ "$status" -eq 0 ]; then
        CHECKS_PASSED=$((CHECKS_PASSED + 1))
        echo "ok   $name ($took s)"
        sed -n 's/^note: /     /p' "$LOG"
    else
        CHECKS_FAILED=$((CHECKS_FAILED + 1))
        echo "FAIL $name (as $ACTOR, status $status, $took s)"
        sed 's/^/     | /' "$LOG" | tail -n 40
    fi
    return 0
}

# failed_at: the trap of a check. Prints the line of the suite that failed, with the values of its variables
# if it is a test.
failed_at() {
    local command=$BASH_COMMAND i line
    for ((i = 1; i < ${#BASH_SOURCE[@]}; i++)); do
        if [[ ${BASH_SOURCE[i]} == "$0" ]]; then
            line=${BASH_LINENO[i - 1]}
            line="line $line: $(sed -n "$line{s/^ *//;p}" "$0")"
            # Only once, even if first a subshell and then the check ends because of it.
            [ "$(tail -n 1 "$LOG")" = "$line" ] || echo "$line" >>"$LOG"
            break
        fi
    done
    if [[ $command == '[ '* && $command != *[\`\(]* ]]; then eval "echo found: $command" >>"$LOG"; fi
}

# need NAME COMMAND...: a check that the rest of the suite depends on.
need() {
    local before=$CHECKS_FAILED
    check "$@"
    [ "$CHECKS_FAILED" -eq "$before" ] || finish_suite
}

finish_suite() {
    echo "$CHECKS_PASSED passed, $CHECKS_FAILED failed"
    [ "$CHECKS_FAILED" -eq 0 ]
    exit
}

# Fails with what was expected and what was found.
wrong() {
    echo "$*"
    return 1
}

# equal WHAT EXPECTED FOUND
equal() { [ "$2" = "$3" ] || wrong "$1: expected '$2', found '$3'"; }

# below WHAT LIMIT FOUND and at_least WHAT LEAST FOUND, of numbers.
below() { [ "$3" -lt "$2" ] || wrong "$1: expected less than $2, found $3"; }
at_least() { [ "$3" -ge "$2" ] || wrong "$1: expected at least $2, found $3"; }

# status_of EXPECTED COMMAND...: the command must exit with this status.
status_of() {
    local expected=$1 status=0
    shift
    "$@" || status=$?
    equal "status of $*" "$expected" "$status"
}

# refused COMMAND...: the command must fail with an error, not by a signal or a panic.
refused() {
    local status=0
    "$@" >"$TMPDIR/refused" 2>&1 || status=$?
    cat "$TMPDIR/refused"
    if [ "$status" -eq 0 ]; then wrong "should have been refused: $*"; fi
    if [ "$status" -ge 100 ]; then wrong "died with status $status: $*"; fi
    if grep -q 'panicked at' "$TMPDIR/refused"; then wrong "panicked: $*"; fi
}

# says PATTERN: the output of the last `refused` command must match.
says() { grep -qiE "$1" "$TMPDIR/refused" || wrong "no '$1' in: $(cat "$TMPDIR/refused")"; }

# until_true COMMAND...: waits for the command to succeed; what it says the last time is shown. PATIENCE is the bound
# of nearly all waits: what succeeds at all does so much sooner.
PATIENCE=120
until_true() {
    local deadline=$((SECONDS + PATIENCE)) WAITING=yes
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -gt "$deadline" ]; then
            WAITING=
            "$@" && return
            # An explicit return, because errexit is off if this is part of a condition.
            wrong "did not happen in $PATIENCE s: $*" || return 1
        fi
        sleep 0.05
    done
}

# shown_id N: what shows for id N of an environment on the actor's mount (the user's sub-ids: sandbox.sh).
shown_id() {
    if [ "$ACTOR" = root ]; then
        echo "$1"
    elif [ "$1" = 0 ]; then
        id -u
    else
        echo $((100000 + $1 - 1))
    fi
}

# tree DIRECTORY [times]: a comparable listing of everything in a directory: kind, mode, owner, links, size,
# target, content, extended attributes, and modification times on request. The size and times of directories are
# left out: they depend on the file system.
tree() (
    set -euo pipefail
    cd "$1"
    local time=''
    if [ "${2:-}" = times ]; then time='%T@'; fi
    find . -mindepth 1 \( -type d -printf "d %m %U %G %p\0" \) \
        -o \( -type l -printf "l %U %G $time %p -> %l\0" \) \
        -o -printf "%y %m %U %G %n %s $time %p\0" | LC_ALL=C sort -z | tr '\n\0' '?\n'
    # openssl uses the processor's SHA instructions and is five times as fast as sha256sum.
    find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r openssl dgst -sha256 -r
    find . -print0 | LC_ALL=C sort -z | xargs -0 -r getfattr -h -d -m - -e hex -- 2>/dev/null || true
)

# same_tree A B [times]: both must have the same content.
same_tree() {
    tree "$1" "${3:-}" >"$TMPDIR/tree.a"
    tree "$2" "${3:-}" >"$TMPDIR/tree.b"
    [ -s "$TMPDIR/tree.a" ] || wrong "$1 is empty"
    diff "$TMPDIR/tree.a" "$TMPDIR/tree.b" >"$TMPDIR/tree.diff" || {
        wc -l "$TMPDIR/tree.a" "$TMPDIR/tree.b"
        head -n 20 "$TMPDIR/tree.diff"
        return 1
    }
}

# same_attributes A B [OPTION...]: every attribute of everything in both must be the same, including hard links and
# holes; OPTIONs are those of attributes.py.
same_attributes() {
    local a=$1 b=$2
    shift 2
    /usr/bin/python3 "$SCRATCH/tree/e2e/attributes.py" "$@" "$a" >"$TMPDIR/attributes.a"
    /usr/bin/python3 "$SCRATCH/tree/e2e/attributes.py" "$@" "$b" >"$TMPDIR/attributes.b"
    diff "$TMPDIR/attributes.a" "$TMPDIR/attributes.b" >"$TMPDIR/attributes.diff" || {
        head -n 20 "$TMPDIR/attributes.diff"
        return 1
    }
}

# json FILE-OR-- EXPRESSION: evaluates a Python expression over the JSON document `d`.
json() { python3 -c 'import json, sys
d = json.load(sys.stdin if sys.argv[1] == "-" else open(sys.argv[1]))
print(eval(sys.argv[2]))' "$1" "$2"; }

# inspect ENV EXPRESSION
inspect() { karapace --json inspect "$1" | json - "$2"; }

# The process that serves an environment; that none serves $ENV.
server_of() { inspect "$1" 'd["mount"]["pid"]'; }
no_server() { [ "$(inspect "$ENV" 'd["mount"]')" = None ]; }

# x COMMAND...: inside $ENV.
x() { karapace exec "$ENV" -- "$@"; }

# work_of PID: the processor time of a process in milliseconds. Unlike a duration it does not depend on what else the machine does.
work_of() { python3 -c 'import os, sys
fields = open(f"/proc/{sys.argv[1]}/stat").read().rsplit(")", 1)[1].split()
print((int(fields[11]) + int(fields[12])) * 1000 // os.sysconf("SC_CLK_TCK"))' "$1"; }

# peak_of PID: the most memory that a process had resident, in KiB.
peak_of() { awk '$1 == "VmHWM:" { print $2 }' "/proc/$1/status"; }

# mounted DIRECTORY: whether something is mounted there, alive or dead (stat fails on a dead mount).
mounted() { awk -v p="$1" '$5 == p { found = 1 } END { exit !found }' /proc/self/mountinfo; }
not_mounted() { ! mounted "$1"; }

# gone PID: whether the process has ended. Its parent, often the namespace's init, may not have waited for it yet.
gone() { ! grep -qE '^[0-9]+ \(.*\) [^ZX] ' "/proc/$1/stat" 2>/dev/null; }

# sigstop PID: stops the process, until the end of the check at the latest, so that a failing check cannot hang those
# after it. `kill` returns while threads of the process are still running and may still answer.
sigstop() {
    # shellcheck disable=SC2064 # this process, now
    trap "kill -CONT $1 2>/dev/null || true" EXIT
    kill -STOP "$1"
    until_true all_threads_stopped "$1"
}
all_threads_stopped() { ! grep -hvE '^[0-9]+ \(.*\) T' "/proc/$1/task/"*/stat; }

# ctl ENV COMMAND: writes one command to ctl, as a script would.
ctl() { echo "$2" >"$MOUNTS/$1/.karapace/ctl"; }
last() { cat "$MOUNTS/$1/.karapace/last"; }

# commit ENV: commits and prints the new head's hash.
commit() {
    ctl "$1" commit
    local word
    read -r word _ <"$MOUNTS/$1/.karapace/last"
    [ "$word" = ok ] || wrong "last: $(last "$1")"
    sed -n 's/^ok commit \([0-9a-f]\{64\}\).*/\1/p' "$MOUNTS/$1/.karapace/last"
}

# with_commits MOUNT COMMAND...: runs the command while several commits a second are made, none of which
# may fail.
with_commits() {
    local mount=$1 status=0 stop=$TMPDIR/stop-committing
    shift
    rm -f "$stop"
    (
        committed=0
        until [ -e "$stop" ]; do
            echo commit >"$mount/.karapace/ctl" || wrong "$(cat "$mount/.karapace/last")" || exit 1
            committed=$((committed + 1))
            sleep 0.2
        done
        echo "note: $committed commits beside it"
    ) &
    "$@" || status=$?
    touch "$stop"
    wait $! || status=1
    return "$status"
}

# serve DIRECTORY: serves it over http on loopback until the suite ends; the port is in
# $TMPDIR/port.
serve() {
    python3 - "$1" "$TMPDIR/port" >"$TMPDIR/server.log" 2>&1 <<'PYTHON' &
import functools, http.server, sys
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
with open(sys.argv[2], "w") as port:
    port.write("%d\n" % server.server_port)
server.serve_forever()
PYTHON
    until_true test -s "$TMPDIR/port"
}

# errno_of ENV LINES: prints the name of the errno with which ctl refuses these lines.
errno_of() {
    python3 - "$MOUNTS/$1/.karapace/ctl" "$2" <<'PYTHON'
import errno, os, sys
descriptor = os.open(sys.argv[1], os.O_WRONLY)
try:
    os.write(descriptor, sys.argv[2].encode() + b"\n")
    print("none")
except OSError as error:
    print(errno.errorcode[error.errno])
PYTHON
}

# refused_with ERRNO ENV LINES
refused_with() { equal "errno of '${3:0:60}'" "$1" "$(errno_of "$2" "$3")"; }

# The number of the store's objects, and the bytes of the whole store on disk.
objects() { find "$STORE/store/objects" -type f | wc -l; }
store_bytes() { du -s --block-size=1 "$STORE" | cut -f1; }

# small_environment DIRECTORY: the environment `dev`, whose etc/file is one in the base, two in the snapshot `first`, and three since.
small_environment() {
    mkdir -p "$1/etc"
    echo one >"$1/etc/file"
    karapace import "$1" --name dev
    karapace mount dev
    echo two >"$MOUNTS/dev/etc/file"
    karapace commit dev --name first
    echo three >"$MOUNTS/dev/etc/file"
    karapace umount dev
}

# fixture DIRECTORY: makes a small root file system that is quick to import, with one of everything
# that an ordinary user can create.
fixture() (
    set -euo pipefail
    mkdir -p "$1"
    cd "$1"
    mkdir -p etc usr/bin usr/share/doc/many var/empty srv/data root
    printf 'PRETTY_NAME="Fixture"\n' >etc/os-release
    echo fixture >etc/hostname
    printf 'keep\n' >etc/keep
    printf 'to be changed\n' >etc/changed
    printf 'to be deleted\n' >etc/deleted
    head -c 3000000 /dev/zero | tr '\0' 'x' >srv/data/large
    truncate -s 5M srv/data/sparse
    printf 'end' >>srv/data/sparse
    ln -s ../etc/os-release usr/os-release
    ln etc/keep etc/keep-too
    for i in $(seq 100); do echo "$i" >"usr/share/doc/many/$i"; done
    printf '#!/bin/sh\necho hello\n' >usr/bin/hello
    chmod 0755 usr/bin/hello
    printf 'x' >"srv/data/$(printf 'odd \001\377 name')"
    mkfifo srv/data/fifo
    if setfattr -n user.colour -v blue etc/changed 2>/dev/null; then :; fi
    chmod 4711 usr/bin/hello
    chmod 0750 srv/data
    find . -exec touch -h -d '2001-02-03 04:05:06.789012345' {} +
)

# noise SEED BYTES: bytes that neither compress nor repeat, fast.
noise() { head -c "$2" /dev/zero | openssl enc -aes-128-ctr -pass "pass:$1" -nosalt -pbkdf2; }

# mounted_fixture DIRECTORY: the fixture, made there, as the environment $ENV, mounted. Its archive is
# $TMPDIR/fixture.tar.
mounted_fixture() {
    fixture "$1"
    fixture_tar "$1" "$TMPDIR/fixture.tar"
    karapace import "$TMPDIR/fixture.tar" --name "$ENV"
    karapace mount "$ENV"
}

# fixture_tar DIRECTORY TAR: the fixture as an archive in which root owns everything, as in a real root file
# system. On a user's mount root's files appear as the user's, so both look the same.
fixture_tar() { tar --xattrs --sparse --owner=0 --group=0 --numeric-owner -cf "$2" -C "$1" .; }
