#!/usr/bin/env bash
# Manifests with packages by dnf, zypper and pacman, each for real, from repositories that are made here: versions in the lock
# file, --locked, --update, packages that fail or are missing, rebuild.
# runs as: root user
# files: MANAGERS
# seconds: 130
. "$(dirname "$0")/../checks.sh"
PROJECT=$HOME/project
REPO=$TMPDIR/repository
MANIFEST=$PROJECT/karapace.toml
LOCK=$PROJECT/karapace.lock

# The package manager under test, and the repository's directory of its packages.
MANAGER="" POOL=""

# program NAME VERSION DIRECTORY: the one file of a package, in a directory like the root.
program() {
    mkdir -p "$3/usr/bin"
    printf '#!/bin/sh\necho %s %s\n' "$1" "$2" >"$3/usr/bin/$1"
    chmod 755 "$3/usr/bin/$1"
}
# rpm_package NAME VERSION [SPEC-LINE...]: a package of a program. Its release is 1.fc9.
rpm_package() {
    local name=$1 version=$2 root=$TMPDIR/rpm-root
    shift 2
    rm -rf "$root"
    program "$name" "$version" "$root"
    {
        printf '%s\n' "Name: $name" "Version: $version" "Release: 1.fc9" "Summary: A package" "License: none" \
            "BuildArch: noarch" "$@" "%description" "A package." "%install" "cp -r $root/usr %{buildroot}" \
            "%files" "/usr/bin/$name"
    } >"$TMPDIR/package.spec"
    rpmbuild --quiet -bb --define "_topdir $TMPDIR/rpmbuild" --define "_rpmdir $REPO/rpm" --target noarch "$TMPDIR/package.spec"
}
# pacman_package NAME VERSION-RELEASE [LINE...]: the same for pacman; a line is one of .PKGINFO, or of .INSTALL where it is
# a function.
pacman_package() {
    local name=$1 version=$2 root=$TMPDIR/pacman-root line
    shift 2
    rm -rf "$root"
    # The version without epoch and release, as the program of the rpm says it.
    line=${version#*:}
    program "$name" "${line%-*}" "$root"
    printf '%s\n' "pkgname = $name" "pkgbase = $name" "pkgver = $version" "pkgdesc = A package" "url = none" \
        "builddate = 1600000000" "packager = nobody" "size = 100" "arch = any" >"$root/.PKGINFO"
    for line in "$@"; do
        case $line in
        *'()'*) echo "$line" >>"$root/.INSTALL" ;;
        *) echo "$line" >>"$root/.PKGINFO" ;;
        esac
    done
    (cd "$root" && shopt -s dotglob && bsdtar --uid 0 --gid 0 --zstd -cf "$REPO/pacman/$name-$version-any.pkg.tar.zst" -- *)
}
# index FILE...: the repository's lists; pacman's know of those FILEs alone, and of no other version of them.
index() {
    if [ "$MANAGER" = pacman ]; then
        (cd "$REPO/pacman" && repo-add -q here.db.tar.gz "$@")
    else
        createrepo_c -q --update "$REPO/rpm"
    fi
}
# The version NUMBER of greet as the manager says it, and its package in the repository.
version() { if [ "$MANAGER" = pacman ]; then echo "1:$1-1"; else echo "1:$1-1.fc9"; fi; }
common_version() { if [ "$MANAGER" = pacman ]; then echo 1.0-1; else echo 1.0-1.fc9; fi; }
package_file() { if [ "$MANAGER" = pacman ]; then echo "greet-1:$1-1-any.pkg.tar.zst"; else echo "noarch/greet-$1-1.fc9.noarch.rpm"; fi; }
# greet VERSION: makes it, and lets the lists have it.
greet() {
    if [ "$MANAGER" = pacman ]; then
        pacman_package greet "1:$1-1" 'depend = greet-common'
        index "greet-1:$1-1-any.pkg.tar.zst"
    else
        rpm_package greet "$1" 'Epoch: 1' 'Requires: greet-common'
        index
    fi
}

# make_image DISTRIBUTION: the base image, which says that it is of this one.
make_image() {
    python3 - "$MANAGERS_TAR" "$TMPDIR/$1.tar" "$1" "http://127.0.0.1:$(cat "$TMPDIR/port")" <<'PYTHON'
import io, re, sys, tarfile
source, target, distribution, address = sys.argv[1:]
repository = f"[here]\nname=here\nenabled=1\nautorefresh=1\nbaseurl={address}/rpm\ngpgcheck=0\n"
# One image has os-release in the second of its two places alone.
replaced = {"etc/os-release", "usr/lib/os-release", "etc/mtab"}
changed = {
    "usr/lib/os-release" if distribution == "arch" else "etc/os-release": f"NAME=Test\nID={distribution}\n",
    # Where these distributions have it; Debian's rpm uses the caller's home.
    "etc/rpm/macros": "%_dbpath /var/lib/rpm\n",
    "etc/yum.repos.d/local.repo": repository,
    "etc/zypp/repos.d/local.repo": repository,
    "etc/pacman.conf": "[options]\nHoldPkg = pacman glibc\nArchitecture = auto\nCheckSpace\nParallelDownloads = 5\nSigLevel = Never\n"
    f"[here]\nServer = {address}/pacman\n",
}
# Half of all there is.
unneeded = tuple(f"usr/share/{name}/" for name in ("doc", "info", "locale", "man", "perl", "zoneinfo")) + ("usr/lib/x86_64-linux-gnu/perl/",)
with tarfile.open(source) as old, tarfile.open(target, "w") as new:
    for entry in old:
        name = re.sub(r"^\./", "", entry.name)
        if name not in replaced | changed.keys() and not name.startswith(unneeded):
            new.addfile(entry, old.extractfile(entry) if entry.isreg() else None)
    for name, text in changed.items():
        entry = tarfile.TarInfo("./" + name)
        entry.size = len(text)
        new.addfile(entry, io.BytesIO(text.encode()))
    # As Arch has it: pacman looks there for the space that is left.
    entry = tarfile.TarInfo("./etc/mtab")
    entry.type, entry.linkname = tarfile.SYMTYPE, "../proc/self/mounts"
    new.addfile(entry)
PYTHON
}
# manifest PACKAGE...: the project's manifest.
manifest() {
    local list=''
    [ $# -eq 0 ] || list=$(printf '"%s", ' "$@")
    printf 'manifest_version = 1\n[base]\nimage = "%s"\n[system]\npackages = [%s]\n' "$IMAGE" "${list%, }" >"$MANIFEST"
}
build() { (cd "$PROJECT" && karapace "$@"); }
versions() { sed -n '/resolved_packages/,/^$/s/^\(name\|version\) = "\(.*\)"/\2/p' "$LOCK" | paste -sd' '; }
environments() { karapace --json list | json - 'sorted(e["name"] for e in d)'; }
# nothing_left NAME...: these environments, and nothing of a build.
nothing_left() {
    equal environments "$*" "$(environments | tr -d "[]',")"
    equal "directories of environments" $# "$(find "$STORE/env" -mindepth 1 -maxdepth 1 | wc -l)"
    equal intents "" "$(ls "$STORE/store/wal")"
    if grep karapace+build- /proc/self/mountinfo; then wrong "still mounted"; fi
}

server() {
    mkdir -p "$PROJECT" "$REPO/rpm" "$REPO/pacman"
    serve "$REPO"
}
repository() {
    rm -f "$LOCK"
    if [ "$MANAGER" = pacman ]; then
        pacman_package greet-common 1.0-1
        pacman_package broken 1.0-1 'post_install() { echo "broken sets itself up"; false; }'
        index greet-common-1.0-1-any.pkg.tar.zst broken-1.0-1-any.pkg.tar.zst
    elif [ ! -d "$REPO/rpm/noarch" ]; then
        # The interpreter of scripts is a dependency that nothing in the base provides.
        rpm_package greet-common 1.0 'Provides: /bin/sh'
        rpm_package zero 1.0 'Epoch: 0'
        rpm_package broken 1.0 '%post' 'echo "broken sets itself up"; exit 1'
        rpm_package unable 1.0 '%pre' 'echo "unable is unable"; exit 1'
    else
        rm -r "$REPO/rpm/noarch"/greet-[0-9]*
    fi
    greet 1.0
    make_image "$DISTRIBUTION"
}

installs_and_locks() {
    manifest greet
    build build --name dev
    equal versions "greet $(version 1.0)" "$(versions)"
    equal greeting "greet 1.0" "$(karapace exec dev -- greet)"
    equal "the dependency's" "greet-common 1.0" "$(karapace exec dev -- greet-common)"
    nothing_left dev
    karapace diff --base dev >"$TMPDIR/diff"
    has 'A /usr/bin/greet$' <"$TMPDIR/diff"
    sed -E '/ \/(usr\/bin|var\/lib\/(rpm|dnf|pacman))\//d; s/^/note: /' "$TMPDIR/diff"
    if grep -E ' /(tmp|run|root|var/cache|var/log)/?' "$TMPDIR/diff"; then wrong "left in the layer"; fi
}

keeps_the_locked_version() {
    karapace destroy -y dev
    greet 2.0
    cp "$LOCK" "$TMPDIR/lock"
    build build --locked --name dev
    cmp "$LOCK" "$TMPDIR/lock"
    equal greeting "greet 1.0" "$(karapace exec dev -- greet)"
    build build --update --name updated
    equal versions "greet $(version 2.0)" "$(versions)"
    equal greeting "greet 2.0" "$(karapace exec updated -- greet)"
    nothing_left dev updated
}
says_which_version_is_gone() {
    cp "$LOCK" "$TMPDIR/newer"
    cp "$TMPDIR/lock" "$LOCK"
    karapace destroy -y dev
    rm "$REPO/$POOL/$(package_file 1.0)"
    [ "$MANAGER" = pacman ] || index
    status_of 2 build build --locked --name gone 2>"$TMPDIR/said"
    cat "$TMPDIR/said"
    has "greet $(version 1.0) (available: $(version 2.0))" <"$TMPDIR/said"
    cmp "$LOCK" "$TMPDIR/lock"
    nothing_left updated
    build build --name dev 2>"$TMPDIR/said"
    has "note: versions in the lock file that are no longer available: greet $(version 1.0)" <"$TMPDIR/said"
    cmp "$LOCK" "$TMPDIR/newer"
    karapace destroy -y dev
}
# fails PACKAGE PATTERN: the build must fail with this reason, and leave the lock file and environments unchanged.
fails() {
    manifest greet "$1"
    cp "$LOCK" "$TMPDIR/lock"
    status_of 1 build build --name failed 2>"$TMPDIR/said"
    cat "$TMPDIR/said"
    has 'note: nothing was built; the log is ' <"$TMPDIR/said"
    sed -n '/^karapace: /,$p' "$TMPDIR/said" | has "$2"
    cmp "$LOCK" "$TMPDIR/lock"
    nothing_left updated
}
missing_fails() { fails nosuchpackage "nosuchpackage"; }
broken_is_told() {
    cp "$LOCK" "$TMPDIR/kept"
    manifest broken
    build build --name broken 2>"$TMPDIR/said"
    cat "$TMPDIR/said"
    has "note: a package's script failed, and $MANAGER continued: .*broken sets itself up" <"$TMPDIR/said"
    karapace destroy -y broken
    cp "$TMPDIR/kept" "$LOCK"
    [ "$MANAGER" = pacman ] || fails unable 'unable'
}
rebuilds() {
    karapace exec updated -- sh -c 'echo saved >/opt/saved'
    karapace commit updated --name saved
    greet 3.0
    manifest greet greet-common
    build rebuild --name updated
    equal versions "greet $(version 2.0) greet-common $(common_version)" "$(versions)"
    build rebuild --update
    equal versions "greet $(version 3.0) greet-common $(common_version)" "$(versions)"
    equal greeting "greet 3.0" "$(karapace exec updated -- greet)"
    karapace exec updated -- test ! -e /opt/saved
    karapace restore updated saved
    equal "greeting, of before" "greet 2.0" "$(karapace exec updated -- greet)"
    karapace restore updated latest
    nothing_left updated
    if [ "$MANAGER" = pacman ]; then
        karapace exec updated -- pacman -Qk greet
    else
        karapace exec updated -- rpm -V greet
    fi
}
# What rpm alone has: an epoch that is written and zero, and names with their architecture.
names_and_epochs_of_rpm() {
    manifest greet.noarch zero
    build build --name odd
    equal versions "greet.noarch $(version 3.0) zero 1.0-1.fc9" "$(versions)"
    karapace destroy -y odd
    cp "$LOCK" "$TMPDIR/lock"
    build build --locked --name odd
    cmp "$LOCK" "$TMPDIR/lock"
    equal greeting "greet 3.0" "$(karapace exec odd -- greet)"
    karapace destroy -y odd
}

need "a server of packages" server
for pair in dnf=fedora zypper=opensuse-leap pacman=arch; do
    MANAGER=${pair%=*} DISTRIBUTION=${pair#*=} IMAGE=$TMPDIR/${pair#*=}.tar POOL=rpm
    [ "$MANAGER" != pacman ] || POOL=pacman
    need "$MANAGER: a repository, and an image of $DISTRIBUTION" repository
    need "$MANAGER installs a package with its dependencies; its exact version is locked" installs_and_locks
    need "$MANAGER: the locked version is installed although a newer one exists; --update installs the newer one" keeps_the_locked_version
    check "$MANAGER: a version that is no longer available is named, and changes nothing" says_which_version_is_gone
    check "$MANAGER: a missing package fails and changes nothing" missing_fails
    check "$MANAGER: a package whose script fails is noted" broken_is_told
    check "$MANAGER: rebuild, and with --update" rebuilds
    [ "$MANAGER" = pacman ] || check "$MANAGER: names with an architecture, an epoch of zero" names_and_epochs_of_rpm
    [ "$(environments)" = '[]' ] || karapace destroy -y --snapshots updated
done
check "the store is intact" karapace verify-store
finish_suite
