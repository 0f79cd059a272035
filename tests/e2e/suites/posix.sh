#!/usr/bin/env bash
# pjdfstest on a mount: what POSIX says of each system call and each errno of it.
# runs as: root
# files: MINBASE
# tools: pjdfstest
# seconds: 40
. "$(dirname "$0")/../checks.sh"
ENV=posix
# Short paths, for the address of a socket holds 107 bytes; nobody outside sees what is mounted there (sandbox.sh).
DIR=/mnt/env
EXT4=/mnt/ext4
CONFIG=$TMPDIR/pjdfstest.toml
# That many must pass: of version 0.2.2's 398, those that this run has no reason to skip.
LEAST=384

setup() {
    mount -t tmpfs tmpfs /mnt
    mkdir "$DIR" "$EXT4" /mnt/other
    mount --bind "$PLAIN" "$EXT4"
    karapace import "$MINBASE_TAR" --name "$ENV"
    karapace mount "$ENV" "$DIR"
    mkdir "$DIR/srv/posix" "$EXT4/posix"
    cat >"$CONFIG" <<'TOML'
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.01
[dummy_auth]
entries = [["nobody", "nogroup"], ["games", "games"], ["daemon", "daemon"]]
TOML
    # Another configuration for the tests that remount read-only: they disturb whatever runs beside them.
    sed 's/^naptime.*/&\nallow_remount = true/' "$CONFIG" >"$CONFIG.remount"
}

# pjdfs LEAST DIRECTORY [ARGUMENT...]: none fails, and at least so many pass.
pjdfs() {
    local least=$1 directory=$2 status=0 log=$TMPDIR/pjdfstest.log
    shift 2
    pjdfstest -v -c "$CONFIG" -p "$directory" -s /mnt/other "$@" >"$log" 2>&1 || status=$?
    local summary
    summary=$(grep '^Summary: ' "$log") || summary="no summary"
    echo "note: ${summary#Summary: }"
    if [[ ! $summary =~ \ ([0-9]+)\ failed,.*\ ([0-9]+)\ passed ]] || [ "${BASH_REMATCH[1]}" -ne 0 ]; then
        grep -A3 ' FAILED$' "$log" || tail -n 20 "$log"
        return 1
    fi
    at_least "passed" "$least" "${BASH_REMATCH[2]}"
    equal status 0 "$status"
    equal "what is left of it" "" "$(find "$directory" -mindepth 1 -newer "$CONFIG")"
}

# Run by themselves: among the others something keeps the file system busy, on ext4 as well.
readonly_remounts() {
    CONFIG=$CONFIG.remount pjdfs 13 "$1" erofs
}

# Many threads answer, and commits seal what the tests have just made.
beside_commits() {
    karapace umount "$ENV"
    karapace mount "$ENV" "$DIR" --threads 4
    local round
    for round in 1 2 3; do
        with_commits "$DIR" pjdfs "$LEAST" "$DIR/srv/posix"
    done
}

leaves_nothing() {
    karapace commit "$ENV"
    equal "what differs from the image" "A /srv/posix" "$(karapace diff "$ENV" --base)"
    karapace umount "$ENV"
    karapace verify-store
}

need "import and mount" setup
check "pjdfstest on ext4, to compare with" pjdfs "$LEAST" "$EXT4/posix"
check "pjdfstest in a new directory" pjdfs "$LEAST" "$DIR/srv/posix"
check "pjdfstest in a directory of the lower view" pjdfs "$LEAST" "$DIR/usr/share"
check "pjdfstest on the mount remounted read-only" readonly_remounts "$DIR/srv/posix"
check "pjdfstest with four threads and commits beside it" beside_commits
check "all of it leaves nothing" leaves_nothing
finish_suite
