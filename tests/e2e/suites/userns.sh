#!/usr/bin/env bash
# A mount made inside a user namespace with a range of ids: ids appear as they are inside, and what root may do there
# works as for real root.
# runs as: user
# files: MINBASE
. "$(dirname "$0")/../checks.sh"
ENV=ranged
DIR=$MOUNTS/$ENV
# Mapped are 0 (the user) and 1 to 65535 (/etc/subuid).
OUTSIDE=100000

# The image: owners inside and outside of the range, in ACLs too, devices, set-user-id programs.
image() {
    python3 - "$TMPDIR/image.tar" "$OUTSIDE" <<'PYTHON'
import io, struct, sys, tarfile
outside = int(sys.argv[2])
archive = tarfile.open(sys.argv[1], "w", format=tarfile.PAX_FORMAT)
def add(path, kind=tarfile.REGTYPE, mode=0o644, uid=0, gid=0, data=b"", device=(0, 0), acl=None, **attributes):
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode, entry.uid, entry.gid, entry.size = kind, mode, uid, gid, len(data)
    entry.devmajor, entry.devminor, entry.mtime = *device, 1000000000
    if acl:
        value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *part) for part in acl)
        entry.pax_headers["SCHILY.xattr.system.posix_acl_access"] = value.decode("utf-8", "surrogateescape")
    for name, value in attributes.items():
        entry.pax_headers["SCHILY.xattr." + name.replace("_", ".")] = value
    archive.addfile(entry, io.BytesIO(data))
def acl(*named):
    # In the order that Linux wants: users (2) before the group's own entry, groups (8) behind it.
    users, groups = ([entry for entry in named if entry[0] == tag] for tag in (2, 8))
    return [(1, 6, 0xffffffff), *users, (4, 0, 0xffffffff), *groups, (16, 6, 0xffffffff), (32, 0, 0xffffffff)]
for path in ["etc", "owned", "acl", "dev", "bin"]:
    add(path, tarfile.DIRTYPE, 0o755)
add("etc/os-release", data=b'PRETTY_NAME="Ranged"\n', trusted_t="1", user_u="2")
add("owned/33", uid=33, gid=33, data=b"33\n")
add("owned/last", uid=65535, gid=65535, data=b"last\n")
add("owned/outside", uid=outside, gid=outside, data=b"outside\n")
add("owned/private", mode=0o600, uid=outside, gid=outside, data=b"private\n")
add("owned/half", mode=0o664, uid=0, gid=outside, data=b"half\n")
add("owned/greatest", uid=2**32 - 2, gid=2**32 - 2, data=b"greatest\n")
add("owned/directory", tarfile.DIRTYPE, 0o755, outside, outside)
add("owned/directory/roots", data=b"roots\n")
add("acl/named", mode=0o660, data=b"named\n", acl=acl((2, 4, 1000), (2, 6, outside)))
add("acl/group", mode=0o660, data=b"group\n", acl=acl((8, 6, outside), (8, 4, 2000)))
add("dev/null", tarfile.CHRTYPE, 0o666, device=(1, 3))
add("dev/disk", tarfile.BLKTYPE, 0o660, gid=6, device=(8, 0))
for name, mode in [("set-user", 0o4755), ("set-group", 0o2755)]:
    add("bin/" + name, mode=mode, uid=1000, gid=1000, data=open("/usr/bin/id", "rb").read())
archive.close()
PYTHON
    karapace import "$TMPDIR/image.tar" --name "$ENV"
}

# in_ns COMMAND...: as root of the namespace. as IDS COMMAND...: there as uid:gid[,group...].
in_ns() { nsenter --target "$(cat "$TMPDIR/holder")" --user --mount -- "$@"; }
as() {
    local uid=${1%%:*} gids=${1#*:}
    shift
    in_ns setpriv --reuid="$uid" --regid="${gids%%,*}" --groups="$gids" -- "$@"
}
# in_dir SCRIPT: a script in the mount, with errexit, as root of the namespace.
in_dir() { in_ns bash -euc 'cd "$1"; eval "$2"' - "$DIR" "$1"; }

namespace() {
    unshare --user --map-auto --map-root-user --mount --propagation private sleep infinity &
    echo $! >"$TMPDIR/holder"
    until_true in_ns sh -c '[ "$(cut -d" " -f1 /proc/self/uid_map | wc -l)" -ge 1 ] && [ "$(id -u)" = 0 ]'
    in_ns cat /proc/self/uid_map
    equal mapped 65536 "$(in_ns awk '{ n += $3 } END { print n }' /proc/self/uid_map)"
}

mounting() {
    in_ns karapace mount "$ENV"
    in_ns stat -f -c %T "$DIR" | grep -q fuse
    in_ns findmnt -no OPTIONS "$DIR" | tee "$TMPDIR/options"
    grep -q allow_other "$TMPDIR/options"
    grep -q default_permissions "$TMPDIR/options"
    not_mounted "$DIR"
}

ids_as_they_are() {
    equal 33 "33 33" "$(in_dir 'stat -c "%u %g" owned/33')"
    equal last "65535 65535" "$(in_dir 'stat -c "%u %g" owned/last')"
    in_dir 'echo x >new; mkdir newdir'
    equal new "0 0" "$(in_dir 'stat -c "%u %g" new')"
    in_dir 'chmod 1777 newdir'
    as 1234:5678 sh -c "echo x >$DIR/newdir/f"
    equal "an ordinary user's" "1234 5678" "$(in_dir 'stat -c "%u %g" newdir/f')"
}

ids_outside() {
    local name
    in_dir 'ls -laR owned'
    for name in outside private greatest directory; do
        equal "$name" "65534 65534" "$(in_dir "stat -c '%u %g' owned/$name")"
    done
    equal half "0 65534" "$(in_dir 'stat -c "%u %g" owned/half')"
    equal read outside "$(in_dir 'cat owned/outside')"
    equal below roots "$(in_dir 'cat owned/directory/roots')"
    refused in_dir 'cat owned/private'
    says 'permission denied'
    refused in_dir 'echo x >>owned/outside'
    says 'permission denied'
    refused in_dir 'echo x >>owned/half'
    says 'permission denied'
    refused in_dir 'touch owned/directory/new'
    says 'permission denied'
    refused in_dir 'chown 0 owned/outside'
    says 'too large'
    refused in_dir 'rm -f owned/outside'
    says 'too large'
    # 65534 is an id like others, and not the owner of these.
    refused as 65534:65534 cat "$DIR/owned/private"
    says 'permission denied'
}

acls_with_ids_outside() {
    equal named named "$(in_dir 'cat acl/named')"
    equal group group "$(in_dir 'cat acl/group')"
    in_dir 'getfacl -n acl/named acl/group'
    equal "read by 1000" named "$(as 1000:1000 cat "$DIR/acl/named")"
    refused as 1000:1000 sh -c "echo x >>$DIR/acl/named"
    refused as 1001:1001 cat "$DIR/acl/named"
    refused as 65534:65534 cat "$DIR/acl/named"
    equal "read by 2000" group "$(as 1:1,2000 cat "$DIR/acl/group")"
    refused as 1:1 cat "$DIR/acl/group"
    in_dir 'setfacl -m u:1002:r acl/named'
    equal "read by 1002" named "$(as 1002:1002 cat "$DIR/acl/named")"
}

chown_within() {
    in_dir 'echo x >owner; for id in 1 1000 65534 65535; do chown $id:$id owner; [ "$(stat -c "%u %g" owner)" = "$id $id" ]; done'
    refused in_ns chown "$OUTSIDE" "$DIR/owner"
    says 'invalid argument'
    refused as 1000:1000 chown 1000 "$DIR/new"
    says 'not permitted'
}

capabilities() {
    # ping's own place: a program with a file capability, run by an ordinary user.
    in_dir 'cp /bin/cat reader; echo secret >secret; chmod 600 secret'
    refused as 2000:2000 "$DIR/reader" "$DIR/secret"
    in_dir 'setcap cap_dac_read_search=ep reader; getcap reader | grep -q cap_dac_read_search'
    equal read secret "$(as 2000:2000 "$DIR/reader" "$DIR/secret")"
    in_dir 'chown 1000 reader'
    equal "capabilities after chown" "" "$(in_dir 'getcap reader')"
    refused as 2000:2000 "$DIR/reader" "$DIR/secret"
    # Kept for the namespace's root, so it is not bound to the ids of one user.
    in_dir 'setcap cap_net_raw=ep reader'
    equal value 0x0100000200200000000000000000000000000000 \
        "$(in_dir 'getfattr --only-values -e hex -n security.capability reader | od -An -tx1 | tr -d " \n" | sed s/^/0x/')"
    refused as 2000:2000 setcap cap_net_raw=ep "$DIR/reader"
}

set_user_id() {
    equal "set-user-id" 1000 "$(as 2000:2000 "$DIR/bin/set-user" -u)"
    equal "set-group-id" 1000 "$(as 2000:2000 "$DIR/bin/set-group" -g)"
    in_dir 'cp /usr/bin/id mine; chown 3:4 mine; chmod 6755 mine'
    equal "made here" "3 4" "$(as 2000:2000 sh -c "echo \$($DIR/mine -u) \$($DIR/mine -g)")"
    as 2000:2000 "$DIR/mine" >"$TMPDIR/id"
    in_dir 'chown 5 mine'
    equal "after chown" 755 "$(in_dir 'stat -c %a mine')"
}

setgid_directories() {
    in_dir 'mkdir group; chown 0:3000 group; chmod 2775 group'
    as 1000:1000,3000 sh -c "echo x >$DIR/group/file; mkdir $DIR/group/below"
    equal file "1000 3000" "$(in_dir 'stat -c "%u %g" group/file')"
    equal below "1000 3000 2755" "$(in_dir 'stat -c "%u %g %a" group/below')"
    # Whose group it is not sets no set-group-id on it.
    as 1000:1000 chmod 2755 "$DIR/group/file"
    equal "no member" 755 "$(in_dir 'stat -c %a group/file')"
    as 1000:1000,3000 chmod 2755 "$DIR/group/file"
    equal member 2755 "$(in_dir 'stat -c %a group/file')"
}

supplementary_groups() {
    in_dir 'echo shared >shared; chown 0:4000 shared; chmod 0660 shared'
    equal member shared "$(as 1000:1000,3999,4000 cat "$DIR/shared")"
    as 1000:1000,4000 sh -c "echo more >>$DIR/shared"
    refused as 1000:1000,3999 cat "$DIR/shared"
    in_dir 'echo own >own; chown 1000:1000 own'
    as 1000:1000,4000 chgrp 4000 "$DIR/own"
    refused as 1000:1000,4000 chgrp 4001 "$DIR/own"
    says 'not permitted'
}

default_acls() {
    in_dir 'mkdir acls; chmod 0755 acls; setfacl -d -m u:1000:rwx,g:2000:r-x,m:rwx,o:--- acls; (umask 077; echo x >acls/f; mkdir acls/d)'
    in_dir 'getfacl -cn acls/f acls/d'
    equal mode 660 "$(in_dir 'stat -c %a acls/f')"
    as 1000:1000 sh -c "echo y >>$DIR/acls/f"
    equal group "x y" "$(as 5:5,2000 cat "$DIR/acls/f" | tr '\n' ' ' | sed 's/ $//')"
    refused as 5:5,2000 sh -c "echo z >>$DIR/acls/f"
    refused as 6:6 cat "$DIR/acls/f"
    in_dir 'getfacl -cn acls/d | grep -q default:user:1000:rwx'
}

devices() {
    equal null "character special file 1 3 666" "$(in_dir 'stat -c "%F %Hr %Lr %a" dev/null')"
    equal disk "block special file 8 0 660" "$(in_dir 'stat -c "%F %Hr %Lr %a" dev/disk')"
    refused in_dir 'cat dev/null'
    says 'permission denied'
    refused in_dir 'mknod dev/zero c 1 5'
    says 'not permitted'
    in_dir 'mkfifo dev/fifo; python3 -c "import socket; socket.socket(socket.AF_UNIX).bind(\"dev/sock\")"; mv dev/disk dev/moved; chown 0:7 dev/moved'
    equal moved "block special file 8 0 7" "$(in_dir 'stat -c "%F %Hr %Lr %g" dev/moved')"
}

attributes() {
    refused in_dir 'setfattr -n trusted.t -v 1 new'
    says 'not permitted'
    equal "of the image" "['user.u']" "$(in_ns python3 -c 'import os, sys; print(os.listxattr(sys.argv[1]))' "$DIR/etc/os-release")"
    in_dir 'setfattr -n user.u -v 1 new; setfattr -n security.s -v 1 new'
    equal names "security.s user.u" "$(in_dir 'getfattr -m - new | grep -v "^#" | sort | xargs')"
    refused as 1000:1000 setfattr -n security.s -v 2 "$DIR/new"
}

from_outside() {
    refused karapace mount "$ENV"
    says 'another mount namespace'
    refused karapace mount "$ENV" "$HOME/elsewhere"
    says 'another mount namespace'
    local status=0
    karapace exec "$ENV" -- true 2>"$TMPDIR/refused" || status=$?
    equal "status of exec" 125 "$status"
    says 'another mount namespace'
    # Commands that do not need the mount itself go through its server.
    equal state Built "$(inspect "$ENV" 'd["state"]')"
    karapace diff "$ENV" | has -E '^A +/new$'
}

# All that root of the namespace can see of the mount.
everything() {
    in_dir 'find . -printf "%y %m %U %G %n %s %t %p %l\n" | sort; getfattr -R -P -d -m - -e hex . 2>/dev/null
        find . -type f ! -path ./owned/private -print0 | sort -z | xargs -0 sha256sum'
}

commit_and_restore() {
    in_dir 'echo commit >.karapace/ctl; cat .karapace/last' | tee "$TMPDIR/last"
    grep -q '^ok commit' "$TMPDIR/last"
    everything >"$TMPDIR/before"
    in_dir 'chown -R 77:77 newdir group; rm own; echo other >new; setfacl -b acl/named; setcap -r reader; chmod 0 shared'
    in_dir 'echo "restore head" >.karapace/ctl'
    everything >"$TMPDIR/after"
    diff "$TMPDIR/before" "$TMPDIR/after"
    equal "read by 1002" named "$(as 1002:1002 cat "$DIR/acl/named")"
    refused as 1000:1000 sh -c "echo commit >$DIR/.karapace/ctl"
}

session_inside() {
    in_ns karapace import "$MINBASE_TAR" --name distro
    in_ns karapace exec distro -- sh -euc 'id -u; echo x >/srv/f; chown www-data:www-data /srv/f; chmod 600 /srv/f
        su -s /bin/sh -c "cat /srv/f; id -un" www-data; stat -c "%u %g" /srv/f' | tee "$TMPDIR/session"
    equal session "0 x www-data 33 33" "$(xargs <"$TMPDIR/session")"
    karapace mount distro
    equal "on the host" "100032 100032" "$(stat -c '%u %g' "$MOUNTS/distro/srv/f")"
    karapace umount distro
}

one_id() {
    unshare --user --map-root-user --mount --propagation private bash -euc 'karapace mount distro >/dev/null
        stat -c "%u %g" "$1/etc/os-release" "$1/srv/f"; touch "$1/srv/mine"
        karapace umount distro >/dev/null' - "$MOUNTS/distro" | tee "$TMPDIR/one"
    equal owners "0 0 65534 65534" "$(xargs <"$TMPDIR/one")"
}

# ids PATH: owner and group as the host sees them on the user's mount.
ids() { stat -c '%u %g' "$DIR/$1"; }
# both N: what shows for owner and group N.
both() { echo "$(shown_id "$1") $(shown_id "$1")"; }

on_the_host() {
    karapace umount "$ENV"
    karapace mount "$ENV"
    equal "root's" "$(both 0)" "$(ids new)"
    equal "another's" "$(shown_id 1234) $(shown_id 5678)" "$(ids newdir/f)"
    equal 33 "100032 100032" "$(ids owned/33)"
    equal last "$(both 65535)" "$(ids owned/last)"
    equal beyond "65534 65534" "$(ids owned/greatest)"
    equal outside "65534 65534" "$(ids owned/outside)"
    getfacl -n "$DIR/acl/group" >"$TMPDIR/acl"
    has "group:$(shown_id 2000):r--" <"$TMPDIR/acl"
    equal "only the one that can be shown" 1 "$(grep -c '^group:[0-9]' "$TMPDIR/acl")"
}

set_on_the_host() {
    chown "$(id -u):$(id -g)" "$DIR/newdir/f"
    equal "the user's own" "$(both 0)" "$(ids newdir/f)"
    touch "$DIR/newdir/"{number,sub,far}
    chown 33:33 "$DIR/newdir/number"
    equal "a number" "$(both 33)" "$(ids newdir/number)"
    chown 100032:100032 "$DIR/newdir/sub"
    equal "a sub-id" "$(both 33)" "$(ids newdir/sub)"
    chown 4000000:4000000 "$DIR/newdir/far"
    equal far "65534 65534" "$(ids newdir/far)"
    # Once it shows as another's, the kernel refuses the ACL; chown does it in any order.
    refused setfacl -m u:0:rw "$DIR/newdir/number"
    says 'not permitted'
    chown 0:0 "$DIR/newdir/number"
    setfacl -m u:0:rw,u:100032:r "$DIR/newdir/number"
    chown 33:0 "$DIR/newdir/number"
}

# What root of the host made, with root as owner.
roots_of_the_host() {
    install -o root -g root -m 640 "$SCRATCH/roots" "$DIR/newdir/installed"
    cp -a "$SCRATCH/roots" "$DIR/newdir/copy"
    # Within the mount cp reads what is shown.
    cp -a "$DIR/newdir/copy" "$DIR/newdir/again"
    local name
    for name in installed copy again; do equal "$name" "$(both 0)" "$(ids "newdir/$name")"; done
    for name in copy again; do getfacl -nc "$DIR/newdir/$name" | has "user:$(id -u):rw-"; done
    # The kernel lets nobody set an ACL on what shows as another's, and cp always sets one.
    chmod 604 "$DIR/newdir/sub"
    refused cp -a "$DIR/newdir/sub" "$DIR/newdir/subs"
    says 'preserving permissions.* not permitted'
    equal "kept nevertheless" "$(both 33) 604" "$(ids newdir/subs) $(stat -c %a "$DIR/newdir/subs")"
}

host_in_the_namespace() {
    karapace umount "$ENV"
    in_ns karapace mount "$ENV"
    local name
    equal "the user's own id means root" "0 0" "$(in_dir 'stat -c "%u %g" newdir/f')"
    for name in installed copy again; do equal "$name" "0 0" "$(in_dir "stat -c '%u %g' newdir/$name")"; done
    for name in sub subs; do equal "$name" "33 33" "$(in_dir "stat -c '%u %g' newdir/$name")"; done
    equal number "33 0" "$(in_dir 'stat -c "%u %g" newdir/number')"
    equal far "65534 65534" "$(in_dir 'stat -c "%u %g" newdir/far')"
    in_dir 'getfacl -nc newdir/again newdir/number' >"$TMPDIR/acl"
    equal "entries for root" 2 "$(grep -c '^user:0:rw-' "$TMPDIR/acl")"
    has '^user:33:r--' <"$TMPDIR/acl"
    in_ns karapace umount "$ENV"
}

# The same in a session, which has all ids.
host_in_a_session() {
    karapace mount distro
    echo x >"$MOUNTS/distro/srv/mine"
    install -o 33 -g 100032 "$SCRATCH/roots" "$MOUNTS/distro/srv/theirs"
    cp -a "$SCRATCH/roots" "$MOUNTS/distro/srv/roots"
    equal "made inside" "100032 100032" "$(stat -c '%u %g' "$MOUNTS/distro/srv/f")"
    karapace umount distro
    equal inside "0 0 33 33 0 0 33 33" \
        "$(karapace exec distro -- sh -c 'cd /srv && stat -c "%u %g" mine theirs roots f' | xargs)"
    karapace verify-store
}

need "an image with owners inside and outside of the range" image
need "a user namespace with the ids of /etc/subuid" namespace
need "a mount in it: allow_other, default_permissions, not seen outside" mounting
check "ids appear as they are inside" ids_as_they_are
check "ids outside of the range show as 65534, readable by mode, never changed" ids_outside
check "ACLs that name ids outside of the range work for the others" acls_with_ids_outside
check "chown to every id of the range" chown_within
check "file capabilities are set, work, and are cleared by chown" capabilities
check "set-user-id and set-group-id programs take effect" set_user_id
check "setgid directories" setgid_directories
check "supplementary groups" supplementary_groups
check "default ACLs are inherited and enforced" default_acls
check "device nodes of the image are shown but cannot be opened; the kernel refuses new ones" devices
check "trusted.* is refused and not listed; user.* and security.* work" attributes
check "from outside: mount and exec are refused with the reason, diff works" from_outside
check "commit and restore" commit_and_restore
check "exec in the namespace has every id" session_inside
check "a namespace with one id: what belongs to others shows as 65534's" one_id
check "on the host: root's files are the user's, others show as its sub-ids, what is beyond as 65534's" on_the_host
check "chown there: 0 and the user's own are the environment's root, sub-ids and numbers are its others" set_on_the_host
check "install -o root and cp -a of root's files, with ACLs" roots_of_the_host
check "and in the namespace these are root's and the others'" host_in_the_namespace
check "and in a session" host_in_a_session
finish_suite
