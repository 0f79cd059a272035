#!/usr/bin/env bash
# Runs one suite as root or as an ordinary user, inside the namespaces that run.sh made: the user, the permissions
# of /dev/fuse and the ext4 to compare with exist only here.
set -euo pipefail
suite=$1
: "${SCRATCH:?}" "${ACTOR:?}" "${REPOSITORY:?}"
readonly TEST_UID=54321

# The files that the suite needs (`# files:`), at paths that an ordinary user can reach.
files=()
# show VARIABLE PLACE NAME: makes the file that the variable names visible at PLACE, and sets NAME
# for the suite.
show() {
    [ -n "${!1:-}" ] || return 0
    mount --bind "${!1}" "$SCRATCH/$2"
    files+=("$3=$SCRATCH/$2")
}
show MINBASE rootfs/minbase.tar MINBASE_TAR
show DEV rootfs/dev.tar DEV_TAR
show MANAGERS rootfs/managers.tar MANAGERS_TAR
show DEBS debs DEBS
show PATCH sources/patch PATCH_CONFIGURED
show GIT sources/git GIT_BUILT
show COREUTILS sources/coreutils COREUTILS_BUILT
show SQLITE sources/sqlite SQLITE_BUILT
show PNPM sources/pnpm PNPM_PACKAGE
show RELEASES sources/releases RELEASES

# A private node of /dev/fuse that everybody can open, as in distributions.
mkdir "$SCRATCH/dev"
mount -t tmpfs -o size=64k,mode=755 tmpfs "$SCRATCH/dev"
mknod -m 0666 "$SCRATCH/dev/fuse" c 10 229
mount --bind "$SCRATCH/dev/fuse" /dev/fuse

# Private directories for the state of container runtimes: parallel suites use one too, and each checks that nothing is left.
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm
# (crun would make the directory, too.)
mkdir -p /run/crun
mount -t tmpfs -o mode=700 tmpfs /run/crun

# A user in a private copy of all of /etc: a mount on a single file would be lost when the machine's own file is
# replaced.
cp -a /etc "$SCRATCH/etc"
echo "tester:x:$TEST_UID:$TEST_UID::$SCRATCH/home:/bin/bash" >>"$SCRATCH/etc/passwd"
echo "tester:x:$TEST_UID:" >>"$SCRATCH/etc/group"
# Ids for user namespaces, as adduser gives them.
echo "tester:100000:65536" | tee "$SCRATCH/etc/subuid" >"$SCRATCH/etc/subgid"
mount --bind "$SCRATCH/etc" /etc

# A file of root's with an ACL that names root, for users to copy.
echo "of root" >"$SCRATCH/roots"
setfacl -m u:0:rw,g:0:r "$SCRATCH/roots"

# mount(8) looks for helpers only in /sbin. fstab is an empty file that the user owns, for the suite's own
# lines.
sbin=$(readlink -f /sbin)
mkdir "$SCRATCH/sbin"
ln -s "$SCRATCH/bin/karapace" "$SCRATCH/sbin/mount.fuse.karapace"
mount -t overlay -o "lowerdir=$SCRATCH/sbin:$sbin" overlay "$sbin"
: >"$SCRATCH/etc/fstab"
chown "$TEST_UID" "$SCRATCH/etc/fstab"

# A journaled ext4 to compare with: the scratch directory's file system, if it is one.
mkdir "$SCRATCH/home" "$SCRATCH/plain" "$SCRATCH/tmp"
chmod 1777 "$SCRATCH/tmp"
if [ "$(findmnt -no FSTYPE -T "$SCRATCH")" != ext4 ]; then
    truncate -s 8G "$SCRATCH/ext4.img"
    mkfs.ext4 -q "$SCRATCH/ext4.img"
    mount -o loop "$SCRATCH/ext4.img" "$SCRATCH/plain"
    rmdir "$SCRATCH/plain/lost+found"
fi

environment=(
    "HOME=$SCRATCH/home" "TMPDIR=$SCRATCH/tmp" "LANG=C.UTF-8" "LC_ALL=C.UTF-8" "SHELL=/bin/bash" "TERM=dumb"
    "PATH=$SCRATCH/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    "SCRATCH=$SCRATCH" "ACTOR=$ACTOR" "PLAIN=$SCRATCH/plain" "REPOSITORY=$REPOSITORY"
    ${files[@]+"${files[@]}"}
)
# Variables that the toolchain needs if a suite builds (quickstart), and those for fsx.
for variable in CARGO_HOME RUSTUP_HOME CARGO_TARGET_DIR RUSTUP_TOOLCHAIN KARAPACE_FSX_OPERATIONS KARAPACE_FSX_SEEDS; do
    [ -z "${!variable:-}" ] || environment+=("$variable=${!variable}")
done
environment+=("REAL_HOME=$HOME")
cd "$SCRATCH/home"
if [ "$ACTOR" = root ]; then
    exec env -i "${environment[@]}" USER=root LOGNAME=root bash "$suite"
fi
chown "$TEST_UID:$TEST_UID" "$SCRATCH/home" "$SCRATCH/plain"
# Changing the user cleared the parent-death signal that unshare --kill-child had set.
exec setpriv --pdeathsig KILL --reuid="$TEST_UID" --regid="$TEST_UID" --clear-groups --inh-caps=-all \
    env -i "${environment[@]}" USER=tester LOGNAME=tester bash "$suite"
