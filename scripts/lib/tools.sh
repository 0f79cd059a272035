# shellcheck shell=bash
# Programs of other projects that have no Debian package, for tests and measurements: installed from crates.io under
# target/tools, in the version that the tests were written for. Sourced after common.sh.

# Where they are.
TOOLS=$TARGET/tools/bin

# tool_version NAME
tool_version() {
    case $1 in
    pjdfstest) echo 0.2.2 ;;
    fsx) echo 0.3.2 ;;
    fuse-overlayfs) echo 2.0.0 ;;
    b3sum) echo 1.8.7 ;;
    *) die "no version of $1 is chosen: add it to scripts/lib/tools.sh" ;;
    esac
}

# ensure_tool NAME: makes sure of $TOOLS/NAME.
ensure_tool() {
    local version
    version=$(tool_version "$1") || exit 1
    [[ "$("$TOOLS/$1" --version 2>/dev/null)" != *" $version" ]] || return 0
    say "installing $1 $version under $TARGET/tools: about a minute"
    cargo install --quiet --locked --force --root "$TARGET/tools" --target-dir "$TARGET/tools/build" --version "$version" "$1" >&2 ||
        die "cargo install $1 failed: see above; it needs the network once"
}
