//! The program under the name `mount.fuse.karapace`, which mount(8) runs for the type `fuse.karapace`: it
//! turns `mount SOURCE DIR -o OPTIONS` and lines of fstab into `karapace mount`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::Parser;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::Command;
use crate::cli::ui::Failure;
use crate::cli::{Cli, start_log, tell_failure, usage};
use crate::engine::instance::reference;
use crate::engine::mountpoint;
use crate::engine::mountpoint::SOURCE;
use crate::engine::{Error, default_store};

/// The program that mount(8) looks for in /sbin.
const NAME: &str = "mount.fuse.karapace";

/// Exit statuses of mount(8): a wrong command line, and a mount that failed.
const INVOCATION: i32 = 1;
const MOUNT: i32 = 32;

/// Options that are meant for mount(8), systemd or people, and those that have no effect here: access times
/// are never written.
const IGNORED: [&str; 20] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "async",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "silent",
    "loud",
    "nostrictatime",
];

/// Options that /proc/mounts lists for a FUSE mount, and that mount(8) passes along on a remount.
const OF_KERNEL: [&str; 7] =
    ["user_id", "group_id", "default_permissions", "allow_other", "max_read", "blksize", "rootmode"];

/// Mounts an environment for mount(8), as its type fuse.karapace
///
/// Install it as a link to karapace: ln -s "$(command -v karapace)" /sbin/mount.fuse.karapace
#[derive(Debug, Parser)]
#[command(name = NAME, version)]
struct Helper {
    /// Name, env_id or unique prefix of an environment; `karapace+` may stand before, and after @ a snapshot
    #[arg(value_name = "[karapace+]ENV[@SNAPSHOT]")]
    source: String,
    /// Where
    dir: PathBuf,
    /// Ignore unknown options
    #[arg(short = 's')]
    sloppy: bool,
    /// Do everything except mounting
    #[arg(short = 'f')]
    fake: bool,
    /// Has no effect
    #[arg(short = 'n')]
    no_mtab: bool,
    /// Print more details
    #[arg(short = 'v')]
    verbose: bool,
    /// A mount namespace; not supported
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,
    /// store=PATH, ro, nosuid, nodev, noexec, allow_other, ctl_dir=hidden|visible|disabled,
    /// locks=local|shared, threads=N, passthrough, idmap; remount
    #[arg(short = 'o', value_delimiter = ',', value_name = "OPTIONS")]
    options: Vec<String>,
    /// The type; ignored
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
}

/// The parsed options.
#[derive(Debug, Default)]
struct Asked {
    remount: bool,
    /// Flags of the kernel, as `karapace mount -o` accepts them.
    flags: Vec<&'static str>,
    /// Options of `karapace mount`.
    words: Vec<OsString>,
    store: Option<PathBuf>,
}

/// Why nothing was mounted.
enum Refused {
    Invocation(String),
    Mount(Failure),
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Refused {
        Refused::Mount(failure)
    }
}

/// Whether the program was started under the helper's name.
pub fn is_called(program: Option<&OsString>) -> bool {
    program.is_some_and(|path| Path::new(path).file_name() == Some(OsStr::new(NAME)))
}

/// Runs as the helper and returns an exit status of mount(8).
pub fn run(args: &[OsString]) -> i32 {
    let helper = match Helper::try_parse_from(args) {
        Ok(helper) => helper,
        Err(error) => return usage::tell(error, args).min(INVOCATION),
    };
    match helper.act() {
        Ok(()) => 0,
        Err(Refused::Invocation(reason)) => {
            tell_failure(NAME, &Failure::Engine(Error::Invalid(reason)));
            INVOCATION
        }
        Err(Refused::Mount(failure)) => {
            tell_failure(NAME, &failure);
            MOUNT
        }
    }
}

impl Helper {
    fn act(&self) -> Result<(), Refused> {
        if let Some(namespace) = &self.namespace {
            let namespace = namespace.display();
            return Err(Refused::Invocation(format!(
                "cannot mount in another namespace: use `nsenter --mount={namespace} mount ...` instead of -N"
            )));
        }
        let asked = Asked::read(&self.options, self.sloppy).map_err(Refused::Invocation)?;
        if asked.remount {
            return if self.fake { Ok(()) } else { remount(&self.dir, &asked.flags) };
        }
        let cli = Cli::try_parse_from(self.command_line(asked)).map_err(|error| {
            let reason = error.render().to_string();
            let reason = reason.trim_start_matches("error: ").lines().next().unwrap_or_default().to_owned();
            Refused::Invocation(reason)
        })?;
        let Command::Mount(mount) = &cli.command else { return Ok(()) };
        start_log(&cli.global, false);
        let engine = cli.global.engine()?;
        let (env, dir) = mount.resolve(&engine).map_err(Failure::from)?;
        if !self.fake {
            let options = mount.options();
            engine.mount(&env, &dir, &options, cli.global.verbose()).map_err(Failure::from)?;
        }
        Ok(())
    }

    /// The equivalent `karapace` command line.
    fn command_line(&self, asked: Asked) -> Vec<OsString> {
        let mut line: Vec<OsString> = vec!["karapace".into()];
        if let Some(store) = asked.store.or_else(store_of_account) {
            line.extend(["--store".into(), store.into()]);
        }
        if self.verbose {
            line.push("--verbose".into());
        }
        line.push("mount".into());
        line.extend(asked.words);
        line.extend(asked.flags.iter().map(|flag| format!("-o{flag}").into()));
        let (env, snapshot) = reference::split(self.source.strip_prefix(SOURCE).unwrap_or(&self.source));
        line.extend(snapshot.map(|snapshot| format!("--snapshot={snapshot}").into()));
        line.extend(["--".into(), env.into(), self.dir.clone().into()]);
        line
    }
}

impl Asked {
    /// Parses the options; of contradicting ones the last counts. The error names an unknown option and the
    /// reason; with `sloppy`, unknown options are ignored.
    fn read(options: &[String], sloppy: bool) -> Result<Asked, String> {
        let remount = options.iter().any(|option| option == "remount");
        let mut asked = Asked { remount, ..Asked::default() };
        for option in options {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option.as_str(), None),
            };
            match (name, value) {
                ("ro" | "rw", None) => asked.set("ro", name == "ro"),
                ("nosuid" | "suid", None) => asked.set("nosuid", name == "nosuid"),
                ("nodev" | "dev", None) => asked.set("nodev", name == "nodev"),
                ("noexec" | "exec", None) => asked.set("noexec", name == "noexec"),
                ("store", Some(path)) if path.starts_with('/') => asked.store = Some(path.into()),
                ("store", _) => return Err(format!("{option}: the path of the store must be absolute")),
                ("passthrough", None) => {
                    asked.say("--passthrough", "");
                    asked.say("--read-only", "");
                }
                ("allow_other", None) => asked.say("--allow-other", ""),
                ("idmap", None) => asked.say("--idmap", ""),
                ("threads", Some(number)) => asked.say("--threads=", number),
                ("ctl_dir", Some(how)) => asked.say("--ctl-dir=", how),
                ("locks", Some(scope)) => asked.say("--locks=", scope),
                ("remount" | "", None) => {}
                _ if IGNORED.contains(&name)
                    || name == "comment"
                    || name.to_lowercase().starts_with("x-") => {}
                _ if asked.remount && OF_KERNEL.contains(&name) => {}
                _ if sloppy => {}
                _ => {
                    return Err(format!("unknown option {option}: see `{NAME} --help`"));
                }
            }
        }
        Ok(asked)
    }

    /// Adds an argument, replacing an earlier one that starts with `option`.
    fn say(&mut self, option: &str, value: &str) {
        self.words.retain(|word| !word.to_string_lossy().starts_with(option));
        self.words.push(format!("{option}{value}").into());
    }

    fn set(&mut self, flag: &'static str, on: bool) {
        self.flags.retain(|other| *other != flag);
        if on {
            self.flags.push(flag);
        }
    }
}

/// The path of the account's store, if the process's environment does not give one: mount(8) passes no HOME
/// on, and systemd has none.
fn store_of_account() -> Option<PathBuf> {
    let is_told = std::env::var_os("KARAPACE_STORE").is_some() || default_store().is_some();
    if is_told { None } else { std::env::home_dir().map(|home| home.join(".local/share/karapace")) }
}

/// Remounts `dir` with the given kernel flags, plus those that an ordinary user's mount must have.
fn remount(dir: &Path, flags: &[&str]) -> Result<(), Refused> {
    let Some(mounter) = mountpoint::mounter_of_ours(dir).map_err(Failure::from)? else {
        let reason = format!("no environment is mounted on {}: leave out `remount`", dir.display());
        return Err(Failure::Engine(Error::Invalid(reason)).into());
    };
    let mut all = MsFlags::MS_REMOUNT | MsFlags::MS_NOATIME;
    if mounter != 0 {
        // The content is under the user's control.
        all |= MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    }
    for flag in flags {
        all |= match *flag {
            "ro" => MsFlags::MS_RDONLY,
            "nosuid" => MsFlags::MS_NOSUID,
            "nodev" => MsFlags::MS_NODEV,
            _ => MsFlags::MS_NOEXEC,
        };
    }
    mount(None::<&str>, dir, None::<&str>, all, None::<&str>).map_err(|errno| {
        let what = match errno {
            Errno::EBUSY => "make read-only, for something in it is open for writing,",
            _ => "remount",
        };
        Failure::Engine(Error::io(what, dir, errno.into())).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(args: &[&str]) -> Result<String, String> {
        let helper = Helper::try_parse_from([NAME].iter().chain(args)).map_err(|error| error.to_string())?;
        let asked = Asked::read(&helper.options, helper.sloppy)?;
        let words: Vec<String> =
            helper.command_line(asked).iter().map(|word| word.to_string_lossy().into_owned()).collect();
        assert!(Cli::try_parse_from(&words).is_ok(), "{words:?}");
        Ok(words.join(" "))
    }

    #[test]
    fn options_of_fstab_become_a_command() {
        let table = [
            ("karapace+dev /mnt -o rw,store=/s", "karapace --store /s mount -- dev /mnt"),
            (
                "dev@base /mnt -o ro,store=/s -t fuse.karapace -n",
                "karapace --store /s mount -oro --snapshot=base -- dev /mnt",
            ),
            (
                "dev /mnt -v -o rw,noexec,nosuid,nodev,user=me,exec,dev,store=/s,_netdev,x-systemd.automount,nofail,X-y=z",
                "karapace --store /s --verbose mount -onosuid -- dev /mnt",
            ),
            (
                "dev /mnt -o store=/s,allow_other,threads=4,ctl_dir=visible,passthrough,ro",
                "karapace --store /s mount --allow-other --threads=4 --ctl-dir=visible --passthrough --read-only -oro -- dev /mnt",
            ),
            // Options of the command line follow those of fstab.
            (
                "dev /mnt -o store=/s,threads=2,idmap,allow_other,threads=4,allow_other",
                "karapace --store /s mount --idmap --threads=4 --allow-other -- dev /mnt",
            ),
            ("dev /mnt -s -o store=/s,acl", "karapace --store /s mount -- dev /mnt"),
        ];
        for (given, expected) in table {
            let args: Vec<&str> = given.split(' ').collect();
            assert_eq!(line(&args).as_deref(), Ok(expected), "{given}");
        }
    }

    #[test]
    fn every_option_of_the_command_is_known() {
        for option in super::super::mount::tests::options() {
            let word = option.trim_start_matches("--").replace('-', "_");
            // Of these, fstab has other forms: ro, the flags by themselves, and ENV@SNAPSHOT.
            if !["read_only", "option", "snapshot"].iter().any(|name| word.starts_with(name)) {
                let line = line(&["dev", "/mnt", "-o", &word]).unwrap();
                assert!(line.contains(&option), "{word}: {line}");
            }
        }
    }

    #[test]
    fn unknown_options_are_named() {
        for option in ["acl", "strictatime", "user_id=0", "ro=1", "store=relative", "threads"] {
            let refused = line(&["dev", "/mnt", "-o", &format!("rw,{option}")]).unwrap_err();
            assert!(refused.contains(option), "{option}: {refused}");
        }
        assert!(Asked::read(&["remount".to_owned(), "user_id=0".to_owned()], false).is_ok());
    }
}
