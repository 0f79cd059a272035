#!/usr/bin/env bash
# A C project compiled with -j2 and tested by its own test suite in the mount, as on ext4.
# runs as: root user
# files: PATCH
# seconds: 70
. "$(dirname "$0")/../checks.sh"
ENV=compile
WORK=$MOUNTS/$ENV/srv/work

setup() {
    fixture "$TMPDIR/fixture"
    fixture_tar "$TMPDIR/fixture" "$TMPDIR/fixture.tar"
    karapace import "$TMPDIR/fixture.tar" --name "$ENV"
    karapace mount "$ENV"
    mkdir "$WORK" "$PLAIN/work"
}

# configure runs once, on ext4: it starts thousands of processes and says little of a file system.
configured() (
    set -euo pipefail
    cd "$PLAIN/work"
    tar -xf "$PATCH_SOURCE"/patch_*.orig.tar.*
    cd patch-*
    CFLAGS='-O1 -g0' ./configure --quiet
    cp -a "$PLAIN"/work/patch-* "$WORK/"
)
# build DIRECTORY: what the tests said is left in tests.result.
build() (
    set -euo pipefail
    cd "$1"/patch-*
    make -j2 --silent
    # Some of them fail for root, on every file system alike.
    make -k -j2 --silent check || true
    for result in tests/*.trs; do echo "$result $(sed -n 's/^:test-result: //p' "$result")"; done >tests.result
)
compiles() {
    build "$PLAIN/work"
    build "$WORK"
    cmp "$PLAIN"/work/patch-*/src/patch "$WORK"/patch-*/src/patch
}
tests_give_the_same() {
    diff "$PLAIN"/work/patch-*/tests.result "$WORK"/patch-*/tests.result
    echo "note: $(cut -d' ' -f2 "$WORK"/patch-*/tests.result | sort | uniq -c | tr -s ' \n' ' ')"
    [ "$(grep -c ' PASS$' "$WORK"/patch-*/tests.result)" -ge 38 ]
}
# to_do DIRECTORY: what make would still do there.
to_do() { make -C "$1"/patch-*/src --dry-run --no-print-directory all-am; }
# Times tell make that nothing is left to do; also when the tree has become the lower view.
nothing_is_made_again() {
    to_do "$PLAIN/work" >"$TMPDIR/to-do"
    to_do "$WORK" | diff "$TMPDIR/to-do" -
    if has -e '-c -o' <"$TMPDIR/to-do"; then wrong "something is left to compile"; fi
    commit "$ENV"
    karapace umount "$ENV"
    karapace mount "$ENV"
    to_do "$WORK" | diff "$TMPDIR/to-do" -
    touch "$WORK"/patch-*/src/util.c
    to_do "$WORK" | has 'util\.c'
    make -C "$WORK"/patch-* --silent
    cmp "$PLAIN"/work/patch-*/src/patch "$WORK"/patch-*/src/patch
    make -C "$WORK"/patch-* --silent distclean
    make -C "$PLAIN"/work/patch-* --silent distclean
    same_tree "$PLAIN/work" "$WORK"
    karapace umount "$ENV"
    karapace verify-store
}

need "an environment" setup
need "GNU patch, configured on ext4 and copied" configured
need "make -j2 of GNU patch: the same program" compiles
check "make check: test by test the same" tests_give_the_same
check "make again, after commit and remount; make distclean" nothing_is_made_again
finish_suite
