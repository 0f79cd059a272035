//! Power cuts: the store lies on an ext4 whose disk loses what was not flushed. Then the machine has been
//! started anew; or, every other time, only the disk was gone and came back. Afterwards metadata is a prefix
//! of the operations, not shorter than the last fsync; each file has its last synced content or a later one;
//! a rename over a file leaves one of both; acknowledged snapshots are there.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::device::{Disk, Image, run, write_image};
use crate::model::{Node, Op, Random, Tree};
use crate::session::{Session, Step};
use crate::world::{Check, ENV, Snapshot};
use crate::{long, need_root, seeds, side_by_side};

const SIZE: u64 = 160 << 20;

/// What an operation makes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncs {
    Nothing,
    /// The bytes of one file.
    Bytes(u32),
    /// Every operation so far, and the bytes of one file.
    Operations(Option<u32>),
    /// Everything.
    All,
}

/// The log of a workload: the tree after each operation, written down before it begins.
#[derive(Debug, Default)]
pub struct History {
    trees: Vec<Tree>,
    syncs: Vec<Syncs>,
    /// So many have returned.
    returned: usize,
    /// Acknowledged snapshots, and after how many operations.
    snapshots: Vec<(usize, Snapshot)>,
}

impl History {
    /// An operation begins.
    pub fn begin(&mut self, before: &Tree, op: &Op, after: &Tree) {
        let file = |path: &str| match before.names.get(path) {
            Some(Node::File { file }) => Some(*file),
            _ => None,
        };
        let syncs = match op {
            Op::Fsync { path } => Syncs::Operations(file(path)),
            // What takes the place of something is synced first.
            Op::Rename { from, to } if before.names.contains_key(to) => {
                file(from).map_or(Syncs::Nothing, Syncs::Bytes)
            }
            _ => Syncs::Nothing,
        };
        self.push(after.clone(), syncs);
    }

    /// Something begins after which all is durable.
    pub fn begin_durable(&mut self, after: &Tree) {
        self.push(after.clone(), Syncs::All);
    }

    fn push(&mut self, tree: Tree, syncs: Syncs) {
        self.trees.push(tree);
        self.syncs.push(syncs);
    }

    /// What was begun last has returned.
    pub fn end(&mut self) {
        self.returned = self.trees.len();
    }

    /// A snapshot was acknowledged.
    pub fn acknowledge(&mut self, snapshot: &Snapshot) {
        self.snapshots.push((self.returned, snapshot.clone()));
    }

    /// A snapshot is about to be removed: it may be there or not.
    pub fn forget(&mut self, snapshot: &Snapshot) {
        self.snapshots.retain(|(_, known)| known.hash != snapshot.hash);
    }

    /// Whether a power cut may leave `found`, when `returned` operations had returned and `begun` had begun.
    fn allows(&self, found: &Tree, returned: usize, begun: usize) -> Check<()> {
        let durable = |i: &usize| matches!(self.syncs[*i], Syncs::Operations(_) | Syncs::All);
        let first = (0..returned).rev().find(durable).unwrap_or(0);
        let mut why = BTreeSet::new();
        for prefix in (first..begun).rev() {
            match self.trees[prefix].shape_difference(found) {
                Some(shape) => why.insert(format!("after {prefix}: {shape}")),
                None => match self.allows_contents(prefix, found, returned, begun) {
                    Ok(()) => return Ok(()),
                    Err(error) => why.insert(format!("after {prefix}: {error}")),
                },
            };
        }
        Err(format!("{first}..{begun}, {returned} had returned: {why:?}"))
    }

    fn allows_contents(&self, prefix: usize, found: &Tree, returned: usize, begun: usize) -> Check<()> {
        for (path, node) in &self.trees[prefix].names {
            let Node::File { file } = node else { continue };
            let synced = |i: &usize| match self.syncs[*i] {
                Syncs::All => true,
                Syncs::Operations(Some(f)) => f == *file,
                // Under its old name, where the rename is not among the operations that are left, nobody had
                // asked for its bytes: that it is empty is the moment between its creation and the first
                // write.
                Syncs::Bytes(f) => f == *file && *i <= prefix,
                _ => false,
            };
            let since = (0..returned).rev().find(synced).unwrap_or(0);
            let versions: Vec<&Arc<Vec<u8>>> = self.trees[since..begun]
                .iter()
                .filter_map(|tree| tree.files.get(file))
                .map(|c| &c.bytes)
                .collect();
            let now = found.content(path).map(|c| c.bytes.clone()).unwrap_or_default();
            allowed_bytes(&now, &versions)
                .map_err(|why| format!("{path} (file {file}, synced at {since}): {why}"))?;
        }
        Ok(())
    }
}

/// Every byte is that of one of the versions, or zero beyond the end of one; and the length lies between
/// theirs.
fn allowed_bytes(now: &[u8], versions: &[&Arc<Vec<u8>>]) -> Check<()> {
    let mut distinct: Vec<&Arc<Vec<u8>>> = Vec::new();
    for version in versions {
        if !distinct.iter().any(|known| Arc::ptr_eq(known, version)) {
            distinct.push(version);
        }
    }
    let lengths = distinct.iter().map(|v| v.len());
    let (Some(shortest), Some(longest)) = (lengths.clone().min(), lengths.max()) else {
        return Err("the file was not there".to_owned());
    };
    if now.len() < shortest || now.len() > longest {
        return Err(format!("{} bytes where {shortest} to {longest} are allowed", now.len()));
    }
    if distinct.iter().any(|version| version.as_slice() == now) {
        return Ok(());
    }
    let fits = |(i, byte): (usize, &u8)| distinct.iter().any(|v| v.get(i).map_or(*byte == 0, |b| b == byte));
    match now.iter().enumerate().position(|at| !fits(at)) {
        Some(at) => Err(format!("byte {at} is {} and was never that", now[at])),
        None => Ok(()),
    }
}

/// One moment at which the power went.
struct Cut {
    image: Image,
    returned: usize,
    begun: usize,
}

/// An ext4 on the disk, unmounted at the end.
struct Mounted {
    dir: PathBuf,
}

impl Mounted {
    fn new(image: &Path, dir: &Path, options: &str) -> Mounted {
        fs::create_dir_all(dir).expect("a directory");
        run(Command::new("mount").args(["-o", options]).arg(image).arg(dir)).expect("mount");
        Mounted { dir: dir.to_owned() }
    }

    /// `below` once more, passed through by a FUSE server.
    fn passed_through(below: &Path, dir: &Path) -> Mounted {
        fs::create_dir_all(dir).expect("a directory");
        run(Command::new("bindfs").arg(below).arg(dir)).expect("bindfs (the package bindfs)");
        Mounted { dir: dir.to_owned() }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A process that is just being started in another thread has a copy of our descriptors for a moment.
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Err(error) = run(Command::new("umount").arg(&self.dir)) {
            if Instant::now() > deadline {
                eprintln!("{error}");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The kernel may write back any file at any time, in any order: so does this.
fn write_back(store: &Path, random: &mut Random) {
    let mut files = Vec::new();
    let mut dirs = vec![store.join("env")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    // The journal more often than the rest: its records are what must not outlive their bytes.
    let journal = files.iter().find(|path| path.ends_with("journal")).cloned();
    let picked = if random.below(2) == 0 { journal } else { random.pick(&files).cloned() };
    if let Some(file) = picked.and_then(|path| File::open(path).ok()) {
        // It may be gone by now; then there is nothing to write.
        drop(file.sync_data());
    }
}

fn workload(session: &mut Session, random: &mut Random, operations: usize) -> Check<()> {
    let broken = |broken| format!("{broken:?}");
    session.step(Step::Mount).map_err(broken)?;
    session.step(Step::Fixed).map_err(broken)?;
    while session.done < operations as u64 {
        let step = match random.below(16) {
            0 if session.snapshots.len() < 6 => Step::Commit,
            1 => Step::Restore,
            2 if session.snapshots.len() < 6 => Step::CommitCommand,
            3 if session.snapshots.len() > 3 => Step::RemoveSnapshot,
            _ => Step::Files(8),
        };
        session.step(step).map_err(broken)?;
    }
    Ok(())
}

/// What lies between the store and the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    /// ext4 with these mount options.
    Ext4(&'static str),
    /// That, and a FUSE server above it, which the kernel asks neither for syncfs nor, as most have none, for
    /// fsync of directories.
    Bindfs(&'static str),
}

impl Host {
    fn options(self) -> &'static str {
        let (Host::Ext4(options) | Host::Bindfs(options)) = self;
        options
    }
}

/// Runs a workload on a disk and cuts the power so many times; each time what is left is looked at
/// afterwards.
fn power_cuts(seed: u64, host: Host, cuts: usize) {
    let scratch =
        tempfile::Builder::new().prefix("karapace-power-").tempdir_in("/dev/shm").expect("/dev/shm");
    let disk = Disk::formatted(scratch.path(), SIZE).expect("a disk");
    let served = scratch.path().join("disk");
    fs::create_dir(&served).expect("a directory");
    let serving = disk.serve(&served).expect("the disk");
    let mut random = Random::new(seed ^ 0x30b);
    let what = format!("power cuts (seed {seed}, {host:?})");
    let (history, taken) = {
        let mounted = Mounted::new(&served.join("image"), &scratch.path().join("host"), host.options());
        let through = matches!(host, Host::Bindfs(_))
            .then(|| Mounted::passed_through(&mounted.dir, &scratch.path().join("through")));
        let mut session = Session::at(&through.as_ref().unwrap_or(&mounted).dir, seed);
        let history = Arc::new(Mutex::new(History::default()));
        history.lock().expect("history").begin_durable(&session.model);
        history.lock().expect("history").end();
        session.history = Some(history.clone());
        let (done, store) = (AtomicBool::new(false), session.world.store());
        let mut taken = Vec::new();
        std::thread::scope(|scope| {
            let cutter = scope.spawn(|| {
                let mut random = Random::new(seed ^ 0xc07);
                let mut taken = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    for _ in 0..random.below(4) {
                        write_back(&store, &mut random);
                    }
                    let returned = history.lock().expect("history").returned;
                    let image = disk.cut(&mut random);
                    let begun = history.lock().expect("history").trees.len();
                    taken.push(Cut { image, returned, begun });
                    std::thread::sleep(Duration::from_millis(20 + random.below(60) as u64));
                }
                taken
            });
            if let Err(error) = workload(&mut session, &mut random, if long() { 1500 } else { 400 }) {
                done.store(true, Ordering::Relaxed);
                session.fail(&what, &error);
            }
            done.store(true, Ordering::Relaxed);
            taken = cutter.join().expect("the cutter");
        });
        session.history = None;
        session.world.kill();
        (history, taken)
    };
    drop(serving);
    let history = history.lock().expect("history");
    // Those that are looked at, spread over all.
    let step = (taken.len() / cuts).max(1);
    for (looked, (number, cut)) in taken.iter().enumerate().skip(1).step_by(step).enumerate() {
        // A name of its own: the loop device of the one before may not be gone yet.
        let image = scratch.path().join(format!("cut{number}"));
        write_image(&cut.image, SIZE, &image).expect("an image");
        let mounted = Mounted::new(&image, &scratch.path().join("after"), "rw");
        let mut session = Session::after(&mounted.dir, seed);
        let restarted = looked % 2 == 0;
        session.world.restarted = restarted;
        if let Err(error) = check_cut(&mut session, &history, cut) {
            let kept = std::env::temp_dir().join(format!("karapace-cut-{seed}-{number}"));
            fs::copy(&image, &kept).expect("a copy");
            eprintln!("the image is kept in {}", kept.display());
            let what = format!("{what}, cut {number} of {}, restarted: {restarted}", taken.len());
            session.fail(&what, &error);
        }
        drop(session);
        drop(mounted);
        fs::remove_file(&image).expect("the image");
    }
    println!(
        "{} cuts over {} operations, every {step}th looked at: {what}",
        taken.len(),
        history.trees.len()
    );
}

fn check_cut(session: &mut Session, history: &History, cut: &Cut) -> Check<()> {
    if !session.world.mount()? {
        return Err(format!("{ENV} cannot be mounted"));
    }
    let found = session.world.live()?;
    history.allows(&found, cut.returned, cut.begun)?;
    let acknowledged: Vec<Snapshot> = history
        .snapshots
        .iter()
        .filter(|(after, _)| *after <= cut.returned)
        .map(|(_, s)| s.clone())
        .collect();
    session.snapshots = session.world.check_snapshots(&acknowledged, &history.trees[..cut.begun])?;
    session.resume(found);
    session.check_all(1)
}

fn power_cuts_on(rounds: u64, cuts: usize, hosts: &[Host]) {
    need_root();
    let on = |seed| hosts.iter().map(move |host| (seed, *host));
    let work: Vec<(u64, Host)> = seeds(rounds).into_iter().flat_map(on).collect();
    side_by_side(&work, |(seed, host)| power_cuts(*seed, *host, cuts));
}

#[test]
fn power_cuts_at_random_times() {
    let (rounds, cuts) = if long() { (8, 60) } else { (1, 8) };
    power_cuts_on(rounds, cuts, &["loop,commit=1", "loop,commit=1,nodelalloc"].map(Host::Ext4));
}

/// ext4 commits its journal by itself as seldom as it does on a machine of a user.
#[test]
fn power_cuts_on_a_fuse_file_system() {
    let (rounds, cuts) = if long() { (8, 60) } else { (1, 16) };
    power_cuts_on(rounds, cuts, &["loop", "loop,nodelalloc"].map(Host::Bindfs));
}
