//! The user that the command runs as, looked up in the environment's own passwd and group files.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::Inside;
use crate::runtime::RuntimeError;

/// The shell of a user that has none, or whose shell does not exist in the environment.
pub(crate) const SHELL: &str = "/bin/sh";

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// A user of the environment. Ids are those inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
    /// Supplementary groups, `gid` first.
    pub groups: Vec<u32>,
    /// The login name, or the uid in digits if the environment has no name for it.
    pub name: Vec<u8>,
    /// The home directory, a path inside.
    pub home: PathBuf,
    /// The login shell, a path inside; `/bin/sh` if none is set or it does not exist in the environment.
    pub shell: PathBuf,
}

impl User {
    /// Finds `name`, `uid`, `name:group` or `uid:gid` (names and numbers may be mixed); `None` is uid 0. A
    /// name must have an entry; a number need not.
    pub(super) fn find(inside: &Inside, wanted: Option<&str>) -> Result<User, RuntimeError> {
        let passwd = inside.read(Path::new(PASSWD)).unwrap_or_default();
        let group = inside.read(Path::new(GROUP)).unwrap_or_default();
        let mut user = find(&passwd, &group, wanted.unwrap_or("0"))?;
        if !user.shell.is_absolute() || !inside.is_program(&user.shell) {
            user.shell = PathBuf::from(SHELL);
        }
        Ok(user)
    }
}

/// The login shell of uid 0 in a passwd file.
pub(crate) fn root_shell(passwd: &[u8]) -> Option<OsString> {
    let user = find(passwd, b"", "0").ok()?;
    user.shell.is_absolute().then(|| user.shell.into())
}

fn find(passwd: &[u8], group: &[u8], wanted: &str) -> Result<User, RuntimeError> {
    let (name, group_name) = match wanted.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (wanted, None),
    };
    let mut user = match entries(passwd, 7).find_map(|e| by_name(&e, name)) {
        Some(user) => user,
        None => {
            let uid = number(name.as_bytes()).ok_or_else(|| unknown("user", name, PASSWD))?;
            entries(passwd, 7)
                .filter_map(|e| account(&e))
                .find(|u| u.uid == uid)
                .unwrap_or_else(|| stranger(uid))
        }
    };
    if let Some(wanted) = group_name {
        user.gid = entries(group, 4)
            .find(|e| e[0] == wanted.as_bytes())
            .and_then(|e| number(e[2]))
            .or_else(|| number(wanted.as_bytes()))
            .ok_or_else(|| unknown("group", wanted, GROUP))?;
    }
    user.groups = vec![user.gid];
    if group_name.is_none() {
        for entry in entries(group, 4) {
            let member = entry[3].split(|b| *b == b',').any(|m| m == user.name);
            match number(entry[2]) {
                Some(gid) if member && !user.groups.contains(&gid) => user.groups.push(gid),
                _ => {}
            }
        }
    }
    Ok(user)
}

/// Splits a colon-separated file into entries; skips lines with another number of fields or an empty name.
fn entries(file: &[u8], fields: usize) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|b| *b == b'\n')
        .map(|line| line.split(|b| *b == b':').collect::<Vec<_>>())
        .filter(move |entry| entry.len() == fields && !entry[0].is_empty())
}

fn by_name(entry: &[&[u8]], name: &str) -> Option<User> {
    if entry[0] == name.as_bytes() { account(entry) } else { None }
}

fn account(entry: &[&[u8]]) -> Option<User> {
    Some(User {
        uid: number(entry[2])?,
        gid: number(entry[3])?,
        groups: Vec::new(),
        name: entry[0].to_vec(),
        home: PathBuf::from(OsStr::from_bytes(if entry[5].is_empty() { b"/" } else { entry[5] })),
        shell: PathBuf::from(OsStr::from_bytes(entry[6])),
    })
}

/// The account for a uid without an entry: group 0 and no home of its own, as in other container tools.
fn stranger(uid: u32) -> User {
    let (name, home) = if uid == 0 { ("root".into(), "/root") } else { (uid.to_string(), "/") };
    let (name, home) = (name.into_bytes(), PathBuf::from(home));
    User { uid, gid: 0, groups: Vec::new(), name, home, shell: PathBuf::new() }
}

/// Parses decimal digits only. Rejects the largest value, which is not an id: the kernel reads it as
/// "unchanged".
fn number(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?;
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|n| *n != u32::MAX)
}

fn unknown(kind: &'static str, name: &str, file: &'static str) -> RuntimeError {
    RuntimeError::UnknownUser { kind, name: name.to_owned(), file }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n+::::::\nbroken\nana:x:1000:1001:A,,,:/home/ana:/bin/zsh\n42:x:7:7::/:\n";
    const GROUPS: &[u8] = b"root:x:0:\nana:x:1001:\naudio:x:29:bob,ana\nvideo:x:44:ana,bob\nana2:x:50:anab\n";

    #[test]
    fn finds_by_name_number_and_default() {
        let ana = find(USERS, GROUPS, "ana").unwrap();
        assert_eq!((ana.uid, ana.gid, ana.groups.as_slice()), (1000, 1001, &[1001, 29, 44][..]));
        assert_eq!(ana.home, Path::new("/home/ana"));
        assert_eq!(find(USERS, GROUPS, "1000").unwrap(), ana);
        assert_eq!(find(USERS, GROUPS, "0").unwrap().shell, Path::new("/bin/bash"));
    }

    #[test]
    fn a_name_of_digits_wins_over_the_number() {
        assert_eq!(find(USERS, GROUPS, "42").unwrap().uid, 7);
    }

    #[test]
    fn a_group_replaces_all_groups() {
        let ana = find(USERS, GROUPS, "ana:video").unwrap();
        assert_eq!((ana.gid, ana.groups.as_slice()), (44, &[44][..]));
        assert_eq!(find(USERS, GROUPS, "5:6").unwrap().gid, 6);
    }

    #[test]
    fn a_number_needs_no_entry_and_a_name_does() {
        let nobody = find(b"", b"", "4242").unwrap();
        assert_eq!((nobody.uid, nobody.gid, nobody.home.as_path()), (4242, 0, Path::new("/")));
        for (wanted, what) in
            [("bob", "user"), ("", "user"), ("-1", "user"), ("4294967295", "user"), ("ana:nobody", "group")]
        {
            match find(USERS, GROUPS, wanted) {
                Err(RuntimeError::UnknownUser { kind, .. }) => assert_eq!(kind, what),
                other => panic!("{wanted}: {other:?}"),
            }
        }
    }
}
