//! A mounted view with a fake engine.

use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use karapace_fs::attr::{HeadRef, Told};
use karapace_fs::control::{Command, CommandError, ControlId, ControlPlane, SnapshotInfo};
use karapace_fs::session::{Invalidator, MountOptions, Serving, UnmountHandle, Watchers};
use karapace_fs::view::View;
use karapace_store::Store;
use karapace_store::batch::Batch;
use karapace_store::content;
use karapace_store::id::{LayerHash, ObjectId, RecordId};
use karapace_store::inode::{Body, Ino, InodeRecord, ROOT_INO, Timestamp, Xattrs};
use karapace_store::root::Root;
use karapace_store::tree::{Entry, Target, Trees, write_dir};
use parking_lot::Mutex;

/// A fake engine: records what it was asked for, and invents snapshots.
#[derive(Default)]
pub struct FakePlane {
    pub asked: Mutex<Vec<Command>>,
    pub snapshots: Mutex<Vec<SnapshotInfo>>,
    /// While set, `restore wait` and `gc` do not return.
    pub hold: AtomicBool,
    root: Mutex<Option<ObjectId>>,
}

impl FakePlane {
    /// A plane whose snapshots have this root.
    pub fn new(root: ObjectId) -> FakePlane {
        FakePlane { root: Mutex::new(Some(root)), ..FakePlane::default() }
    }

    pub fn hash(number: usize) -> String {
        format!("{number:064x}")
    }

    fn wait(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.hold.load(Ordering::SeqCst) {
            assert!(Instant::now() < end, "the test never let go");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn commit(&self, name: Option<String>, message: Option<String>) -> Result<String, CommandError> {
        let mut snapshots = self.snapshots.lock();
        if name.is_some() && snapshots.iter().any(|s| s.name == name) {
            return Err(CommandError { errno: libc::EEXIST, reason: "the name is taken".into() });
        }
        let hash = FakePlane::hash(snapshots.len() + 1);
        let root = self.root.lock().expect("a root was given");
        snapshots.push(SnapshotInfo {
            hash: hash.clone(),
            name,
            message,
            created_at: Timestamp::now(),
            root,
        });
        Ok(format!("commit {hash}"))
    }
}

impl ControlPlane for FakePlane {
    fn id(&self) -> ControlId {
        ControlId {
            env_id: "e".repeat(64),
            short_id: "e".repeat(12),
            name: "played".into(),
            instance: "1".repeat(32),
        }
    }

    fn execute(&self, command: &Command) -> Result<String, CommandError> {
        self.asked.lock().push(command.clone());
        match command {
            Command::Commit { name, message, .. } => self.commit(name.clone(), message.clone()),
            Command::Restore { reference, .. } if reference == "wait" => {
                self.wait();
                Ok("restore wait".into())
            }
            Command::Restore { reference, .. } if reference == "panic" => panic!("asked to"),
            Command::Restore { reference, .. } => {
                let known = self.snapshots.lock().iter().any(|s| s.hash.starts_with(reference));
                if known {
                    return Ok(format!("restore {reference}"));
                }
                Err(CommandError { errno: libc::ENOENT, reason: format!("no snapshot\nmatches {reference}") })
            }
            Command::Gc { .. } => {
                self.wait();
                Ok("gc 0 objects".into())
            }
            Command::Verify => Err(CommandError { errno: libc::EIO, reason: "object 00 is corrupt".into() }),
            Command::DropName { name } => {
                self.snapshots
                    .lock()
                    .iter_mut()
                    .filter(|s| s.name.as_ref() == Some(name))
                    .for_each(|s| s.name = None);
                Ok(format!("drop-name {name}"))
            }
            Command::RemoveSnapshots { .. } | Command::Diff { .. } | Command::Status | Command::Store => {
                panic!("no control file asks for {command:?}")
            }
        }
    }

    fn state(&self) -> String {
        "Built".into()
    }

    fn latest(&self) -> Option<String> {
        self.snapshots.lock().last().map(|s| s.hash.clone())
    }

    fn snapshots(&self) -> Vec<SnapshotInfo> {
        self.snapshots.lock().clone()
    }

    fn head(&self) -> String {
        FakePlane::hash(self.snapshots.lock().len())
    }

    fn base(&self) -> String {
        FakePlane::hash(0)
    }
}

/// A view being served; unmounted at the end.
pub struct Served {
    pub invalidator: Invalidator,
    pub unmounter: UnmountHandle,
    pub watchers: Watchers,
    pub serving: Serving,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Served {
    pub fn new(
        view: &Arc<View>,
        trees: &Arc<Trees>,
        plane: Option<Arc<FakePlane>>,
        dir: &Path,
        options: &MountOptions,
    ) -> Served {
        assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse: load the fuse module");
        let plane = plane.map(|plane| -> Arc<dyn ControlPlane> { plane });
        let serving = Serving::new(view.clone(), trees.clone(), plane).expect("a thread");
        let session = serving
            .mount(dir, "karapace+test", options)
            .expect("these tests need the right to mount (run them as root)");
        let (invalidator, unmounter) = (serving.invalidator(), session.unmount_handle());
        let watchers = serving.watchers();
        let thread = Some(std::thread::spawn(move || session.wait()));
        Served { invalidator, unmounter, watchers, serving, thread }
    }

    /// Waits until the mount has ended.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("serving does not panic").expect("serving ends well");
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.unmounter.unmount().is_err() {
            self.unmounter.detach().expect("cannot unmount");
        }
        if !std::thread::panicking() {
            self.join();
        }
    }
}

/// A mount that ends with the test.
pub struct Mount {
    pub view: Arc<View>,
    pub plane: Arc<FakePlane>,
    pub served: Served,
    dir: PathBuf,
    fixture: Fixture,
}

impl Mount {
    pub fn new() -> Mount {
        Mount::with(|_| {})
    }

    /// A mount with options that `change` sets.
    pub fn with(change: impl FnOnce(&mut MountOptions)) -> Mount {
        Mount::below(&std::env::temp_dir(), change)
    }

    /// A mount whose store and upper are below `place`.
    pub fn below(place: &Path, change: impl FnOnce(&mut MountOptions)) -> Mount {
        Mount::of(Fixture::new(place), change)
    }

    fn of(fixture: Fixture, change: impl FnOnce(&mut MountOptions)) -> Mount {
        let view = Arc::new(fixture.view());
        let plane = Arc::new(FakePlane::new(view.head().root));
        let dir = fixture.root.path().join("mnt");
        let mut options = MountOptions::default();
        change(&mut options);
        let served = Served::new(&view, &fixture.trees, Some(plane.clone()), &dir, &options);
        Mount { view, plane, served, dir, fixture }
    }

    /// Makes a snapshot with the view alone, because the engine is fake.
    pub fn commit(&self) -> HeadRef {
        let before = self.view.head();
        crate::common::commit::commit(&self.view, &mut |root| HeadRef { root, ..before })
            .expect("commit")
            .expect("something to commit")
    }

    /// Makes the view equal to a snapshot, and tells the kernel. Returns the events for watchers.
    pub fn restore(&self, target: HeadRef) -> Vec<Told> {
        let generation = self.view.clean_generation().expect("diff").expect("nothing uncommitted");
        let changed = self.view.restore(target, generation).expect("restore");
        self.served.invalidator.send(&changed.stale).expect("send");
        changed.told
    }

    /// A second view of the same upper, as the next mount would find it after a kill; it changes nothing on
    /// disk.
    pub fn reopened(&self) -> View {
        let Fixture { store, trees, root } = &self.fixture;
        View::open(store, trees, &root.path().join("store/upper"), self.view.head(), true).expect("view")
    }

    /// A second, read-only mount of the same upper.
    pub fn again(&self, change: impl FnOnce(&mut MountOptions)) -> Again {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut options = MountOptions::default();
        change(&mut options);
        let served = Served::new(&Arc::new(self.reopened()), &self.fixture.trees, None, dir.path(), &options);
        Again { _served: served, dir }
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.fixture.store
    }

    /// The store's directory of objects.
    pub fn objects(&self) -> PathBuf {
        self.fixture.root.path().join("store/store/objects")
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.join(below)
    }

    /// A file of the control directory.
    pub fn control(&self, below: &str) -> PathBuf {
        self.dir.join(".karapace").join(below)
    }

    pub fn read_control(&self, below: &str) -> String {
        std::fs::read_to_string(self.control(below)).expect(below)
    }

    /// Runs a script in the root of the mount.
    pub fn run(&self, program: &str, script: &str) -> Output {
        let output =
            Process::new(program).arg("-c").arg(script).current_dir(&self.dir).env("LC_ALL", "C").output();
        output.unwrap_or_else(|e| panic!("these tests need {program}: {e}"))
    }

    /// Runs a script that must succeed; returns its output.
    pub fn ok(&self, program: &str, script: &str) -> String {
        let output = self.run(program, script);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{program}: {script}\n{out}\n{err}");
        out.into_owned()
    }

    /// Runs a script that must fail; returns its stderr.
    pub fn fails(&self, program: &str, script: &str) -> String {
        let output = self.run(program, script);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{program} should have failed: {script}\n{err}");
        err
    }
}

/// Another mount of a view, on a directory of its own.
pub struct Second {
    dir: tempfile::TempDir,
    unmounter: UnmountHandle,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Second {
    pub fn of(mount: &Mount) -> Second {
        Second::with(mount, |_| {})
    }

    pub fn for_sessions(mount: &Mount) -> Second {
        Second::with(mount, |options| options.for_sessions = true)
    }

    pub fn with(mount: &Mount, change: impl FnOnce(&mut MountOptions)) -> Second {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut options = MountOptions { shares: true, ..MountOptions::default() };
        change(&mut options);
        let session = mount.served.serving.mount(dir.path(), "karapace+second", &options).expect("mount");
        let unmounter = session.unmount_handle();
        let thread = Some(std::thread::spawn(move || session.wait()));
        Second { dir, unmounter, thread }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        if self.unmounter.unmount().is_err() {
            self.unmounter.detach().expect("cannot unmount");
        }
        if let Some(thread) = self.thread.take().filter(|_| !std::thread::panicking()) {
            thread.join().expect("serving does not panic").expect("serving ends well");
        }
    }
}

/// See [`Mount::again`]. It is unmounted before its directory is removed.
pub struct Again {
    _served: Served,
    pub dir: tempfile::TempDir,
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.plane.hold.store(false, Ordering::SeqCst);
    }
}

/// A store with one tree: a file `base-file` with the content "base", owned by root.
struct Fixture {
    store: Arc<Store>,
    trees: Arc<Trees>,
    root: tempfile::TempDir,
}

impl Fixture {
    fn new(place: &Path) -> Fixture {
        let root = tempfile::tempdir_in(place).expect("temporary directory");
        std::fs::create_dir(root.path().join("mnt")).expect("mount point");
        let store = Store::open(&root.path().join("store")).expect("store");
        let trees = Arc::new(Trees::new(store.clone()));
        Fixture { store, trees, root }
    }

    fn view(&self) -> View {
        let root = self.base().expect("a tree to start from");
        let head =
            HeadRef { layer: LayerHash::from_bytes([0; 32]), record: RecordId::from_bytes([0; 32]), root };
        View::open(&self.store, &self.trees, &self.root.path().join("store/upper"), head, false)
            .expect("view")
    }

    fn base(&self) -> karapace_store::Result<ObjectId> {
        let mut batch = Batch::new(&self.store)?;
        let content = content::ingest(&mut &b"base\n"[..], &mut batch)?;
        let file = record(2, libc::S_IFREG | 0o644, 1, Body::Regular(content));
        let entry = Entry { name: (*b"base-file").into(), target: Target::Inode(file) };
        let dir = write_dir(&mut batch, &mut [entry].into_iter())?;
        let body = Body::Directory { tree: dir.tree, links: dir.links };
        let root = Root { inode: record(ROOT_INO, libc::S_IFDIR | 0o755, 2, body), links: None, next_ino: 3 };
        let id = root.write(&mut batch)?;
        batch.commit()?;
        Ok(id)
    }
}

fn record(ino: Ino, mode: u32, nlink: u32, body: Body) -> InodeRecord {
    let time = Timestamp { secs: 1_000_000_000, nanos: 5 };
    InodeRecord {
        ino,
        mode,
        nlink,
        uid: 0,
        gid: 0,
        rdev: 0,
        atime: time,
        mtime: time,
        ctime: time,
        xattrs: Xattrs::default(),
        body,
    }
}
