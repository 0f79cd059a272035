//! The command's environment variables, and the search for its program.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::user::User;
use crate::runtime::RuntimeError;
use crate::runtime::error::refused;
use crate::runtime::policy::{Policy, RUNTIME_DIR};

/// The only variables of the caller that a command sees. All others stay outside: sockets of agents,
/// credentials and library paths of the host do harm inside.
const PASSED: [&str; 2] = ["TERM", "LANG"];

/// Variables that are refused even if they are asked for by name.
const NEVER: [&str; 4] = ["SSH_AUTH_SOCK", "GPG_AGENT_INFO", "AWS_SECRET_ACCESS_KEY", "DOCKER_HOST"];

/// The search path inside, whatever the caller's own PATH is.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a command's variables are made from.
pub(in crate::runtime) struct Wanted<'a> {
    pub user: &'a User,
    pub shell: &'a OsStr,
    pub policy: &'a Policy,
    /// Names and values that were asked for; they override all others.
    pub extra: &'a [(OsString, OsString)],
}

impl Wanted<'_> {
    /// Returns the variables. `host` looks up a variable of the caller.
    pub fn collect(
        &self,
        host: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Vec<(OsString, OsString)>, RuntimeError> {
        let name = OsStr::from_bytes(&self.user.name);
        let home = self.policy.home.as_ref().unwrap_or(&self.user.home);
        let mut all: Vec<(OsString, OsString)> = vec![
            ("PATH".into(), PATH.into()),
            ("HOME".into(), home.clone().into()),
            ("USER".into(), name.into()),
            ("LOGNAME".into(), name.into()),
            ("SHELL".into(), self.shell.into()),
            ("XDG_RUNTIME_DIR".into(), RUNTIME_DIR.into()),
        ];
        all.extend(PASSED.iter().filter_map(|key| Some((OsString::from(key), host(key)?))));
        for (key, value) in self.policy.variables.iter().chain(self.extra) {
            check(key)?;
            all.retain(|(k, _)| k != key);
            all.push((key.clone(), value.clone()));
        }
        Ok(all)
    }
}

/// Refuses a name that is invalid or in [`NEVER`].
fn check(key: &OsStr) -> Result<(), RuntimeError> {
    let bytes = key.as_bytes();
    if bytes.is_empty() || bytes.contains(&b'=') {
        return Err(RuntimeError::Invalid {
            what: "variable name",
            value: key.to_string_lossy().into_owned(),
            reason: "must not be empty and must not contain '='",
        });
    }
    match NEVER.iter().find(|never| key == OsStr::new(never)) {
        Some(never) => {
            let reason = format!(
                "never passed on: it gives access to credentials; if a command needs it, set it inside with `env {never}=… \
                 COMMAND`"
            );
            Err(refused(format!("variable {never}"), reason))
        }
        None => Ok(()),
    }
}

/// The paths to try with `execve` for `program`, in order: a name with a slash as it is, any other in each
/// directory of the command's PATH.
pub(super) fn candidates(program: &OsStr, variables: &[(OsString, OsString)]) -> Vec<OsString> {
    if program.is_empty() {
        return Vec::new();
    }
    if program.as_bytes().contains(&b'/') {
        return vec![program.to_owned()];
    }
    let path = variables.iter().find(|(key, _)| key == "PATH").map(|(_, value)| value.as_bytes());
    let path = path.filter(|p| !p.is_empty()).unwrap_or(PATH.as_bytes());
    path.split(|b| *b == b':')
        .map(|dir| if dir.is_empty() { &b"."[..] } else { dir })
        .map(|dir| OsString::from_vec([dir, b"/", program.as_bytes()].concat()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User {
            uid: 0,
            gid: 0,
            groups: vec![0],
            name: b"root".to_vec(),
            home: "/root".into(),
            shell: "/bin/sh".into(),
        }
    }

    fn pair(key: &str, value: &str) -> (OsString, OsString) {
        (key.into(), value.into())
    }

    fn variables(
        policy: &Policy,
        extra: &[(OsString, OsString)],
        host: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Vec<(OsString, OsString)>, RuntimeError> {
        Wanted { user: &user(), shell: OsStr::new("/bin/sh"), policy, extra }.collect(host)
    }

    #[test]
    fn secrets_and_sockets_of_the_caller_stay_outside() {
        let vars = variables(&Policy::default(), &[], |key| Some(format!("host {key}").into())).unwrap();
        let keys: Vec<_> = vars.iter().map(|(k, _)| k.to_str().unwrap()).collect();
        assert_eq!(keys, ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "XDG_RUNTIME_DIR", "TERM", "LANG"]);
        assert_eq!(vars[0], pair("PATH", PATH));
        assert_eq!(vars[5..7], [pair("XDG_RUNTIME_DIR", "/dev/run"), pair("TERM", "host TERM")]);
    }

    #[test]
    fn what_is_asked_for_wins() {
        let policy = Policy {
            variables: vec![pair("DISPLAY", ":0"), pair("A", "0")],
            home: Some("/home/me".into()),
            ..Policy::default()
        };
        let extra = [pair("PATH", "/opt/bin"), pair("A", "1"), pair("A", "2"), pair("EMPTY", "")];
        let vars = variables(&policy, &extra, |_| None).unwrap();
        assert_eq!(vars[0], pair("HOME", "/home/me"));
        assert_eq!(
            vars[5..],
            [pair("DISPLAY", ":0"), pair("PATH", "/opt/bin"), pair("A", "2"), pair("EMPTY", "")]
        );
        for bad in ["", "A=B"] {
            assert!(variables(&policy, &[pair(bad, "x")], |_| None).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn credentials_are_refused_also_when_they_are_asked_for() {
        for name in NEVER {
            let error = variables(&Policy::default(), &[pair(name, "x")], |_| None).unwrap_err();
            let (error, status) = (error.to_string(), error.exit_status());
            assert!(error.starts_with(&format!("variable {name}: never passed on")), "{error}");
            assert!(error.ends_with(&format!("`env {name}=… COMMAND`")), "{error}");
            assert_eq!(status, 125);
        }
    }

    #[test]
    fn programs_are_looked_for_in_the_inner_path() {
        let vars = [pair("PATH", "/a::/b")];
        assert_eq!(candidates(OsStr::new("x"), &vars), ["/a/x", "./x", "/b/x"]);
        assert_eq!(candidates(OsStr::new("./x"), &vars), ["./x"]);
        assert_eq!(candidates(OsStr::new("x"), &[]).len(), 6);
        assert!(candidates(OsStr::new(""), &vars).is_empty());
    }
}
