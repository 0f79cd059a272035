#!/usr/bin/env bash
# coreutils' own tests of what works on files: chmod, chown, cp, dd, df, du, install, ln, ls, mkdir, mv, rm, split, tail, touch and others
# runs as: root user
# files: COREUTILS
. "$(dirname "$0")/../foreign.sh"
environment coreutils-tests
LEAST=100
# Directories of tests, and of those in `misc` what names of programs begin with. The rest is about text, numbers and options.
CHOSEN='chgrp chmod chown cp dd df du install ln ls mkdir mv readlink rm rmdir split tail-2 touch'
CHOSEN_MISC='cat- cksum- csplit head-c ls- md5sum- mknod mktemp pwd- readlink- realpath shred- sort-compress sort-merge stat- sum sync tac tee test
truncate- wc-files xattr'
NOT_STOPPED=$(printf 'tests/%s ' chmod/no-x cp/fail-perm du/inacc-dest du/inacc-dir du/no-x install/basic-1 misc/shred-remove mkdir/p-3 mv/hard-3 mv/i-2 \
    mv/perm-1 rm/cycle rm/fail-eacces rm/inaccessible rm/isatty rm/rm1 rm/rm2 rm/rm3 rm/unread2 rm/unreadable rmdir/ignore)
EXPECTED='both tests/tail-2/inotify-dir-recreate: tail takes every FUSE file system for a remote one and polls; the test asks df, which does not
both tests/tail-2/inotify-rotate-resources: the same'

# coreutils' makefile runs them, each in a directory of its own beside the programs.
run_tests() (
    set +e
    cd "$1/built" || exit 1
    local directory name chosen test result results
    chosen=$(for directory in $CHOSEN; do printf '%s\n' "tests/$directory"/*.{sh,pl}; done
        for name in $CHOSEN_MISC; do printf '%s\n' "tests/misc/$name"*.{sh,pl}; done)
    chosen=$(grep -v '\*' <<<"$chosen" | LC_ALL=C sort -u | half_of "$2" | tr '\n' ' ')
    results=$TMPDIR/results.$(place_of "$1").$2
    make -k -j2 check-TESTS TESTS="$chosen" >"$results" 2>&1
    for test in $chosen; do
        result=$(sed -n 's/^:test-result: //p' "${test%.*}.trs")
        case $result in
        PASS) result=ok ;;
        SKIP) result=skipped ;;
        XFAIL) result=todo ;;
        *)
            result=failed
            cat "${test%.*}.log" >>"$results"
            ;;
        esac
        echo "${test%.*} $result"
    done
)
details() { sed -n "/^FAIL: ${1//\//\\/}\$/,/^FAIL /p" "$TMPDIR"/results.mount.*; }

foreign_checks "coreutils' tests" "$COREUTILS_BUILT"
