#!/usr/bin/env bash
# A mount with --idmap, mounted once more with other ids, beside the same on the host's file system.
# runs as: root
. "$(dirname "$0")/../checks.sh"
ENV=mapped
DIR=$MOUNTS/$ENV
BESIDE=$PLAIN/mapped
SHIFTED=$TMPDIR/shifted
# The id that shows for root of the tree.
FIRST=100000
HELPER=$SCRATCH/tree/e2e/idmapped.py

setup() {
    local tree=$TMPDIR/tree
    mkdir -p "$tree/etc" "$tree/usr" "$tree/bin" "$tree/work" "$SHIFTED" "$BESIDE"
    echo root >"$tree/etc/roots"
    echo thirty-three >"$tree/etc/33"
    chown 33:33 "$tree/etc/33"
    chmod 600 "$tree/etc/33"
    chmod 1777 "$tree/work"
    cp /usr/bin/id "$tree/bin/set"
    chmod 4755 "$tree/bin/set"
    setfattr -n trusted.t -v 1 "$tree/etc/roots"
    cp -a "$tree/." "$BESIDE"
    karapace import "$tree" --name "$ENV"
    karapace mount --idmap "$ENV"
}

without_option() {
    karapace umount "$ENV"
    karapace mount "$ENV"
    refused python3 "$HELPER" "$DIR" "$SHIFTED" "$FIRST" 65536
    says 'mount_setattr: EINVAL'
    karapace umount "$ENV"
    karapace mount --idmap "$ENV"
}

# both COMMAND...: the same in the mount and in its plain copy, each seen through an id-mapped mount; they must say the same.
both() {
    through "$BESIDE" "$@" >"$TMPDIR/said.plain" 2>&1
    through "$DIR" "$@" >"$TMPDIR/said.karapace" 2>&1
    cat "$TMPDIR/said.karapace"
    diff "$TMPDIR/said.plain" "$TMPDIR/said.karapace"
}

# through DIRECTORY COMMAND...: the command in an id-mapped mount of the directory, which ends with it.
through() {
    # shellcheck disable=SC2016 # for the shell inside
    unshare --mount --propagation private bash -c 'python3 "$1" "$2" "$3" "$4" 65536 && cd "$3" && shift 4 && "$@" || echo "status $?"' \
        - "$HELPER" "$1" "$SHIFTED" "$FIRST" "${@:2}"
}

# as ID COMMAND...: with this id of the host as user and group.
as() { both setpriv --clear-groups --reuid="$1" --regid="$1" sh -c "$2"; }

shown() {
    both sh -c 'stat -c "%n %u %g %a" etc/* work bin/set | sort'
    has "etc/33 100033 100033 600" <"$TMPDIR/said.karapace"
}

creates() {
    as "$FIRST" 'echo x >work/file; mkdir work/dir; ln -s t work/link; mkfifo work/fifo; stat -c "%n %u %g %F" work/*'
    equal "on the mount itself" "0 0" "$(stat -c '%u %g' "$DIR/work/file")"
    equal "of a directory" "0 0" "$(stat -c '%u %g' "$DIR/work/dir")"
    # An id that the mount does not show cannot make anything: EOVERFLOW.
    both sh -c 'touch work/hosts-root; ls work'
}

permissions() {
    as "$FIRST" 'cat etc/33; echo more >>etc/roots; chmod 640 work/file; chown 100033 work/file; stat -c "%u %a" work/file' 
    as 100033 'cat etc/33 && echo x >>etc/33 && cat etc/33'
    as 33 'cat etc/33; echo x >>etc/roots; touch work/no'
}

set_id() {
    # Who may write through a group only takes set-user-id away; root of the host does not.
    as 100033 'cp /usr/bin/id work/own; chmod 6755 work/own; stat -c %a work/own
        echo >>work/own; stat -c %a work/own; chmod 2755 work/own; truncate -s 5 work/own; stat -c %a work/own'
    chmod 4755 "$DIR/bin/set"
    truncate -s 20 "$DIR/bin/set"
    equal "root's truncate" 4755 "$(stat -c %a "$DIR/bin/set")"
    echo >>"$DIR/bin/set"
    equal "root's write" 4755 "$(stat -c %a "$DIR/bin/set")"
}

attributes() {
    getfattr -d -m - "$DIR/etc/roots" | has '^trusted.t="1"'
    as 100033 'setfacl -m u:100007:r work/own; getfacl -nc work/own'
    has user:100007:r-- <"$TMPDIR/said.karapace"
    getfacl -nc "$DIR/work/own" | has user:7:r--
}

commits() {
    equal "control directory" no "$([ -e "$DIR/.karapace/ctl" ] && echo yes || echo no)"
    karapace commit "$ENV" --name shifted
    touch "$DIR/work/later"
    karapace diff "$ENV" | has work/later
    karapace restore "$ENV" shifted
    [ ! -e "$DIR/work/later" ]
    tree "$DIR" >"$TMPDIR/before"
    karapace umount "$ENV"
    karapace mount --ctl-dir visible --idmap "$ENV"
    tree "$DIR" >"$TMPDIR/after"
    diff "$TMPDIR/before" "$TMPDIR/after"
}

need "import and mount with --idmap" setup
check "without the option the kernel refuses" without_option
check "owners are shown as mapped" shown
check "new files belong to whoever made them" creates
check "permissions are those of the mapped ids" permissions
check "set-user-id is cleared as on ext4" set_id
check "trusted attributes and ACLs" attributes
check "no control directory, but commands work" commits
finish_suite
