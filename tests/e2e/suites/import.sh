#!/usr/bin/env bash
# Imports of what other programs write: images by umoci and skopeo, from files, directories and pipes; uppers by overlayfs and
# fuse-overlayfs, sparse archives by GNU tar. The result of these programs themselves is what the import is compared with.
# runs as: root user
# seconds: 40
. "$(dirname "$0")/../checks.sh"
WORK=$PLAIN/work
LAYOUT=$WORK/layout

# as_shown ID: what has this id is stored under the caller's own, and becomes what a mount shows for that.
as_shown() {
    sed -E "s/^(l|[^l] [0-7]+) $1 $1 /\\1 $(shown_id "$(id -u)") $(shown_id "$(id -g)") /"
}

# mounted_as ENV FILE [times]: the environment, mounted, is the listing in FILE.
mounted_as() {
    karapace mount "$1"
    tree "$MOUNTS/$1" "${3:-}" >"$TMPDIR/shown"
    karapace umount "$1"
    [ "$(wc -l <"$2")" -gt 20 ] || wrong "$2 lists hardly anything"
    diff "$2" "$TMPDIR/shown" || wrong "expected left, found right"
}

base_of() { inspect "$1" 'd["base_layer"]'; }

umoci_() {
    local verb=$1
    shift
    if [ "$ACTOR" = user ] && [[ "$verb" =~ ^(unpack|repack|insert)$ ]]; then
        # repack learns of it from the bundle
        if [ "$verb" = repack ]; then umoci repack "$@"; else umoci "$verb" --rootless "$@"; fi
    else
        umoci "$verb" "$@"
    fi
}

# An image of five layers: files, deletions and changes, an opaque directory, only whiteouts, a directory that was deleted and
# added again.
image() {
    mkdir -p "$WORK"
    umoci init --layout "$LAYOUT"
    umoci new --image "$LAYOUT:image"
    umoci_ unpack --image "$LAYOUT:image" "$WORK/bundle"
    fixture "$WORK/bundle/rootfs"
    umoci_ repack --refresh-bundle --image "$LAYOUT:image" "$WORK/bundle"
    local root=$WORK/bundle/rootfs
    rm -r "$root/etc/deleted" "$root/usr/share/doc/many"
    echo changed >"$root/etc/changed"
    chmod 0700 "$root/srv/data"
    rm "$root/usr/os-release"
    mkdir "$root/usr/os-release"
    echo now >"$root/usr/os-release/a-directory"
    echo more >>"$root/srv/data/large"
    ln "$root/srv/data/large" "$root/srv/data/large-too"
    umoci_ repack --refresh-bundle --image "$LAYOUT:image" "$WORK/bundle"
    mkdir -p "$WORK/insert/deep"
    echo opaque >"$WORK/insert/deep/new"
    umoci_ insert --opaque --image "$LAYOUT:image" "$WORK/insert" /srv/data
    umoci_ insert --whiteout --image "$LAYOUT:image" /var/empty
    umoci_ insert --image "$LAYOUT:image" "$WORK/insert" /var/empty
    rm -rf "$WORK/bundle"
    umoci_ unpack --image "$LAYOUT:image" "$WORK/unpacked"
    tree "$WORK/unpacked/rootfs" times >"$TMPDIR/unpacked"
}

image_is_what_umoci_unpacks() {
    local layers
    layers=$(umoci stat --image "$LAYOUT:image" --json | json - 'sum(not h.get("empty_layer") for h in d["history"])')
    equal "layers of the image" 5 "$layers"
    karapace import "$LAYOUT" --name layout
    grep -q 'opaque' <(cat "$WORK/unpacked/rootfs/srv/data/deep/new") || wrong "umoci left the inserted file out"
    [ ! -e "$WORK/unpacked/rootfs/srv/data/large" ] || wrong "umoci made no opaque directory"
    mounted_as layout "$TMPDIR/unpacked" times
}

# copies NAME DESTINATION FILE: skopeo's copy of the image imports as the layout does.
copies() {
    skopeo --insecure-policy copy --quiet "oci:$LAYOUT:image" "$2"
    karapace import "$3" --name "$1"
    equal "base layer" "$(base_of layout)" "$(base_of "$1")"
}

# A directory as skopeo's dir: is, as it is and packed.
copied_directory() {
    skopeo --insecure-policy copy --quiet "oci:$LAYOUT:image" "dir:$WORK/copied"
    ls "$WORK/copied/version" "$WORK/copied/manifest.json"
    tar -C "$WORK/copied" -czf "$WORK/copied.tar.gz" .
    karapace import "$WORK/copied" --name copied
    karapace import "$WORK/copied.tar.gz" --name copied-tar
    equal "base layer" "$(base_of layout)" "$(base_of copied)"
    equal "base layer of the archive" "$(base_of layout)" "$(base_of copied-tar)"
}

# What skopeo writes for docker load has the documents of before 1.10, too: those alone are left.
saved_early() {
    mkdir "$WORK/early"
    tar -C "$WORK/early" -xf "$WORK/saved.tar"
    rm "$WORK/early"/*.json
    [ -e "$WORK/early/repositories" ] || wrong "skopeo writes no repositories any more"
    tar -C "$WORK/early" -cf "$WORK/early.tar" .
    karapace import "$WORK/early" --name early
    karapace import "$WORK/early.tar" --name early-tar
    equal "base layer" "$(base_of layout)" "$(base_of early)"
    equal "base layer of the archive" "$(base_of layout)" "$(base_of early-tar)"
}

# Incomplete images are refused or noted.
parts_are_told() {
    karapace import "$LAYOUT/blobs" --name parts 2>"$TMPDIR/refused"
    says 'imported as a root filesystem, but has no bin, etc or usr'
    karapace import "$WORK/unpacked" --name bundle 2>"$TMPDIR/refused"
    says 'rootfs/ in it looks like one'
    karapace import "$WORK/unpacked/rootfs" --name whole 2>"$TMPDIR/refused"
    ! grep 'root filesystem, but' "$TMPDIR/refused"
}

# Whiteouts and hard links of every kind that umoci takes: what it unpacks is the measure.
layers_are_what_umoci_unpacks() {
    /usr/bin/python3 "$SCRATCH/tree/e2e/layers.py" "$WORK/layers"
    local layout name
    for layout in "$WORK/layers"/*; do
        name=$(basename "$layout")
        umoci_ unpack --image "$layout:image" "$WORK/unpacked-$name"
        karapace import "$layout" --name "$name"
        karapace mount "$name"
        tree "$WORK/unpacked-$name/rootfs" >"$TMPDIR/expected"
        tree "$MOUNTS/$name" >"$TMPDIR/shown"
        equal "links of other modes" "" "$(find "$MOUNTS/$name" -type l ! -perm 0777)"
        karapace umount "$name"
        [ "$(wc -l <"$TMPDIR/expected")" -gt 5 ] || wrong "$name: umoci left everything out"
        diff "$TMPDIR/expected" "$TMPDIR/shown" || wrong "$name: expected left, found right"
    done
}

# env_of ENV: its env_id.
env_of() { inspect "$1" 'd["env_id"]'; }

# comes NAME COMMAND...: the output of the command, imported from a pipe, must give the same as the
# layout.
comes() {
    local name=$1
    shift
    "$@" | karapace import - --name "$name"
    equal "$name" "$(base_of layout)" "$(base_of "$name")"
}

from_pipes() {
    comes piped-layout tar -C "$LAYOUT" -c .
    comes piped-saved cat "$WORK/saved.tar"
    comes piped-saved-gz gzip -1 -c "$WORK/saved.tar"
    comes piped-root karapace export layout
    mkfifo "$WORK/pipe"
    # Nobody writes yet when it begins.
    (sleep 1 && cat "$WORK/saved.tar" >"$WORK/pipe") &
    timeout 60 karapace import "$WORK/pipe" --name named-pipe
    wait $!
    equal "a FIFO" "$(base_of layout)" "$(base_of named-pipe)"
    timeout 60 karapace import <(karapace export layout) --name substituted
    equal "a process substitution" "$(base_of layout)" "$(base_of substituted)"
    karapace import - --name redirected <"$WORK/saved.tar"
    equal "a file" "$(base_of layout)" "$(base_of redirected)"
    equal "env_id" "$(env_of piped-root)" "$(env_of redirected)"
    equal staged "" "$(staged)"
}

# Input that is not an archive, or only part of one.
broken_pipes() {
    local before pid
    before=$(objects)
    refused timeout 60 bash -c "karapace export layout | head -c 4000 | karapace import - --name cut"
    says 'cannot import standard input: .*truncated'
    refused timeout 60 bash -c 'false | karapace import - --name nothing'
    says 'the archive is empty: check whether the command'
    refused timeout 60 karapace import - --name null </dev/null
    says 'it is a device'
    refused timeout 60 karapace import - --name directory <"$WORK"
    says 'it is a directory: give its path'
    refused timeout 60 script -qec 'karapace import - --name terminal' /dev/null
    says 'it is a terminal: pipe an archive into it'
    mkdir "$WORK/from-stdin"
    printf 'manifest_version = 1\n[base]\nimage = "-"\n' >"$WORK/from-stdin/karapace.toml"
    refused karapace build "$WORK/from-stdin/karapace.toml"
    says 'standard input, which only'
    karapace import "$WORK/pipe" --name waiting &
    pid=$!
    until_true catches_term "$pid"
    kill -TERM "$pid"
    status_of 130 wait "$pid"
    equal staged "" "$(staged)"
    equal objects "$before" "$(objects)"
}

# It is karapace by now, and has its handler.
catches_term() { [ $((0x$(sed -n 's/^SigCgt:\t//p' "/proc/$1/status") >> 14 & 1)) = 1 ]; }

damaged_copy_is_refused() {
    cp -r "$LAYOUT" "$WORK/damaged"
    local blob
    blob=$(find "$WORK/damaged/blobs/sha256" -type f -size +1k | head -n1)
    printf 'x' | dd of="$blob" bs=1 seek=100 conv=notrunc status=none
    local before
    before=$(objects)
    refused karapace import "$WORK/damaged" --name damaged
    says "$(basename "$blob")"
    equal "objects" "$before" "$(objects)"
}

# What a user of an overlay does: every kind of change.
change() (
    cd "$1"
    echo changed >etc/changed
    rm etc/deleted
    rm -r usr/share/doc/many
    mkdir usr/share/doc/many
    echo again >usr/share/doc/many/1
    chmod 0640 etc/hostname
    touch -d '2010-01-01 01:02:03.5' etc/os-release
    echo more >>srv/data/large
    mv var var.moved
    touch var.moved/empty/new
    mv srv/data srv/moved-too
    mv srv/moved-too srv/data
    rm usr/os-release
    mkdir usr/os-release
    mkdir -p new/deep
    ln -s nowhere new/link
    mkfifo new/fifo
    echo x >new/one
    ln new/one new/deep/two
    setfattr -n user.note -v kept new/one
    chmod 2750 new/deep
    truncate -s 3M srv/data/sparse
    rm -r root
    echo 'a file' >root
)

# overlay NAME MOUNT-COMMAND UNMOUNT-COMMAND [times]: changes an overlay on the fixture, imports its upper.
overlay() {
    local name=$1 mount=$2 unmount=$3 times=${4:-} top=$WORK/$1
    mkdir -p "$top/upper" "$top/work" "$top/merged"
    (
        cd "$top"
        eval "$mount"
        change merged
        tree merged "$times" | as_shown "$(id -u)" >expected
        eval "$unmount"
    )
    karapace import "$top/upper" --onto lower --name "$name"
    mounted_as "$name" "$top/expected" "$times"
    equal "env_id" "$(inspect lower 'd["env_id"]')" "$(inspect "$name" 'd["env_id"]')"
    equal "base layer" "$(base_of lower)" "$(base_of "$name")"
}

kernel_overlay() {
    local options="lowerdir=$WORK/lower,upperdir=upper,workdir=work,$2"
    overlay "$1" "mount -t overlay overlay -o $options merged" "umount merged" times
}

# In a user namespace of the user's own, as rootless podman mounts it; what is done in there is done in one go.
userns_overlay() {
    local top=$WORK/$1 options="lowerdir=$WORK/lower,upperdir=upper,workdir=work,userxattr"
    mkdir -p "$top/upper" "$top/work" "$top/merged"
    export -f change tree
    (
        cd "$top"
        OPTIONS=$options unshare --user --map-root-user --mount bash -euo pipefail -c '
            mount -t overlay overlay -o "$OPTIONS" merged
            change merged
            tree merged times >expected
            umount merged'
    )
    karapace import "$top/upper" --onto lower --name "$1"
    as_shown 0 <"$top/expected" >"$top/expected-outside"
    mounted_as "$1" "$top/expected-outside" times
}

# Without times: fuse-overlayfs shows those of the kernel's write cache, some milliseconds from what the upper keeps.
fuse_overlay() {
    overlay fuse "fuse-overlayfs -o lowerdir=$WORK/lower,upperdir=upper,workdir=work merged" "fusermount3 -u merged"
}

# A directory that was renamed from a path that the lower lacks cannot be resolved.
unresolved_is_refused() {
    mkdir -p "$WORK/unresolved/renamed"
    setfattr -n user.overlay.redirect -v /not/there "$WORK/unresolved/renamed"
    refused karapace import "$WORK/unresolved" --onto lower --name unresolved
    says renamed
    refused karapace inspect unresolved
}

sparse() {
    mkdir -p "$WORK/sparse/etc"
    truncate -s 64M "$WORK/sparse/file"
    for at in 0 1000000 20000000 67000000; do
        printf 'here %s' "$at" | dd of="$WORK/sparse/file" bs=1 seek="$at" conv=notrunc status=none
    done
    # More stretches than fit into one header.
    truncate -s 16M "$WORK/sparse/many"
    for at in $(seq 40); do
        printf 'x' | dd of="$WORK/sparse/many" bs=1 seek=$((at * 300000)) conv=notrunc status=none
    done
    karapace import "$WORK/sparse" --name sparse
    local expected format
    expected=$(base_of sparse)
    for format in --format=oldgnu --format=gnu --format=pax\ --sparse-version={0.0,0.1,1.0}; do
        # shellcheck disable=SC2086 # several words
        tar $format --sparse --numeric-owner -C "$WORK/sparse" -cf "$WORK/sparse.tar" .
        below "$format: bytes of a tar in which GNU tar found the holes" 5000000 "$(stat -c %s "$WORK/sparse.tar")"
        karapace import "$WORK/sparse.tar" --name "sparse-tar"
        equal "$format" "$expected" "$(base_of sparse-tar)"
        karapace destroy sparse-tar -y
    done
}

staged() { find "$STORE/store/staging" -mindepth 1; }

# FIFOs and devices, which would block, are refused at once wherever a file is expected.
no_file_is_told() {
    local project=$WORK/project
    mkdir -p "$project"
    mkfifo "$WORK/fifo"
    ln -s fifo "$WORK/link"
    refused timeout 30 karapace import "file://$WORK/fifo" --name fifo
    says 'it is a FIFO'
    refused timeout 30 karapace import /dev/zero --name device
    says 'it is a character device'
    refused timeout 30 karapace import "$WORK/fifo" --onto layout --name upper
    says 'it is a FIFO'
    cd "$project"
    printf 'manifest_version = 1\n[base]\nimage = "%s"\n' "$WORK/fifo" >karapace.toml
    refused timeout 30 karapace build
    says 'it is a FIFO'
    mkfifo karapace.lock
    refused timeout 30 karapace build
    says 'cannot read lock file .*it is a FIFO'
    mv karapace.lock karapace.toml
    refused timeout 30 karapace build
    says 'cannot read manifest .*it is a FIFO'
    refused timeout 30 karapace pin
    says 'it is a FIFO'
    # In the image of a layout.
    cp -r "$LAYOUT" "$WORK/piped"
    local blob
    blob=$(find "$WORK/piped/blobs/sha256" -type f -size +1k | head -n1)
    rm "$blob"
    mkfifo "$blob"
    refused timeout 30 karapace import "$WORK/piped" --name piped
    says "$(basename "$blob") is not a regular file"
    equal staged "" "$(staged)"
}

# An archive that looks like an image, and is a bomb of zeros: on a file system that has no room for them.
bomb_takes_no_room() {
    mkdir "$WORK/bomb"
    /usr/bin/python3 - <<'PYTHON' | gzip -1 >"$WORK/bomb.tar.gz"
import io, sys, tarfile
out = tarfile.open(fileobj=sys.stdout.buffer, mode="w|")
class Zeros(io.RawIOBase):
    def read(self, size=-1):
        return bytes(size)
def add(name, size, body):
    info = tarfile.TarInfo(name)
    info.size = size
    out.addfile(info, body)
add("blobs/sha256/" + "a" * 64, 400 << 20, Zeros())
add("kept", 4, io.BytesIO(b"kept"))
out.close()
PYTHON
    mount -t tmpfs -o size=64m,mode=755 bomb "$WORK/bomb"
    karapace --store "$WORK/bomb/store" import "$WORK/bomb.tar.gz" --name bomb
    equal entries 5 "$(karapace --store "$WORK/bomb/store" export bomb | tar -t | grep -c .)"
    umount "$WORK/bomb"
}

# interrupted SIGNAL IMAGE: the import ends cleanly, and leaves nothing.
interrupted() {
    local status=0 before
    before=$(objects)
    karapace import "$2" --name interrupted &
    until_true sh -c "find '$STORE/store/staging' -mindepth 2 | grep -q ."
    kill "-$1" $!
    wait $! || status=$?
    equal status 130 "$status"
    equal staged "" "$(staged)"
    equal objects "$before" "$(objects)"
    if karapace inspect interrupted; then wrong "there is an environment"; fi
}

# Large enough for a signal to come in the middle.
interruptions() {
    mkdir "$WORK/much"
    for number in $(seq 40); do head -c 20M /dev/urandom >"$WORK/much/$number"; done
    tar -C "$WORK/much" -cf "$WORK/much.tar" .
    interrupted TERM "$WORK/much"
    rm -r "$WORK/much"
    interrupted INT "$WORK/much.tar"
    rm "$WORK/much.tar"
}

need "umoci makes an image" image
check "an image imports as umoci unpacks it" image_is_what_umoci_unpacks
check "skopeo's docker-archive of it imports as it does" copies saved "docker-archive:$WORK/saved.tar:image:1" "$WORK/saved.tar"
check "skopeo's oci-archive of it imports as it does" copies archive "oci-archive:$WORK/archive.tar:image" "$WORK/archive.tar"
check "skopeo's dir: of it imports as it does" copied_directory
check "what docker saved before 1.10 imports as it does" saved_early
check "incomplete images are refused or noted" parts_are_told
check "whiteouts and hard links of every kind import as umoci unpacks them" layers_are_what_umoci_unpacks
check "archives from pipes, FIFOs and standard input" from_pipes
check "pipes that give no archive, or half of one" broken_pipes
check "a damaged blob is refused by name" damaged_copy_is_refused
check "FIFOs and devices in place of files are refused at once" no_file_is_told
if [ "$ACTOR" = root ]; then
    check "a bomb of zeros takes no space" bomb_takes_no_room
fi
check "SIGTERM and SIGINT end an import and leave nothing" interruptions
lower() { fixture "$WORK/lower" && karapace import "$WORK/lower" --name lower; }
need "a lower directory" lower
if [ "$ACTOR" = root ]; then
    check "overlayfs' upper is what the mount showed" kernel_overlay plain redirect_dir=off,metacopy=off
    check "overlayfs' upper with renamed directories" kernel_overlay renamed redirect_dir=on
    check "overlayfs' upper with copies of metadata alone" kernel_overlay metacopy redirect_dir=on,metacopy=on
else
    check "an upper made in a user namespace is what the mount showed" userns_overlay userns
fi
check "fuse-overlayfs' upper is what the mount showed" fuse_overlay
check "an upper that cannot be resolved is refused by name" unresolved_is_refused
check "sparse archives of every GNU format" sparse
finish_suite
