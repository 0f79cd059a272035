#!/usr/bin/env bash
# dpkg and rpm install, upgrade, check and remove packages in the mount as on ext4.
# runs as: root user
# files: MINBASE DEBS
# seconds: 80
. "$(dirname "$0")/../checks.sh"
ENV=packages
DIR=$MOUNTS/$ENV
ROOTFS=$PLAIN/rootfs
# Scripts set the current time on files. An ordinary user has one id on ext4, while the mount keeps all ids.
COMPARED=(--no-times)
[ "$ACTOR" = root ] || COMPARED+=(--no-owners)

setup() {
    karapace import "$MINBASE_TAR" --name "$ENV"
    karapace mount "$ENV"
    mkdir "$ROOTFS"
    local options=(--numeric-owner --same-permissions)
    [ "$ACTOR" = root ] || options=(--no-same-owner --same-permissions --exclude='./dev/*')
    tar -xf "$MINBASE_TAR" "${options[@]}" -C "$ROOTFS"
    # netbase makes one where there is none, and a session has one of its own.
    printf '127.0.0.1\tlocalhost\n' | tee "$ROOTFS/etc/hosts" >"$DIR/etc/hosts"
    mkdir "$ROOTFS/srv/debs" "$DIR/srv/debs"
    cp "$DEBS"/*.deb "$ROOTFS/srv/debs/"
    cp "$DEBS"/*.deb "$DIR/srv/debs/"
}

as_its_root() { if [ "$ACTOR" = root ]; then unshare --mount "$@"; else unshare --user --map-root-user --mount "$@"; fi; }
# inside FILE-SYSTEM COMMAND: by `exec`, and on ext4 by a chroot.
inside() {
    local where=$1
    shift
    if [ "$where" = mount ]; then
        karapace exec "$ENV" -- env DEBIAN_FRONTEND=noninteractive "$@"
    else
        as_its_root sh -euc 'mount --rbind /dev "$0/dev"; mount --rbind /proc "$0/proc"
            DEBIAN_FRONTEND=noninteractive exec chroot "$0" "$@"' "$ROOTFS" "$@"
    fi
}
# on_both COMMAND: says the same in both, and ends with the same status.
on_both() {
    local where
    for where in ext4 mount; do
        { inside "$where" "$@" && echo "status 0" || echo "status $?"; } >"$TMPDIR/said.$where" 2>&1
    done
    diff "$TMPDIR/said.ext4" "$TMPDIR/said.mount" || wrong "different: $*"
    cat "$TMPDIR/said.mount"
}
# Everything but logs, and a cache that holds inode numbers and times.
same_systems() {
    local part
    for part in bin etc lib opt root sbin srv usr var/backups var/lib; do
        [ -L "$DIR/$part" ] || same_attributes "$ROOTFS/$part" "$DIR/$part" "${COMPARED[@]}"
    done
}

dpkg_installs() {
    on_both sh -c 'dpkg -i /srv/debs/hello_*.deb /srv/debs/less_*.deb /srv/debs/cpio_*.deb /srv/debs/netbase_*.deb'
    has 'status 0' <"$TMPDIR/said.mount"
    equal greeting "Hello, world!" "$(inside mount hello)"
    on_both dpkg --audit
    on_both dpkg --verify
    on_both dpkg-query -W
    on_both update-alternatives --query pager
    same_systems
}
# Unpacking over files of the lower view: dpkg links each aside, and renames the new one over it.
dpkg_replaces() {
    commit "$ENV"
    on_both sh -c 'dpkg -i /srv/debs/perl-base_*.deb'
    has 'status 0' <"$TMPDIR/said.mount"
    on_both perl -e 'print "works\n"'
    on_both dpkg --verify
    equal "hard links of perl" 2 "$(stat -c %h "$DIR/usr/bin/perl")"
    same_systems
}
dpkg_keeps_conffiles() {
    local where=("$ROOTFS" "$DIR") root
    for root in "${where[@]}"; do
        sed -i 's/^tcp.*/# &/' "$root/etc/protocols"
        rm "$root/usr/share/doc/hello/copyright"
    done
    on_both dpkg --verify
    has '^??5?????? c /etc/protocols' <"$TMPDIR/said.mount"
    has '^missing .*hello/copyright' <"$TMPDIR/said.mount"
    on_both sh -c 'dpkg --force-confold -i /srv/debs/netbase_*.deb /srv/debs/hello_*.deb'
    on_both dpkg-divert --local --rename --add /usr/bin/hello
    on_both dpkg-statoverride --update --add root root 0700 /usr/bin/cpio
    on_both dpkg --remove less netbase
    on_both dpkg --purge cpio
    on_both dpkg --audit
    same_systems
    on_both dpkg-divert --local --rename --remove /usr/bin/hello
    on_both dpkg --purge hello less netbase
    on_both dpkg-query -W
    same_systems
}

# package VERSION: a package of files, links, a conffile, an empty directory and scripts.
package() {
    cat >"$TMPDIR/tiny.spec" <<SPEC
Name: tiny
Version: $1
Release: 1
Summary: A package
License: none
BuildArch: noarch
%description
A package.
%install
mkdir -p %{buildroot}/opt/tiny/empty %{buildroot}/etc
echo version $1 >%{buildroot}/opt/tiny/file
echo only in $1 >%{buildroot}/opt/tiny/only-$1
ln %{buildroot}/opt/tiny/file %{buildroot}/opt/tiny/linked
ln -s file %{buildroot}/opt/tiny/symlink
head -c 3000000 /dev/zero | tr '\\\\0' '$1' >%{buildroot}/opt/tiny/large
echo setting $1 >%{buildroot}/etc/tiny.conf
# Not the second in which the check changes it: rpm compares seconds.
touch -d '2020-01-01' %{buildroot}/etc/tiny.conf
%post
echo post $1 >>/opt/tiny.log
%postun
echo postun $1 >>/opt/tiny.log
%files
%defattr(-,root,root)
%attr(0711,root,root) /opt/tiny
%config(noreplace) /etc/tiny.conf
SPEC
    rpmbuild --quiet -bb --define "_topdir $TMPDIR/rpmbuild" --define '_build_id_links none' \
        --define "_rpmdir $TMPDIR/rpms" --target noarch "$TMPDIR/tiny.spec"
}
# rpm_in ROOT COMMAND...: with the database where the distributions that use it have it, not in the caller's home.
rpm_in() {
    local root=$1 program=$2
    shift 2
    as_its_root "$program" --root "$root" --dbpath /var/lib/rpm "$@"
}
rpm_builds() {
    package 1
    package 2
}
rpm_on() {
    local root=$1
    local rpm=(rpm_in "$root" rpm) rpmdb=(rpm_in "$root" rpmdb)
    "${rpmdb[@]}" --initdb
    "${rpm[@]}" --nodeps -i "$TMPDIR/rpms/noarch/tiny-1-1.noarch.rpm"
    "${rpmdb[@]}" --verifydb
    "${rpm[@]}" -qa
    "${rpm[@]}" -V --nodeps tiny
    "${rpm[@]}" -q --state tiny
    echo changed >>"$root/etc/tiny.conf"
    chmod 0600 "$root/opt/tiny/file"
    rm "$root/opt/tiny/only-1"
    "${rpm[@]}" -V --nodeps tiny && wrong "changes not seen"
    "${rpm[@]}" --nodeps -U "$TMPDIR/rpms/noarch/tiny-2-1.noarch.rpm"
    "${rpm[@]}" -V --nodeps tiny && wrong "the kept setting not seen"
    "${rpm[@]}" -qa
    "${rpmdb[@]}" --rebuilddb
    "${rpmdb[@]}" --verifydb
    "${rpm[@]}" -q --dump tiny
    cat "$root/opt/tiny.log" "$root/etc/tiny.conf" "$root/etc/tiny.conf.rpmnew"
    equal "one inode" "$(stat -c %i "$root/opt/tiny/file")" "$(stat -c %i "$root/opt/tiny/linked")"
}
rpm_is_the_same() {
    rpm_on "$ROOTFS" 2>&1 | sed "s|$ROOTFS||" >"$TMPDIR/rpm.ext4"
    rpm_on "$DIR" 2>&1 | sed "s|$DIR||" >"$TMPDIR/rpm.mount"
    diff "$TMPDIR/rpm.ext4" "$TMPDIR/rpm.mount"
    has 'postun 1' <"$TMPDIR/rpm.mount"
    same_attributes "$ROOTFS/opt" "$DIR/opt" "${COMPARED[@]}"
    rpm_in "$ROOTFS" rpm -e tiny
    rpm_in "$DIR" rpm -e tiny
    equal "packages left" "" "$(rpm_in "$DIR" rpm -qa)"
    rpm_in "$DIR" rpmdb --verifydb
    local part
    for part in opt etc; do same_attributes "$ROOTFS/$part" "$DIR/$part" "${COMPARED[@]}"; done
}

is_whole() {
    inside mount dpkg --audit
    commit "$ENV"
    karapace umount "$ENV"
    karapace verify-store
}

need "a Debian in the mount, and one on ext4" setup
check "dpkg installs: conffiles, alternatives, scripts; audit, verify" dpkg_installs
check "dpkg installs over files of the lower view, hard links among them" dpkg_replaces
check "dpkg with changed conffiles, diversions, overrides; remove and purge" dpkg_keeps_conffiles
need "two packages by rpmbuild" rpm_builds
check "rpm: initdb, install, upgrade, verify, rebuilddb, erase" rpm_is_the_same
check "commit, umount and verify-store" is_whole
finish_suite
