# shellcheck shell=bash
# Other projects' own tests, built from Debian's source (scripts/lib/built.sh), run in a directory on ext4 and in one in the mount. Of those
# that fail in the mount each must fail on ext4 too. Sourced by the parts that have them, which define `run_tests DIRECTORY`: it prints a
# line `NAME ok|failed|skipped` for each test.
# shellcheck source=tests/real/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# copied BUILT DIRECTORY: the built tree, at home there: what the build wrote of directories into its files is made those of the copy, and
# times say that nothing is to be made anew.
copied() {
    local origin file
    origin=$(<"$1/origin")
    # Without owners, which are root's: a user has them in the mount alone.
    cp -a --no-preserve=ownership "$1" "$2"
    chmod -R u+w "$2"
    while read -r file; do
        touch -r "$file" "$TMPDIR/time"
        sed -i "s|$origin|$2|g" "$file"
        touch -r "$TMPDIR/time" "$file"
    done < <(grep -rlIF "$origin" "$2")
}

# place_of DIRECTORY: a word for it, for names of files.
place_of() { if [ "$1" = "$EXT4" ]; then echo ext4; else echo mount; fi; }

# all_run [COMMAND...]: with what goes on beside them in the mount.
all_run() {
    run_tests "$EXT4" | LC_ALL=C sort >"$TMPDIR/ext4"
    "$@" run_tests "$WORK" | grep -v '^note: ' | LC_ALL=C sort >"$TMPDIR/mount"
    echo "note: in the mount $(cut -d' ' -f2 "$TMPDIR/mount" | sort | uniq -c | tr -s ' \n' ' ')"
    echo "note: on ext4 $(cut -d' ' -f2 "$TMPDIR/ext4" | sort | uniq -c | tr -s ' \n' ' ')"
    [ "$(grep -c ' ok$' "$TMPDIR/ext4")" -ge "$LEAST" ] || wrong "hardly any test passed on ext4"
    # Some are skipped where the file system is not a disk's.
    local name
    while read -r name _; do
        grep -qxF "$name failed" "$TMPDIR/ext4" || echo "$name"
    done < <(grep ' failed$' "$TMPDIR/mount") >"$TMPDIR/worse"
    equal "tests that ended on ext4 alone" "" \
        "$(LC_ALL=C comm -23 <(sed -n 's/ ok$//p' "$TMPDIR/ext4" | LC_ALL=C sort) <(cut -d' ' -f1 "$TMPDIR/mount" | LC_ALL=C sort))"
    if [ -s "$TMPDIR/worse" ]; then
        cat "$TMPDIR/worse"
        details "$(head -n 1 "$TMPDIR/worse")" | tail -n 15
        wrong "these fail, and not on ext4"
    fi
}
# What a part can show of a test that failed in the mount.
details() { :; }

# foreign_checks NAME BUILT
copy_into() { copied "$2" "$1/built"; }
foreign_checks() {
    need "an environment" make_environment
    need "$1, built from Debian's source, in both" on_both copy_into "$2"
    check "$1: none fails that passes on ext4, with commits beside them" all_run with_commits "$MOUNTS/$ENV"
    check "umount and verify-store" is_whole
    finish_suite
}
