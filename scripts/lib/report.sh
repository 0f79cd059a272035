# shellcheck shell=bash
# Counts what passed and failed over jobs of several kinds. Sourced after common.sh.

PASSED=0
FAILED=0
FAILURES=()
# "SECONDS PASSED FAILED WHAT" each, for the table at the end.
ROWS=()
BEGUN=$(date +%s)

# add PASSED FAILED WHAT SECONDS
add() {
    PASSED=$((PASSED + $1))
    FAILED=$((FAILED + $2))
    ROWS+=("$4 $1 $2 $3")
    [ "$2" -eq 0 ] || FAILURES+=("$3: $2 failed")
    printf '== %s: %d passed, %d failed (%.1f s)\n' "$3" "$1" "$2" "$4"
}

# job NAME COMMAND...: a step that passes or fails as a whole.
job() {
    local name=$1 start status=0
    shift
    start=$(now)
    printf '== %s\n' "$name"
    "$@" || status=$?
    if [ "$status" -eq 0 ]; then
        add 1 0 "$name" "$(elapsed "$start")"
    else
        add 0 1 "$name" "$(elapsed "$start")"
    fi
}

# beside NAME COMMAND...: starts a job in the background; `await NAME` waits for it, shows its output and counts it. It is killed when
# the script ends.
declare -A BESIDE=()
beside() {
    local name=$1 log
    shift
    log=$(mktemp)
    # A process group of its own.
    set -m
    {
        start=$(now) status=0
        "$@" >"$log" 2>&1 </dev/null || status=$?
        echo "$status $(elapsed "$start")" >"$log.end"
    } &
    set +m
    BESIDE[$name]="$! $log"
    trap end_beside EXIT
}
end_beside() {
    local pid log
    while read -r pid log; do
        [ -n "$pid" ] || continue
        kill -- "-$pid" 2>/dev/null
        rm -f "$log" "$log.end"
    done < <(printf '%s\n' "${BESIDE[@]}")
}
await() {
    local name=$1 pid log status=1 seconds=0
    read -r pid log <<<"${BESIDE[$name]}"
    wait "$pid"
    printf '== %s\n' "$name"
    cat "$log"
    [ ! -e "$log.end" ] || read -r status seconds <"$log.end"
    rm -f "$log" "$log.end"
    unset "BESIDE[$name]"
    if [ "$status" -eq 0 ]; then add 1 0 "$name" "$seconds"; else add 0 1 "$name" "$seconds"; fi
}

elapsed() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }

# cargo_tests NAME ARGUMENTS...: `cargo test`, each test counted.
cargo_tests() {
    local name=$1 start log status=0
    shift
    start=$(now)
    log=$(mktemp)
    printf '== %s\n' "$name"
    cargo test --quiet --no-fail-fast "$@" 2>&1 | tee "$log" | grep -vE '^(running [0-9]+ tests?|test result: ok.*|[.i]+( [0-9]+/[0-9]+)?|)$'
    status=${PIPESTATUS[0]}
    local passed failed
    read -r passed failed < <(awk '/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0 }' "$log")
    rm -f "$log"
    # A program that did not compile, or crashed, reports no failed test, so it is counted here.
    [ "$status" -eq 0 ] || [ "$failed" -gt 0 ] || failed=1
    add "$passed" "$failed" "$name" "$(elapsed "$start")"
}

# suites NAME COMMAND...: a command whose last line is `N passed, N failed`.
suites() {
    local name=$1 start log line status=0
    shift
    start=$(now)
    log=$(mktemp)
    printf '== %s\n' "$name"
    "$@" 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    line=$(tail -n1 "$log")
    rm -f "$log"
    if [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        local failed=${BASH_REMATCH[2]}
        [ "$status" -eq 0 ] || [ "$failed" -gt 0 ] || failed=1
        add "${BASH_REMATCH[1]}" "$failed" "$name" "$(elapsed "$start")"
    else
        add 0 1 "$name" "$(elapsed "$start")"
    fi
}

# Prints what was done and how long it took, what failed, and the counts; exits with the status for that.
finish() {
    local failure row seconds passed failed what
    printf '%8s %7s %7s\n' seconds passed failed
    for row in "${ROWS[@]}"; do
        read -r seconds passed failed what <<<"$row"
        printf '%8.1f %7d %7d  %s\n' "$seconds" "$passed" "$failed" "$what"
    done
    printf '%8d %7d %7d  %s\n' $(($(date +%s) - BEGUN)) "$PASSED" "$FAILED" "in all"
    for failure in ${FAILURES[@]+"${FAILURES[@]}"}; do
        printf 'FAILED %s\n' "$failure"
    done
    printf '%d passed, %d failed\n' "$PASSED" "$FAILED"
    [ "$FAILED" -eq 0 ]
    exit
}
