#!/usr/bin/env bash
# Base images by name and by address, from an image server on loopback: lists, checksums, broken connections, the cache.
# runs as: root user
. "$(dirname "$0")/../checks.sh"
SERVED=$PLAIN/served
REQUESTS=$TMPDIR/requests
export KARAPACE_IMAGE_SERVER

# serve [CUT]: starts the server and names it; another port each time, so nothing of it is in the cache.
serve() {
    rm -f "$TMPDIR/address"
    /usr/bin/python3 "$SCRATCH/tree/e2e/image_server.py" "$SERVED" "$REQUESTS" "$@" >"$TMPDIR/address" &
    SERVER=$!
    until_true test -s "$TMPDIR/address"
    KARAPACE_IMAGE_SERVER=$(cat "$TMPDIR/address")
    : >"$REQUESTS"
}

# list VERSION FILE [SHA256]: the server's lists, with one version of one image.
list() {
    local sum=${3:-$(sha256sum "$SERVED/$2" | cut -d' ' -f1)} arch
    arch=$(dpkg --print-architecture)
    mkdir -p "$SERVED/streams/v1"
    cat >"$SERVED/streams/v1/index.json" <<JSON
{"format": "index:1.0", "index": {"images": {"datatype": "image-downloads", "path": "streams/v1/images.json",
 "format": "products:1.0", "products": ["fixture:1"]}}}
JSON
    cat >"$SERVED/streams/v1/images.json" <<JSON
{"content_id": "images", "format": "products:1.0", "products": {"fixture:1": {
 "aliases": "fixture/one/default,fixture/1", "arch": "$arch", "os": "Fixture", "release": "one", "versions": {
 "$1": {"items": {"root.tar.xz": {"ftype": "root.tar.xz", "path": "$2", "sha256": "$sum",
  "size": $(stat -c %s "$SERVED/$2")}}}}}}}
JSON
}

asked_for() { grep -c " $1 " "$REQUESTS" || true; }

archives() {
    fixture "$PLAIN/fixture"
    mkdir -p "$SERVED/one" "$SERVED/two"
    # What does not compress, so that there is something to break off.
    head -c 3000000 /dev/urandom >"$PLAIN/fixture/srv/noise"
    fixture_tar "$PLAIN/fixture" "$TMPDIR/rootfs.tar"
    xz -0 -c "$TMPDIR/rootfs.tar" >"$SERVED/one/rootfs.tar.xz"
    echo newer >"$PLAIN/fixture/etc/keep"
    fixture_tar "$PLAIN/fixture" "$TMPDIR/newer.tar"
    xz -0 -c "$TMPDIR/newer.tar" >"$SERVED/two/rootfs.tar.xz"
    list 20260101_01:00 one/rootfs.tar.xz
}

by_name() {
    karapace import fixture/1 --name named
    karapace import "$TMPDIR/rootfs.tar" --name plain
    equal base "$(inspect plain 'd["base_layer"]')" "$(inspect named 'd["base_layer"]')"
}

asked_once() {
    karapace import fixture/one/default --name again
    karapace import fixture/1 --name third
    equal "downloads of the archive" 2 "$(asked_for /one/rootfs.tar.xz)"
    has '^304 /streams/v1/images.json' <"$REQUESTS" || wrong "the list was downloaded again: $(cat "$REQUESTS")"
}

from_a_manifest() {
    mkdir -p "$PLAIN/project"
    cd "$PLAIN/project"
    printf 'manifest_version = 1\n[base]\nimage = "fixture/1"\n' >karapace.toml
    karapace build --name built
    equal base "$(inspect plain 'd["base_layer"]')" "$(inspect built 'd["base_layer"]')"
    grep -q '^base_image = "fixture/1"' karapace.lock
}

newer_version() {
    list 20260202_01:00 two/rootfs.tar.xz
    karapace import fixture/1 --name newer
    karapace mount newer
    equal content newer "$(cat "$MOUNTS/newer/etc/keep")"
    karapace umount newer
    equal "archives in the cache" 2 "$(find "$STORE/images" -name archive -size +1M | wc -l)"
}

drift_is_told() {
    cd "$PLAIN/project"
    refused karapace build --name built --locked
    says 'fixture/1 is now'
}

offline() {
    kill "$SERVER"
    until_true gone "$SERVER"
    refused karapace import fixture/1 --name unreachable
    karapace import fixture/1 --name offline --offline
    equal base "$(inspect newer 'd["base_layer"]')" "$(inspect offline 'd["base_layer"]')"
    refused karapace import fixture/2 --name never --offline
    says 'has not been downloaded yet'
}

wrong_checksum() {
    list 20260303_01:00 one/rootfs.tar.xz "$(printf '%064d' 7)"
    refused karapace import fixture/1 --name wrong
    says 'sha256 is [0-9a-f]{64}, not 0{63}7'
    equal "parts left" "" "$(find "$STORE/images" -name 'archive.part*')"
    list 20260101_01:00 one/rootfs.tar.xz
}

unknown_name() {
    refused karapace import fixture/9 --name unknown
    says 'no image of this name; there are fixture/1'
    refused karapace import no-such/1 --name unknown
    says 'no image of this name'
}

broken_connections() {
    local url=$KARAPACE_IMAGE_SERVER/one/rootfs.tar.xz size
    size=$(stat -c %s "$SERVED/one/rootfs.tar.xz")
    karapace import "$url" --name broken
    equal base "$(inspect plain 'd["base_layer"]')" "$(inspect broken 'd["base_layer"]')"
    cat "$REQUESTS"
    equal "requests" $(((size + 999999) / 1000000)) "$(asked_for /one/rootfs.tar.xz)"
    equal "whole answers" 1 "$(grep -c '^200 /one' "$REQUESTS")"
}

pinned_address() {
    local url=$KARAPACE_IMAGE_SERVER/one/rootfs.tar.xz sum
    sum=$(sha256sum "$SERVED/one/rootfs.tar.xz" | cut -d' ' -f1)
    karapace import "$url#sha256=$sum" --name pinned --offline
    refused karapace import "$url#sha256=${sum//[0-9]/0}" --name other --offline
    refused karapace import "$url#sha256=12" --name short
    says '64 hex digits'
}

encoded() {
    refused karapace import "$KARAPACE_IMAGE_SERVER/encoded/one/rootfs.tar.xz" --name encoded
    says 'Content-Encoding: "gzip".*nothing of it was kept'
    equal "parts left" "" "$(find "$STORE/images" -name 'archive.part*')"
}

# terminated COMMAND...: SIGTERM ends a download that does not go on, and nobody takes what came for the whole.
terminated() {
    local status=0 pid
    "$@" &
    pid=$!
    until_true sh -c "find '$STORE/images' -name archive.part -size 5c | grep -q ."
    kill "$pid"
    until_true gone "$pid" || kill -KILL "$pid"
    wait "$pid" || status=$?
    equal status 143 "$status"
    refused karapace import "$KARAPACE_IMAGE_SERVER/stalled/x.tar" --name stalled --offline
    says 'has not been downloaded yet'
    find "$STORE/images" -name 'archive.part*' -delete
}

interrupted() {
    mkdir -p "$PLAIN/stalled"
    printf 'manifest_version = 1\n[base]\nimage = "%s"\n' "$KARAPACE_IMAGE_SERVER/stalled/x.tar" >"$PLAIN/stalled/karapace.toml"
    terminated karapace import "$KARAPACE_IMAGE_SERVER/stalled/x.tar" --name stalled
    terminated karapace build "$PLAIN/stalled/karapace.toml"
}

need "two versions of an image" archives
serve
need "import by name gives the archive's tree" by_name
check "a cached image is not downloaded again" asked_once
check "build of a manifest that names an image" from_a_manifest
check "a newer version is downloaded, and the older archive removed" newer_version
check "--locked reports that the image has changed" drift_is_told
check "with the server gone: --offline, and only what was downloaded" offline
serve
check "bytes with another checksum are refused and not kept" wrong_checksum
check "an unknown name is reported with the available ones" unknown_name
check "an encoded answer is refused and not kept" encoded
check "a signal ends a stalled download" interrupted
kill "$SERVER"
serve 1000000
check "a connection that breaks every megabyte" broken_connections
check "a URL with a checksum" pinned_address
kill "$SERVER"
finish_suite
