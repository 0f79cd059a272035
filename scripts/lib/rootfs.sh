# shellcheck shell=bash
# Root file systems made by mmdebstrap from the machine's own apt sources, kept under target/rootfs. Sourced after
# common.sh.

# The distribution's repositories as apt has them configured, one line each; other vendors' are left out.
distribution_sources() {
    apt-get indextargets --format "\$(ORIGIN)|deb \$(REPO_URI) \$(RELEASE) \$(COMPONENT)" 'Identifier: Packages' |
        sed -nE 's/^(Debian|Ubuntu)\|//p' | sort -u
}

# apt's settings for reaching a mirror (proxies, tolerance for wrong clocks).
apt_settings() {
    apt-config dump Acquire --format '%F "%v";%n' | grep -E '^Acquire::(https?::|Check-|Retries)' || true
}

# rootfs NAME [PACKAGES]: makes target/rootfs/NAME.tar unless it is there, and prints its path.
rootfs() {
    local name=$1 packages=${2:-} directory=$TARGET/rootfs
    local tar=$directory/$name.tar
    if [ ! -s "$tar" ]; then
        say "making $tar with mmdebstrap: about a minute"
        mkdir -p "$directory"
        [ -n "$(distribution_sources)" ] || as_root apt-get -qq update >&2
        local sources
        sources=$(distribution_sources)
        [ -n "$sources" ] || die "apt knows no Debian or Ubuntu repository: check /etc/apt and run apt-get update"
        apt_settings >"$directory/$name.apt.conf"
        mmdebstrap --quiet --format=tar --variant=minbase --aptopt="$directory/$name.apt.conf" \
            ${packages:+--include="$packages"} '' "$tar.part" - <<<"$sources" >&2 ||
            die "mmdebstrap could not make $tar"
        mv "$tar.part" "$tar"
    fi
    printf '%s\n' "$tar"
}

# The smallest Debian: some 8,700 entries, 170 MB.
rootfs_minbase() { rootfs debian-minbase; }

# With the programs that the tests run inside: some 15,000 entries, 490 MB.
rootfs_dev() {
    rootfs debian-dev git,python3-venv,gcc,libc6-dev,make,sqlite3,attr,acl,ca-certificates
}

# With package managers of other distributions beside apt: some 13,000 entries, 360 MB.
rootfs_managers() { rootfs debian-managers dnf,zypper,rpm,pacman-package-manager; }
