#!/usr/bin/env bash
# Temporary copies: run, exec --rm and --keep. Nothing of a copy stays but what is kept, and that is all of it.
# runs as: root user
# files: MINBASE
# seconds: 60
. "$(dirname "$0")/../checks.sh"
. "$(dirname "$0")/../changes.sh"
PATIENCE=30

CHANGES=$(changes /opt/new)
# What a session sees, whatever file system shows it.
LISTING='cd /
find . -xdev \( -path ./proc -o -path ./dev -o -path ./sys -o -path ./etc/hosts -o -path ./etc/resolv.conf -o -path ./.karapace \) -prune -o \
    \( -type d -printf "%p d %m %U %G %T@\n" -o -printf "%p %y %m %U %G %T@ %n %s %l\n" \) | LC_ALL=C sort
find ./etc ./opt ./usr/bin ./usr/share -xdev -type f ! -path ./etc/hosts ! -path ./etc/resolv.conf -exec sha256sum {} + | LC_ALL=C sort'

setup() {
    karapace import "$MINBASE_TAR" --name dev
    karapace exec dev -- sh -c 'echo committed >/srv/file'
    karapace commit dev --name one
    karapace exec dev -- sh -c 'echo uncommitted >/srv/file; echo new >/srv/other'
}
# nothing_is_left [ENVIRONMENTS]: no more than so many.
nothing_is_left() {
    equal environments "${1:-1}" "$(find "$STORE/env" -mindepth 1 -maxdepth 1 | wc -l)"
    equal records "${1:-1}" "$(find "$STORE/store/metadata" -type f | wc -l)"
    equal overlays "" "$(find "$STORE/env" -name overlay)"
    equal intents "" "$(ls "$STORE/store/wal")"
    if grep karapace+run /proc/mounts; then wrong "still mounted"; fi
}

passes_through() {
    equal output "in out dev" "$(echo in | karapace run dev -- sh -c 'read -r line; echo $line out $(cat /etc/hostname >/dev/null; uname -n)')"
    status_of 3 karapace run dev -- sh -c 'exit 3'
    status_of 143 karapace run dev -- sh -c 'kill -TERM $$'
    status_of 127 karapace run dev nosuchprogram
    equal "a variable, a directory, a user" "x /usr/share 33" \
        "$(karapace run -e A=x -w /usr/share -u 33 dev -- sh -c 'echo $A $(pwd) $(id -u)')"
    equal "without a command" shell "$(echo 'echo shell' | karapace run dev)"
    nothing_is_left
}
goes_to_overlayfs() {
    karapace -v run dev true 2>"$TMPDIR/said"
    cat "$TMPDIR/said"
    if grep 'not with overlayfs' "$TMPDIR/said"; then wrong "no overlay"; fi
    equal "root is" overlay "$(karapace run dev -- stat -f -c %T / | sed s/overlayfs/overlay/)"
}
leaves_no_trace() {
    local before
    before=$(karapace diff dev; karapace snapshots dev)
    karapace run dev -- sh -c "$CHANGES; echo changed >/srv/file; rm /srv/other"
    karapace exec --rm dev -- sh -c "$CHANGES"
    echo 'rm -rf /srv /opt' | karapace enter --rm dev
    equal "the environment" "$before" "$(karapace diff dev; karapace snapshots dev)"
    equal "its files" "uncommitted new" "$(karapace exec dev -- sh -c 'echo $(cat /srv/file /srv/other)')"
    nothing_is_left
    karapace verify-store
}
has_what_is_uncommitted() {
    equal "not mounted" "uncommitted new" "$(karapace run dev -- sh -c 'echo $(cat /srv/file /srv/other)')"
    karapace mount dev "$MOUNTS/dev"
    echo "on the mount" >"$MOUNTS/dev/srv/file"
    equal mounted "on the mount new" "$(karapace run dev -- sh -c 'echo $(cat /srv/file /srv/other)')"
    equal "a snapshot" "committed" "$(karapace run dev@one -- sh -c 'echo $(cat /srv/file /srv/other 2>/dev/null)')"
    equal "the head" "committed" "$(karapace exec --rm dev@head -- sh -c 'echo $(cat /srv/file /srv/other 2>/dev/null)')"
    equal "the base" "" "$(karapace run dev@base -- ls /srv)"
    equal "snapshots" 1 "$(karapace --json snapshots dev | grep -o '"hash"' | wc -l)"
    karapace diff dev | has 'A /srv/other'
    # What is written while the copy runs is not in it, and is not lost.
    karapace run dev -- sh -c 'touch /srv/in-copy; until [ -e /dev/shm/go ]; do sleep 0.1; done; cat /srv/file' >"$TMPDIR/copied" &
    until_true running_copy
    echo later >"$MOUNTS/dev/srv/file"
    go_on
    wait $!
    equal "in the copy" "on the mount" "$(cat "$TMPDIR/copied")"
    equal "in the environment" later "$(cat "$MOUNTS/dev/srv/file")"
    [ ! -e "$MOUNTS/dev/srv/in-copy" ]
    karapace umount dev
    nothing_is_left
}
the_copy() { karapace list | grep -o '^run-[0-9a-f]*'; }
# Lets the command in the copy end; what tells it so may be killed with everything else in the copy.
go_on() { karapace exec "$(the_copy)" touch /dev/shm/go || true; }
running_copy() { karapace list | grep '^run-' | has Running && karapace exec "$(the_copy)" test -e /srv/in-copy; }

keeps_everything() {
    status_of 5 karapace run --keep kept dev -- sh -c "$CHANGES; $LISTING; exit 5" >"$TMPDIR/during"
    karapace exec kept -- sh -c "$LISTING" >"$TMPDIR/after"
    at_least "lines" 5000 "$(wc -l <"$TMPDIR/during")"
    diff "$TMPDIR/during" "$TMPDIR/after"
    karapace diff --base kept | has 'D /usr/bin/tac'
    karapace diff kept | has 'D /usr/bin/tac'
    equal "snapshots" "$(karapace snapshots dev)" "$(karapace snapshots kept)"
    equal "what the environment had" later "$(karapace exec kept cat /srv/file)"
    equal "a snapshot of it" "committed" "$(karapace run kept@one cat /srv/file)"
    karapace verify-store
    equal "files of others" "" "$(find "$STORE" ! -user "$(id -u)")"
    # It is an environment like any other.
    karapace exec kept -- sh -c 'echo more >/opt/new/more'
    karapace commit kept --name two
    equal "uncommitted" "" "$(karapace diff kept)"
    karapace exec kept -- sh -c "$LISTING" >"$TMPDIR/committed"
    diff <(grep -v opt/new/more "$TMPDIR/committed" | grep -v '^./opt/new d') <(grep -v '^./opt/new d' "$TMPDIR/after")
    karapace verify-store
    nothing_is_left 2
    karapace destroy -y --snapshots kept
}
# What a fold could stumble over: a name as it uses for itself, more levels than open files are usually allowed, a file of the image in place of
# the session's own resolv.conf, a renamed directory that only a session has.
keeps_odd_things() {
    (
        ulimit -Sn 256
        karapace run --keep odd dev -- sh -ec '
            mkdir -p /.renamed-0/inside
            umount /.karapace
            chmod 755 /.karapace
            mv /usr/share/bug /usr/share/bug-moved
            echo mine >/etc/mine.conf
            mv /etc/debian_version /etc/resolv.conf
            cd /srv
            n=0
            while [ $n -lt 400 ]; do mkdir d && cd d; n=$((n + 1)); done
            touch deepest'
        karapace run dev -- sh -ec 'cd /srv; n=0; while [ $n -lt 400 ]; do mkdir d && cd d; n=$((n + 1)); done'
    )
    karapace mount odd "$MOUNTS/odd"
    equal "the file moved over resolv.conf" "$(tar -xOf "$MINBASE_TAR" ./etc/debian_version)" "$(cat "$MOUNTS/odd/etc/resolv.conf")"
    [ -d "$MOUNTS/odd/.renamed-0/inside" ] && [ -d "$MOUNTS/odd/usr/share/bug-moved" ]
    equal "names that are left" ".renamed-0" "$(cd "$MOUNTS/odd" && echo .renamed*)"
    karapace diff odd | (! has -F .karapace)
    equal deepest 400 "$(cd "$MOUNTS/odd/srv" && find d -name deepest -printf '%d')"
    karapace umount odd
    karapace run --keep written dev -- sh -c 'echo x >>/etc/resolv.conf; echo x >/srv/x'
    karapace diff written | (! has resolv.conf)
    if [ "$ACTOR" = root ]; then
        local top=${TMPDIR#/var/tmp/}
        top=/var/tmp/${top%%/*}
        karapace run --home share --keep shared dev -- perl -e 'rename($ARGV[0], "/srv/moved") or die "$!\n"' "$top"
        karapace diff shared | has 'A /srv/moved'
        karapace destroy -y --snapshots shared
    fi
    karapace destroy -y --snapshots odd
    karapace destroy -y --snapshots written
    nothing_is_left
}
# denied PATTERN COMMAND...: karapace must fail, and say that.
denied() {
    local pattern=$1
    shift
    status_of 125 "$@" >"$TMPDIR/refused" 2>&1
    says "$pattern"
}
refuses() {
    denied already karapace run --keep dev dev -- touch /dev/shm/ran
    denied 'control directory' karapace run --ctl dev true
    denied 'bad name' karapace run --keep a/b dev -- touch /dev/shm/ran
    denied 'cannot be used with' karapace run --rm --keep other dev true
    for wrong in nosuch nosuch@one dev@nosuch ./nosuch.tar; do
        denied nosuch karapace run "$wrong" true
    done
    karapace list | (! has nosuch)
    nothing_is_left
}
ends_with_its_command() {
    karapace run dev -- sh -c 'sleep 1234 & setsid sleep 1234 & exit 0'
    if pgrep -u "$(id -u)" -f 'sleep 1234'; then wrong "a process is left"; fi
    karapace run dev -- sh -c 'touch /srv/in-copy; until [ -e /dev/shm/go ]; do sleep 0.1; done' &
    local run=$! second
    until_true running_copy
    karapace exec "$(the_copy)" sleep 1235 &
    second=$!
    until_true pgrep -u "$(id -u)" -f '^sleep 1235'
    denied temporary karapace run "$(the_copy)" true
    refused karapace clone "$(the_copy)" --name other
    says temporary
    below "bytes of the upper" 10000000 "$(karapace --json du "$(the_copy)" | grep -o '"upper_bytes": *[0-9]*' | head -n1 | grep -o '[0-9]*$')"
    refused karapace commit "$(the_copy)"
    go_on
    wait "$run"
    status_of 137 wait "$second"
    nothing_is_left
}
stopped_or_killed() {
    karapace run dev -- sh -c 'touch /srv/in-copy; sleep 1236' &
    local run=$!
    until_true running_copy
    kill -TERM "$run"
    status_of 143 wait "$run"
    nothing_is_left
    # Files of other ids are in it, which only the namespace of the sessions can remove.
    karapace run dev -- sh -c 'mkdir -m 700 /srv/own; touch /srv/own/file; chown -R 33:33 /srv/own; touch /srv/in-copy; sleep 1237' &
    run=$!
    until_true running_copy
    kill -KILL "$run"
    wait "$run" || true
    until_true cleaned_up
    nothing_is_left
}
# The next command cleans up what a killed one has left.
cleaned_up() { ! karapace list | grep '^run-' && nothing_is_left; }

of_an_image() {
    mkdir -p "$TMPDIR/root/etc"
    tar -xf "$MINBASE_TAR" -C "$TMPDIR/root" --no-same-owner --exclude './dev/*' --exclude './var/lib/apt/*'
    karapace run "$MINBASE_TAR" -- sh -c 'touch /srv/in-copy; sleep 1239' &
    local run=$!
    until_true running_copy
    kill -TERM "$run"
    status_of 143 wait "$run"
    equal "a directory" 12 "$(karapace run "$TMPDIR/root" -- sh -c '. /etc/os-release; echo $VERSION_ID')"
    equal "an archive" 12 "$(karapace run "$MINBASE_TAR" -- sh -c '. /etc/os-release; echo $VERSION_ID')"
    nothing_is_left
    (cd "$TMPDIR" && karapace run --keep image ./root -- sh -c 'echo kept >/srv/file')
    equal kept kept "$(karapace exec image cat /srv/file)"
    equal "the image" "" "$(karapace run image@base ls /srv)"
    nothing_is_left 2
    karapace destroy -y image
}
without_overlayfs() {
    local store=$TMPDIR/plain
    mkdir -p "$TMPDIR/small/etc"
    karapace --store "$store" import "$MINBASE_TAR" --name dev
    # Each environment's directory inherits it, and an overlay's upper would show it.
    setfacl -d -m u:0:rwx "$store/env"
    karapace --store "$store" -v run --keep kept dev -- sh -c "$CHANGES; $LISTING" >"$TMPDIR/during" 2>"$TMPDIR/said"
    has 'not with overlayfs' <"$TMPDIR/said"
    karapace --store "$store" exec kept -- sh -c "$LISTING" >"$TMPDIR/after"
    diff "$TMPDIR/during" "$TMPDIR/after"
    karapace --store "$store" run dev -- sh -c "$CHANGES"
    STORE=$store nothing_is_left 2
    karapace --store "$store" verify-store
}
outlives_its_origin() {
    karapace clone dev --name origin
    karapace run origin -- sh -c 'touch /srv/in-copy; until [ -e /dev/shm/go ]; do sleep 0.1; done; sha256sum /usr/bin/perl' >"$TMPDIR/copied" &
    local run=$!
    until_true running_copy
    karapace destroy -y --snapshots origin
    karapace destroy -y --snapshots dev
    karapace gc
    go_on
    wait "$run"
    equal "a file" "$(tar -xOf "$MINBASE_TAR" ./usr/bin/perl | sha256sum | cut -d' ' -f1)" "$(cut -d' ' -f1 "$TMPDIR/copied")"
    karapace gc
    nothing_is_left 0
    karapace verify-store
}

need "an environment with uncommitted changes" setup
check "output, input, status and options are those of exec" passes_through
check "changes go to overlayfs" goes_to_overlayfs
check "run, exec --rm and enter --rm leave no trace" leaves_no_trace
check "the copy has what is uncommitted, or what a snapshot has" has_what_is_uncommitted
check "--keep: the environment is what the session saw at its end" keeps_everything
check "--keep: odd things are kept too" keeps_odd_things
check "bad requests run nothing and leave nothing" refuses
check "everything in the copy ends with its command" ends_with_its_command
check "a run that is stopped or killed leaves nothing" stopped_or_killed
check "images run, and are kept" of_an_image
check "without overlayfs it does the same" without_overlayfs
check "a copy outlives what it was copied from" outlives_its_origin
finish_suite
