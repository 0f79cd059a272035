#!/usr/bin/env bash
# A C project compiled with -j2 and tested by its own test suite in the mount, as on ext4.
# runs as: root user
# files: PATCH
# seconds: 50
. "$(dirname "$0")/../checks.sh"
ENV=compile
WORK=$MOUNTS/$ENV/srv/work

setup() {
    mounted_fixture "$TMPDIR/fixture"
    mkdir "$WORK" "$PLAIN/work"
}

# configure has run, once for all runs: it starts thousands of processes and says little of a file system. Of what it found out each copy
# makes files with its own path in them, by which the tests find their directory.
configured() {
    local place
    for place in "$PLAIN/work" "$WORK"; do
        # Without the owner: the user's copy is the user's.
        cp -dR --preserve=mode,timestamps,links "$PATCH_CONFIGURED/." "$place/patch"
        sed -i "s|$(cat "$PATCH_CONFIGURED/origin")|$place/patch|g" "$place/patch/config.status"
        (cd "$place/patch" && ./config.status --quiet)
        grep -q "^abs_top_builddir = $place/patch\$" "$place/patch/tests/Makefile"
    done
}
# build DIRECTORY NAME: what the tests said is left in $TMPDIR/NAME.
build() (
    set -euo pipefail
    cd "$1"/patch
    make -j2 --silent
    # Some of them fail for root, on every file system alike.
    make -k -j2 --silent check || true
    for result in tests/*.trs; do echo "$result $(sed -n 's/^:test-result: //p' "$result")"; done >"$TMPDIR/$2"
)
compiles() {
    build "$PLAIN/work" ext4
    build "$WORK" mount
    cmp "$PLAIN"/work/patch/src/patch "$WORK"/patch/src/patch
}
tests_give_the_same() {
    # An ordinary user acts on the mount as the environment's root, whom no mode keeps from writing: there this test skips itself.
    [ "$ACTOR" = root ] || sed -i '/^tests\/read-only-files\.trs /d' "$TMPDIR/ext4" "$TMPDIR/mount"
    diff "$TMPDIR/ext4" "$TMPDIR/mount"
    echo "note: $(cut -d' ' -f2 "$TMPDIR/mount" | sort | uniq -c | tr -s ' \n' ' ')"
    at_least "tests that pass" 38 "$(grep -c ' PASS$' "$TMPDIR/mount")"
}
# to_do DIRECTORY: what make would still do there.
to_do() { make -C "$1"/patch/src --dry-run --no-print-directory all-am; }
# Times tell make that nothing is left to do; also when the tree has become the lower view.
nothing_is_made_again() {
    to_do "$PLAIN/work" >"$TMPDIR/to-do"
    to_do "$WORK" | diff "$TMPDIR/to-do" -
    if has -e '-c -o' <"$TMPDIR/to-do"; then wrong "something is left to compile"; fi
    commit "$ENV"
    karapace umount "$ENV"
    karapace mount "$ENV"
    to_do "$WORK" | diff "$TMPDIR/to-do" -
    touch "$WORK"/patch/src/util.c
    to_do "$WORK" | has 'util\.c'
    make -C "$WORK"/patch --silent
    cmp "$PLAIN"/work/patch/src/patch "$WORK"/patch/src/patch
    make -C "$WORK"/patch --silent distclean
    make -C "$PLAIN"/work/patch --silent distclean
    same_tree "$PLAIN/work" "$WORK"
    karapace umount "$ENV"
    karapace verify-store
}

need "an environment" setup
need "GNU patch, configured" configured
need "make -j2 of GNU patch: the same program" compiles
check "make check: test by test the same" tests_give_the_same
check "make again, after commit and remount; make distclean" nothing_is_made_again
finish_suite
