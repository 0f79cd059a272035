#!/usr/bin/env bash
# Sessions that share a directory of the host which contains the store or the runtime directory: neither can be seen from
# inside, and their sockets do not answer (hostile/connect.c).
# runs as: root user
# files: MINBASE
. "$(dirname "$0")/../checks.sh"
ENV=guest
OTHER=other
PROJECT=$(mktemp -d /tmp/karapace-shares.XXXXXX)
trap 'rm -rf "$PROJECT"' EXIT
cd "$PROJECT" || exit 1
# As some have it: below the home directory.
export XDG_RUNTIME_DIR=$HOME/run
install -d -m 0700 "$XDG_RUNTIME_DIR" "$HOME/bin"

setup() {
    gcc -O2 -static -Wall -Wextra -Werror -o "$HOME/bin/connect" "$SCRATCH/tree/e2e/hostile/connect.c"
    gcc -O2 -static -Wall -Wextra -Werror -o "$HOME/bin/writable" "$SCRATCH/tree/e2e/hostile/writable.c"
    cp "$HOME/bin/connect" .
    cp "$(command -v karapace)" "$HOME/bin/karapace"
    ln -s "$STORE" "$HOME/link"
    karapace import "$MINBASE_TAR" --name "$ENV"
    karapace clone --name "$OTHER" "$ENV"
    # Another environment that is served, and whose socket is there all the time.
    karapace mount "$OTHER"
    # What others listen on in the home directory may be reached (docs/SECURITY.md): it shows that sockets are found.
    python3 -c 'import socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.bind("beside.sock")
s.listen(16)
while True:
    c, _ = s.accept()
    c.recv(100)
    c.sendall(b"beside\n")
    c.close()' >/dev/null 2>&1 &
    until_true test -S beside.sock
    until_true asks_outside
}
# The owner, outside: the program that asks gets its answers.
asks_outside() {
    "$HOME/bin/connect" "$STORE" >"$TMPDIR/outside"
    grep -q '^answer .*/control.sock 0 {"status"' "$TMPDIR/outside"
    grep -q '^answer .*/control.sock .*{"entrance"' "$TMPDIR/outside"
}

# unanswered FILE: no socket of karapace's has answered, but with a refusal.
unanswered() {
    grep -q '^done ' "$1" || { cat "$1"; return 1; }
    grep '^answer ' "$1" | grep -v '^answer [^ ]* 0 {"failed"' | grep -E '/control\.sock |entrance' >"$TMPDIR/answers" || true
    [ ! -s "$TMPDIR/answers" ] || {
        echo "$(wc -l <"$TMPDIR/answers") answers; some of them:"
        head -n 4 "$TMPDIR/answers" | sed 's/\(control.sock.\{100\}\).*/\1.../'
        return 1
    }
}

# hidden STORE RUNTIME [EXEC-ARGUMENT...] -- : neither shows anything of what it has outside.
hidden() {
    local store=$1 runtime=$2 name
    shift 2
    karapace exec "$@" sh -c 'ls -A "$1" 2>/dev/null || true' - "$store" >"$TMPDIR/seen"
    for name in env store; do
        if grep -x "$name" "$TMPDIR/seen"; then wrong "$store is seen inside: $(xargs <"$TMPDIR/seen")"; fi
    done
    karapace exec "$@" sh -c 'ls -A "$1/karapace" 2>/dev/null || true' - "$runtime" >"$TMPDIR/seen"
    if [ -s "$TMPDIR/seen" ]; then wrong "the mounts of sessions are seen inside: $(xargs <"$TMPDIR/seen")"; fi
}

# seen_at_home ENV MODE, and so are the next.
seen_at_home() {
    hidden "$STORE" "$XDG_RUNTIME_DIR" --home "$2" "$1" --
    hidden "$HOME/link" "$XDG_RUNTIME_DIR" --home "$2" "$1" --
    # The rest is there.
    karapace exec --home "$2" "$1" -- test -x "$HOME/bin/connect"
    # And what is covered cannot be written into either.
    if karapace exec --home "$2" "$1" -- sh -c 'echo x >"$1/written"' - "$STORE" 2>/dev/null; then
        [ ! -e "$STORE/written" ] || wrong "written into the store"
    fi
}
asked_at_home() {
    karapace exec --home "$2" "$1" -- "$HOME/bin/connect" "$HOME" "$STORE"/env/*/control.sock >"$TMPDIR/asked"
    unanswered "$TMPDIR/asked"
}
# Root inside can unmount what covers the store, so the server also checks who asks.
asked_uncovered() {
    karapace exec --home "$2" "$1" -- sh -c 'umount -l "$1"; umount -l "$2"; umount -l "$3/karapace"; shift 3; exec "$@"' - \
        "$STORE" "$STORE/env" "$XDG_RUNTIME_DIR" "$HOME/bin/connect" "$HOME" "$STORE"/env/*/control.sock >"$TMPDIR/asked" 2>/dev/null
    unanswered "$TMPDIR/asked"
}
# Root inside can mount and change its own mounts, but not this one.
stays_read_only() {
    karapace exec --home ro "$1" -- sh -c '
        touch "$1/written" && exit 1
        mount -o remount,bind,rw "$1"
        mount -o remount,rw "$1"
        "$1/bin/writable" "$1" /mnt
        mount --rbind "$1" /mnt && mount -o remount,bind,rw /mnt
        touch "$1/written" /mnt/written' - "$HOME" >"$TMPDIR/tried" 2>&1 || true
    if [ -e "$HOME/written" ]; then wrong "the real home was written to"; fi
    grep -qx 'done' "$TMPDIR/tried"
    if grep 'written by' "$TMPDIR/tried"; then wrong "it was written to by another mount"; fi
    grep -qi 'not permitted\|denied\|read-only' "$TMPDIR/tried"
    # Without this option mounts can be changed as usual.
    karapace exec "$1" -- sh -c 'mount -t tmpfs none /mnt && mount -o remount,ro /mnt && ! touch /mnt/x'
}
control_directory() {
    local before after
    before=$(inspect "$OTHER" 'd["head"]')
    karapace exec --home share "$1" -- sh -c 'cat "$1/.karapace/status" 2>/dev/null; echo "commit from-inside" >"$1/.karapace/ctl"' - \
        "$MOUNTS/$OTHER" >"$TMPDIR/status" 2>/dev/null || true
    after=$(inspect "$OTHER" 'd["head"]')
    equal "head of another environment" "$before" "$after"
    equal "status of another environment" "" "$(cat "$TMPDIR/status")"
}
nested() {
    local status=0 command
    for command in "inspect $OTHER" "exec $OTHER -- true" "umount $OTHER" "diff $OTHER" "commit $OTHER" "destroy -y $OTHER"; do
        status=0
        # shellcheck disable=SC2086 # several words
        karapace exec --home share "$1" -- timeout 30 "$HOME/bin/karapace" $command >"$TMPDIR/nested" 2>&1 || status=$?
        [ "$status" -ne 0 ] || wrong "karapace $command works inside: $(head -n 2 "$TMPDIR/nested")"
        [ "$status" -ne 124 ] || wrong "karapace $command hangs inside"
        [ -s "$TMPDIR/nested" ] || wrong "karapace $command fails inside without a word"
        if grep 'panicked at' "$TMPDIR/nested"; then wrong "karapace $command panics inside"; fi
    done
    mounted "$MOUNTS/$OTHER"
    asks_outside
}

# above ENV STORE RUNTIME INSIDE: with the manifest here, which shares a directory above the store (on the host) as INSIDE.
above() (
    local env=$1 deep_store=$2 inside=$4
    export XDG_RUNTIME_DIR=$3
    karapace() { command karapace --store "$deep_store" "$@"; }
    install -d -m 0700 "$XDG_RUNTIME_DIR"
    karapace build --name "$env" >/dev/null 2>&1
    hidden "$inside/store" "$inside/run" "$env" --
    karapace exec "$env" -- sh -c 'exec /srv/data/connect /srv/data "$1"/store/env/*/control.sock' - "$inside" >"$TMPDIR/asked"
    unanswered "$TMPDIR/asked"
    grep -q '^answer .*/beside.sock 0 beside' "$TMPDIR/asked" || { cat "$TMPDIR/asked"; wrong "no socket is found"; }
)
manifest() { printf '%s\n' 'manifest_version = 1' '[base]' "image = \"$MINBASE_TAR\"" '[mounts]' "data = \"$1\"" >karapace.toml; }
absolute() {
    manifest "$PROJECT:/srv/data"
    above absolute "$PROJECT/deep/store" "$PROJECT/deep/run" /srv/data/deep
}
relative() {
    manifest "./:/srv/data"
    above relative "$PROJECT/deep/store" "$PROJECT/deep/run" /srv/data/deep
}

# A directory of the store is shared with nobody, or shows nothing.
below() {
    local status dir number=0
    for dir in "" /env /store; do
        status=0 number=$((number + 1))
        manifest "./deep/store$dir:/srv/data"
        karapace --store "$PROJECT/deep/store" build --name "below$number" >/dev/null 2>"$TMPDIR/said" || status=$?
        [ "$status" -ne 0 ] ||
            karapace --store "$PROJECT/deep/store" exec "below$number" -- ls -A /srv/data >"$TMPDIR/listed" 2>"$TMPDIR/said" || status=$?
        if [ "$status" -eq 0 ]; then
            equal "what ./deep/store$dir shows" "" "$(cat "$TMPDIR/listed")"
        else
            grep -q . "$TMPDIR/said"
            if grep 'panicked at' "$TMPDIR/said"; then wrong "panicked"; fi
        fi
    done
}

need "environments, and a socket that answers outside" setup
check "--home ro: neither the store nor the runtime directory is seen" seen_at_home "$ENV" ro
check "--home ro: no socket of karapace's answers" asked_at_home "$ENV" ro
check "--home ro: no socket answers after root inside unmounts the cover" asked_uncovered "$ENV" ro
check "--home share: neither the store nor the runtime directory is seen" seen_at_home "$ENV" share
check "--home share: no socket of karapace's answers" asked_at_home "$ENV" share
check "--home share: no socket answers after root inside unmounts the cover" asked_uncovered "$ENV" share
check "--home ro: root inside cannot make it writable" stays_read_only "$ENV"
check "--home share: the control directory of another mount" control_directory "$ENV"
check "--home share: karapace inside fails clearly" nested "$ENV"
check "[mounts] of a directory above the store, absolute" absolute
check "[mounts] of a directory above the store, relative" relative
check "[mounts] of a directory in the store" below
need "a host mount" karapace mount "$ENV"
check "on a host mount, --home ro: neither is seen" seen_at_home "$ENV" ro
check "on a host mount, --home ro: no socket answers" asked_at_home "$ENV" ro
check "on a host mount, --home ro: no socket answers after the cover is unmounted" asked_uncovered "$ENV" ro
check "on a host mount, --home share: neither is seen" seen_at_home "$ENV" share
check "on a host mount, --home share: no socket answers" asked_at_home "$ENV" share
check "on a host mount, --home share: no socket answers after the cover is unmounted" asked_uncovered "$ENV" share
check "on a host mount: the control directory of another mount" control_directory "$ENV"
check "on a host mount: karapace inside fails clearly" nested "$ENV"
check "the store is intact" karapace verify-store
finish_suite
