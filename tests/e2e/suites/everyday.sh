#!/usr/bin/env bash
# The life of an environment as docs/GUIDE.md tells it: from a manifest with packages to its end, by name and by prefix.
# runs as: root user
# files: MINBASE
# seconds: 40
. "$(dirname "$0")/../checks.sh"
PROJECT=$HOME/project

# shell LINE...: types these lines into `karapace enter dev` on a terminal; the status is the shell's.
shell() {
    printf '%s\n' "$@" >"$TMPDIR/typed"
    script -qec "karapace enter dev" /dev/null <"$TMPDIR/typed" >"$TMPDIR/shown"
}

manifest() {
    mkdir -p "$PROJECT"
    cd "$PROJECT"
    karapace new dev --image "$MINBASE_TAR"
    printf '\n[system]\npackages = ["git", "openssh-client"]\n' >>karapace.toml
}

build() {
    cd "$PROJECT"
    karapace build --name dev
    grep -A1 'name = "openssh-client"' karapace.lock | has '^version = "1:'
    equal "env_id of the lock" "$(inspect dev 'd["env_id"]')" "$(sed -n 's/^env_id = "\(.*\)"/\1/p' karapace.lock)"
    equal state Built "$(inspect dev 'd["state"]')"
    inspect dev 'd["env_id"]' >"$TMPDIR/env_id"
}

built_again_it_is_the_same() {
    cd "$PROJECT"
    equal env_id "$(cat "$TMPDIR/env_id")" "$(karapace build --name dev)"
    equal environments 1 "$(karapace -q list | wc -l)"
}

enter() {
    status_of 7 shell 'git --version' 'tty' 'stat -c "%a %G" /usr/bin/ssh-agent' 'exit 7'
    grep -q 'git version' "$TMPDIR/shown"
    grep -q '/dev/' "$TMPDIR/shown"
    grep -q '2755 _ssh' "$TMPDIR/shown"
}

exec_() {
    karapace exec dev -- sh -euc 'mkdir /srv/site; cd /srv/site; git init -q; echo "<h1>Hello</h1>" >index.html; git add -A
        git -c user.name=a -c user.email=a@localhost commit -qm first; ssh-keygen -q -t ed25519 -N "" -f /root/key'
    equal piped "$(printf 'a\0b\n' | sha256sum)" "$(printf 'a\0b\n' | karapace exec dev -- cat | sha256sum)"
    equal page '<h1>Hello</h1>' "$(karapace exec -w /srv/site dev -- git show HEAD:index.html)"
}

commit_and_restore() {
    karapace commit dev --name good >"$TMPDIR/good"
    karapace exec dev -- sh -euc 'rm -r /srv/site /usr/share/doc; echo broken >/etc/hostname; apt-get -qq purge -y git'
    refused karapace exec dev -- test -e /usr/bin/git
    karapace restore dev good
    equal page '<h1>Hello</h1>' "$(karapace exec -w /srv/site dev -- git show HEAD:index.html)"
    equal diff "" "$(karapace diff dev)"
    # What was purged was committed first.
    karapace restore dev latest
    refused karapace exec dev -- test -e /usr/bin/git
    local prefix
    prefix=$(cut -c1-8 "$TMPDIR/good")
    karapace restore "$(cut -c1-6 "$TMPDIR/env_id")" "$prefix"
    karapace exec dev -- git --version
}

mounted_it_is_a_directory() {
    karapace mount dev
    equal page '<h1>Hello</h1>' "$(cat "$MOUNTS/dev/srv/site/index.html")"
    echo '<h1>Again</h1>' >"$MOUNTS/dev/srv/site/index.html"
    equal page '<h1>Again</h1>' "$(karapace exec dev -- cat /srv/site/index.html)"
    ctl dev 'commit name=again'
    karapace umount dev
    equal snapshots "good again" "$(karapace --json snapshots dev | json - '" ".join(s["name"] for s in d if s["name"])')"
}

two_from_one_manifest() {
    cd "$PROJECT"
    equal env_id "$(cat "$TMPDIR/env_id")" "$(karapace build --name other)"
    karapace exec other -- git --version
    refused karapace exec other -- test -e /srv/site
    # One env_id, two environments: a prefix of it names both.
    refused karapace inspect "$(cut -c1-6 "$TMPDIR/env_id")"
    says 'dev' && says 'other'
    karapace destroy -y other
}

frozen() {
    karapace rename dev work
    karapace freeze work
    equal state Frozen "$(inspect work 'd["state"]')"
    refused karapace commit work
    says 'frozen'
    refused karapace exec work -- sh -c 'echo x >/etc/hostname'
    says 'read-only'
    karapace exec work -- git --version
}

archived() {
    karapace archive "$(cut -c1-4 "$TMPDIR/env_id")"
    equal state Archived "$(inspect work 'd["state"]')"
    local status=0
    karapace exec work -- true 2>"$TMPDIR/refused" || status=$?
    equal status 125 "$status"
    says 'archived'
    karapace gc
    karapace verify-store
    karapace export work -o "$TMPDIR/work.tar"
    has -xE '(\./)?srv/site/index.html' <(tar tf "$TMPDIR/work.tar")
}

destroyed() {
    refused karapace destroy -y work
    says 'again'
    karapace destroy -y --snapshots "$(cut -c1-12 "$TMPDIR/env_id")"
    equal environments "" "$(karapace -q list)"
    karapace gc
    equal objects 0 "$(objects)"
    equal "what is left" "" "$(find "$STORE/env" "$STORE/store/layers" "$STORE/store/metadata" -mindepth 1)"
}

need "new, and two packages in the manifest" manifest
need "build" build
check "building again returns the same environment" built_again_it_is_the_same
check "enter, on a terminal" enter
check "exec" exec_
check "commit; restore by name, latest and prefix" commit_and_restore
check "the mount is an ordinary directory" mounted_it_is_a_directory
check "a second one from the same manifest" two_from_one_manifest
check "rename and freeze" frozen
check "archive" archived
check "destroy" destroyed
finish_suite
