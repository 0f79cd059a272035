#!/usr/bin/env bash
# Exports: the tar as GNU tar, bsdtar and our own import read it, the OCI image as skopeo and umoci do; equal bytes for
# equal content.
# runs as: root user
# files: MINBASE
# seconds: 40
. "$(dirname "$0")/../checks.sh"

OUT=$TMPDIR/out
mkdir "$OUT"

# attributes DIRECTORY: what the fixture lacks. Of all that only root may make as root only.
attributes() (
    set -euo pipefail
    cd "$1"
    mkdir srv/acl
    setfacl -m u:12345:rx,g:54:r etc/keep srv/acl
    setfacl -d -m u:12345:rwx srv/acl
    long=$(printf 'n%.0s' $(seq 200))
    mkdir "srv/$long"
    printf 'long' >"srv/$long/$long"
    printf 'long' >"srv/$long/$(printf '\377%.0s' $(seq 120))"
    ln -s "$long/$long" srv/long-link
    ln "srv/$long/$long" srv/linked
    printf 'x' >srv/old
    touch -d '1901-12-14 00:00:01 UTC' srv/old
    truncate -s 12M srv/huge
    printf 'middle' | dd of=srv/huge bs=1M seek=6 conv=notrunc status=none
    truncate -s 200000 srv/zeros
    setfattr -n user.binary -v 0x000a3d25ff srv/old
    if [ "$ACTOR" = root ]; then
        mknod dev-tty c 5 0
        mknod dev-sda b 259 1048575
        chown 3000000:4000000000 srv/old
        setfattr -n trusted.t -v t srv/old
        setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 usr/bin/hello
        chown -h 7:8 usr/os-release
    fi
    chmod 1777 srv/zeros
    chmod 0 srv/data/large
)

make_environment() {
    fixture "$TMPDIR/root"
    attributes "$TMPDIR/root"
    # As a root file system's, all is root's, but for what root gave away.
    local owner=(--owner=0 --group=0)
    [ "$ACTOR" != root ] || owner=()
    chmod 0400 "$TMPDIR/root/srv/data/large"
    tar --xattrs --xattrs-include='*' --acls --sparse --numeric-owner "${owner[@]}" --format=pax -cf "$TMPDIR/fixture.tar" -C "$TMPDIR/root" .
    rm -rf "$TMPDIR/root"
    karapace import "$TMPDIR/fixture.tar" --name dev
    karapace mount dev
}

# times DIRECTORY: modification times of directories, which `tree` leaves out.
times() { (cd "$1" && find . -type d -printf '%T@ %p\0' | LC_ALL=C sort -z | tr '\n\0' '?\n'); }

# in_hex ID: its bytes in an ACL.
in_hex() { printf '%08x' "$1" | sed -E 's/(..)(..)(..)(..)/\4\3\2\1/'; }

# same_as_view DIRECTORY: holds what the mount shows, with the environment's ids in ACLs.
same_as_view() {
    local id words=''
    for id in 12345 54; do words+="/^system.posix_acl/s/$(in_hex "$(shown_id "$id")")/$(in_hex "$id")/g;"; done
    tree "$MOUNTS/dev" times | sed "$words" >"$TMPDIR/tree.view"
    [ "$(wc -l <"$TMPDIR/tree.view")" -gt 20 ]
    tree "$1" times | diff "$TMPDIR/tree.view" -
    diff <(times "$MOUNTS/dev") <(times "$1")
}

# fresh NAME: an empty directory.
fresh() {
    if [ -d "$OUT/$1" ]; then chmod -R u+rwX "$OUT/$1"; fi
    rm -rf "${OUT:?}/$1"
    mkdir "$OUT/$1"
}

twice_the_same_bytes() {
    karapace export dev -o "$OUT/dev.tar"
    (umask 0 && LC_ALL=C TZ=Asia/Tokyo karapace export dev >"$OUT/again.tar")
    cmp "$OUT/dev.tar" "$OUT/again.tar"
    karapace export dev@base --format tar -o "$OUT/again.tar"
    cmp "$OUT/dev.tar" "$OUT/again.tar"
    # The mode is any new file's, and nothing else is left behind.
    equal mode "$(printf '%o' $((0666 & ~0$(umask))))" "$(stat -c %a "$OUT/dev.tar")"
    equal files "again.tar dev.tar" "$(cd "$OUT" && find . -mindepth 1 -printf '%P\n' | sort | tr '\n' ' ' | sed 's/ $//')"
    below "bytes of a tar without its holes" 20000000 "$(stat -c %s "$OUT/dev.tar")"
}

gnu_tar_reads_it() {
    tar -tvf "$OUT/dev.tar" >"$TMPDIR/listing" 2>"$TMPDIR/listing.err"
    # GNU tar takes long names as they are and has no need of the record that says so.
    equal warnings "" "$(grep -v hdrcharset "$TMPDIR/listing.err")"
    grep -q 'etc/hostname$' "$TMPDIR/listing"
    fresh gnu
    tar --xattrs --xattrs-include='*' --acls --numeric-owner -xpf "$OUT/dev.tar" -C "$OUT/gnu"
    same_as_view "$OUT/gnu"
    equal holes 64 "$(du -k "$OUT/gnu/srv/huge" | cut -f1)"
}

bsdtar_reads_it() {
    fresh bsd
    bsdtar --numeric-owner -xpf "$OUT/dev.tar" -C "$OUT/bsd"
    # bsdtar leaves the times of the directory that it unpacks in, and for a user set-user-id of what is not his.
    touch -r "$MOUNTS/dev" "$OUT/bsd"
    [ "$ACTOR" = root ] || chmod u+s "$OUT/bsd/usr/bin/hello"
    same_as_view "$OUT/bsd"
}

our_import_reads_it() {
    karapace import "$OUT/dev.tar" --name back
    equal base "$(inspect dev 'd["base_layer"]')" "$(inspect back 'd["base_layer"]')"
    karapace export back -o "$OUT/back.tar"
    cmp "$OUT/dev.tar" "$OUT/back.tar"
    karapace destroy -y back
}

# Owners come back only for root; elsewhere a user's own files are not root's.
a_directory_of_it_gives_the_same_bytes() {
    karapace import "$OUT/gnu" --name back
    karapace export back -o "$OUT/back.tar"
    cmp "$OUT/dev.tar" "$OUT/back.tar"
    karapace destroy -y back
}

uncommitted_changes_are_told() {
    echo changed >"$MOUNTS/dev/etc/changed"
    karapace export dev 2>"$TMPDIR/said" >"$OUT/again.tar"
    grep -q 'uncommitted' "$TMPDIR/said"
    cmp "$OUT/dev.tar" "$OUT/again.tar"
    karapace -q export dev@head 2>"$TMPDIR/said" >"$OUT/again.tar"
    equal said "" "$(cat "$TMPDIR/said")"
    karapace restore dev head
}

outputs() {
    # Not for a terminal; a full disk and a reader that goes away are failures; a device stays one.
    status_of 1 script -qec 'karapace export dev' /dev/null >"$TMPDIR/script" 2>&1
    grep -q 'terminal' "$TMPDIR/script"
    status_of 1 sh -c 'karapace export dev >/dev/full'
    refused karapace export dev -o /dev/full
    says 'No space left'
    [ -c /dev/full ] || wrong "/dev/full was replaced"
    equal 'status at a closed pipe' 141 "$(
        set +o pipefail
        { karapace export dev && :; echo $? >"$TMPDIR/status"; } | head -c 1000 >/dev/null
        cat "$TMPDIR/status"
    )"
    refused karapace export dev -o "$OUT"
    says 'is a directory'
    refused karapace export dev -o "$OUT/no/such/dir.tar"
    refused karapace export dev@nosuch -o "$OUT/x.tar"
    [ ! -e "$OUT/x.tar" ] || wrong "a failed export left a file"
    # Through a link, which stays.
    : >"$OUT/real.tar"
    ln -s real.tar "$OUT/link.tar"
    karapace export dev -o "$OUT/link.tar"
    cmp "$OUT/dev.tar" "$OUT/real.tar"
    [ -L "$OUT/link.tar" ] || wrong "the link was replaced"
    rm "$OUT/link.tar" "$OUT/real.tar"
    equal layer "$(inspect dev 'd["head"]')" "$(karapace --json export dev -o "$OUT/again.tar" | json - 'd["layer"]')"
}

chosen_paths() {
    local names
    names() { tar -tf "$OUT/some.tar" | tr '\n' ' '; }
    karapace export dev -o "$OUT/some.tar" -- etc/hostname /srv/data
    equal names "./ etc/ etc/hostname srv/ srv/data/ srv/data/fifo srv/data/large" "$(names | cut -d' ' -f1-7)"
    fresh some
    tar --xattrs --xattrs-include='*' -xpf "$OUT/some.tar" -C "$OUT/some"
    chmod u+rx "$OUT/some/srv/data"
    same_tree "$MOUNTS/dev/srv/data" "$OUT/some/srv/data" times
    # A link with where it leads; of a file of two names the one.
    karapace export dev -o "$OUT/some.tar" -- usr/os-release etc/keep-too
    equal names "./ etc/ etc/keep-too etc/os-release usr/ usr/os-release " "$(names)"
    equal content keep "$(tar -xOf "$OUT/some.tar" etc/keep-too)"
    karapace export dev -- / | cmp - "$OUT/dev.tar"
    refused karapace export dev -o "$OUT/none.tar" -- etc/nothing
    says '/etc/nothing.*not in'
    refused karapace export dev -o "$OUT/none.tar" -- ../etc
    refused karapace export dev --format oci -o "$OUT/none.tar" -- etc
    says 'whole'
    [ ! -e "$OUT/none.tar" ] || wrong "a refused export wrote something"
    rm "$OUT/some.tar"
}

# Several snapshots, with all that a layer can do to the one below.
change_and_commit() {
    cd "$MOUNTS/dev"
    rm etc/deleted
    rm -r usr/share/doc/many
    echo new >etc/changed
    ln etc/keep usr/third-name
    karapace commit dev -m 'first "commit"'
    # Kinds change: file to directory, directory to file and to link.
    rm etc/hostname usr/os-release
    mkdir etc/hostname
    echo below >etc/hostname/below
    rm -r var/empty
    echo file >var/empty
    rm -r srv/acl
    ln -s data srv/acl
    # Attributes alone.
    chmod 0700 usr/bin
    setfattr -n user.colour -v red etc/changed
    touch -d '2002-02-02 02:02:02.000000002' usr/share
    karapace commit dev -m second
    # What was deleted comes back; one name of a linked file goes; the rest of it changes.
    mkdir -p usr/share/doc/many
    echo again >usr/share/doc/many/7
    rm etc/keep-too
    echo more >>etc/keep
    karapace commit dev
}

skopeo_takes_the_image() {
    karapace export dev --format oci -o "$OUT/image" >"$TMPDIR/digest"
    skopeo inspect "oci:$OUT/image" >"$TMPDIR/inspected"
    equal digest "$(cat "$TMPDIR/digest")" "$(json "$TMPDIR/inspected" 'd["Digest"]')"
    equal layers 4 "$(json "$TMPDIR/inspected" 'len(d["Layers"])')"
    equal os linux "$(json "$TMPDIR/inspected" 'd["Os"]')"
    skopeo inspect --config "oci:$OUT/image:dev" >"$TMPDIR/config"
    equal command "['/bin/sh']" "$(json "$TMPDIR/config" 'd["config"]["Cmd"]')"
    equal comments "['first \"commit\"', 'second']" \
        "$(json "$TMPDIR/config" '[h["comment"] for h in d["history"] if "comment" in h]')"
    # Each blob is what its name says.
    (cd "$OUT/image/blobs/sha256" && for blob in *; do echo "$blob  $blob"; done | sha256sum --check --quiet)
    # skopeo checks the digests of what it copies.
    skopeo copy --insecure-policy "oci:$OUT/image" "dir:$OUT/copied" >/dev/null
}

umoci_unpacks_the_view() {
    local options=()
    [ "$ACTOR" = root ] || options=(--rootless)
    umoci unpack "${options[@]}" --image "$OUT/image:dev" "$OUT/bundle"
    same_as_view "$OUT/bundle/rootfs"
}

our_import_flattens_it() {
    karapace import "$OUT/image" --name back
    karapace export back -o "$OUT/back.tar"
    karapace export dev -o "$OUT/head.tar"
    cmp "$OUT/head.tar" "$OUT/back.tar"
    karapace destroy -y back
    rm "$OUT/back.tar" "$OUT/head.tar"
}

the_image_is_the_same_bytes_again() {
    rm -rf "$OUT/image" "$OUT/again"
    karapace export dev --format oci -o "$OUT/image"
    mkdir "$OUT/again"
    (umask 077 && TZ=Asia/Tokyo karapace export dev --format oci -o "$OUT/again")
    diff -r "$OUT/image" "$OUT/again"
    karapace export dev --format oci -o "$OUT/image.tar"
    karapace export dev --format oci >"$OUT/again.tar"
    cmp "$OUT/image.tar" "$OUT/again.tar"
    fresh archived
    tar -xf "$OUT/image.tar" -C "$OUT/archived"
    diff -r "$OUT/image" "$OUT/archived"
    skopeo inspect "oci-archive:$OUT/image.tar" >/dev/null
    refused karapace export dev --format oci -o "$OUT/image"
    says 'not empty'
}

# The tar inside is the same; the bytes are the same each time.
compressed_as_asked() {
    local end program
    karapace export dev -o "$OUT/plain.tar"
    for end in tar.gz:gzip tgz:gzip tar.zst:zstd tar.xz:xz; do
        program=${end#*:} end=${end%:*}
        karapace export dev -o "$OUT/packed.$end"
        "$program" -dc <"$OUT/packed.$end" | cmp - "$OUT/plain.tar"
        karapace export dev -o "$OUT/again.$end"
        cmp "$OUT/packed.$end" "$OUT/again.$end"
        rm "$OUT/packed.$end" "$OUT/again.$end"
    done
    karapace export dev --compress zstd | zstd -dc | cmp - "$OUT/plain.tar"
    karapace export dev --compress none -o "$OUT/not.tar.gz"
    cmp "$OUT/not.tar.gz" "$OUT/plain.tar"
    karapace export dev --compress gzip -o "$OUT/odd" -- etc
    gzip -t <"$OUT/odd"
    rm "$OUT/plain.tar" "$OUT/not.tar.gz" "$OUT/odd"
    # An image: its layers as asked, and the archive as it is named.
    refused karapace export dev --format oci --compress xz -o "$OUT/none"
    says 'gzip or zstd'
    for program in gzip zstd; do
        karapace export dev --format oci --compress "$program" -o "$OUT/packed"
        skopeo inspect --raw "oci:$OUT/packed:dev" | json - 'set(l["mediaType"] for l in d["layers"])' | has "{'application/vnd.oci.image.layer.v1.tar+$program'}"
        skopeo copy --insecure-policy "oci:$OUT/packed:dev" "dir:$OUT/unpacked" >/dev/null
        karapace import "$OUT/packed" --name back
        karapace import "$OUT/image" --name plain
        equal "the same tree" "$(inspect plain 'd["base_layer"]')" "$(inspect back 'd["base_layer"]')"
        karapace destroy -y back
        karapace destroy -y plain
        rm -rf "$OUT/packed" "$OUT/unpacked"
    done
    karapace export dev --format oci -o "$OUT/image.tar.gz"
    gzip -dc <"$OUT/image.tar.gz" | cmp - "$OUT/image.tar"
    rm "$OUT/image.tar.gz"
}

an_earlier_snapshot() {
    karapace export 'dev@~2' --format oci -o "$OUT/earlier"
    equal layers 2 "$(skopeo inspect "oci:$OUT/earlier" | json - 'len(d["Layers"])')"
    karapace export dev@base -o "$OUT/again.tar"
    cmp "$OUT/dev.tar" "$OUT/again.tar"
}

# What a removed snapshot changed is in the layer of the next.
a_removed_snapshot() {
    karapace snapshots rm dev '~1'
    karapace gc
    karapace export dev --format oci -o "$OUT/fewer"
    equal layers 3 "$(skopeo inspect "oci:$OUT/fewer" | json - 'len(d["Layers"])')"
    karapace import "$OUT/fewer" --name back
    karapace export back -o "$OUT/back.tar"
    karapace export dev | cmp - "$OUT/back.tar"
    karapace destroy -y back
}

what_cannot_be_told_is_said() {
    echo literal >"$MOUNTS/dev/etc/.wh.literal"
    python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$MOUNTS/dev/srv/socket"
    karapace commit dev
    karapace export dev -o "$OUT/again.tar" 2>"$TMPDIR/said"
    grep -q '"/srv/socket" is a socket' "$TMPDIR/said"
    equal names "./etc/.wh.literal" "$(tar -tf "$OUT/again.tar" 2>/dev/null | grep -E 'literal|socket' | sed 's,^,./,')"
    refused karapace export dev --format oci -o "$OUT/literal"
    says '/etc/\.wh\.literal'
    [ ! -e "$OUT/literal" ] || wrong "a failed export left a directory"
    equal left "" "$(find "$OUT" -maxdepth 1 -name '.karapace-export-*')"
}

killed_exports_leave_nothing() {
    local i
    mkdir "$OUT/killed"
    for i in 0.02 0.05 0.1 0.2 0.3; do
        timeout -s KILL "$i" karapace export dev -o "$OUT/killed/out.tar" 2>/dev/null || true
        equal left "" "$(find "$OUT/killed" -mindepth 1 ! -name out.tar)"
    done
    karapace export dev -o "$OUT/killed/out.tar"
    karapace export dev -o "$OUT/killed/out.tar"
    karapace export dev | cmp - "$OUT/killed/out.tar"
    equal "mode" "$(printf '%o' $((0666 & ~$(umask))))" "$(stat -c %a "$OUT/killed/out.tar")"
}

# A file system of 1 MiB, in this run's own mount table.
a_full_disk() {
    mkdir "$TMPDIR/small"
    mount -t tmpfs -o size=1M tmpfs "$TMPDIR/small"
    local format
    for format in tar oci; do
        refused karapace export dev --format "$format" -o "$TMPDIR/small/out"
        says 'No space left'
    done
    refused karapace export dev --format oci -o "$TMPDIR/small/out.tar"
    equal left "" "$(ls -A "$TMPDIR/small")"
    umount "$TMPDIR/small"
}

# The reader waits until the environment is gone and collected: much more than a pipe holds is still to come.
what_is_exported_is_not_collected() {
    karapace export debian -o "$OUT/debian.tar"
    karapace export debian | {
        # The export has begun.
        dd of="$OUT/again.tar" bs=1 count=1 status=none
        {
            karapace destroy -y debian
            karapace gc
        } >&2
        cat >>"$OUT/again.tar"
    }
    cmp "$OUT/debian.tar" "$OUT/again.tar"
    refused karapace inspect debian
}

a_debian_comes_back() {
    karapace import "$MINBASE_TAR" --name debian
    fresh plain
    fresh debian
    local options=(--xattrs --xattrs-include='*' --numeric-owner -xp)
    # Devices are beyond a user.
    [ "$ACTOR" = root ] || options+=(--exclude=./dev/*)
    tar "${options[@]}" -f "$MINBASE_TAR" -C "$OUT/plain"
    [ "$ACTOR" = root ] || options+=(--exclude=dev/*)
    karapace export debian | tar "${options[@]}" -f - -C "$OUT/debian"
    same_tree "$OUT/plain" "$OUT/debian" times
    diff <(times "$OUT/plain") <(times "$OUT/debian")
    equal shell /bin/bash "$(karapace export debian --format oci -o "$OUT/debian.oci" >/dev/null &&
        skopeo inspect --config "oci:$OUT/debian.oci" | json - 'd["config"]["Cmd"][0]')"
    chmod -R u+rwX "$OUT/plain" "$OUT/debian"
    rm -rf "$OUT/plain" "$OUT/debian" "$OUT/debian.oci"
}

need "an environment with every attribute" make_environment
need "two exports are the same bytes, whatever umask, locale and output" twice_the_same_bytes
check "GNU tar reads the view back" gnu_tar_reads_it
check "bsdtar reads the view back" bsdtar_reads_it
check "our import gives the same base and the same export" our_import_reads_it
[ "$ACTOR" != root ] || check "the unpacked directory gives the same export" a_directory_of_it_gives_the_same_bytes
check "uncommitted changes are left out with a note" uncommitted_changes_are_told
check "chosen paths, with what their links lead to" chosen_paths
check "terminals, full disks, closed pipes and devices" outputs
need "snapshots with deletions, changed kinds and links" change_and_commit
check "skopeo takes the OCI layout" skopeo_takes_the_image
check "umoci unpacks it to the view" umoci_unpacks_the_view
check "our import of it is the same tree" our_import_flattens_it
check "directory and archive are the same bytes each time" the_image_is_the_same_bytes_again
check "compressed by name and by option" compressed_as_asked
check "an earlier snapshot, and the base" an_earlier_snapshot
check "a snapshot that was removed" a_removed_snapshot
check "sockets are left out with a note, and names that mean a deletion are refused" what_cannot_be_told_is_said
check "an export that is killed leaves nothing beside its target" killed_exports_leave_nothing
[ "$ACTOR" != root ] || check "a full disk leaves nothing half-written" a_full_disk
check "a Debian is the same after export and import" a_debian_comes_back
check "gc keeps what is being exported" what_is_exported_is_not_collected
karapace umount dev
finish_suite
