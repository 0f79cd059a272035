# shellcheck shell=bash
# Shared by the scripts: paths, messages, errors. Sourced, never run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly ROOT
# Cargo's build directory; cargo itself reads this variable too.
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
readonly TARGET

# Prints a message for people on stderr; stdout is for data only.
say() { printf '%s\n' "$*" >&2; }

# Exits with a reason and what to do next.
die() {
    say "error: $*"
    exit 1
}

# Seconds since the epoch with milliseconds.
now() { date +%s.%3N; }

# Runs a command as root: directly, or through sudo.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root and there is no sudo; as root, run: $*"
    fi
}
