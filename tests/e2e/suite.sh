#!/usr/bin/env bash
# Runs one suite in a process, mount and user table of its own: tests/e2e/suite.sh NAME root|user, called by run.sh, which
# documents the variables. The suite's output goes to stdout; the exit status is the suite's.
set -uo pipefail
name=$1 actor=$2
: "${KARAPACE_BIN:?}" "${TOOLS:?}" "${REPOSITORY:?}" "${SUITES:?}"

# A suite that takes longer counts as hanging.
LIMIT_SECONDS=${KARAPACE_LIMIT_SECONDS:-1200}

scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/karapace-e2e.XXXXXX") || exit 1
child=""
tidy() {
    [ -z "$child" ] || { kill -KILL "$child" && wait "$child"; } 2>/dev/null
    [ -n "$scratch" ] || return
    # The processes in its namespace may take a moment to end.
    for _ in {1..600}; do
        rm -rf --one-file-system "$scratch" 2>/dev/null && return
        sleep 0.1
    done
    echo "error: $scratch cannot be removed: see what holds it (fuser -vm), and remove it by hand" >&2
}
trap tidy EXIT
trap 'exit 130' INT TERM HUP

chmod 0755 "$scratch"
mkdir "$scratch/bin" "$scratch/rootfs" "$scratch/tree" "$scratch/debs" "$scratch/sources"
cp "$KARAPACE_BIN" "$scratch/bin/karapace"
read -ra tools < <(sed -n 's/^# tools: //p' "$SUITES/$name.sh")
for tool in ${tools[@]+"${tools[@]}"}; do cp "$TOOLS/$tool" "$scratch/bin/"; done
# Mounted where the suite's user can read them, without a copy.
: >"$scratch/rootfs/minbase.tar"
: >"$scratch/rootfs/dev.tar"
: >"$scratch/rootfs/managers.tar"
mkdir "$scratch/sources"/{patch,git,coreutils,sqlite,pnpm,releases}
cp -r "$REPOSITORY/tests/e2e" "$REPOSITORY/tests/real" "$scratch/tree/"
# Each process is killed with its parent, and everything in the process namespace with unshare.
setpriv --pdeathsig KILL timeout --kill-after=10 "$LIMIT_SECONDS" \
    setpriv --pdeathsig KILL unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
    env SCRATCH="$scratch" ACTOR="$actor" bash "$scratch/tree/e2e/sandbox.sh" "$scratch/tree/${SUITES#"$REPOSITORY/tests/"}/$name.sh" 2>&1 &
child=$!
status=0
wait "$child" || status=$?
child=""
if [ "$status" -ne 0 ] && [ -n "${KARAPACE_KEEP:-}" ]; then
    echo "kept: $scratch" >&2
    scratch=""
fi
exit "$status"
