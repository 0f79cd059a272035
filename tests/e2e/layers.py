"""Writes image layouts whose upper layers have what umoci and podman take and few writers make: layers.py DIRECTORY."""

import hashlib
import io
import json
import os
import sys
import tarfile

FILE, LINK, SYMLINK, DIRECTORY = b"0", b"1", b"2", b"5"

BASE = [
    ("etc/", DIRECTORY, ""), ("etc/x", FILE, "x"),
    ("a/", DIRECTORY, ""), ("a/a", FILE, "aa"),
    ("b/", DIRECTORY, ""), ("b/a", FILE, "ba"), ("b/k", FILE, "bk"),
    ("l", SYMLINK, "b"), ("dangling", SYMLINK, "nowhere"),
]

# By name, the members of the layer over the base.
LAYERS = {
    "whiteout-below-link": [("a", SYMLINK, "b"), ("a/.wh.a", FILE, "")],
    "opaque-below-link": [("a", SYMLINK, "b"), ("a/.wh..wh..opq", FILE, "")],
    "whiteout-before-link": [("a/.wh.a", FILE, ""), ("a", SYMLINK, "b")],
    "opaque-before-link": [("a/.wh..wh..opq", FILE, ""), ("a", SYMLINK, "b")],
    "whiteout-below-links": [("n", SYMLINK, "/l"), ("n/.wh.a", FILE, "")],
    "whiteout-below-lower-link": [("l/.wh.a", FILE, "")],
    "whiteout-below-dangling-link": [("n", SYMLINK, "nowhere"), ("n/.wh.a", FILE, ""), ("dangling/.wh.a", FILE, "")],
    "whiteout-outside": [("n", SYMLINK, "../../../../etc"), ("n/.wh.x", FILE, "")],
    "entry-below-link": [("n", SYMLINK, "/l"), ("n/new", FILE, "n"), ("h", LINK, "n/new"), ("n/d/", DIRECTORY, "")],
    "entry-where-a-link-was": [(".wh.l", FILE, ""), ("l/new", FILE, "n")],
    "link-to-what-goes": [("h", LINK, "b/a"), ("b/.wh.a", FILE, "")],
    "link-to-what-goes-with-its-directory": [("h", LINK, "b/a"), (".wh.b", FILE, "")],
    "link-to-what-becomes-opaque": [("h", LINK, "b/a"), ("b/.wh..wh..opq", FILE, "")],
    "link-to-what-is-replaced": [("h", LINK, "b/a"), ("b/a", FILE, "new")],
}


def archive(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, text in members:
            info = tarfile.TarInfo(name)
            info.type, info.mtime = kind, 100
            # Of a symbolic link, too, as some writers have it.
            info.mode = 0o755 if kind == DIRECTORY else 0o644
            if kind in (LINK, SYMLINK):
                info.linkname, text = text, ""
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


def layout(path, layers):
    def blob(content, kind):
        digest = hashlib.sha256(content).hexdigest()
        with open(f"{path}/blobs/sha256/{digest}", "wb") as file:
            file.write(content)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    def text(value):
        return json.dumps(value).encode()

    os.makedirs(f"{path}/blobs/sha256")
    blobs = [blob(layer, "layer.v1.tar") for layer in layers]
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = blob(text({
        "architecture": machine, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in blobs]},
    }), "config.v1+json")
    manifest = blob(text({"schemaVersion": 2, "config": config, "layers": blobs}), "manifest.v1+json")
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "image"}
    for name, value in (
        ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
        ("index.json", {"schemaVersion": 2, "manifests": [manifest]}),
    ):
        with open(f"{path}/{name}", "wb") as file:
            file.write(text(value))


for name, members in LAYERS.items():
    layout(f"{sys.argv[1]}/{name}", [archive(BASE), archive(members)])
