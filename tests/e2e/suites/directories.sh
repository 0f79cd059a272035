#!/usr/bin/env bash
# Imports of directories that are in use: with mounts below, and changed meanwhile; and of ACLs, where archivers differ. What ext4
# has after GNU tar and bsdtar have unpacked an archive is the measure.
# runs as: root user
. "$(dirname "$0")/../checks.sh"
WORK=$PLAIN/work
mkdir -p "$WORK"

# acls DIRECTORY: mode and ACLs of what is in it, ids as numbers. Without owners: a user's mount shows root's as the user's.
acls() (
    cd "$1"
    find . -mindepth 1 -printf '%m %p\n' | LC_ALL=C sort -k2
    find . -mindepth 1 -print0 | LC_ALL=C sort -z | xargs -0 getfacl -pn | sed '/^# owner: /d; /^# group: /d'
)

# Files whose mask and whose group say different things, directories with default ACLs, as the archivers differ in.
with_acls() (
    mkdir "$WORK/acls"
    cd "$WORK/acls"
    touch wider narrower masked plain
    mkdir inherits minimal
    chmod 0640 wider
    setfacl -m u:1234:rw,g::r,m::rw wider
    chmod 0754 narrower
    setfacl -m u:1234:rwx,g:4321:x,g::rwx,m::r narrower
    chmod 0664 masked
    setfacl -m m::r masked
    setfacl -m d:u:1234:rwx inherits
    setfacl -m d:u::rwx,d:g::rx,d:o::- minimal
    acls . >"$TMPDIR/acls"
    grep -q '^660 ./wider' "$TMPDIR/acls" || wrong "no mask in a mode"
)

# acls_of NAME ARCHIVE: both archivers and an import make of it what it was made of.
acls_of() {
    local tool
    for tool in 'tar --acls' 'bsdtar --acls'; do
        rm -rf "$WORK/unpacked-acls"
        mkdir "$WORK/unpacked-acls"
        $tool -xpf "$2" -C "$WORK/unpacked-acls"
        acls "$WORK/unpacked-acls" | diff "$TMPDIR/acls" - || wrong "$tool makes something else of $1"
    done
    karapace import "$2" --name "$1"
    karapace mount "$1"
    acls "$MOUNTS/$1" | sed "s/:$(shown_id 1234):/:1234:/; s/:$(shown_id 4321):/:4321:/" >"$TMPDIR/shown"
    karapace umount "$1"
    diff "$TMPDIR/acls" "$TMPDIR/shown" || wrong "the import of $1: expected left, found right"
}

# The mode in the header is the group's own permissions (bsdtar), or the mask (GNU tar): the ACL decides.
acls_of_archives() {
    with_acls
    bsdtar --acls --numeric-owner -cf "$WORK/acl-bsd.tar" -C "$WORK/acls" .
    tar tvf "$WORK/acl-bsd.tar" | has '^-rw-r----- .*wider' || wrong "bsdtar no longer keeps the group's permissions in the mode"
    tar --acls --numeric-owner -cf "$WORK/acl-gnu.tar" -C "$WORK/acls" .
    tar --acls --numeric-owner --xattrs '--xattrs-include=*' -cf "$WORK/acl-xattrs.tar" -C "$WORK/acls" .
    for archive in bsd gnu xattrs; do acls_of "acl-$archive" "$WORK/acl-$archive.tar"; done
    karapace import "$WORK/acls" --name acl-directory
    for archive in bsd gnu xattrs; do equal "$archive" "$(acl_list acl-directory)" "$(acl_list "acl-$archive")"; done
    # What is exported both read again.
    karapace export acl-bsd -o "$WORK/acl-exported.tar"
    acls_of acl-exported "$WORK/acl-exported.tar"
    if [ "$ACTOR" = root ]; then
        karapace mount acl-bsd
        setpriv --reuid 1234 --regid 1234 --clear-groups sh -c "echo more >>'$MOUNTS/acl-bsd/wider'" ||
            wrong "the named user may not write"
        karapace umount acl-bsd
    fi
}

# What stands in an export, headers and records, without the top's times.
acl_list() { karapace export "$1" | tar --acls --numeric-owner -tvv | grep -v ' \./$' | sort; }

# Mounts below: of another kind, of the same file system, over a file, and what is below a mount.
mounts_below() {
    local below=$WORK/mounts/root
    mkdir -p "$below"/{bound/kept-out,other,proc,dir} "$WORK/mounts/elsewhere"
    echo real >"$below/dir/file"
    echo under >"$below/bound/under"
    : >"$below/over"
    echo bound >"$WORK/mounts/elsewhere/inside"
    mount --bind "$WORK/mounts/elsewhere" "$below/bound"
    mount -t tmpfs -o mode=750 tmpfs "$below/other"
    echo tmpfs >"$below/other/inside"
    mkdir "$below/other/deeper"
    mount --bind "$WORK/mounts/elsewhere" "$below/other/deeper"
    mount --bind "$WORK/mounts/elsewhere/inside" "$below/over"
    mount -t proc proc "$below/proc"
    equal "device" "$(stat -c %d "$below")" "$(stat -c %d "$below/bound")"
    karapace import "$below" --name one-mount 2>"$TMPDIR/said"
    cat "$TMPDIR/said"
    has '4 mounts were left out.*--cross-mounts' <"$TMPDIR/said" || wrong "nothing is told"
    for name in bound other over proc; do has "$below/$name" <"$TMPDIR/said" || wrong "$name is not told"; done
    equal listed "./ bound/ dir/ dir/file other/ over proc/" "$(listed one-mount)"
    equal over "" "$(karapace export one-mount | tar -xO over)"
    karapace import "$below" --cross-mounts --name all-mounts 2>"$TMPDIR/said"
    cat "$TMPDIR/said"
    has "one mount was left out, because it shows the kernel's state.*$below/proc" <"$TMPDIR/said" || wrong "proc is not told"
    equal listed \
        "./ bound/ bound/inside dir/ dir/file other/ other/deeper/ other/deeper/inside other/inside over proc/" \
        "$(listed all-mounts)"
    refused karapace import "$WORK/acl-gnu.tar" --cross-mounts --name archive
    says 'not a directory'
    # A file system that does not answer: its server is gone.
    mkdir "$below/dead"
    karapace mount one-mount "$below/dead"
    kill -KILL "$(server_of one-mount)"
    until_true not_answering "$below/dead"
    karapace import "$below" --name dead 2>"$TMPDIR/said"
    has '5 mounts were left out' <"$TMPDIR/said" || wrong "$(cat "$TMPDIR/said")"
    karapace umount one-mount
    umount "$below/proc" "$below/over" "$below/other/deeper" "$below/other" "$below/bound"
}

listed() { karapace export "$1" | tar -t | LC_ALL=C sort | xargs; }
not_answering() { ! ls "$1"; }

# As a user, who mounts in a namespace of his own.
mounts_in_a_namespace() {
    mkdir -p "$WORK/mounts/root/bound" "$WORK/mounts/elsewhere"
    echo bound >"$WORK/mounts/elsewhere/inside"
    unshare --user --map-root-user --mount bash -euo pipefail -c '
        mount --bind "$1/elsewhere" "$1/root/bound"
        karapace --store "$1/store" import "$1/root" --name one-mount
        karapace --store "$1/store" import "$1/root" --cross-mounts --name all-mounts' - "$WORK/mounts"
    equal listed "./ bound/" "$(karapace --store "$WORK/mounts/store" export one-mount | tar -t | LC_ALL=C sort | xargs)"
    equal listed "./ bound/ bound/inside" \
        "$(karapace --store "$WORK/mounts/store" export all-mounts | tar -t | LC_ALL=C sort | xargs)"
}

# Something makes and removes files and directories, and writes a log, all the while.
changing_directory() {
    mkdir -p "$WORK/changing/there"
    local number
    for number in $(seq 300); do echo "$number" >"$WORK/changing/there/$number"; done
    /usr/bin/python3 - "$WORK/changing" "$WORK/changed-enough" <<'PYTHON' &
import os, shutil, sys
os.chdir(sys.argv[1])
while not os.path.exists(sys.argv[2]):
    os.makedirs("gone/deep")
    for place in ["", "gone/", "gone/deep/"]:
        for number in range(200):
            with open(f"{place}a{number}", "w") as file:
                file.write("x")
            with open("log", "a") as file:
                file.write("y" * 1000)
    for number in range(200):
        os.symlink("x", f"gone/link{number}")
        os.remove(f"a{number}")
    if os.path.getsize("log") > 10_000_000:
        os.truncate("log", 0)
    shutil.rmtree("gone")
PYTHON
    local changer=$! round told=0
    for round in $(seq 60); do
        if [ "$round" -gt 15 ] && [ "$told" -gt 0 ]; then break; fi
        karapace import "$WORK/changing" --name "changing$round" 2>"$TMPDIR/said" || {
            cat "$TMPDIR/said"
            touch "$WORK/changed-enough"
            wrong "round $round failed"
        }
        if has 'vanished while the directory was read' <"$TMPDIR/said"; then told=$((told + 1)); fi
    done
    touch "$WORK/changed-enough"
    wait "$changer"
    echo "note: something vanished in $told imports"
    [ "$told" -gt 0 ] || wrong "nothing ever vanished"
    equal "files that stay" 300 "$(karapace export changing15 | tar -t | grep -c '^there/.')"
}

check "ACLs of archives are what bsdtar and GNU tar make of them" acls_of_archives
check "a directory that changes while it is imported" changing_directory
if [ "$ACTOR" = root ]; then
    check "mounts below a directory are left out with a note, or included" mounts_below
else
    check "mounts below a directory in a user's namespace" mounts_in_a_namespace
fi
finish_suite
