//! A store, a mount of one environment in it, and what is checked of both after a crash.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};

use crate::model::Tree;

/// What the checks say when something was lost.
pub type Check<T> = Result<T, String>;

/// The environment that is worked on, and the one that comes and goes.
pub const ENV: &str = "work";
pub const OTHER: &str = "other";

/// A snapshot that was acknowledged, and what it may hold: one tree, or one of several when files changed
/// meanwhile.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub hash: String,
    pub trees: Vec<Tree>,
}

/// A store below a directory that is removed at the end, with the mount and its server.
pub struct World {
    dir: PathBuf,
    owned: Option<tempfile::TempDir>,
    server: Option<Child>,
    /// `KARAPACE_FAIL` of the next server and of the commands.
    pub arm_server: String,
    pub arm_commands: String,
    /// The machine was started anew: no process finds the run of the kernel that journals speak of.
    pub restarted: bool,
}

impl World {
    /// A new store in memory, with the environment imported from a small tree.
    pub fn new() -> World {
        let owned =
            tempfile::Builder::new().prefix("karapace-crash-").tempdir_in("/dev/shm").expect("/dev/shm");
        let mut world = World::made_at(owned.path());
        world.owned = Some(owned);
        world
    }

    /// A new base in a directory of another owner.
    pub fn made_at(dir: &Path) -> World {
        let world = World::at(dir);
        make_base(&world.base()).expect("the base");
        world
    }

    /// What there is at `dir`: of a directory of another owner.
    pub fn at(dir: &Path) -> World {
        fs::create_dir_all(dir.join("mnt")).expect("the mount point");
        World {
            dir: dir.to_owned(),
            owned: None,
            server: None,
            arm_server: String::new(),
            arm_commands: String::new(),
            restarted: false,
        }
    }

    pub fn base(&self) -> PathBuf {
        self.dir.join("base")
    }

    /// A manifest of the base.
    pub fn manifest(&self) -> io::Result<PathBuf> {
        let path = self.dir.join("karapace.toml");
        fs::write(&path, format!("manifest_version = 1\n[base]\nimage = {:?}\n", self.base()))?;
        Ok(path)
    }

    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    pub fn mount_point(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    fn fired_log(&self) -> PathBuf {
        self.dir.join("fired")
    }

    /// The failpoints that something happened at.
    pub fn fired(&self) -> String {
        fs::read_to_string(self.fired_log()).unwrap_or_default()
    }

    /// A karapace command on this store.
    pub fn command<S: AsRef<OsStr>>(&self, arm: &str, args: &[S]) -> Command {
        // Each of these happens once.
        let unknown = if self.restarted { ",boot.read=eio".repeat(1000) } else { String::new() };
        let mut command = Command::new(env!("CARGO_BIN_EXE_karapace"));
        command.args(args).env("KARAPACE_STORE", self.store()).env("HOME", &self.dir);
        command
            .env("KARAPACE_FAIL", format!("{arm}{unknown}"))
            .env("KARAPACE_FAIL_LOG", self.fired_log())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end, whatever that is; failpoints as armed for commands.
    pub fn attempt(&self, args: &[&str]) -> Output {
        self.command(&self.arm_commands, args).output().expect("karapace")
    }

    /// Runs a command that must succeed, with no failpoint armed; gives its standard output.
    pub fn run(&self, args: &[&str]) -> Check<String> {
        let output = self.command("", args).output().expect("karapace");
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(format!(
                "{args:?} failed with {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )),
        }
    }

    /// Starts the server and waits for the mount; false when the server dies first.
    pub fn mount(&mut self) -> Check<bool> {
        let log_path = self.dir.join("server.log");
        let log = OpenOptions::new().create(true).append(true).open(&log_path).map_err(|e| e.to_string())?;
        let before = log.metadata().map_err(|e| e.to_string())?.len() as usize;
        let mount_point = self.mount_point();
        let args = ["mount".as_ref(), ENV.as_ref(), mount_point.as_os_str(), "--foreground".as_ref()];
        let mut command = self.command(&self.arm_server, &args);
        let mut server = command.stdout(Stdio::null()).stderr(log).spawn().expect("karapace");
        let deadline = Instant::now() + Duration::from_secs(120);
        // It answers before it is announced, and may end in between: what counts is its word.
        let is_ready = || {
            let said = fs::read(&log_path).unwrap_or_default();
            String::from_utf8_lossy(said.get(before..).unwrap_or_default()).contains(" is mounted at ")
        };
        while !is_ready() {
            if server.try_wait().map_err(|e| e.to_string())?.is_some() {
                return Ok(false);
            }
            if Instant::now() > deadline {
                drop(server.kill());
                return Err("the mount does not answer".to_owned());
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        self.server = Some(server);
        Ok(true)
    }

    /// The server's process, when there is one.
    pub fn server_pid(&self) -> Option<i32> {
        self.server.as_ref().map(|server| server.id() as i32)
    }

    /// Ends the server as kill -9 does, and takes away the mount that stays behind.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().expect("kill");
            server.wait().expect("wait");
        }
        while umount2(&self.mount_point(), MntFlags::MNT_DETACH).is_ok() {}
    }

    /// Unmounts properly. A process that is just being started in another thread has a copy of our
    /// descriptors for a moment.
    pub fn umount(&mut self) -> Check<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut output = self.attempt(&["umount", ENV]);
        while String::from_utf8_lossy(&output.stderr).contains("is in use") && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            output = self.attempt(&["umount", ENV]);
        }
        if !output.status.success() {
            return Err(format!("{} {}", output.status, String::from_utf8_lossy(&output.stderr).trim()));
        }
        match self.server.take().map(|mut server| server.wait()) {
            Some(Ok(status)) if !status.success() => Err(format!("the server ended with {status}")),
            Some(Err(error)) => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    /// Writes one line to the control file and gives the line that answers it.
    pub fn control(&self, line: &str) -> io::Result<String> {
        let path = self.mount_point().join(".karapace/ctl");
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        file.write_all(format!("{line}\n").as_bytes())?;
        fs::read_to_string(self.mount_point().join(".karapace/last"))
    }

    /// The tree that the mount shows.
    pub fn live(&self) -> Check<Tree> {
        Tree::read(&self.mount_point()).map_err(|e| format!("reading the mount: {e}"))
    }

    /// The hashes of the snapshots that the environment lists.
    pub fn listed(&self) -> Check<Vec<String>> {
        let text = self.run(&["--json", "snapshots", ENV])?;
        let list: Vec<serde_json::Value> = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
        Ok(list.iter().filter_map(|s| s["hash"].as_str().map(str::to_owned)).collect())
    }

    /// Every acknowledged snapshot is listed; of those that were not, each is one of `others`. All hold what
    /// they must.
    pub fn check_snapshots(&self, acknowledged: &[Snapshot], others: &[Tree]) -> Check<Vec<Snapshot>> {
        let known: BTreeMap<&str, &Snapshot> = acknowledged.iter().map(|s| (s.hash.as_str(), s)).collect();
        let listed = self.listed()?;
        if let Some(lost) = known.keys().find(|hash| !listed.iter().any(|h| h == *hash)) {
            return Err(format!("the acknowledged snapshot {lost} is not listed"));
        }
        let mut all = Vec::new();
        for hash in listed {
            let path = self.mount_point().join(".karapace/snapshots").join(&hash);
            let found = Tree::read(&path).map_err(|e| format!("reading snapshot {hash}: {e}"))?;
            let allowed = known.get(hash.as_str()).map_or(others, |s| s.trees.as_slice());
            let Some(tree) = allowed.iter().find(|tree| tree.difference(&found).is_none()) else {
                let why = allowed.first().and_then(|tree| tree.difference(&found));
                return Err(format!("snapshot {hash} is not what was committed: {why:?}"));
            };
            all.push(Snapshot { hash, trees: vec![tree.clone()] });
        }
        Ok(all)
    }

    /// The store is whole, and after a collection nothing is left of what died. The environment is mounted.
    pub fn check_store(&self) -> Check<()> {
        self.run(&["verify-store"])?;
        self.run(&["gc"])?;
        let again = self.run(&["--json", "gc", "--dry-run"])?;
        let report: serde_json::Value = serde_json::from_str(&again).map_err(|e| format!("{e}: {again}"))?;
        // What is newer than the collection before is spared; nothing was made since.
        if report["objects"] != 0 || report["layers"] != 0 {
            return Err(format!("a collection leaves something for the next: {again}"));
        }
        let leftovers = self.leftovers().map_err(|e| e.to_string())?;
        match leftovers.is_empty() {
            true => self.run(&["verify-store"]).map(drop),
            false => Err(format!("left behind: {leftovers:?}")),
        }
    }

    /// Files of the store that no living operation has: temporary ones, staging, intents, pins of the dead.
    fn leftovers(&self) -> io::Result<Vec<PathBuf>> {
        let store = self.store();
        let mut found = Vec::new();
        for (dir, allowed) in [("staging", 0), ("wal", 0), ("pins", usize::from(self.server.is_some()))] {
            let entries: Vec<_> = fs::read_dir(store.join("store").join(dir))?.collect::<io::Result<_>>()?;
            if entries.len() > allowed {
                found.extend(entries.iter().map(fs::DirEntry::path));
            }
        }
        let instances = fs::read_dir(store.join("store/metadata"))?.count();
        if fs::read_dir(store.join("env"))?.count() > instances {
            found.push(store.join("env"));
        }
        temporary(&store, &mut found)?;
        Ok(found)
    }

    /// How many data files the upper has.
    pub fn data_files(&self) -> io::Result<usize> {
        let mut files = 0;
        for env in fs::read_dir(self.store().join("env"))? {
            let data = env?.path().join("upper/data");
            if data.exists() {
                for dir in fs::read_dir(data)? {
                    files += fs::read_dir(dir?.path())?.count();
                }
            }
        }
        Ok(files)
    }

    /// What the servers said, for who looks into a failure.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("server.log")).unwrap_or_default()
    }

    /// Leaves the directory where it is and says where.
    pub fn keep(&mut self) -> PathBuf {
        self.owned.take().map_or_else(|| self.dir.clone(), tempfile::TempDir::keep)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Names that only unfinished work has.
fn temporary(dir: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".tmp") || name.ends_with(".new") {
            found.push(entry.path());
        } else if entry.file_type()?.is_dir() {
            temporary(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// A small root file system, with files above 1 MiB: such are kept by blocks.
fn make_base(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir.join("etc/deep"))?;
    fs::create_dir_all(dir.join("usr"))?;
    for i in 0..8 {
        fs::write(dir.join(format!("etc/base{i}")), format!("base {i}\n").repeat(100 * i + 1))?;
    }
    fs::write(dir.join("etc/deep/file"), "deep\n")?;
    fs::hard_link(dir.join("etc/base1"), dir.join("usr/link"))?;
    let large: Vec<u8> = (0..1_400_000u32).map(|i| (i / 7) as u8 | 1).collect();
    fs::write(dir.join("usr/large"), large)?;
    // Of whole blocks.
    let aligned: Vec<u8> = (0..20 * 65_536u32).map(|i| (i / 5) as u8 | 1).collect();
    fs::write(dir.join("etc/aligned"), aligned)
}
