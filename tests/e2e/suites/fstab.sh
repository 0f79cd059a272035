#!/usr/bin/env bash
# mount(8) with the type fuse.karapace, lines of fstab, remounts, umount(8).
# runs as: root user
. "$(dirname "$0")/../checks.sh"
DIR=$PLAIN/dir
# The suite's own (sandbox.sh): for an ordinary user mount(8) reads no other.
FSTAB=/etc/fstab

setup() {
    small_environment "$TMPDIR/image"
    install -m 0755 /usr/bin/true "$TMPDIR/true"
    karapace mount dev
    cp "$TMPDIR/true" "$MOUNTS/dev/etc/true"
    karapace umount dev
    mkdir "$DIR"
}

fstab() { printf '%s\n' "$@" >"$FSTAB"; }
flags() { findmnt -nro "${1:-VFS-OPTIONS}" "$DIR"; }
has_flag() { flags | tr , '\n' | has -x "$1" || wrong "no $1 in $(flags)"; }
# unmounted_by UMOUNT...: and its server ends.
unmounted_by() {
    local server
    server=$(server_of dev)
    "$@" "$DIR"
    not_mounted "$DIR"
    until_true gone "$server"
}

by_type() {
    mount -t fuse.karapace -o "store=$STORE" karapace+dev "$DIR"
    equal content three "$(cat "$DIR/etc/file")"
    equal source karapace+dev "$(flags SOURCE)"
    equal type fuse.karapace "$(flags FSTYPE)"
    echo four >"$DIR/etc/file"
    unmounted_by umount
    karapace mount dev "$DIR"
    equal "after umount(8)" four "$(cat "$DIR/etc/file")"
    unmounted_by umount
}

by_fstab() {
    fstab "karapace+dev $DIR fuse.karapace user,noauto,nofail,_netdev,x-systemd.idle-timeout=9,store=$STORE 0 0"
    mount "$DIR"
    equal content four "$(cat "$DIR/etc/file")"
    # What `user` means, unless the line says otherwise.
    has_flag noexec
    has_flag nosuid
    has_flag nodev
    status_of 126 "$DIR/etc/true"
    refused mount "$DIR"
    unmounted_by umount
    # The store of the user's account, because mount(8) does not pass on HOME.
    local where=''
    [ "$(getent passwd "$(id -u)" | cut -d: -f6)" = "$HOME" ] || where=,store=$STORE
    fstab "dev $DIR fuse.karapace user,exec$where 0 0"
    mount "$DIR"
    "$DIR/etc/true"
    flags | has noexec && wrong "$(flags)"
    unmounted_by umount
    # A snapshot.
    fstab "dev@first $DIR fuse.karapace user,ro,store=$STORE 0 0"
    mount "$DIR"
    equal "content of the snapshot" two "$(cat "$DIR/etc/file")"
    refused touch "$DIR/etc/file"
    says 'Read-only file system'
    umount "$DIR"
    not_mounted "$DIR"
}

# All of a file that is not the system's.
by_other_fstab() {
    echo "karapace+dev $DIR fuse.karapace ro,store=$STORE 0 0" >"$TMPDIR/fstab"
    mount --all --fstab "$TMPDIR/fstab"
    has_flag ro
    # It is there already.
    mount --all --fstab "$TMPDIR/fstab"
    equal mounts 1 "$(findmnt -nro TARGET "$DIR" | wc -l)"
    mount --fstab "$TMPDIR/fstab" -o remount,rw "$DIR"
    echo five >"$DIR/etc/file"
    unmounted_by umount
}

remounts() {
    : >"$FSTAB"
    mount -t fuse.karapace -o "noexec,store=$STORE" karapace+dev "$DIR"
    echo six >"$DIR/etc/file"
    exec 9>"$DIR/etc/open"
    status_of 32 mount -o remount,ro "$DIR"
    exec 9>&-
    mount -o remount,ro "$DIR"
    has_flag ro
    has_flag noexec
    refused touch "$DIR/etc/file"
    says 'Read-only file system'
    # Commands that need no control file still work.
    karapace commit dev
    mount -o remount,rw,exec,nodev "$DIR"
    has_flag rw
    has_flag nodev
    "$DIR/etc/true"
    mount -o remount,ro karapace+dev "$DIR"
    has_flag ro
    unmounted_by umount
    status_of 32 /sbin/mount.fuse.karapace karapace+dev "$DIR" -o remount,ro
    refused /sbin/mount.fuse.karapace karapace+dev "$PLAIN" -o remount,ro
    says 'no environment is mounted on'
}

# Of a user's mount: what the user puts there is neither a device nor set-user-id, whoever remounts it.
remount_of_a_users() {
    local home=$TMPDIR/home
    mkdir -p "$home/tree/etc" "$home/mnt"
    chmod 711 "$TMPDIR"
    chown -R tester: "$home"
    as_tester() { setpriv --reuid=tester --regid=tester --init-groups env HOME="$home" KARAPACE_STORE="$home/store" "$@"; }
    as_tester karapace import "$home/tree" --name theirs
    as_tester karapace mount theirs "$home/mnt"
    mount -t fuse.karapace -o remount,ro karapace+theirs "$home/mnt"
    findmnt -no OPTIONS "$home/mnt" | tee "$TMPDIR/flags"
    for flag in ro nosuid nodev; do tr , '\n' <"$TMPDIR/flags" | has -x "$flag"; done
    /sbin/mount.fuse.karapace karapace+theirs "$home/mnt" -o remount,rw,suid,dev
    findmnt -no OPTIONS "$home/mnt" | tee "$TMPDIR/flags"
    for flag in rw nosuid nodev; do tr , '\n' <"$TMPDIR/flags" | has -x "$flag"; done
    as_tester karapace umount theirs
}

remount_is_roots() {
    /sbin/mount.fuse.karapace dev "$DIR"
    refused mount -o remount,ro "$DIR"
    status_of 32 /sbin/mount.fuse.karapace karapace+dev "$DIR" -o remount,ro
    unmounted_by umount
}

errors() {
    # mount(8) leaves this as it is.
    export KARAPACE_STORE=$STORE
    local helper=(mount -t fuse.karapace)
    refused "${helper[@]}" karapace+dev "$DIR" -o rw,acl
    says 'unknown option acl'
    status_of 1 "${helper[@]}" karapace+dev "$DIR" -o acl
    refused "${helper[@]}" karapace+dev "$DIR" -o threads=none
    says 'from 1 to 64'
    status_of 32 "${helper[@]}" karapace+nosuch "$DIR"
    status_of 32 "${helper[@]}" dev@nosuch "$DIR"
    status_of 32 "${helper[@]}" dev "$TMPDIR"
    status_of 1 /sbin/mount.fuse.karapace dev
    status_of 1 /sbin/mount.fuse.karapace dev "$DIR" -N /proc/1/ns/mnt
    not_mounted "$DIR"
    # Everything except the mount.
    "${helper[@]}" -f karapace+dev "$DIR"
    not_mounted "$DIR"
    "${helper[@]}" -s karapace+dev "$DIR" -o acl
    [ -s "$DIR/etc/file" ]
    status_of 32 "${helper[@]}" dev "$DIR"
    unmounted_by umount
    [ "$ACTOR" = root ] || return 0
    # A store of somebody else's.
    chown -R tester: "$STORE"
    refused mount -t fuse.karapace karapace+dev "$DIR" -o "store=$STORE"
    says 'belongs to tester'
    chown -R root: "$STORE"
}

# df and du tell by its source.
is_local() {
    karapace mount dev "$DIR"
    df --local --output=target "$DIR" | has -x "$DIR"
    if [ "$ACTOR" = root ]; then
        mkdir -p "$DIR/cycle/inside"
        mount --bind "$DIR/cycle" "$DIR/cycle/inside"
        du "$DIR/cycle"
        umount "$DIR/cycle/inside"
    fi
    unmounted_by umount
}

need "an environment" setup
check "an environment is mounted by mount -t fuse.karapace, and unmounted by umount(8)" by_type
check "df --local shows it, and du knows a bind mount inside" is_local
check "lines of fstab: user, flags, stores, snapshots" by_fstab
if [ "$ACTOR" = root ]; then
    check "mount --all of another fstab" by_other_fstab
    check "mount -o remount: ro, rw, flags" remounts
    check "a user's mount stays nosuid and nodev when root remounts it" remount_of_a_users
else
    check "only root can remount" remount_is_roots
fi
check "unknown options, environments and directories; -f and -s" errors
finish_suite
