# shellcheck shell=bash
# Installs what is missing from the machine's own package sources. Sourced after common.sh.

# What a user needs: to build, to mount, to make a root file system.
PACKAGES_USE="fuse3 mmdebstrap uidmap gcc libc6-dev"
# What the tests need in addition.
PACKAGES_TEST="attr acl rsync rpm fuse-overlayfs git libarchive-tools skopeo umoci sqlite3 python3 python3-venv make shellcheck e2fsprogs util-linux time procps openssl xz-utils zstd hostname stress-ng"
PACKAGES_TEST+=" btrfs-progs xfsprogs crun bsdutils zsh fish man-db desktop-file-utils systemd bindfs createrepo-c pacman-package-manager makepkg"

# What scripts/real needs in addition: databases, backup programs, watchers, caches, and tools to build other projects'
# tests.
PACKAGES_REAL="postgresql mariadb-server-core mariadb-client-core python3-lmdb lmdb-utils restic borgbackup fio watchman ccache"
PACKAGES_REAL+=" zlib1g-dev libacl1-dev libattr1-dev libcap2-bin tcl-dev perl patch distro-info-data"

# The package of Python's own tests, for the version of the distribution's Python, which runs on a mount.
package_of_python_tests() {
    /usr/bin/python3 -c 'import sys; print("libpython{}.{}-testsuite".format(*sys.version_info[:2]))'
}

# Installs those of the given packages that are missing; does not run apt if there are none.
install_packages() {
    command -v dpkg-query >/dev/null ||
        die "this script installs packages on Debian and Ubuntu; elsewhere install these by hand: $*"
    local missing=() package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing: ${missing[*]}"
    quiet_apt update
    quiet_apt install -y --no-install-recommends "${missing[@]}"
}

# apt-get that prints its output only if it fails.
quiet_apt() {
    local log
    log=$(mktemp)
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "apt-get $* failed"
    }
    rm -f "$log"
}

# The oldest Rust that builds the workspace, from Cargo.toml.
needed_rust() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml"; }

# Whether cargo is installed and new enough.
have_rust() {
    [ -d "$HOME/.cargo/bin" ] && PATH=$PATH:$HOME/.cargo/bin
    command -v cargo >/dev/null && command -v rustc >/dev/null || return 1
    local have
    have=$(rustc --version | cut -d' ' -f2) || return 1
    [ "$(printf '%s\n%s\n' "$(needed_rust)" "${have%%-*}" | sort -V | head -n1)" = "$(needed_rust)" ]
}

# Makes sure that Rust is new enough: installs it with the distribution's rustup if there is one, otherwise says
# what to do. The distribution's own rustc is older than what we need on Debian 12.
ensure_rust() {
    have_rust && return
    if ! command -v rustup >/dev/null && [ -n "$(apt-cache search --names-only '^rustup$' 2>/dev/null)" ]; then
        install_packages rustup
    fi
    if command -v rustup >/dev/null; then
        rustup toolchain install stable --profile default >&2 && rustup default stable >&2
    fi
    have_rust || die "Rust $(needed_rust) or newer is needed ($(rustc --version 2>/dev/null || echo 'none found')).
Install it with rustup as https://rustup.rs says, open a new shell, and run this again."
}

# Makes sure that /dev/fuse exists and that this user can open it.
ensure_fuse() {
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    [ -c /dev/fuse ] || die "/dev/fuse is missing: load the kernel module (modprobe fuse), or give the container the device"
    if ! { [ -r /dev/fuse ] && [ -w /dev/fuse ]; }; then
        say "/dev/fuse is not open to this user: setting its mode to 0666, the distribution's default"
        as_root chmod 0666 /dev/fuse
    fi
    # fusermount3 cannot unmount without this file, which a minimal root file system lacks.
    [ -e /etc/mtab ] || as_root ln -s ../proc/self/mounts /etc/mtab
}
