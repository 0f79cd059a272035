#!/usr/bin/env bash
# Runs the end-to-end suites: tests/e2e/run.sh [--as root|user] [SUITE...]
#
# A suite is tests/e2e/suites/NAME.sh; its line `# runs as: root user` says as whom it is run. Each run has a process,
# mount and user table of its own (sandbox.sh): whatever a suite starts or mounts is gone when it ends, also when this
# script is killed, and nothing of it is seen outside. Root is needed for that.
#
# KARAPACE_BIN   the program to test; target/release/karapace, built if need be, by default
# KARAPACE_KEEP  when set, the scratch directories of failed suites stay
# TMPDIR         where the scratch directories go (/var/tmp by default); some 15 GB are needed
#
# Ends with `N passed, N failed`.
set -uo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "$0")/../../scripts/lib/common.sh"
# shellcheck source=scripts/lib/rootfs.sh
. "$ROOT/scripts/lib/rootfs.sh"

# A suite that takes longer hangs.
LIMIT_SECONDS=1200

only_as=""
if [ "${1:-}" = --as ]; then
    only_as=${2:?--as root or --as user}
    shift 2
fi
[ "$(id -u)" -eq 0 ] || die "run the end-to-end suites as root: they make namespaces, mounts and a user of their own"
[ -c /dev/fuse ] || die "/dev/fuse is missing: nothing can be mounted here (modprobe fuse)"

names=("$@")
[ $# -gt 0 ] || mapfile -t names < <(cd "$ROOT/tests/e2e/suites" && printf '%s\n' *.sh | sed 's/\.sh$//')
if [ -z "${KARAPACE_BIN:-}" ]; then
    (cd "$ROOT" && cargo build --release --quiet) || die "the release build failed"
    KARAPACE_BIN=$TARGET/release/karapace
fi
minbase=$(rootfs_minbase) || exit 1
dev=$(rootfs_dev) || exit 1

scratch=""
tidy() {
    [ -z "$scratch" ] || rm -rf --one-file-system "$scratch"
    scratch=""
}
trap tidy EXIT
trap 'exit 130' INT TERM HUP

passed=0 failed=0
# run_suite NAME root|user
run_suite() {
    local name=$1 actor=$2 line status=0 log
    scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/karapace-e2e.XXXXXX")
    chmod 0755 "$scratch"
    log=$scratch/log
    mkdir "$scratch/bin" "$scratch/rootfs" "$scratch/tree"
    cp "$KARAPACE_BIN" "$scratch/bin/karapace"
    # Where the suite's user can read them, without a copy.
    : >"$scratch/rootfs/minbase.tar"
    : >"$scratch/rootfs/dev.tar"
    cp -r "$ROOT/tests/e2e" "$scratch/tree/e2e"
    printf -- '-- %s as %s\n' "$name" "$actor"
    # Killed with this script; and all that is in its process namespace with it.
    setpriv --pdeathsig KILL timeout --kill-after=10 "$LIMIT_SECONDS" \
        unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
        env SCRATCH="$scratch" ACTOR="$actor" MINBASE="$minbase" DEV="$dev" REPOSITORY="$ROOT" \
        bash "$scratch/tree/e2e/sandbox.sh" "$name" 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    line=$(tail -n1 "$log")
    if [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        passed=$((passed + BASH_REMATCH[1]))
        failed=$((failed + BASH_REMATCH[2]))
        [ "$status" -eq 0 ] || [ "${BASH_REMATCH[2]}" -gt 0 ] || failed=$((failed + 1))
    else
        echo "FAIL $name as $actor did not end properly (status $status)"
        failed=$((failed + 1))
        status=1
    fi
    if [ "$status" -ne 0 ] && [ -n "${KARAPACE_KEEP:-}" ]; then
        say "kept: $scratch"
        scratch=""
    fi
    tidy
}

for name in "${names[@]}"; do
    suite=$ROOT/tests/e2e/suites/$name.sh
    [ -f "$suite" ] || die "there is no suite $name; there are: $(cd "$ROOT/tests/e2e/suites" && echo *.sh)"
    read -ra actors < <(sed -n 's/^# runs as: //p' "$suite")
    for actor in "${actors[@]}"; do
        [ -z "$only_as" ] || [ "$only_as" = "$actor" ] || continue
        run_suite "$name" "$actor"
    done
done
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
