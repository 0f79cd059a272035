#!/usr/bin/env bash
# The OCI backend: the same environment as with namespaces, run by crun.
# runs as: root user
# files: MINBASE
. "$(dirname "$0")/../checks.sh"
ENV=boxed
PROJECT=$(mktemp -d /tmp/karapace-oci.XXXXXX)
trap 'rm -rf "$PROJECT"' EXIT
cd "$PROJECT" || exit 1

setup() {
    echo "of the host" >note
    cat >karapace.toml <<TOML
manifest_version = 1
[base]
image = "$MINBASE_TAR"
[mounts]
work = "./:/srv/work"
[runtime]
backend = "oci"
TOML
    command -v crun
    karapace build --name "$ENV"
    karapace mount "$ENV"
    x true
}

statuses() {
    status_of 0 x true
    status_of 42 x sh -c 'exit 42'
    status_of 127 x no-such-program
    status_of 127 x /no/such/program
    status_of 126 x /etc/passwd
    # The command itself is process 1, which cannot kill itself.
    status_of 143 x sh -c 'sh -c "kill -TERM \$\$"; exit $?'
    status_of 137 x sh -c 'sh -c "kill -KILL \$\$"; exit $?'
    status_of 125 karapace exec -w /no/such "$ENV" -- true
}

streams() {
    equal stdin through "$(echo through | x cat)"
    equal stdout out "$(x sh -c 'echo out; echo err >&2' 2>/dev/null)"
    equal stderr err "$(x sh -c 'echo out; echo err >&2' 2>&1 >/dev/null)"
    head -c 30000000 /dev/urandom >"$TMPDIR/random"
    equal sum "$(sha256sum <"$TMPDIR/random")" "$(x cat <"$TMPDIR/random" | sha256sum)"
    equal arguments "[a b][][*]" "$(x sh -c 'printf "[%s]" "$@"' - 'a b' '' '*')"
}

inside() {
    equal ids "0 0" "$(x sh -c 'echo $(id -u) $(id -g)')"
    equal hostname "$ENV" "$(x hostname)"
    equal os debian "$(x sed -n 's/^ID=//p' /etc/os-release)"
    x sh -c 'echo x >/dev/null; head -c1 /dev/urandom >/dev/null; test -d /sys/kernel; test -d /dev/shm; test -c /dev/tty'
    equal mount "of the host" "$(x cat /srv/work/note)"
    equal runtime-dir 700 "$(x sh -c 'stat -c %a $XDG_RUNTIME_DIR')"
    x getent hosts "$ENV" | has "$ENV"
    if x test -e "$PLAIN"; then wrong "the host is seen inside"; fi
    if x sh -c 'echo commit >/.karapace/ctl' 2>/dev/null; then wrong "a program inside could commit"; fi
    equal filter 2 "$(x sed -n 's/^Seccomp:\t//p' /proc/self/status)"
    export DOCKER_HOST=secret
    if x env | grep secret; then wrong "passed"; fi
    equal variable 1 "$(karapace exec -e A=1 "$ENV" -- sh -c 'echo $A')"
    equal directory /usr "$(karapace exec -w /usr "$ENV" -- pwd)"
}

writes() {
    x sh -c 'echo from inside >/etc/inside'
    equal content "from inside" "$(cat "$MOUNTS/$ENV/etc/inside")"
    commit "$ENV" >/dev/null
    equal "after a commit" "from inside" "$(x cat /etc/inside)"
}

signals() {
    karapace exec "$ENV" -- sh -c 'trap "echo caught; exit 7" TERM; echo ready >/root/ready; while :; do sleep 0.05; done' >"$TMPDIR/caught" &
    local child=$! status=0
    until_true test -e "$MOUNTS/$ENV/root/ready"
    kill -TERM "$child"
    wait "$child" || status=$?
    equal status 7 "$status"
    equal output caught "$(cat "$TMPDIR/caught")"
}

# nothing_of NAME: no process sleeps for that long, and no runtime runs.
nothing_of() { ! pgrep -f "sleep $1" && ! pgrep -x crun; }

nothing_stays() {
    x sh -c 'sleep 7001 >/dev/null 2>&1 & echo started'
    nothing_of 7001
    karapace exec "$ENV" -- sh -c 'echo up >/root/up; exec sleep 7002' &
    local child=$!
    until_true test -e "$MOUNTS/$ENV/root/up"
    kill -KILL "$child"
    wait "$child" || true
    until_true nothing_of 7002
    equal bundles "" "$(find /dev/shm /run/crun "${XDG_RUNTIME_DIR:-/nonexistent}" -name karapace -o -name config.json 2>/dev/null)"
}

terminal() {
    python3 - "$ENV" <<'PYTHON'
import fcntl, os, pty, select, struct, sys, termios, time
def size(fd, rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
pid, master = pty.fork()
if pid == 0:
    size(0, 33, 111)
    os.execvp("karapace", ["karapace", "enter", sys.argv[1], "--", "sh"])
seen = b""
def until(text, seconds=30):
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
os.write(master, b"echo size-$(stty size | tr ' ' x)\n")
until(b"size-33x111")
# The kernel tells the foreground group of a change, which is the runtime's: it hands it on.
size(master, 44, 99)
os.write(master, b"until [ \"$(stty size)\" = '44 99' ]; do sleep 0.1; done; echo now-$((40+4))\n")
until(b"now-44")
script = b"trap 'echo caught-$((6+6)); exit' INT; echo begin-$((5+5)); while :; do sleep 0.1; done"
os.write(master, b'sh -c "' + script.replace(b"$", b"\\$") + b'"\n')
until(b"begin-10")
os.write(master, b"\x03")
until(b"caught-12")
os.write(master, b"echo still-$((2+2))\n")
until(b"still-4")
os.write(master, b"exit 9\n")
_, status = os.waitpid(pid, 0)
sys.exit(0 if os.waitstatus_to_exitcode(status) == 9 else f"status {status}")
PYTHON
}

# A second session joins: the namespaces around its container are the first one's, and it ends for itself.
joined() {
    x sleep 7003 </dev/null &
    local first=$!
    until_true pgrep -fx 'sleep 7003'
    status_of 42 x sh -c 'exit 42'
    status_of 127 x no-such-program
    equal namespaces 1 "$({ for pid in $(pgrep -fx 'sleep 7003'); do readlink "/proc/$pid/ns/uts"; done; x readlink /proc/self/ns/uts; } | sort -u | wc -l)"
    equal processes 0 "$(x sh -c 'cat /proc/[0-9]*/cmdline' | grep -c 'sleep.7003' || true)"
    pgrep -fx 'sleep 7003' >/dev/null
    # It is process 1, which SIGTERM does not end: stop kills it.
    karapace stop --time 1 "$ENV"
    local status=0
    wait "$first" || status=$?
    equal status 137 "$status"
    until_true nothing_of 7003
}

# Not mounted on the host an ordinary user has all ids of /etc/subuid, and the runtime runs where they are.
ids() {
    x sh -euc 'echo x >/srv/file; chown www-data:adm /srv/file; stat -c "%U %G" /srv/file' >"$TMPDIR/ids"
    equal ids "www-data adm" "$(cat "$TMPDIR/ids")"
    equal user "33 33" "$(karapace exec -u www-data "$ENV" -- sh -c 'echo $(id -u) $(id -g)')"
    equal mount "of the host" "$(x cat /srv/work/note)"
    status_of 127 x no-such-program
    status_of 125 karapace exec -w /no/such "$ENV" -- true
}

unmounted() {
    karapace umount "$ENV"
    equal output hello "$(x echo hello)"
    not_mounted "$MOUNTS/$ENV"
}

stays_read_only() {
    gcc -O2 -static -Wall -Wextra -Werror -o "$HOME/writable" "$SCRATCH/tree/e2e/hostile/writable.c"
    karapace exec --home ro "$ENV" -- sh -c '"$1/writable" "$1" /mnt; mount -o remount,bind,rw "$1"; touch "$1/written"' - "$HOME" \
        >"$TMPDIR/tried" 2>&1 || true
    grep -qx 'done' "$TMPDIR/tried"
    [ ! -e "$HOME/written" ]
}

no_runtime() {
    local status=0 only=$TMPDIR/only
    mkdir -p "$only"
    ln -sf "$(command -v karapace)" "$only/karapace"
    ln -sf "$(command -v fusermount3)" "$only/fusermount3"
    PATH=$only karapace exec "$ENV" -- true 2>"$TMPDIR/said" || status=$?
    equal status 125 "$status"
    has 'none of crun, runc, youki is on PATH' <"$TMPDIR/said"
}

need "an environment with the oci backend" setup
check "exit statuses" statuses
check "streams and arguments" streams
check "what is there inside" inside
check "writes inside are the environment's" writes
check "signals go through" signals
check "nothing is left behind, even after kill -9" nothing_stays
check "enter on a terminal: its size, Ctrl-C, status" terminal
check "a second session" joined
check "an environment that is not mounted" unmounted
check "the ids of the user, when it is not mounted" ids
check "--home ro: root inside cannot make it writable" stays_read_only
check "a missing runtime is reported" no_runtime
finish_suite
