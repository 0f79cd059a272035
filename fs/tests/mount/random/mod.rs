//! Runs the same random system calls on a real mount and on a plain directory, and compares results, changed
//! times and trees.
//!
//! Half of the files come from the lower view: the plain directory is imported before the first call.
//! `KARAPACE_MODEL_CASES` sets the number of sequences; the seed is printed, and `KARAPACE_MODEL_SEED`
//! repeats a run.

mod acl;
mod dump;
mod ops;
mod side;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use karapace_fs::attr::HeadRef;
use karapace_fs::session::MountOptions;
use karapace_fs::view::View;
use karapace_store::Store;
use karapace_store::id::{LayerHash, ObjectId, RecordId};
use karapace_store::import::import_path;
use karapace_store::progress::NoProgress;
use karapace_store::tree::Trees;
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, statfs};

use self::ops::{Flags, Op, Step, step};
use self::side::{CAPABILITY, Side};
use crate::common::generator::{P, run_random};
use crate::mount::support::Served;

/// Number of calls in a sequence.
const LENGTH: usize = 100;

/// Number of calls between comparisons of the whole trees.
const COMPARE: usize = 25;

/// The mount and its store.
struct Mounted {
    side: Side,
    served: Option<Served>,
    view: Arc<View>,
    trees: Arc<Trees>,
    store: Arc<Store>,
    upper: PathBuf,
    heads: u8,
}

fn head(root: ObjectId, n: u8) -> HeadRef {
    HeadRef { layer: LayerHash::from_bytes([n; 32]), record: RecordId::from_bytes([n; 32]), root }
}

impl Mounted {
    /// Mounts below `dir` a view whose lower is a copy of `plain`.
    fn new(dir: &Path, plain: &Path) -> Mounted {
        let store = Store::open(&dir.join("store")).expect("store");
        let root = import_path(&store, plain, &NoProgress).expect("import").root;
        let (upper, mountpoint) = (dir.join("store/upper"), dir.join("mount"));
        std::fs::create_dir(&mountpoint).expect("mount point");
        let trees = Arc::new(Trees::new(store.clone()));
        let view = Arc::new(View::open(&store, &trees, &upper, head(root, 0), false).expect("view"));
        let served = Some(Served::new(&view, &trees, None, &mountpoint, &MountOptions::default()));
        Mounted { side: Side::new(&mountpoint), served, view, trees, store, upper, heads: 1 }
    }

    fn commit(&mut self) {
        let n = self.heads;
        self.heads = n.wrapping_add(1);
        crate::common::commit::commit(&self.view, &mut |root| head(root, n)).expect("commit");
    }

    /// Unmounts and mounts again; only what is on disk is kept.
    fn remount(&mut self) {
        self.side.close();
        self.served = None;
        self.trees = Arc::new(Trees::new(self.store.clone()));
        let view = View::open(&self.store, &self.trees, &self.upper, self.view.head(), false);
        self.view = Arc::new(view.expect("view"));
        self.served =
            Some(Served::new(&self.view, &self.trees, None, &self.side.dir, &MountOptions::default()));
        self.side.open();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.side.close();
    }
}

/// Both sides, and the state of a run.
struct Run {
    mounted: Mounted,
    plain: Side,
    start: i64,
    /// Whether every change shows in the times on the plain side.
    exact_times: bool,
    _dir: tempfile::TempDir,
}

impl Run {
    fn new() -> Run {
        let dir = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir_in(disk());
        let dir = dir.expect("temporary directory");
        let plain = dir.path().join("plain");
        std::fs::create_dir(&plain).expect("plain directory");
        let exact_times = tells_changes_apart(&plain);
        let mut side = Side::new(&plain);
        for step in base() {
            side.apply(&step).0.unwrap_or_else(|errno| panic!("{step:?}: {errno}"));
        }
        side.close();
        side.open();
        let mut mounted = Mounted::new(dir.path(), &plain);
        for (slot, parts) in [[0, 0], [1, 0], [0, 1]].iter().enumerate() {
            let open = Op::Open(slot as u8, P(parts.to_vec()), Flags { access: 2, ..Flags::default() }, 0);
            for side in [&mut side, &mut mounted.side] {
                side.apply(&Step { who: 0, umask: 0, op: open.clone() }).0.expect("open");
            }
        }
        let start = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64;
        // New files have current times on both sides until they are changed.
        Run { mounted, plain: side, start: start - 3600, exact_times, _dir: dir }
    }

    /// Applies a step to both sides and compares. Returns whether the call succeeded.
    fn apply(&mut self, step: &Step) -> Result<bool, String> {
        match step.op {
            Op::Commit => self.mounted.commit(),
            Op::Checkpoint => self.mounted.view.checkpoint().expect("checkpoint"),
            Op::Remount => {
                self.plain.close();
                self.plain.open();
                self.mounted.remount();
            }
            _ => {}
        }
        let (plain, plain_times) = self.plain.apply(step);
        let (mounted, mounted_times) = self.mounted.side.apply(step);
        if plain != mounted {
            return Err(format!("{step:?}: plain {plain:?}, mount {mounted:?}"));
        }
        // ext4 does nothing when an attribute is set to its current value, and changes a directory's times
        // before it refuses to leave a whiteout.
        let doubtful = plain.is_err() || matches!(step.op, Op::SetXattr(..) | Op::SetAcl(..));
        if self.exact_times && !doubtful && plain_times != mounted_times {
            return Err(format!(
                "{step:?}: (mtime, ctime) changed: plain {plain_times:?}, mount {mounted_times:?}"
            ));
        }
        Ok(plain.is_ok())
    }

    fn compare(&self) -> Result<(), String> {
        self.plain.go();
        let plain = dump::dump(self.start);
        self.mounted.side.go();
        let mounted = dump::dump(self.start);
        for path in plain.keys().chain(mounted.keys()) {
            if plain.get(path) != mounted.get(path) {
                return Err(format!("{path:?}: plain {:?}, mount {:?}", plain.get(path), mounted.get(path)));
            }
        }
        Ok(())
    }
}

/// Returns the number of calls that succeeded.
fn run(steps: &[Step]) -> Result<u64, String> {
    let mut run = Run::new();
    run.compare().map_err(|why| format!("as imported: {why}"))?;
    let mut succeeded = 0;
    for (i, step) in steps.iter().enumerate() {
        succeeded += u64::from(run.apply(step)?);
        if i % COMPARE == COMPARE - 1 {
            run.compare().map_err(|why| format!("after {} calls: {why}", i + 1))?;
        }
    }
    run.compare().map_err(|why| format!("at the end: {why}"))?;
    run.mounted.remount();
    run.compare().map_err(|why| format!("after a remount: {why}"))?;
    run.mounted.commit();
    run.compare().map_err(|why| format!("after a commit: {why}"))?;
    run.mounted.remount();
    run.compare().map_err(|why| format!("after a commit and a remount: {why}"))?;
    Ok(succeeded)
}

/// Runs `test` in a thread with its own working directory, umask and file access ids.
fn apart<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        // proptest builds a sequence in stack frames of more than a megabyte each.
        let builder = std::thread::Builder::new().stack_size(16 << 20);
        let thread = builder.spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_FS).expect("a working directory of this thread's own");
            test()
        });
        let thread = thread.expect("a thread");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A directory on a disk-based file system to compare with. Others, such as tmpfs, refuse some attributes.
fn disk() -> PathBuf {
    let candidates = [std::env::temp_dir(), "/var/tmp".into(), env!("CARGO_TARGET_TMPDIR").into()];
    let disks = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC];
    let found =
        candidates.iter().find(|dir| statfs(*dir).is_ok_and(|s| disks.contains(&s.filesystem_type())));
    found.cloned().unwrap_or_else(|| {
        let [first, ..] = candidates;
        println!("NOTE: none of TMPDIR, /var/tmp and the target directory is on ext4, xfs or btrfs:");
        println!("NOTE: comparing with {}, whose own ways may show as differences", first.display());
        first
    })
}

/// Whether every change shows in the times (Linux 6.13; ext4, xfs and btrfs). Otherwise they are too coarse
/// to compare.
fn tells_changes_apart(dir: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let file = dir.join("probe");
    std::fs::write(&file, "").expect("probe");
    let ctime = || std::fs::metadata(&file).map(|m| (m.ctime(), m.ctime_nsec())).expect("probe");
    let apart = (0..20).all(|i| {
        let before = ctime();
        std::fs::set_permissions(&file, Permissions::from_mode(0o600 + i % 2)).expect("probe");
        ctime() != before
    });
    std::fs::remove_file(&file).expect("probe");
    apart
}

/// The tree to import: directories, small and large files with holes, links, owners, attributes and ACLs;
/// with old times.
fn base() -> Vec<Step> {
    let p = |parts: &[u8]| P(parts.to_vec());
    let flags = Flags { access: 2, create: true, ..Flags::default() };
    let mut ops = vec![
        Op::Mkdir(p(&[0]), 0o777),
        Op::Mkdir(p(&[1]), 0o755),
        Op::Open(0, p(&[0, 0]), flags, 0o666),
        Op::Pwrite(0, 0, 199_999, 7),
        Op::Pwrite(0, 1_100_000, 199_999, 9),
        Op::Open(1, p(&[1, 0]), flags, 0o4755),
        Op::Pwrite(1, 0, 70_000, 3),
        Op::Open(2, p(&[0, 1]), flags, 0o640),
        Op::Pwrite(2, 5000, 100, 3),
        Op::Link(p(&[0, 1]), p(&[1, 1]), false),
        Op::Symlink(p(&[2]), p(&[0, 0])),
        Op::Mknod(p(&[0, 2]), 1, 0o666),
        Op::Chown(p(&[0, 0]), 1, 1, false),
        Op::Chown(p(&[1]), 1, 3, false),
        Op::Chmod(p(&[1]), 0o2775),
        Op::SetXattr(p(&[0, 0]), 0, 50, 0),
        Op::SetAcl(p(&[0, 1]), 0),
        Op::SetAcl(p(&[1]), 5),
        Op::Chmod(p(&[1, 0]), 0o4755),
    ];
    for parts in [&[0, 0][..], &[1, 0], &[0, 1], &[0, 2], &[2], &[0], &[1]] {
        ops.push(Op::Utimens(p(parts), 2, 2));
    }
    let mut steps: Vec<Step> = ops.into_iter().map(|op| Step { who: 0, umask: 0, op }).collect();
    // Every user creates names in the root.
    steps.push(Step { who: 0, umask: 0, op: Op::Chmod(P(Vec::new()), 0o777) });
    steps
}

#[test]
fn random_calls_do_what_they_do_in_a_plain_directory() {
    apart(|| run_random("mount against a directory", 40, LENGTH, step(), run));
}

/// Sequences for which the mount once behaved differently.
#[test]
fn regressions() {
    let p = |parts: &[u8]| P(parts.to_vec());
    let by = |who: u8, op: Op| Step { who, umask: 0o022, op };
    let writing = Flags { access: 1, create: true, ..Flags::default() };
    let sequences = [
        // A whiteout did not inherit the directory's default ACL.
        ("whiteout", vec![by(0, Op::Rename(p(&[1, 0]), p(&[0, 3]), 3))]),
        // An ACL that was not there could not be removed.
        ("no ACL", vec![by(0, Op::RemoveAcl(p(&[1]), false))]),
        // A user who set an ACL on a directory of a group they are not in kept set-group-id ...
        ("set-group-id and an ACL", vec![by(1, Op::SetAcl(p(&[1]), 4))]),
        // ... and must keep it with a default ACL.
        ("set-group-id and a default ACL", vec![by(1, Op::SetAcl(p(&[1]), 3))]),
        // Set-group-id without group execution was kept when another user wrote.
        (
            "set-group-id and a write",
            vec![
                by(0, Op::Open(2, p(&[3]), writing, 0o2024)),
                by(0, Op::Chmod(p(&[3]), 0o2024)),
                by(1, Op::Pwrite(2, 1_170_556, 247, 184)),
            ],
        ),
        // Capabilities are dropped on every change of the content, also by root.
        (
            "capabilities",
            vec![
                by(0, Op::Chmod(p(&[1, 0]), 0o755)),
                by(0, Op::SetXattr(p(&[1, 0]), CAPABILITY, 0, 0)),
                by(0, Op::Truncate(p(&[1, 0]), 10)),
                by(0, Op::GetXattr(p(&[1, 0]), CAPABILITY)),
                by(0, Op::SetXattr(p(&[1, 0]), CAPABILITY, 0, 0)),
                by(0, Op::Open(2, p(&[1, 0]), writing, 0)),
                by(0, Op::Write(2, 175, 195)),
                by(0, Op::GetXattr(p(&[1, 0]), CAPABILITY)),
                by(0, Op::SetXattr(p(&[1, 0]), CAPABILITY, 0, 0)),
                by(0, Op::Chown(p(&[1, 0]), 1, 1, false)),
            ],
        ),
        // A write through another user's descriptor failed at one time.
        ("inherited descriptor", vec![by(1, Op::Write(1, 63, 82))]),
        ("inherited descriptor and fallocate", vec![by(1, Op::Fallocate(1, 2, 4096, 8192))]),
        // A write right after another change can have an earlier time on the host's coarser clock; the change
        // time was then not updated.
        (
            "change time",
            (0..10u16)
                .flat_map(|i| [Op::Fchmod(0, 0o600 + i), Op::Pwrite(0, 9, 9, 9)])
                .map(|op| by(0, op))
                .collect(),
        ),
    ];
    apart(|| {
        for (name, steps) in &sequences {
            run(steps).unwrap_or_else(|why| panic!("{name}: {why}"));
        }
    });
}
