use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use karapace_fs::session::{CtlDir, Flag, LockScope, MountOptions};
use karapace_store::metadata::Metadata;
use serde_json::json;

use super::mount_all::All;
use crate::cli::Global;
use crate::cli::ui::{self, Failure};
use crate::engine::mount::background::{Mounted, receive_options, tell_failed, tell_ready};
use crate::engine::mount::options::{Options, default_dir};
use crate::engine::{Engine, Error};
use crate::process;

/// The fields of [`How`]. Not the group that clap makes of them: a message would then name all of them
/// instead of the one that was given.
const OF_ONE_MOUNT: [&str; 9] =
    ["read_only", "flags", "snapshot", "ctl_dir", "allow_other", "passthrough", "idmap", "locks", "threads"];

/// Mount an environment as a directory
///
/// Returns when the mount is ready; a background process serves it until `karapace umount`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix
    #[arg(required_unless_present = "all")]
    env: Option<String>,
    /// Mount point. Default: ~/karapace/<name>
    dir: Option<PathBuf>,
    /// Mount every environment below one directory: ~/karapace, or the one given instead of an environment.
    /// Mounts appear and disappear as environments are built, renamed, archived and destroyed; frozen ones
    /// are read-only
    #[arg(long, conflicts_with = "dir", conflicts_with_all = OF_ONE_MOUNT)]
    all: bool,
    /// Mount nothing now, but write a systemd user unit that does so at login,
    /// ~/.config/systemd/user/karapace.service
    #[arg(long, requires = "all", conflicts_with = "foreground")]
    install_unit: bool,
    /// Serve in this process until it is unmounted or interrupted
    #[arg(long)]
    foreground: bool,
    #[command(flatten)]
    how: How,
    /// This is the background process: take the options from stdin, say on stdout when the mount answers
    #[arg(long, hide = true, requires = "foreground", conflicts_with_all = OF_ONE_MOUNT)]
    background_child: bool,
}

/// The options of one mount.
#[derive(Debug, clap::Args)]
struct How {
    /// Refuse every change
    #[arg(long)]
    read_only: bool,
    /// Mount flags of the kernel, as with mount(8). With ro the kernel refuses changes, and commands to the
    /// control files, until `mount -o remount,rw`
    #[arg(short = 'o', long = "option", value_parser = one_of(Flag::WORDS), value_delimiter = ',', value_name = "FLAG")]
    flags: Vec<Flag>,
    /// Mount this snapshot, read-only and without a control directory
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Whether .karapace is listed in the root, only reachable by name, or absent
    #[arg(long, value_parser = one_of(CtlDir::WORDS), default_value = "hidden", value_name = "HOW")]
    ctl_dir: CtlDir,
    /// Give other users access (an ordinary user needs user_allow_other in /etc/fuse.conf)
    #[arg(long)]
    allow_other: bool,
    /// Let the kernel read files above 1 MiB directly from the store, which makes random reads and mappings
    /// as fast as the disk. The first open of a file verifies all of it. Only for root, on a read-only mount
    #[arg(long)]
    passthrough: bool,
    /// Let root make id-mapped mounts of this one (systemd-nspawn -U, podman run --rootfs DIR:idmap, mount -o
    /// X-mount.idmap=). There is no control directory then. Only for root; needs Linux 6.12
    #[arg(long)]
    idmap: bool,
    /// Which locks on files (flock, fcntl) exclude each other: those taken through the same mount, or those
    /// of all programs, on the host and in sessions, which makes opening files slower. It holds for the
    /// sessions too, until the last of them and the mount have ended
    #[arg(long, value_parser = one_of(LockScope::WORDS), default_value = "local", value_name = "SCOPE")]
    locks: LockScope,
    /// Number of threads that serve requests
    #[arg(long, value_name = "N", default_value_t = MountOptions::DEFAULT_THREADS, value_parser = threads)]
    threads: usize,
}

/// Parses one of these words, as the value beside it.
fn one_of<T: Copy + Send + Sync + 'static, const N: usize>(
    words: [(&'static str, T); N],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(words.map(|(word, _)| word)).try_map(move |given| {
        words.iter().find(|(word, _)| *word == given).map(|(_, value)| *value).ok_or("unknown")
    })
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
        let (env, dir) = self.resolve(&engine)?;
        let options = self.options();
        if !options.mount.read_only && options.snapshot.is_none() {
            engine.durability_remarks(true)?.iter().for_each(|said| ui::remark(said));
        }
        if self.foreground {
            return Ok(engine.serve(&env.instance, &dir, &options, &mut |dir| {
                ui::remark(&format!("{} is mounted at {}", env.name, dir.display()));
                Ok(())
            })?);
        }
        let Mounted { dir, pid, .. } = engine.mount(&env, &dir, &options, global.verbose())?;
        if global.json() {
            let dir = dir.display().to_string();
            ui::json(&json!({ "name": env.name, "dir": dir, "pid": pid }))?;
        } else {
            ui::line(&dir.display().to_string())?;
        }
        Ok(())
    }

    /// The environment to mount, and where.
    pub(super) fn resolve(&self, engine: &Engine) -> Result<(Metadata, PathBuf), Error> {
        let env = engine.find(self.env.as_deref().unwrap_or_default())?;
        let dir = self.dir.clone().map_or_else(|| default_dir(&env), Ok)?;
        Ok((env, dir))
    }

    /// How to mount it.
    pub(super) fn options(&self) -> Options {
        self.how.options()
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
        let options = receive_options()?;
        tracing::debug!(?options, "asked to mount");
        let engine = global.engine()?;
        let (env, dir) = self.resolve(&engine)?;
        std::env::set_current_dir("/")?;
        Ok(engine.serve(&env.instance, &dir, &options, &mut |dir| {
            *told = true;
            tell_ready(dir)
        })?)
    }
}

impl How {
    fn options(&self) -> Options {
        let How { read_only, flags, snapshot, ctl_dir, allow_other, passthrough, idmap, locks, threads } =
            self;
        Options {
            snapshot: snapshot.clone(),
            ..Options::on_host(MountOptions {
                read_only: *read_only,
                flags: flags.clone(),
                ctl_dir: *ctl_dir,
                allow_other: *allow_other,
                threads: *threads,
                passthrough: *passthrough,
                idmap: *idmap,
                locks: *locks,
                ..MountOptions::default()
            })
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command, command};

    fn mount(words: &[&str]) -> Result<Args, String> {
        let line = ["karapace", "mount"].iter().chain(words);
        match Cli::try_parse_from(line).map_err(|error| error.to_string())?.command {
            Command::Mount(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    /// Every option of `How` as it is written, with a value that is not its default.
    pub fn options() -> Vec<String> {
        let command = command();
        let mount = command.find_subcommand("mount").expect("a command");
        let group = mount.get_groups().find(|group| group.get_id() == "How").expect("a group");
        let written = group.get_args().map(|id| {
            let arg = mount.get_arguments().find(|arg| arg.get_id() == id).expect("an argument");
            let option = format!("--{}", arg.get_long().expect("a long name"));
            let values = arg.get_possible_values();
            match values.last() {
                _ if !arg.get_action().takes_values() => option,
                Some(value) => format!("{option}={}", value.get_name()),
                None => format!("{option}=7"),
            }
        });
        written.collect()
    }

    #[test]
    fn every_option_reaches_the_engine() {
        let default = mount(&["dev"]).unwrap().options();
        assert_eq!(default, Options::on_host(MountOptions::default()));
        let options = options();
        let fields = serde_json::to_value(&default.mount).unwrap();
        // The engine sets these.
        let set = ["for_sessions", "shares", "sub_ids"];
        let count = fields.as_object().unwrap().keys().filter(|name| !set.contains(&name.as_str())).count();
        assert_eq!(options.len(), count + 1, "those of the file system, and the snapshot: {options:?}");
        for option in &options {
            assert_ne!(mount(&["dev", option]).unwrap().options(), default, "{option} is lost");
        }
    }

    #[test]
    fn mount_all_and_the_background_process_take_no_options() {
        for option in options() {
            for words in [&["--all"][..], &["dev", "--foreground", "--background-child"]] {
                assert!(mount(words).is_ok(), "{words:?}");
                let refused = mount(&[words, &[&option]].concat()).unwrap_err();
                let name = option.split('=').next().unwrap_or_default();
                assert!(refused.contains(&format!("cannot be used with '{name}")), "{refused}");
            }
        }
    }
}
