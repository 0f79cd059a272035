#!/usr/bin/env bash
# What environments share, what a commit adds, and that import takes each form of a root file system.
# runs as: root user
# files: MINBASE
. "$(dirname "$0")/../checks.sh"

first_import() {
    karapace import "$MINBASE_TAR" --name one
    objects >"$TMPDIR/objects"
    store_bytes >"$TMPDIR/bytes"
}

second_import_adds_nothing() {
    karapace import "$MINBASE_TAR" --name two
    equal objects "$(cat "$TMPDIR/objects")" "$(objects)"
    # Metadata and an empty upper may; 256 KiB is far below a thousandth of the base.
    below "bytes for the second environment" 262144 $(($(store_bytes) - $(cat "$TMPDIR/bytes")))
    equal env_id "$(inspect one 'd["env_id"]')" "$(inspect two 'd["env_id"]')"
    equal base "$(inspect one 'd["base_layer"]')" "$(inspect two 'd["base_layer"]')"
}

they_are_apart() {
    karapace mount one
    karapace mount two
    echo one >"$MOUNTS/one/etc/hostname"
    if grep -qx one "$MOUNTS/two/etc/hostname"; then wrong "one environment's write is seen in the other"; fi
    commit one >/dev/null
    equal diff "" "$(cat "$MOUNTS/two/.karapace/diff")"
    karapace umount one
    karapace umount two
    equal both "one two" "$(karapace --json list | json - '" ".join(sorted(e["name"] for e in (d if isinstance(d, list) else d["environments"])))')"
}

small_commit_adds_little() {
    karapace mount one
    local before
    before=$(store_bytes)
    echo small >"$MOUNTS/one/etc/small"
    commit one >/dev/null
    below "bytes for a commit of six" 1048576 $(($(store_bytes) - before))
    karapace umount one
}

destroying_one_keeps_the_other() {
    karapace destroy -y one
    karapace gc
    karapace verify-store
    equal objects "$(cat "$TMPDIR/objects")" "$(objects)"
    karapace mount two
    grep -q '^ID=' "$MOUNTS/two/etc/os-release"
    karapace umount two
}

# The same tree in each form gives the same base.
forms() {
    fixture "$PLAIN/fixture"
    fixture_tar "$PLAIN/fixture" "$TMPDIR/f.tar"
    gzip -k "$TMPDIR/f.tar"
    xz -k -0 "$TMPDIR/f.tar"
    # Told apart by content, not by name.
    cp "$TMPDIR/f.tar.xz" "$TMPDIR/misnamed.tar"
    local form base
    karapace import "$TMPDIR/f.tar" --name form
    base=$(inspect form 'd["base_layer"]')
    for form in f.tar.gz f.tar.xz misnamed.tar; do
        karapace import "$TMPDIR/$form" --name "form-${form//./-}"
        equal "$form" "$base" "$(inspect "form-${form//./-}" 'd["base_layer"]')"
    done
    zstd -q "$TMPDIR/f.tar"
    karapace import "$TMPDIR/f.tar.zst" --name form-zst
    equal zst "$base" "$(inspect form-zst 'd["base_layer"]')"
}

directory() {
    karapace import "$PLAIN/fixture" --name directory
    karapace mount directory
    tree "$MOUNTS/directory" times >"$TMPDIR/a"
    tree "$PLAIN/fixture" times >"$TMPDIR/b"
    # A user's own files are stored under the user's id.
    sed -i "s/ $(id -u) $(id -g) / $(shown_id "$(id -u)") $(shown_id "$(id -g)") /" "$TMPDIR/b"
    diff "$TMPDIR/a" "$TMPDIR/b"
    karapace umount directory
    if [ "$ACTOR" = root ]; then
        equal base "$(inspect form 'd["base_layer"]')" "$(inspect directory 'd["base_layer"]')"
    fi
}

builds_from_a_manifest() {
    mkdir -p "$HOME/project"
    cd "$HOME/project" || return
    printf 'manifest_version = 1\n[base]\nimage = "file://%s"\n' "$TMPDIR/f.tar" >karapace.toml
    karapace build karapace.toml --name built
    equal base "$(inspect form 'd["base_layer"]')" "$(inspect built 'd["base_layer"]')"
    grep -q "$(inspect built 'd["env_id"]')" karapace.lock
    # Again: the same environment, unchanged.
    karapace build karapace.toml --name built
    printf 'manifest_version = 1\n[base]\nimage = "x"\ncolour = 1\n' >wrong.toml
    status_of 2 karapace build wrong.toml --name wrong 2>"$TMPDIR/message"
    grep -q colour "$TMPDIR/message"
    refused karapace inspect wrong
}

bad_archives_are_refused() {
    head -c 2000000 "$MINBASE_TAR" >"$TMPDIR/short.tar"
    refused karapace import "$TMPDIR/short.tar" --name short
    head -c 100000 /dev/urandom >"$TMPDIR/noise"
    refused karapace import "$TMPDIR/noise" --name noise
    mkdir -p "$TMPDIR/bad/.karapace"
    tar -cf "$TMPDIR/reserved.tar" -C "$TMPDIR/bad" .
    refused karapace import "$TMPDIR/reserved.tar" --name reserved
    says karapace
    refused karapace inspect short
    refused karapace inspect noise
    karapace gc
    karapace verify-store
}

damage_is_found() {
    karapace verify-store
    local object
    object=$(find "$STORE/store/objects" -type f -size +1k -print -quit)
    cp "$object" "$TMPDIR/object"
    chmod u+w "$object"
    printf 'X' | dd of="$object" bs=1 seek=100 conv=notrunc status=none
    status_of 3 karapace verify-store >"$TMPDIR/findings" 2>&1
    cat "$TMPDIR/findings"
    grep -q "$(basename "$object" | cut -c1-12)" "$TMPDIR/findings"
    cp "$TMPDIR/object" "$object"
    karapace verify-store
}

need "import" first_import
check "a second import adds no objects; both share the base" second_import_adds_nothing
check "what one writes and commits the other does not see" they_are_apart
check "a small commit adds little" small_commit_adds_little
check "destroying one and gc keep the other" destroying_one_keeps_the_other
check "tar, tar.gz, tar.xz, tar.zst give one base, whatever their name" forms
check "an unpacked directory too" directory
check "build from a manifest, with its lock; a wrong one is status 2" builds_from_a_manifest
check "damaged and reserved archives are refused and leave nothing" bad_archives_are_refused
check "verify-store finds a flipped byte: status 3" damage_is_found
finish_suite
