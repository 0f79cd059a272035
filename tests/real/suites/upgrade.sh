#!/usr/bin/env bash
# mmdebstrap inside an environment, and a distribution upgrade inside, as in a chroot on ext4; restores to before and after it
# runs as: root user
# files: MINBASE RELEASES
. "$(dirname "$0")/../common.sh"
ENV=upgrade
DIR=$MOUNTS/$ENV
ROOTFS=$PLAIN/rootfs
# The lines of apt's sources: of the release that the root file system is, and of the one after it (scripts/lib/packages.sh).
OLD=$RELEASES/old.list
NEW=$RELEASES/new.list
# Scripts give files the time at which they run.
COMPARED=(--no-times)

# A chroot's root has all ids, as root inside has: of a user namespace where root is not at hand.
as_its_root() {
    if [ "$ACTOR" = root ]; then unshare --mount "$@"; else unshare --user --map-auto --map-root-user --mount "$@"; fi
}
# inside FILE-SYSTEM COMMAND...: by `exec`, and on ext4 by a chroot.
inside() {
    local where=$1
    shift
    local command=(env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
        DEBIAN_FRONTEND=noninteractive "$@")
    if [ "$where" = mount ]; then
        karapace exec "$ENV" -- "${command[@]}"
    else
        as_its_root sh -euc 'mount --rbind /dev "$0/dev"; mount --rbind /proc "$0/proc"; mount --rbind /sys "$0/sys"
            exec chroot "$0" "$@"' "$ROOTFS" "${command[@]}"
    fi
}
on_both_systems() {
    inside ext4 "$@"
    inside mount "$@"
}
# settle WHERE FILE: apt's sources and settings; nothing that a package starts.
settle() {
    inside "$1" sh -c 'cat >/etc/apt/sources.list; rm -rf /etc/apt/sources.list.d/*' <"$2"
}
configure() {
    inside "$1" sh -c 'cat >/etc/apt/apt.conf.d/99test' <"$RELEASES/apt.conf"
    # No daemon is started in a chroot.
    inside "$1" sh -c 'printf "#!/bin/sh\nexit 101\n" >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d'
    inside "$1" sh -c 'cat >/etc/resolv.conf' </etc/resolv.conf || true
}

# A user's environment is not mounted while it is worked in: inside there are all ids then.
setup() {
    karapace import "$MINBASE_TAR" --name "$ENV"
    mkdir "$ROOTFS"
    as_its_root tar -xpf "$MINBASE_TAR" --numeric-owner --exclude='./dev/*' -C "$ROOTFS"
    local where
    for where in ext4 mount; do
        configure "$where"
        settle "$where" "$OLD"
        inside "$where" apt-get -qq update
    done
}
apt_in() { inside "$1" apt-get -qq -y --no-install-recommends -o Dpkg::Options::=--force-confnew "${@:2}" >"$TMPDIR/apt.$1" 2>&1 || {
    tr '\r' '\n' <"$TMPDIR/apt.$1" | grep -av '^(Reading database' | tail -n 30
    return 1
}; }

# The same archive each time, for the time is given: made in the environment and in the chroot.
mmdebstraps() {
    local where
    for where in ext4 mount; do
        apt_in "$where" install mmdebstrap
        # In a session nobody mounts on another's behalf; fakechroot and user namespaces inside are another matter.
        inside "$where" sh -euc 'SOURCE_DATE_EPOCH=1700000000 mmdebstrap --quiet --mode=root --variant=essential --include=hello \
            --skip=check/qemu --aptopt=/etc/apt/apt.conf.d/99test --format=tar "" /srv/made.tar /etc/apt/sources.list'
        inside "$where" sha256sum /srv/made.tar >"$TMPDIR/made.$where"
    done
    inside mount tar -tf /srv/made.tar | has usr/bin/hello
    cmp "$TMPDIR/made.ext4" "$TMPDIR/made.mount"
    on_both_systems rm /srv/made.tar
    karapace commit "$ENV" --name made
}

upgrades() {
    local where
    karapace commit "$ENV" --name before
    for where in ext4 mount; do
        settle "$where" "$NEW"
        apt_in "$where" update
        apt_in "$where" upgrade
        # In the midst of it.
        [ "$where" = ext4 ] || karapace commit "$ENV" --name middle
        apt_in "$where" dist-upgrade
        apt_in "$where" autoremove
        apt_in "$where" clean
    done
    karapace commit "$ENV" --name after
    for where in ext4 mount; do
        inside "$where" dpkg --audit
        inside "$where" dpkg --verify >"$TMPDIR/verify.$where" || true
        inside "$where" dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\n' >"$TMPDIR/packages.$where"
        inside "$where" cat /etc/os-release >"$TMPDIR/release.$where"
    done
    cmp "$TMPDIR/release.ext4" "$TMPDIR/release.mount"
    diff "$TMPDIR/packages.ext4" "$TMPDIR/packages.mount"
    diff "$TMPDIR/verify.ext4" "$TMPDIR/verify.mount"
    echo "note: $(sed -n 's/^PRETTY_NAME=//p' "$TMPDIR/release.mount"), $(grep -c ' installed$' "$TMPDIR/packages.mount") packages"
}
# All of both, inside, where ids are what they are; logs, caches with inode numbers and times, and what a session puts there are left out.
trees_are_the_same() {
    local where
    for where in ext4 mount; do
        inside "$where" sh -c 'cat >/srv/attributes.py' <"$SCRATCH/tree/e2e/attributes.py"
        apt_in "$where" install python3-minimal
        inside "$where" sh -c 'rm -f /etc/hosts /etc/resolv.conf /etc/hostname 2>/dev/null; for part in etc opt root sbin srv usr var/lib var/spool; do
            [ -L /$part ] || { echo "== $part"; python3 -B /srv/attributes.py --no-times --no-holes /$part; }; done' |
            grep -avE "^b'\./(apt/lists|apt/periodic|systemd/(catalog|deb-systemd)|ld\.so\.cache|\.pwd\.lock|hosts|hostname|resolv\.conf|mtab|dpkg/lock)" |
            sed 's/ as b.*data/ data/' >"$TMPDIR/tree.$where"
    done
    [ "$(wc -l <"$TMPDIR/tree.mount")" -gt 5000 ]
    diff "$TMPDIR/tree.ext4" "$TMPDIR/tree.mount" | cut -c 1-300 | head -n 30
    cmp "$TMPDIR/tree.ext4" "$TMPDIR/tree.mount"
}

version_of() { karapace exec "$ENV" -- sh -c '. /etc/os-release; echo "$VERSION_ID"'; }
restored() {
    local old new
    new=$(version_of)
    karapace restore "$ENV" before
    old=$(version_of)
    echo "note: $new, before it $old"
    [ "$old" != "$new" ]
    inside mount dpkg --audit
    equal "changed files" "" "$(inside mount dpkg --verify | grep -v ' c /' || true)"
    # In the midst, from where dist-upgrade goes on.
    karapace restore "$ENV" middle
    settle mount "$NEW"
    apt_in mount update
    apt_in mount dist-upgrade
    equal "version" "$new" "$(version_of)"
    inside mount dpkg --audit
    karapace restore "$ENV" after
    inside mount dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\n' | diff "$TMPDIR/packages.mount" -
    karapace mount "$ENV"
    equal "seen from outside" "$(sed -n 's/^VERSION_ID=//p' "$TMPDIR/release.mount")" "$(sed -n 's/^VERSION_ID=//p' "$DIR/etc/os-release")"
}

need "a Debian in an environment, and one on ext4" setup
check "mmdebstrap inside: the same archive" mmdebstraps
need "upgrade, dist-upgrade and autoremove to the release after it" upgrades
check "files, modes, owners, attributes: the same" trees_are_the_same
check "restores to before, to the midst, and after" restored
check "umount and verify-store" is_whole
finish_suite
