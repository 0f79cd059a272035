#!/usr/bin/env bash
# The tests that Python has of its file functions end in the mount, one by one, as on ext4.
# runs as: root user
# seconds: 60
. "$(dirname "$0")/../checks.sh"
ENV=python
# Both of one length, and short: the tests bind sockets, whose paths may have 107 bytes.
MOUNT=$HOME/m
WORK=$MOUNT/p
PLAIN_WORK=$PLAIN/pp
# What each is about: os (files, directories, links, times, xattrs), copies, temporary files, mappings, locks, archives,
# databases in files, mailboxes (locks, links), modules read from files.
TESTS=(test_os test_posix test_stat test_shutil test_pathlib test_tempfile test_mmap test_fcntl test_glob test_file
    test_fileio test_filecmp test_fileinput test_genericpath test_posixpath test_linecache test_zipfile test_tarfile
    test_gzip test_dbm test_dbm_dumb test_dbm_ndbm test_shelve test_mailbox test_import test_zipimport)
# An ordinary user acts on the mount as the environment's root (docs/SEMANTICS.md): chown succeeds, and no mode keeps the
# user from writing. These tests expect, or make sure first, that it does not.
AS_ROOT_THERE='PycacheTests.test_unwritable_directory ChownFileTests.test_chown_without_permission
PosixTester.test_chown PosixTester.test_fchown PosixTester.test_lchown TestRmTree.test_on_error
TestWhich.test_non_matching_mode TestWhichBytes.test_non_matching_mode TestMkdtemp.test_read_only_directory
TestMkstempInner.test_read_only_directory'

setup() {
    /usr/bin/python3 -c 'import test.test_os' || wrong "no tests of Python: install libpython3.X-testsuite"
    fixture "$TMPDIR/fixture"
    fixture_tar "$TMPDIR/fixture" "$TMPDIR/fixture.tar"
    karapace import "$TMPDIR/fixture.tar" --name "$ENV"
    mkdir "$MOUNT"
    karapace mount "$ENV" "$MOUNT"
    mkdir "$WORK" "$PLAIN_WORK"
}

# run_tests DIRECTORY NAME: a line for each test in $TMPDIR/NAME.
run_tests() (
    set -euo pipefail
    cd "$1"
    # Some fail for root or in a container, on every file system alike.
    env TMPDIR="$1" /usr/bin/python3 -m test -j2 --timeout 300 --junit-xml "$TMPDIR/$2.xml" "${TESTS[@]}" >"$TMPDIR/$2.log" 2>&1 </dev/null ||
        echo "note: $2: $(grep -a '^Result:' "$TMPDIR/$2.log" || tail -n 1 "$TMPDIR/$2.log")"
    /usr/bin/python3 - "$TMPDIR/$2.xml" >"$TMPDIR/$2" <<'PYTHON'
import sys
import xml.etree.ElementTree

outcomes = []
for case in xml.etree.ElementTree.parse(sys.argv[1]).iter("testcase"):
    words = {child.tag for child in case} & {"skipped", "failure", "error"}
    outcomes.append(f"{case.get('name')} {' '.join(sorted(words)) or 'ok'}")
print("\n".join(sorted(outcomes)))
PYTHON
)
outcomes_are_the_same() {
    run_tests "$PLAIN_WORK" ext4
    run_tests "$WORK" mount
    echo "note: $(wc -l <"$TMPDIR/mount") tests, $(grep -c ' ok$' "$TMPDIR/mount") of them passed"
    [ "$(grep -c ' ok$' "$TMPDIR/ext4")" -gt 1500 ] || wrong "hardly any test passed on ext4: $(tail -n 20 "$TMPDIR/ext4.log")"
    if [ "$ACTOR" != root ]; then
        local name
        for name in $AS_ROOT_THERE; do sed -i "/\\.$name /d" "$TMPDIR/ext4" "$TMPDIR/mount"; done
    fi
    diff "$TMPDIR/ext4" "$TMPDIR/mount" || {
        grep -aA12 -E '^(ERROR|FAIL): ' "$TMPDIR/mount.log"
        return 1
    }
    equal "what is left" "$(ls -A "$PLAIN_WORK")" "$(ls -A "$WORK")"
}
is_whole() {
    karapace umount "$ENV"
    karapace verify-store
}

need "an environment, and Python's tests" setup
check "Python's tests of os, shutil, pathlib, tempfile, mmap and more" outcomes_are_the_same
check "umount and verify-store" is_whole
finish_suite
