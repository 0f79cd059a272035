#!/usr/bin/env bash
# Runs the end-to-end suites: tests/e2e/run.sh [--as root|user] [SUITE...]
#
# A suite is tests/e2e/suites/NAME.sh, or NAME.sh in KARAPACE_SUITES; its line `# runs as: root user` says as whom it is run, `# tools: NAME...` what it
# needs that is no Debian package (scripts/lib/tools.sh), and `# files: NAME...` which files from elsewhere (FETCH below). A
# suite that lacks one of them fails, and the others run. Each run has a process, mount and user table of its own
# (suite.sh, sandbox.sh): whatever a suite starts or mounts is gone when it ends, also when this script is killed, and
# nothing of it is seen outside. Root is needed for that. So several run side by side; what each said is shown when it has
# ended.
#
# KARAPACE_BIN   the program to test; target/release/karapace, built if need be, by default
# KARAPACE_SUITES
#                another directory of suites below tests/ (tests/real/suites: scripts/real)
# KARAPACE_JOBS  how many suites run side by side; as many as there are processors by default
# KARAPACE_FSX_OPERATIONS, KARAPACE_FSX_SEEDS
#                how much fsx does, and from which seeds (suites/fsx.sh)
# KARAPACE_LIMIT_SECONDS
#                how long a suite may take; 1200 by default
# KARAPACE_KEEP  when set, the scratch directories of failed suites stay
# TMPDIR         where the scratch directories go (/var/tmp by default); some 15 GB are needed for each suite that runs
#
# Ends with `N passed, N failed`.
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

only_as=""
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
if [ -z "${KARAPACE_BIN:-}" ]; then
    (cd "$ROOT" && cargo build --release --quiet) || die "the release build failed"
    KARAPACE_BIN=$TARGET/release/karapace
fi
export KARAPACE_BIN TOOLS SUITES REPOSITORY=$ROOT
jobs=${KARAPACE_JOBS:-$(nproc)}

logs=$(mktemp -d)
declare -A running=()
tidy() {
    [ ${#running[@]} -eq 0 ] || kill "${!running[@]}" 2>/dev/null
    wait
    rm -rf "$logs"
}
trap tidy EXIT
trap 'exit 130' INT TERM HUP

# The files from elsewhere that suites may need: the variable in which a suite finds the path, and what fetches it.
declare -A FETCH=([MINBASE]=rootfs_minbase [DEV]=rootfs_dev [MANAGERS]=rootfs_managers [DEBS]=packages_debs [PATCH]="packages_source patch"
    [GIT]="packages_built git" [PNPM]=packages_pnpm [RELEASES]=apt_releases)

# words KEY NAME: what the line `# KEY: ...` of a suite says.
words() { sed -n "s/^# $1: //p" "$SUITES/$2.sh"; }

# provide KIND WORD: fetches or installs it, once for all suites; false when it cannot be had, with the reason in $logs.
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
# ended RUN STATUS: shows what a suite said, and counts.
ended() {
    local run=$1 status=$2 log=$logs/$1 line
    printf -- '-- %s (%d s)\n' "${run/ / as }" $((SECONDS - started[$run]))
    cat "$log"
    line=$(tail -n1 "$log")
    if [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        passed=$((passed + BASH_REMATCH[1]))
        failed=$((failed + BASH_REMATCH[2]))
        [ "$status" -eq 0 ] || [ "${BASH_REMATCH[2]}" -gt 0 ] || failed=$((failed + 1))
    else
        echo "FAIL ${run/ / as } did not end properly (status $status)"
        failed=$((failed + 1))
    fi
}

# await_one: waits until one of the running suites ends.
await_one() {
    local pid status=0
    wait -n -p pid || status=$?
    ended "${running[$pid]}" "$status"
    unset "running[$pid]"
}

# lacks NAME: prints what the suite needs and cannot have, with the reason.
lacks() {
    local kind word
    for kind in tools files; do
        for word in $(words "$kind" "$1"); do
            provide "$kind" "$word" >/dev/null || { echo "$word: $(tail -n1 "$logs/$kind-$word")" && return; }
        done
    done
}

# "NAME ACTOR" each.
runs=()
for name in "${names[@]}"; do
    lacks "$name" >"$logs/lacks"
    for actor in $(words 'runs as' "$name"); do
        [ -z "$only_as" ] || [ "$only_as" = "$actor" ] || continue
        if [ -s "$logs/lacks" ]; then
            echo "FAIL $name as $actor cannot run: it needs $(cat "$logs/lacks")"
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
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
