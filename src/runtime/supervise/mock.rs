//! A backend that runs no command but prints the session, for tests to compare.

use std::io::{self, Write};

use karapace_store::text;

use super::backend::{Backend, Namespace};
use super::running::Ended;
use super::start::{Started, Told};
use crate::runtime::RuntimeError;
use crate::runtime::inside::namespaces::Namespaces;
use crate::runtime::plan::session::Session;

/// Makes the inside as the namespace backend does, but prints the session instead of running its command.
pub(super) struct Mock;

impl Backend for Mock {
    fn start(
        &self,
        session: &Session,
        ground: Option<Namespaces>,
        told: Told<'_>,
    ) -> Result<Started, RuntimeError> {
        Namespace.start(session, ground, told)
    }

    #[expect(clippy::disallowed_methods, reason = "it stands for what the command would print")]
    fn join(&self, session: &Session, _: Namespaces, _: bool) -> Result<Ended, RuntimeError> {
        io::stdout()
            .write_all(describe(session).as_bytes())
            .map_err(|source| RuntimeError::Supervise { action: "print the mock session", source })?;
        Ok(Ended::with(0))
    }
}

/// One fact per line, in a fixed order. The path of the root is left out because it differs from run to run.
fn describe(session: &Session) -> String {
    let policy = &session.policy;
    let mut lines = vec!["mock: nothing is run".to_owned()];
    let mut fact =
        |name: &str, value: String| lines.push(text::line(&format!("{name}: {value}")).into_owned());
    fact("argv", format!("{:?}", session.argv));
    fact("user", session.user.clone().unwrap_or_else(|| "root".to_owned()));
    fact("workdir", session.workdir.as_ref().map_or("default".to_owned(), |dir| dir.display().to_string()));
    fact("hostname", session.hostname.clone());
    for (name, value) in policy.variables.iter().chain(&session.env) {
        fact("variable", format!("{}={}", name.display(), value.display()));
    }
    if let Some(home) = &policy.home {
        fact("home", home.display().to_string());
    }
    for share in &policy.shares {
        let access = if share.read_only { "ro" } else { "rw" };
        fact(&share.what, format!("{} on {} {access}", share.host.display(), share.inside.display()));
    }
    fact("network", if policy.isolate_network { "isolated" } else { "host" }.to_owned());
    for (name, value) in [("cpu_shares", policy.limits.cpu_shares), ("memory_mb", policy.limits.memory_mb)] {
        if let Some(value) = value {
            fact(name, value.to_string());
        }
    }
    fact("privileged", policy.privileged.to_string());
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Policy, Share, ShareKind};

    #[test]
    fn says_what_it_is_and_the_same_each_time() {
        let share = Share {
            what: "mounts.work".into(),
            host: "/tmp/a".into(),
            inside: "/work".into(),
            kind: ShareKind::Directory,
            read_only: false,
        };
        let session = Session {
            root: "/anywhere".into(),
            served: false,
            overlay: None,
            argv: vec!["sh".into(), "-c".into(), "exit 3".into()],
            user: None,
            seen: None,
            output: None,
            preserved: 0,
            workdir: None,
            env: vec![("A".into(), "1".into())],
            hostname: "dev".into(),
            mask_control: true,
            policy: Policy { shares: vec![share], isolate_network: true, ..Policy::default() },
        };
        let expected = "mock: nothing is run\nargv: [\"sh\", \"-c\", \"exit 3\"]\nuser: root\nworkdir: default\nhostname: dev\n\
                        variable: A=1\nmounts.work: /tmp/a on /work rw\nnetwork: isolated\nprivileged: false\n";
        assert_eq!(describe(&session), expected);
    }
}
