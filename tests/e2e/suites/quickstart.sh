#!/usr/bin/env bash
# scripts/quickstart does what README says, and again when run again.
# runs as: root
. "$(dirname "$0")/../checks.sh"
ENV=quickstart
DIR=$MOUNTS/$ENV

# The toolchain and what is built already are the machine's; the home directory is the sandbox's.
quickstart() {
    env "CARGO_HOME=${CARGO_HOME:-$REAL_HOME/.cargo}" "RUSTUP_HOME=${RUSTUP_HOME:-$REAL_HOME/.rustup}" \
        "PATH=${CARGO_HOME:-$REAL_HOME/.cargo}/bin:$PATH" "$REPOSITORY/scripts/quickstart" >"$TMPDIR/quickstart.out" 2>&1 ||
        { cat "$TMPDIR/quickstart.out"; return 1; }
    cat "$TMPDIR/quickstart.out"
    mounted "$DIR"
    grep -q '^ID=' "$DIR/etc/os-release"
    # Each step with its time.
    [ "$(grep -cE '[0-9]+\.[0-9]+ s$' "$TMPDIR/quickstart.out")" -ge 8 ]
}
again() {
    echo mine >"$DIR/root/mine"
    quickstart
    equal "work between two runs" mine "$(cat "$DIR/root/mine")"
    karapace umount "$ENV"
    quickstart
}

need "scripts/quickstart" quickstart
check "again, mounted and not mounted: nothing is lost" again
finish_suite
