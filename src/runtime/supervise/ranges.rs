//! The ids that an ordinary user may use besides its own: listed in /etc/subuid and /etc/subgid, and mapped
//! into a user namespace by newuidmap and newgidmap.

use std::ffi::OsStr;
use std::fmt::{self, Display};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{Uid, User, getegid, geteuid};

use super::refusal::switched_off;

const SUBUID: &str = "/etc/subuid";
const SUBGID: &str = "/etc/subgid";

/// Where to look for the helpers after PATH, which may be short for a service.
const PLACES: [&str; 3] = ["/usr/bin", "/usr/sbin", "/bin"];

/// Ids of the host: the first one and their count.
pub type Range = (u32, u32);

/// The ids that this user can map into a user namespace: inside, 0 is the user's own id, and these ranges
/// follow in order from 1 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges {
    uids: Vec<Range>,
    gids: Vec<Range>,
    newuidmap: PathBuf,
    newgidmap: PathBuf,
}

/// Why an ordinary user has a single id only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The user has no line in this file.
    NoRange {
        /// `/etc/subuid` or `/etc/subgid`.
        file: &'static str,
        /// The user's name, or the id in digits if it has none.
        user: String,
    },
    /// A file cannot be read.
    Unreadable {
        /// The file.
        file: &'static str,
        /// The error from the system.
        error: String,
    },
    /// The program that maps ids does not exist.
    NoHelper {
        /// `newuidmap` or `newgidmap`.
        program: &'static str,
    },
    /// It exists, but is not set-user-id and has no file capabilities.
    PowerlessHelper {
        /// Where it is.
        path: PathBuf,
    },
    /// The kernel does not let ordinary users make user namespaces.
    SwitchedOff {
        /// The sysctl, and how to change it.
        text: String,
    },
    /// /dev/fuse cannot be opened, which must be done inside the namespace.
    NoFuse {
        /// The error from the system.
        error: String,
    },
}

impl Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NoRange { file, user } => write!(f, "{user} has no range of ids in {file}"),
            Reason::Unreadable { file, error } => write!(f, "{file} cannot be read ({error})"),
            Reason::NoHelper { program } => write!(f, "{program} is not installed"),
            Reason::PowerlessHelper { path } => {
                write!(f, "{} has neither the set-user-id bit nor a capability", path.display())
            }
            Reason::SwitchedOff { text } => {
                write!(f, "the kernel refuses user namespaces: {}", text.split(';').next().unwrap_or(text))
            }
            Reason::NoFuse { error } => write!(f, "/dev/fuse cannot be opened ({error})"),
        }
    }
}

impl Reason {
    /// The command that fixes it, to be run as root.
    pub fn cure(&self) -> String {
        match self {
            Reason::NoRange { user, .. } => {
                format!("usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}")
            }
            Reason::Unreadable { file, .. } => format!("chmod 644 {file}"),
            Reason::NoHelper { .. } => "apt-get install uidmap (shadow-utils or shadow elsewhere)".to_owned(),
            Reason::PowerlessHelper { path } => format!("chmod u+s {}", path.display()),
            Reason::SwitchedOff { text } => {
                text.split_once("run: ").map_or(text.as_str(), |(_, cure)| cure).to_owned()
            }
            Reason::NoFuse { .. } => {
                "modprobe fuse; chmod 0666 /dev/fuse (the package fuse3 does it)".to_owned()
            }
        }
    }
}

/// The ids that this process, an ordinary user's, can map into a user namespace.
///
/// # Errors
/// The first thing that is missing. Whether a security module forbids it shows only on use.
pub fn available() -> Result<Ranges, Reason> {
    if let Some(text) = switched_off() {
        return Err(Reason::SwitchedOff { text });
    }
    let (uids, gids) = listed()?;
    let (newuidmap, newgidmap) = (helper("newuidmap")?, helper("newgidmap")?);
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Ok(Ranges { uids, gids, newuidmap, newgidmap }),
        Err(error) => Err(Reason::NoFuse { error: error.to_string() }),
    }
}

/// The user ids and group ids that the two files list for this process's user, whether or not they can be
/// mapped.
///
/// # Errors
/// If a file has none, or cannot be read.
pub fn listed() -> Result<(Vec<Range>, Vec<Range>), Reason> {
    let (uid, name) = (geteuid(), user_name(geteuid()));
    let ranges = |file| {
        let text =
            fs::read_to_string(file).or_else(|e| if is_absent(&e) { Ok(String::new()) } else { Err(e) });
        let text = text.map_err(|e| Reason::Unreadable { file, error: e.to_string() })?;
        let found = of_user(&text, &name, uid);
        if found.is_empty() { Err(Reason::NoRange { file, user: name.clone() }) } else { Ok(found) }
    };
    Ok((ranges(SUBUID)?, ranges(SUBGID)?))
}

impl Ranges {
    /// How many user ids such a namespace has.
    pub fn count(&self) -> u32 {
        self.uids.iter().fold(1, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Maps the ids into the new user namespace that the child process `pid` has made and waits in.
    ///
    /// # Errors
    /// What newuidmap or newgidmap reports.
    pub fn give(&self, pid: u32) -> io::Result<()> {
        let ids = (geteuid().as_raw(), getegid().as_raw());
        for (program, own, ranges) in
            [(&self.newuidmap, ids.0, &self.uids), (&self.newgidmap, ids.1, &self.gids)]
        {
            let mut command = Command::new(program);
            command.arg(pid.to_string()).args(map(own, ranges).iter().map(u32::to_string));
            let output = command.stdin(Stdio::null()).output()?;
            if !output.status.success() {
                let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(io::Error::other(words));
            }
        }
        Ok(())
    }
}

/// Returns the map as triples: first id inside, first id outside, count.
fn map(own: u32, ranges: &[Range]) -> Vec<u32> {
    let mut map = vec![0, own, 1];
    let mut next = 1_u32;
    for (first, count) in ranges {
        map.extend([next, *first, *count]);
        next = next.saturating_add(*count);
    }
    map
}

/// The ranges of a user, by name or id, in a subuid(5) file. A range that overlaps an earlier one is left
/// out.
fn of_user(text: &str, name: &str, uid: Uid) -> Vec<Range> {
    let digits = uid.to_string();
    let line = |line: &str| {
        let mut fields = line.trim().split(':');
        let (owner, first, count) = (fields.next()?, fields.next()?, fields.next()?);
        let range: Range = (first.parse().ok()?, count.parse().ok()?);
        let sound = range.1 > 0 && range.0.checked_add(range.1).is_some();
        (fields.next().is_none() && (owner == name || owner == digits) && sound).then_some(range)
    };
    let mut found: Vec<Range> = Vec::new();
    for range in text.lines().filter_map(line) {
        // The same range may be listed by name and by id.
        if !found.iter().any(|(first, count)| range.0 < first + count && *first < range.0 + range.1) {
            found.push(range);
        }
    }
    found
}

fn user_name(uid: Uid) -> String {
    match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

fn helper(program: &'static str) -> Result<PathBuf, Reason> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(PLACES.iter().map(PathBuf::from));
    let found = places.filter(|dir| dir.is_absolute()).map(|dir| dir.join(program)).find(|p| p.is_file());
    let path = found.ok_or(Reason::NoHelper { program })?;
    if has_powers(&path) { Ok(path) } else { Err(Reason::PowerlessHelper { path }) }
}

fn has_powers(path: &Path) -> bool {
    let set_user_id = fs::metadata(path).is_ok_and(|m| m.permissions().mode() & libc::S_ISUID != 0);
    let mut value = [0_u8; 64];
    set_user_id || rustix::fs::getxattr(path, OsStr::new("security.capability"), &mut value).is_ok()
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_user() {
        let text = "ana:100000:65536\nbob:165536:65536\n# ana:1:1\n1000:300000:10\nana:x:1\nana:1:0\n\
                    ana:4294967295:5\nana:120000:2\nana:400000:5:6\n";
        assert_eq!(of_user(text, "ana", Uid::from_raw(1000)), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(of_user(text, "eve", Uid::from_raw(7)), []);
    }

    #[test]
    fn ids_inside_follow_one_another() {
        assert_eq!(
            map(1000, &[(100_000, 65_536), (300_000, 10)]),
            [0, 1000, 1, 1, 100_000, 65_536, 65_537, 300_000, 10]
        );
    }

    #[test]
    fn every_reason_has_a_cure() {
        let text = "/proc/sys/x is 0; as root, run: sysctl -w x=1".to_owned();
        let off = Reason::SwitchedOff { text };
        assert_eq!(off.cure(), "sysctl -w x=1");
        assert_eq!(off.to_string(), "the kernel refuses user namespaces: /proc/sys/x is 0");
        let none = Reason::NoRange { file: SUBUID, user: "ana".to_owned() };
        assert!(none.to_string().contains("/etc/subuid") && none.cure().ends_with(" ana"));
    }
}
