#!/usr/bin/env bash
# git with watchman (inotify) as its fsmonitor: what git says is what it says without, for every change through the mount
# runs as: root user
. "$(dirname "$0")/../common.sh"
environment watch
export GIT_CONFIG_NOSYSTEM=1 WATCHMAN_SOCK=$TMPDIR/watchman/sock
HOOK=/usr/share/git-core/templates/hooks/fsmonitor-watchman.sample

setup() {
    make_environment
    git config --global user.name Tester
    git config --global user.email tester@example.invalid
    git config --global init.defaultBranch main
    git config --global gc.auto 0
    mkdir -m 0700 "$TMPDIR/watchman"
    watchman_ version
    on_both begin
}
watchman_() {
    local where=$TMPDIR/watchman
    watchman --sockname="$WATCHMAN_SOCK" --statefile="$where/state" --logfile="$where/log" --pidfile="$where/pid" "$@"
}
begin() {
    mkdir "$1/repo"
    cd "$1/repo" || return
    git init -q
    local n
    for n in $(seq 40); do
        mkdir -p "d$n/e"
        printf '%s\n' "$n" | tee "d$n/a" "d$n/b" "d$n/e/c" >/dev/null
    done
    git add -A
    git commit -q -m first
    git checkout -q -b other
    git mv d1 moved
    echo other | tee d2/a d3/e/new >/dev/null
    git add -A
    git commit -q -m other
    git checkout -q main
    cp "$HOOK" .git/hooks/query-watchman
    chmod +x .git/hooks/query-watchman
    git config core.fsmonitor .git/hooks/query-watchman
    git config core.fsmonitorHookVersion 2
    watchman_ watch-project "$1/repo"
    git status --porcelain
    git update-index --fsmonitor
}

# agrees DIRECTORY: git with the watcher says what it says when it looks for itself, and both what is expected.
agrees() {
    local with without
    with=$(git -C "$1/repo" status --porcelain)
    without=$(git -C "$1/repo" -c core.fsmonitor=false status --porcelain)
    equal "git in $1 with the watcher" "$without" "$with"
    equal "git in $1" "$2" "$with"
}
# changed EXPECTED COMMAND: a shell's command in the repository, on ext4 and in the mount.
changed() {
    local base
    for base in "$EXT4" "$WORK"; do
        (cd "$base/repo" && bash -euc "$2")
        agrees "$base" "$1"
    done
}
through_the_mount() {
    changed "" "true"
    changed " M d4/a" "echo x >>d4/a"
    changed "$(printf ' M d4/a\n D d5/b')" "rm d5/b"
    changed "$(printf ' M d4/a\n D d5/b\n?? d6/new')" "echo x >d6/new"
    changed "$(printf ' M d4/a\n D d5/b\n D d7/e/c\n?? d6/new\n?? d7/e/z')" "mv d7/e/c d7/e/z"
    changed "$(printf ' M d4/a\n M d8/a')" "git clean -qfd; git checkout -q d5 d7; chmod +x d8/a"
    changed "$(printf ' M d9/a')" "git checkout -q d4 d8; printf 'y\n' | dd of=d9/a bs=1 conv=notrunc status=none"
    changed "?? new/" "git checkout -q .; mkdir -p new/deep/er; echo x >new/deep/er/x"
    changed "$(printf ' M new/deep/er/x')" "git add new; git commit -q -m new; echo z >new/deep/er/x"
    changed "" "git checkout -q ."
    changed " T d10/a" "ln -sf b d10/a"
    changed "" "git checkout -q ."
    # Through a mapping and with a tool that replaces files.
    changed " M d11/a" 'python3 -c "
import mmap
with open(\"d11/a\", \"r+b\") as f:
    m = mmap.mmap(f.fileno(), 0); m[0:1] = b\"q\"; m.flush(); m.close()
"'
    changed "$(printf ' M d11/a\n M d12/a')" "sed -i s/12/21/ d12/a"
    changed "" "git checkout -q ."
}
# Switches, stash, rebase, with the watcher; the trees afterwards are the same.
switches() {
    changed "" "git checkout -q other; git checkout -q main; git checkout -q other"
    changed " M d2/a" "echo more >>d2/a"
    changed "" "git stash -q"
    changed " M d2/a" "git stash pop -q"
    changed "" "git commit -q -a -m more; git rebase -q main; git checkout -q main; git merge -q --no-edit other"
    local base
    for base in "$EXT4" "$WORK"; do (cd "$base/repo" && git ls-files -s) >"$base/files"; done
    cmp "$EXT4/files" "$WORK/files"
}
# A commit of the environment is no change of it, and the watcher sees what comes after; files are the lower view's now.
beside_commits() {
    ctl "$ENV" commit
    changed "" "true"
    changed " M d21/a" "echo x >>d21/a"
    ctl "$ENV" "commit name=then"
    changed " M d21/a" "true"
    changed "$(printf ' M d21/a\n M d22/e/c')" "echo x >>d22/e/c"
}
# What a restore changes git must see when it looks for itself.
restored() {
    ctl "$ENV" "restore then"
    equal "without the watcher" " M d21/a" "$(git -C "$WORK/repo" -c core.fsmonitor=false status --porcelain)"
}
# After a remount the watcher begins anew: it has seen the old mount go.
watched_anew() {
    watchman_ watch-del "$WORK/repo"
    remounted
    watchman_ watch-project "$WORK/repo"
    agrees "$WORK" " M d21/a"
    echo x >>"$WORK/repo/d23/a"
    agrees "$WORK" "$(printf ' M d21/a\n M d23/a')"
    watchman_ watch-del "$WORK/repo"
    watchman_ shutdown-server
}

need "an environment, watchman, and two repositories" setup
check "changes through the mount" through_the_mount
check "switches, stash, rebase, merge" switches
check "commits of the environment between them" beside_commits
check "a restore in the middle" restored
check "watched anew after a remount" watched_anew
check "umount and verify-store" is_whole
finish_suite
