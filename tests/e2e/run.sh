#!/usr/bin/env bash
# Runs the end-to-end suites: tests/e2e/run.sh [--as root|user] [SUITE...]
#
# A suite is tests/e2e/suites/NAME.sh; its line `# runs as: root user` says as whom it is run, and `# tools: NAME...` what
# it needs that is no Debian package (scripts/lib/tools.sh). Each run has a process, mount and user table of its own
# (suite.sh, sandbox.sh): whatever a suite starts or mounts is gone when it ends, also when this script is killed, and
# nothing of it is seen outside. Root is needed for that. So several run side by side; what each said is shown when it has
# ended.
#
# KARAPACE_BIN   the program to test; target/release/karapace, built if need be, by default
# KARAPACE_JOBS  how many suites run side by side; as many as there are processors by default
# KARAPACE_FSX_OPERATIONS, KARAPACE_FSX_SEEDS
#                how much fsx does, and from which seeds (suites/fsx.sh)
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

only_as=""
if [ "${1:-}" = --as ]; then
    only_as=${2:?--as root or --as user}
    shift 2
fi
[ "$(id -u)" -eq 0 ] || die "run the end-to-end suites as root: they make namespaces, mounts and a user of their own"
[ -c /dev/fuse ] || die "/dev/fuse is missing: nothing can be mounted here (modprobe fuse)"

names=("$@")
[ $# -gt 0 ] || mapfile -t names < <(cd "$ROOT/tests/e2e/suites" && printf '%s\n' *.sh | sed 's/\.sh$//')
# "NAME ACTOR" each.
runs=()
for name in "${names[@]}"; do
    suite=$ROOT/tests/e2e/suites/$name.sh
    [ -f "$suite" ] || die "there is no suite $name; there are: $(cd "$ROOT/tests/e2e/suites" && echo *.sh)"
    read -ra tools < <(sed -n 's/^# tools: //p' "$suite")
    for tool in ${tools[@]+"${tools[@]}"}; do ensure_tool "$tool"; done
    read -ra actors < <(sed -n 's/^# runs as: //p' "$suite")
    for actor in "${actors[@]}"; do
        [ -n "$only_as" ] && [ "$only_as" != "$actor" ] || runs+=("$name $actor")
    done
done
if [ -z "${KARAPACE_BIN:-}" ]; then
    (cd "$ROOT" && cargo build --release --quiet) || die "the release build failed"
    KARAPACE_BIN=$TARGET/release/karapace
fi
MINBASE=$(rootfs_minbase) || exit 1
DEV=$(rootfs_dev) || exit 1
DEBS=$(packages_debs) || exit 1
PATCH=$(packages_patch) || exit 1
export KARAPACE_BIN MINBASE DEV DEBS PATCH TOOLS REPOSITORY=$ROOT
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

declare -A started=()
for run in "${runs[@]}"; do
    while [ ${#running[@]} -ge "$jobs" ]; do await_one; done
    started[$run]=$SECONDS
    # shellcheck disable=SC2086 # two words
    setpriv --pdeathsig TERM bash "$ROOT/tests/e2e/suite.sh" $run >"$logs/$run" 2>&1 </dev/null &
    running[$!]=$run
done
while [ ${#running[@]} -gt 0 ]; do await_one; done
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
