use std::path::{Path, PathBuf};

use clap::ValueEnum;
use karapace_fs::session::{CtlDir, Flag};
use karapace_store::metadata::Metadata;
use serde_json::json;

use super::mount_all::All;
use crate::cli::Global;
use crate::cli::ui::{self, Failure};
use crate::engine::mount::background::{leave_host, tell_failed, tell_ready};
use crate::engine::mount::options::{DEFAULT_THREADS, Options, default_dir};
use crate::engine::{Engine, Error};
use crate::process;

/// Mount an environment as a directory
///
/// Returns when the mount answers; a process in the background serves it until `karapace umount`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix
    #[arg(required_unless_present = "all")]
    env: Option<String>,
    /// Where. Default: ~/karapace/<name>
    dir: Option<PathBuf>,
    /// Mount every environment below one directory, ~/karapace or the one that is named instead of an
    /// environment. They appear and disappear as environments are built, renamed, archived and destroyed;
    /// frozen ones are read-only
    #[arg(long, conflicts_with_all = ["dir", "read_only", "flags", "snapshot", "ctl_dir", "allow_other", "passthrough", "idmap", "threads"])]
    all: bool,
    /// Mount nothing now: write a systemd user unit that does so at login,
    /// ~/.config/systemd/user/karapace.service
    #[arg(long, requires = "all", conflicts_with = "foreground")]
    install_unit: bool,
    /// Serve in this process, until it is unmounted or interrupted
    #[arg(long)]
    foreground: bool,
    /// Refuse every change
    #[arg(long)]
    read_only: bool,
    /// Flags that the kernel heeds, as with mount(8). With ro it refuses changes and commands to the control
    /// files by itself, until `mount -o remount,rw`
    #[arg(short = 'o', long = "option", value_enum, value_delimiter = ',', value_name = "FLAG")]
    flags: Vec<MountFlag>,
    /// Mount this snapshot, read-only and without control directory
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Whether .karapace is listed in the root, only reachable by name, or absent
    #[arg(long, value_enum, default_value = "hidden", value_name = "HOW")]
    ctl_dir: Ctl,
    /// Let other users in (an ordinary user needs user_allow_other in /etc/fuse.conf)
    #[arg(long)]
    allow_other: bool,
    /// Let the kernel read files above 1 MiB from the store by itself: random reads and mappings at the speed
    /// of the disk below. The first open of a file verifies all of it. For root, on a read-only mount
    #[arg(long)]
    passthrough: bool,
    /// Let root make id-mapped mounts of this one (systemd-nspawn -U, podman run --rootfs DIR:idmap, mount -o
    /// X-mount.idmap=). There is no control directory then. For root; Linux 6.12
    #[arg(long)]
    idmap: bool,
    /// Threads that serve requests
    #[arg(long, value_name = "N", default_value_t = DEFAULT_THREADS, value_parser = threads)]
    threads: usize,
    /// This is the background process: say on stdout when the mount answers
    #[arg(long, hide = true, requires = "foreground")]
    background_child: bool,
    /// The mount ends with the sessions inside
    #[arg(long, hide = true, requires = "background_child")]
    session: bool,
    /// Serve in a user namespace with the ids of /etc/subuid
    #[arg(long, hide = true, requires = "session")]
    id_ranges: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Ctl {
    Hidden,
    Visible,
    Disabled,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MountFlag {
    Ro,
    Nosuid,
    Nodev,
    Noexec,
}

impl From<MountFlag> for Flag {
    fn from(flag: MountFlag) -> Flag {
        match flag {
            MountFlag::Ro => Flag::ReadOnly,
            MountFlag::Nosuid => Flag::NoSuid,
            MountFlag::Nodev => Flag::NoDev,
            MountFlag::Noexec => Flag::NoExec,
        }
    }
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=64) => Ok(n),
        _ => Err("a number from 1 to 64".to_owned()),
    }
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        if self.all {
            let all = All {
                dir: self.env.as_deref().map(Path::new),
                foreground: self.foreground,
                background_child: self.background_child,
                install_unit: self.install_unit,
            };
            return all.run(global);
        }
        if self.background_child {
            return self.run_background(global);
        }
        let engine = global.engine()?;
        let (env, options) = self.resolve(&engine)?;
        if !self.read_only && self.snapshot.is_none() {
            engine.durability_remarks(true)?.iter().for_each(|said| ui::remark(said));
        }
        if self.foreground {
            return Ok(engine.serve(&env.instance, &options, &mut |dir| {
                ui::remark(&format!("{} is mounted at {}", env.name, dir.display()));
                Ok(())
            })?);
        }
        let (dir, server) = engine.mount(&env, &options, global.verbose())?;
        if global.json() {
            let dir = dir.display().to_string();
            ui::json(&json!({ "name": env.name, "dir": dir, "pid": server.pid() }))?;
        } else {
            ui::line(&dir.display().to_string())?;
        }
        Ok(())
    }

    /// The environment to mount, and how to mount it.
    pub(super) fn resolve(&self, engine: &Engine) -> Result<(Metadata, Options), Error> {
        let env = engine.find(self.env.as_deref().unwrap_or_default())?;
        let dir = self.dir.clone().map_or_else(|| default_dir(&env), Ok)?;
        let options = self.options(dir);
        Ok((env, options))
    }

    pub fn is_background(&self) -> bool {
        self.background_child
    }

    /// Runs as the background process. Errors before the mount answers are reported to the parent process;
    /// later ones go to the log.
    fn run_background(&self, global: &Global) -> Result<(), Failure> {
        let mut told = false;
        let result = self.serve_background(global, &mut told);
        if let (Err(Failure::Engine(error)), false) = (&result, told) {
            tell_failed(error)?;
        }
        result
    }

    fn serve_background(&self, global: &Global, told: &mut bool) -> Result<(), Failure> {
        // A session of its own, away from the terminal's signals. No directory but the mount point is kept
        // busy.
        nix::unistd::setsid().map_err(std::io::Error::from)?;
        process::become_server().map_err(std::io::Error::from)?;
        if self.id_ranges {
            leave_host()?;
        }
        let engine = global.engine()?;
        let (env, options) = self.resolve(&engine)?;
        std::env::set_current_dir("/")?;
        Ok(engine.serve(&env.instance, &options, &mut |dir| {
            *told = true;
            tell_ready(dir)
        })?)
    }

    fn options(&self, dir: PathBuf) -> Options {
        Options {
            dir,
            read_only: self.read_only,
            flags: self.flags.iter().copied().map(Flag::from).collect(),
            snapshot: self.snapshot.clone(),
            ctl_dir: match self.ctl_dir {
                Ctl::Hidden => CtlDir::Hidden,
                Ctl::Visible => CtlDir::Visible,
                Ctl::Disabled => CtlDir::Disabled,
            },
            allow_other: self.allow_other,
            passthrough: self.passthrough,
            idmap: self.idmap,
            threads: self.threads,
            session: self.session,
            ranges: None,
            has_ground: self.id_ranges,
        }
    }
}
