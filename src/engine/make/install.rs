//! Installing packages: runs the package manager in a scratch environment, by the same code as `exec`, and
//! makes a layer of the result.

use std::io::{BufRead as _, BufReader, PipeReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use karapace_store::error::StoreError;
use karapace_store::inode::Timestamp;
use karapace_store::layer::{LayerKind, LayerRecord};
use karapace_store::lock::StoreLock;
use karapace_store::metadata::{Dependency, Metadata};
use karapace_store::paths::Ignore;
use karapace_store::text;
use karapace_store::tree::{StoredTree, Trees};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::create::Base;
use super::log::BuildLog;
use super::scratch::Scratch;
use crate::description::locked::{LockFile, LockedPackage};
use crate::description::lockfile::LockError;
use crate::description::manifest::Manifest;
use crate::description::packages::{Argv, Manager, Source, Versions, Wanted};
use crate::engine::At as _;
use crate::engine::instance::stored::{content, follow, read_up_to};
use crate::engine::{Engine, Error, Report, Result};
use crate::runtime::ranges;

/// How often to check whether the user has cancelled.
const PAUSE: Duration = Duration::from_millis(100);

/// How long an interrupted command may take to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// Files that name the distribution; the first that exists is used.
const OS_RELEASES: [&[u8]; 2] = [b"/etc/os-release", b"/usr/lib/os-release"];

/// Largest os-release that is read, in bytes.
const MAX_OS_RELEASE: u64 = 64 << 10;

/// The caller's proxy variables, which package managers need to reach the network.
const PROXIES: [&str; 10] = [
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
];

/// Packages to install.
pub(super) struct Packages<'a> {
    /// The manifest that asks for them.
    pub manifest: &'a Manifest,
    /// The versions that the lock file pins.
    pub pins: &'a [LockedPackage],
    /// Install the pinned versions or fail.
    pub locked: bool,
}

/// The result of an installation.
pub(super) struct Installed {
    /// The packages of `[system]` with their exact versions.
    pub packages: Vec<LockedPackage>,
    /// Their layer; `None` if the base had them all.
    pub dependency: Option<Dependency>,
    /// Keeps the layer until an environment refers to it.
    pub scratch: Scratch,
}

impl Engine {
    /// The layer of the packages that `lock` pins on its base, if an environment has one. `Some(None)`: the
    /// base has them all.
    pub(super) fn find_dependency(&self, base: &Base, lock: &LockFile) -> Result<Option<Option<Dependency>>> {
        let wanted = (&lock.resolved_packages, &lock.resolved_apps);
        for env in Metadata::list(self.store())?.into_iter().flatten().filter(|e| e.base_layer == base.hash) {
            let Ok(other) = LockFile::parse(&env.lock, Path::new("recorded in the store")) else { continue };
            let is_whole = env.dependency.is_none_or(|d| LayerRecord::read(self.store(), &d.record).is_ok());
            if other.env_id == env.env_id
                && (&other.resolved_packages, &other.resolved_apps) == wanted
                && is_whole
            {
                return Ok(Some(env.dependency));
            }
        }
        Ok(None)
    }

    /// Installs packages on `base`. `shared` is the store's lock; it is released meanwhile, because other
    /// commands may need it, and taken again for the result.
    pub(super) fn install(
        &self,
        base: &Base,
        packages: &Packages<'_>,
        shared: StoreLock,
        report: &dyn Report,
    ) -> Result<(Installed, StoreLock)> {
        let manager = self.detect_manager(base, &packages.manifest.base.image)?;
        check_ids()?;
        let mut log = BuildLog::begin(self.store().files(), &self.store().build_logs(), report)?;
        report.begin("installing", None);
        let done = self.install_logged(base, manager, packages, shared, &mut log);
        report.end();
        match done {
            Ok(done) => {
                log.remove()?;
                Ok(done)
            }
            Err(error) => {
                report.note(&format!("nothing was built; the log is {}", log.path().display()));
                Err(error)
            }
        }
    }

    fn install_logged(
        &self,
        base: &Base,
        manager: Manager,
        packages: &Packages<'_>,
        shared: StoreLock,
        log: &mut BuildLog<'_>,
    ) -> Result<(Installed, StoreLock)> {
        let scratch = Scratch::begin(self, base)?;
        drop(shared);
        let mut session = Session { engine: self, scratch: &scratch, manager, log };
        for argv in manager.refresh() {
            session.must(&argv)?;
        }
        let wanted = session.wanted(packages)?;
        for argv in manager.install(&wanted) {
            session.must(&argv)?;
        }
        let versions = session.versions(&wanted)?;
        check_pins(&versions, packages, session.log)?;
        let shared = StoreLock::shared(self.store())?;
        let ignored = manager.left_behind().map(str::to_owned);
        let ignored = Ignore::new(ignored.chain(packages.manifest.snapshot.ignore.iter().cloned()));
        let dependency = self.write_dependency(base, &scratch, &ignored)?;
        let packages = &packages.manifest.system.packages;
        let packages = versions.into_iter().filter(|one| packages.contains(&one.name)).collect();
        Ok((Installed { packages, dependency, scratch }, shared))
    }

    /// The package manager in the tree of a base image.
    fn detect_manager(&self, base: &Base, image: &str) -> Result<Manager> {
        let trees = Trees::new(self.store().clone());
        let root = trees.root(&base.root)?;
        let tree = StoredTree::new(&trees, &root);
        let mut os_release = Vec::new();
        for path in OS_RELEASES {
            if let Some(file) = content(&follow(&tree, path)?) {
                os_release = read_up_to(&trees, file, file.size.min(MAX_OS_RELEASE))?;
                break;
            }
        }
        // A program that cannot be looked up counts as missing.
        let has = |path: &str| {
            follow(&tree, path.as_bytes())
                .is_ok_and(|found| found.is_some_and(|inode| inode.mode & 0o111 != 0))
        };
        Manager::detect(&String::from_utf8_lossy(&os_release), has)
            .ok_or_else(|| Error::NoPackageManager { image: image.to_owned() })
    }

    /// Records the scratch environment's state as a layer on the base.
    fn write_dependency(
        &self,
        base: &Base,
        scratch: &Scratch,
        ignored: &Ignore,
    ) -> Result<Option<Dependency>> {
        let Some(layer) = scratch.layer(ignored)? else { return Ok(None) };
        let hash = karapace_store::id::LayerHash::from_bytes(*layer.tar_hash.as_bytes());
        let record = LayerRecord {
            hash,
            kind: LayerKind::Dependency,
            parent: Some(base.hash),
            object_refs: vec![layer.id],
            read_only: true,
            tar_hash: layer.tar_hash,
            tree: layer.id,
            created_at: Timestamp::now(),
            message: None,
        };
        let record = LayerRecord::write(self.store(), &record)?;
        Ok(Some(Dependency { layer: hash, record }))
    }
}

/// What the base and the package manager say about the pinned packages.
#[derive(Default)]
struct Known {
    /// The packages in the base.
    in_base: Vec<LockedPackage>,
    /// The versions in the manager's package lists.
    available: Versions,
    /// The manager's output for these lists.
    answers: String,
}

/// A package manager running in a scratch environment.
struct Session<'a, 'b> {
    engine: &'a Engine,
    scratch: &'a Scratch,
    manager: Manager,
    log: &'a mut BuildLog<'b>,
}

impl Session<'_, '_> {
    /// The packages to install, in the pinned versions as far as these are available.
    fn wanted(&mut self, packages: &Packages<'_>) -> Result<Vec<Wanted>> {
        let manifest = packages.manifest;
        let mut names: Vec<String> =
            manifest.system.packages.iter().chain(&manifest.gui.apps).cloned().collect();
        names.sort();
        names.dedup();
        let known = self.known(packages.pins)?;
        let mut gone = Vec::new();
        let mut wanted = Vec::new();
        for name in names {
            let pin = packages.pins.iter().find(|pin| pin.name == name);
            let source = match pin {
                Some(pin) => self.source(pin, &known)?,
                None => Some(Source::Lists),
            };
            if let (Some(pin), None) = (pin, &source) {
                let there = known.available.get(&name).map(Vec::as_slice).unwrap_or_default();
                let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
                gone.push(format!("{name} {} (available: {there})", pin.version));
            }
            let version = pin.filter(|_| source.is_some()).map(|pin| pin.version.clone());
            wanted.push(Wanted { name, version, source: source.unwrap_or(Source::Lists) });
        }
        refuse_or_note(gone, packages.locked, self.log)?;
        Ok(wanted)
    }

    /// Asks the manager for the available versions of the pinned packages.
    fn known(&mut self, pins: &[LockedPackage]) -> Result<Known> {
        let mut known = Known::default();
        if pins.is_empty() {
            return Ok(known);
        }
        let names: Vec<String> = pins.iter().map(|pin| pin.name.clone()).collect();
        let (_, output) = self.run(&self.manager.ask_installed(), false)?;
        known.in_base = self.manager.read_installed(&output, &names);
        for argv in self.manager.ask_available(&names) {
            // It fails if it knows none of the names; that is an answer too.
            let (_, output) = self.run(&argv, false)?;
            for (name, versions) in self.manager.read_available(&output, &names) {
                known.available.entry(name).or_default().extend(versions);
            }
            known.answers.push_str(&output);
        }
        Ok(known)
    }

    /// Where the pinned version of a package comes from; `None` if it is not available.
    fn source(&mut self, pin: &LockedPackage, known: &Known) -> Result<Option<Source>> {
        if known.in_base.contains(pin) {
            return Ok(Some(Source::Base));
        }
        if known.available.get(&pin.name).is_some_and(|there| there.contains(&pin.version)) {
            return Ok(Some(Source::Lists));
        }
        let Some(file) = self.manager.file_of(&known.answers, &pin.name, &pin.version) else {
            return Ok(None);
        };
        let (status, _) = self.run(&self.manager.try_file(&file), false)?;
        Ok((status == 0).then_some(Source::File(file)))
    }

    /// The exact versions of the installed packages.
    fn versions(&mut self, wanted: &[Wanted]) -> Result<Vec<LockedPackage>> {
        let names: Vec<String> = wanted.iter().map(|one| one.name.clone()).collect();
        let argv = self.manager.ask_installed();
        let (status, output) = self.run(&argv, false)?;
        if status != 0 {
            return Err(self.failed(&argv, status));
        }
        let found = self.manager.read_installed(&output, &names);
        let absent: Vec<&str> =
            names.iter().filter(|name| found.iter().all(|p| p.name != **name)).map(String::as_str).collect();
        if absent.is_empty() {
            return Ok(found);
        }
        Err(Error::Invalid(format!(
            "{} installed no package named {}: another package provides it; use that package's name in the manifest",
            self.manager.name(),
            absent.join(", ")
        )))
    }

    fn must(&mut self, argv: &Argv) -> Result<()> {
        let (status, output) = self.run(argv, true)?;
        if !self.manager.is_success(status) {
            return Err(self.failed(argv, status));
        }
        // The manager decides whether it succeeded: many scripts fail because no init system runs, and do no
        // harm.
        let scripts = self.manager.failed_scripts(&output);
        if scripts.is_empty() {
            return Ok(());
        }
        let said: Vec<_> = scripts.iter().map(|line| text::line(line)).collect();
        self.log.note(&format!("a package's script failed, and {} continued: {}", argv[0], said.join("; ")))
    }

    fn failed(&self, argv: &Argv, status: i32) -> Error {
        let words: Vec<&str> =
            argv.iter().map(String::as_str).filter(|word| !word.starts_with('-')).collect();
        let command = text::line(&words.join(" ")).into_owned();
        Error::Install { command, status, tail: self.log.tail() }
    }

    /// Runs a command inside to its end. Returns its status and its output, which is also in the log.
    fn run(&mut self, argv: &Argv, shown: bool) -> Result<(i32, String)> {
        self.log.command(argv)?;
        let (mut child, output) = self.start(argv)?;
        let lines = read_lines(output);
        let mut all = String::new();
        let mut stopped: Option<Instant> = None;
        loop {
            match lines.recv_timeout(PAUSE) {
                Ok(line) => {
                    self.log.line(&line, shown)?;
                    all.push_str(&line);
                    all.push('\n');
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            match stopped {
                None if self.log.is_cancelled() => {
                    signal(&child, Signal::SIGTERM);
                    stopped = Some(Instant::now());
                }
                Some(since) if since.elapsed() > GRACE => signal(&child, Signal::SIGKILL),
                _ => {}
            }
        }
        let status = child.wait().at("wait for", Path::new(PROGRAM))?;
        if stopped.is_some() || self.log.is_cancelled() {
            return Err(StoreError::Cancelled.into());
        }
        Ok((status.code().unwrap_or(125), all))
    }

    /// Starts `karapace exec` for a command. It dies with this process, and everything inside dies with it.
    fn start(&self, argv: &Argv) -> Result<(Child, PipeReader)> {
        use std::os::unix::process::CommandExt as _;
        let program = Path::new(PROGRAM);
        let (reader, writer) = std::io::pipe().at("make a pipe for", program)?;
        let errors = writer.try_clone().at("make a pipe for", program)?;
        let mut command = Command::new(program);
        command.arg0("karapace").arg("--store").arg(self.engine.root()).arg("exec");
        command.arg(format!("--die-with={}", std::process::id()));
        for (key, value) in self.manager.variables() {
            command.arg("--env").arg(format!("{key}={value}"));
        }
        // Passed by name: a value may hold a password, and every user can read a command line.
        command.args(PROXIES.iter().flat_map(|key| ["--pass", key]));
        command.arg(self.scratch.env.instance.to_hex()).arg("--").args(argv);
        // In its own process group, so that an interrupt from the terminal reaches it only through us, once.
        command.process_group(0).stdin(Stdio::null()).stdout(writer).stderr(errors);
        let child = command.spawn().at("run", program)?;
        Ok((child, reader))
    }
}

/// This program.
const PROGRAM: &str = "/proc/self/exe";

/// Sends the lines of a stream as they come. A carriage return also ends a line.
fn read_lines(stream: PipeReader) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        // A read error counts as the end.
        while stream.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line);
            for part in text.trim_end_matches(['\n', '\r']).split('\r') {
                if sender.send(part.to_owned()).is_err() {
                    return;
                }
            }
            line.clear();
        }
    });
    receiver
}

fn signal(child: &Child, signal: Signal) {
    if let Err(errno) = kill(Pid::from_raw(child.id() as i32), signal) {
        tracing::debug!("cannot send {signal} to the package manager's session: {errno}");
    }
}

/// With `--locked`, checks that the installed versions are the lock's, whatever the manager did with the
/// request.
fn check_pins(installed: &[LockedPackage], packages: &Packages<'_>, log: &mut BuildLog<'_>) -> Result<()> {
    if !packages.locked {
        return Ok(());
    }
    let other = |pin: &LockedPackage| {
        let found = installed.iter().find(|one| one.name == pin.name)?;
        (found.version != pin.version)
            .then(|| format!("{} {} (available: {})", pin.name, pin.version, found.version))
    };
    refuse_or_note(packages.pins.iter().filter_map(other).collect(), true, log)
}

fn refuse_or_note(gone: Vec<String>, locked: bool, log: &mut BuildLog<'_>) -> Result<()> {
    if gone.is_empty() {
        return Ok(());
    }
    if locked {
        return Err(LockError::Unavailable { packages: gone }.into());
    }
    log.note(&format!(
        "versions in the lock file that are no longer available: {}; the newest ones are installed and the lock file is updated",
        gone.join(", ")
    ))
}

/// Refuses an ordinary user without a range of ids: packages bring users and groups of their own.
fn check_ids() -> Result<()> {
    if geteuid().is_root() {
        return Ok(());
    }
    ranges::available().map(drop).map_err(|reason| {
        let cure = reason.cure();
        Error::Invalid(format!(
            "packages need users and groups of their own, but only one id is available: {reason}; as root, run `{cure}` (with a \
             range that no other user has), or build as root"
        ))
    })
}
