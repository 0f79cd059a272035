#!/usr/bin/env bash
# A repository with a long history: gc, repack, branch switches, clones and fsck --full, as on ext4.
# runs as: root user
# seconds: 30
. "$(dirname "$0")/../checks.sh"
ENV=git
WORK=$MOUNTS/$ENV/srv/work

export GIT_AUTHOR_DATE='2020-01-01T00:00:00Z' GIT_COMMITTER_DATE='2020-01-01T00:00:00Z' GIT_CONFIG_NOSYSTEM=1
git config --global user.name Tester
git config --global user.email tester@example.invalid
git config --global init.defaultBranch main
git config --global gc.auto 0
git config --global pack.threads 1
git config --global advice.detachedHead false

setup() {
    mounted_fixture "$TMPDIR/fixture"
    mkdir "$WORK" "$PLAIN/work"
    # Six hundred commits on three branches, with directories that come, go and become files.
    python3 - >"$TMPDIR/history" <<'PYTHON'
import random
random.seed(7)
print("reset refs/heads/main")
for n in range(1, 601):
    branch = ("main", "left", "right")[n % 3] if n > 30 else "main"
    print(f"commit refs/heads/{branch}\nmark :{n}\ncommitter Tester <t@example.invalid> {1577836800 + n} +0000")
    print(f"data {len(str(n))}\n{n}")
    if n in (31, 32):
        print("from :30")
    elif n > 60 and n % 97 == 0:
        print(f"merge :{n - 1}")
    for _ in range(6):
        text = "".join(f"line {random.randrange(50)}\n" for _ in range(random.randrange(200)))
        mode = random.choice(("100644", "100755", "120000"))
        name = f"d{random.randrange(12)}/e{random.randrange(4)}/f{random.randrange(20)}"
        if mode == "120000":
            text = name
        print(f"M {mode} inline {name}\ndata {len(text)}\n{text}")
    if n % 10 == 0:
        print(f"D d{random.randrange(12)}")
    if n % 25 == 0:
        print(f"D d{n % 12}\nM 100644 inline d{n % 12}\ndata 4\nfile")
    print()
PYTHON
}

work_on() (
    set -euo pipefail
    mkdir "$1/repo"
    cd "$1/repo"
    git init -q
    git fast-import --quiet <"$TMPDIR/history"
    git checkout -q main
    for branch in left right main left main; do
        git switch -q "$branch"
        equal "status on $branch" "" "$(git status --porcelain)"
    done
    # Loose objects, and refs each in a file.
    for i in $(seq 25); do
        echo "$i" >>README
        git add README
        git commit -q -m "Line $i"
        git tag "v$i"
    done
    git switch -q -c topic main~10
    echo topic >topic
    git add topic
    git commit -q -m Topic
    git rebase -q main
    git merge -q --no-ff -m Merged -s ours left
    # One that conflicts, and is given up.
    git merge -q right && wrong "no conflict"
    git reset -q --hard
    git clean -q -f -d
    equal "status after the conflict" "" "$(git status --porcelain)"
    echo more >>README
    git stash -q
    git stash pop -q
    git commit -q -a -m More
    git worktree add -q ../tree v3
    git -C ../tree status --porcelain
    git worktree remove ../tree
    git gc -q --prune=now --aggressive
    git pack-refs --all
    git fsck --full --strict
    git switch -q right
    git repack -q -a -d -f
    git switch -q topic
    git fsck --full --strict
    equal "loose objects" "count: 0" "$(git count-objects -v | head -n1)"
)
works_the_same() {
    work_on "$PLAIN/work"
    work_on "$WORK"
    diff <(git -C "$PLAIN/work/repo" for-each-ref) <(git -C "$WORK/repo" for-each-ref)
    diff <(git -C "$PLAIN/work/repo" ls-files -s) <(git -C "$WORK/repo" ls-files -s)
    rm "$PLAIN/work/repo/.git/index"
    cp "$WORK/repo/.git/index" "$TMPDIR/index"
    rm "$WORK/repo/.git/index"
    same_tree "$PLAIN/work/repo" "$WORK/repo"
    cp "$TMPDIR/index" "$WORK/repo/.git/index"
}
clones() {
    git clone -q "$WORK/repo" "$WORK/linked"
    git clone -q --no-local --bare "$WORK/repo" "$WORK/bare"
    git clone -q --shared "$WORK/repo" "$WORK/shared"
    git clone -q --mirror "$PLAIN/work/repo" "$WORK/mirror"
    local clone
    for clone in linked bare shared mirror; do git -C "$WORK/$clone" fsck --full --strict; done
    # The packs of a local clone are hard links.
    equal "links of a pack" 2 "$(stat -c %h "$(find "$WORK/linked/.git/objects/pack" -name '*.pack')")"
    rm -r "$WORK/linked"
    git -C "$WORK/repo" fsck --full --strict
}
# The index holds inode numbers and change times: after a commit and a remount git need not read the files again.
index_stays_true() {
    git -C "$WORK/repo" status --porcelain
    commit "$ENV"
    karapace umount "$ENV"
    karapace mount "$ENV"
    equal "files that git takes for changed" "" "$(git -C "$WORK/repo" diff-files --name-only)"
    equal status "" "$(git -C "$WORK/repo" status --porcelain)"
    local branch
    for branch in left right main; do
        git -C "$WORK/repo" switch -q "$branch"
        equal "status on $branch" "" "$(git -C "$WORK/repo" status --porcelain)"
    done
    git -C "$WORK/repo" fsck --full --strict
    karapace umount "$ENV"
    karapace verify-store
}

need "an environment, and a history of 600 commits" setup
check "import, switches, commits, rebase, worktree, gc, repack, fsck: the same tree" works_the_same
check "clones linked, packed, shared and mirrored pass fsck" clones
check "the index stays valid over commit and remount; switches from the lower" index_stays_true
finish_suite
