#!/usr/bin/env bash
# SQLite's own tests of what works on files: journals, WAL, locks, crashes, vacuum, mapped files, backups, damaged files, the shell
# runs as: root user
# files: SQLITE
. "$(dirname "$0")/../foreign.sh"
environment sqlite-tests
LEAST=6000
# A selection: all 1148 files take hours.
CHOSEN='8_3_names altercorrupt atomic* attach* autovacuum* avfs backup* bigfile* btree0* busy* cacheflush chunksize cksumvfs corrupt* crash[24-8]
dbpage* dbstatus* delete_db diskfull e_uri e_vacuum e_walauto e_walckpt e_walhook exclusive* external_reader fallocate filectrl hook incrblob*
incrvacuum* io journal* jrnlmode* lock* manydb mjournal mmap* multiplex* nockpt nolock notify* oserror pager* pagesize pcache* quota* rdonly readonly
recover* rollback* savepoint* shared* shell* shmlock shortread1 sidedelete snapshot* subjournal superjournal superlock symlink* sync* tempdb* temptable*
unixexcl uri vacuum* wal* zerodamage zipfile*'
# Left out: failure injection, tests that repeat a case for each character of the path, tests that take minutes, and attach.test, which
# stops in the middle where the user acts as root (`Tests do not work when run as root`).
LEFT_OUT='*fault* *malloc* *_ioerr* *_err* attach backup corrupt corruptC crash7 mmap4 savepoint4 savepoint6 shell1 temptable2 vacuum3 vacuum6 vacuummem
walcrash* walprotocol walslow walthread'
# Run by root, these fail on ext4 too.
NOT_STOPPED='backup2/backup2-6 pager1/pager1.4.7.2 pager1/pager1.4.8.1 temptable/temptable-6.2 temptable/temptable-6.3 temptable/temptable-6.6
wal2/wal2-13.3.4 wal2/wal2-13.4.4 wal2/wal2-13.5.4 wal2/wal2-13.7.3 wal2/wal2-13.7.4 wal2/wal2-13.8.3 wal2/wal2-13.8.4 wal2/wal2-13.9.2'

# names WORDS: those of the test files in the current directory that a word matches.
names() { printf '%s\n' *.test | sed 's/\.test$//' | grep -xE "$(tr -s ' \n' '||' <<<"${1//\*/.*}")"; }
# Each file by a process of its own in a directory of its own; the shell, which some start, is looked for there.
run_tests() (
    set +e
    cd "$1/built/test" || exit 1
    local log results
    results=$TMPDIR/results.$(place_of "$1").$2
    mkdir -p "$1/trash" "$results"
    names "$CHOSEN" | grep -vxF "$(names "$LEFT_OUT")" | half_of "$2" | xargs -P 2 -I TEST \
        sh -c 'mkdir "$0/trash/TEST" && cd "$0/trash/TEST" && ln -s "$0/built/sqlite3" . &&
            timeout 300 "$0/built/testfixture" "$0/built/test/TEST.test" >"$1/TEST.log" 2>&1' "$1" "$results"
    # A case that runs several times fails when it fails once. A file that ends without its sum was aborted. Of pager1-16.1 there are as
    # many as a path is long.
    for log in "$results"/*.log; do
        awk -v test="$(basename "$log" .log)" '/^pager1-16\.1\./ { next } /\.\.\. Ok$/ { sub(/\.\.\. Ok$/, ""); gsub(/ /, "_"); result[$0] = "ok" }
            / errors? out of [0-9]+ tests/ { all = 1 } /^!Failures on these tests: / { for (word = 5; word <= NF; word++) result[$word] = "failed" }
            END { for (name in result) print test "/" name, result[name]; if (!all) print test "/all failed" }' "$log"
    done
)
details() { grep -aE -A 3 "^(! )?${1##*/}[. ]" "$TMPDIR"/results.mount.*/"${1%%/*}.log"; }

foreign_checks "SQLite's tests" "$SQLITE_BUILT"
