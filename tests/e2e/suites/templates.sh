#!/usr/bin/env bash
# Builds from the machine's own package sources: what the templates of `karapace new` install, and packages with scripts and groups.
# runs as: root user
# files: MINBASE
# seconds: 150
. "$(dirname "$0")/../checks.sh"

# template NAME KEY: what the manifest of a template has.
template() {
    (cd "$TMPDIR" && karapace new x --template "$1" --force >/dev/null)
    python3 -c 'import sys, tomllib
d = tomllib.load(open(sys.argv[1], "rb"))
print(*eval(sys.argv[2]))' "$TMPDIR/karapace.toml" "$2"
}
templates() {
    mkdir "$HOME/started"
    cd "$HOME/started"
    refused karapace new started
    says 'minimal, dev, gui-dev, rust-dev, ubuntu-dev'
    [ ! -e karapace.toml ]
    printf 'nosuch\n3\n' | script -qec 'karapace new started' /dev/null >"$TMPDIR/said"
    has 'there is no "nosuch"' <"$TMPDIR/said"
    has '^apps = \["geany"\]' <karapace.toml
    refused karapace new started --template dev
    says 'karapace.toml'
    karapace new started --template dev --image "$MINBASE_TAR" --force
    karapace build --name started
    cp karapace.lock "$TMPDIR/started.lock"
    karapace exec started -- sh -euc 'cd /tmp; echo "int main(void) { return 7; }" >a.c; cc a.c; ./a.out || [ $? = 7 ]
        git --version; curl --version; ssh -V; less --version; test -e /workspace/karapace.lock'
    # What the others install there is too.
    local packages
    packages="$(template gui-dev 'd["system"]["packages"] + d["gui"]["apps"]') $(template rust-dev 'd["system"]["packages"]')"
    # shellcheck disable=SC2086 # words
    karapace exec started -- sh -euc 'apt-get -qq update; apt-get -qq -s install "$@"' sh $packages
    karapace new small --template minimal --image "$MINBASE_TAR" --force
    karapace build --name small
    equal "base of both" "$(inspect started 'd["base_layer"]')" "$(inspect small 'd["base_layer"]')"
    equal "what small stands on" "$(inspect small 'd["base_layer"]')" "$(inspect small 'd["head"]')"
}

# What scripts of packages did is in what the template installed.
debian_for_real() {
    local lock=$TMPDIR/started.lock name
    has 'name = "openssh-client"' <"$lock"
    karapace exec started -- dpkg --audit
    karapace exec started -- dpkg --verify
    equal "mode and group of ssh-agent" "2755 _ssh" "$(karapace exec started -- stat -c '%a %G' /usr/bin/ssh-agent)"
    for name in git openssh-client; do
        has "version = \"$(karapace exec started -- dpkg-query -W -f '${Version}' "$name")\"" <"$lock"
    done
    karapace diff --base started | has 'A /usr/bin/git'
}

is_whole() {
    karapace verify-store
    equal "environments of builds" 0 "$(karapace --json list | json - 'sum(e["name"].startswith("build-") for e in d)')"
}

need "templates are chosen on a terminal, and one is built completely" templates
check "git and openssh-client from the machine's own sources" debian_for_real
check "the store is intact" is_whole
finish_suite
