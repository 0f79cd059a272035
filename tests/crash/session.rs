//! A workload on a world, with the log of what returned: the model, and the acknowledged snapshots.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::model::{Generator, Op, Tree};
use crate::power::History;
use crate::world::{Check, ENV, OTHER, Snapshot, World};

/// A part of a workload.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The operations that every failpoint of the upper is come by in.
    Fixed,
    /// So many random operations.
    Files(usize),
    /// Through the control file when mounted, else as a command.
    Commit,
    /// A command, which asks the server or opens the environment itself.
    CommitCommand,
    /// Of one file only.
    CommitPath,
    /// Files change while it runs.
    CommitBeside,
    Restore,
    RestoreCommand,
    /// Any but the one that the view stands on.
    RemoveSnapshot,
    Gc,
    Verify,
    ImportOther,
    DestroyOther,
    /// Puts what the base is in the place of the environment, which is not mounted; what is uncommitted
    /// becomes a snapshot.
    Rebuild,
    /// Imports the other environment, or destroys it when it is there.
    SwapOther,
    Umount,
    Mount,
}

/// What did not return as it should: the server was killed, or a step was made to fail.
pub struct Broken {
    /// What was under way.
    pub what: String,
    pub error: String,
    /// What the view may hold now.
    allowed: Vec<Tree>,
    /// The write that may have happened in part.
    torn: Option<Op>,
}

impl std::fmt::Debug for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.error)
    }
}

pub struct Session {
    pub world: World,
    pub model: Tree,
    /// What the environment was made of.
    base: Tree,
    pub snapshots: Vec<Snapshot>,
    pub generator: Generator,
    /// What a snapshot may hold that was begun and not acknowledged.
    unacknowledged: Vec<Tree>,
    /// What the snapshot holds that the view stands on, where that is known.
    head: Option<Tree>,
    /// Operations that returned.
    pub done: u64,
    mounted: bool,
    /// What an unmounted restore may have made of the view; seen at the next mount.
    restored: Option<Vec<Tree>>,
    /// The log of a workload whose host may lose power.
    pub history: Option<Arc<Mutex<History>>>,
}

type Ran = Result<(), Box<Broken>>;

impl Session {
    /// A new world with its environment, not mounted.
    pub fn new(seed: u64) -> Session {
        Session::imported(World::new(), seed)
    }

    /// The same in a directory.
    pub fn at(dir: &Path, seed: u64) -> Session {
        Session::imported(World::made_at(dir), seed)
    }

    /// A world that is there, of which nothing is known.
    pub fn after(dir: &Path, seed: u64) -> Session {
        Session::of(World::at(dir), Tree::default(), seed)
    }

    fn imported(world: World, seed: u64) -> Session {
        world.run(&["import", &world.base().to_string_lossy(), "--name", ENV]).expect("the import");
        let model = Tree::read(&world.base()).expect("the base");
        Session::of(world, model, seed)
    }

    fn of(world: World, model: Tree, seed: u64) -> Session {
        Session {
            world,
            base: model.clone(),
            model,
            snapshots: Vec::new(),
            generator: Generator::new(seed),
            unacknowledged: Vec::new(),
            head: None,
            done: 0,
            mounted: false,
            restored: None,
            history: None,
        }
    }

    /// Goes on from the tree that a mount was found with.
    pub fn resume(&mut self, found: Tree) {
        (self.model, self.mounted) = (found, true);
    }

    fn note(&self, what: impl FnOnce(&mut History)) {
        if let Some(history) = &self.history {
            what(&mut history.lock().expect("the history"));
        }
    }

    /// Does one step of a workload.
    pub fn step(&mut self, step: Step) -> Ran {
        match step {
            Step::Fixed => fixed().into_iter().try_for_each(|op| self.op(&op)),
            Step::Files(n) => (0..n).try_for_each(|_| {
                let op = self.generator.next(&self.model);
                self.op(&op)
            }),
            Step::Commit => self.commit(self.mounted),
            Step::CommitCommand => self.commit(false),
            Step::CommitPath => self.commit_path(),
            Step::CommitBeside => self.commit_beside(),
            Step::Restore => self.restore(self.mounted),
            Step::RestoreCommand => self.restore(false),
            Step::RemoveSnapshot => self.remove_snapshot(),
            Step::Gc => self.command(&["gc"]),
            Step::Verify => self.command(&["verify-store"]),
            Step::SwapOther => {
                let is_there = self.world.run(&["inspect", OTHER]).is_ok();
                self.step(if is_there { Step::DestroyOther } else { Step::ImportOther })
            }
            Step::ImportOther => {
                let base = self.world.base().join("etc").to_string_lossy().into_owned();
                self.command(&["import", &base, "--name", OTHER])
            }
            Step::DestroyOther => self.command(&["destroy", "--yes", OTHER]),
            Step::Rebuild => self.rebuild(),
            Step::Umount => {
                self.world.umount().map_err(|error| self.broken("umount", &error))?;
                self.mounted = false;
                Ok(())
            }
            Step::Mount => self.mount(),
        }
    }

    fn mount(&mut self) -> Ran {
        self.mounted = match self.world.mount() {
            Ok(mounted) => mounted,
            Err(error) => return Err(self.broken("mount", &error)),
        };
        if !self.mounted {
            return Err(self.broken("mount", "the server ended"));
        }
        match self.restored.clone() {
            Some(trees) => self.settle_tree(&trees, None).map_err(|error| self.broken("restore", &error)),
            None => Ok(()),
        }
    }

    fn broken(&self, what: &str, error: &str) -> Box<Broken> {
        let allowed = self.restored.clone().unwrap_or_else(|| vec![self.model.clone()]);
        Box::new(Broken { what: what.to_owned(), error: error.to_owned(), allowed, torn: None })
    }

    fn op(&mut self, op: &Op) -> Ran {
        let mut after = self.model.clone();
        after.apply(op);
        self.note(|history| history.begin(&self.model, op, &after));
        match op.run(&self.world.mount_point()) {
            Ok(()) => {
                self.note(History::end);
                self.model = after;
                self.done += 1;
                Ok(())
            }
            Err(error) => {
                let allowed = vec![self.model.clone(), after];
                let what = format!("{op:?}");
                let what = what.chars().take(80).collect();
                Err(Box::new(Broken { what, error: error.to_string(), allowed, torn: Some(op.clone()) }))
            }
        }
    }

    fn command(&mut self, args: &[&str]) -> Ran {
        let output = self.world.attempt(args);
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(self.broken(args[0], &format!("{} {said}", output.status)))
    }

    fn commit(&mut self, control: bool) -> Ran {
        self.unacknowledged = vec![self.model.clone()];
        self.note(|history| history.begin_durable(&self.model));
        let said = match control {
            true => self.world.control("commit").map_err(|e| e.to_string()),
            false => self.commit_command(&["commit", ENV]),
        };
        let said = said.map_err(|error| self.broken("commit", &error))?;
        self.acknowledged(&said)?;
        self.head = Some(self.model.clone());
        Ok(())
    }

    fn commit_command(&self, args: &[&str]) -> Result<String, String> {
        let output = self.world.attempt(args);
        match output.status.success() {
            true => Ok(format!("ok commit {}", String::from_utf8_lossy(&output.stdout))),
            false => Err(format!("{} {}", output.status, String::from_utf8_lossy(&output.stderr).trim())),
        }
    }

    /// Commits one file of the root: the snapshot is the head's with that file as it is now, and nothing else
    /// changes.
    fn commit_path(&mut self) -> Ran {
        let Some(head) = self.head.clone() else { return Ok(()) };
        if self.mounted {
            let path = format!("path{}", self.done);
            self.op(&Op::Create { path: path.clone(), file: 2_000_000 + self.done as u32 })?;
            self.op(&Op::Write { path, offset: 0, data: data(b'p', 700) })?;
        }
        let mut alone: Vec<&String> = self.model.names.keys().collect();
        alone.retain(|path| {
            self.model.stands_alone(path, &head) && self.model.content(path) != head.content(path)
        });
        let Some(path) = self.generator.random.pick(&alone).map(|path| (*path).clone()) else {
            return Ok(());
        };
        let after = head.with_file_of(&self.model, &path);
        self.unacknowledged = vec![after.clone()];
        let said = self.commit_command(&["commit", ENV, "--", &format!("/{path}")]);
        let said = said.map_err(|error| self.broken("commit of a path", &error))?;
        self.acknowledged(&said)?;
        self.head = Some(after);
        Ok(())
    }

    /// Notes the snapshot that `ok commit HASH` speaks of.
    fn acknowledged(&mut self, said: &str) -> Ran {
        let Some(hash) = said.trim().strip_prefix("ok commit ").and_then(|rest| rest.split(' ').next())
        else {
            return Err(self.broken("commit", said));
        };
        let trees = std::mem::take(&mut self.unacknowledged);
        match self.snapshots.iter_mut().find(|s| s.hash == hash) {
            // Nothing had changed, or the same content came back.
            Some(known) => known.trees.extend(trees),
            None => self.snapshots.push(Snapshot { hash: hash.to_owned(), trees }),
        }
        // Of a tree that is the base's there is no snapshot.
        let listed = self.world.listed().map_err(|error| self.broken("commit", &error))?;
        self.snapshots.retain(|s| s.hash != hash || listed.contains(&s.hash));
        self.note(History::end);
        if let Some(snapshot) = self.snapshots.iter().find(|s| s.hash == hash) {
            self.note(|history| history.acknowledge(snapshot));
        }
        Ok(())
    }

    fn remove_snapshot(&mut self) -> Ran {
        if self.snapshots.is_empty() {
            return Ok(());
        }
        // From here on it may be there or not.
        let gone = self.snapshots.remove(self.generator.random.below(self.snapshots.len()));
        self.unacknowledged = gone.trees.clone();
        self.note(|history| history.forget(&gone));
        match self.command(&["snapshots", "rm", ENV, &gone.hash]) {
            Err(broken) if broken.error.contains("it is the environment's head") => {
                self.snapshots.push(gone);
                Ok(())
            }
            done => done,
        }
    }

    fn commit_beside(&mut self) -> Ran {
        self.head = None;
        let name = format!("beside{}", self.done);
        for op in beside(&name).into_iter().take(2) {
            self.op(&op)?;
        }
        self.unacknowledged = vec![self.model.clone()];
        let started =
            self.world.control("commit async=1").map_err(|e| self.broken("commit", &e.to_string()))?;
        // `ok job N`.
        let number = started.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        let status = self.world.mount_point().join(format!(".karapace/jobs/{number}/status"));
        let deadline = Instant::now() + Duration::from_secs(60);
        // Again and again until it has ended: so some come after the seal.
        let mut ops = beside(&name).into_iter().skip(2).chain(std::iter::repeat_with(|| again(&name)));
        loop {
            for op in ops.by_ref().take(6) {
                if let Err(broken) = self.op(&op) {
                    // What the commit makes all the same is looked at when it has ended.
                    while std::fs::read_to_string(&status).is_ok_and(|said| said.starts_with("running")) {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    return Err(broken);
                }
                self.unacknowledged.push(self.model.clone());
            }
            let said = std::fs::read_to_string(&status).map_err(|e| self.broken("commit", &e.to_string()))?;
            match said.trim() {
                ended if ended.contains("ok ") => {
                    return self.acknowledged(&ended[ended.find("ok ").unwrap_or(0)..]);
                }
                failed if failed.contains("error") => return Err(self.broken("commit", failed)),
                _ if Instant::now() > deadline => return Err(self.broken("commit", "the job does not end")),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn restore(&mut self, control: bool) -> Ran {
        let Some(target) = self.generator.random.pick(&self.snapshots).cloned() else { return Ok(()) };
        let before = self.model.clone();
        self.unacknowledged = vec![before.clone()];
        self.head = None;
        self.note(|history| history.begin_durable(&target.trees[0]));
        let said = if control {
            self.world.control(&format!("restore {}", target.hash)).map(drop).map_err(|e| e.to_string())
        } else {
            let output = self.world.attempt(&["restore", ENV, &target.hash]);
            match output.status.success() {
                true => Ok(()),
                false => Err(format!("{} {}", output.status, String::from_utf8_lossy(&output.stderr).trim())),
            }
        };
        self.generator.restart();
        if let Err(error) = said {
            let mut broken = self.broken("restore", &error);
            broken.allowed.extend(target.trees);
            return Err(broken);
        }
        self.note(History::end);
        // Seen now or when it is mounted next.
        self.restored = Some(target.trees.clone());
        if self.mounted {
            self.settle_tree(&target.trees, None).map_err(|error| self.broken("restore", &error))?;
            self.head = Some(self.model.clone());
            self.list(&[before]).map_err(|error| self.broken("restore", &error))?;
        }
        Ok(())
    }

    /// Until the new one stands the old one does, with its name and its snapshots.
    fn rebuild(&mut self) -> Ran {
        self.unacknowledged = vec![self.model.clone()];
        self.head = None;
        let manifest = self.world.manifest().map_err(|error| self.broken("rebuild", &error.to_string()))?;
        if let Err(mut broken) = self.command(&["rebuild", &manifest.to_string_lossy(), "--name", ENV]) {
            broken.allowed.push(self.base.clone());
            return Err(broken);
        }
        let listed = self.world.listed().map_err(|error| self.broken("rebuild", &error))?;
        let known: Vec<&str> = self.snapshots.iter().map(|snapshot| snapshot.hash.as_str()).collect();
        let saved = listed.into_iter().filter(|hash| !known.contains(&hash.as_str()));
        let saved = saved.map(|hash| Snapshot { hash, trees: self.unacknowledged.clone() });
        let saved: Vec<Snapshot> = saved.collect();
        self.snapshots.extend(saved);
        self.generator.restart();
        self.restored = Some(vec![self.base.clone()]);
        Ok(())
    }

    /// The mount shows one of `allowed`: that is the model from here on.
    fn settle_tree(&mut self, allowed: &[Tree], torn: Option<&Op>) -> Check<()> {
        let found = self.world.live()?;
        let mut candidates = allowed.to_vec();
        if let (Some(Op::Write { path, .. }), [before, after, ..]) = (torn, allowed) {
            candidates.extend(mixed(before, after, &found, path));
        }
        match candidates.iter().find(|tree| tree.difference(&found).is_none()) {
            Some(tree) => {
                self.model = tree.clone();
                self.restored = None;
                self.generator.restart();
                Ok(())
            }
            None => {
                let why: Vec<_> = allowed.iter().filter_map(|tree| tree.difference(&found)).collect();
                Err(format!("the tree is none of those that are allowed: {why:?}"))
            }
        }
    }

    fn list(&mut self, others: &[Tree]) -> Check<()> {
        let mut all = self.snapshots.iter().flat_map(|s| s.trees.clone()).collect::<Vec<_>>();
        all.extend(others.iter().cloned());
        self.snapshots = self.world.check_snapshots(&self.snapshots, &all)?;
        Ok(())
    }

    /// After something broke and the environment is mounted: the view and the snapshots are what they may be.
    pub fn settle(&mut self, broken: &Broken) -> Check<()> {
        self.head = None;
        self.settle_tree(&broken.allowed, broken.torn.as_ref())?;
        let mut others = std::mem::take(&mut self.unacknowledged);
        others.extend(broken.allowed.iter().cloned());
        self.list(&others)
    }

    /// Kills what is left, mounts again, and compares with what had returned.
    pub fn recover(&mut self, broken: &Broken) -> Check<()> {
        self.world.kill();
        self.head = None;
        (self.world.arm_server, self.world.arm_commands) = (String::new(), String::new());
        self.mounted = self.world.mount()?;
        if !self.mounted {
            return Err("the environment cannot be mounted again".to_owned());
        }
        self.settle(broken)
    }

    /// Whether the environment is mounted.
    pub fn is_mounted(&self) -> bool {
        self.mounted
    }

    /// As `recover` when nothing was under way.
    pub fn recover_idle(&mut self) -> Check<()> {
        let idle = self.broken("nothing", "");
        self.recover(&idle)
    }

    /// Every snapshot restores to what was committed, and the store is whole; the environment is mounted.
    pub fn check_all(&mut self, restores: usize) -> Check<()> {
        self.world.check_store()?;
        for _ in 0..restores {
            self.restore(true).map_err(|broken| format!("{broken:?}"))?;
        }
        self.list(&[])?;
        self.commit(true).map_err(|broken| format!("{broken:?}"))?;
        self.step(Step::Umount).map_err(|broken| format!("{broken:?}"))?;
        match self.world.data_files() {
            Ok(0) => Ok(()),
            Ok(n) => Err(format!("{n} data files are left in an upper that holds no change")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Ends a test that failed: says what is needed to see it again.
    pub fn fail(&mut self, what: &str, error: &str) -> ! {
        let log = self.world.log();
        let log = log.get(log.len().saturating_sub(3000)..).unwrap_or(&log).to_owned();
        let kept = self.world.keep();
        panic!("{what}: {error}\nthe world is kept in {}\n{log}", kept.display());
    }
}

/// The found tree with every byte of one file from before or after a write.
fn mixed(before: &Tree, after: &Tree, found: &Tree, path: &str) -> Option<Tree> {
    let (old, new, now) = (before.content(path)?, after.content(path)?, found.content(path)?);
    let fits = |(i, b): (usize, &u8)| old.bytes.get(i) == Some(b) || new.bytes.get(i) == Some(b);
    let sized = now.bytes.len() >= old.bytes.len().min(new.bytes.len()) && now.bytes.len() <= new.bytes.len();
    if !sized || !now.bytes.iter().enumerate().all(fits) {
        return None;
    }
    let mut tree = before.clone();
    tree.apply(&Op::Truncate { path: path.to_owned(), size: now.bytes.len() });
    tree.apply(&Op::Write { path: path.to_owned(), offset: 0, data: now.bytes.clone() });
    Some(tree)
}

fn data(byte: u8, n: usize) -> std::sync::Arc<Vec<u8>> {
    std::sync::Arc::new(vec![byte; n])
}

/// New, copied up (small, and by blocks), cut, replaced, removed, synced.
fn fixed() -> Vec<Op> {
    let path = |name: &str| name.to_owned();
    vec![
        Op::Create { path: path("f"), file: 900 },
        Op::Write { path: path("f"), offset: 0, data: data(b'f', 3000) },
        Op::Fsync { path: path("f") },
        Op::Write { path: path("etc/base3"), offset: 10, data: data(b'3', 50) },
        Op::Write { path: path("usr/large"), offset: 200_000, data: data(b'l', 100_000) },
        Op::Fsync { path: path("usr/large") },
        Op::Truncate { path: path("usr/large"), size: 1_200_000 },
        Op::Truncate { path: path("etc/base4"), size: 100 },
        Op::Create { path: path("g"), file: 901 },
        Op::Write { path: path("g"), offset: 0, data: data(b'g', 2000) },
        Op::Rename { from: path("g"), to: path("f") },
        Op::Create { path: path("h"), file: 902 },
        Op::Write { path: path("h"), offset: 0, data: data(b'h', 2000) },
        Op::Fsync { path: path("h") },
        Op::Remove { path: path("h") },
        Op::Fsync { path: path("etc") },
        Op::Create { path: path("stays"), file: 903 },
        Op::Write { path: path("stays"), offset: 0, data: data(b's', 5000) },
    ]
}

/// A file before a commit, and what is done to it and beside it while the commit runs: it is sealed then.
fn beside(name: &str) -> Vec<Op> {
    let write = |path: &str, byte| Op::Write { path: path.to_owned(), offset: 5, data: data(byte, 300) };
    let second = format!("{name}b");
    vec![
        Op::Create { path: name.to_owned(), file: 1 << 20 | name.len() as u32 },
        write(name, b'1'),
        Op::Fsync { path: name.to_owned() },
        Op::Create { path: second.clone(), file: 1 << 21 | name.len() as u32 },
        write(&second, b'2'),
        write(name, b'3'),
        write(&second, b'4'),
        Op::Fsync { path: second },
    ]
}

/// One more write into the file of `beside`.
fn again(name: &str) -> Op {
    Op::Write { path: name.to_owned(), offset: 3, data: data(b'a', 20) }
}
