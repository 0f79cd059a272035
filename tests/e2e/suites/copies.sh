#!/usr/bin/env bash
# cp -a, rsync and tar carry every attribute into the mount, within it and out of it, as from ext4 to ext4.
# runs as: root user
. "$(dirname "$0")/../checks.sh"
ENV=copies
DIR=$MOUNTS/$ENV
WORK=$DIR/srv/work
SOURCE=$PLAIN/source

# In addition to `fixture`: every attribute that an ordinary user can set.
everything() (
    set -euo pipefail
    fixture "$1"
    cd "$1"
    mkdir -p links/a links/b modes times/dir names acl sparse
    for i in 1 2 3 4 5; do echo "$i" >"links/a/$i"; ln "links/a/$i" "links/b/$i"; ln "links/a/$i" "links/$i"; done
    ln -s "$(printf '%0900d' 7)" links/long
    ln -s . links/self
    for mode in 0400 0755 1755 2755 4755 6711 0666; do echo x >"modes/file$mode"; chmod "$mode" "modes/file$mode"; done
    for mode in 0700 1777 2775 0555; do mkdir "modes/dir$mode"; chmod "$mode" "modes/dir$mode"; done
    # More than 255 bytes of names are refused by both.
    : >"names/$(printf '%0255d' 0)"
    : >"names/"$'new\nline'
    : >"names/"$'\377\376not UTF-8'
    : >"names/ leading and trailing "
    : >"names/-n"
    : >"names/.wh.kept"
    : >names/'back\slash'
    mkfifo names/fifo
    setfattr -n user.empty names/-n 2>/dev/null || setfattr -n user.empty -- names
    setfattr -n user.binary -v 0x00ff0a5c acl
    setfattr -n user.large -v "$(printf '%03000d' 1)" acl
    echo x >acl/file
    # Ids that a user's mount shows as they are set.
    local named group
    named=$(shown_id 77) group=$(shown_id 88)
    setfacl -m "u:$named:rw,g:$group:r,m::rw" acl/file
    setfacl -m "u:$named:rwx,d:u:$named:rx,d:g:$group:rwx" acl
    mkdir acl/inherits
    echo x >acl/inherits/file
    truncate -s 40M sparse/holes
    printf 'middle' | dd of=sparse/holes bs=1M seek=20 conv=notrunc status=none
    truncate -s 3M sparse/empty
    head -c 2M /dev/urandom >sparse/full
    if [ "$ACTOR" = root ]; then
        mknod names/null c 1 3
        mknod names/block b 259 1048575
        chown 12:34 modes/file0755
        chown -h 4294967294:65534 links/long
        setfattr -n security.capability -v 0sAAAAAgAgAAAAAAAAAAAAAAAAAAA= modes/file0666
        # With the NUL that ends a label.
        setfattr -n security.selinux -v "0x$(printf 'system_u:object_r:etc_t:s0\0' | od -An -v -tx1 | tr -d ' \n')" etc/keep
        setfattr -n trusted.note -v kept etc/changed
    fi
    # Last, because each of the steps above changes the time of a directory.
    touch -h -d '1969-12-31 23:59:59.999999999 UTC' links/self
    echo x >times/2100
    touch -d '2100-02-28 12:00:00.000000001 UTC' times/2100
    echo x >times/1950
    touch -d '1950-01-01 00:00:00.123456789 UTC' times/1950
    find . -type d -exec touch -d '2011-12-13 14:15:16.171819202' {} +
)

setup() {
    everything "$SOURCE"
    mounted_fixture "$PLAIN/fixture"
    mkdir -p "$WORK" "$PLAIN/out"
}

cp_keeps_all() {
    cp -a "$SOURCE" "$PLAIN/out/cp"
    # For comparison: between two directories of ext4 nothing is lost.
    same_attributes "$SOURCE" "$PLAIN/out/cp"
    cp -a "$SOURCE" "$WORK/cp"
    same_attributes "$SOURCE" "$WORK/cp"
    cp -a "$WORK/cp" "$WORK/cp2"
    same_attributes "$SOURCE" "$WORK/cp2"
    cp -a "$WORK/cp2" "$PLAIN/out/cp2"
    same_attributes "$SOURCE" "$PLAIN/out/cp2"
    rm -r "$WORK/cp2" "$PLAIN/out/cp2" "$PLAIN/out/cp"
}

with_all() { tar --xattrs --xattrs-include='*' --acls --selinux --sparse --numeric-owner --same-permissions "$@"; }
# archived DIRECTORY: an archive of it, unpacked on ext4, is the source. Archives themselves differ: the order in which
# a file system lists extended attributes is its own.
archived() {
    with_all --format=posix -cf "$TMPDIR/archive.tar" -C "$1" .
    mkdir "$PLAIN/out/tar"
    with_all -xf "$TMPDIR/archive.tar" -C "$PLAIN/out/tar"
    same_attributes "$SOURCE" "$PLAIN/out/tar"
    rm -r "$PLAIN/out/tar"
}
tar_keeps_all() {
    archived "$WORK/cp"
    archived "$SOURCE"
    mkdir "$WORK/tar"
    with_all -xf "$TMPDIR/archive.tar" -C "$WORK/tar"
    same_attributes "$SOURCE" "$WORK/tar"
    # Over existing files: they are unlinked and created again.
    with_all -xf "$TMPDIR/archive.tar" -C "$WORK/tar"
    same_attributes "$SOURCE" "$WORK/tar"
    rm -r "$WORK/tar"
}

# sync FROM TO: lists what rsync changes, one per line.
sync() { rsync -aHAXS --numeric-ids --delete --itemize-changes "$1/" "$2/"; }
# synced FROM TO: brings TO to FROM; then the same again finds nothing to do.
synced() {
    sync "$1" "$2" >"$TMPDIR/changes"
    equal "changes the second time" "" "$(sync "$1" "$2")"
    same_attributes "$1" "$2"
}
rsync_keeps_all() {
    synced "$SOURCE" "$PLAIN/out/sync"
    synced "$SOURCE" "$WORK/sync"
    synced "$WORK/sync" "$WORK/sync2"
    synced "$WORK/sync2" "$PLAIN/out/sync2"
    # By content, for what rsync takes for the same by its size and time.
    equal "changes by checksum" "" "$(rsync -aHAXSc --delete --itemize-changes "$SOURCE/" "$WORK/sync2/")"
}
# What is changed on one side is carried to the other, in both directions, and listed as on ext4.
change_some() (
    set -euo pipefail
    cd "$1"
    rm -r links/b modes/file0666 names/fifo
    mv links/a links/moved
    ln links/moved/1 etc/linked
    chmod 0700 etc
    setfacl -x "u:$(shown_id 77)" acl/file
    setfattr -x user.binary acl
    setfattr -n user.colour -v red srv/data/large
    echo more >>srv/data/large
    mkdir links/3.d
    rm etc/os-release
    mkdir etc/os-release
    ln -sfn elsewhere links/self
    find . -newermt '2020-01-01' ! -newermt '2099-01-01' -exec touch -h -d '2012-01-01 01:01:01.010101010' {} +
)
rsync_carries_changes() {
    change_some "$PLAIN/out/sync"
    change_some "$WORK/sync"
    same_attributes "$PLAIN/out/sync" "$WORK/sync"
    synced "$PLAIN/out/sync" "$PLAIN/out/sync2"
    cp "$TMPDIR/changes" "$TMPDIR/changes.plain"
    synced "$WORK/sync" "$WORK/sync2"
    diff "$TMPDIR/changes.plain" "$TMPDIR/changes"
    grep -q '^\*deleting' "$TMPDIR/changes"
    synced "$SOURCE" "$WORK/sync2"
}

# The copies once more when they are the lower view, and after the copy-up of some.
of_the_lower_view() {
    commit "$ENV"
    same_attributes "$SOURCE" "$WORK/cp"
    karapace umount "$ENV"
    karapace mount "$ENV"
    same_attributes "$SOURCE" "$WORK/cp"
    archived "$WORK/cp"
    equal "changes" "" "$(sync "$SOURCE" "$WORK/cp")"
    cp -a "$SOURCE" "$PLAIN/out/changed"
    change_some "$PLAIN/out/changed"
    change_some "$WORK/cp"
    same_attributes "$PLAIN/out/changed" "$WORK/cp"
    commit "$ENV"
    same_attributes "$PLAIN/out/changed" "$WORK/cp"
    synced "$SOURCE" "$WORK/cp"
    karapace umount "$ENV"
    karapace verify-store
}

# The mapping belongs to a separate process, because closing a descriptor writes back the pages of its
# file.
mapped_while_copied() {
    local stored=0 size copy
    mkdir "$WORK/mapped" "$PLAIN/out/mapped"
    for size in 1M 64M; do
        coproc WRITER { python3 -c '
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); os.ftruncate(fd, int(sys.argv[2][:-1]) << 20)
m = mmap.mmap(fd, 0); os.close(fd); end = len(m)
print(flush=True)
for line in sys.stdin:
    for at in (0, end // 2, end - 5): m[at:at + 5] = line.encode()[:5]
    print(flush=True)
' "$WORK/mapped/file" "$size"; }
        local from=${WRITER[0]} to=${WRITER[1]} pid=$WRITER_PID
        read -r -u "$from"
        for copy in 'cp' 'cp --sparse=always' 'cp -a' 'rsync -S' archive; do
            printf '%05d\n' "$((++stored))" >&"$to"
            read -r -u "$from"
            copied "$copy"
            equal "what $copy copied of $size" "$stored $stored $stored" "$(words "$size")"
        done
        exec {to}>&-
        wait "$pid"
        rm "$WORK/mapped/file"
    done
}
# copied COMMAND: out of the mount.
copied() {
    rm -f "$PLAIN/out/mapped/file"
    if [ "$1" = archive ]; then
        # 1: it changed while it was read, by what was written back.
        tar --sparse -cf "$TMPDIR/mapped.tar" -C "$WORK/mapped" file || [ $? -eq 1 ]
        tar -xf "$TMPDIR/mapped.tar" -C "$PLAIN/out/mapped"
    else
        $1 "$WORK/mapped/file" "$PLAIN/out/mapped/file"
    fi
}
# words SIZE: the numbers at the beginning, in the middle and at the end of the copy.
words() {
    local end=$((${1%M} << 20)) at words=()
    for at in 0 $((end / 2)) $((end - 5)); do
        words+=("$(tail -c +$((at + 1)) "$PLAIN/out/mapped/file" | head -c 5 | tr '\0' x | sed 's/^0*//')")
    done
    echo "${words[*]}"
}

need "a directory with every attribute, and an environment" setup
check "cp -a into, within and out of the mount" cp_keeps_all
check "copies have what another process stored through a mapping" mapped_while_copied
check "tar --xattrs --acls --selinux --sparse, both ways" tar_keeps_all
check "rsync -aHAX --delete, both ways; the second run finds nothing" rsync_keeps_all
check "rsync carries changes as on ext4" rsync_carries_changes
check "copies stay the same in the lower, and after changes over it" of_the_lower_view
finish_suite
