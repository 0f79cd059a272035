#!/usr/bin/env bash
# pjdfstest, fsx and stress-ng on one side of an environment, in a user's session or on the host's mount, while the
# other side walks and reads the same tree all the time.
# runs as: user
# files: MINBASE
# tools: pjdfstest fsx
# seconds: 150
. "$(dirname "$0")/../checks.sh"
ENV=sides
DIR=$MOUNTS/$ENV
OPERATIONS=${KARAPACE_FSX_OPERATIONS:-5000}

setup() {
    karapace import "$MINBASE_TAR" --name "$ENV"
    karapace mount "$ENV"
    mkdir -p "$DIR/srv/work" "$DIR/srv/other" "$PLAIN/work"
    cp "$(command -v pjdfstest)" "$(command -v fsx)" "$DIR/usr/local/bin"
    printf '[features]\nposix_fallocate = {}\nrename_ctime = {}\nutimensat = {}\nutime_now = {}\n' >"$DIR/srv/pjdfs.toml"
    printf '[settings]\nnaptime = 0.01\n[dummy_auth]\nentries = [["nobody", "nogroup"], ["games", "games"], ["daemon", "daemon"]]\n' \
        >>"$DIR/srv/pjdfs.toml"
    cat >"$DIR/srv/fsx.toml" <<'TOML'
nomsyncafterwrite = true
[opsize]
min = 1
[weights]
read = 10
write = 10
mapread = 10
mapwrite = 5
punch_hole = 5
truncate = 3
invalidate = 1
fsync = 0.1
TOML
}

WALK='while :; do find . -ls; find . -type f -exec cat {} +; done >/dev/null 2>&1'

# beside WALKER COMMAND...: runs it while the walker walks, which must not hang: it is ended and waited for.
beside() {
    "$1" &
    local walker=$! status=0
    # shellcheck disable=SC2064 # this process, now
    trap "kill $walker 2>/dev/null || true" EXIT
    shift
    "$@" || status=$?
    kill "$walker"
    wait "$walker" || true
    trap - EXIT
    return "$status"
}
# exec: so that the process that is killed is the one that walks.
host_walks() { cd "$DIR/srv" && exec sh -c "$WALK"; }
session_walks() { exec karapace exec "$ENV" -- sh -c "cd /srv && $WALK"; }

# pjdfs NAME: which tests fail in a session (where the kernel lets nobody make a device, for example).
pjdfs() {
    x pjdfstest -v -c /srv/pjdfs.toml -p /srv/work -s /dev/shm >"$TMPDIR/$1.log" 2>&1 || true
    grep -o '^.* FAILED$' "$TMPDIR/$1.log" | sed 's/ *FAILED$//' | sort >"$TMPDIR/$1"
    local summary
    summary=$(grep '^Summary: ' "$TMPDIR/$1.log") || wrong "$(tail -n 20 "$TMPDIR/$1.log")"
    echo "note: ${summary#Summary: }"
    [[ $summary =~ \ ([0-9]+)\ passed ]]
    at_least "passed" 300 "${BASH_REMATCH[1]}"
}
pjdfs_in_session() {
    pjdfs alone
    beside host_walks pjdfs beside
    diff "$TMPDIR/alone" "$TMPDIR/beside" || { grep -A3 ' FAILED$' "$TMPDIR/beside.log" && wrong "it fails only beside the walk"; }
}

# fsx_in FILE COMMAND...: a sequence by chance, and that the file is the same on both sides at the end.
fsx_in() {
    local file=$1 seed=$RANDOM
    shift
    "$@" -N "$OPERATIONS" -S "$seed" "$file" >"$TMPDIR/fsx.log" 2>&1 || {
        head -n 12 "$TMPDIR/fsx.log"
        tail -n 12 "$TMPDIR/fsx.log"
        wrong "fsx -S $seed -N $OPERATIONS failed"
    }
    grep -q 'completed A-OK' "$TMPDIR/fsx.log"
    echo "note: seed $seed, $OPERATIONS operations"
}
fsx_in_session() {
    fsx_in /srv/work/fsx x fsx -f /srv/fsx.toml -P /tmp
    x cat /srv/work/fsx | cmp - "$DIR/srv/work/fsx"
}
fsx_on_host() {
    fsx_in "$DIR/srv/work/fsx-host" fsx -f "$DIR/srv/fsx.toml" -P "$TMPDIR"
    x cat /srv/work/fsx-host | cmp - "$DIR/srv/work/fsx-host"
}

STRESSORS="dentry dir dirdeep fallocate filename getdent hdd link readahead rename seek symlink touch utime"
stress_on_host() {
    local stressor
    for stressor in $STRESSORS; do
        (cd "$DIR/srv/work" && stress-ng --temp-path . --verify --no-rand-seed --timeout 10 "--$stressor" 2 \
            "--$stressor-ops" 200) >"$TMPDIR/stress.log" 2>&1 || {
            cat "$TMPDIR/stress.log"
            wrong "stress-ng --$stressor"
        }
    done
}

serves_on() {
    karapace umount "$ENV"
    until_true no_server
    karapace verify-store
}

need "import and mount" setup
check "pjdfstest in a session while the host walks and reads: what passes alone passes" pjdfs_in_session
check "fsx in a session while the host walks and reads" beside host_walks fsx_in_session
check "fsx on the host while a session walks and reads" beside session_walks fsx_on_host
check "stress-ng on the host while a session walks and reads" beside session_walks stress_on_host
check "the store is sound afterwards" serves_on
finish_suite
