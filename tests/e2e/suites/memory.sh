#!/usr/bin/env bash
# Memory: large files go through in pieces. The limit is 200 MiB resident, in any process of karapace.
# runs as: root
# seconds: 60
. "$(dirname "$0")/../checks.sh"
ENV=big
DIR=$MOUNTS/$ENV
LIMIT_KIB=$((200 * 1024))

# Bytes that neither compress nor repeat, fast.
noise() { head -c "$2" /dev/zero | openssl enc -aes-128-ctr -pass "pass:$1" -nosalt -pbkdf2; }

below_limit() {
    echo "note: $1: at most $(($2 / 1024)) MiB resident"
    [ "$2" -lt "$LIMIT_KIB" ] || wrong "$1: $2 KiB resident, more than $LIMIT_KIB"
}
# peak COMMAND...: runs it and checks its high-water mark.
peak() {
    command time -f %M -o "$TMPDIR/peak" "$@"
    below_limit "karapace $2" "$(tail -n1 "$TMPDIR/peak")"
}
server_peak() { below_limit "the serving process" "$(awk '/^VmHWM/ { print $2 }' "/proc/$(server_of "$ENV")/status")"; }

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
commits_1_gib() {
    noise commit 1073741824 >"$DIR/srv/1G"
    commit "$ENV" >"$TMPDIR/with-1G"
    server_peak
    noise commit 1073741824 | cmp - "$DIR/srv/1G"
}
# The same on a large file of the base: half of it changed in place.
commits_1_gib_in_place() {
    noise inside 1073741824 | dd of="$DIR/srv/2G" bs=1M seek=500 conv=notrunc iflag=fullblock status=none
    commit "$ENV" >/dev/null
    server_peak
    noise inside 1073741824 | dd of="$PLAIN/fixture/srv/2G" bs=1M seek=500 conv=notrunc iflag=fullblock status=none
    cmp "$PLAIN/fixture/srv/2G" "$DIR/srv/2G"
}
restores() {
    ctl "$ENV" "restore $(cat "$TMPDIR/with-1G")"
    noise import 2147483648 | cmp - "$DIR/srv/2G"
    server_peak
    karapace umount "$ENV"
}
commits_unmounted() {
    karapace mount "$ENV"
    noise again 1073741824 >"$DIR/srv/again"
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
    local grown=$(($(store_bytes) - before))
    [ "$grown" -lt 4194304 ] || wrong "one byte of 2 GiB cost $grown bytes"
    karapace umount "$ENV"
}

need "import of an archive with a 2 GiB file" imports_2_gib
check "reading it back" reads_2_gib
check "commit of a new 1 GiB file" commits_1_gib
check "commit of 1 GiB changed in place" commits_1_gib_in_place
check "restore" restores
check "commit without a mount, verify-store, gc" commits_unmounted
check "one byte changed in 2 GiB stores little" a_small_change_stores_little
finish_suite
