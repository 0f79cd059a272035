//! A package manager running in a scratch environment, by the same code as `exec`.

use std::io::{BufRead as _, BufReader, PipeReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use karapace_store::error::StoreError;
use karapace_store::text;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Packages;
use crate::description::locked::LockedPackage;
use crate::description::lockfile::LockError;
use crate::description::packages::{Argv, Manager, Source, Versions, Wanted};
use crate::engine::At as _;
use crate::engine::make::log::BuildLog;
use crate::engine::make::scratch::Scratch;
use crate::engine::{Engine, Error, Result};

/// How often to check whether the user has cancelled.
const PAUSE: Duration = Duration::from_millis(100);

/// How long an interrupted command may take to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// The exit status of `exec` if Karapace itself failed.
const EXIT_OF_KARAPACE: i32 = 125;

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

/// The package manager of one build.
pub(super) struct Session<'a, 'b> {
    pub engine: &'a Engine,
    pub scratch: &'a mut Scratch,
    pub manager: Manager,
    pub log: &'a mut BuildLog<'b>,
}

impl Session<'_, '_> {
    /// Lets the commands write to an overlay, if one can be mounted.
    pub fn use_overlay(&mut self) -> Result<()> {
        if !self.scratch.begin_overlay()? {
            tracing::info!(
                "not with overlayfs: the base's root directory or the store's file system does not suit it"
            );
            return Ok(());
        }
        let (status, output) = self.run(&vec!["true".to_owned()], false)?;
        if status == EXIT_OF_KARAPACE {
            tracing::info!("not with overlayfs: {}", output.trim_end());
            return self.scratch.end_overlay();
        }
        tracing::info!("with overlayfs");
        Ok(())
    }

    /// Installs the packages; returns the exact versions.
    pub fn install(&mut self, packages: &Packages<'_>) -> Result<Vec<LockedPackage>> {
        for argv in self.manager.refresh() {
            self.must(&argv)?;
        }
        let wanted = self.wanted(packages)?;
        for argv in self.manager.install(&wanted) {
            self.must(&argv)?;
        }
        let versions = self.versions(&wanted)?;
        check_pins(&versions, packages, self.log)?;
        Ok(versions)
    }

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
        if self.scratch.has_overlay() && self.log.is_refused() {
            return Err(self.failed(argv, status));
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
        Ok((status.code().unwrap_or(EXIT_OF_KARAPACE), all))
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
