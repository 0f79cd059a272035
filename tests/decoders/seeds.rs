//! What the real encoders write, decoder by decoder: where mutation begins.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use karapace::engine::instance::open::Instance;
use karapace::engine::{Engine, Silent};
use karapace_fs::attr::Caller;
use karapace_store::import::Mounts;
use karapace_store::inode::ROOT_INO;
use karapace_store::layout::Layout;
use karapace_store::lock::EnvLock;

/// Inputs by the name of the target.
pub type Seeds = BTreeMap<&'static str, Vec<Vec<u8>>>;

/// Makes an environment, changes it, and takes what it left on the disk.
pub fn all() -> Seeds {
    let dir = tempfile::tempdir().unwrap();
    let rootfs = dir.path().join("rootfs");
    furnish(&rootfs);
    let engine = Engine::open(&dir.path().join("store")).unwrap();
    let metadata =
        engine.import(rootfs.to_str().unwrap(), "seed", false, Mounts::LeaveOut, &Silent).unwrap().metadata;
    let mut seeds = Seeds::new();
    let layout = Layout::new(engine.root());
    let lock = EnvLock::try_acquire(engine.store(), &metadata.instance).unwrap();
    let instance = Instance::open(&engine, metadata.clone(), lock, false).unwrap();
    work(&instance);
    let upper = layout.upper(&metadata.instance);
    seeds.insert("journal", records(&fs::read(upper.join("journal")).unwrap()));
    instance.close().unwrap();
    seeds.insert("checkpoint", vec![fs::read(upper.join("checkpoint")).unwrap()]);
    seeds.insert("metadata", files(&layout.metadata()));
    seeds.insert("layer_record", files(&layout.layers()));
    for object in files(layout.objects()) {
        let kind = match object.get(..4) {
            Some(b"KTR3") => "tree",
            Some(b"KRT3") => "root",
            Some(b"KBL3") => "block_list",
            _ => continue,
        };
        if kind == "root" {
            // The inode record of the root directory stands at its end.
            let inodes = (4..object.len()).map(|at| object[at..].to_vec());
            seeds.entry("inode").or_default().extend(inodes.take(60));
        }
        seeds.entry(kind).or_default().push(object);
    }
    seeds.insert("tar", archives(&rootfs));
    seeds.insert("manifest", vec![metadata.manifest.into_bytes(), MANIFEST.to_vec()]);
    seeds.insert("lockfile", vec![metadata.lock.into_bytes()]);
    seeds.insert("image", IMAGES.iter().map(|text| text.as_bytes().to_vec()).collect());
    seeds.insert("commands", vec![COMMANDS.to_vec()]);
    seeds
}

const MANIFEST: &[u8] = b"manifest_version = 1\n[base]\nimage = \"./x\"\n[system]\npackages = [\"git\", \"curl\"]\n[mounts]\n\
workspace = \"./:/workspace\"\n[runtime]\nbackend = \"namespace\"\n[runtime.resource_limits]\ncpu_shares = 1024\n";

const COMMANDS: &[u8] =
    b"commit name=a message=hello async=1\n\nrestore ~2\ngc dry_run=1\nverify\nrestore head\n";

/// An index, a manifest and a configuration; a nested index; what `docker save` writes, and wrote before
/// 1.10; a directory of skopeo's.
const IMAGES: [&str; 5] = [
    "{\"manifests\":[{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"@1\",\"size\":#1,\
\"platform\":{\"os\":\"linux\",\"architecture\":\"amd64\"}}]}\0{\"config\":{\"mediaType\":\
\"application/vnd.oci.image.config.v1+json\",\"digest\":\"@2\",\"size\":#2},\"layers\":[{\"mediaType\":\
\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"@3\",\"size\":#3}]}\0{\"os\":\"linux\",\"architecture\":\
\"amd64\",\"config\":{\"Env\":[\"A=b\"],\"User\":\"me\"},\"rootfs\":{\"diff_ids\":[\"@3\"]}}\0layer",
    "{\"manifests\":[{\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"digest\":\"@1\",\"size\":#1}]}\0\
{\"manifests\":[]}",
    "[{\"Config\":\"blobs/sha256/@1\",\"RepoTags\":[\"a:b\"],\"Layers\":[\"x/layer.tar\"]}]\0{\"rootfs\":{}}",
    "{\"a\":{\"b\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}}\0\
{\"id\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\",\"parent\":\
\"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\",\"os\":\"linux\"}\0\
{\"id\":\"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\"}",
    "{\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"@1\",\"size\":#1},\"layers\":[]}\0\
{\"os\":\"linux\"}",
];

fn furnish(rootfs: &Path) {
    fs::create_dir_all(rootfs.join("etc/many")).unwrap();
    (0..1500).for_each(|i| fs::write(rootfs.join(format!("etc/many/{i}")), b"").unwrap());
    fs::write(rootfs.join("etc/file"), b"content").unwrap();
    fs::hard_link(rootfs.join("etc/file"), rootfs.join("linked")).unwrap();
    std::os::unix::fs::symlink("etc", rootfs.join("link")).unwrap();
    let sparse = fs::File::create(rootfs.join("sparse")).unwrap();
    sparse.set_len(5 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"x", 3 << 20).unwrap();
}

fn work(instance: &Instance) {
    let view = instance.view();
    let root = Caller { uid: 0, gid: 0, umask: 0o022 };
    let made = view.mkdir(&root, ROOT_INO, b"new", 0o755).unwrap().ino;
    let file = view.mknod(&root, made, b"file", 0o100_644, 0).unwrap().ino;
    view.write(file, 0, b"content", false).unwrap();
    view.setxattr(file, b"user.note", b"kept", 0).unwrap();
    view.link(file, ROOT_INO, b"twice").unwrap();
    let sparse = view.lookup(ROOT_INO, b"sparse").unwrap().ino;
    view.write(sparse, 1 << 20, b"changed", false).unwrap();
    view.unlink(ROOT_INO, b"link").unwrap();
}

/// A journal's items, with and without what stands around them.
fn records(journal: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![journal[12..].to_vec()];
    let mut at = 12;
    while let Some(head) = journal.get(at..at + 4) {
        let length = u32::from_le_bytes(head.try_into().unwrap()) as usize;
        all.extend(journal.get(at + 16..at + 16 + length).map(<[u8]>::to_vec));
        at += 16 + length;
    }
    all
}

fn archives(rootfs: &Path) -> Vec<Vec<u8>> {
    let kinds: [&[&str]; 4] = [
        &["--format=v7"],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.1", "--xattrs"],
        &["--format=pax", "--sparse"],
    ];
    let one = |options: &&[&str]| {
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(rootfs).args(*options).args(["--exclude=etc/many", "-c", "."]);
        tar.output().unwrap().stdout
    };
    kinds.iter().map(one).collect()
}

/// The files below a directory, sorted by name.
fn files(dir: &Path) -> Vec<Vec<u8>> {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    let mut all = Vec::new();
    for path in entries {
        if path.is_dir() { all.extend(files(&path)) } else { all.push(fs::read(&path).unwrap()) }
    }
    all
}
