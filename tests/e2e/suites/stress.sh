#!/usr/bin/env bash
# stress-ng's file system stressors on a mount, each for a bounded count with its own verification. A stressor that
# fails is run on ext4 too, to see whether it fails there as well.
# runs as: root user
# seconds: 60
. "$(dirname "$0")/../checks.sh"
ENV=stress
DIR=$MOUNTS/$ENV

# A stressor that has not done its count by then is stopped, which is no error.
SECONDS_EACH=20

setup() {
    stress-ng --version
    mkdir -p "$TMPDIR/image/srv/work" "$PLAIN/stress"
    tar -cf "$TMPDIR/image.tar" --owner=0 --group=0 -C "$TMPDIR/image" .
    karapace import "$TMPDIR/image.tar" --name "$ENV"
    karapace mount "$ENV"
}

# run_in DIRECTORY STRESSOR COUNT [OPTION...]: two workers; leaves what they said in $TMPDIR/stress.log. The directory is
# given as a relative path: some stressors look at files that they have removed, and bear with ENOTDIR alone.
run_in() {
    local directory=$1 stressor=$2 count=$3
    shift 3
    (cd "$directory" && stress-ng --temp-path . --verify --metrics-brief --no-rand-seed --timeout "$SECONDS_EACH" \
        "--$stressor" 2 "--$stressor-ops" "$count" "$@") >"$TMPDIR/stress.log" 2>&1
}

# well STRESSOR: the log must show no failed verification, nothing skipped, and some work done.
well() {
    if grep -E ' fail: |skipp(ed|ing)|not supported|not implemented' "$TMPDIR/stress.log"; then return 1; fi
    # These take long to count to one.
    case $1 in fpunch | inode-flags | xattr) return 0 ;; esac
    awk -v s="$1" '$2 == "metrc:" && $4 == s && $5 > 0 { found = 1 } END { exit !found }' "$TMPDIR/stress.log" ||
        wrong "nothing was done"
}

# tried_in DIRECTORY STRESSOR COUNT [OPTION...]: dirdeep subtracts the host's free inodes from those that were free as it
# began, and does nothing when there are more by then, as while another suite removes its files: then it is run again.
tried_in() {
    local tries=1
    run_in "$@" || return
    while [ "$2" = dirdeep ] && grep -q 'metrc:.* dirdeep *0 ' "$TMPDIR/stress.log" && [ "$tries" -lt 30 ]; do
        sleep 1
        run_in "$@" || return
        tries=$((tries + 1))
    done
}

# stressed STRESSOR COUNT [OPTION...]
stressed() {
    if tried_in "$DIR/srv/work" "$@" && well "$1"; then
        equal "what is left of it" "" "$(ls -A "$DIR/srv/work")"
        return
    fi
    cat "$TMPDIR/stress.log"
    if tried_in "$PLAIN/stress" "$@" && well "$1"; then wrong "ext4 passes"; else wrong "ext4 does not pass either"; fi
}

# differs PATTERN STRESSOR COUNT: the stressor must report exactly this, for an intended difference.
differs() {
    local pattern=$1
    shift
    run_in "$DIR/srv/work" "$@" || true
    if grep -E ' fail: ' "$TMPDIR/stress.log" | grep -vE "$pattern"; then return 1; fi
    grep -qE "$pattern" "$TMPDIR/stress.log" || {
        cat "$TMPDIR/stress.log"
        wrong "no '$pattern': is it no difference any more?"
    }
    rm -rf "$DIR"/srv/work/*
}

serves_on() {
    equal "what differs from the image" "" "$(karapace diff "$ENV")"
    karapace umount "$ENV"
    karapace verify-store
}

need "stress-ng, import and mount" setup
while read -r stressor count options; do
    # shellcheck disable=SC2086 # options are words
    check "stress-ng $stressor${options:+ $options}" stressed "$stressor" "$count" $options
done < <(sed 's/ *#.*//; /^$/d' <<'STRESSORS'
aio 200
aiol 200
chattr 20
chdir 200 --chdir-dirs 256
chmod 200
copy-file 20
dentry 1000
dir 1000
dirdeep 300
dirmany 1000
dnotify 20
dup 50
fallocate 10
fcntl 500
file-ioctl 100
filename 50
flock 1000
fpunch 10 --timeout 2
fsize 5
fstat 500
getdent 100
handle 200
hdd 500 --hdd-bytes 8M
hdd 300 --hdd-bytes 4M --hdd-opts direct
hdd 100 --hdd-bytes 4M --hdd-opts sync,wr-rnd
hdd 100 --hdd-bytes 4M --hdd-opts fsync,rd-rnd
inode-flags 10 --timeout 2
inotify 2
io 20
io-uring 200
iomix 20 --iomix-bytes 4M
lease 200
link 1
locka 1000
lockf 1000
lockofd 1000
madvise 2
mknod 100
mmap 2 --mmap-file --mmap-bytes 2M
mmap 2 --mmap-file --mmap-bytes 2M --mmap-async
mmap 2 --mmap-file --mmap-bytes 2M --mmap-odirect
msync 50 --msync-bytes 1M
open 500
readahead 200 --readahead-bytes 4M
rename 1000
revio 200 --revio-bytes 4M
seek 500 --seek-size 4M
seek 500 --seek-size 4M --seek-punch
sendfile 100
splice 100
symlink 1
sync-file 4 --sync-file-bytes 1M
touch 200
utime 300
utime 50 --utime-fsync
xattr 2 --timeout 5
STRESSORS
)
check "stress-ng fiemap: extents are not reported" differs 'FS_IOC_FIEMAP not supported' fiemap 10
if [ "$ACTOR" = root ]; then
    check "stress-ng access" stressed access 20
    check "stress-ng chown" stressed chown 500
else
    # The user acts as the environment's root.
    check "stress-ng access: modes do not stop the environment's root" differs 'was ok \(not expected\)' access 20
    check "stress-ng chown: to any id, and kept" differs 'chown.* failed' chown 20
fi
check "the mount still works, and the store is intact" serves_on
finish_suite
