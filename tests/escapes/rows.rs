//! What can be made to quote something hostile. Each row prints, and says how that is to be shown.

use std::fs;

use serde_json::json;

use crate::world::{World, serve};
use crate::{HOSTILE, SHOWN, TURNED, TURNED_SHOWN, without_colours, without_sequences};

type Row = fn(&World) -> (Vec<u8>, &'static str);

/// All of them, by name. They share a store: each makes its own environments.
pub const ROWS: &[(&str, Row)] = &[
    ("diff", diff),
    ("inspect", inspect),
    ("snapshots: a message", snapshots),
    ("gc: a message", gc),
    ("completions: a message", completions),
    ("import: no such file", |world| {
        (world.printed(&["import", &format!("./{HOSTILE}"), "--name", "n"]), SHOWN)
    }),
    ("import: platforms", platforms),
    ("import: tags", tags),
    ("import: a media type", media_type),
    ("import: a note on the platform", note),
    ("import: the same on a terminal, above the bar", note_on_a_terminal),
    ("import: the names of docker save", saved),
    ("import: the name of a blob", blob_name),
    ("import: a list of images", image_server),
    ("a key of a manifest", |world| manifest(world, &format!("\"{}\" = 1\n", in_toml()))),
    ("a mount of a manifest", |world| manifest(world, &format!("[mounts]\n\"{}\" = \"x\"\n", in_toml()))),
    ("a lock file", lock_file),
    ("a file that is no manifest", |world| (world.printed(&["pin", "--check", HOSTILE]), SHOWN)),
    ("an unknown argument", |world| (world.printed(&["list", &format!("--{HOSTILE}")]), SHOWN)),
    ("an unknown command", |world| (world.printed(&[HOSTILE]), SHOWN)),
    ("a wrong value", |world| (world.printed(&["mount", "dev", "--threads", HOSTILE]), SHOWN)),
    ("a value of none of the kinds", |world| (world.printed(&["export", "dev", "--format", HOSTILE]), SHOWN)),
    ("a wrong variable", |world| (world.printed(&["exec", "dev", "-e", HOSTILE, "--", "true"]), SHOWN)),
    ("an unknown argument, in JSON", |world| (world.printed(&["--json", "list", HOSTILE]), r"FORGED \\177")),
    ("an unknown argument, in colour", unknown_in_colour),
    ("a path inside", |world| (world.printed(&["restore", "dev", "base", "--", HOSTILE]), SHOWN)),
    ("a file that was written", |world| (world.printed(&["export", "dev", "-o", HOSTILE]), SHOWN)),
    ("a directory that was written", |world| {
        (world.printed(&["man-pages", &format!("pages/{HOSTILE}")]), SHOWN)
    }),
    ("a directory that is no mount", |world| (world.printed(&["umount", &format!("./{HOSTILE}")]), SHOWN)),
    ("the place of a store", |world| (world.printed(&["--store", HOSTILE, "migrate"]), SHOWN)),
    ("the log", log),
    ("verify-store", verify_store),
    ("mount", mount),
    ("list, of what is mounted", list),
    ("control files", control_files),
    ("the mock backend", mock),
];

/// The hostile text as TOML and JSON both have it in quotes.
fn in_toml() -> String {
    HOSTILE.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect()
}

fn diff(world: &World) -> (Vec<u8>, &'static str) {
    world.overlay();
    (world.printed(&["diff", "upper", "base", "latest"]), SHOWN)
}

fn inspect(world: &World) -> (Vec<u8>, &'static str) {
    let dir = format!("of {HOSTILE}");
    world.put(format!("{dir}/etc/hostname"), b"");
    world.done(&["import", &dir, "--name", "inspected"]);
    (world.printed(&["inspect", "inspected"]), SHOWN)
}

/// An environment with a snapshot whose message has what must not be shown, in its first line.
fn turned(world: &World, name: &str) {
    let dir = format!("{name}-{TURNED}");
    world.put(format!("{dir}/new"), name.as_bytes());
    world.done(&["import", &dir, "--onto", "dev", "--name", name]);
}

fn snapshots(world: &World) -> (Vec<u8>, &'static str) {
    turned(world, "turned");
    (world.printed(&["snapshots", "turned"]), TURNED_SHOWN)
}

fn gc(world: &World) -> (Vec<u8>, &'static str) {
    turned(world, "collected");
    world.done(&["restore", "collected", "base"]);
    (world.printed(&["gc", "--dry-run", "--keep-last", "0"]), TURNED_SHOWN)
}

fn completions(world: &World) -> (Vec<u8>, &'static str) {
    turned(world, "completed");
    let mut command = world.command(&["--", "karapace", "restore", "completed", ""]);
    // A tab is the shell's own, between a word and what is said of it.
    let output = command.env("COMPLETE", "fish").output().unwrap().stdout;
    (String::from_utf8(output).unwrap().replace('\t', " ").into_bytes(), TURNED_SHOWN)
}

fn import(world: &World, image: &str) -> Vec<u8> {
    world.printed(&["import", image, "--name", "never"])
}

/// Manifests for other machines, which are not there.
fn absent(world: &World, image: &str, os: &str, variant: &str, tag: &str) -> Vec<u8> {
    let digest = format!("sha256:{}", "0".repeat(64));
    let platform = json!({ "os": os, "architecture": "none", "variant": variant });
    let annotations = json!({ "org.opencontainers.image.ref.name": tag });
    let one = json!({ "digest": digest, "size": 1, "platform": platform, "annotations": annotations });
    world.layout(image, &json!([one, one]));
    import(world, image)
}

fn platforms(world: &World) -> (Vec<u8>, &'static str) {
    (absent(world, "platforms", HOSTILE, "v1", "latest"), SHOWN)
}

fn tags(world: &World) -> (Vec<u8>, &'static str) {
    (absent(world, "tags", "none", HOSTILE, HOSTILE), SHOWN)
}

fn media_type(world: &World) -> (Vec<u8>, &'static str) {
    let config = world.blob("media", "application/vnd.oci.empty.v1+json", b"{}");
    let layer = world.blob("media", HOSTILE, b"no layer");
    let manifest = json!({ "config": config, "layers": [layer] }).to_string();
    let manifest = world.blob("media", "application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
    world.layout("media", &json!([manifest]));
    (import(world, "media"), SHOWN)
}

/// Makes an image with a note to tell.
fn noted(world: &World, name: &str) {
    let config = json!({ "os": HOSTILE, "architecture": "none" }).to_string();
    let config = world.blob(name, "application/vnd.oci.image.config.v1+json", config.as_bytes());
    let manifest = json!({ "config": config, "layers": [] }).to_string();
    let manifest = world.blob(name, "application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
    world.layout(name, &json!([manifest]));
}

fn note(world: &World) -> (Vec<u8>, &'static str) {
    noted(world, "note");
    (world.printed(&["import", "note", "--name", "noted"]), SHOWN)
}

fn note_on_a_terminal(world: &World) -> (Vec<u8>, &'static str) {
    noted(world, "seen");
    let text = String::from_utf8(world.on_a_terminal("import seen --name seen")).unwrap();
    // The bar is wiped and drawn again; the terminal ends lines with a carriage return.
    let lines = without_sequences(&text, "mAKJhl").replace('\r', "");
    (lines.into_bytes(), SHOWN)
}

fn saved(world: &World) -> (Vec<u8>, &'static str) {
    let one = json!({ "Config": "config", "RepoTags": [HOSTILE], "Layers": [] });
    world.put("saved/manifest.json", json!([one, one]).to_string().as_bytes());
    (import(world, "saved"), SHOWN)
}

fn blob_name(world: &World) -> (Vec<u8>, &'static str) {
    let one = json!({ "Config": HOSTILE, "Layers": [] });
    world.put("blob/manifest.json", json!([one]).to_string().as_bytes());
    (import(world, "blob"), SHOWN)
}

fn image_server(world: &World) -> (Vec<u8>, &'static str) {
    let index = json!({ "index": { "images": { "datatype": "image-downloads", "path": "list.json" } } });
    let product = json!({ "aliases": "nosuch/1", "arch": HOSTILE, "versions": {} });
    let products = json!({ "products": { "one": product } });
    let address = serve(vec![index.to_string(), products.to_string()]);
    let mut command = world.command(&["import", "nosuch/1", "--name", "never"]);
    let output = command.env("KARAPACE_IMAGE_SERVER", address).output().unwrap();
    (output.stderr, SHOWN)
}

const MANIFEST: &str = "manifest_version = 1\n[base]\nimage = \"./rootfs\"\n";

fn manifest(world: &World, more: &str) -> (Vec<u8>, &'static str) {
    world.put("bad.toml", format!("{MANIFEST}{more}").as_bytes());
    (world.printed(&["build", "bad.toml"]), SHOWN)
}

fn lock_file(world: &World) -> (Vec<u8>, &'static str) {
    world.put("locked/karapace.toml", MANIFEST.replace("./", "../").as_bytes());
    world.put("locked/karapace.lock", format!("\"{}\" = 1\n", in_toml()).as_bytes());
    (world.printed(&["build", "--locked", "locked/karapace.toml"]), SHOWN)
}

fn unknown_in_colour(world: &World) -> (Vec<u8>, &'static str) {
    let mut command = world.command(&["list", &format!("--{HOSTILE}")]);
    let output = command.env("CLICOLOR_FORCE", "1").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("\u{1b}["), "no colours: {text:?}");
    (without_colours(&text).into_bytes(), SHOWN)
}

/// A store in a hostile place that tells on stderr what it lacks.
fn log(world: &World) -> (Vec<u8>, &'static str) {
    let root = format!("log-{HOSTILE}");
    world.done(&["--store", &root, "import", "rootfs", "--name", "dev"]);
    fs::remove_dir(world.path(format!("{root}/store/staging"))).unwrap();
    let output = world.run(&["--store", &root, "--trace", "list"]);
    (output.stderr, SHOWN)
}

fn verify_store(world: &World) -> (Vec<u8>, &'static str) {
    world.put(format!("store/{HOSTILE}"), b"");
    let output = world.printed(&["verify-store"]);
    fs::remove_file(world.path(format!("store/{HOSTILE}"))).unwrap();
    (output, SHOWN)
}

/// Mounts `dev` in a hostile place while something is done.
fn mounted<T>(world: &World, work: impl FnOnce(&str, Vec<u8>) -> T) -> T {
    let dir = format!("mnt-{HOSTILE}");
    let printed = world.printed(&["mount", "dev", &dir]);
    let result = work(&dir, printed);
    world.done(&["umount", "dev"]);
    result
}

fn mount(world: &World) -> (Vec<u8>, &'static str) {
    mounted(world, |_, printed| (printed, SHOWN))
}

fn list(world: &World) -> (Vec<u8>, &'static str) {
    mounted(world, |_, _| ([world.printed(&["inspect", "dev"]), world.printed(&["list"])].concat(), SHOWN))
}

fn control_files(world: &World) -> (Vec<u8>, &'static str) {
    let mut all = Vec::new();
    mounted(world, |dir, _| {
        world.put(format!("{dir}/{HOSTILE}"), b"");
        for file in ["diff", "status", "status.json"] {
            all.extend(fs::read(world.path(format!("{dir}/.karapace/{file}"))).unwrap());
        }
        fs::remove_file(world.path(format!("{dir}/{HOSTILE}"))).unwrap();
    });
    (all, SHOWN)
}

fn mock(world: &World) -> (Vec<u8>, &'static str) {
    world.put("mock.toml", format!("{MANIFEST}[runtime]\nbackend = \"mock\"\n").as_bytes());
    world.done(&["build", "mock.toml", "--name", "mock"]);
    (world.printed(&["exec", "mock", "-e", &format!("A={HOSTILE}"), "--", "true"]), SHOWN)
}
