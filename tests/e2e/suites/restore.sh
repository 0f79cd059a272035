#!/usr/bin/env bash
# What diff lists and what restore brings back, under running programs and with mounts inside.
# runs as: root user
# files: MINBASE
. "$(dirname "$0")/../checks.sh"
ENV=back
DIR=$MOUNTS/$ENV
CTL=$DIR/.karapace

setup() {
    fixture "$PLAIN/fixture"
    if [ "$ACTOR" = root ]; then
        cd "$PLAIN/fixture" || return
        chown 12:34 etc/changed
        mknod srv/data/null c 1 3
        setfattr -n security.capability -v 0sAAAAAgAgAAAAAAAAAAAAAAAAAAA= usr/bin/hello
        setfattr -n trusted.note -v kept etc/keep
        setfacl -m u:77:r etc/keep-too
        find . -exec touch -h -d '2001-02-03 04:05:06.789012345' {} +
    fi
    fixture_tar "$PLAIN/fixture" "$TMPDIR/fixture.tar"
    if [ "$ACTOR" = root ]; then
        # With the owners, devices and attributes that root may give.
        tar --xattrs --xattrs-include='*' --acls --sparse --numeric-owner -cf "$TMPDIR/fixture.tar" -C "$PLAIN/fixture" .
    fi
    karapace import "$TMPDIR/fixture.tar" --name "$ENV"
    karapace mount "$ENV"
}

imported_whole() { same_tree "$PLAIN/fixture" "$DIR" times; }

diff_is_exact() {
    equal "at first" "" "$(cat "$CTL/diff")"
    echo new >"$DIR/etc/added"
    mkdir -p "$DIR/opt/one/two"
    echo x >"$DIR/opt/one/two/file"
    ln -s nowhere "$DIR/opt/link"
    echo other >"$DIR/etc/changed"
    chmod 0400 "$DIR/etc/os-release"
    rm "$DIR/etc/deleted"
    rm -r "$DIR/usr/share/doc/many"
    mv "$DIR/etc/hostname" "$DIR/etc/hostname.moved"
    # A file that was created and removed is no difference; nor is one that is unchanged.
    echo x >"$DIR/etc/brief"
    rm "$DIR/etc/brief"
    cp -p "$DIR/usr/bin/hello" "$DIR/etc/hello.copy"
    rm "$DIR/etc/hello.copy"
    {
        echo "A /etc/added"
        echo "A /etc/hostname.moved"
        printf 'A /opt%s\n' "" /link /one /one/two /one/two/file
        echo "D /etc/deleted"
        echo "D /etc/hostname"
        echo "D /usr/share/doc/many"
        for i in $(seq 100); do echo "D /usr/share/doc/many/$i"; done
        echo "M /etc/changed"
        echo "M /etc/os-release"
    } | LC_ALL=C sort >"$TMPDIR/expected"
    LC_ALL=C sort "$CTL/diff" | diff "$TMPDIR/expected" -
    karapace diff "$ENV" | LC_ALL=C sort | diff "$TMPDIR/expected" -
}

commit_empties_diff() {
    commit "$ENV" >"$TMPDIR/second"
    equal diff "" "$(cat "$CTL/diff")"
    equal "diff on the command line" "" "$(karapace diff "$ENV")"
}

# The base is the second snapshot's parent.
restores_base() {
    ctl "$ENV" 'restore ~1'
    last "$ENV" | has '^ok'
    same_tree "$PLAIN/fixture" "$DIR" times
    equal diff "" "$(cat "$CTL/diff")"
}

restores_each_attribute() {
    local file=$DIR/etc/changed
    commit "$ENV" >"$TMPDIR/third"
    chmod 0777 "$file"
    touch -d '1999-01-01' "$file"
    if [ "$ACTOR" = root ]; then chown 99:99 "$file"; fi
    setfattr -n user.colour -v red "$file"
    setfattr -n user.more -v x "$file"
    setfattr -x user.colour "$DIR/etc/changed"
    rm "$DIR/usr/bin/hello" "$DIR/etc/keep"
    truncate -s 1 "$DIR/srv/data/large"
    echo fill | dd of="$DIR/srv/data/sparse" conv=notrunc status=none
    rm "$DIR/srv/data/fifo"
    rm -r "$DIR/srv/data"
    ctl "$ENV" "restore $(cat "$TMPDIR/third")"
    same_tree "$PLAIN/fixture" "$DIR" times
    equal "hard links" "$(stat -c %i "$DIR/etc/keep")" "$(stat -c %i "$DIR/etc/keep-too")"
    # Holes occupy no space: the blocks of the sparse file.
    below "blocks" 1000 "$(stat -c %b "$DIR/srv/data/sparse")"
}

uncommitted_changes_are_committed_first() {
    local before
    echo precious >"$DIR/etc/precious"
    before=$(karapace --json snapshots "$ENV" | json - 'len(d) if isinstance(d, list) else len(d["snapshots"])')
    ctl "$ENV" "restore $(cat "$TMPDIR/third")"
    [ ! -e "$DIR/etc/precious" ]
    equal snapshots $((before + 1)) \
        "$(karapace --json snapshots "$ENV" | json - 'len(d) if isinstance(d, list) else len(d["snapshots"])')"
    ctl "$ENV" "restore latest"
    equal content precious "$(cat "$DIR/etc/precious")"
    ctl "$ENV" "restore $(cat "$TMPDIR/third")"
}

# make rebuilds what depends on a file that a restore of paths replaced, whether mounted or not.
make_builds_anew() {
    local dir=$DIR/srv/build hash before how
    mkdir "$dir"
    printf 'out: in other\n\tcat in other >out\n' >"$dir/Makefile"
    echo one >"$dir/in"
    echo other >"$dir/other"
    touch -d '2002-02-02' "$dir/in" "$dir/other"
    before=$(stat -c '%n %y %z %i' "$dir/other" "$dir/Makefile")
    hash=$(commit "$ENV")
    for how in mounted unmounted; do
        echo two >"$dir/in"
        make -C "$dir"
        equal "$how, made of the other content" "two other" "$(tr '\n' ' ' <"$dir/out" | sed 's/ $//')"
        [ "$how" = mounted ] || karapace umount "$ENV"
        karapace --json restore "$ENV" "$hash" -- /srv/build/in /srv/build/other >"$TMPDIR/outcome"
        [ "$how" = mounted ] || karapace mount "$ENV"
        make -C "$dir"
        equal "$how, made of what was restored" "one other" "$(tr '\n' ' ' <"$dir/out" | sed 's/ $//')"
        equal "$how, touched" 1 "$(json "$TMPDIR/outcome" 'd["touched"]')"
        equal "$how, what did not differ" "$before" "$(stat -c '%n %y %z %i' "$dir/other" "$dir/Makefile")"
        # The second restore finds no difference, and does not set the time back.
        karapace restore "$ENV" "$hash" -- /srv/build/in
        make -q -C "$dir"
        [ "$dir/in" -nt "$dir/other" ]
    done
    karapace diff "$ENV" "$hash" | diff - <(printf 'M /srv/build/in\nA /srv/build/out\n')
}

# Directories follow their names, as they do where something is written.
times_are_kept_or_present_on_request() {
    local dir=$DIR/srv/times hash
    mkdir "$dir"
    echo one >"$dir/file"
    ln -s one "$dir/link"
    echo same >"$dir/same"
    touch -h -d '2002-02-02' "$dir/file" "$dir/link" "$dir/same" "$dir"
    hash=$(commit "$ENV")
    old() { equal "$1" "$2" "$(cd "$dir" && find . ! -newermt 2003-01-01 | LC_ALL=C sort | xargs)"; }
    change() {
        echo two >"$dir/file"
        ln -sfn two "$dir/link"
        if [ "${1:-}" ]; then touch -d '2001-01-01' "$dir"; fi
    }
    change
    karapace restore "$ENV" "$hash" --keep-times -- /srv/times
    old "paths, --keep-times" ". ./file ./link ./same"
    change dir
    karapace restore "$ENV" "$hash" -- /srv/times/file /srv/times/link
    old "paths" ". ./same"
    change
    karapace restore "$ENV" "$hash"
    old "whole" ". ./file ./link ./same"
    change dir
    karapace restore "$ENV" "$hash" --touch
    old "whole, --touch" ". ./same"
    equal "diff" "M /srv/times/file M /srv/times/link" "$(karapace diff "$ENV" | xargs)"
    rm "$dir/file"
    ctl "$ENV" "restore $hash touch=1"
    equal content one "$(cat "$dir/file")"
    old "ctl, touch=1" "./same"
    ctl "$ENV" "restore $hash"
    same_tree "$dir" "$DIR/.karapace/snapshots/$hash/srv/times" times
    refused karapace restore "$ENV" "$hash" --touch --keep-times
}

# A program that runs in the mount sees the restored state at its next look-up; a file that it holds open keeps what
# it had.
running_program_sees_restore() {
    echo first >"$DIR/etc/watched"
    local hash
    hash=$(commit "$ENV")
    echo second >"$DIR/etc/watched"
    commit "$ENV"
    mkfifo "$TMPDIR/go" "$TMPDIR/ready"
    bash -euc 'cd "$1/etc"; exec 4<watched; cat watched >/dev/null; echo ready >"$2"
        read -r _ <"$3"; cat watched; cat <&4' - "$DIR" "$TMPDIR/ready" "$TMPDIR/go" >"$TMPDIR/seen" &
    read -r _ <"$TMPDIR/ready"
    ctl "$ENV" "restore $hash"
    echo go >"$TMPDIR/go"
    wait $!
    equal seen "first second" "$(tr '\n' ' ' <"$TMPDIR/seen" | sed 's/ $//')"
}

# The same from inside `exec`, whose /proc and /dev are mounted in the view: they must stay.
mounts_inside_stay() {
    karapace umount "$ENV"
    karapace import "$MINBASE_TAR" --name inside
    karapace mount inside
    DIR=$MOUNTS/inside
    echo first >"$DIR/etc/watched"
    local hash running
    hash=$(commit inside)
    echo second >"$DIR/etc/watched"
    rm "$DIR/etc/debian_version"
    chmod 0700 "$DIR/proc"
    commit inside
    karapace exec inside -- sh -c 'echo ready >/root/ready
        until [ -e /etc/debian_version ]; do sleep 0.05; done
        cat /etc/watched; ls -d /proc/self/fd; test -c /dev/null; echo x >/dev/null; echo done' >"$TMPDIR/inside" &
    running=$!
    until_true test -e "$DIR/root/ready"
    ctl inside "restore $hash"
    timeout "$PATIENCE" tail --pid="$running" -f /dev/null
    wait "$running"
    equal seen "first /proc/self/fd done" "$(tr '\n' ' ' <"$TMPDIR/inside" | sed 's/ $//')"
    karapace umount inside
}

host_mount_inside_stays() {
    [ "$ACTOR" = root ] || return 0
    karapace mount "$ENV"
    mount -t tmpfs -o size=64k tmpfs "$DIR/var/empty"
    echo kept >"$DIR/var/empty/kept"
    chmod 0700 "$DIR/var"
    echo x >"$DIR/etc/x"
    ctl "$ENV" 'restore ~1'
    equal content kept "$(cat "$DIR/var/empty/kept")"
    umount "$DIR/var/empty"
    karapace umount "$ENV"
}

need "an environment with one of everything" setup
check "the import shows every attribute" imported_whole
check "diff lists exactly what was added, modified and deleted" diff_is_exact
check "after commit diff is empty" commit_empties_diff
check "restore of the base restores everything" restores_base
check "restore brings back mode, owner, times, xattrs, links, holes" restores_each_attribute
check "restore over uncommitted changes commits them first" uncommitted_changes_are_committed_first
check "make rebuilds what depends on files that a restore of paths replaced" make_builds_anew
check "times are kept or set to the current time, as requested" times_are_kept_or_present_on_request
check "a running program sees the restore; its open file does not" running_program_sees_restore
check "programs inside exec see it, and their /proc and /dev stay" mounts_inside_stay
check "what root mounted inside stays" host_mount_inside_stays
finish_suite
