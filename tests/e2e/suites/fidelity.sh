#!/usr/bin/env bash
# What a snapshot brings back, feature by feature: a tree with one of everything is committed, changed in place, committed,
# restored; removed, committed, restored; brought back path by path; and has every attribute again each time.
# runs as: root user
. "$(dirname "$0")/../checks.sh"
ENV=whole
DIR=$MOUNTS/$ENV
TOP=$DIR/srv/features
# The path of a copy of the suite's own: the suite runs from a copy of the repository.
TOOL=$(dirname "$0")/../fidelity.py

setup() {
    fixture "$PLAIN/fixture"
    mkdir -p "$PLAIN/fixture/srv/features/deletions-and-replacements"
    cd "$PLAIN/fixture/srv/features/deletions-and-replacements" || return
    mkdir gone-too replaced moved
    touch gone gone-too/x replaced/old kind moved/below
    fixture_tar "$PLAIN/fixture" "$TMPDIR/fixture.tar"
    karapace import "$TMPDIR/fixture.tar" --name "$ENV"
    karapace mount "$ENV"
}

makes_and_commits() {
    python3 "$TOOL" make "$TOP" "$ACTOR" >"$TMPDIR/features"
    python3 "$TOOL" describe "$TOP" >"$TMPDIR/written"
    commit "$ENV" >"$TMPDIR/hash"
    python3 "$TOOL" describe "$TOP" >"$TMPDIR/committed"
    echo "note: $(wc -l <"$TMPDIR/features") features, $(wc -l <"$TMPDIR/written") paths"
}

changes_and_restores() {
    python3 "$TOOL" change "$TOP"
    commit "$ENV" >/dev/null
    python3 "$TOOL" describe "$TOP" >"$TMPDIR/other"
    # Everything is another one now, or the comparison after it means nothing.
    if grep -Fxf "$TMPDIR/written" "$TMPDIR/other"; then wrong "these are as they were"; fi
    ctl "$ENV" "restore $(cat "$TMPDIR/hash")"
    python3 "$TOOL" describe "$TOP" >"$TMPDIR/changed"
}

removes_and_restores() {
    rm -rf "$TOP"
    commit "$ENV" >/dev/null
    ctl "$ENV" "restore $(cat "$TMPDIR/hash")"
    python3 "$TOOL" describe "$TOP" >"$TMPDIR/removed"
}

restores_from_the_base() {
    ctl "$ENV" "restore base"
    [ -e "$TOP/deletions-and-replacements/gone" ]
    # Another process, another inode table.
    karapace umount "$ENV"
    karapace restore "$ENV" "$(cat "$TMPDIR/hash")" >/dev/null
    karapace mount "$ENV"
    python3 "$TOOL" describe "$TOP" >"$TMPDIR/remounted"
}

restores_single_paths() {
    rm -rf "$TOP"
    commit "$ENV" >/dev/null
    karapace restore "$ENV" "$(cat "$TMPDIR/hash")" --keep-times -- /srv/features
    python3 "$TOOL" describe "$TOP" >"$TMPDIR/single"
    ctl "$ENV" "restore $(cat "$TMPDIR/hash")"
}

# A feature's directory itself is not compared: nothing is promised of the times of directories above. What is in it is.
is_kept() {
    local state
    grep -F "'/$1/" "$TMPDIR/written" >"$TMPDIR/expected"
    for state in committed changed removed remounted single; do
        grep -F "'/$1/" "$TMPDIR/$state" | diff "$TMPDIR/expected" - || wrong "$1, $state"
    done
}

# The same content on the same parent is the same snapshot.
same_again_is_same_hash() {
    local first parent
    parent=$(commit "$ENV")
    echo x >"$TOP/more"
    touch -d @1000000000 "$TOP/more"
    first=$(commit "$ENV")
    ctl "$ENV" "restore $parent"
    [ ! -e "$TOP/more" ]
    equal "nothing to commit" "$parent" "$(commit "$ENV")"
    echo x >"$TOP/more"
    touch -d @1000000000 "$TOP/more"
    equal hash "$first" "$(commit "$ENV")"
}

is_sound() {
    karapace umount "$ENV"
    karapace verify-store
    karapace gc
    karapace verify-store
}

need "an environment" setup
need "a tree with one of everything, committed" makes_and_commits
need "every inode changed in place, committed, restored" changes_and_restores
need "all removed, committed, restored" removes_and_restores
need "the base restored, and the snapshot without a mount" restores_from_the_base
need "restored by path" restores_single_paths
while read -r feature; do
    check "kept: $feature" is_kept "$feature"
done <"$TMPDIR/features"
check "commit, restore, commit: the same hash" same_again_is_same_hash
check "the store is intact" is_sound
finish_suite
