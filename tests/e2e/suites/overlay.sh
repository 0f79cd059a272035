#!/usr/bin/env bash
# Builds on the kernel's overlayfs: the layer is what a plain session makes; where overlayfs is missing or refuses.
# runs as: root user
# files: MINBASE
# seconds: 60
. "$(dirname "$0")/../checks.sh"
. "$(dirname "$0")/../repository.sh"
. "$(dirname "$0")/../changes.sh"
PLAIN_STORE=$TMPDIR/plain

# /opt/mix/version is the package's.
MIX="$(changes /opt/mix)
ln /opt/mix/version /opt/mix/linked"

setup() {
    mkdir -p "$PROJECT" "$CHANGED/etc/apt" "$CHANGED/opt/base" "$REPO"
    echo base >"$CHANGED/opt/base/one"
    ln "$CHANGED/opt/base/one" "$CHANGED/opt/base/two"
    package mix 1.0 0 "$MIX"
    package link 1.0 0 'echo changed >>/opt/base/one'
    package node 1.0 0 'chown 33:4 /srv/device'
    index
    serve "$REPO"
    echo "deb [trusted=yes] http://127.0.0.1:$(cat "$TMPDIR/port") ./" >"$CHANGED/etc/apt/sources.list"
    make_image
    mkdir -p "$TMPDIR/small/etc"
    karapace --store "$PLAIN_STORE" import "$TMPDIR/small" --name small
    # Each environment's directory inherits it, and an overlay's upper would show it.
    setfacl -d -m u:0:rwx "$PLAIN_STORE/env"
}
# plainly BUILD-OPTION...: builds in a store that is not suitable for overlayfs.
plainly() {
    build --store "$PLAIN_STORE" build -v "$@" 2>"$TMPDIR/said" || { cat "$TMPDIR/said"; return 1; }
    has 'not with overlayfs' <"$TMPDIR/said"
}
# fast BUILD-OPTION...: builds with overlayfs.
fast() {
    build build -v "$@" 2>"$TMPDIR/said" || { cat "$TMPDIR/said"; return 1; }
    has 'INFO with overlayfs' <"$TMPDIR/said"
}

says_which_way() {
    manifest mix
    fast --name fast
    plainly --name plain
}
# what_it_is ENV STORE FILE: writes a line for each entry: all that is kept of it but the times.
what_it_is() {
    karapace --store "$2" export "$1" -o "$TMPDIR/out.tar"
    # Times of the build are in them.
    python3 "$(dirname "$0")/../exported.py" "$TMPDIR/out.tar" 'var/log/|var/cache/ldconfig/|etc/ld.so.cache|var/lib/dpkg/status-old' >"$3"
}
is_the_same() {
    what_it_is fast "$STORE" "$TMPDIR/fast.list"
    what_it_is plain "$PLAIN_STORE" "$TMPDIR/plain.list"
    wc -l <"$TMPDIR/fast.list"
    has 'opt/mix/.wh.version' <"$TMPDIR/fast.list"
    diff "$TMPDIR/plain.list" "$TMPDIR/fast.list"
    karapace diff --base fast | has 'D /usr/bin/tac'
    karapace verify-store
    equal "objects that others could write" "" "$(find "$STORE/store/objects" -type f ! -perm 0444)"
    equal "objects of others" "" "$(find "$STORE/store/objects" ! -user "$(id -u)")"
}
nothing_is_left() {
    equal "directories" 1 "$(find "$STORE/env" -mindepth 1 -maxdepth 1 | wc -l)"
    equal overlays "" "$(find "$STORE/env" -name overlay)"
    equal intents "" "$(ls "$STORE/store/wal")"
}
# The same names, one inode before and two after: the only thing in which the layers differ.
breaks_links_of_the_base() {
    manifest link
    fast --name linked
    plainly --name linked
    equal "changed by overlayfs" "base changed|base" \
        "$(karapace exec linked -- sh -c 'echo $(cat /opt/base/one)"|"$(cat /opt/base/two)')"
    equal "changed plainly" "base changed|base changed" \
        "$(karapace --store "$PLAIN_STORE" exec linked -- sh -c 'echo $(cat /opt/base/one)"|"$(cat /opt/base/two)')"
    karapace destroy -y linked
}
devices_of_the_base() {
    manifest node
    build build -v --name node 2>"$TMPDIR/said"
    cat "$TMPDIR/said"
    [ "$ACTOR" = root ] || has 'installing again, more slowly, without it' <"$TMPDIR/said"
    equal owner "33 4 character special file" "$(karapace exec node -- stat -c '%u %g %F' /srv/device)"
    karapace destroy -y node
    nothing_is_left
}

need "a Debian with a local package repository, and a store that does not suit overlayfs" setup
need "a build goes to overlayfs, or to a plain session where that is impossible; -v says which" says_which_way
check "the layer is the same either way" is_the_same
check "nothing is left of the overlay" nothing_is_left
check "a change to one name of a hard link of the base leaves the other" breaks_links_of_the_base
check "what overlayfs refuses is done without it" devices_of_the_base
finish_suite
