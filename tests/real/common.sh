# shellcheck shell=bash
# What the parts of scripts/real share. Sourced by each.
# shellcheck source=tests/e2e/checks.sh
. "$(dirname "${BASH_SOURCE[0]}")/../e2e/checks.sh"

# environment NAME: a small one, mounted, as $ENV; $WORK is a directory in it, $EXT4 one on ext4.
environment() {
    ENV=$1
    WORK=$MOUNTS/$ENV/srv/work
    EXT4=$PLAIN/work
}
make_environment() {
    mounted_fixture "$TMPDIR/fixture"
    mkdir "$WORK" "$EXT4"
}

# on_both FUNCTION [ARGUMENT...]: with a directory on ext4, and with one in the mount.
on_both() {
    local function=$1
    shift
    "$function" "$EXT4" "$@"
    "$function" "$WORK" "$@"
}

# kill_server: as kill -9 does, and waits for its end.
kill_server() {
    local server
    server=$(server_of "$ENV")
    kill -KILL "$server"
    until_true gone "$server"
}

# remounted: the environment, unmounted and mounted again.
remounted() {
    until_true karapace umount "$ENV"
    karapace mount "$ENV"
}

is_whole() {
    until_true karapace umount "$ENV"
    karapace verify-store
}
