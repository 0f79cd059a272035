#!/usr/bin/env bash
# Manifests with packages: real apt, the lock file, sharing, what a failed or killed build leaves, rebuild, pin.
# runs as: root user
# files: MINBASE
# seconds: 90
. "$(dirname "$0")/../checks.sh"
. "$(dirname "$0")/../repository.sh"
environments() { karapace --json list | json - 'sorted(e["name"] for e in d)'; }
content_of() { karapace exec "$1" -- cat "$2"; }

setup() {
    mkdir -p "$PROJECT" "$CHANGED/etc/apt" "$REPO"
    package tiny 1.0
    package extra 1.0
    index
    serve "$REPO"
    echo "deb [trusted=yes] http://127.0.0.1:$(cat "$TMPDIR/port") ./" >"$CHANGED/etc/apt/sources.list"
    make_image
    manifest
    build build --name plain
}

installs_and_locks() {
    manifest tiny
    build build --name dev >"$TMPDIR/env_id"
    equal versions "tiny 1.0" "$(versions)"
    equal env_id "$(cat "$TMPDIR/env_id")" "$(inspect dev 'd["env_id"]')"
    equal "env_id in the lock" "$(cat "$TMPDIR/env_id")" "$(sed -n 's/^env_id = "\(.*\)"/\1/p' "$LOCK")"
    equal content "tiny 1.0" "$(content_of dev /opt/tiny/version)"
    equal state Built "$(inspect dev 'd["state"]')"
    equal environments "['dev', 'plain']" "$(environments)"
    [ ! -e "$STORE/logs" ] || equal "logs of a build that succeeded" "" "$(ls "$STORE/logs")"
}
is_one_layer_on_the_base() {
    equal base "$(inspect plain 'd["base_layer"]')" "$(inspect dev 'd["base_layer"]')"
    [ "$(inspect dev 'd["head"]')" != "$(inspect dev 'd["base_layer"]')" ]
    karapace diff --base dev >"$TMPDIR/diff"
    has 'A /opt/tiny/version' <"$TMPDIR/diff"
    # Caches, lists, logs, histories and files that only the build needs are not part of the layer.
    if grep -E ' (/var/cache/apt|/var/lib/apt/lists|/var/log|/tmp|/run|/root|/etc/resolv.conf|/usr/sbin/policy-rc.d)' \
        "$TMPDIR/diff"; then wrong "left in the layer"; fi
    grep -E ' /(var|etc)' "$TMPDIR/diff" | sed 's/^/note: /'
    karapace exec dev -- sh -c 'echo mine >/opt/mine'
    karapace commit dev
    karapace restore dev '~1'
    equal "after going back to the packages" "tiny 1.0" "$(content_of dev /opt/tiny/version)"
    karapace exec dev -- test ! -e /opt/mine
    refused karapace snapshots rm dev '~0'
    says 'based on it'
    karapace restore dev latest
}
exists_already() {
    sigstop "$(pgrep -f "$REPO $TMPDIR/port")"
    equal env_id "$(cat "$TMPDIR/env_id")" "$(timeout 60 karapace --store "$STORE" build "$MANIFEST")"
    equal "locked, under another name" "$(cat "$TMPDIR/env_id")" \
        "$(timeout 60 karapace build "$MANIFEST" --locked --offline --name second)"
    equal content "tiny 1.0" "$(content_of second /opt/tiny/version)"
    karapace destroy -y second
}
shares_the_base() {
    local before after
    before=$(store_bytes)
    manifest tiny extra
    build build --name more
    after=$(store_bytes)
    equal versions "extra 1.0 tiny 1.0" "$(versions)"
    equal base "$(inspect plain 'd["base_layer"]')" "$(inspect more 'd["base_layer"]')"
    echo "note: one package more takes $(((after - before) / 1024)) KiB"
    below bytes 8000000 $((after - before))
}
same_identity_elsewhere() {
    cp "$LOCK" "$TMPDIR/lock"
    equal env_id "$(inspect more 'd["env_id"]')" "$(build --store "$TMPDIR/store" build --locked --name there)"
    cmp "$LOCK" "$TMPDIR/lock"
}
keeps_the_locked_version() {
    package tiny 2.0
    index
    # Another identity, so that there is something to build; the version is still the locked one.
    sed -i '/^\[system\]/i [hardware]\ngpu = true' "$MANIFEST"
    build --store "$TMPDIR/store" build --name kept
    equal versions "extra 1.0 tiny 1.0" "$(versions)"
    build build --name updated --update
    equal versions "extra 1.0 tiny 2.0" "$(versions)"
    equal content "tiny 2.0" "$(content_of updated /opt/tiny/version)"
    equal "the old one" "tiny 1.0" "$(content_of more /opt/tiny/version)"
}
says_which_version_is_gone() {
    cp "$TMPDIR/lock" "$LOCK"
    manifest tiny extra
    rm "$REPO/tiny_1.0.deb"
    index
    status_of 2 build --store "$TMPDIR/store2" build --locked --name gone 2>"$TMPDIR/said"
    cat "$TMPDIR/said"
    has 'tiny 1.0 (available: 2.0)' <"$TMPDIR/said"
    cmp "$LOCK" "$TMPDIR/lock"
    build --store "$TMPDIR/store2" build --name gone 2>"$TMPDIR/said"
    has 'note: versions in the lock file that are no longer available: tiny 1.0' <"$TMPDIR/said"
    equal versions "extra 1.0 tiny 2.0" "$(versions)"
    rm -rf "$TMPDIR/store" "$TMPDIR/store2"
}
# A version that the base has but no list any more is installed already, so it can be locked.
what_the_base_has_is_locked() {
    cp "$LOCK" "$TMPDIR/other"
    manifest bash tiny
    build build --name base
    has 'name = "bash"' <"$LOCK"
    cp "$LOCK" "$TMPDIR/lock"
    karapace destroy -y base
    build build --locked --name base
    cmp "$LOCK" "$TMPDIR/lock"
    karapace destroy -y base
    cp "$TMPDIR/other" "$LOCK"
}
offline_needs_what_is_there() {
    manifest tiny extra nowhere
    refused build build --offline --name offline
    says 'without --offline'
    # The name of another environment is refused before anything is installed.
    refused build build --name dev
    says 'karapace rebuild .*--name dev'
    [ ! -e "$STORE/logs" ] || equal "logs of a build" "" "$(ls "$STORE/logs")"
    equal lock "extra 1.0 tiny 2.0" "$(versions)"
}

# nothing_left: no environment, no mount, no process of a build.
nothing_left() {
    equal environments "['dev', 'more', 'plain', 'updated']" "$(environments)"
    equal "directories of environments" 4 "$(find "$STORE/env" -mindepth 1 -maxdepth 1 | wc -l)"
    equal intents "" "$(ls "$STORE/store/wal")"
    no_build_is_mounted
    no_build_runs
}
no_build_is_mounted() { ! grep karapace+build- /proc/self/mountinfo; }
no_build_runs() { ! pgrep -f 'apt-get.*install'; }
failure_leaves_its_log() {
    cp "$LOCK" "$TMPDIR/lock"
    manifest tiny nosuchpackage
    status_of 1 build build --name failed 2>"$TMPDIR/said"
    cat "$TMPDIR/said"
    has 'Unable to locate package nosuchpackage' <"$TMPDIR/said"
    local log
    log=$(sed -n 's/^note: nothing was built; the log is //p' "$TMPDIR/said")
    has 'Unable to locate package nosuchpackage' <"$log"
    cmp "$LOCK" "$TMPDIR/lock"
    nothing_left
}
# slow_build: starts a build that takes long halfway through; its process is $!.
slow_build() {
    rm -rf "$STORE/logs"
    cd "$PROJECT"
    karapace build --name slow >"$TMPDIR/said" 2>&1 &
    until_true bash -c 'cat "$1"/build-*.log | grep -q "Setting up slow"' - "$STORE/logs"
}
interruption_leaves_its_log() {
    package slow 1.0 300
    index
    manifest slow
    local environment found
    no_proxy=localhost,127.0.0.1,password slow_build
    # Proxy variables reach the package manager, but appear in no command line.
    environment=/proc/$(pgrep -f 'apt-get.*install' | tail -n1)/environ
    tr '\0' '\n' <"$environment" | has -x 'no_proxy=localhost,127.0.0.1,password'
    found=$(pgrep -f '[l]ocalhost,127.0.0.1,password' || true)
    equal "processes whose command line has it" "" "$found"
    equal "environments meanwhile" 5 "$(karapace --json list | json - 'len(d)')"
    local build=$!
    kill -INT "$build"
    status_of 130 wait "$build"
    has 'the log is' <"$TMPDIR/said"
    nothing_left
}
kill_is_undone() {
    manifest slow
    slow_build
    local build=$!
    kill -9 "$build"
    wait "$build" || true
    karapace list
    # What was killed may take a moment to die.
    until_true no_build_is_mounted
    until_true no_build_runs
    nothing_left
    karapace verify-store
    ls "$STORE"/logs/build-*.log
}

rebuild_keeps_snapshots() {
    cp "$TMPDIR/lock" "$LOCK"
    karapace exec dev -- sh -c 'echo saved >/opt/saved'
    karapace commit dev --name saved
    karapace exec dev -- sh -c 'echo unsaved >/opt/unsaved'
    local before
    before=$(karapace --json snapshots dev | json - 'len(d)')
    manifest tiny extra
    build rebuild --name dev 2>"$TMPDIR/said"
    cat "$TMPDIR/said"
    has 'note: uncommitted changes are in snapshot' <"$TMPDIR/said"
    equal snapshots $((before + 1)) "$(karapace --json snapshots dev | json - 'len(d)')"
    equal content "extra 1.0" "$(content_of dev /opt/extra/version)"
    karapace exec dev -- test ! -e /opt/saved -a ! -e /opt/unsaved
    karapace gc
    karapace verify-store
    karapace restore dev saved
    equal saved saved "$(content_of dev /opt/saved)"
    karapace restore dev latest
    equal unsaved unsaved "$(content_of dev /opt/unsaved)"
    karapace export dev --format oci -o "$TMPDIR/oci"
    equal environments "['dev', 'more', 'plain', 'updated']" "$(environments)"
}
rebuild_is_refused() {
    karapace mount dev
    refused build rebuild --name dev
    says 'is mounted'
    karapace umount dev
    karapace freeze updated
    refused build rebuild --name updated
    says 'Frozen cannot be rebuilt'
    manifest tiny nosuchpackage
    refused build rebuild --name dev
    equal "what stood" saved "$(content_of dev /opt/saved)"
}

pins() {
    manifest tiny extra
    status_of 1 build pin --check
    status_of 2 build build --require-pinned-image --name pinned
    cp "$MANIFEST" "$TMPDIR/manifest"
    build pin --write-lock
    build pin --check
    has '# Where it starts from.' <"$MANIFEST"
    equal "lines changed" 1 "$(diff "$TMPDIR/manifest" "$MANIFEST" | grep -c '^>')"
    has "image = \".*/rootfs.tar#content=$(inspect plain 'd["base_layer"]')\" # as it was made" <"$MANIFEST"
    build build --require-pinned-image --locked --name pinned
    echo changed >"$CHANGED/etc/changed"
    make_image
    status_of 2 build build --name pinned 2>"$TMPDIR/said"
    has 'the manifest pins' <"$TMPDIR/said"
}

# without_ids COMMAND...: as a user for whom /etc/subuid has no line.
without_ids() {
    : >"$TMPDIR/nobody"
    # shellcheck disable=SC2016 # for the inner shell
    unshare --user --map-root-user --mount bash -euc 'mount --bind "$0" /etc/subuid
        exec unshare --user --map-user="$1" --map-group="$1" -- "${@:2}"' "$TMPDIR/nobody" "$(id -u)" "$@"
}
without_a_range_it_is_refused() {
    [ "$ACTOR" = user ] || return 0
    cp "$LOCK" "$TMPDIR/lock"
    manifest tiny extra slow
    refused without_ids karapace build "$MANIFEST" --name refused
    says 'only one id is available: tester has no range of ids in /etc/subuid; as root, run `usermod --add-subuids .* tester`'
    cmp "$LOCK" "$TMPDIR/lock"
    nothing_left
}

is_whole() {
    karapace verify-store
    nothing_left_but_logs=$(karapace --json list | json - 'sum(e["name"].startswith("build-") for e in d)')
    equal "environments of builds" 0 "$nothing_left_but_logs"
}

need "a Debian with a local package repository, built without packages" setup
need "a package is installed, and its exact version locked" installs_and_locks
check "packages are one layer between the base and the snapshots" is_one_layer_on_the_base
check "an existing environment is returned or shared, without running a package manager" exists_already
check "with one package more the base is shared" shares_the_base
check "--locked in another store gives the same env_id" same_identity_elsewhere
check "a build keeps the lock's versions, --update takes the newest" keeps_the_locked_version
check "a version that is no longer available is named" says_which_version_is_gone
check "--locked accepts a version that only the base has" what_the_base_has_is_locked
check "--offline installs nothing" offline_needs_what_is_there
check "a failed build leaves nothing but its log" failure_leaves_its_log
check "an interrupted build leaves nothing but its log" interruption_leaves_its_log
check "a build killed by kill -9 is undone by the next command" kill_is_undone
check "rebuild keeps name and snapshots, and commits uncommitted changes" rebuild_keeps_snapshots
check "rebuild is refused while mounted or frozen; a failed one changes nothing" rebuild_is_refused
check "a user without a range of ids is refused, before anything is built" without_a_range_it_is_refused
check "pin keeps the rest of the manifest, and holds the content" pins
check "the store is intact" is_whole
finish_suite
