#!/usr/bin/env bash
# What a session sees of the host: what the manifest and the command line request, and no more.
# runs as: root user
# files: MINBASE
. "$(dirname "$0")/../checks.sh"
ENV=guest
PROJECT=$(mktemp -d /tmp/karapace-project.XXXXXX)
trap 'rm -rf "$PROJECT"' EXIT
cd "$PROJECT" || exit 1

# manifest SECTIONS...: writes karapace.toml.
manifest() {
    printf '%s\n' 'manifest_version = 1' '[base]' "image = \"$MINBASE_TAR\"" "$@" >"$PROJECT/karapace.toml"
}

setup() {
    echo "of the host" >"$PROJECT/note"
    manifest '[mounts]' 'work = "./:/srv/work"' 'note = "./note:/root/note"' '[runtime]' 'network_isolation = true'
    karapace build --name "$ENV"
    x true
}

host_mounts() {
    equal content "of the host" "$(x cat /srv/work/note)"
    equal file "of the host" "$(x cat /root/note)"
    x sh -c 'echo from inside >/srv/work/new'
    equal written "from inside" "$(cat "$PROJECT/new")"
    # From wherever karapace is called.
    (cd / && equal elsewhere "of the host" "$(karapace exec "$ENV" -- cat /srv/work/note)")
    x sh -c 'grep " /srv/work " /proc/self/mountinfo' | has 'nosuid.*nodev'
}

no_trace() {
    karapace diff "$ENV" >"$TMPDIR/diff"
    if grep -E 'work|note|hosts' "$TMPDIR/diff"; then wrong "a session left its mount points"; fi
}

missing_is_told() {
    mv "$PROJECT/note" "$PROJECT/aside"
    local status=0
    x true 2>"$TMPDIR/said" || status=$?
    mv "$PROJECT/aside" "$PROJECT/note"
    equal status 125 "$status"
    has "mounts.note: $PROJECT/./note: No such file or directory" <"$TMPDIR/said"
}

# outside MOUNT REASON: an environment with this mount is not built.
outside() {
    manifest '[mounts]' "data = \"$1\""
    refused karapace build --name outside
    says "mounts.data: $2"
}

refusals() {
    ln -s /etc "$PROJECT/out"
    outside "/etc:/data" "/etc is not below /home or /tmp"
    outside "/no/such/dir:/data" "/no/such/dir is not below /home or /tmp"
    outside "$PROJECT/../../etc:/data" "$PROJECT/../../etc, which is /etc, is not below /home or /tmp"
    outside "$PROJECT/out:/data" "$PROJECT/out, which is /etc, is not below /home or /tmp"
    outside "../../dev/null:/data" "/dev/null is a device"
    manifest '[mounts]' 'data = "./:/dev/data"'
    refused karapace build --name outside
    says 'mounts.data: /dev/data: nothing can be mounted on or below /dev'
    # A path that has become something else since the build is refused before anything runs.
    local status=0
    mkdir "$PROJECT/turned" "$HOME/mine-too"
    manifest '[mounts]' "data = \"$PROJECT/turned:/data\"" 'home = "~/mine-too:/mine-too"'
    karapace build --name turned
    equal "from home" "" "$(karapace exec turned -- ls /mine-too)"
    rmdir "$PROJECT/turned"
    ln -s /etc "$PROJECT/turned"
    karapace exec turned -- echo ran >"$TMPDIR/ran" 2>"$TMPDIR/said" || status=$?
    equal status 125 "$status"
    equal output "" "$(cat "$TMPDIR/ran")"
    has -F "mounts.data: $PROJECT/turned, which is /etc, is not below /home or /tmp" <"$TMPDIR/said"
    karapace destroy -y turned
    manifest '[mounts]' 'data = "./later:/data"'
    karapace build --name later 2>"$TMPDIR/said"
    has 'mounts.data: .*/later: No such file or directory' <"$TMPDIR/said"
    mkdir "$PROJECT/later"
    equal "there by now" "" "$(karapace exec later -- ls /data)"
    karapace destroy -y later
}

isolated_network() {
    # What listens on the host is not reached.
    python3 - "$ENV" <<'PYTHON'
import socket, subprocess, sys
server = socket.create_server(("127.0.0.1", 0))
port = server.getsockname()[1]
script = f"exec 3<>/dev/tcp/127.0.0.1/{port}"
outside = subprocess.run(["bash", "-c", script]).returncode
inside = subprocess.run(["karapace", "exec", sys.argv[1], "--", "bash", "-c", script], stderr=subprocess.PIPE).returncode
sys.exit(0 if (outside, inside) == (0, 1) else f"outside {outside}, inside {inside}")
PYTHON
    equal routes 1 "$(x sh -c 'wc -l </proc/self/net/route')"
    # Loopback works.
    x bash -c 'exec 3<>/dev/udp/127.0.0.1/9 && echo x >&3'
}

names() {
    x getent hosts "$(x hostname)" | has "$ENV"
    x getent hosts localhost | has localhost
}

homes() {
    echo mine >"$HOME/mine"
    equal private /root "$(x sh -c 'echo $HOME')"
    if x test -e "$HOME/mine"; then wrong "the caller's home is seen"; fi
    equal shared "$HOME mine" "$(karapace exec --home share "$ENV" -- sh -c 'echo $HOME $(cat ~/mine)')"
    karapace exec --home share "$ENV" -- sh -c 'echo out >~/out'
    equal out out "$(cat "$HOME/out")"
    if karapace exec --home ro "$ENV" -- sh -c 'echo no >~/no' 2>/dev/null; then wrong "--home ro is written to"; fi
    equal ro mine "$(karapace exec --home ro "$ENV" -- sh -c 'cat ~/mine')"
}

variables() {
    export SSH_AUTH_SOCK=/secret DOCKER_HOST=secret
    if x env | grep secret; then wrong "passed"; fi
    local status=0
    karapace exec -e DOCKER_HOST=x "$ENV" -- true 2>"$TMPDIR/said" || status=$?
    equal status 125 "$status"
    has 'variable DOCKER_HOST: never passed on' <"$TMPDIR/said"
    equal "set inside" x "$(x env DOCKER_HOST=x sh -c 'echo $DOCKER_HOST')"
}

devices() {
    equal "devices" "full null random tty urandom zero" \
        "$(x sh -c 'cd /dev && for f in *; do [ ! -L $f ] && [ -c $f ] && echo $f; done' | xargs)"
}

filtered() {
    equal filter 2 "$(x sed -n 's/^Seccomp:\t//p' /proc/self/status)"
    equal "without" 0 "$(karapace exec --privileged "$ENV" -- sed -n 's/^Seccomp:\t//p' /proc/self/status)"
}

joined() {
    x sleep 72001 </dev/null &
    local first=$! status=0
    until_true pgrep -fx 'sleep 72001'
    bound() { x sed -n 's/^\(Seccomp\|NoNewPrivs\):\t//p' /proc/self/status | xargs; }
    theirs=$(x sh -c 'for p in /proc/[0-9]*; do [ "$(tr "\0" " " <$p/cmdline)" != "sleep 72001 " ] || cat $p/status; done' | sed -n 's/^\(Seccomp\|NoNewPrivs\):\t//p' | xargs)
    equal "bound as the first" "$theirs" "$(bound)"
    has ' 2$' <<<"$theirs"
    karapace exec --privileged "$ENV" -- echo ran >"$TMPDIR/said" 2>&1 || status=$?
    equal status 125 "$status"
    has 'started with --privileged false, not true' <"$TMPDIR/said"
    kill "$first"
    wait "$first" || true
}

limits_are_told() {
    manifest '[runtime.resource_limits]' 'memory_limit_mb = 64' 'cpu_shares = 512'
    karapace build --name limited >/dev/null
    equal output ran "$(karapace exec limited -- echo ran 2>"$TMPDIR/said")"
    # If they are enforced, there is no message.
    if [ -s "$TMPDIR/said" ]; then
        has 'resource_limits are not enforced: ' <"$TMPDIR/said"
        echo "note: $(tail -n1 "$TMPDIR/said")"
    fi
}

mock() {
    manifest '[runtime]' 'backend = "mock"' '[mounts]' 'work = "./:/srv/work"'
    karapace build --name mocked >/dev/null
    karapace exec mocked -- sh -c 'exit 3' >"$TMPDIR/mock"
    equal "first line" "mock: nothing is run" "$(head -n1 "$TMPDIR/mock")"
    has -Fx "mounts.work: $PROJECT on /srv/work rw" <"$TMPDIR/mock"
    karapace exec mocked -- sh -c 'exit 3' | cmp - "$TMPDIR/mock"
}

need "an environment with mounts and no network" setup
check "host mounts of the manifest" host_mounts
check "sessions leave no trace of their mounts" no_trace
check "a missing host path is reported" missing_is_told
check "mounts that the policy refuses" refusals
check "network isolation" isolated_network
check "the host name resolves" names
check "--home private, share and ro" homes
check "variables that are never passed on" variables
check "no devices but the usual" devices
check "system calls are filtered, except with --privileged" filtered
check "a second session is restricted like the first" joined
check "resource limits are enforced, or a warning is printed" limits_are_told
check "the mock backend says what it would run" mock
finish_suite
