#!/usr/bin/env bash
# Real programs in the mount give what they give on ext4.
# runs as: root user
# files: DEV
# seconds: 180
. "$(dirname "$0")/../checks.sh"
ENV=prog
DIR=$MOUNTS/$ENV
WORK=$DIR/srv/work

export GIT_AUTHOR_DATE='2020-01-01T00:00:00Z' GIT_COMMITTER_DATE='2020-01-01T00:00:00Z'
export GIT_CONFIG_NOSYSTEM=1
git config --global user.name Tester
git config --global user.email tester@example.invalid
git config --global init.defaultBranch main
git config --global gc.auto 0

setup() {
    karapace import "$DEV_TAR" --name "$ENV"
    karapace mount "$ENV"
    mkdir -p "$WORK" "$PLAIN/work"
}

# on_both FUNCTION: runs it with a directory on ext4 and with one in the mount.
on_both() {
    "$1" "$PLAIN/work"
    "$1" "$WORK"
}

make_repository() {
    mkdir "$1/repo"
    cd "$1/repo" || return
    git init -q
    python3 - <<'PYTHON'
import os
for directory in range(80):
    os.makedirs(f"src/d{directory % 9}/m{directory}")
    for file in range(100):
        with open(f"src/d{directory % 9}/m{directory}/f{file}.c", "w") as out:
            out.write(f"/* {directory} {file} */\n" * (file % 40 + 1))
PYTHON
    git add -A
    git commit -q -m 'Eight thousand files'
    git mv src/d0 src/moved
    git rm -rq src/d1/m1
    echo changed >>src/d2/m2/f1.c
    git commit -q -a -m 'Moved, removed and changed'
    git checkout -q -b other HEAD~1
    git checkout -q main
    git fsck --strict 2>&1
}
git_is_the_same() {
    on_both make_repository
    local a=$PLAIN/work/repo b=$WORK/repo
    equal status "" "$(git -C "$b" status --porcelain)"
    equal head "$(git -C "$a" rev-parse HEAD)" "$(git -C "$b" rev-parse HEAD)"
    equal files 7900 "$(git -C "$b" ls-files | wc -l)"
    # The index holds inode numbers and times, the logs nothing that differs.
    cp "$a/.git/index" "$TMPDIR/index.a"
    cp "$b/.git/index" "$TMPDIR/index.b"
    diff <(git -C "$a" ls-files -s) <(git -C "$b" ls-files -s)
    rm "$a/.git/index" "$b/.git/index"
    same_tree "$a" "$b"
    cp "$TMPDIR/index.b" "$b/.git/index"
    equal "status again" "" "$(git -C "$b" status --porcelain)"
}
git_clone_is_the_same() {
    git clone -q "$WORK/repo" "$WORK/clone"
    git clone -q --no-local "$WORK/repo" "$PLAIN/work/clone"
    equal head "$(git -C "$PLAIN/work/clone" rev-parse HEAD)" "$(git -C "$WORK/clone" rev-parse HEAD)"
    equal status "" "$(git -C "$WORK/clone" status --porcelain)"
    rm -r "$WORK/clone/.git" "$PLAIN/work/clone/.git"
    same_tree "$WORK/clone" "$PLAIN/work/clone"
}
# A repository that root made inside, used by whoever mounted the environment.
git_has_no_complaint() {
    karapace exec "$ENV" -- sh -c 'cd /srv && git init -q inside && cd inside && echo x >f && git add f &&
        git -c user.name=x -c user.email=x@example.invalid commit -q -m x'
    git -C "$DIR/srv/inside" status 2>&1 | tee "$TMPDIR/status"
    if grep -qiE 'dubious|ownership|safe\.directory' "$TMPDIR/status"; then wrong "git complains"; fi
    grep -q 'nothing to commit' "$TMPDIR/status"
    # And the other way round.
    karapace exec "$ENV" -- git -C /srv/work/repo status --porcelain
}

# The environment's own Python on the mount, the host's on both: where the interpreter is at hand twice.
make_venv() {
    mkdir -p "$1/python"
    /usr/bin/python3 -m venv "$1/python/venv"
    "$1/python/venv/bin/python" -c 'import pip, json, sqlite3, ssl; print(pip.__version__)'
}
venv_is_the_same() {
    on_both make_venv
    local base
    for base in "$PLAIN/work" "$WORK"; do
        # Paths are written into scripts, and bytecode and RECORD hold what follows from them.
        find "$base/python" -name __pycache__ -prune -exec rm -r {} +
        find "$base/python" -name RECORD -exec truncate -s 0 {} +
        grep -rlIF "$base" "$base/python" | tr '\n' '\0' | xargs -0 -r sed -i "s|$base|BASE|g"
    done
    same_tree "$PLAIN/work/python" "$WORK/python"
}
venv_inside() {
    karapace exec "$ENV" -- python3 -m venv /srv/venv
    karapace exec "$ENV" -- /srv/venv/bin/python -c 'import pip; print(pip.__version__)'
}

compiles() {
    printf '#include <stdio.h>\n#include <math.h>\nint main(void) { printf("%%.3f\\n", sqrt(2)); return 3; }\n' >"$WORK/hello.c"
    karapace exec "$ENV" -- gcc -O2 -o /srv/work/hello /srv/work/hello.c -lm
    local status=0
    equal inside 1.414 "$(karapace exec "$ENV" -- /srv/work/hello || status=$?)"
    status_of 3 karapace exec "$ENV" -- /srv/work/hello
    [ "$ACTOR" = root ] || return 0
    # The same compiler on ext4, in a plain chroot.
    mkdir "$PLAIN/chroot"
    tar -xpf "$DEV_TAR" --numeric-owner -C "$PLAIN/chroot"
    mkdir "$PLAIN/chroot/srv/work"
    cp "$WORK/hello.c" "$PLAIN/chroot/srv/work/"
    chroot "$PLAIN/chroot" gcc -O2 -o /srv/work/hello /srv/work/hello.c -lm
    cmp "$PLAIN/chroot/srv/work/hello" "$WORK/hello"
    rm -r "$PLAIN/chroot"
}

copy_usr() {
    mkdir "$1/usr"
    tar -cf - -C "$DIR/usr" . | tar -xpf - -C "$1/usr"
}
tar_of_usr_is_the_same() {
    on_both copy_usr
    tree "$PLAIN/work/usr" times >"$TMPDIR/usr"
    at_least "entries of /usr" 1000 "$(wc -l <"$TMPDIR/usr")"
    tree "$WORK/usr" times | diff "$TMPDIR/usr" -
}
cp_of_usr_is_the_same() {
    cp -a "$WORK/usr" "$WORK/usr2"
    tree "$WORK/usr2" times | diff "$TMPDIR/usr" -
    rm -r "$WORK/usr2"
    [ ! -e "$WORK/usr2" ]
}

# Two writers and a reader at once, in WAL mode, which maps a shared file.
make_database() {
    mkdir "$1/db"
    cd "$1/db" || return
    sqlite3 data.db 'PRAGMA journal_mode=WAL; CREATE TABLE t (writer INT, n INT, text TEXT, PRIMARY KEY (writer, n));'
    local writer
    for writer in 1 2; do
        for n in $(seq 150); do
            echo ".timeout 20000"
            echo "INSERT INTO t VALUES ($writer, $n, '$(printf "%0${n}d" "$writer")');"
        done | sqlite3 data.db &
    done
    for _ in $(seq 20); do sqlite3 data.db '.timeout 20000' 'SELECT count(*) FROM t' >/dev/null; done
    wait
    equal integrity ok "$(sqlite3 data.db 'PRAGMA integrity_check')"
    equal mode wal "$(sqlite3 data.db 'PRAGMA journal_mode')"
    sqlite3 data.db 'SELECT * FROM t ORDER BY writer, n' | sha256sum >"$1/db.sum"
}
sqlite_is_the_same() {
    on_both make_database
    diff "$PLAIN/work/db.sum" "$WORK/db.sum"
}

files_of_root_are_writable() {
    stat -c '%U %n' "$DIR/etc/passwd"
    equal owner "$(id -u)" "$(stat -c %u "$DIR/etc/passwd")"
    echo '# a line' >>"$DIR/etc/passwd"
    sed -i 's/# a line/# another/' "$DIR/etc/passwd"
    tail -n1 "$DIR/etc/passwd" | has -x '# another'
    rm "$DIR/etc/issue"
    mkdir "$DIR/etc/new.d"
    chmod 0700 "$DIR/root"
    # Inside, what the user made is root's.
    equal "owner inside" 0 "$(karapace exec "$ENV" -- stat -c %u /etc/new.d)"
}

all_of_it_survives() {
    tree "$WORK" times >"$TMPDIR/before"
    local hash
    hash=$(commit "$ENV")
    tree "$WORK" times | diff "$TMPDIR/before" -
    karapace umount "$ENV"
    karapace mount "$ENV"
    tree "$WORK" times | diff "$TMPDIR/before" -
    rm -r "$WORK"
    ctl "$ENV" "restore $hash"
    tree "$WORK" times | diff "$TMPDIR/before" -
    karapace umount "$ENV"
    karapace verify-store
}

need "import and mount of a Debian with compilers" setup
check "files that root owns are writable through the mount" files_of_root_are_writable
check "git init, add of 8,000 files, commit, status" git_is_the_same
check "git clone" git_clone_is_the_same
check "git status without an ownership complaint" git_has_no_complaint
check "python3 -m venv" venv_is_the_same
check "python3 -m venv inside, by exec" venv_inside
check "a C program compiled by exec" compiles
check "tar cf - . | tar xf - of /usr" tar_of_usr_is_the_same
check "cp -a and rm -r of /usr" cp_of_usr_is_the_same
check "sqlite3 in WAL mode, two writers" sqlite_is_the_same
check "all of it after commit, umount, mount, rm and restore" all_of_it_survives
finish_suite
