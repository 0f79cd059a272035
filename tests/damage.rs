//! One flipped bit in each kind of file of a store: what use, `verify-store`, `gc` and `verify-store
//! --repair` make of it. The real program on real mounts. Prints the table that docs/DURABILITY.md has.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use karapace_store::Store;
use karapace_store::content::FileContent;
use karapace_store::id::{ObjectId, RecordId};
use karapace_store::inode::Body;
use karapace_store::layer::LayerRecord;
use karapace_store::layout::Layout;
use karapace_store::metadata::Metadata;
use karapace_store::tree::{Target, Trees};

/// Entries of a directory whose listing is split.
const MANY: usize = 1100;

/// What a read of everything gave: the bytes of each file, or the errno.
type Reading = BTreeMap<String, Result<Vec<u8>, i32>>;

struct World {
    dir: tempfile::TempDir,
}

impl World {
    /// A store with one environment: a base, snapshots named `one` and `two`, and uncommitted changes of a
    /// server that was killed.
    fn new() -> World {
        // In memory where that can be: some three hundred commands would wait for a disk.
        let memory = tempfile::tempdir_in("/dev/shm");
        let world = World { dir: memory.or_else(|_| tempfile::tempdir()).unwrap() };
        let image = world.dir.path().join("image");
        fs::create_dir_all(image.join("many")).unwrap();
        fs::create_dir_all(image.join("few")).unwrap();
        fs::write(image.join("few/small"), b"a small file\n").unwrap();
        fs::write(image.join("large"), noise(3 << 20)).unwrap();
        for n in 0..MANY {
            fs::write(image.join(format!("many/file-{n:05}")), b"").unwrap();
        }
        let store = world.dir.path().join("pristine");
        world.must(&store, &["import", image.to_str().unwrap(), "--name", "dev"]);
        let mount = world.mount(&store).expect("a mount: this test needs /dev/fuse");
        for name in ["one", "two"] {
            fs::write(mount.join("few/made"), format!("made for {name}\n")).unwrap();
            world.must(&store, &["commit", "dev", "--name", name]);
        }
        fs::write(mount.join("few/kept"), b"uncommitted\n").unwrap();
        // What fsync has made durable is known to have been: damage to it is told from a torn end.
        for n in 0..3 {
            let file = fs::File::create(mount.join(format!("few/new-{n}"))).unwrap();
            file.write_all_at(b"new\n", 0).unwrap();
            file.sync_all().unwrap();
        }
        fs::create_dir(mount.join("few/last")).unwrap();
        let pid = inspect(&world.must(&store, &["--json", "inspect", "dev"]))["mount"]["pid"].clone();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid.as_i64().expect("a pid")).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        world.run(&store, &["umount", "dev"]);
        world
    }

    fn run(&self, store: &Path, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_karapace"));
        command.arg("--store").arg(store).args(args).env("HOME", self.dir.path());
        command.stdin(std::process::Stdio::null()).output().unwrap()
    }

    fn must(&self, store: &Path, args: &[&str]) -> String {
        let output = self.run(store, args);
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn mount(&self, store: &Path) -> Result<PathBuf, String> {
        let dir = self.dir.path().join("mnt");
        let output = self.run(store, &["mount", "dev", dir.to_str().unwrap()]);
        if output.status.success() { Ok(dir) } else { Err(text(&output)) }
    }

    /// A copy of the store as it was before anything was damaged.
    fn copy(&self, name: &str) -> PathBuf {
        let to = self.dir.path().join(name);
        let status = Command::new("cp").arg("-a").arg(self.dir.path().join("pristine")).arg(&to).status();
        assert!(status.unwrap().success());
        to
    }

    /// Everything in the mounted environment.
    fn read(&self, store: &Path) -> Result<Reading, String> {
        let mount = self.mount(store)?;
        let mut reading = Reading::new();
        let mut todo = vec![mount.clone()];
        while let Some(dir) = todo.pop() {
            let name = |path: &Path| format!("/{}", path.strip_prefix(&mount).unwrap().display());
            let mut list = || -> std::io::Result<()> {
                for entry in fs::read_dir(&dir)? {
                    let path = entry?.path();
                    match fs::symlink_metadata(&path) {
                        Ok(there) if there.is_dir() => todo.push(path),
                        // Of many files nothing is to be read but their names.
                        Ok(there) if there.len() == 0 => {
                            reading.insert(name(&path), Ok(Vec::new()));
                        }
                        _ => {
                            let read = fs::read(&path).map_err(|e| e.raw_os_error().unwrap_or(-1));
                            reading.insert(name(&path), read);
                        }
                    }
                }
                Ok(())
            };
            let listed = list().map(|()| Vec::new()).map_err(|e| e.raw_os_error().unwrap_or(-1));
            reading.insert(name(&dir), listed);
        }
        self.must(store, &["umount", "dev"]);
        Ok(reading)
    }

    fn verify(&self, store: &Path, repair: bool) -> (Option<i32>, serde_json::Value) {
        let mut args = vec!["--json", "verify-store"];
        args.extend(repair.then_some("--repair"));
        let output = self.run(store, &args);
        let report = serde_json::from_slice(&output.stdout).unwrap_or(serde_json::Value::Null);
        (output.status.code(), report)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A failed check may leave a mount.
        let mount = self.dir.path().join("mnt");
        for store in fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            if store.path().join("store/version").exists() {
                self.run(&store.path(), &["umount", mount.to_str().unwrap_or_default()]);
            }
        }
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn inspect(json: &str) -> serde_json::Value {
    serde_json::from_str(json).unwrap()
}

/// Bytes that repeat nowhere.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"damage").finalize_xof().fill(&mut bytes);
    bytes
}

/// Turns one bit of the byte at `at`, in place.
fn flip(path: &Path, at: u64) {
    let mode = fs::metadata(path).unwrap().permissions();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 4;
    file.write_all_at(&byte, at).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

/// Where in a store the files of each kind are.
struct Places {
    small: ObjectId,
    large: FileContent,
    tree: ObjectId,
    leaf: ObjectId,
    root: ObjectId,
    base: RecordId,
    snapshot: RecordId,
    head: RecordId,
    env: Metadata,
}

impl Places {
    fn find(root: &Path) -> Places {
        let store = Store::open(root).unwrap();
        let env = Metadata::find(&store, "dev").unwrap();
        let trees = Trees::new(store.clone());
        let root_of = |record| LayerRecord::read(&store, record).unwrap().tree;
        let root = root_of(&env.head_record);
        let base = root_of(&env.base_record);
        let top = *trees.root(&base).unwrap().tree().unwrap();
        let inside = |dir: &ObjectId, name: &[u8]| match trees.lookup(dir, name).unwrap() {
            Some(Target::Inode(record)) => record.body,
            other => panic!("{other:?}"),
        };
        let listing = |body| match body {
            Body::Directory { tree: Some(tree), .. } => tree,
            other => panic!("{other:?}"),
        };
        let few = listing(inside(&top, b"few"));
        let Body::Regular(large) = inside(&top, b"large") else { panic!("no file") };
        // An index: 12 bytes, then of the first chunk its key and its object.
        let index = store.objects().read(&listing(inside(&top, b"many")), 1 << 20).unwrap();
        assert_eq!(index[4], 1, "the listing is not split");
        let at = 13 + usize::from(index[12]);
        let leaf = ObjectId::from_bytes(index[at..at + 32].try_into().unwrap());
        let small = ObjectId::of(b"a small file\n");
        let (base, snapshot, head) = (env.base_record, env.snapshots[0].record, env.head_record);
        assert_ne!(snapshot, head);
        Places { small, large, tree: few, leaf, root, base, snapshot, head, env }
    }
}

/// What is expected of one kind of file.
struct Case {
    what: &'static str,
    /// The file, and which of its bytes.
    file: PathBuf,
    at: u64,
    /// What is written to it before; empty: it is there.
    made: String,
    /// What use of the environment meets: paths that give EIO, or a text that the refusal has; neither:
    /// nothing.
    lost: &'static [&'static str],
    refused: &'static str,
    /// The kind of finding; empty: none.
    finding: &'static str,
    /// Whether a collection refuses.
    gc_refuses: bool,
    /// What a repair does; empty: nothing.
    deed: &'static str,
    /// What of the sound reading is different after the repair.
    after: &'static [&'static str],
}

fn cases(store: &Path) -> Vec<Case> {
    let places = Places::find(store);
    let opened = Store::open(store).unwrap();
    let layout = Layout::new(opened.root());
    let upper = layout.upper(&places.env.instance);
    let journal = fs::read(upper.join("journal")).unwrap();
    let record = |number: usize| {
        let mut at = 12;
        for _ in 0..number {
            at += 24 + u32::from_le_bytes(journal[at..at + 4].try_into().unwrap()) as usize;
        }
        at
    };
    let records = (0..).take_while(|n| record(*n) < journal.len()).count();
    assert!(records > 6, "{records} records");
    let data = newest_data(&upper, b"uncommitted\n");
    let metadata = Metadata::path(&opened, &places.env.instance);
    let manifest = fs::read_to_string(&metadata).unwrap().find("manifest_version").unwrap() as u64;
    let plain = |what, file: PathBuf, finding, deed| Case {
        what,
        at: fs::metadata(&file).map_or(0, |there| there.len() / 2),
        file,
        made: String::new(),
        lost: &[],
        refused: "",
        finding,
        gc_refuses: false,
        deed,
        after: &[],
    };
    let fetched = "set-aside, fetched";
    let new: &[&str] = &["/few", "/few/kept", "/few/last", "/few/new-0", "/few/new-1", "/few/new-2"];
    let mut cases = vec![
        Case {
            lost: &["/few/small"],
            ..plain("object of a small file", layout.object(&places.small), "corrupt-object", "mended")
        },
        Case {
            lost: &["/large"],
            ..plain(
                "object with the data of a large file",
                layout.object(&places.large.extents[0].object),
                "corrupt-object",
                fetched,
            )
        },
        Case {
            lost: &["/large"],
            ..plain("block list", layout.object(&places.large.hash), "corrupt-object", "mended")
        },
        Case {
            lost: &[],
            gc_refuses: true,
            ..plain(
                "listing of a directory, in the base only",
                layout.object(&places.tree),
                "corrupt-tree",
                "mended",
            )
        },
        Case {
            lost: &["/many"],
            gc_refuses: true,
            ..plain("part of a split listing", layout.object(&places.leaf), "corrupt-tree", "mended")
        },
        Case {
            refused: "corrupt",
            gc_refuses: true,
            ..plain("root", layout.object(&places.root), "corrupt-tree", "mended")
        },
        Case {
            gc_refuses: true,
            ..plain("layer record of the base", layout.layer(&places.base), "corrupt-layer", "mended")
        },
        Case {
            gc_refuses: true,
            ..plain("layer record of a snapshot", layout.layer(&places.snapshot), "corrupt-layer", "mended")
        },
        Case {
            refused: "corrupt",
            gc_refuses: true,
            ..plain("layer record of the head", layout.layer(&places.head), "corrupt-layer", "mended")
        },
        Case {
            refused: "corrupt",
            gc_refuses: true,
            ..plain("environment record", metadata.clone(), "corrupt-environment", "mended")
        },
        Case {
            at: manifest + 20,
            refused: "corrupt",
            gc_refuses: true,
            ..plain("manifest in the environment record", metadata, "corrupt-environment", "mended")
        },
        Case {
            refused: "checksum",
            gc_refuses: true,
            ..plain("checkpoint of the upper", upper.join("checkpoint"), "corrupt-upper", "mended")
        },
        Case {
            at: record(0) as u64 + 30,
            refused: "damaged",
            gc_refuses: true,
            after: new,
            ..plain("first record of the journal", upper.join("journal"), "corrupt-upper", "cut")
        },
        Case {
            at: record(3) as u64 + 30,
            refused: "damaged",
            gc_refuses: true,
            after: new,
            ..plain("record in the middle of the journal", upper.join("journal"), "corrupt-upper", "cut")
        },
        Case {
            lost: &["/few/last"],
            at: record(records - 1) as u64 + 30,
            ..plain("last record of the journal", upper.join("journal"), "", "")
        },
        Case { lost: &["/few/kept"], ..plain("data file of the upper", data, "", "") },
    ];
    // A process that died had begun something with an environment that is gone.
    let intent = layout.wal().join("0".repeat(32));
    let begun = format!(
        "{{\"pid\":1,\"existed\":true,\"intent\":{{\"verb\":\"destroy\",\"instance\":\"{}\"}}}}",
        "0".repeat(32)
    );
    let begun = format!("{begun}\n{}\n", blake3::hash(begun.as_bytes()).to_hex());
    cases.push(Case {
        made: begun,
        // Of the instance's name: it would be another's.
        at: 75,
        gc_refuses: true,
        ..plain("intent of an operation", intent, "corrupt-intent", "set-aside")
    });
    let mount = layout.env_dir(&places.env.instance).join("mount.json");
    let made = "{\"dir\":\"/nowhere\",\"pid\":1,\"session\":false}".to_owned();
    cases.push(Case { made, at: 10, ..plain("mount.json", mount, "", "") });
    cases
}

/// The data file that holds these bytes.
fn newest_data(upper: &Path, bytes: &[u8]) -> PathBuf {
    let dirs = fs::read_dir(upper.join("data")).unwrap().flatten();
    let mut files = dirs.flat_map(|dir| fs::read_dir(dir.path()).unwrap().flatten());
    files.find(|file| fs::read(file.path()).unwrap() == bytes).unwrap().path()
}

/// What of a reading is not as in the sound one.
fn differences(sound: &Reading, found: &Reading) -> Vec<String> {
    let mut paths: Vec<String> = sound.keys().chain(found.keys()).cloned().collect();
    paths.sort_unstable();
    paths.dedup();
    paths.retain(|path| sound.get(path) != found.get(path));
    paths
}

#[test]
fn one_flipped_bit_in_each_kind_of_file() {
    let world = World::new();
    let sound_store = world.copy("sound");
    let sound = world.read(&sound_store).unwrap();
    assert!(sound.values().all(Result::is_ok) && sound.len() > MANY);
    let count = cases(&world.dir.path().join("pristine")).len();
    println!("| one bit of | use | verify-store | gc | --repair |\n|---|---|---|---|---|");
    for number in 0..count {
        let store = world.copy(&format!("case-{number}"));
        let case = cases(&store).swap_remove(number);
        if !case.made.is_empty() {
            fs::write(&case.file, &case.made).unwrap();
        }
        flip(&case.file, case.at);
        one_case(&world, &store, &case, &sound);
        fs::remove_dir_all(&store).unwrap();
    }
    version_is_refused(&world);
    pin_of_a_running_mount(&world, &sound);
    kept_download(&world);
}

fn one_case(world: &World, store: &Path, case: &Case, sound: &Reading) {
    let what = case.what;
    let before = world.verify(store, false);
    let kinds: Vec<&str> = before.1["findings"]
        .as_array()
        .unwrap_or_else(|| panic!("{what}: {before:?}"))
        .iter()
        .filter(|finding| finding["damage"] == true)
        .filter_map(|finding| finding["kind"].as_str())
        .collect();
    assert_eq!(before.0, Some(if case.finding.is_empty() { 0 } else { 3 }), "{what}: {before:#?}");
    assert!(case.finding.is_empty() == kinds.is_empty(), "{what}: {kinds:?}");
    assert!(case.finding.is_empty() || kinds.contains(&case.finding), "{what}: {kinds:?}");
    let gc = world.run(store, &["gc", "--dry-run"]);
    assert_eq!(gc.status.success(), !case.gc_refuses, "{what}: gc: {}", text(&gc));
    assert!(!case.gc_refuses || text(&gc).contains("nothing was collected"), "{what}: {}", text(&gc));
    // A use that goes on without the last record changes the journal, so it comes on a copy.
    let used = world.dir.path().join("used");
    assert!(Command::new("cp").arg("-a").arg(store).arg(&used).status().unwrap().success());
    let usage = match world.read(&used) {
        Ok(found) => {
            assert_eq!(case.refused, "", "{what}: was used");
            let lost = differences(sound, &found);
            let expected = |path: &String| {
                case.lost.iter().any(|lost| path == lost || path.starts_with(&format!("{lost}/")))
            };
            assert!(lost.iter().all(expected), "{what}: {:?}", &lost[..lost.len().min(5)]);
            assert_eq!(lost.is_empty(), case.lost.is_empty(), "{what}");
            let errno = lost.iter().find_map(|path| found.get(path)?.as_ref().err());
            match (case.lost, errno) {
                ([], _) => "nothing".to_owned(),
                (_, Some(errno)) => {
                    assert_eq!(*errno, libc::EIO, "{what}");
                    is_logged_once(&used, case.lost[0], &before.1);
                    format!("EIO at {}", case.lost[0])
                }
                (_, None) => format!("{} is not what was written", case.lost[0]),
            }
        }
        Err(reason) => {
            assert!(!case.refused.is_empty() && reason.contains(case.refused), "{what}: {reason}");
            "the mount is refused".to_owned()
        }
    };
    fs::remove_dir_all(&used).unwrap();
    let (status, repaired) = world.verify(store, true);
    assert_eq!(status, Some(0), "{what}: {repaired:#?}");
    let deeds: Vec<&str> =
        repaired["actions"].as_array().unwrap().iter().filter_map(|a| a["deed"].as_str()).collect();
    assert_eq!(deeds.join(", "), case.deed, "{what}");
    world.must(store, &["gc"]);
    let left = differences(sound, &world.read(store).unwrap());
    let allowed = |path: &String| {
        case.after.iter().any(|p| p == path) || case.deed.is_empty() && case.lost.contains(&&**path)
    };
    assert!(
        left.iter().all(allowed),
        "{what}: after the repair {:?} are different",
        &left[..left.len().min(5)]
    );
    let or_none = |text: &str| if text.is_empty() { "nothing".to_owned() } else { text.to_owned() };
    let gc = if case.gc_refuses { "refuses" } else { "works" };
    println!("| {what} | {usage} | {} | {gc} | {} |", or_none(case.finding), or_none(case.deed));
}

/// The log of the mount has one line that names the object, the path and the environment.
fn is_logged_once(store: &Path, path: &str, report: &serde_json::Value) {
    let mut envs = fs::read_dir(store.join("env")).unwrap().flatten();
    let log = fs::read_to_string(envs.next().unwrap().path().join("mount.log")).unwrap();
    let findings = report["findings"].as_array().unwrap();
    for finding in findings.iter().filter(|finding| finding["kind"] == "corrupt-object") {
        let object = finding["object"].as_str().unwrap();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(object)).collect();
        assert_eq!(lines.len(), 1, "{path}: {log}");
        assert!(lines[0].contains(&format!("{path} in dev")), "{}", lines[0]);
    }
}

/// A pin counts while its mount lives, so this case needs one. It goes with the mount, damaged or not.
fn pin_of_a_running_mount(world: &World, sound: &Reading) {
    let store = world.copy("pinned");
    let mount = world.mount(&store).unwrap();
    let pins = || fs::read_dir(store.join("store/pins")).unwrap().flatten().map(|pin| pin.path());
    let pin = pins().next().expect("a pin");
    flip(&pin, fs::metadata(&pin).unwrap().len() / 2);
    for repair in [false, true] {
        let (status, report) = world.verify(&store, repair);
        let kinds: Vec<_> = report["findings"].as_array().unwrap().iter().map(|f| &f["kind"]).collect();
        assert!(status == Some(3) && kinds == ["corrupt-pin"], "{status:?} {report:#}");
        assert!(report["actions"].as_array().is_none_or(Vec::is_empty), "{report:#}");
    }
    let gc = world.run(&store, &["gc"]);
    assert!(!gc.status.success() && text(&gc).contains("nothing was collected"), "{}", text(&gc));
    assert_eq!(fs::read(mount.join("few/small")).unwrap(), b"a small file\n");
    world.must(&store, &["umount", "dev"]);
    assert_eq!((pins().count(), world.verify(&store, false).0), (0, Some(0)));
    world.must(&store, &["gc"]);
    assert_eq!(differences(sound, &world.read(&store).unwrap()), [""; 0]);
    println!(
        "| pin of a running mount | nothing | corrupt-pin | refuses | nothing; it goes with its mount |"
    );
}

/// An image that was downloaded is kept, and taken again only when its bytes are those that came.
fn kept_download(world: &World) {
    let few = world.dir.path().join("image/few");
    let archive = Command::new("tar").arg("-C").arg(few).args(["-cf", "-", "small"]).output().unwrap().stdout;
    assert!(!archive.is_empty());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/image.tar", listener.local_addr().unwrap());
    // Two downloads: what is kept is not asked for where nothing is known of it.
    let server = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut client, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            assert!(std::io::Read::read(&mut client, &mut request).unwrap() > 0);
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", archive.len());
            std::io::Write::write_all(&mut client, &[head.as_bytes(), &archive].concat()).unwrap();
        }
    });
    let store = world.dir.path().join("downloaded");
    world.must(&store, &["import", &url, "--name", "one"]);
    let key = fs::read_dir(store.join("images")).unwrap().flatten().find(|dir| dir.path().is_dir()).unwrap();
    let kept = key.path().join("archive");
    let whole = fs::read(&kept).unwrap();
    flip(&kept, whole.len() as u64 / 2);
    assert_eq!(world.verify(&store, false).0, Some(0));
    world.must(&store, &["gc"]);
    let (status, report) = world.verify(&store, true);
    assert!(status == Some(0) && report["actions"].as_array().unwrap().is_empty(), "{report:#}");
    world.must(&store, &["import", &url, "--name", "two"]);
    assert_eq!(fs::read(&kept).unwrap(), whole);
    server.join().unwrap();
    println!("| kept download of an image | downloaded again | nothing | works | nothing |");
}

fn version_is_refused(world: &World) {
    let store = world.copy("version");
    flip(&store.join("store/version"), 0);
    for args in [&["list"][..], &["verify-store"], &["verify-store", "--repair"], &["gc"]] {
        let output = world.run(&store, args);
        assert_eq!(output.status.code(), Some(3), "{args:?}: {}", text(&output));
        assert!(text(&output).contains("version"), "{}", text(&output));
    }
    println!("| version | everything is refused | refused | refuses | refused |");
}
