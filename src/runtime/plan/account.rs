//! Running as the caller (`--user self`): the caller becomes a user of the environment, whose own passwd and
//! group files do not list them.
//!
//! The files with the caller's entries belong to the session: they are bind-mounted over `/etc/passwd` and
//! `/etc/group` in a mount namespace that only its command sees, so a package manager in another session
//! still works on the real ones.

use std::path::{Path, PathBuf};

use nix::unistd::{Group, Uid, getegid, geteuid};
use serde::{Deserialize, Serialize};

use super::files::Inside;
use super::strings::c_string;
use super::user::{SHELL, User};
use crate::description::manifest::Backend;
use crate::runtime::RuntimeError;
use crate::runtime::error::refused;
use crate::runtime::inside::account::Account;
use crate::runtime::policy::Policy;

/// The value of `--user` that means the caller.
pub const SELF: &str = "self";

/// Shells to look for inside, in order of preference. The caller's own is used if it is among them.
const SHELLS: [&str; 7] =
    ["/bin/bash", "/usr/bin/bash", "/bin/zsh", "/usr/bin/zsh", "/usr/bin/fish", "/bin/dash", SHELL];

/// What a session's passwd and group files are made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounts {
    passwd: Vec<u8>,
    group: Vec<u8>,
    /// The [`SHELLS`] that exist inside.
    shells: Vec<PathBuf>,
}

impl Accounts {
    pub(super) fn look(inside: &Inside) -> Accounts {
        let list = |path| inside.read(Path::new(path)).unwrap_or_default();
        let shells = SHELLS.iter().map(PathBuf::from).filter(|shell| inside.is_program(shell)).collect();
        Accounts { passwd: list("/etc/passwd"), group: list("/etc/group"), shells }
    }

    /// Adds the calling process's user to the passwd and group files, and returns the account inside.
    /// `many_ids`: the inside has more than one id.
    ///
    /// # Errors
    /// [`RuntimeError::Policy`] with the OCI backend, or if the inside has many ids and the home directory is
    /// shared.
    pub(super) fn take_in_caller(&mut self, policy: &Policy, many_ids: bool) -> Result<User, RuntimeError> {
        if policy.backend == Backend::Oci {
            return Err(refused(
                "--user self",
                "not supported by the oci backend: use a user of the environment",
            ));
        }
        if many_ids && policy.home.is_some() {
            let reason = "your files belong to root inside when the ids of /etc/subuid are used: leave out --user to share the \
                          home directory, or mount the environment first (karapace mount): then such a session has one id inside, yours";
            return Err(refused("--user self", reason));
        }
        let (uid, gid) = (geteuid(), getegid());
        let name = name_of(uid);
        let home = policy.home.clone().unwrap_or_else(|| PathBuf::from(format!("/home/{name}")));
        let own = std::env::var_os("SHELL").map(PathBuf::from);
        let shell = self.shells.iter().find(|shell| Some(*shell) == own.as_ref());
        let shell = shell.or(self.shells.first()).cloned().unwrap_or_else(|| PathBuf::from(SHELL));
        let line = format!("{name}:x:{uid}:{gid}:{name}:{}:{}\n", home.display(), shell.display());
        self.passwd = with_line(&self.passwd, &name, uid.as_raw(), &line);
        let group = Group::from_gid(gid).ok().flatten().map_or_else(|| name.clone(), |group| group.name);
        let line = format!("{group}:x:{gid}:\n");
        self.group = with_line(&self.group, &group, gid.as_raw(), &line);
        let (uid, gid) = (uid.as_raw(), gid.as_raw());
        Ok(User { uid, gid, groups: vec![gid], name: name.into_bytes(), home, shell })
    }

    /// The account to show to a command that runs as `user`, who must be the caller.
    pub(super) fn shown_to(&self, user: &User, policy: &Policy) -> Result<Account, RuntimeError> {
        let home = match &policy.home {
            Some(_) => None,
            None => Some(c_string("home directory", user.home.clone().into())?),
        };
        let lists = [self.passwd.clone(), self.group.clone()];
        Ok(Account { lists, home, uid: user.uid, gid: user.gid })
    }
}

/// The caller's login name, or the uid in digits if there is none that fits into a line of the file.
fn name_of(uid: Uid) -> String {
    let known = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
    let name = known.or_else(|| std::env::var("USER").ok());
    let fits = |name: &String| !name.is_empty() && !name.contains([':', '/', '\n', '\0']);
    name.filter(fits).unwrap_or_else(|| uid.to_string())
}

/// The file without entries that have this name or id, and with `line` at its end.
fn with_line(list: &[u8], name: &str, id: u32, line: &str) -> Vec<u8> {
    let id = id.to_string();
    let other = |entry: &&[u8]| {
        let mut fields = entry.split(|b| *b == b':');
        !entry.is_empty() && fields.next() != Some(name.as_bytes()) && fields.nth(1) != Some(id.as_bytes())
    };
    let mut text = Vec::with_capacity(list.len() + line.len() + 1);
    for entry in list.split(|b| *b == b'\n').filter(other) {
        text.extend_from_slice(entry);
        text.push(b'\n');
    }
    text.extend_from_slice(line.as_bytes());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::plan::seen::Seen;

    #[test]
    fn the_caller_replaces_whoever_has_its_name_or_id() {
        let list = b"root:x:0:0::/root:/bin/sh\nana:x:1:1::/:\nbob:x:1000:5::/:\n\neve:x:1001:1000::/:";
        let text = with_line(list, "ana", 1000, "ana:x:1000:1000:ana:/home/ana:/bin/sh\n");
        let expected =
            "root:x:0:0::/root:/bin/sh\neve:x:1001:1000::/:\nana:x:1000:1000:ana:/home/ana:/bin/sh\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        assert_eq!(with_line(b"", "g", 7, "g:x:7:\n"), b"g:x:7:\n");
    }

    #[test]
    fn impossible_combinations_are_refused() {
        let user =
            User { uid: 0, gid: 0, groups: vec![0], name: vec![], home: "/".into(), shell: "/bin/sh".into() };
        let accounts = Some(Box::new(Accounts { passwd: vec![], group: vec![], shells: vec![] }));
        let (directories, notes) = (vec![], vec![]);
        let seen = Seen { user, has_home: false, hosts: None, accounts, directories, notes };
        let shared = Policy { home: Some("/home/me".into()), ..Policy::default() };
        let oci = Policy { backend: Backend::Oci, ..Policy::default() };
        for (policy, many_ids, reason) in
            [(&shared, true, "karapace mount"), (&oci, false, "oci backend"), (&oci, true, "oci backend")]
        {
            let error = seen.clone().become_caller(policy, many_ids).unwrap_err().to_string();
            assert!(error.starts_with("--user self: ") && error.contains(reason), "{error}");
        }
        let mut own = seen.clone();
        own.become_caller(&shared, false).unwrap();
        assert_eq!((own.user.uid, own.user.home.as_path()), (geteuid().as_raw(), Path::new("/home/me")));
        let mut named = Seen { accounts: None, ..seen };
        named.become_caller(&oci, true).unwrap();
        assert_eq!(named.user.uid, 0);
    }
}
