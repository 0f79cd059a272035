#!/usr/bin/env bash
# exec and enter: what goes in, what comes out, and with which status.
# runs as: root user
# files: MINBASE
. "$(dirname "$0")/../checks.sh"
ENV=run
DIR=$MOUNTS/$ENV

setup() {
    karapace import "$MINBASE_TAR" --name "$ENV"
    karapace mount "$ENV"
}

statuses() {
    status_of 0 x true
    status_of 1 x false
    status_of 42 x sh -c 'exit 42'
    status_of 127 x no-such-program
    status_of 127 x /no/such/program
    status_of 126 x /etc/passwd
    status_of 126 x /etc
    status_of 143 x sh -c 'kill -TERM $$'
    status_of 137 x sh -c 'kill -KILL $$'
    status_of 125 karapace exec nowhere -- true
}

streams() {
    equal stdin "through" "$(echo through | x cat)"
    equal stdout out "$(x sh -c 'echo out; echo err >&2' 2>/dev/null)"
    equal stderr err "$(x sh -c 'echo out; echo err >&2' 2>&1 >/dev/null)"
    head -c 30000000 /dev/urandom >"$TMPDIR/random"
    x cat <"$TMPDIR/random" >"$TMPDIR/random.out"
    cmp "$TMPDIR/random" "$TMPDIR/random.out"
    equal nothing "" "$(x true </dev/null 2>&1)"
}

arguments() {
    equal arguments "[a b][][*]['\"\$x]" "$(x sh -c 'printf "[%s]" "$@"' - 'a b' '' '*' "'\"\$x")"
    local odd
    odd=$(printf '\001\377')
    equal bytes "$odd" "$(x printf %s "$odd")"
}

signals_go_through() {
    karapace exec "$ENV" -- sh -c 'trap "echo caught; exit 7" TERM; echo ready >/root/ready; while :; do sleep 0.05; done' >"$TMPDIR/caught" &
    local child=$! status=0
    until_true test -e "$DIR/root/ready"
    kill -TERM "$child"
    wait "$child" || status=$?
    equal status 7 "$status"
    equal output caught "$(cat "$TMPDIR/caught")"
}

inside() {
    equal uid 0 "$(x id -u)"
    equal gid 0 "$(x id -g)"
    equal root / "$(x sh -c 'cd / && pwd')"
    equal "os-release" "$(sed -n 's/^ID=//p' "$DIR/etc/os-release")" "$(x sed -n 's/^ID=//p' /etc/os-release)"
    x sh -c 'test -c /dev/null && test -c /dev/zero && test -c /dev/full && test -c /dev/random &&
        test -c /dev/urandom && test -c /dev/tty && echo x >/dev/null'
    x sh -c 'test -d /sys/kernel && test -r /proc/self/status && test -d /proc/1'
    # Its own processes only: sh, grep and the like, no process of the host.
    [ "$(x sh -c 'ls -d /proc/[0-9]* | wc -l')" -le 5 ]
    [ -n "$(x hostname)" ]
    if [ -s /etc/resolv.conf ]; then x cat /etc/resolv.conf | has .; fi
    # The host's tree is out of reach.
    if x test -e "$PLAIN"; then wrong "the host is seen inside"; fi
    # Mounts made inside are not visible outside.
    equal "proc outside" "" "$(ls -A "$DIR/proc")"
}

hostname_is_its_own() {
    local host
    host=$(hostname)
    x sh -c 'hostname changed 2>/dev/null || true'
    equal hostname "$host" "$(hostname)"
}

environment_is_filtered() {
    export SSH_AUTH_SOCK=/secret GPG_AGENT_INFO=/secret AWS_SECRET_ACCESS_KEY=secret DOCKER_HOST=secret OTHER=other
    x env >"$TMPDIR/env"
    if grep -qE 'secret|OTHER' "$TMPDIR/env"; then wrong "$(cat "$TMPDIR/env")"; fi
    grep -q '^PATH=' "$TMPDIR/env"
    grep -q '^HOME=' "$TMPDIR/env"
}

writes_are_the_environments() {
    x sh -c 'echo from inside >/etc/inside; chown 0:0 /etc/inside; ln /etc/inside /etc/inside2'
    equal content "from inside" "$(cat "$DIR/etc/inside")"
    karapace diff "$ENV" | has -x 'A /etc/inside'
    # exec itself leaves no trace of its own set-up in the view.
    karapace diff "$ENV" | grep -vE '^(A|M|D) /(root/ready|etc/inside2?)$' >"$TMPDIR/traces" || true
    equal "traces of exec" "" "$(cat "$TMPDIR/traces")"
    equal outside "outside" "$(echo outside >"$DIR/etc/outside" && x cat /etc/outside)"
}

commit_while_running() {
    karapace exec "$ENV" -- sh -c 'echo 1 >/etc/while; echo up >/root/up; until [ -e /etc/stop ]; do sleep 0.05; done; echo 2 >/etc/while' &
    local child=$!
    until_true test -e "$DIR/root/up"
    commit "$ENV" >/dev/null
    equal diff "" "$(cat "$DIR/.karapace/diff")"
    touch "$DIR/etc/stop"
    wait "$child"
    equal content 2 "$(cat "$DIR/etc/while")"
}

control_is_masked_inside() {
    if x sh -c 'echo commit >/.karapace/ctl' 2>/dev/null; then wrong "a program inside could commit"; fi
}

terminal() {
    python3 - "$ENV" <<'PYTHON'
import fcntl, os, pty, select, struct, sys, termios, time
name = sys.argv[1]
pid, master = pty.fork()
if pid == 0:
    os.execvp("karapace", ["karapace", "enter", name, "--", "sh"])
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
seen = b""
def until(text, seconds=20):
    global seen
    end = time.time() + seconds
    while text not in seen:
        if time.time() > end:
            sys.exit(f"no {text!r} in {seen!r}")
        if select.select([master], [], [], 0.2)[0]:
            try:
                seen += os.read(master, 65536)
            except OSError:
                sys.exit(f"ended early: {seen!r}")
os.write(master, b"test -t 0 && echo a-$((1+1))-terminal\n")
until(b"a-2-terminal")
os.write(master, b"stty size\n")
until(b"33 77")
os.write(master, b"sh -c 'echo begun-$((3+3)); exec sleep 100'\n")
until(b"begun-6")
os.write(master, b"\x03")
os.write(master, b"echo still-$((2+2))\n")
until(b"still-4")
os.write(master, b"exit 9\n")
_, status = os.waitpid(pid, 0)
sys.exit(0 if os.waitstatus_to_exitcode(status) == 9 else f"status {status}")
PYTHON
}

nothing_stays_behind() {
    karapace exec "$ENV" -- sh -c 'sleep 1000 >/dev/null 2>&1 & echo started'
    if pgrep -f 'sleep 1000' >/dev/null; then wrong "a process outlived exec"; fi
}

unmounted() {
    karapace umount "$ENV"
    equal output hello "$(x echo hello)"
    status_of 42 x sh -c 'echo kept >/etc/unmounted; exit 42'
    equal content kept "$(x cat /etc/unmounted)"
    not_mounted "$DIR"
    karapace mount "$ENV"
    equal content kept "$(cat "$DIR/etc/unmounted")"
}

# odd KIND FILE: puts something else in the place of a file.
odd() {
    case $1 in
    directory) mkdir "$2" ;;
    fifo) mkfifo "$2" ;;
    loop) ln -s "${2##*/}" "$2" ;;
    dangling) ln -s /no/such/file "$2" ;;
    long) truncate -s 20M "$2" ;;
    esac
}

# Whatever is in place of files that a session reads or mounts over, the session starts, and warns if it does without one.
odd_files() {
    local file kind
    cp -a "$DIR/etc" "$TMPDIR/etc"
    for file in hosts resolv.conf passwd group; do
        for kind in directory fifo loop dangling long; do
            rm -f "$DIR/etc/$file"
            odd "$kind" "$DIR/etc/$file"
            equal "uid, $file: $kind" 0 "$(timeout 30 karapace exec "$ENV" -- id -u 2>"$TMPDIR/said")"
            case $file-$kind in
            resolv.conf-directory) has 'cannot mount /etc/resolv.conf.*continuing without it' <"$TMPDIR/said" ;;
            resolv.conf-*) equal "said, $file: $kind" "" "$(cat "$TMPDIR/said")" ;;
            *-loop | *-dangling) ;;
            *) has "cannot read /etc/$file inside the environment.*continuing without it" <"$TMPDIR/said" ;;
            esac
            if [ "$file-$kind" != hosts-directory ]; then timeout 30 karapace exec "$ENV" -- cat /etc/hosts | has "$ENV"; fi
            if [ "$ACTOR" = user ]; then
                equal "own uid, $file: $kind" "$(id -u)" "$(timeout 30 karapace exec --user self "$ENV" -- id -u 2>/dev/null)"
            fi
            rm -rf "${DIR:?}/etc/$file"
        done
        if [ -e "$TMPDIR/etc/$file" ]; then cp -a "$TMPDIR/etc/$file" "$DIR/etc/$file"; fi
    done
}

# If nothing can be mounted on a path, the message says what to do.
odd_directories() {
    local name kind
    for name in proc sys dev; do
        mv "$DIR/$name" "$DIR/aside"
        for kind in fifo loop dangling long; do
            odd "$kind" "$DIR/$name"
            status_of 125 timeout 30 karapace exec "$ENV" -- true 2>"$TMPDIR/said"
            has "cannot mount /$name.*has no directory there: mount it" <"$TMPDIR/said"
            rm "$DIR/$name"
        done
        mv "$DIR/aside" "$DIR/$name"
    done
    # The shell of a user who has none.
    mv "$DIR/usr/bin/dash" "$DIR/usr/bin/aside"
    status_of 127 karapace exec "$ENV" -- /bin/sh -c true
    mkfifo "$DIR/usr/bin/dash"
    status_of 126 timeout 30 karapace exec "$ENV" -- /bin/sh -c true
    mv "$DIR/usr/bin/aside" "$DIR/usr/bin/dash"
    x true
}

need "a Debian, mounted" setup
check "exit statuses: 0, 1, 42, 125, 126, 127, 128+n" statuses
check "stdin, stdout and stderr go through unchanged" streams
check "arguments go through unchanged" arguments
check "signals go through" signals_go_through
check "what is there inside" inside
check "exec leaves no trace; writes inside are the environment's" writes_are_the_environments
check "the host's name stays" hostname_is_its_own
check "the environment is filtered" environment_is_filtered
check "commit while a program runs inside" commit_while_running
check "the control directory is masked inside" control_is_masked_inside
check "enter on a terminal: size, Ctrl-C, status" terminal
check "no process outlives exec" nothing_stays_behind
check "anything in place of /etc/hosts and similar files" odd_files
check "no directory for /proc, /sys, /dev, or no shell" odd_directories
check "exec of an environment that is not mounted" unmounted
finish_suite
