#!/usr/bin/env bash
# What a session mounts on in an environment that lacks it: there while the session runs, and neither in `diff` nor in a
# commit nor left behind, however the session ends. A frozen environment can be entered.
# runs as: root user
# files: MINBASE
. "$(dirname "$0")/../checks.sh"
ENV=bare
DIR=$MOUNTS/$ENV
POINTS=(sys proc dev etc/hosts etc/resolv.conf srv/deep root/note)
PROJECT=$(mktemp -d /tmp/karapace-points.XXXXXX)
trap 'rm -rf "$PROJECT"' EXIT
cd "$PROJECT" || exit 1

# build NAME BACKEND: an environment without what sessions mount on; it is mounted.
build() {
    echo "of the host" >note
    cat >karapace.toml <<TOML
manifest_version = 1
[base]
image = "$MINBASE_TAR"
[mounts]
work = "./:/srv/deep/work"
file = "./note:/root/note"
[runtime]
backend = "$2"
TOML
    karapace build --name "$1"
    karapace mount "$1"
    (cd "$MOUNTS/$1" && rm -rf "${POINTS[@]}")
    karapace commit "$1"
}
setup() { build "$ENV" namespace; }

unchanged() { equal "diff of $1" "" "$(karapace diff "$1")"; }
none_of_them() {
    local point
    for point in "${POINTS[@]}"; do
        if [ -e "$1/$point" ] || [ -L "$1/$point" ]; then wrong "there is $1/$point"; fi
    done
}
works() {
    karapace exec "$1" -- sh -euc 'test -d /sys/kernel; test -e /proc/self/status; test -c /dev/null
        cat /srv/deep/work/note /root/note; getent hosts "$(hostname)"' >"$TMPDIR/said"
    equal shares 2 "$(grep -cx 'of the host' <"$TMPDIR/said")"
    has "$1" <"$TMPDIR/said"
}
begin() {
    karapace exec "$1" -- sh -c 'echo up >/srv/up; exec sleep 77001' </dev/null >/dev/null 2>&1 &
    until_true test -e "$MOUNTS/$1/srv/up"
}

before_and_after() {
    works "$ENV"
    unchanged "$ENV"
    none_of_them "$DIR"
}

during() {
    begin "$ENV"
    equal diff "A /srv/up" "$(karapace diff "$ENV")"
    if [ "$ACTOR" = user ]; then
        # The sessions have a mount of their own.
        none_of_them "$DIR"
    else
        [ -d "$DIR/sys" ]
        [ -f "$DIR/etc/hosts" ]
        equal listed 1 "$(find "$DIR" -maxdepth 1 -name sys | wc -l)"
        if touch "$DIR/sys/x" 2>/dev/null; then wrong "written into a mount point"; fi
        if rmdir "$DIR/sys" 2>/dev/null; then wrong "a mount point was removed"; fi
    fi
    # What is in it shows through the mounts.
    works "$ENV"
    karapace commit "$ENV" --name during
    none_of_them "$DIR/.karapace/snapshots/during"
    [ -e "$DIR/.karapace/snapshots/during/srv/up" ]
    unchanged "$ENV"
    karapace stop "$ENV"
    until_true none_of_them "$DIR"
    unchanged "$ENV"
    rm "$DIR/srv/up"
    # They can be made for good now.
    mkdir "$DIR/sys"
    equal diff "A /sys,D /srv/up" "$(karapace diff "$ENV" | sort | paste -sd,)"
    rmdir "$DIR/sys"
    karapace commit "$ENV"
}

killed_session() {
    begin "$ENV"
    local session=$!
    kill -KILL "$session"
    wait "$session" || true
    until_true none_of_them "$DIR"
    rm "$DIR/srv/up"
    unchanged "$ENV"
}

killed_server() {
    begin "$ENV"
    kill -KILL "$(server_of "$ENV")"
    wait
    until_true none_sleeps
    karapace mount "$ENV"
    none_of_them "$DIR"
    rm "$DIR/srv/up"
    unchanged "$ENV"
}
none_sleeps() { ! pgrep -fx 'sleep 77001'; }

resolver() {
    local conf=$DIR/etc/resolv.conf host
    host=$(cat /etc/resolv.conf)
    equal "the host's" "$host" "$(x cat /etc/resolv.conf)"
    # Changed in place, it is the session's.
    x sh -euc 'echo "# own" >>/etc/resolv.conf; chmod 640 /etc/resolv.conf; tail -n 1 /etc/resolv.conf' | has -x '# own'
    x sh -euc 'cp /etc/hosts /etc/resolv.conf; cmp /etc/hosts /etc/resolv.conf; echo "nameserver 192.0.2.1" >/etc/resolv.conf'
    unchanged "$ENV"
    equal "the host's again" "$host" "$(x cat /etc/resolv.conf)"
    # Replaced, it is the environment's, and the next session has the host's again.
    x sh -euc 'sed -i "1i# mine" /etc/resolv.conf; head -n 1 /etc/resolv.conf' | has -x '# mine'
    equal diff "A /etc/resolv.conf" "$(karapace diff "$ENV")"
    has -x '# mine' <"$conf"
    equal "covered again" "$host" "$(x cat /etc/resolv.conf)"
    x sh -euc 'ln -sf ../run/nothing /etc/resolv.conf; readlink /etc/resolv.conf' | has -x ../run/nothing
    equal link ../run/nothing "$(readlink "$conf")"
    equal "a dangling link covered" "$host" "$(x cat /etc/resolv.conf)"
    x sh -euc 'rm /etc/resolv.conf; ! [ -e /etc/resolv.conf ]; ! [ -L /etc/resolv.conf ]'
    none_of_them "$DIR"
    x sh -euc 'mv /etc/resolv.conf /etc/resolv.conf.old; test -s /etc/resolv.conf.old; rm /etc/resolv.conf.old'
    unchanged "$ENV"
}
resolvconf_package() {
    local package=$1
    # A user has the ids that apt needs in a mount of the session's own.
    karapace umount "$ENV"
    x sh -euc "export DEBIAN_FRONTEND=noninteractive; apt-get -q update; apt-get -q -y --no-install-recommends install $package
        echo 'nameserver 192.0.2.9' | resolvconf -a eth0.test; resolvconf -u; cat /etc/resolv.conf" >"$TMPDIR/apt" 2>&1 ||
        { cat "$TMPDIR/apt"; return 1; }
    if grep -iE 'busy|read-only file system|cross-device' "$TMPDIR/apt"; then wrong "it could not rewrite resolv.conf"; fi
    has '192.0.2.9' <"$TMPDIR/apt"
    x apt-get -q -y purge "$package" >"$TMPDIR/apt" 2>&1 || { cat "$TMPDIR/apt"; return 1; }
    equal "the host's" "$(cat /etc/resolv.conf)" "$(x cat /etc/resolv.conf)"
    x rm -f /etc/resolv.conf
    karapace commit "$ENV"
    karapace mount "$ENV"
}

frozen() {
    karapace umount "$ENV"
    # In a mount of the session's own.
    before_and_after
    karapace freeze "$ENV"
    works "$ENV"
    if x touch /x 2>/dev/null; then wrong "a frozen environment was written to"; fi
    karapace mount "$ENV"
    works "$ENV"
    none_of_them "$DIR"
    unchanged "$ENV"
}

runtime() {
    build boxed oci
    works boxed
    unchanged boxed
    none_of_them "$MOUNTS/boxed"
    karapace umount boxed
    karapace freeze boxed
    works boxed
}

need "an environment without them" setup
check "there inside, and not in the environment" before_and_after
check "not in diff or a commit while a session runs" during
check "gone after kill -9 of the session" killed_session
check "gone after kill -9 of the server" killed_server
check "resolv.conf: changed in place, and replaced" resolver
check "resolvconf" resolvconf_package resolvconf
check "openresolv" resolvconf_package openresolv
check "a frozen environment is entered" frozen
check "with an OCI runtime" runtime
finish_suite
