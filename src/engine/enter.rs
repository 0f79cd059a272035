//! Running commands inside an environment.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use karapace_store::metadata::Metadata;
use nix::unistd::geteuid;

use super::mount::{Background, Options};
use super::sessions::Session;
use super::{Engine, Error, Result, policy};
use crate::lockfile::LockFile;
use crate::manifest::Backend;
use crate::runtime;

/// How often a mount that another session is just making or ending is looked for again.
const ATTEMPTS: u32 = 3;

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct EnterOptions {
    /// The command; empty for the user's shell.
    pub argv: Vec<OsString>,
    /// Who runs it.
    pub user: Option<String>,
    /// Where it starts.
    pub workdir: Option<PathBuf>,
    /// Further variables.
    pub env: Vec<(OsString, OsString)>,
    /// Whether the control directory is shown inside.
    pub show_control: bool,
    /// What of the host it sees.
    pub choices: runtime::Choices,
}

impl Engine {
    /// Runs a command inside `env` and gives its exit status. An environment that is not mounted is mounted for the time of
    /// its sessions.
    pub fn enter(&self, env: &Metadata, options: &EnterOptions) -> Result<i32> {
        check_runtime(env)?;
        let policy = policy::of(env, &options.choices)?;
        let session = Session::join(self, &env.instance)?;
        let (root, server) = self.session_root(env)?;
        let request = runtime::Session {
            root,
            argv: options.argv.clone(),
            user: options.user.clone(),
            workdir: options.workdir.clone(),
            env: options.env.clone(),
            hostname: env.name.clone(),
            mask_control: !options.show_control,
            policy,
        };
        let status = runtime::run(&request);
        let left = session.leave(|| match self.live_mount(&env.instance)? {
            Some(mount) if mount.session => self.end_session_mount(env, server),
            _ => Ok(()),
        });
        let status = status?;
        // The command's own status matters more than a mount that stays; the next session uses it and ends it.
        if let Err(error) = left {
            tracing::warn!("ending the mount of the session: {error}");
        }
        Ok(status)
    }

    /// Where the environment is mounted, mounting it if it is not.
    fn session_root(&self, env: &Metadata) -> Result<(PathBuf, Option<Background>)> {
        let mut attempt = 1;
        loop {
            match self.live_mount(&env.instance)? {
                Some(mount) if mount.is_seen_here() => return Ok((mount.dir, None)),
                Some(_) => return Err(self.mounted_error(env)),
                None => {}
            }
            let options = Options { session: true, ..Options::new(self.session_dir(env)?) };
            match self.mount(env, &options, false) {
                Ok((dir, server)) => return Ok((dir, Some(server))),
                // Two sessions that begin at once both mount; the slower one uses the other's.
                Err(Error::Mounted { .. } | Error::Running { .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(Error::Served { errno: libc::EBUSY, .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn end_session_mount(&self, env: &Metadata, server: Option<Background>) -> Result<()> {
        let dir = self.unmount_and_wait(env)?;
        if let Some(server) = server {
            server.wait();
        }
        fs::remove_dir(&dir).map_err(|e| Error::io("remove", &dir, e))
    }

    /// A directory for mounts of sessions, where nobody stumbles over it: in the user's runtime directory, else beside the upper.
    fn session_dir(&self, env: &Metadata) -> Result<PathBuf> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| {
            dir.is_absolute() && fs::metadata(dir).is_ok_and(|m| m.is_dir() && m.uid() == geteuid().as_raw())
        });
        let dir = match runtime {
            Some(runtime) => runtime.join("karapace").join(env.instance.to_hex()),
            None => self.env_dir(&env.instance).join("mnt"),
        };
        if let Some(parent) = dir.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(|e| Error::io("create", parent, e))?;
        }
        Ok(dir)
    }
}

/// Refuses what would run by another runtime than the manifest asks for.
fn check_runtime(env: &Metadata) -> Result<()> {
    let lock = LockFile::parse(&env.lock, Path::new("recorded in the store"))?;
    if lock.runtime_backend != Backend::Namespace.as_str() {
        let backend = lock.runtime_backend;
        return Err(Error::Invalid(format!(
            "{}: the {backend} backend comes with a later version",
            env.name
        )));
    }
    Ok(())
}
