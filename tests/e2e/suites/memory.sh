#!/usr/bin/env bash
# Memory: large files go through in pieces. The limit is 64 MiB resident, in any process of karapace.
# runs as: root
# seconds: 80
. "$(dirname "$0")/../checks.sh"
ENV=big
DIR=$MOUNTS/$ENV
LIMIT_KIB=$((64 * 1024))
# Four times the limit, which is more than twice what any process takes.
LARGE=$((256 << 20))

below_limit() {
    echo "note: $1: at most $(($2 / 1024)) MiB resident"
    below "KiB resident of $1" "$LIMIT_KIB" "$2"
}
# peak COMMAND...: runs it and checks its high-water mark.
peak() {
    command time -f %M -o "$TMPDIR/peak" "$@"
    below_limit "karapace $2" "$(tail -n1 "$TMPDIR/peak")"
}
server_peak() { below_limit "the serving process" "$(peak_of "$(server_of "$ENV")")"; }

imports_2_gib() {
    fixture "$PLAIN/fixture"
    noise import 2147483648 >"$PLAIN/fixture/srv/2G"
    fixture_tar "$PLAIN/fixture" "$PLAIN/big.tar"
    peak karapace import "$PLAIN/big.tar" --name "$ENV"
    rm "$PLAIN/big.tar"
}
reads_2_gib() {
    karapace mount "$ENV"
    cmp "$PLAIN/fixture/srv/2G" "$DIR/srv/2G"
    server_peak
}
commits_large() {
    noise commit "$LARGE" >"$DIR/srv/large-too"
    commit "$ENV" >"$TMPDIR/with-large"
    server_peak
    noise commit "$LARGE" | cmp - "$DIR/srv/large-too"
}
# The same on a large file of the base: a part of it changed in place.
commits_large_in_place() {
    noise inside "$LARGE" | dd of="$DIR/srv/2G" bs=1M seek=500 conv=notrunc iflag=fullblock status=none
    commit "$ENV" >/dev/null
    server_peak
    noise inside "$LARGE" | dd of="$PLAIN/fixture/srv/2G" bs=1M seek=500 conv=notrunc iflag=fullblock status=none
    cmp "$PLAIN/fixture/srv/2G" "$DIR/srv/2G"
}
restores() {
    ctl "$ENV" "restore $(cat "$TMPDIR/with-large")"
    noise import 2147483648 | cmp - "$DIR/srv/2G"
    server_peak
    karapace umount "$ENV"
}
commits_unmounted() {
    karapace mount "$ENV"
    noise again "$LARGE" >"$DIR/srv/again"
    karapace umount "$ENV"
    peak karapace commit "$ENV"
    peak karapace verify-store
    peak karapace gc
}
a_small_change_stores_little() {
    karapace mount "$ENV"
    local before
    before=$(store_bytes)
    printf x | dd of="$DIR/srv/2G" bs=1 seek=1000000000 conv=notrunc status=none
    commit "$ENV" >/dev/null
    below "bytes for one byte of 2 GiB" 4194304 $(($(store_bytes) - before))
    karapace umount "$ENV"
}

need "import of an archive with a 2 GiB file" imports_2_gib
check "reading it back" reads_2_gib
check "commit of a new large file" commits_large
check "commit of as much changed in place" commits_large_in_place
check "restore" restores
check "commit without a mount, verify-store, gc" commits_unmounted
check "one byte changed in 2 GiB stores little" a_small_change_stores_little
finish_suite
