#!/usr/bin/env bash
# The life of a mount: persistence over umount and kill -9, stale mounts, signals, one server per
# environment.
# runs as: root user
# seconds: 50
. "$(dirname "$0")/../checks.sh"
ENV=life
DIR=$MOUNTS/$ENV

setup() {
    mounted_fixture "$PLAIN/fixture"
}

# Work of each kind, none of it committed and none of it fsynced.
work() {
    mkdir -p "$DIR/work/deep"
    for i in $(seq 200); do echo "$i" >"$DIR/work/$i"; done
    mv "$DIR/work/1" "$DIR/work/deep/one"
    rm "$DIR/etc/deleted" "$DIR/work/2"
    echo changed >"$DIR/etc/changed"
    echo appended >>"$DIR/srv/data/large"
    chmod 0640 "$DIR/etc/keep"
    setfattr -n user.note -v kept "$DIR/etc/keep"
    ln -s /etc "$DIR/work/link"
    ln "$DIR/work/3" "$DIR/work/three"
    touch -d '2010-01-01 01:02:03.5' "$DIR/work/4"
    mv "$DIR/usr/share" "$DIR/usr/share.moved"
    truncate -s 10 "$DIR/srv/data/sparse"
    tree "$DIR" times >"$TMPDIR/worked"
}
as_worked() { tree "$DIR" times | diff "$TMPDIR/worked" -; }

mount_answers_at_once() {
    karapace umount "$ENV"
    karapace mount "$ENV"
    # No waiting: it returned, so it answers.
    [ -e "$DIR/etc/os-release" ]
}

survives_umount() {
    work
    karapace umount "$ENV"
    not_mounted "$DIR"
    karapace mount "$ENV"
    as_worked
}

survives_kill() {
    echo "before the kill" >"$DIR/etc/last words"
    tree "$DIR" times >"$TMPDIR/worked"
    local server
    server=$(server_of "$ENV")
    kill -9 "$server"
    until_true gone "$server"
    mounted "$DIR" || wrong "the kernel keeps a dead server's mount; this one is gone"
    equal "mount of a killed server" None "$(inspect "$ENV" 'd["mount"]')"
    karapace mount "$ENV"
    as_worked
}

killed_in_the_middle() {
    local server count
    mkdir -p "$DIR/burst"
    (
        i=0
        while echo "$i" >"$DIR/burst/$i" && echo "$i" >"$TMPDIR/acknowledged"; do i=$((i + 1)); done
    ) 2>/dev/null &
    local writer=$!
    server=$(server_of "$ENV")
    until_true has_written 1000
    kill -9 "$server"
    wait "$writer" || true
    count=$(cat "$TMPDIR/acknowledged")
    karapace mount "$ENV"
    for i in $(seq 0 "$count"); do
        equal "burst/$i" "$i" "$(cat "$DIR/burst/$i")"
    done
    rm -r "$DIR/burst"
}

has_written() { [ "$(cat "$TMPDIR/acknowledged")" -ge "$1" ]; }

stale_mount_is_cleared_by_umount() {
    kill -9 "$(server_of "$ENV")"
    until_true bash -c '! ls "$1"' - "$DIR"
    karapace umount "$ENV"
    not_mounted "$DIR"
    karapace mount "$ENV"
}

second_mount_is_refused() {
    refused karapace mount "$ENV"
    says "$DIR"
    mkdir -p "$HOME/elsewhere"
    refused karapace mount "$ENV" "$HOME/elsewhere"
    says "$DIR"
    not_mounted "$HOME/elsewhere"
    [ -e "$DIR/etc/os-release" ]
}

elsewhere() {
    karapace umount "$ENV"
    mkdir -p "$HOME/elsewhere"
    karapace mount "$ENV" "$HOME/elsewhere"
    [ -e "$HOME/elsewhere/etc/os-release" ]
    equal mount.dir "$HOME/elsewhere" "$(inspect "$ENV" 'd["mount"]["dir"]')"
    karapace umount "$HOME/elsewhere"
    not_mounted "$HOME/elsewhere"
    karapace mount "$ENV"
}

ends_with() {
    local signal=$1 server
    echo "$signal" >"$DIR/etc/signal"
    server=$(server_of "$ENV")
    kill "-$signal" "$server"
    until_true gone "$server"
    until_true not_mounted "$DIR"
    karapace mount "$ENV"
    equal content "$signal" "$(cat "$DIR/etc/signal")"
}

foreground_ends_with_sigint() {
    karapace umount "$ENV"
    # A background job of a script ignores SIGINT; a terminal's foreground process does not.
    python3 - "$ENV" "$DIR" <<'PYTHON'
import os, signal, subprocess, sys, time
name, directory = sys.argv[1:]
signal.signal(signal.SIGINT, signal.SIG_DFL)
server = subprocess.Popen(["karapace", "mount", name, "--foreground"])
for _ in range(2400):
    if os.path.exists(directory + "/etc/os-release"):
        break
    time.sleep(0.05)
else:
    sys.exit("never mounted")
server.send_signal(signal.SIGINT)
sys.exit(server.wait(timeout=120))
PYTHON
    not_mounted "$DIR"
    karapace mount "$ENV"
}

# At level trace the server logs each request of the kernel: who asked, for what, and the answer.
requests_are_logged() {
    karapace umount "$ENV"
    local before log=$STORE/env
    KARAPACE_LOG='karapace_fs::fuse=trace,debug' karapace mount "$ENV"
    log=$log/$(inspect "$ENV" 'd["instance"]')/mount.log
    python3 -c 'import os, sys
print(os.getpid())
try: os.stat(sys.argv[1])
except FileNotFoundError: pass' "$DIR/never" >"$TMPDIR/asker"
    ctl "$ENV" "commit message=logged"
    karapace umount "$ENV"
    has -E "request\{unique=[0-9]+ operation=\"lookup\" node=1 pid=$(cat "$TMPDIR/asker") name=\"never\" errno=2\}: close time" <"$log"
    has -E 'request\{.*operation="write".*\}: command\{from="control" command=Commit .*logged.*\}: close time' <"$log"
    KARAPACE_LOG=karapace=lots karapace mount "$ENV" 2>"$TMPDIR/told"
    has 'KARAPACE_LOG is ignored' <"$TMPDIR/told"
    before=$(grep -c 'request{' "$log")
    ls "$DIR/etc" >/dev/null
    equal "requests in the log of a mount that is not to tell" "$before" "$(grep -c 'request{' "$log")"
}

busy_umount_is_refused() {
    (
        cd "$DIR/etc" || exit
        exec sleep 60
    ) &
    local sleeper=$!
    until_true bash -c 'readlink /proc/$1/cwd | grep -q "$2"' - "$sleeper" "$DIR/etc"
    until_true grep -qx sleep "/proc/$sleeper/comm"
    refused karapace umount "$ENV"
    says "in use by $sleeper \\(sleep\\)"
    [ -e "$DIR/etc/os-release" ]
    kill "$sleeper"
    wait "$sleeper" || true
    if [ "$ACTOR" = root ]; then
        mount -t tmpfs none "$DIR/etc"
        refused karapace umount "$ENV"
        says "in use by the mount on $DIR/etc"
        umount "$DIR/etc"
    fi
    until_true karapace umount "$ENV"
    karapace mount "$ENV"
}

# hung [COMMAND...]: the server is stopped, something waits for it, and the mount is ended by force.
hung() {
    local server waiting
    echo "before it hung" >"$DIR/etc/last words"
    tree "$DIR" times >"$TMPDIR/worked"
    server=$(server_of "$ENV")
    sigstop "$server"
    mkdir "$DIR/etc/asked for" 2>/dev/null &
    waiting=$!
    until_true grep -qE '^[0-9]+ \(mkdir\) [SD]' "/proc/$waiting/stat"
    # A command that waits for it without force says what for.
    karapace umount "$ENV" 2>"$TMPDIR/waits" &
    local unforced=$!
    until_true grep -q "process $server, is stopped.*umount --force" "$TMPDIR/waits"
    kill "$unforced"
    wait "$unforced" || true
    karapace umount --force "$1" 2>"$TMPDIR/forced"
    cat "$TMPDIR/forced"
    grep -q "^killed its server ($server)" "$TMPDIR/forced"
    gone "$server"
    not_mounted "$DIR"
    # The process that waited continues.
    wait "$waiting" || true
    karapace mount "$ENV"
    as_worked
}

hung_and_cut_off() {
    mount -t fusectl fusectl /sys/fs/fuse/connections
    # A shell inside keeps the kernel's connection after it was detached.
    (cd "$DIR/etc" && exec sleep 60) &
    local inside=$!
    until_true bash -c 'readlink /proc/$1/cwd | grep -q "$2"' - "$inside" "$DIR/etc"
    hung "$ENV"
    grep -q '^aborted the connection' "$TMPDIR/forced"
    kill "$inside"
    wait "$inside" || true
    umount /sys/fs/fuse/connections
}

forced_while_in_use() {
    (cd "$DIR/etc" && exec sleep 60) &
    local inside=$! server
    until_true bash -c 'readlink /proc/$1/cwd | grep -q "$2"' - "$inside" "$DIR/etc"
    echo "in use" >"$DIR/etc/last words"
    server=$(server_of "$ENV")
    karapace --json umount --force "$DIR" >"$TMPDIR/forced" 2>/dev/null
    equal dir "$DIR" "$(json "$TMPDIR/forced" 'd["dir"]')"
    gone "$server"
    not_mounted "$DIR"
    kill "$inside"
    wait "$inside" || true
    refused karapace umount --force "$ENV"
    says 'not mounted'
    karapace mount "$ENV"
    equal content "in use" "$(cat "$DIR/etc/last words")"
}

destroy_wants_it_unmounted() {
    refused karapace destroy -y "$ENV"
    karapace umount "$ENV"
    karapace destroy -y "$ENV"
    refused karapace inspect "$ENV"
    karapace gc
    karapace verify-store
    equal "objects after destroy and gc" 0 "$(objects)"
}

# Commands during an unmount are answered, by the server or without it.
asked_while_it_ends() {
    local round one pids
    for round in $(seq 12); do
        pids=()
        karapace umount "$ENV" &
        pids+=($!)
        for one in diff inspect commit du; do
            karapace "$one" "$ENV" >"$TMPDIR/asked.$round.$one" 2>&1 &
            pids+=($!)
        done
        for one in "${pids[@]}"; do wait "$one" || { cat "$TMPDIR"/asked.*; return 1; }; done
        karapace mount "$ENV"
    done
}

# umount waits a minute for a server whose mount is gone, but not if it sees who keeps it.
WAITS=45

# Detached while in use, it is still served, and commands name its users at once.
detached_while_in_use() {
    (cd "$DIR" && exec sleep 72003) &
    local user=$! start=$SECONDS
    # shellcheck disable=SC2064 # this process, now
    trap "kill $user 2>/dev/null || true" EXIT
    until_true grep -qx sleep "/proc/$user/comm"
    if [ "$ACTOR" = root ]; then umount -l "$DIR"; else fusermount3 -uz "$DIR"; fi
    not_mounted "$DIR"
    karapace list | has "$DIR (not mounted here)"
    refused karapace mount "$ENV"
    says 'is not a mount here'
    refused karapace umount "$ENV"
    says "$user \\(sleep\\)\\..*umount --force $ENV"
    [ $((SECONDS - start)) -lt "$WAITS" ] || wrong "it took $((SECONDS - start)) s"
    kill "$user"
    wait "$user" || true
    until_true karapace mount "$ENV"
    as_worked
}

# A mount namespace that was made meanwhile has a copy of the mount.
copied_elsewhere() {
    local options=(--mount) copy="" start=$SECONDS
    trap 'kill ${copy:-} 2>/dev/null || true' EXIT
    [ "$ACTOR" = root ] || options=(--user --map-root-user --mount)
    unshare "${options[@]}" sleep 72004 &
    copy=$!
    until_true grep -qx sleep "/proc/$copy/comm"
    refused karapace umount "$ENV"
    says "$copy \\(sleep, in another mount namespace\\)"
    not_mounted "$DIR"
    [ $((SECONDS - start)) -lt "$WAITS" ] || wrong "it took $((SECONDS - start)) s"
    karapace umount --force "$ENV"
    kill -0 "$copy"
    karapace mount "$ENV"
    as_worked
    # A signal ends what serves it as well.
    local server
    kill "$copy"
    wait "$copy" || true
    unshare "${options[@]}" sleep 72004 &
    copy=$!
    until_true grep -qx sleep "/proc/$copy/comm"
    server=$(server_of "$ENV")
    kill "$server"
    until_true gone "$server"
    kill "$copy"
    wait "$copy" || true
    karapace mount "$ENV"
    as_worked
}

wrong_names_are_told() {
    status_of 1 karapace mount nowhere
    refused karapace inspect nowhere
    says nowhere
    refused karapace import "$HOME/missing.tar" --name x
    says missing.tar
    refused karapace import "$TMPDIR/fixture.tar" --name 'bad/name'
    refused karapace import "$TMPDIR/fixture.tar" --name "$ENV"
    says "$ENV"
}

need "a small environment, mounted" setup
check "mount returns when the mount answers" mount_answers_at_once
check "unknown names are refused by name" wrong_names_are_told
check "everything written is there after umount and mount" survives_umount
check "everything written is there after kill -9; the stale mount is cleared" survives_kill
check "commands during an unmount are answered" asked_while_it_ends
check "detached while in use: commands name its users at once" detached_while_in_use
check "mounted in another mount namespace: commands say so at once" copied_elsewhere
check "kill -9 while writing: every write that returned is there" killed_in_the_middle
check "umount clears a stale mount" stale_mount_is_cleared_by_umount
check "a second mount is refused, and the message has the first one's path" second_mount_is_refused
check "mount on a chosen directory" elsewhere
check "SIGTERM unmounts cleanly" ends_with TERM
check "SIGINT unmounts cleanly" ends_with INT
check "mount --foreground ends with SIGINT, status 0" foreground_ends_with_sigint
check "requests and commands are logged on request" requests_are_logged
check "umount of a mount in use is refused" busy_umount_is_refused
check "a mount that hangs is ended by force, and nothing is lost" hung "$ENV"
check "a mount that hangs is ended by force, by its directory" hung "$DIR"
[ "$ACTOR" != root ] || check "where the kernel lets it, it is cut off" hung_and_cut_off
check "a mount in use is ended by force" forced_while_in_use
check "destroy, then gc, leaves nothing" destroy_wants_it_unmounted
finish_suite
