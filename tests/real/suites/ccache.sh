#!/usr/bin/env bash
# ccache with its cache and its work in the mount: the same objects as on ext4, hits after a commit, a remount and a restore
# runs as: root user
. "$(dirname "$0")/../common.sh"
environment ccache
FILES=120

setup() {
    make_environment
    on_both sources
}
sources() {
    mkdir "$1/src"
    local n
    for n in $(seq "$FILES"); do
        printf '#include <stdio.h>\n#include "common.h"\nint f%d(int x) { printf("%%d\\n", x); return COMMON * x + %d; }\n' "$n" "$n" >"$1/src/f$n.c"
    done
    echo '#define COMMON 3' >"$1/src/common.h"
    # ccache trusts no header that is newer than the compiler's start.
    touch -d '1 hour ago' "$1"/src/*
}
ccache_in() {
    local directory=$1
    shift
    (cd "$directory/src" && env CCACHE_DIR="$directory/cache" CCACHE_BASEDIR="$directory" CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=include_file_ctime,include_file_mtime \
        ${MODE:+"$MODE"} "$@")
}
compile() { ccache_in "$1" sh -c "seq $FILES | xargs -P 2 -I N ccache gcc -O1 -c fN.c -o fN.o"; }
# counted DIRECTORY NAME: of ccache's statistics since the last time.
counted() { ccache_in "$1" ccache --print-stats | awk -v name="$2" '$1 == name { print $2 }'; }
zeroed() { ccache_in "$1" ccache --zero-stats >/dev/null; }

# hits DIRECTORY NUMBER: compiled anew, so many come from the cache, and the objects are the same.
hits() {
    zeroed "$1"
    rm -f "$1"/src/*.o
    compile "$1"
    equal "hits in $1" "$2" $(($(counted "$1" direct_cache_hit) + $(counted "$1" preprocessed_cache_hit)))
    (cd "$1/src" && sha256sum ./*.o) >"$TMPDIR/objects.${1##*/}$3"
}
the_same() {
    MODE=$1
    local directory
    rm -rf "$EXT4/cache" "$WORK/cache"
    for directory in "$EXT4" "$WORK"; do
        hits "$directory" 0 .first
        hits "$directory" "$FILES" .second
        cmp "$TMPDIR/objects.work.first" "$TMPDIR/objects.work.second"
        mv "$TMPDIR/objects.work.second" "$TMPDIR/objects.$([ "$directory" = "$EXT4" ] && echo ext4 || echo mount)"
    done
    cmp "$TMPDIR/objects.ext4" "$TMPDIR/objects.mount"
}
after_a_remount() {
    commit "$ENV" >"$TMPDIR/hash"
    hits "$WORK" "$FILES" .third
    remounted
    hits "$WORK" "$FILES" .third
    with_commits "$MOUNTS/$ENV" hits "$WORK" "$FILES" .third
    cmp "$TMPDIR/objects.ext4" "$TMPDIR/objects.work.third"
}
restored() {
    rm -f "$WORK"/src/*.o
    ctl "$ENV" "commit name=then"
    echo '#define COMMON 5' >"$WORK/src/common.h"
    touch -d '1 hour ago' "$WORK/src/common.h"
    hits "$WORK" 0 .fourth
    cmp -s "$TMPDIR/objects.ext4" "$TMPDIR/objects.work.fourth" && wrong "the header was not read"
    ctl "$ENV" "restore then"
    hits "$WORK" "$FILES" .fifth
    cmp "$TMPDIR/objects.ext4" "$TMPDIR/objects.work.fifth"
    ccache_in "$WORK" ccache --cleanup
    ccache_in "$WORK" ccache --clear
    zeroed "$WORK"
}

need "an environment, and $FILES sources" setup
check "by copies: the same objects, all hits the second time" the_same ""
check "by hard links" the_same CCACHE_HARDLINK=1
check "by clones, or copies where there are none" the_same CCACHE_FILECLONE=1
check "hits after a commit, a remount, and with commits beside it" after_a_remount
check "a restore in the middle" restored
check "umount and verify-store" is_whole
finish_suite
