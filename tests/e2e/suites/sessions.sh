#!/usr/bin/env bash
# Sessions of one environment: a second one joins the first, each ends for itself, stop ends all; an ordinary user has the
# ids of /etc/subuid inside.
# runs as: root user
# files: MINBASE
# seconds: 50
. "$(dirname "$0")/../checks.sh"
ENV=shared
DIR=$MOUNTS/$ENV

setup() { karapace import "$MINBASE_TAR" --name "$ENV"; }
state() { inspect "$ENV" 'd["state"]'; }
idle() { [ "$(state)" = Built ]; }
# sleeping MARK: how many processes of the machine sleep that long. Marks are numbers of seconds that no other
# process sleeps.
sleeping() { pgrep -fxc "sleep $1" || true; }
none_sleeps() { [ "$(sleeping "$1")" = 0 ]; }
sleeps() { [ "$(sleeping "$1")" = "$2" ]; }

# begin MARK: a session that sleeps; its process id in $!.
begin() {
    karapace exec "$ENV" -- sleep "$1" </dev/null >/dev/null 2>&1 &
    until_true sleeps "$1" 1
}

ids() {
    x sh -euc 'echo x >/srv/file; chown www-data:adm /srv/file; chmod 2755 /srv/file; stat -c "%U %G %a" /srv/file' >"$TMPDIR/ids"
    equal ids "www-data adm 2755" "$(cat "$TMPDIR/ids")"
    equal user "33 33" "$(karapace exec -u www-data "$ENV" -- sh -c 'echo $(id -u) $(id -g)')"
    not_mounted "$DIR"
    until_true no_server
    # On disk all belongs to whoever has the store: nothing was chowned.
    equal owners "" "$(find "$STORE" ! -user "$(id -u)")"
}

packages() {
    x sh -euc 'export DEBIAN_FRONTEND=noninteractive
        apt-get -q update
        apt-get -q -y --no-install-recommends install openssh-client
        stat -c "%a %G" /usr/bin/ssh-agent; getent group _ssh; ssh -V' >"$TMPDIR/apt" 2>&1 || { cat "$TMPDIR/apt"; return 1; }
    grep -q '^2755 _ssh' "$TMPDIR/apt"
    grep -q '^OpenSSH' "$TMPDIR/apt"
}

joined() {
    begin 71001
    local first=$!
    equal state Running "$(state)"
    equal seen 1 "$(x sh -c 'for p in /proc/[0-9]*; do tr "\0" " " <$p/cmdline 2>/dev/null; echo; done' | grep -c '^sleep 71001')"
    for kind in mnt pid uts ipc; do
        x readlink "/proc/self/ns/$kind"
    done >"$TMPDIR/joined"
    x sh -c 'for p in /proc/[0-9]*; do [ "$(tr "\0" " " <$p/cmdline)" != "sleep 71001 " ] || for k in mnt pid uts ipc; do readlink $p/ns/$k; done; done' >"$TMPDIR/first"
    diff "$TMPDIR/joined" "$TMPDIR/first"
    equal user 33 "$(karapace exec -u www-data -w /srv -e A=b "$ENV" -- sh -c 'id -u')"
    equal workdir "/srv b" "$(karapace exec -w /srv -e A=b "$ENV" -- sh -c 'echo $PWD $A')"
    status_of 42 x sh -c 'exit 42'
    status_of 143 x sh -c 'kill -TERM $$'
    status_of 137 x sh -c 'kill -KILL $$'
    status_of 127 x no-such-program
    status_of 126 x /etc/passwd
    # Who is inside can end what another session runs.
    x sh -c 'for p in /proc/[0-9]*; do [ "$(tr "\0" " " <$p/cmdline)" != "sleep 71001 " ] || kill ${p#/proc/}; done'
    local status=0
    wait "$first" || status=$?
    equal status 143 "$status"
    until_true idle
}

other_options() {
    begin 71002
    local first=$!
    local status=0
    karapace exec --ctl "$ENV" -- true >"$TMPDIR/refused" 2>&1 || status=$?
    equal status 125 "$status"
    says 'started with --ctl false, not true'
    says 'karapace stop'
    kill "$first"
    wait "$first" || true
}

# self ARGS... -- COMMAND: as oneself.
self() { karapace exec --user self "$@"; }

as_oneself() {
    local me home
    me=$(id -un)
    if [ "$ACTOR" = root ]; then home=/root; else home=/home/$me; fi
    equal who "$me $(id -u) $(id -gn) $home $me" "$(self "$ENV" -- sh -c 'echo $(id -un) $(id -u) $(id -gn) $HOME $USER')"
    self "$ENV" -- sh -euc 'cd; touch mine; [ "$(stat -c %U mine)" = "$(id -un)" ]; [ ! -w /etc/hostname ] || [ "$(id -u)" = 0 ]'
    equal "owner inside" "$me $(id -u)" "$(self "$ENV" -- stat -c '%U %u' "$home/mine")"
    # The environment's own lists are as they were, also while such a session runs.
    [ "$ACTOR" = root ] || equal "lines of passwd" 0 "$(x grep -c "^$me:" /etc/passwd || true)"
    x useradd --system --no-create-home made-beside
    x getent passwd made-beside
}

as_oneself_at_home() {
    if [ "$ACTOR" = user ]; then
        local status=0
        self --home share "$ENV" -- true >"$TMPDIR/refused" 2>&1 || status=$?
        equal status 125 "$status"
        says 'karapace mount'
    fi
    karapace mount "$ENV"
    self --home share "$ENV" -- sh -euc 'cd; echo "$PWD $(id -un)" >from-inside'
    equal "written at home" "$HOME $(id -un)" "$(cat "$HOME/from-inside")"
    equal owner "$(id -u)" "$(stat -c %u "$HOME/from-inside")"
    equal "passwd on the mount" "$([ "$ACTOR" = root ] && echo 1 || echo 0)" "$(grep -c "^$(id -un):" "$DIR/etc/passwd" || true)"
    karapace umount "$ENV"
}

mounted_beside() {
    begin 71003
    local first=$!
    x sh -c 'echo committed >/srv/while'
    karapace mount "$ENV"
    equal "on the host" committed "$(cat "$DIR/srv/while")"
    karapace commit "$ENV" --name while
    x sh -c 'echo changed >/srv/while'
    karapace diff "$ENV" | has -E '^M +/srv/while$'
    karapace restore "$ENV" while
    equal restored committed "$(x cat /srv/while)"
    kill "$first"
    wait "$first" || true
    until_true idle
    equal "on the host" committed "$(cat "$DIR/srv/while")"
    karapace umount "$ENV"
    until_true no_server
}

# Sessions of root use the host's mount: what mount.json says does not change, so no session waits for the disk.
description_stays() {
    karapace mount "$ENV"
    local file; file=$(echo "$STORE"/env/*/mount.json)
    local before; before=$(stat -c '%i %z' "$file")
    x true
    equal "mount.json" "$before" "$(stat -c '%i %z' "$file")"
    karapace umount "$ENV"
}

first_leaves() {
    begin 71004
    local first=$!
    begin 71005
    local second=$!
    kill "$first"
    wait "$first" || true
    sleeps 71005 1
    equal "still there" there "$(x echo there)"
    equal state Running "$(state)"
    kill "$second"
    wait "$second" || true
    until_true idle
    until_true no_server
}

killed() {
    karapace exec "$ENV" -- sh -c 'sleep 71006 & (setsid sleep 71006 &) ; sleep 71006' </dev/null >/dev/null 2>&1 &
    local first=$!
    until_true sleeps 71006 3
    begin 71007
    local second=$!
    kill -KILL "$first"
    wait "$first" || true
    until_true none_sleeps 71006
    sleeps 71007 1
    equal "still there" there "$(x echo there)"
    kill -KILL "$second"
    wait "$second" || true
    until_true none_sleeps 71007
    # Process 1 and the mount went too, though nobody has looked.
    until_true sh -c '! pgrep -x karapace-init'
    until_true no_server
}

stopped() {
    begin 71008
    local first=$!
    karapace exec "$ENV" -- sh -c 'trap "" TERM; while :; do sleep 71009; done' </dev/null >/dev/null 2>&1 &
    local second=$!
    until_true sleeps 71009 1
    local status=0
    karapace stop --time 1 "$ENV"
    equal state Built "$(state)"
    none_sleeps 71008
    none_sleeps 71009
    wait "$first" || status=$?
    equal "ended by SIGTERM" 143 "$status"
    status=0
    wait "$second" || status=$?
    equal "killed" 137 "$status"
    no_server
    karapace stop "$ENV" 2>&1 | has 'nothing is running'
}

host_mount_stays() {
    karapace mount "$ENV"
    begin 71010
    local first=$!
    equal joined 1 "$(x sh -c 'cat /proc/[0-9]*/cmdline | tr "\0" " " | grep -c "sleep 71010"')"
    if [ "$ACTOR" = root ]; then
        # Without sub-ids, too: the sessions use this mount.
        refused karapace umount "$ENV"
        says 'karapace stop'
    fi
    karapace stop "$ENV"
    wait "$first" || true
    mounted "$DIR"
    equal "goes on" there "$(x echo there)"
    # Killing the server ends the inside, here too.
    begin 71011
    first=$!
    kill -KILL "$first"
    wait "$first" || true
    until_true none_sleeps 71011
    until_true sh -c '! pgrep -x karapace-init'
    test -e "$DIR/etc/os-release"
    karapace umount "$ENV"
}

forced() {
    begin 71012
    local first=$! server
    server=$(server_of "$ENV")
    x sh -c 'echo kept >/srv/forced'
    sigstop "$server"
    karapace umount --force "$ENV" 2>&1 | has "killed its server ($server)"
    wait "$first" || true
    until_true none_sleeps 71012
    until_true sh -c '! pgrep -x karapace-init'
    equal kept kept "$(x cat /srv/forced)"
}

large_stream() {
    mkfifo "$TMPDIR/in"
    head -c 268435456 /dev/zero >"$TMPDIR/in" &
    karapace exec "$ENV" -- sh -c 'cat; exec sleep 71013 >/dev/null' <"$TMPDIR/in" > >(sha256sum >"$TMPDIR/streamed") &
    local session=$! pid
    until_true sleeps 71013 1
    for pid in "$session" "$(server_of "$ENV")"; do
        echo "note: $(peak_of "$pid") KiB at most"
        below "KiB of process $pid" 32768 "$(peak_of "$pid")"
    done
    kill "$session"
    wait "$session" || true
    until_true test -s "$TMPDIR/streamed"
    equal "256 MiB" "$(head -c 268435456 /dev/zero | sha256sum)" "$(cat "$TMPDIR/streamed")"
}

# other COMMAND...: runs it as a user without a range of ids.
other() {
    setpriv --reuid=54322 --regid=54322 --clear-groups --inh-caps=-all \
        env HOME="$TMPDIR/other" USER=other LOGNAME=other "$@"
}

without_ids() {
    # /etc is this suite's own.
    echo "other:x:54322:54322::$TMPDIR/other:/bin/sh" >>/etc/passwd
    echo "other:x:54322:" >>/etc/group
    install -d -o 54322 -g 54322 "$TMPDIR/other"
    other karapace import "$MINBASE_TAR" --name alone
    local found; found=$(other karapace exec alone -- sh -c 'echo $(id -u) $(id -g)' 2>"$TMPDIR/said") || { cat "$TMPDIR/said"; return 1; }
    equal "one id" "0 0" "$found"
    grep -q 'only one id inside: other has no range of ids in /etc/subuid' "$TMPDIR/said" || wrong "$(cat "$TMPDIR/said")"
    grep -q 'usermod --add-subuids' "$TMPDIR/said"
    equal "nothing is said again" "" "$(other karapace exec alone -- sh -c 'echo x >/srv/f' 2>&1)"
    equal "as another" "33 www-data" "$(other karapace exec -u www-data alone -- sh -c 'echo $(id -u) $(id -un)')"
    equal kept x "$(other karapace exec alone -- cat /srv/f)"
    equal "in a copy" in "$(other karapace run alone -- sh -c 'echo in; echo y >/srv/f')"
    equal "after the copy" x "$(other karapace exec alone -- cat /srv/f)"
    other karapace run --keep mine alone -- sh -c 'echo z >/srv/f'
    equal "in a kept copy" z "$(other karapace exec mine -- cat /srv/f)"
    # Without sub-ids, the mount shows the environment's ids.
    local dir=$TMPDIR/other/mnt
    other karapace mount alone "$dir"
    other sh -euc 'cd "$1"; echo x >srv/g; chown 33:34 srv/g; cp -a "$2" srv/roots' - "$dir" "$SCRATCH/roots"
    equal "on the host" "33 34 54322 54322" "$(other stat -c '%u %g' "$dir/srv/g" "$dir/srv/roots" | xargs)"
    other getfacl -nc "$dir/srv/roots" | has 'user:54322:rw-'
    other chown 54322:0 "$dir/srv/g"
    equal "root of the environment" "54322 54322" "$(other stat -c '%u %g' "$dir/srv/g")"
    other karapace umount alone
    equal inside "0 0 0 0" "$(other karapace exec alone -- stat -c '%u %g' /srv/g /srv/roots | xargs)"
    # What another user has mounted.
    no_server || karapace umount "$ENV"
    karapace mount "$ENV" "$TMPDIR/roots"
    refused other karapace umount "$TMPDIR/roots"
    says 'another user mounted it'
    mounted "$TMPDIR/roots"
    karapace umount "$ENV"
    other karapace destroy -y alone
}

need "a Debian, not mounted" setup
check "every id inside, and nothing is chowned outside" ids
check "apt-get installs a package with setgid files and system users" packages
check "a second session joins the first: processes, namespaces, users, statuses" joined
check "a session with other options is refused" other_options
check "mounted while a session runs; commit, diff and restore work" mounted_beside
check "the first session ends, the second keeps running" first_leaves
check "kill -9 ends only its own session; killing all ends everything" killed
check "stop: SIGTERM, then SIGKILL; nothing survives" stopped
check "stop leaves a host mount alone" host_mount_stays
check "as oneself: name, ids, home, and files that belong to one" as_oneself
check "as oneself, in one's own home directory" as_oneself_at_home
check "umount --force ends sessions whose mount hangs" forced
check "256 MiB through exec, with flat memory" large_stream
[ "$ACTOR" != root ] || check "a session on the host's mount does not write its description anew" description_stays
[ "$ACTOR" != root ] || check "a user without ids of its own has one, and is told why, once" without_ids
check "the store is intact" karapace verify-store
finish_suite
