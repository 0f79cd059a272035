# shellcheck shell=bash
# Packages and sources of the machine's own distribution, as files, for the tests that install and build them. Kept
# under target/. Sourced after common.sh and rootfs.sh, whose apt sources they come from.

# kept NAME COMMAND...: runs the command once, in an empty directory, and keeps the result as
# target/NAME; prints that path.
kept() {
    local directory=$TARGET/$1 log
    shift
    if [ ! -d "$directory" ]; then
        say "fetching $directory"
        rm -rf "$directory.part"
        mkdir -p "$directory.part"
        log=$(mktemp)
        # apt warns because its own user cannot write there.
        (cd "$directory.part" && "$@") >"$log" 2>&1 || {
            tail -n 20 "$log" >&2
            rm -f "$log"
            die "could not fetch $directory: check /etc/apt, then run this again"
        }
        rm -f "$log"
        mv "$directory.part" "$directory"
    fi
    printf '%s\n' "$directory"
}

# newest_first COMMAND...: the lines of its output, each once, by version, the newest first.
newest_first() { "$@" | sort -rVu; }

# one_of VERSIONS COMMAND... NAME: runs COMMAND NAME=VERSION for each version in turn, until one succeeds. apt's lists may name
# files that the pool no longer has, or not yet.
one_of() {
    local versions=$1 name=${!#} version
    shift
    for version in $versions; do
        "${@:1:$#-1}" "$name=$version" && return
    done
    echo "no version of $name that apt knows of could be fetched: ${versions:-there is none}"
    return 1
}

versions_of_deb() { apt-cache madison "$1" | cut -d '|' -f2 | tr -d ' '; }

download_debs() {
    local name
    as_root apt-get -qq update || return
    for name in "$@"; do
        one_of "$(newest_first versions_of_deb "$name")" apt-get -qq download "$name" || return
    done
}

# download_source NAME. Only this fetches apt's lists of source packages, so that the machine itself needs
# none.
download_source() {
    distribution_sources | sed 's/^deb /deb-src /' >sources.list
    [ -s sources.list ] || die "apt knows no Debian or Ubuntu repository: check /etc/apt and run apt-get update"
    mkdir -p lists/partial
    local here=(-o "Dir::Etc::SourceList=$PWD/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$PWD/lists")
    as_root apt-get -qq "${here[@]}" update || return
    versions_of_source() { apt-cache "${here[@]}" showsrc --only-source "$1" | sed -n 's/^Version: //p'; }
    one_of "$(newest_first versions_of_source "$1")" apt-get -qq "${here[@]}" source --download-only "$1" &&
        rm -rf lists sources.list
}

# Packages that install into an unchanged minbase: with conffiles (netbase), with alternatives (less, cpio), plain
# (hello), and one that is already installed and has hard links (perl-base).
packages_debs() { kept packages/debs download_debs hello less cpio netbase perl-base; }

# The source of a package whose own tests work on files: patch (configure, gnulib and 44 tests), git.
packages_source() { kept "packages/$1" download_source "$1"; }

# pnpm from the npm registry; Debian has no package of it.
packages_pnpm() { kept packages/pnpm npm pack --silent pnpm@9.15.9; }

# Lines for apt of two releases of Debian or Ubuntu that follow each other (old.list, new.list), and the settings with which the
# machine reaches them (apt.conf): of its own release and the next, or of the one before and its own.
apt_releases() { kept packages/releases write_releases; }
write_releases() {
    local series names own other
    own=$(distribution_sources | sed -nE 's/^deb [^ ]+ ([a-z]+) .*/\1/p' | sort -u | head -n 1)
    series=$(grep -l ",$own," /usr/share/distro-info/{debian,ubuntu}.csv | head -n 1)
    # The published releases, in order.
    names=$(awk -F, -v now="$(date +%F)" 'NR > 1 && $5 != "" && $5 <= now { print $3 }' "$series")
    apt_settings >apt.conf
    other=$(sed -n "/^$own\$/{n;p}" <<<"$names")
    if [ -n "$other" ] && release_of "$own" "$other" >new.list && reaches new.list; then
        distribution_sources >old.list
        return
    fi
    other=$(sed -n "/^$own\$/{x;p;d};x" <<<"$names" | head -n 1)
    distribution_sources >new.list
    [ -n "$other" ] && release_of "$own" "$other" >old.list && reaches old.list
}
release_of() { distribution_sources | sed "s/ $1\([ -]\)/ $2\1/"; }
# reaches LIST: apt can read it.
reaches() {
    mkdir -p lists/partial
    as_root apt-get -qq -o "Dir::Etc::SourceList=$PWD/$1" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$PWD/lists" update
    local status=$?
    rm -rf lists
    return "$status"
}
