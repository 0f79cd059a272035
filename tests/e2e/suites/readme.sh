#!/usr/bin/env bash
# What README's tour and docs/GUIDE.md show works as it stands there, line by line, on the image that scripts/quickstart makes.
# runs as: root user
# files: MINBASE
. "$(dirname "$0")/../checks.sh"
DIR=$MOUNTS/dev
WORK=$(mktemp -d /tmp/karapace-readme.XXXXXX)
trap 'rm -rf "$WORK"' EXIT
cd "$WORK" || exit 1

# block PAGE HEADING NUMBER: the lines of a code block below a heading, without remarks.
block() {
    awk -v heading="## $2" -v want="$3" '/^## /{ part = $0 } part != heading { next }
        /^```/ { open = !open; number += open; next } open && number == want' "$REPOSITORY/$1" |
        sed 's/[[:space:]]\{2,\}#.*//; /^$/d'
}

# before LINE, after LINE: what the line takes for granted, and what would be in the way of those after it.
before() {
    case $1 in
    "karapace import "*) ln -s "$MINBASE_TAR" rootfs.tar.xz ;;
    "karapace exec dev -- make "*)
        mkdir -p "$DIR/srv/project" "$DIR/usr/share/applications"
        printf '#!/bin/sh\necho made >made\n' >"$DIR/usr/local/bin/make"
        sed -i '2i cd "$2"' "$DIR/usr/local/bin/make"
        cp "$DIR/usr/local/bin/make" "$DIR/usr/local/bin/gimp"
        chmod +x "$DIR/usr/local/bin/make" "$DIR/usr/local/bin/gimp"
        printf '[Desktop Entry]\nType=Application\nName=Gimp\nExec=gimp %%U\n' >"$DIR/usr/share/applications/gimp.desktop"
        ;;
    "karapace diff dev") echo changed >"$DIR/etc/hostname" ;;
    "karapace restore dev '~1' -- "*) echo other >"$DIR${1##*-- }" && karapace commit dev ;;
    "karapace umount dev") karapace umount --all && karapace mount dev ;;
    esac
}
after() {
    case $1 in
    "karapace exec dev -- make "*) equal made made "$(cat "$DIR/srv/project/made")" ;;
    "karapace restore dev '~1' -- "*) [ "$(cat "$DIR${1##*-- }")" != other ] ;;
    "karapace export-app "*) [ -n "$(find "$HOME" -name '*gimp*.desktop')" ] ;;
    "karapace export "*) tar -tf dev.tar | has etc/passwd ;;
    esac
}

commands() {
    local line count=0
    block docs/GUIDE.md "Daily use" 1 >"$TMPDIR/lines"
    while read -r line <&3; do
        echo "$line"
        before "$line"
        bash -ec "$line"
        after "$line"
        count=$((count + 1))
    done 3<"$TMPDIR/lines"
    echo "note: $count commands"
    [ "$count" -gt 20 ]
}

control_files() {
    karapace mount dev
    block docs/GUIDE.md "Daily use" 2 >"$TMPDIR/lines"
    # It goes to the directory by the name that everybody has.
    bash -euc "$(cat "$TMPDIR/lines")" | has 'commit name=before-upgrade\|ok commit'
    [ "$(wc -l <"$TMPDIR/lines")" -ge 5 ]
    karapace umount dev
}

# The environments are gone afterwards, for the guide begins with the same name.
tour() {
    ln -s "$MINBASE_TAR" rootfs.tar
    block README.md "A tour of two minutes" 1 >"$TMPDIR/lines"
    [ "$(wc -l <"$TMPDIR/lines")" -ge 9 ]
    bash -xec "$(cat "$TMPDIR/lines")" >"$TMPDIR/out"
    has '^D /etc/apt$' <"$TMPDIR/out"
    karapace mount dev
    [ -d "$DIR/etc/apt" ]
    equal "what was changed in the tour" "" "$(karapace diff dev)"
    karapace umount dev
    karapace destroy -y --snapshots dev
    karapace destroy -y --snapshots try
}

check "the tour" tour
check "the commands of daily use" commands
check "the control files" control_files
finish_suite
