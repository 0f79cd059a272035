#!/usr/bin/env bash
# System calls that docs/SECURITY.md denies to every session: each is made (hostile/calls.c), as root inside.
# runs as: root user
# files: MINBASE
. "$(dirname "$0")/../checks.sh"
ENV=guest
PROJECT=$(mktemp -d /tmp/karapace-filter.XXXXXX)
trap 'rm -rf "$PROJECT"' EXIT
cd "$PROJECT" || exit 1

setup() {
    gcc -O2 -static -Wall -Wextra -Werror -o "$TMPDIR/calls" "$SCRATCH/tree/e2e/hostile/calls.c"
    printf '%s\n' 'manifest_version = 1' '[base]' "image = \"$MINBASE_TAR\"" >karapace.toml
    karapace build --name "$ENV"
    printf '%s\n' '[runtime]' 'backend = "oci"' >>karapace.toml
    karapace build --name boxed
    for name in "$ENV" boxed; do
        karapace exec "$name" -- sh -c 'cat >/usr/local/bin/calls; chmod 755 /usr/local/bin/calls' <"$TMPDIR/calls"
    done
}

# denied ENV OPTION...: every call of the table is refused.
denied() {
    local env=$1
    shift
    karapace exec "$@" "$env" -- /usr/local/bin/calls >"$TMPDIR/calls.log"
    grep -qx end "$TMPDIR/calls.log" || { cat "$TMPDIR/calls.log"; wrong "did not come to the end"; }
    at_least "calls of the table" 25 "$(grep -c '^denied ' "$TMPDIR/calls.log")"
    cp "$TMPDIR/calls.log" "$TMPDIR/calls.kept"
    grep '^denied ' "$TMPDIR/calls.log" | grep -vE ' (EPERM|ENOSYS)$' >"$TMPDIR/passed" || true
    [ ! -s "$TMPDIR/passed" ] || { cat "$TMPDIR/passed"; return 1; }
}
said() { echo "note: $(sed -n 's/^other //p' "$TMPDIR/calls.log" | tr ' \n' '= ')"; }
first() { denied "$ENV" && said; }
with_a_runtime() { denied boxed && said; }

joining() {
    karapace exec "$ENV" -- sleep 73001 </dev/null >/dev/null 2>&1 &
    # shellcheck disable=SC2064 # this process, now
    trap "kill $!; wait $! || true" EXIT
    until_true pgrep -fx 'sleep 73001'
    denied "$ENV"
    denied "$ENV" --user self
}

on_a_host_mount() {
    karapace mount "$ENV"
    trap 'karapace umount "$ENV"' EXIT
    denied "$ENV"
}

# The table is of calls that do not fail by themselves.
privileged() {
    local name
    karapace exec --privileged "$ENV" -- /usr/local/bin/calls >"$TMPDIR/calls.log"
    for name in keyctl ioctl-TIOCSTI request_key get_mempolicy; do
        if grep -E "^denied $name EPERM$" "$TMPDIR/calls.log"; then wrong "$name fails without a filter too"; fi
    done
}

# SECURITY.md names what is denied; the table has what it names.
every_promise() {
    local word
    for word in acct syslog keyctl mempolicy module kexec swap clock timex quota open_by_handle_at TIOCSTI TIOCLINUX; do
        grep -q "^denied [^ ]*$word" "$TMPDIR/calls.kept" || wrong "no call of the kind $word"
    done
}

need "environments with the table of calls" setup
check "denied in a session that begins" first
check "denied in sessions that join, as root and as oneself" joining
check "denied on a host mount" on_a_host_mount
check "denied with the oci backend" with_a_runtime
check "--privileged lets them through to the kernel" privileged
check "each kind of call is in the table" every_promise
finish_suite
