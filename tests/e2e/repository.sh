# shellcheck shell=bash
# Sourced by suites that build: a repository of small packages, an image that uses it, and a project.
PROJECT=$HOME/project
CHANGED=$TMPDIR/changed
REPO=$TMPDIR/repository
MANIFEST=$PROJECT/karapace.toml
LOCK=$PROJECT/karapace.lock

# package NAME VERSION [SLOW [SCRIPT]]: adds a package with a file, a log and a cache to the repository; installing it
# takes SLOW seconds, and runs SCRIPT.
package() {
    local dir=$TMPDIR/package
    rm -rf "$dir"
    mkdir -p "$dir/DEBIAN" "$dir/opt/$1"
    echo "$1 $2" >"$dir/opt/$1/version"
    printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: a package\n' \
        "$1" "$2" >"$dir/DEBIAN/control"
    cat >"$dir/DEBIAN/postinst" <<POSTINST
#!/bin/sh
set -e
mkdir -p /run/$1
touch /tmp/left /root/.bash_history
install -d -o 42 -g 42 -m 700 /var/lib/$1
touch /var/lib/$1/data
chown 42:42 /var/lib/$1/data
[ ! -x /usr/sbin/policy-rc.d ] || /usr/sbin/policy-rc.d && exit 1
sleep ${3:-0}
${4:-}
POSTINST
    chmod 755 "$dir/DEBIAN/postinst"
    dpkg-deb --root-owner-group -b "$dir" "$REPO/$1_$2.deb" >/dev/null
}
# index: writes the repository's lists of its packages.
index() (
    cd "$REPO" || exit 1
    for deb in *.deb; do
        dpkg-deb -f "$deb"
        printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$deb" "$(stat -c %s "$deb")" "$(sha256sum "$deb" | cut -d' ' -f1)"
    done >Packages
    printf 'Date: %s\nSHA256:\n %s %s Packages\n' "$(LC_ALL=C date -uR)" \
        "$(sha256sum Packages | cut -d' ' -f1)" "$(stat -c %s Packages)" >Release
)
# make_image: makes the base image: without this machine's package sources, and with all files of $CHANGED, owned by
# root; files of one inode are linked. /srv/device is a device.
make_image() {
    python3 - "$MINBASE_TAR" "$TMPDIR/rootfs.tar" "$CHANGED" <<'PYTHON'
import pathlib, re, sys, tarfile
source, target, changed = sys.argv[1:]
def root(entry):
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry
with tarfile.open(source) as old, tarfile.open(target, "w") as new:
    for entry in old:
        if not re.match(r"(\./)?etc/apt/sources\.list(\.d/.+)?$", entry.name):
            new.addfile(entry, old.extractfile(entry) if entry.isreg() else None)
    for path in sorted(pathlib.Path(changed).rglob("*")):
        if path.is_file():
            new.add(path, f"./{path.relative_to(changed)}", filter=root)
    device = tarfile.TarInfo("./srv/device")
    device.type, device.mode, device.devmajor, device.devminor = tarfile.CHRTYPE, 0o600, 1, 3
    new.addfile(device)
PYTHON
}
# manifest PACKAGE...: writes the project's manifest.
manifest() {
    local list=''
    [ $# -eq 0 ] || list=$(printf '"%s", ' "$@")
    cat >"$MANIFEST" <<TOML
manifest_version = 1
# Where it starts from.
[base]
image = "$TMPDIR/rootfs.tar" # as it was made
[system]
packages = [${list%, }]
TOML
}
build() { (cd "$PROJECT" && karapace "$@"); }
versions() { sed -n '/resolved_packages/,/^$/s/^\(name\|version\) = "\(.*\)"/\2/p' "$LOCK" | paste -sd' '; }
