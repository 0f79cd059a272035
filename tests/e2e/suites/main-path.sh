#!/usr/bin/env bash
# The main use from start to end on a real Debian: import, mount, write, commit, delete and change, restore,
# exec, unmount.
# runs as: root user
# files: MINBASE
. "$(dirname "$0")/../checks.sh"
ENV=dev
DIR=$MOUNTS/$ENV

import() { karapace import "$MINBASE_TAR" --name "$ENV"; }

is_listed() {
    karapace list | has -w "$ENV"
    equal name "$ENV" "$(inspect "$ENV" 'd["name"]')"
    equal mount None "$(inspect "$ENV" 'd["mount"]')"
    inspect "$ENV" 'd["env_id"], d["short_id"], d["state"], d["head"], d["base_layer"]'
}

mounts() {
    karapace mount "$ENV"
    mounted "$DIR"
    equal "mount.dir" "$DIR" "$(inspect "$ENV" 'd["mount"]["dir"]')"
    kill -0 "$(server_of "$ENV")"
    grep -q '^ID=' "$DIR/etc/os-release"
}

# What tar lists is what the mount shows: kind and mode, size of files, target of links, names of hard links.
shows_the_archive() {
    tar --numeric-owner -tvf "$MINBASE_TAR" | wc -l
    python3 - "$MINBASE_TAR" "$DIR" <<'PYTHON'
import hashlib, os, stat, sys, tarfile
archive, root = sys.argv[1:]
kinds = {tarfile.REGTYPE: stat.S_ISREG, tarfile.LNKTYPE: stat.S_ISREG, tarfile.DIRTYPE: stat.S_ISDIR,
         tarfile.SYMTYPE: stat.S_ISLNK, tarfile.CHRTYPE: stat.S_ISCHR, tarfile.FIFOTYPE: stat.S_ISFIFO}
mine = os.getuid()
def shown(owner):
    # The user's sub-ids are from 100000 on (sandbox.sh).
    return owner if mine == 0 else mine if owner == 0 else 100000 + owner - 1
names, bad = set(), []
with tarfile.open(archive) as tar:
    for member in tar:
        path = os.path.join(root, member.name)
        names.add(os.path.normpath(path))
        try:
            at = os.lstat(path)
        except OSError as error:
            bad.append(f"{path}: {error}")
            continue
        found = [kinds[member.type](at.st_mode), stat.S_IMODE(at.st_mode) == member.mode,
                 at.st_uid == shown(member.uid), int(at.st_mtime) == int(member.mtime)]
        if member.isfile():
            with open(path, "rb") as file:
                found.append(hashlib.sha256(file.read()).digest() ==
                             hashlib.sha256(tar.extractfile(member).read()).digest())
        if member.issym():
            found.append(os.readlink(path) == member.linkname)
        if member.islnk():
            found.append(os.path.samefile(path, os.path.join(root, member.linkname)))
        if not all(found):
            bad.append(f"{path}: kind, mode, owner, mtime, content or target: {found}")
for directory, directories, files in os.walk(root):
    for name in directories + files:
        if os.path.normpath(os.path.join(directory, name)) not in names:
            bad.append(f"{directory}/{name}: not in the archive")
print(len(names), "entries")
print("\n".join(bad[:20]))
sys.exit(bool(bad))
PYTHON
}

writes() {
    echo written >"$DIR/root/new"
    mkdir -p "$DIR/srv/site/a/b"
    cp /bin/ls "$DIR/srv/site/a/b/ls"
    echo more >>"$DIR/etc/hosts.new"
    mv "$DIR/etc/hosts.new" "$DIR/etc/hosts.moved"
    ln -s ../a "$DIR/srv/site/link"
    ln "$DIR/root/new" "$DIR/root/new2"
    # Root's own files of the image, by whoever mounted it.
    echo changed >"$DIR/etc/hostname"
    chmod 0600 "$DIR/etc/issue"
    rm "$DIR/etc/debian_version"
    equal content changed "$(cat "$DIR/etc/hostname")"
    equal links 2 "$(stat -c %h "$DIR/root/new")"
    cmp /bin/ls "$DIR/srv/site/a/b/ls"
}

commits() {
    tree "$DIR" times >"$TMPDIR/committed"
    commit "$ENV" >"$TMPDIR/first"
    grep -qE '^[0-9a-f]{64}$' "$TMPDIR/first"
    equal head "$(cat "$TMPDIR/first")" "$(inspect "$ENV" 'd["head"]')"
    karapace snapshots "$ENV" | has "$(cut -c1-12 "$TMPDIR/first")"
    tree "$DIR" times | diff "$TMPDIR/committed" -
}

deletes_and_changes() {
    rm -rf "${DIR:?}/srv/site" "$DIR/usr/share/doc"
    rm "$DIR/etc/passwd"
    echo other >"$DIR/root/new"
    mv "$DIR/var" "$DIR/var.moved"
    chmod 0777 "$DIR/etc"
    echo late >"$DIR/etc/late"
    [ ! -e "$DIR/etc/passwd" ]
}

restores() {
    ctl "$ENV" "restore $(cat "$TMPDIR/first")"
    last "$ENV" | has '^ok'
    [ ! -e "$DIR/etc/late" ]
    [ ! -e "$DIR/var.moved" ]
    tree "$DIR" times | diff "$TMPDIR/committed" -
}

snapshot_view_is_read_only() {
    local view
    view=$DIR/.karapace/snapshots/$(cat "$TMPDIR/first")
    equal content changed "$(cat "$view/etc/hostname")"
    equal links 2 "$(stat -c %h "$view/root/new")"
    if echo x 2>/dev/null >"$view/etc/hostname"; then wrong "a snapshot could be written"; fi
    if rm "$view/etc/hostname" 2>/dev/null; then wrong "a snapshot's file could be removed"; fi
}

runs_programs() {
    karapace exec "$ENV" -- cat /etc/os-release | cmp - "$DIR/etc/os-release"
    equal root 0 "$(karapace exec "$ENV" -- id -u)"
    karapace exec "$ENV" -- sh -c 'echo from inside >/root/inside'
    equal content "from inside" "$(cat "$DIR/root/inside")"
    karapace exec "$ENV" -- dpkg --list | has '^ii  base-files'
}

survives_umount() {
    tree "$DIR" times >"$TMPDIR/before"
    local server
    server=$(server_of "$ENV")
    karapace umount "$ENV"
    not_mounted "$DIR"
    until_true gone "$server"
    karapace mount "$ENV"
    tree "$DIR" times | diff "$TMPDIR/before" -
}

is_whole() {
    karapace umount "$ENV"
    karapace verify-store
    karapace gc
    karapace verify-store
    karapace mount "$ENV"
    equal content "from inside" "$(cat "$DIR/root/inside")"
    karapace umount "$ENV"
}

need "import a Debian root file system" import
check "list and inspect name it" is_listed
need "mount at ~/karapace/$ENV" mounts
check "the mount shows what the archive holds" shows_the_archive
check "write, create, link, rename, delete; root's own files too" writes
need "echo commit > ctl" commits
check "delete and change files, move a directory" deletes_and_changes
check "echo restore <hash> > ctl brings the old state back" restores
check "snapshots/<hash> is a read-only view" snapshot_view_is_read_only
check "exec runs programs of the environment" runs_programs
check "everything is there after umount and mount" survives_umount
check "verify-store and gc find nothing wrong" is_whole
finish_suite
