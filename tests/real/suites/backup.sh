#!/usr/bin/env bash
# restic and borg: backups of the mount and into it, checked whole, brought back; a second backup after a remount reads no file again
# runs as: root user
. "$(dirname "$0")/../common.sh"
environment backup
export RESTIC_PASSWORD=secret BORG_PASSPHRASE=secret BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes
export BORG_RELOCATED_REPO_ACCESS_IS_OK=yes
# Who is not root brings no owner back.
COMPARED=()
[ "$ACTOR" = root ] || COMPARED=(--no-owners)

# What is backed up: the fixture, files of all sizes, and one that is sparse.
setup() {
    make_environment
    mkdir "$WORK/tree"
    cp -a "$TMPDIR/fixture/." "$WORK/tree/"
    python3 - "$WORK/tree" <<'PYTHON'
import os, random, sys
random.seed(5)
for n in range(3000):
    directory = f"{sys.argv[1]}/many/d{n % 40}"
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/f{n}", "wb") as out:
        out.write(random.randbytes(random.randrange(1, 20000)))
for size in (1 << 20, (1 << 20) + 1, 5_000_000, 40_000_000):
    with open(f"{sys.argv[1]}/large{size}", "wb") as out:
        out.write(random.randbytes(size // 2) * 2)
PYTHON
    cp -a "$WORK/tree" "$EXT4/tree"
    same_attributes "$EXT4/tree" "$WORK/tree"
}

repository_of() { echo "$1/repository.$2"; }
restic_() { restic --quiet --no-cache --repo "$(repository_of "$1" restic)" "${@:2}"; }
borg_() { BORG_BASE_DIR=$TMPDIR/borg borg "$2" "${@:3}"; }

# backed_up REPOSITORY-DIRECTORY TREE-DIRECTORY: made anew, checked, and brought back on both.
restic_round() {
    restic_ "$1" init
    (cd "$2" && restic_ "$1" backup tree)
    restic_ "$1" check --read-data
    local place
    for place in "$EXT4" "$WORK"; do
        restic_ "$1" restore latest --target "$place/restic"
        same_attributes "$EXT4/tree" "$place/restic/tree" "${COMPARED[@]}" "${HOLES[@]}"
        rm -r "$place/restic"
    done
}
borg_round() {
    local repository
    repository=$(repository_of "$1" borg)
    borg_ "$1" init --encryption none "$repository"
    (cd "$2" && borg_ "$1" create "$repository::one" tree)
    borg_ "$1" check --verify-data "$repository"
    local place
    for place in "$EXT4" "$WORK"; do
        mkdir "$place/borg"
        (cd "$place/borg" && borg_ "$1" extract --sparse "$repository::one")
        same_attributes "$EXT4/tree" "$place/borg/tree" "${COMPARED[@]}" "${HOLES[@]}"
        rm -r "$place/borg"
    done
}
# Both write zeros as they like.
HOLES=(--no-holes)
round() { "$1_round" "$2" "$3"; }
beside_commits() {
    rm -rf "$(repository_of "$WORK" "$1")"
    with_commits "$MOUNTS/$ENV" "$1_round" "$WORK" "$WORK"
}

# After a commit and a remount a file is the same one: number, change time, size.
unchanged_is_not_read() {
    local said
    commit "$ENV"
    remounted
    said=$(cd "$WORK" && restic --no-cache --repo "$(repository_of "$EXT4" restic-2)" init >"$TMPDIR/init" && export RESTIC_REPOSITORY="$EXT4/repository.restic-2" &&
        restic --no-cache backup tree >"$TMPDIR/first" && commit "$ENV" >"$TMPDIR/hash" && restic --no-cache backup tree)
    grep -E '^Files: ' <<<"$said"
    grep -qE '^Files: +0 new, +0 changed, +[0-9]+ unmodified' <<<"$said"
    remounted
    said=$(cd "$WORK" && restic --no-cache --repo "$EXT4/repository.restic-2" backup tree)
    grep -E '^Files: ' <<<"$said"
    grep -qE '^Files: +0 new, +0 changed, +[0-9]+ unmodified' <<<"$said"
    echo y >"$WORK/tree/many/d1/f1"
    said=$(cd "$WORK" && restic --no-cache --repo "$EXT4/repository.restic-2" backup tree)
    grep -qE '^Files: +0 new, +1 changed, +[0-9]+ unmodified' <<<"$said"
}

# The repositories, changed, brought back by a restore, and changed again; each restore's archives are whole.
restored() {
    local repository
    repository=$(repository_of "$WORK" borg)
    cp "$EXT4/tree/many/d1/f1" "$WORK/tree/many/d1/f1"
    touch -r "$EXT4/tree/many/d1/f1" "$WORK/tree/many/d1/f1"
    touch -r "$EXT4/tree/many/d1" "$WORK/tree/many/d1"
    ctl "$ENV" "commit name=then"
    rm -r "$WORK/tree/many"
    (cd "$WORK" && borg_ "$WORK" create "$repository::two" tree && restic_ "$WORK" backup tree)
    borg_ "$WORK" delete "$repository::one"
    borg_ "$WORK" compact "$repository"
    restic_ "$WORK" forget --keep-last 1 --prune
    ctl "$ENV" "restore then"
    same_attributes "$EXT4/tree" "$WORK/tree" "${COMPARED[@]}"
    # As borg itself asks for when a repository is an older one than it has seen.
    rm -rf "$TMPDIR/borg"
    equal archives one "$(borg_ "$WORK" list --short "$repository")"
    borg_ "$WORK" check --verify-data "$repository"
    restic_ "$WORK" check --read-data
    (cd "$WORK" && borg_ "$WORK" create "$repository::three" tree && restic_ "$WORK" backup tree)
    remounted
    borg_ "$WORK" check --verify-data "$repository"
    restic_ "$WORK" check --read-data
}

need "an environment, and a tree of 3,000 files" setup
for program in restic borg; do
    check "$program: a repository on ext4 of the tree in the mount" round "$program" "$EXT4" "$WORK"
    check "$program: a repository in the mount of the tree on ext4" round "$program" "$WORK" "$EXT4"
    check "$program: both in the mount, with commits beside it" beside_commits "$program"
done
check "a second backup after a commit and a remount reads nothing again" unchanged_is_not_read
check "a restore in the middle: repositories are what they were" restored
check "umount and verify-store" is_whole
finish_suite
