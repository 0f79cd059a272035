# shellcheck shell=bash
# Shared by the scripts: where things are, how they speak, how they fail. Sourced, never run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly ROOT
# Where cargo builds; honoured by cargo itself too.
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
readonly TARGET

# Says something to the person; data alone goes to stdout.
say() { printf '%s\n' "$*" >&2; }

# Gives up with a reason and what to do next.
die() {
    say "error: $*"
    exit 1
}

# Seconds since the epoch with milliseconds.
now() { date +%s.%3N; }

# Runs a command as root: as it is, or through sudo.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root and there is no sudo; as root, run: $*"
    fi
}
