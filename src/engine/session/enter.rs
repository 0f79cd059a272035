//! Running commands inside an environment.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use karapace_store::metadata::Metadata;
use karapace_store::wait::Deadline;
use nix::unistd::geteuid;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::policy;
use crate::engine::At as _;
use crate::engine::instance::sessions::Session;
use crate::engine::mount::options::Options;
use crate::engine::mountpoint;
use crate::engine::server::access::UNKNOWN_ANSWER;
use crate::engine::server::client::Client;
use crate::engine::server::keeper::SHOWS_CONTROL;
use crate::engine::server::socket::{Answer, Entrance, Reply, Request, Shape};
use crate::engine::{Engine, Error, Result};
use crate::runtime;
use crate::runtime::{Ended, Namespaces, Seen, User};

/// How long to wait for a mount that is just starting or ending: it may have a long journal to read, or a
/// checkpoint to write.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest reason for having one id that is read, in bytes.
const MAX_REASON: u64 = 4096;

/// A command to run inside an environment.
#[derive(Debug, Clone, Default)]
pub struct EnterOptions {
    /// The command; empty for the user's shell.
    pub argv: Vec<OsString>,
    /// The user who runs it. [`runtime::SELF`]: the user of this process, who is root if this process is
    /// root's.
    pub user: Option<String>,
    /// Its working directory.
    pub workdir: Option<PathBuf>,
    /// Additional environment variables.
    pub env: Vec<(OsString, OsString)>,
    /// Whether the control directory is shown inside.
    pub show_control: bool,
    /// What it sees of the host.
    pub choices: runtime::Choices,
    /// Redirects all output to this file, and stdin to /dev/null. `None`: the caller's own streams.
    pub output: Option<Arc<File>>,
    /// How many of the caller's descriptors, starting at 3, the command inherits.
    pub preserved: u32,
    /// The host name inside. `None`: the environment's name.
    pub hostname: Option<String>,
}

impl EnterOptions {
    /// The options and policy that all sessions of an inside share. `account`: the only user inside, if there
    /// is only one id.
    fn shape(&self, policy: &runtime::Policy, account: Option<&User>) -> Shape {
        let home = clap::ValueEnum::to_possible_value(&self.choices.home);
        let home = home.map_or_else(String::new, |value| value.get_name().to_owned());
        let hardware = [("gpu", policy.hardware.gpu), ("audio", policy.hardware.audio)];
        let hardware: Vec<_> =
            hardware.into_iter().filter_map(|(name, asked)| asked.then_some(name)).collect();
        let hardware = if hardware.is_empty() { "none".to_owned() } else { hardware.join(", ") };
        let mut shape = Shape::from([
            (SHOWS_CONTROL.to_owned(), self.show_control.to_string()),
            ("--home".to_owned(), home),
            // Sessions see each other's processes, so a restricted one must not share an inside with a
            // privileged one.
            ("--privileged".to_owned(), policy.privileged.to_string()),
            // From the manifest, which `rebuild` may change meanwhile.
            ("backend".to_owned(), policy.backend.as_str().to_owned()),
            ("hardware".to_owned(), hardware),
            ("network_isolation".to_owned(), policy.isolate_network.to_string()),
            ("resource_limits".to_owned(), policy.limits.to_string()),
            // With read-only mounts, sessions cannot change mounts.
            ("read-only mounts".to_owned(), policy.has_read_only().to_string()),
        ]);
        if let Some(user) = account {
            shape.insert("--user".to_owned(), format!("{}:{}", user.uid, user.gid));
        }
        shape
    }
}

/// An environment's mount, before a command runs on it.
struct Place {
    entrance: Entrance,
    ground: Option<Namespaces>,
    inside: Option<(Shape, Namespaces)>,
}

impl Engine {
    /// Runs a command inside `env` to its end. If `env` has an overlay, changes go there. Sessions of an
    /// ordinary user who has a range of ids have a mount of their own, in a user namespace with these ids,
    /// whether or not the environment is mounted for the host.
    ///
    /// # Errors
    /// [`Error::OtherShape`] if the running session was started with other options.
    pub fn enter(&self, env: &Metadata, options: &EnterOptions) -> Result<Ended> {
        // Every environment has a root user.
        let root = options.user.as_deref() == Some(runtime::SELF) && geteuid().is_root();
        let options = &EnterOptions { user: options.user.clone().filter(|_| !root), ..options.clone() };
        let policy = policy::of(env, &options.choices)?;
        let session = Session::join(self, &env.instance)?;
        let ended = self.run_inside(env, options, &policy);
        let left = session.leave(|| self.end_inside(env));
        let ended = ended?;
        // The command's own status matters more than a leftover mount, which the next session uses and ends.
        if let Err(error) = left {
            tracing::warn!("cannot end the session: {error}");
        }
        Ok(ended)
    }

    /// Joins the existing inside, or makes one.
    fn run_inside(&self, env: &Metadata, options: &EnterOptions, policy: &runtime::Policy) -> Result<Ended> {
        let backend = runtime::backend(policy.backend);
        let (request, namespaces, many_ids) = loop {
            let place = self.place(env, options, policy)?;
            // The mount may have just made one of karapace's own directories.
            let policy = policy::without_our_own(self, policy)?;
            let many_ids = place.ground.is_some() || runtime::has_ids();
            let mount = place.entrance.mount;
            let mut seen = match place.entrance.seen {
                Some(seen) => *seen,
                None => Seen::look(&place.entrance.dir, options.user.as_deref())?,
            };
            seen.notes.extend(place.entrance.one_id.filter(|reason| self.is_news(env, reason)));
            seen.notes.iter().for_each(|note| tracing::warn!("{note}"));
            seen.become_caller(&policy, many_ids)?;
            let shape = options.shape(&policy, (!many_ids).then_some(&seen.user));
            let request = runtime::Session {
                root: place.entrance.dir,
                served: true,
                overlay: self.has_overlay(&env.instance).then(|| self.overlay_of(&env.instance)),
                argv: options.argv.clone(),
                user: options.user.clone(),
                seen: Some(seen),
                workdir: options.workdir.clone(),
                env: options.env.clone(),
                hostname: options.hostname.as_ref().unwrap_or(&env.name).clone(),
                mask_control: !options.show_control,
                policy,
                output: options.output.clone(),
                preserved: options.preserved,
            };
            if let Some((theirs, namespaces)) = place.inside {
                check_shape(env, &shape, &theirs)?;
                break (request, namespaces, many_ids);
            }
            let inside = backend.start(&request, place.ground, &mut |init| self.announce(env, init))?;
            if self.hand_over(env, &inside, (shape, mount))? {
                // From here on the keeper has the only copy of the lifeline.
                break (request, inside.namespaces, many_ids);
            }
            // Another session was faster, or the mount ended: start over.
            inside.end()?;
        };
        Ok(backend.join(&request, namespaces, many_ids)?)
    }

    /// Finds the environment's mount and its inside; mounts the environment if it is not mounted.
    fn place(&self, env: &Metadata, options: &EnterOptions, policy: &runtime::Policy) -> Result<Place> {
        // Otherwise the caller's files at home would belong to root inside.
        let own_id = policy.home.is_some() && options.user.as_deref() == Some(runtime::SELF);
        let request = Request::Enter { user: options.user.clone(), own_id };
        let deadline = Deadline::after(PATIENCE);
        loop {
            match self.exchange(env, &request, &[])? {
                Some(Reply { answer: Answer::Entrance(entrance), descriptors }) => {
                    return self.place_of(env, entrance, descriptors);
                }
                Some(Reply { answer: Answer::Failed { errno, reason }, .. }) => {
                    return Err(Error::Served { errno, reason });
                }
                // The server is ending.
                Some(_) => deadline.pause(),
                None => match self.mount_for_sessions(env) {
                    Ok(()) => {}
                    // If two sessions start at once, both try to mount; the slower one uses the other's
                    // mount.
                    Err(Error::Mounted { .. } | Error::Running { .. })
                    | Err(Error::Served { errno: libc::EBUSY, .. })
                        if !deadline.has_passed() =>
                    {
                        deadline.pause();
                    }
                    Err(error) => return Err(error),
                },
            }
            if deadline.has_passed() {
                return Err(self.serving_error(env, "is ending, but does not finish"));
            }
        }
    }

    fn place_of(&self, env: &Metadata, entrance: Entrance, mut descriptors: Vec<OwnedFd>) -> Result<Place> {
        let kept = descriptors.split_off(entrance.ground.len().min(descriptors.len()));
        let odd = || self.serving_error(env, "passed unexpected namespaces");
        let ground = Namespaces::from_parts(&entrance.ground, descriptors).ok_or_else(odd)?;
        let inside = match &entrance.inside {
            Some((shape, names)) => {
                Some((shape.clone(), Namespaces::from_parts(names, kept).ok_or_else(odd)?))
            }
            None => None,
        };
        let has_ground = !entrance.ground.is_empty();
        if !has_ground && !mountpoint::is_ours(&entrance.dir) {
            return Err(Error::MountedElsewhere { env: env.name.clone(), dir: entrance.dir });
        }
        Ok(Place { entrance, ground: has_ground.then_some(ground), inside })
    }

    /// Whether the caller has not been told yet why its sessions in `env` have one id only. It counts as told
    /// from now on.
    fn is_news(&self, env: &Metadata, reason: &str) -> bool {
        let (files, path) = (self.store().files(), self.env_dir(&env.instance).join("one-id"));
        if files.read(&path, MAX_REASON).is_ok_and(|told| told == reason.as_bytes()) {
            return false;
        }
        if let Err(error) = files.write(&path, reason.as_bytes()) {
            tracing::debug!("it will be said again: {error}");
        }
        true
    }

    /// Tells the serving process that the mount points that process 1 makes are the session's own. If that
    /// process is ending, its mount is too, and the session does not come about.
    fn announce(&self, env: &Metadata, init: nix::unistd::Pid) -> io::Result<()> {
        let init = hold(init)?;
        let reply = self.exchange(env, &Request::MakesMountPoints, &[init.as_fd()]);
        match reply.map_err(io::Error::other)?.map(|reply| reply.answer) {
            Some(Answer::MakerKnown | Answer::Ending) | None => Ok(()),
            Some(Answer::Failed { reason, .. }) => Err(io::Error::other(reason)),
            Some(_) => Err(io::Error::other(UNKNOWN_ANSWER)),
        }
    }

    /// Hands a new inside to the serving process to keep. False if it already keeps one, or is ending.
    fn hand_over(
        &self,
        env: &Metadata,
        inside: &runtime::Started,
        (shape, mount): (Shape, Option<u64>),
    ) -> Result<bool> {
        let init = hold(inside.init).at("hold process 1 of", Path::new(&env.name))?;
        let request = Request::Hold { shape, namespaces: inside.namespaces.names(), mount };
        let mut descriptors = vec![inside.lifeline.as_fd(), init.as_fd()];
        descriptors.extend(inside.namespaces.descriptors());
        match self.exchange(env, &request, &descriptors)?.map(|reply| reply.answer) {
            Some(Answer::Held) => Ok(true),
            // Another session has taken the place, or the mount is ending: there is another inside to join,
            // or one to make.
            None | Some(Answer::Taken | Answer::Ending) => Ok(false),
            Some(Answer::Failed { errno, reason }) => Err(Error::Served { errno, reason }),
            _ => Err(self.serving_error(env, UNKNOWN_ANSWER)),
        }
    }

    /// Asks the serving process; `None` if there is none.
    pub(super) fn exchange(
        &self,
        env: &Metadata,
        request: &Request,
        descriptors: &[std::os::fd::BorrowedFd<'_>],
    ) -> Result<Option<Reply>> {
        let Some(client) = Client::connect(self.store().files(), &self.env_dir(&env.instance))? else {
            return Ok(None);
        };
        match client.exchange(request, descriptors) {
            Ok(reply) => Ok(reply.or(Some(Answer::Ending.into()))),
            Err(error) => Err(self.serving_error(env, &format!("gave no usable answer ({error})"))),
        }
    }

    /// Starts a process that serves the environment to sessions.
    fn mount_for_sessions(&self, env: &Metadata) -> Result<()> {
        let dir = self.session_dir(&env.instance)?;
        let options = Options { session: true, ..Options::default() };
        self.mount(env, &dir, &options, false).map(drop)
    }

    /// Ends the inside after its last session, and also the mount if it was made for sessions.
    fn end_inside(&self, env: &Metadata) -> Result<()> {
        match self.exchange(env, &Request::EndInside, &[])?.map(|reply| reply.answer) {
            Some(Answer::Failed { errno, reason }) => return Err(Error::Served { errno, reason }),
            None => return Ok(()),
            Some(_) => {}
        }
        match self.recorded_mount(&env.instance)? {
            Some(mount) if mount.session => self.unmount_and_wait(env, &Request::EndSessions).map(drop),
            _ => Ok(()),
        }
    }
}

/// A pidfd of process 1, which is a child of this process.
fn hold(init: nix::unistd::Pid) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(init.as_raw()).ok_or(rustix::io::Errno::SRCH)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Refuses to join an inside that was made with other options.
fn check_shape(env: &Metadata, ours: &Shape, theirs: &Shape) -> Result<()> {
    let show = |shape: &Shape, key: &str| shape.get(key).cloned().unwrap_or_else(|| "unset".to_owned());
    match ours.keys().chain(theirs.keys()).find(|key| ours.get(*key) != theirs.get(*key)) {
        None => Ok(()),
        Some(key) => Err(Error::OtherShape {
            env: env.name.clone(),
            option: key.clone(),
            theirs: show(theirs, key),
            ours: show(ours, key),
        }),
    }
}
