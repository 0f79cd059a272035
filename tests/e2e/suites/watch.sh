#!/usr/bin/env bash
# What programs that watch files in a mount see of a restore.
# runs as: root user
# seconds: 40
. "$(dirname "$0")/../checks.sh"
ENV=watched
DIR=$MOUNTS/$ENV
WATCHER=$SCRATCH/tree/e2e/watcher.py
EVENTS=$TMPDIR/events

setup() {
    mounted_fixture "$PLAIN/fixture"
}

# watched DIRECTORY: watches all of it until the end of the check.
watched() {
    rm -f "$EVENTS"
    python3 "$WATCHER" watch "$1" "$EVENTS" &
    WATCHER_PID=$!
    # shellcheck disable=SC2064 # this process, now
    trap "kill $WATCHER_PID 2>/dev/null || true" EXIT
    until_true grep -q '^READY' "$EVENTS"
}

# heard SINCE: the events since that line of the log, each once. What was queued before is in it.
heard() {
    local cookie=cookie.$RANDOM
    mkdir "$WATCHED/$cookie"
    until_true grep -q "^CREATE $cookie" "$EVENTS"
    rmdir "$WATCHED/$cookie"
    until_true grep -q "^DELETE $cookie" "$EVENTS"
    tail -n "+$(($1 + 1))" "$EVENTS" | sed '/cookie/d' | LC_ALL=C sort -u
}
lines() { wc -l <"$EVENTS"; }

each_change_is_heard() {
    local way hash before
    WATCHED=$DIR/srv/watched
    mkdir -p "$WATCHED/sub/back-dir/deep"
    cd "$WATCHED"
    for name in changed attribute back sub/back sub/back-dir/deep/file same sub/linked; do echo one >"$name"; done
    ln -s one link
    ln -s one back-link
    ln sub/linked sub/linked-too
    mkfifo back-fifo
    printf '#!/bin/sh\n' >program
    chmod +x program
    hash=$(commit "$ENV")
    watched "$WATCHED"
    for way in ctl command; do
        echo two >changed
        echo two >program
        chmod 0600 attribute
        rm -r back sub/back sub/back-dir back-link back-fifo
        ln -sfn two link
        echo two >sub/linked
        echo x >extra
        mkdir -p sub/extra-dir/deep
        echo x >sub/extra-dir/deep/file
        ln -s x sub/extra-link
        heard 0 >/dev/null
        before=$(lines)
        case $way in
            ctl) ctl "$ENV" "restore $hash" ;;
            command) karapace restore "$ENV" "$hash" --keep-times -- /srv/watched ;;
        esac
        # What paths bring is uncommitted.
        [ "$way" = command ] || equal "dirty, by $way" 0 "$(inspect "$ENV" 'd["dirty_files"]')"
        heard "$before" >"$TMPDIR/heard"
        LC_ALL=C sort >"$TMPDIR/expected" <<'EXPECTED'
MODIFY changed
CLOSE_WRITE changed
MODIFY program
ATTRIB attribute
CREATE back
CLOSE_WRITE back
CREATE back-link
CREATE back-fifo
CREATE sub/back
CLOSE_WRITE sub/back
CREATE sub/back-dir
MODIFY link
MODIFY sub/linked
CLOSE_WRITE sub/linked
MODIFY sub/linked-too
CLOSE_WRITE sub/linked-too
DELETE extra
DELETE sub/extra-dir
DELETE sub/extra-link
EXPECTED
        diff "$TMPDIR/expected" "$TMPDIR/heard" || wrong "by $way"
        # The calls that raised them changed nothing.
        same_tree "$DIR/.karapace/snapshots/$hash/srv/watched" "$WATCHED" times
        equal "diff, by $way" "" "$(karapace diff "$ENV" "$hash")"
        # If nothing changes, there are no events.
        before=$(lines)
        karapace restore "$ENV" "$hash" --keep-times -- /srv/watched
        # Except for a directory that is created again with another inode number: watches on the old one
        # get no more events.
        equal "heard of nothing, by $way" "" "$(heard "$before" | sed '/^ATTRIB sub\/back-dir$/d')"
    done
}

git_with_a_monitor_sees_a_restore() {
    local tree=$DIR/srv/tree hash
    mkdir "$tree"
    cd "$tree"
    git init -q .
    git config user.email a@example.org
    git config user.name A
    printf '#!/bin/sh\nexec python3 %s hook %s %s "$@"\n' "$WATCHER" "$EVENTS" "$tree" >"$TMPDIR/hook"
    chmod +x "$TMPDIR/hook"
    watched "$tree"
    git config core.fsmonitor "$TMPDIR/hook"
    mkdir sub
    echo one >file
    echo one >sub/gone
    git add .
    git commit -qm one
    hash=$(commit "$ENV")
    echo two >file
    rm sub/gone
    echo two >sub/new
    git add -A
    git commit -qm two
    equal "status before" "" "$(git status --porcelain)"
    karapace restore "$ENV" "$hash" -- /srv/tree/file /srv/tree/sub
    equal "status" " D sub/new  M file ?? sub/gone" "$(git status --porcelain -uall | LC_ALL=C sort | tr '\n' ' ' | sed 's/ $//')"
    git commit -qam three
    equal "committed" one "$(git show HEAD:file)"
}

# Two snapshots, each with names that the other lacks: a reader sees each come and go once per restore, and nothing else.
others_see_nothing_but_the_restore() {
    local dir=$DIR/srv/flips a b round looker rounds=30 looks=() names=(a d1 l1 b d2 l2)
    mkdir "$dir"
    cd "$dir"
    echo a >a
    mkdir d1
    ln -s a l1
    a=$(commit "$ENV")
    rm -r a d1 l1
    echo b >b
    mkdir d2
    ln -s b l2
    b=$(commit "$ENV")
    watched "$dir"
    mkfifo "$TMPDIR/hold"
    exec 5<>"$TMPDIR/hold"
    for looker in 1 2 3; do
        python3 "$WATCHER" flips "$dir" "${names[@]}" <"$TMPDIR/hold" >"$TMPDIR/flips.$looker" 2>"$TMPDIR/asked.$looker" &
        looks+=($!)
    done
    # Another who makes and removes names there meanwhile.
    (until [ -e "$TMPDIR/enough" ]; do
        echo x >own
        mv own moved
        rm moved || wrong "its own file is gone" || exit 1
    done) &
    looks+=($!)
    # shellcheck disable=SC2064 # these processes, and the watcher
    trap "touch '$TMPDIR/enough'; kill $WATCHER_PID ${looks[*]} 2>/dev/null || true" EXIT
    for looker in 1 2 3; do until_true grep -q ready "$TMPDIR/asked.$looker"; done
    for round in $(seq "$rounds"); do
        if [ $((round % 2)) = 1 ]; then set -- "$a" "a d1 l1"; else set -- "$b" "b d2 l2"; fi
        karapace restore "$ENV" "$1" -- "${names[@]/#//srv/flips/}"
        equal "there" "$2" "$(printf '%s\n' * | grep -vE '^(own|moved)$' | xargs)"
        for looker in 1 2 3; do
            until_true has_lines "$TMPDIR/flips.$looker" $((6 * round))
        done
    done
    touch "$TMPDIR/enough"
    echo end >&5
    for looker in "${looks[@]}"; do wait "$looker" || wrong "a looker or a writer failed"; done
    for looker in 1 2 3; do
        equal "changes that were seen" $((6 * rounds)) "$(wc -l <"$TMPDIR/flips.$looker")"
    done
    echo "note: $(cat "$TMPDIR"/asked.* | grep -v ready | xargs) look-ups by three over $rounds restores"
    # Of what a looker has seen first the kernel says that it changed.
    has -E '^(CREATE|MODIFY) d1$' <"$EVENTS" || wrong "d1 has not come"
    has '^DELETE d1$' <"$EVENTS" || wrong "d1 has not gone"
}
has_lines() { [ "$(wc -l <"$1")" -ge "$2" ]; }

many_are_told_of_directories() {
    local hash start took
    WATCHED=$DIR/srv/many
    mkdir "$WATCHED"
    cd "$WATCHED"
    for i in $(seq 5000); do echo "$i" >"f$i"; done
    hash=$(commit "$ENV")
    watched "$WATCHED"
    rm f*
    heard 0 >/dev/null
    local before
    before=$(lines)
    start=$(date +%s%N)
    karapace restore "$ENV" "$hash" --keep-times -- /srv/many
    took=$((($(date +%s%N) - start) / 1000000))
    equal "heard" "ATTRIB ." "$(heard "$before")"
    equal files 5000 "$(find . -name 'f*' | wc -l)"
    rm f1???
    commit "$ENV" >/dev/null
    before=$(lines)
    start=$(date +%s%N)
    karapace restore "$ENV" "$hash" --keep-times -- /srv/many
    echo "note: 5000 names told as one in $took ms, 1000 in $((($(date +%s%N) - start) / 1000000)) ms"
    equal "created" 1000 "$(heard "$before" | grep -c '^CREATE f')"
}

mounts_inside_stay() {
    [ "$ACTOR" = root ] || return 0
    local hash
    mkdir -p "$DIR/srv/mounts/in"
    echo one >"$DIR/srv/mounts/file"
    hash=$(commit "$ENV")
    mount -t tmpfs -o size=64k tmpfs "$DIR/srv/mounts/in"
    echo kept >"$DIR/srv/mounts/in/kept"
    rm "$DIR/srv/mounts/file"
    chmod 0700 "$DIR/srv/mounts"
    watched "$DIR/srv/mounts"
    karapace restore "$ENV" "$hash" -- /srv/mounts
    until_true grep -q '^CREATE file' "$EVENTS"
    equal content kept "$(cat "$DIR/srv/mounts/in/kept")"
    umount "$DIR/srv/mounts/in"
}

# A mount on a reported name belongs to the host, and is not touched.
what_lies_on_it_is_not_touched() {
    [ "$ACTOR" = root ] || return 0
    local hash host=$TMPDIR/host
    mkdir -p "$DIR/srv/under/dir" "$host/dir"
    echo one | tee "$DIR/srv/under/file" >"$host/file"
    touch -d @1000000000 "$host/file" "$host/dir"
    hash=$(commit "$ENV")
    echo two >"$DIR/srv/under/file"
    chmod 0700 "$DIR/srv/under/dir"
    mount --bind "$host/file" "$DIR/srv/under/file"
    mount --bind "$host/dir" "$DIR/srv/under/dir"
    watched "$DIR/srv/under"
    karapace restore "$ENV" "$hash"
    equal "times of the host's" "1000000000 1000000000" "$(stat -c %Y "$host/file" "$host/dir" | xargs)"
    # What lay on the file fell off with it.
    umount "$DIR/srv/under/dir"
    equal content one "$(cat "$DIR/srv/under/file")"
}

# Anybody may look up names in the root; the server still recognizes its own process.
names_are_not_guessed() {
    local hash
    hash=$(commit "$ENV")
    refused stat "$DIR/.karapace-watchers" "$DIR/.karapace-0"
    echo '{"probe":"etc","steps":[]}' | refused karapace tell-watchers "$DIR"
    echo x >"$DIR/etc/guessed"
    watched "$DIR/etc"
    karapace restore "$ENV" "$hash"
    until_true grep -q '^DELETE guessed' "$EVENTS"
}

need "an environment with one of everything" setup
check "watchers see each change of a restore, and the notification changes nothing" each_change_is_heard
check "git with a file system monitor sees what a restore brought" git_with_a_monitor_sees_a_restore
check "a reader during a restore sees each name come and go once" others_see_nothing_but_the_restore
check "of too many changed names only the directories are reported" many_are_told_of_directories
check "mounts beside reported changes stay" mounts_inside_stay
check "a mount on a reported name is not touched" what_lies_on_it_is_not_touched
check "the server recognizes the notifying process by an unguessable name" names_are_not_guessed
finish_suite
