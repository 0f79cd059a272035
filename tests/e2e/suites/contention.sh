#!/usr/bin/env bash
# Eight workers at once on three environments that share a store: exec, writes, commit, restore, gc, snapshots, verify-store in a
# random order. Nothing fails unexpectedly, no acknowledged snapshot is lost, and the store is intact afterwards.
# runs as: root user
# files: MINBASE
#
# KARAPACE_ROUNDS  how much each worker does; 10 by default
# KARAPACE_SEED    repeats the choices of a run (not its timing)
. "$(dirname "$0")/../checks.sh"

ENVIRONMENTS=(red green blue)
ROUNDS=${KARAPACE_ROUNDS:-10}
SEED=${KARAPACE_SEED:-$((RANDOM * 32768 + RANDOM))}
# "ENVIRONMENT NAME" of each snapshot that was acknowledged, a line each; short appends do not mix.
ACKNOWLEDGED=$TMPDIR/acknowledged
FAILURES=$TMPDIR/failures

three_environments() {
    local env
    for env in "${ENVIRONMENTS[@]}"; do
        karapace import "$MINBASE_TAR" --name "$env"
        karapace mount "$env"
    done
    : >"$ACKNOWLEDGED"
    : >"$FAILURES"
}

# must WHAT COMMAND...: records a failure and continues.
must() {
    local what=$1 output
    shift
    output=$("$@" 2>&1) || echo "$what: $* ended with status $?: $output" >>"$FAILURES"
}

# unless PATTERN WHAT COMMAND...: may fail with a message that matches PATTERN.
unless() {
    local pattern=$1 what=$2 output status=0
    shift 2
    output=$("$@" 2>&1) || status=$?
    [ "$status" -eq 0 ] || grep -qE "$pattern" <<<"$output" || echo "$what: $* ended with status $status: $output" >>"$FAILURES"
}

writes() {
    local n
    for n in $(seq 20); do
        echo "$2 $n" >"$MOUNTS/$1/srv/$2-$n" || return
    done
    head -c 300000 /dev/urandom >"$MOUNTS/$1/srv/$2-large"
}

commits() {
    karapace commit "$1" --name "$2" && echo "$1 $2" >>"$ACKNOWLEDGED"
}

worker() {
    local number=$1 round env what known
    RANDOM=$((SEED % 32768 + number))
    for round in $(seq "$ROUNDS"); do
        env=${ENVIRONMENTS[RANDOM % 3]}
        what="worker $number round $round"
        case $((RANDOM % 8)) in
            0) must "$what" karapace exec "$env" -- sh -c "echo $round >/srv/exec-$number; ls -lR /usr/bin >/dev/null" ;;
            1) must "$what" writes "$env" "w$number" ;;
            2 | 3) must "$what" commits "$env" "w$number-$round" ;;
            4)
                known=$(grep "^$env " "$ACKNOWLEDGED" | shuf -n 1 | cut -d' ' -f2)
                # A restore may be given up if another worker never stops writing.
                unless 'changed during each of' "$what" karapace restore "$env" "${known:-base}"
                ;;
            5) unless 'is locked by' "$what" karapace gc ;;
            6) must "$what" karapace snapshots "$env" ;;
            7) must "$what" karapace verify-store ;;
        esac
    done
}

eight_workers() {
    echo "note: seed $SEED, $ROUNDS rounds"
    local number
    for number in $(seq 8); do worker "$number" & done
    wait
    echo "note: $(wc -l <"$ACKNOWLEDGED") snapshots were acknowledged"
    if [ -s "$FAILURES" ]; then wrong "$(cat "$FAILURES")"; fi
    [ -s "$ACKNOWLEDGED" ] || wrong "no worker made a snapshot"
}

acknowledged_snapshots_are_there() {
    local env name
    while read -r env name; do
        cmp "$MOUNTS/$env/.karapace/snapshots/$name/etc/os-release" "$MOUNTS/$env/etc/os-release"
    done <"$ACKNOWLEDGED"
}

the_store_is_whole() {
    karapace verify-store
    karapace gc
    karapace verify-store
}

some_come_back() {
    local env name
    shuf -n 6 --random-source="$MINBASE_TAR" "$ACKNOWLEDGED" >"$TMPDIR/some"
    while read -r env name; do
        karapace restore "$env" "$name"
        same_tree "$MOUNTS/$env/.karapace/snapshots/$name/etc" "$MOUNTS/$env/etc"
        same_tree "$MOUNTS/$env/.karapace/snapshots/$name/srv" "$MOUNTS/$env/srv" || [ -z "$(ls "$MOUNTS/$env/srv")" ]
    done <"$TMPDIR/some"
}

all_are_unmounted() {
    local env
    for env in "${ENVIRONMENTS[@]}"; do karapace umount "$env"; done
}

need "three environments on one store" three_environments
check "eight workers at once: nothing fails that should not" eight_workers
check "every acknowledged snapshot is there" acknowledged_snapshots_are_there
check "the store is intact, before and after gc" the_store_is_whole
check "acknowledged snapshots come back byte by byte" some_come_back
check "umount" all_are_unmounted
finish_suite
