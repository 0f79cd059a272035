#!/usr/bin/env bash
# git's own tests of what works on files: repositories, the index, refs, checkout, worktrees, moves, packs, cleaning
# runs as: root user
# files: GIT
. "$(dirname "$0")/../foreign.sh"
environment git-tests
LEAST=500
# Those that say most of a file system and are quick; all of them are 900 and take an hour.
CHOSEN='t0001-* t0002-* t0007-* t0010-* t0050-* t0060-* t0070-* t100[0-9]-* t1020-* t1050-* t1400-* t1403-* t1406-* t1410-* t1420-* t1430-* t1450-*
t1501-* t200[0-9]-* t2010-* t2012-* t2015-* t2022-* t2023-* t2030-* t210[0-7]-* t2200-* t2201-* t2203-* t2204-* t2205-* t2400-* t2402-* t3010-* t3600-*
t3700-* t5304-* t7001-* t7063-* t7300-*'

# Each test is a script that makes a repository of its own below --root.
run_tests() (
    set +e
    cd "$1/built/t" || exit 1
    local log results
    results=$TMPDIR/results.$(place_of "$1").$2
    mkdir -p "$1/trash" "$results"
    export TEST_OUTPUT_DIRECTORY=$results TEST_NO_MALLOC_CHECK=1 GIT_TEST_OPTS='' LC_ALL=C PERL_HASH_SEED=0
    # shellcheck disable=SC2086 # patterns
    printf '%s\n' $CHOSEN | half_of "$2" | xargs -P 2 -I TEST \
        sh -c 'timeout 300 sh ./TEST --root="$0/trash" >"$1/TEST.log" 2>&1' "$1" "$results"
    # Each case of each script: a script that fails has others that pass.
    for log in "$results"/*.log; do
        awk -v test="$(basename "$log" .sh.log)" '/^ok [0-9]+ .*# skip/ { print test "-" $2, "skipped"; next } /^ok [0-9]+/ { print test "-" $2, "ok" }
            /^not ok [0-9]+ .*# TODO/ { print test "-" $3, "todo"; next } /^not ok [0-9]+/ { print test "-" $3, "failed" }
            /^1\.\.0 # SKIP/ { print test "-all", "skipped"; all = 1 } /^1\.\.[0-9]+$/ { all = 1 } END { if (!all) print test "-all", "failed" }' "$log"
    done
)
details() { cat "$TMPDIR"/results.mount.*/"${1%-*}.sh.log"; }

foreign_checks "git's tests" "$GIT_BUILT"
