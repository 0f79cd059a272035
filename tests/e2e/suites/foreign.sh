#!/usr/bin/env bash
# False stores: each file of one in turn a symbolic link, a hard link, a FIFO, a directory, another user's; stores of others; sockets
# that others serve. Whatever command reads one: nothing outside of it changes, no process outside is killed, and the command ends.
# runs as: root user
# seconds: 190
. "$(dirname "$0")/../checks.sh"

BASE=$TMPDIR/base
FALSE=$TMPDIR/false
VICTIMS=$TMPDIR/victims

# Every command that reads, and those that serve and end mounts: what must be harmless on a false store.
READING=(
    "list" "inspect dev" "snapshots dev" "diff dev" "du" "gc --dry-run" "verify-store" "export dev -o $TMPDIR/out.tar"
)
SERVING=(
    "mount dev $TMPDIR/mnt" "umount dev" "umount --force dev" "stop -t 1 dev" "mount --all $TMPDIR/all" "umount --all"
)

# The files of a store, and then its directories; I is the instance, L a layer's record, O an object.
FILES=(
    store/version store/.lock store/.host store/.gc store/metadata/I store/layers/L store/objects/O
    store/wal/00000000000000000000000000000000 store/pins/00000000000000000000000000000000
    env/I/lock env/I/sessions env/I/mount.json env/I/mount.log env/I/control.sock
    env/I/upper/checkpoint env/I/upper/journal env/I/upper/.tmp-journal mount-all mount-all.log
)
DIRECTORIES=(
    store store/objects store/layers store/metadata store/staging store/wal store/pins images env
    env/I env/I/upper env/I/upper/data env/I/mnt logs
)

setup() {
    small_environment "$BASE"
    mkdir -p "$VICTIMS/directory"
    printf '{"dir":"/nowhere","pid":1}\n' >"$VICTIMS/file"
    echo kept >"$VICTIMS/directory/.tmp-kept"
    echo kept >"$VICTIMS/directory/.kept"
    chmod 0640 "$VICTIMS/file"
    touch -d '2001-02-03 04:05:06.789' "$VICTIMS/file" "$VICTIMS/directory"/.*kept "$VICTIMS/directory"
    [ "$ACTOR" = user ] || sleep infinity &
    echo $! >"$TMPDIR/bystander"
}

# All that is to stay as it is. Any change of a file changes its change time, which nobody can set back; so does the end of one of its
# names, which may be the store's.
STAMP=%C@
victims() { find "$VICTIMS" -printf "%p %y %m %U %s %T@ $STAMP\n"; }

# path_of NAME: where a file of the list is in the false store.
path_of() {
    local instance layer object
    instance=$(ls "$STORE/env")
    layer=$(cd "$STORE/store/layers" && printf "%s\n" * | head -n1)
    object=$(cd "$STORE/store/objects" && find . -type f | sort | head -n1)
    case $1 in
        store/objects/O) echo "$FALSE/store/objects/${object#./}" ;;
        store/layers/L) echo "$FALSE/store/layers/$layer" ;;
        *) echo "$FALSE/${1/\/I/\/$instance}" ;;
    esac
}

# falsify PATH KIND: replaces a file by something of that kind.
falsify() {
    if [ "$2" != owner ]; then rm -rf "$1"; fi
    case $2 in
        link) ln -s "$VICTIMS/file" "$1" ;;
        dangling) ln -s "$VICTIMS/made" "$1" ;;
        hard) ln "$VICTIMS/file" "$1" ;;
        fifo) mkfifo "$1" ;;
        directory) mkdir "$1" ;;
        tree) ln -s "$VICTIMS/directory" "$1" ;;
        owner)
            [ -e "$1" ] || : >"$1"
            chown tester: "$1"
            ;;
    esac
}

# nothing_happens WHAT COMMAND...: runs commands on the false store.
nothing_happens() {
    local what=$1 command status before
    shift
    before=$(victims)
    for command in "$@"; do
        status=0
        # shellcheck disable=SC2086 # words
        timeout -k 1 40 karapace --store "$FALSE" $command >"$TMPDIR/said" 2>&1 </dev/null || status=$?
        if [ "$status" -ge 100 ]; then wrong "$what: $command: status $status: $(cat "$TMPDIR/said")" || return 1; fi
        if grep -q 'panicked at' "$TMPDIR/said"; then wrong "$what: $command: $(cat "$TMPDIR/said")" || return 1; fi
        if [ "$(victims)" != "$before" ]; then
            wrong "$what: $command changed what is none of the store's: $(diff <(echo "$before") <(victims))" || return 1
        fi
        kill -0 "$(<"$TMPDIR/bystander")" || wrong "$what: $command ended a process" || return 1
    done
    # Unmounts what was mounted nevertheless.
    karapace --store "$FALSE" umount --all >"$TMPDIR/said" 2>&1 </dev/null || true
    while umount -l "$TMPDIR/mnt" 2>/dev/null; do :; done
    rm -rf "$TMPDIR/all"
}

# rows KIND NAME...: own stores, and with --foreign another user's.
rows() {
    local kind=$1 name
    shift
    if [ "$kind" = hard ]; then STAMP=''; fi
    if [ "$kind" = fifo ]; then READING+=(doctor); fi
    for name in "$@"; do
        rm -rf "$FALSE"
        cp -a "$STORE" "$FALSE"
        falsify "$(path_of "$name")" "$kind"
        nothing_happens "$name as $kind" "${READING[@]}" "${SERVING[@]}"
        # The same in a store of the user's who made it so.
        chown -hR tester: "$FALSE"
        if [ "$kind" = hard ]; then chown root: "$VICTIMS/file"; fi
        refused karapace --store "$FALSE" list
        says 'belongs to tester'
        nothing_happens "$name as $kind in another's store" "${READING[@]/#/--foreign-store }"
    done
    rm -rf "$FALSE"
}

# A socket that a process of this user serves, or that leads to somebody's: `serve PATH UID` logs all that it is told.
serve() {
    rm -f "$TMPDIR/served"
    python3 - "$1" "$2" "$TMPDIR/served" <<'PYTHON' &
import os, socket, sys
path, uid, log = sys.argv[1], int(sys.argv[2]), open(sys.argv[3], "wb", 0)
server = socket.socket(socket.AF_UNIX)
server.bind(path)
os.seteuid(uid)
server.listen()
log.write(b"ready\n")
while True:
    connection, _ = server.accept()
    said = connection.recv(65536)
    if said:
        log.write(said)
        connection.sendall(b'{"entrance":{"dir":"/","session":true,"ground":[],"seen":null,"inside":null}}\n')
    connection.close()
PYTHON
    echo $! >"$TMPDIR/server"
    until_true grep -q ready "$TMPDIR/served"
}

# Nothing is sent to another user's socket; a link to a daemon's socket does not end the daemon.
sockets() {
    local socket command owner
    for owner in stranger-listens stranger-owns leads-elsewhere; do
        rm -rf "$FALSE"
        cp -a "$STORE" "$FALSE"
        socket=$(path_of env/I/control.sock)
        rm -f "$socket"
        case $owner in
            stranger-listens) serve "$socket" 54321 ;;
            stranger-owns)
                serve "$socket" 0
                chown tester: "$socket"
                ;;
            leads-elsewhere)
                rm -f "$VICTIMS/daemon.sock"
                serve "$VICTIMS/daemon.sock" 0
                ln -s "$VICTIMS/daemon.sock" "$socket"
                ;;
        esac
        printf '{"dir":"%s","pid":%d,"session":true}' "$TMPDIR/mnt" "$(cat "$TMPDIR/bystander")" >"$(path_of env/I/mount.json)"
        for command in "list" "diff dev" "commit dev" "umount dev" "umount --force dev" "stop -t 1 dev" "exec dev true" "umount --all"; do
            # shellcheck disable=SC2086 # words
            timeout -k 1 60 karapace --store "$FALSE" $command >"$TMPDIR/said" 2>&1 </dev/null || [ $? -ne 124 ] || wrong "$owner: $command hangs"
            kill -0 "$(cat "$TMPDIR/server")" || wrong "$owner: $command ended the daemon"
            kill -0 "$(cat "$TMPDIR/bystander")" || wrong "$owner: $command ended the bystander"
            equal "what $owner was told by $command" ready "$(cat "$TMPDIR/served")"
        done
        karapace --store "$FALSE" --json list | json - 'd["environments"][0]["mount"] if "environments" in d else d[0]["mount"]' | has None
        kill "$(cat "$TMPDIR/server")"
    done
    rm -f "$VICTIMS/daemon.sock"
}

# mount-all names a process that does not hold it.
a_process_named_in_a_file_is_not_signalled() {
    rm -rf "$FALSE"
    cp -a "$STORE" "$FALSE"
    printf '{"pid":%d,"dir":"%s"}' "$(cat "$TMPDIR/bystander")" "$TMPDIR/all" >"$FALSE/mount-all"
    flock -o -x "$FALSE/mount-all" sleep 600 &
    local holder=$!
    until_true bash -c "! flock -n '$FALSE/mount-all' true"
    refused karapace --store "$FALSE" umount --all
    says 'does not hold it'
    kill -0 "$(cat "$TMPDIR/bystander")" || wrong "the process was ended"
    kill "$holder"
}

# The mount of a session is made in the store where there is no XDG_RUNTIME_DIR.
a_sessions_mount_stays_in_the_store() {
    rm -rf "$FALSE"
    cp -a "$STORE" "$FALSE"
    mkdir -p "$TMPDIR/empty"
    rm -rf "$(path_of env/I/mnt)"
    ln -s "$TMPDIR/empty" "$(path_of env/I/mnt)"
    status_of 125 karapace --store "$FALSE" exec dev true >"$TMPDIR/refused" 2>&1
    says 'symbolic link'
    # One that is not there is made.
    rm "$(path_of env/I/mnt)"
    karapace --store "$FALSE" exec dev true >"$TMPDIR/refused" 2>&1 || true
    says 'true.*not found|No such file'
    not_mounted "$(path_of env/I/mnt)"
}

# A mount that is not karapace's stays, even at the path in mount.json.
a_mount_of_others_stays() {
    rm -rf "$FALSE"
    cp -a "$STORE" "$FALSE"
    mkdir -p "$TMPDIR/other"
    # A FUSE mount whose server is gone, as a crashed sshfs leaves it.
    (
        exec 9<>/dev/fuse
        mount -i -t fuse -o fd=9,rootmode=40000,user_id=0,group_id=0 other "$TMPDIR/other"
    )
    mounted "$TMPDIR/other" || wrong "no mount to try it with"
    printf '{"dir":"%s","pid":1}' "$TMPDIR/other" >"$(path_of env/I/mount.json)"
    karapace --store "$FALSE" umount dev || true
    karapace --store "$FALSE" mount dev "$TMPDIR/mnt"
    karapace --store "$FALSE" umount dev
    mounted "$TMPDIR/other" || wrong "what another program has mounted was detached"
    refused karapace --store "$FALSE" mount dev "$TMPDIR/other"
    says 'karapace did not make'
    umount -l "$TMPDIR/other"
}

# With the flag another user's store can be read, but no command can change it.
with_the_flag() {
    rm -rf "$FALSE"
    cp -a "$STORE" "$FALSE"
    chown -hR tester: "$FALSE"
    local before command
    before=$(cd "$FALSE" && find . -printf '%p %y %m %U %s %T@ %C@\n' | sort)
    karapace --store "$FALSE" --foreign-store list | has dev
    karapace --store "$FALSE" --foreign-store --json inspect dev | has '"name": *"dev"'
    karapace --store "$FALSE" --foreign-store snapshots dev | has first
    karapace --store "$FALSE" --foreign-store diff dev | has etc/file
    karapace --store "$FALSE" --foreign-store du | has dev
    karapace --store "$FALSE" --foreign-store gc --dry-run
    karapace --store "$FALSE" --foreign-store verify-store
    karapace --store "$FALSE" --foreign-store export dev -o "$TMPDIR/out.tar"
    tar -tf "$TMPDIR/out.tar" | has etc/file
    for command in "commit dev" "mount dev" "umount dev" "enter dev" "exec dev true" "stop dev" "gc" "verify-store --repair" \
        "import $BASE --name more" "destroy dev" "rename dev other" "snapshots rm dev first" "mount --all" "restore dev first"; do
        # shellcheck disable=SC2086 # words
        if karapace --store "$FALSE" --foreign-store $command >"$TMPDIR/refused" 2>&1; then wrong "not refused: $command"; fi
        says 'only read'
    done
    equal "the store" "$before" "$(cd "$FALSE" && find . -printf '%p %y %m %U %s %T@ %C@\n' | sort)"
    # If its owner holds a lock, the command says so and does not wait.
    flock -o -x "$FALSE/store/.lock" sleep 600 &
    local holder=$!
    until_true bash -c "! flock -n '$FALSE/store/.lock' true"
    timeout 20 karapace --store "$FALSE" --foreign-store list | has dev
    if timeout 20 karapace --store "$FALSE" --foreign-store du >"$TMPDIR/refused" 2>&1; then wrong "not refused: du"; fi
    says 'locked'
    kill "$holder"
}

# Other users who can write to the store control what is written.
open_to_others() {
    local mode where
    for where in . env store; do
        for mode in 0777 0775; do
            rm -rf "$FALSE"
            cp -a "$STORE" "$FALSE"
            chmod 0755 "$FALSE"
            chmod "$mode" "$FALSE/$where"
            refused karapace --store "$FALSE" list
            says 'writable by other users'
            says 'chmod go-w'
            chmod go-w "$FALSE/$where"
            karapace --store "$FALSE" list | has dev
        done
    done
    # If a directory above is closed, it does not matter; verify-store reports it.
    chmod 0700 "$FALSE"
    chmod 0777 "$FALSE/env"
    karapace --store "$FALSE" list | has dev
    karapace --store "$FALSE" verify-store | has 'has mode 0777'
}

# Modes are set, whatever the umask.
umasks() {
    local mask store loose
    for mask in 000 022 077; do
        store=$TMPDIR/umask-$mask
        (
            umask "$mask"
            export KARAPACE_STORE=$store/below/store
            karapace import "$BASE" --name dev
            karapace mount dev "$TMPDIR/mnt"
            echo new >"$TMPDIR/mnt/etc/new"
            equal "the socket" 600 "$(stat -c %a "$KARAPACE_STORE"/env/*/control.sock)"
            karapace commit dev >/dev/null
            echo more >"$TMPDIR/mnt/etc/new"
            karapace exec dev true || true
            loose=$(find "$store" -ignore_readdir_race ! -path '*/store/objects/*/*' -perm /0077)
            equal "what others may do under umask $mask, mounted" "" "$loose"
            karapace umount dev
        )
        loose=$(find "$store" -ignore_readdir_race ! -path '*/store/objects/*/*' -perm /0077)
        equal "what others may do under umask $mask" "" "$loose"
        equal "objects" "" "$(find "$store" -path '*/store/objects/*/*' ! -perm 0444)"
        equal "directories" "" "$(find "$store" -type d ! -perm 0700)"
        rm -rf "$store"
    done
}

need "an environment" setup
check "modes do not depend on the umask: 000, 022 and 077" umasks
check "a store that others can write to is refused with its mode" open_to_others
if [ "$ACTOR" = root ]; then
    check "each file a link to a file of root's" rows link "${FILES[@]}"
    check "each file a link to a name that is free" rows dangling "${FILES[@]}"
    check "each file a hard link to a file of root's" rows hard "${FILES[@]}"
    check "each file a FIFO" rows fifo "${FILES[@]}"
    check "each file a directory" rows directory "${FILES[@]}"
    check "each file another user's" rows owner "${FILES[@]}"
    check "each directory a link to one of root's" rows tree "${DIRECTORIES[@]}"
    check "each directory another user's" rows owner "${DIRECTORIES[@]}"
    check "nothing is sent to a socket of another user, or through a symbolic link" sockets
    check "a process that a file names is not signalled" a_process_named_in_a_file_is_not_signalled
    check "a session's mount stays in the store" a_sessions_mount_stays_in_the_store
    check "a mount that karapace did not make stays" a_mount_of_others_stays
    check "--foreign-store reads another user's store and does nothing else" with_the_flag
fi
[ "$ACTOR" = user ] || kill "$(cat "$TMPDIR/bystander")"
finish_suite
