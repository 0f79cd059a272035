//! The command's environment variables and where its program is looked for.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::RuntimeError;
use super::user::User;

/// The only variables of the caller that a command sees. Everything else stays outside: sockets of agents,
/// credentials and library paths of the host mean nothing good inside.
const PASSED: [&str; 3] = ["TERM", "LANG", "XDG_RUNTIME_DIR"];

/// Where programs are looked for inside, whatever the caller's own PATH is.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The variables of a command run by `user`; `extra` comes last and wins.
pub(super) fn variables(
    user: &User,
    shell: &OsStr,
    extra: &[(OsString, OsString)],
    host: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<(OsString, OsString)>, RuntimeError> {
    let name = OsStr::from_bytes(&user.name);
    let mut all: Vec<(OsString, OsString)> = vec![
        ("PATH".into(), PATH.into()),
        ("HOME".into(), user.home.clone().into()),
        ("USER".into(), name.into()),
        ("LOGNAME".into(), name.into()),
        ("SHELL".into(), shell.into()),
    ];
    all.extend(PASSED.iter().filter_map(|key| Some((OsString::from(key), host(key)?))));
    for (key, value) in extra {
        let bytes = key.as_bytes();
        if bytes.is_empty() || bytes.contains(&b'=') {
            return Err(RuntimeError::Invalid {
                what: "variable name",
                value: key.to_string_lossy().into_owned(),
                reason: "must not be empty and must not contain '='",
            });
        }
        all.retain(|(k, _)| k != key);
        all.push((key.clone(), value.clone()));
    }
    Ok(all)
}

/// What `execve` is to be tried with for `program`, in order. A name with a slash stands for itself; any other is
/// looked for in the command's PATH.
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

    #[test]
    fn secrets_and_sockets_of_the_caller_stay_outside() {
        let vars =
            variables(&user(), OsStr::new("/bin/sh"), &[], |key| Some(format!("host {key}").into())).unwrap();
        let keys: Vec<_> = vars.iter().map(|(k, _)| k.to_str().unwrap()).collect();
        assert_eq!(keys, ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "XDG_RUNTIME_DIR"]);
        assert_eq!(vars[0], pair("PATH", PATH));
        assert_eq!(vars[5], pair("TERM", "host TERM"));
    }

    #[test]
    fn what_is_asked_for_wins() {
        let extra = [pair("PATH", "/opt/bin"), pair("A", "1"), pair("A", "2"), pair("EMPTY", "")];
        let vars = variables(&user(), OsStr::new("/bin/sh"), &extra, |_| None).unwrap();
        assert_eq!(vars[4..], [pair("PATH", "/opt/bin"), pair("A", "2"), pair("EMPTY", "")]);
        for bad in ["", "A=B"] {
            let extra = [pair(bad, "x")];
            assert!(variables(&user(), OsStr::new(""), &extra, |_| None).is_err(), "{bad:?}");
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
