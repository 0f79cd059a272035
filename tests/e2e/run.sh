#!/usr/bin/env bash
# Runs the end-to-end suites: tests/e2e/run.sh [--as root|user] [SUITE...]
# With --fetch it only downloads and installs what they need, once for all runs.
#
# A suite is tests/e2e/suites/NAME.sh, or NAME.sh in KARAPACE_SUITES. Its line `# runs as: root user` says as which users it runs, `# tools:
# NAME...` which programs it needs that are not Debian packages (scripts/lib/tools.sh), and `# files: NAME...` which downloaded files (FETCH
# below). A suite that lacks one of them fails, and the others run. Each run has a process, mount and user table of its own (suite.sh,
# sandbox.sh): whatever a suite starts or mounts is gone when it ends, also when this script is killed, and nothing of it is seen outside.
# This needs root. It also allows several suites to run in parallel; the output of each is shown when it has ended.
#
# KARAPACE_BIN   the program to test; by default target/release/karapace, built if necessary
# KARAPACE_SUITES
#                another directory of suites below tests/ (tests/real/suites: scripts/real)
# KARAPACE_JOBS  how many suites run in parallel; by default three per processor, because a suite waits more than half of its time
# KARAPACE_FSX_OPERATIONS, KARAPACE_FSX_SEEDS
#                how many operations fsx does, and with which seeds (suites/fsx.sh)
# KARAPACE_LIMIT_SECONDS
#                how long a suite may take; by default 1200
# KARAPACE_KEEP  if set, the scratch directories of failed suites are kept
# TMPDIR         the directory for scratch directories (by default /var/tmp); the largest suite needs some 10 GB, each other that runs up to 5 GB
#
# The longest suites are started first, according to their line `# seconds: N`; one without it counts as short. At the end it prints a table
# of what ran and how long it took, the failures again, how to run each failed suite again, and `N passed, N failed`.
set -uo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "$0")/../../scripts/lib/common.sh"
# shellcheck source=scripts/lib/rootfs.sh
. "$ROOT/scripts/lib/rootfs.sh"
# shellcheck source=scripts/lib/tools.sh
. "$ROOT/scripts/lib/tools.sh"
# shellcheck source=scripts/lib/packages.sh
. "$ROOT/scripts/lib/packages.sh"
# shellcheck source=scripts/lib/built.sh
. "$ROOT/scripts/lib/built.sh"

only_as="" fetch_only=""
if [ "${1:-}" = --fetch ]; then
    fetch_only=yes
    shift
fi
if [ "${1:-}" = --as ]; then
    only_as=${2:?--as root or --as user}
    shift 2
fi
[ "$(id -u)" -eq 0 ] || die "run the end-to-end suites as root: they make namespaces, mounts and a user of their own"
[ -c /dev/fuse ] || die "/dev/fuse is missing: nothing can be mounted here (modprobe fuse)"

SUITES=${KARAPACE_SUITES:-$ROOT/tests/e2e/suites}
names=("$@")
[ $# -gt 0 ] || mapfile -t names < <(cd "$SUITES" && printf '%s\n' *.sh | sed 's/\.sh$//')
for name in "${names[@]}"; do
    [ -f "$SUITES/$name.sh" ] || die "there is no suite $name; there are: $(cd "$SUITES" && echo *.sh)"
done
# The variables to put before run.sh to run a suite in the same way.
settings=""
for variable in KARAPACE_BIN KARAPACE_SUITES; do
    [ -z "${!variable:-}" ] || settings+="$variable=${!variable} "
done
if [ -z "${KARAPACE_BIN:-}" ] && [ -z "$fetch_only" ]; then
    (cd "$ROOT" && cargo build --release --quiet) || die "the release build failed"
    KARAPACE_BIN=$TARGET/release/karapace
fi
export KARAPACE_BIN TOOLS SUITES REPOSITORY=$ROOT
# Suites spend much of their time waiting. At most twelve, because each needs memory and disk space.
jobs=${KARAPACE_JOBS:-$((3 * $(nproc)))}
[ -n "${KARAPACE_JOBS:-}" ] || [ "$jobs" -le 12 ] || jobs=12

logs=$(mktemp -d)
declare -A running=()
tidy() {
    [ ${#running[@]} -eq 0 ] || kill "${!running[@]}" 2>/dev/null
    wait
    rm -rf "$logs"
}
trap tidy EXIT
trap 'exit 130' INT TERM HUP

# The downloaded files that suites may need: the variable with the path, and the command that fetches it.
declare -A FETCH=([MINBASE]=rootfs_minbase [DEV]=rootfs_dev [MANAGERS]=rootfs_managers [DEBS]=packages_debs [PATCH]="packages_configured patch"
    [GIT]="packages_built git" [COREUTILS]="packages_built coreutils" [SQLITE]="packages_built sqlite3"
    [PNPM]=packages_pnpm [RELEASES]=apt_releases)

# words KEY NAME: prints the words of a suite's line `# KEY: ...`.
words() { sed -n "s/^# $1: //p" "$SUITES/$2.sh"; }

# provide KIND WORD: fetches or installs it, once for all suites; fails if that is impossible, with the reason in $logs.
declare -A provided=()
provide() {
    local log="$logs/$1-$2"
    if [ -z "${provided[$2]:-}" ]; then
        provided[$2]=yes
        if [ "$1" = tools ]; then
            (ensure_tool "$2") 2>"$log" || provided[$2]=no
        else
            export "${2?}"
            # shellcheck disable=SC2086 # words
            printf -v "$2" %s "$(${FETCH[$2]} 2>"$log")"
            [ -n "${!2}" ] || provided[$2]=no
        fi
        cat "$log" >&2
    fi
    [ "${provided[$2]}" = yes ]
}

passed=0 failed=0
# The results for the end: a line "SECONDS NAME ACTOR PASSED FAILED" per run, and the failures.
ends=() failures=()
# ended RUN STATUS: shows a suite's output and counts its checks.
ended() {
    local run=$1 status=$2 log=$logs/$1 good=0 bad=0 seconds=$((SECONDS - started[$1]))
    if [[ $(tail -n1 "$log") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        good=${BASH_REMATCH[1]} bad=${BASH_REMATCH[2]}
    else
        status=${status/#0/without a count}
    fi
    if [ "$bad" -eq 0 ] && [ "$status" != 0 ]; then
        bad=1
        echo "FAIL it did not end properly (status $status)" >>"$log"
    fi
    printf -- '-- %s (%d s)\n' "${run/ / as }" "$seconds"
    cat "$log"
    ends+=("$seconds $run $good $bad")
    passed=$((passed + good)) failed=$((failed + bad))
    [ "$bad" -eq 0 ] || remember_failures "$run" "$log"
}

# remember_failures RUN LOG: records what failed, and how to run that suite alone.
remember_failures() {
    local suite=${1% *} actor=${1#* } line
    while read -r line; do failures+=("FAIL $suite: ${line#FAIL }"); done < <(grep '^FAIL ' "$2")
    failures+=("     again: ${settings}tests/e2e/run.sh --as $actor $suite")
}

# summary: prints a table of all runs in three columns, the longest first, and the failures again.
summary() {
    [ ${#ends[@]} -eq 0 ] || printf '%s\n' "${ends[@]}" | sort -rn | awk '
        { cell[NR] = sprintf("%4d s  %-17s %3d%s", $1, $2 " " $3, $4, $5 ? " and " $5 " FAILED" : "") }
        END {
            rows = int((NR + 2) / 3)
            for (i = 1; i <= rows; i++) printf "%-40s %-40s %s\n", cell[i], cell[i + rows], cell[i + 2 * rows]
        }'
    [ ${#failures[@]} -eq 0 ] || printf '%s\n' "${failures[@]}"
}

# await_one: waits until one of the running suites ends.
await_one() {
    local pid status=0
    wait -n -p pid || status=$?
    ended "${running[$pid]}" "$status"
    unset "running[$pid]"
}

# lacks NAME [KIND]: prints what the suite needs but cannot get, with the reason.
lacks() {
    local kind word
    for kind in ${2:-tools files}; do
        for word in $(words "$kind" "$1"); do
            provide "$kind" "$word" >/dev/null || { echo "$word: $(tail -n1 "$logs/$kind-$word")" && return; }
        done
    done
}

if [ -n "$fetch_only" ]; then
    # Tools are built, files are downloaded and unpacked: beside one another.
    for kind in tools files; do
        for name in "${names[@]}"; do lacks "$name" "$kind"; done >"$logs/lacks.$kind" &
    done
    wait
    cat "$logs"/lacks.*
    [ -z "$(cat "$logs"/lacks.*)" ]
    exit
fi

# The runs, "NAME ACTOR" each, the longest first.
mapfile -t names < <(for name in "${names[@]}"; do echo "$(words seconds "$name") $name"; done | sort -k 1,1rn -s | sed 's/.* //')
runs=()
for name in "${names[@]}"; do
    lacks "$name" >"$logs/lacks"
    for actor in $(words 'runs as' "$name"); do
        [ -z "$only_as" ] || [ "$only_as" = "$actor" ] || continue
        if [ -s "$logs/lacks" ]; then
            failures+=("FAIL $name as $actor cannot run: it needs $(cat "$logs/lacks")")
            echo "${failures[-1]}"
            failed=$((failed + 1))
        else
            runs+=("$name $actor")
        fi
    done
done

declare -A started=()
for run in ${runs[@]+"${runs[@]}"}; do
    while [ ${#running[@]} -ge "$jobs" ]; do await_one; done
    started[$run]=$SECONDS
    # shellcheck disable=SC2086 # two words
    setpriv --pdeathsig TERM bash "$ROOT/tests/e2e/suite.sh" $run >"$logs/$run" 2>&1 </dev/null &
    running[$!]=$run
done
while [ ${#running[@]} -gt 0 ]; do await_one; done
summary
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
