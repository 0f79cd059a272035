# shellcheck shell=bash
# Other projects' own tests, built from Debian's source (scripts/lib/built.sh), run in a directory on ext4 and in one in the mount. Of those
# that fail in the mount each must fail on ext4 too, or stand in the part's list with its reason. Sourced by the parts that have them, which
# define `run_tests DIRECTORY HALF`: it runs one half of the tests (1 or 2) and prints a line `NAME ok|failed|skipped|todo` for each.
# shellcheck source=tests/real/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# What may fail in the mount alone, a line each: `root|user|both NAME: reason`.
EXPECTED=''
# Names of tests that need EACCES or EPERM from a mode: in his own mount a user acts as root and gets neither (docs/LIMITATIONS.md).
NOT_STOPPED=''
expected() {
    {
        sed -nE "s/^(both|$ACTOR) ([^ ]+): .*/\2/p" <<<"$EXPECTED"
        # shellcheck disable=SC2086 # names
        [ "$ACTOR" = root ] || printf '%s\n' $NOT_STOPPED
    } | LC_ALL=C sort -u
}

# copied BUILT DIRECTORY: copies the built tree there. Replaces the build's own path in its files, and keeps their times, so that make
# rebuilds nothing.
copied() {
    local origin file
    origin=$(<"$1/origin")
    # Not the owner: it is root, which a user can set only in the mount.
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
# half_of HALF: every second line of its input.
half_of() { awk -v half="$1" 'NR % 2 == half % 2'; }

# with_result RESULT PLACE: the names of the tests that had it there.
with_result() { sed -n "s/ $1\$//p" "$TMPDIR/$2" | LC_ALL=C sort -u; }
counts() { cut -d' ' -f2 "$TMPDIR/$1" | sort | uniq -c | tr -s ' \n' ' '; }

# half_runs HALF: on ext4, and in the mount with commits beside it.
half_runs() {
    local name
    run_tests "$EXT4" "$1" | LC_ALL=C sort -u >"$TMPDIR/ext4"
    with_commits "$MOUNTS/$ENV" run_tests "$WORK" "$1" >"$TMPDIR/said"
    grep '^note: ' "$TMPDIR/said"
    grep -v '^note: ' "$TMPDIR/said" | LC_ALL=C sort -u >"$TMPDIR/mount"
    echo "note: on ext4 $(counts ext4)"
    echo "note: in the mount $(counts mount)"
    [ "$(with_result ok ext4 | wc -l)" -ge "$LEAST" ] || wrong "hardly any test passed on ext4"
    equal "tests that ended on ext4 alone" "" "$(LC_ALL=C comm -23 <(with_result ok ext4) <(cut -d' ' -f1 "$TMPDIR/mount" | LC_ALL=C sort -u))"
    # Some are skipped where the file system is not a disk's.
    for name in $(LC_ALL=C comm -12 <(with_result ok ext4) <(with_result skipped mount)); do
        echo "note: skipped in the mount alone: $name"
    done
    LC_ALL=C comm -23 <(with_result failed mount) <(with_result failed ext4) >"$TMPDIR/worse"
    for name in $(LC_ALL=C comm -12 "$TMPDIR/worse" <(expected)); do
        echo "note: fails in the mount alone, as it may: $name"
    done
    for name in $(LC_ALL=C comm -12 <(with_result ok mount) <(expected)); do
        echo "note: may fail in the mount, and passes: $name"
    done
    LC_ALL=C comm -23 "$TMPDIR/worse" <(expected) >"$TMPDIR/unexpected"
    if [ -s "$TMPDIR/unexpected" ]; then
        details "$(head -n 1 "$TMPDIR/unexpected")" | tail -n 25
        head -n 30 "$TMPDIR/unexpected"
        wrong "these fail, and not on ext4"
    fi
}
# What a part can show of a test that failed in the mount.
details() { :; }

copy_into() { copied "$2" "$1/built"; }
begin() {
    on_both copy_into "$1"
    tree "$WORK/built" times >"$TMPDIR/built"
    ctl "$ENV" "commit name=built"
}
# Undoes everything that the first half changed, so that the second half starts from the same state.
restored() {
    if [ "$(ls -A "$WORK")" = built ] && tree "$WORK/built" times | cmp -s - "$TMPDIR/built"; then wrong "the tests left nothing"; fi
    ctl "$ENV" "restore built"
    equal "what is there" built "$(ls -A "$WORK")"
    tree "$WORK/built" times | diff "$TMPDIR/built" - | head -n 20
    tree "$WORK/built" times | cmp "$TMPDIR/built" -
}

# foreign_checks NAME BUILT
foreign_checks() {
    need "an environment" make_environment
    need "$1, built from Debian's source, in both" begin "$2"
    check "$1, one half: none fails that passes on ext4, with commits beside them" half_runs 1
    check "a restore of what was built" restored
    check "$1, the other half" half_runs 2
    check "umount and verify-store" is_whole
    finish_suite
}
