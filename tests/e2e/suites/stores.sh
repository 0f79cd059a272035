#!/usr/bin/env bash
# Stores with a problem: read-only, full, another user's, incomplete, of another format, used by another host. The message says
# what to do, and nothing is changed.
# runs as: root user
. "$(dirname "$0")/../checks.sh"

BASE=$TMPDIR/base

setup() {
    small_environment "$BASE"
}

# copy_of NAME: a copy of the store, which the case may damage.
copy_of() {
    rm -rf "${TMPDIR:?}/$1"
    cp -a "$STORE" "$TMPDIR/$1"
    export KARAPACE_STORE=$TMPDIR/$1
}

# listing DIRECTORY: all that is in it, to see that nothing changed.
listing() { (cd "$1" && find . -type f ! -name mount.log -printf '%p %s %T@\n' -o -type d ! -path '*/data/*' -printf '%p\n' | sort); }

# In a namespace where the user may mount: the commands of a function on a read-only store.
inside() {
    local map=()
    [ "$ACTOR" = root ] || map=(--user --map-root-user)
    export -f "${@?}" has wrong equal refused says status_of
    unshare "${map[@]}" --mount --propagation private bash -euo pipefail -c "$*"
}

on_a_read_only_file_system() {
    mount --bind "$KARAPACE_STORE" "$KARAPACE_STORE"
    mount -o remount,bind,ro "$KARAPACE_STORE"
    karapace list | has dev
    karapace --json inspect dev | has '"name": *"dev"'
    karapace snapshots dev | has first
    karapace diff dev | has etc/file
    karapace verify-store
    karapace export dev -o "$TMPDIR/exported.tar"
    tar -xOf "$TMPDIR/exported.tar" ./etc/file 2>/dev/null | has two || tar -xOf "$TMPDIR/exported.tar" etc/file | has two
    refused karapace commit dev
    says 'read-only'
    refused karapace rename dev other
    says 'read-only'
    refused karapace import "$BASE" --name more
    says 'read-only'
    refused karapace mount dev
    says 'read-only'
}

read_only() {
    copy_of read-only
    # What a crash left unfinished, and a pin of a dead process: these cannot be removed there.
    echo '{' >"$KARAPACE_STORE/store/wal/.half"
    echo '{' >"$KARAPACE_STORE/store/pins/.half"
    echo '{' >"$KARAPACE_STORE/store/pins/0123456789abcdef0123456789abcdef"
    export BASE
    inside on_a_read_only_file_system
    karapace list | has dev
}

on_a_full_file_system() {
    mkdir -p "$TMPDIR/small"
    mount -t tmpfs -o size=12m,mode=700 tmpfs "$TMPDIR/small"
    export KARAPACE_STORE=$TMPDIR/small/store
    karapace import "$BASE" --name dev
    # No room at all; a file of the store is what makes room again.
    cat /dev/zero >"$TMPDIR/small/filler" 2>/dev/null || true
    head -c 3000000 /dev/urandom >"$TMPDIR/big"
    mkdir -p "$TMPDIR/bigger" && mv "$TMPDIR/big" "$TMPDIR/bigger/"
    refused karapace import "$TMPDIR/bigger" --name more
    says 'no space left'
    says 'free some space'
    karapace list | has dev
    karapace verify-store
    rm "$TMPDIR/small/filler"
    karapace import "$TMPDIR/bigger" --name more
    karapace verify-store
}

full() {
    export BASE
    inside on_a_full_file_system
}

# A lost directory is reported, and not created again as if it had been empty.
parts_are_missing() {
    local gone before
    for gone in store/objects store/layers store/metadata env; do
        copy_of part
        rm -rf "${KARAPACE_STORE:?}/$gone"
        before=$(listing "$KARAPACE_STORE")
        status_of 3 karapace list >"$TMPDIR/refused" 2>&1
        says "$gone is missing"
        says "backup"
        equal "the store without $gone" "$before" "$(listing "$KARAPACE_STORE")"
    done
    for gone in store/staging store/wal store/pins images; do
        copy_of part
        rm -rf "${KARAPACE_STORE:?}/$gone"
        karapace list | has dev
        karapace commit dev >/dev/null
        karapace verify-store
    done
}

versions() {
    local text word
    while read -r text word; do
        copy_of version
        printf '%s' "$text" >"$KARAPACE_STORE/store/version"
        status_of 3 karapace list >"$TMPDIR/refused" 2>&1
        says "$word"
        equal "the version" "$text" "$(cat "$KARAPACE_STORE/store/version")"
    done <<'CASES'
2 use.the.older.karapace.that.wrote.it
4 newer.karapace
xyz is.damaged
CASES
    copy_of version
    rm "$KARAPACE_STORE/store/version"
    status_of 3 karapace list >"$TMPDIR/refused" 2>&1
    says 'an incomplete store'
    echo 3 >"$KARAPACE_STORE/store/version"
    karapace list | has dev
}

places() {
    : >"$TMPDIR/file"
    refused karapace --store "$TMPDIR/file" list
    says 'is not a directory'
    refused env -u HOME -u XDG_DATA_HOME karapace list
    says 'HOME.*--store|--store.*HOME'
    env -u HOME karapace --store "$STORE" list | has dev
    # Longer than the address of a socket may be.
    local long
    long=$TMPDIR/$(printf 'l%.0s' {1..120})/store
    mkdir -p "$long" "$TMPDIR/mnt"
    cp -a "$STORE/." "$long"
    karapace --store "$long" mount dev "$TMPDIR/mnt"
    equal "the file" three "$(cat "$TMPDIR/mnt/etc/file")"
    karapace --store "$long" commit dev >/dev/null
    karapace --store "$long" umount dev
}

# A host marks the store as in use in a file; here the mark is another host's.
another_host() {
    copy_of shared
    local mark=$KARAPACE_STORE/store/.host before
    equal "the mark when nothing runs" "" "$(cat "$mark")"
    echo "host faraway machine 00112233445566778899aabbccddeeff boot 0-1-2" >"$mark"
    before=$(listing "$KARAPACE_STORE")
    karapace list | has dev
    local command server
    for command in "commit dev" "gc" "import $BASE --name more" "mount dev" "rename dev other" "restore dev first"; do
        # shellcheck disable=SC2086 # words
        refused karapace $command
        says 'faraway'
        says "rm $mark"
    done
    equal "the store" "$before" "$(listing "$KARAPACE_STORE")"
    # As it says.
    rm "$mark"
    karapace mount dev "$TMPDIR/mnt"
    [ -s "$mark" ] || wrong "no mark while a mount is served"
    # After a kill, this host's own mark is no obstacle.
    server=$(server_of dev)
    kill -KILL "$server"
    until_true gone "$server"
    umount -l "$TMPDIR/mnt" 2>/dev/null || fusermount3 -uz "$TMPDIR/mnt" 2>/dev/null || fusermount -uz "$TMPDIR/mnt"
    [ -s "$mark" ] || wrong "the mark went with a killed process"
    karapace commit dev >/dev/null
    equal "the mark afterwards" "" "$(cat "$mark")"
}

owners() {
    if [ "$ACTOR" = root ]; then
        copy_of owned
        chown -R tester: "$KARAPACE_STORE"
        refused karapace list
        says 'belongs to tester'
        says '\-\-foreign-store'
        karapace --foreign-store list | has dev
        # A user at root's store.
        chmod 0755 "$TMPDIR" "$HOME"
        chmod 0700 "$STORE"
        mkdir -p "$TMPDIR/open/store"
        cp -a "$STORE/." "$TMPDIR/open/store"
        refused setpriv --reuid=tester --regid=tester --clear-groups "$(command -v karapace)" --store "$TMPDIR/open/store" list
        says 'belongs to root'
        says '\-\-store'
    else
        # A store that everybody can read, but nobody can write.
        [ "$(stat -c %u /usr/share)" = 0 ] || wrong "no directory of root's"
        refused karapace --store /usr/share list
        says 'belongs to root'
    fi
}

# With --store, the variable, and the default; commands that need a store create nothing.
missing_store() {
    local command empty=$TMPDIR/empty typo=$TMPDIR/typo/store
    mkdir "$empty"
    echo mine >"$empty/file"
    for command in list du gc 'gc --dry-run' verify-store 'verify-store --repair' 'inspect dev' 'diff dev' 'snapshots dev' \
        'export dev' 'mount dev' 'mount --all' 'umount dev' 'umount --all' "umount --force $TMPDIR" 'commit dev' 'restore dev base' \
        'clone dev --name two' 'rename dev two' 'freeze dev' 'archive dev' 'destroy dev -y' 'stop dev' 'export-app dev x' \
        "import $BASE --onto dev --name two" '--foreign-store list'; do
        # shellcheck disable=SC2086 # several words
        refused karapace --store "$typo" $command
        says "there is no store at $typo"
        says 'karapace import'
        # shellcheck disable=SC2086 # several words
        KARAPACE_STORE=$empty refused karapace $command
        says "$empty is not a store"
        equal "$command" file "$(ls -A "$empty")"
        [ ! -e "$TMPDIR/typo" ] || wrong "$command made a directory"
    done
    for command in 'exec dev true' 'enter dev'; do
        # shellcheck disable=SC2086 # several words
        status_of 125 karapace --store "$typo" $command
    done
    karapace --store "$typo" doctor || true
    status_of 1 karapace --json --store "$typo" list 2>"$TMPDIR/said"
    has '"kind":"not-found"' <"$TMPDIR/said"
    # The user's default store, which need not exist.
    mkdir "$TMPDIR/newcomer"
    export HOME=$TMPDIR/newcomer
    unset KARAPACE_STORE XDG_DATA_HOME
    equal list '[]' "$(karapace --json list)"
    equal du '[]' "$(karapace --json du)"
    karapace list | has NAME
    karapace gc | has '^0 objects'
    karapace verify-store
    karapace umount --all
    refused karapace inspect dev
    says "there is no store at $HOME/.local/share/karapace"
    equal "the home directory" "" "$(ls -A "$HOME")"
    [ ! -e "$TMPDIR/typo" ] || wrong "something made a directory"
    # Commands that create a store.
    karapace --store "$typo" import "$BASE" --name dev
    karapace --store "$typo" list | has dev
}

# If one sync of the whole file system is not reliable, files are synced one by one, and a remark
# says so.
on_a_fuse_file_system() {
    local through=$TMPDIR/through env
    mkdir -p "$TMPDIR/below" "$through" "$TMPDIR/mnt"
    bindfs --no-allow-other "$TMPDIR/below" "$through"
    export KARAPACE_STORE=$through/store
    karapace import "$BASE" --name dev
    # Warnings do not count, nor does anything else that this machine lacks.
    karapace doctor >"$TMPDIR/refused" 2>&1 || true
    says 'file system.*fuse.*each file is synced separately.*depends on its FUSE server'
    karapace mount dev "$TMPDIR/mnt" 2>"$TMPDIR/refused"
    says "$through/store: on fuse.* each file is synced separately"
    for env in {1..30}; do echo "$env" >"$TMPDIR/mnt/etc/new$env"; done
    karapace commit dev --name many 2>"$TMPDIR/refused"
    says "$through/store: on fuse.* each file is synced separately"
    karapace commit dev 2>"$TMPDIR/refused"
    has "nothing has changed" "$TMPDIR/refused"
    if has "synced" "$TMPDIR/refused"; then wrong "said where nothing was made"; fi
    karapace --quiet umount dev
    karapace --quiet mount dev "$TMPDIR/mnt" 2>"$TMPDIR/refused"
    equal "what --quiet says" "" "$(cat "$TMPDIR/refused")"
    echo later >"$TMPDIR/mnt/etc/file"
    karapace commit dev --name later
    karapace restore dev many
    equal "the file" one "$(cat "$TMPDIR/mnt/etc/file")"
    echo kept >"$TMPDIR/mnt/etc/kept"
    karapace umount dev
    karapace mount dev "$TMPDIR/mnt"
    equal "what was written" "kept 30" "$(cat "$TMPDIR/mnt/etc/kept") $(cat "$TMPDIR/mnt/etc/new30")"
    karapace umount dev
    karapace gc
    karapace verify-store
    karapace destroy dev --snapshots --yes
    umount "$through" 2>/dev/null || fusermount3 -u "$through"
}

# A good file system gets no remark.
on_a_known_file_system() {
    copy_of known
    karapace doctor >"$TMPDIR/refused" 2>&1 || true
    case $(stat -f -c %T "$KARAPACE_STORE") in
    ext2/ext3 | xfs | btrfs) ;;
    *) echo "note: $TMPDIR is on none that is known as good" && return ;;
    esac
    if has "synced separately" "$TMPDIR/refused"; then wrong "doctor warns"; fi
    mkdir -p "$TMPDIR/mnt"
    karapace mount dev "$TMPDIR/mnt" 2>"$TMPDIR/refused"
    echo more >"$TMPDIR/mnt/etc/more"
    karapace commit dev 2>>"$TMPDIR/refused"
    if has "synced" "$TMPDIR/refused"; then wrong "a remark"; fi
    karapace umount dev
}

need "an environment" setup
check "commands that need a store do not create one" missing_store
check "a store on a read-only file system can only be read" read_only
check "a full file system is reported, leaves the store intact, and work continues once there is space" full
check "missing directories are reported, or created again if nothing was lost" parts_are_missing
check "versions: older, newer, garbage, none" versions
check "a file, no HOME, a path longer than a socket's address" places
check "another host is refused by name, and its mark can be removed" another_host
check "another user's store is refused and its owner named, also root's, also to root" owners
check "a store on a FUSE file system works; doctor, mount and commit say what that means" on_a_fuse_file_system
check "a store on ext4, XFS or btrfs gets no remark" on_a_known_file_system
finish_suite
