//! Programs of an environment in the desktop's menu: their `.desktop` files, rewritten so that they start inside.

mod desktop;
mod inside;

use std::fs;
use std::path::{Path, PathBuf};

use karapace_store::atomic;
use karapace_store::metadata::{Metadata, check_name};
use serde::Serialize;

use super::mount::Options;
use super::{Engine, Error, Result};
use inside::Inside;

/// What an exported file is called begins so.
const PREFIX: &str = "karapace-";

/// Where programs say what they are.
const APPLICATIONS: &str = "usr/share/applications";

/// A program of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct App {
    /// The name of its `.desktop` file without that ending: what `export-app` takes.
    pub app: String,
    /// What it calls itself.
    pub name: Option<String>,
    /// The file on the host, when it is exported.
    pub exported: Option<PathBuf>,
}

/// Where things go on the host, and what starts them.
#[derive(Debug, Clone)]
pub struct Host {
    /// The user's data directory, `~/.local/share`.
    pub data: PathBuf,
    /// The command that begins each Exec line: karapace, with its options.
    pub command: Vec<String>,
}

impl Host {
    fn file(&self, env: &str, app: &str) -> PathBuf {
        self.data.join("applications").join(format!("{PREFIX}{env}-{app}.desktop"))
    }

    fn icons(&self) -> PathBuf {
        self.data.join("icons")
    }
}

impl Engine {
    /// The programs inside that have a `.desktop` file, by name.
    pub fn apps(&self, env: &Metadata, host: &Host) -> Result<Vec<App>> {
        self.look_inside(env, &mut |inside| {
            let mut apps = Vec::new();
            for file in inside.list(APPLICATIONS)? {
                let Some(app) = file.strip_suffix(".desktop") else { continue };
                let Some(text) = inside.text(&format!("{APPLICATIONS}/{file}"))? else { continue };
                if desktop::is_hidden(&text) {
                    continue;
                }
                let exported = Some(host.file(&env.name, app)).filter(|path| path.exists());
                apps.push(App { app: app.to_owned(), name: desktop::value(&text, "Name"), exported });
            }
            Ok(apps)
        })
    }

    /// Puts a program into the desktop's menu. Gives the file.
    ///
    /// # Errors
    /// The environment has no such program, or it says nothing of how to start it: nothing was written.
    pub fn export_app(&self, env: &Metadata, app: &str, host: &Host) -> Result<PathBuf> {
        let app = app.strip_suffix(".desktop").unwrap_or(app);
        check_app(app)?;
        let (text, icon) = self.look_inside(env, &mut |inside| {
            let text = inside.text(&format!("{APPLICATIONS}/{app}.desktop"))?.ok_or_else(|| {
                let known = format!("`karapace export-app {} --list` names those that are", env.name);
                Error::Invalid(format!(
                    "{} has no program {app} (/{APPLICATIONS}/{app}.desktop): {known}",
                    env.name
                ))
            })?;
            let icon = match desktop::value(&text, "Icon") {
                Some(icon) => inside.icon(&icon)?,
                None => None,
            };
            Ok((text, icon))
        })?;
        let icon = match icon {
            Some((ending, bytes)) => {
                let dir = host.icons();
                fs::create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
                let path = dir.join(format!("{PREFIX}{}-{app}.{ending}", env.name));
                atomic::write_file(&path, &bytes)?;
                Some(path)
            }
            None => None,
        };
        let rewritten =
            desktop::rewritten(&text, &env.name, &host.command, icon.as_deref()).map_err(|reason| {
                Error::Invalid(format!("/{APPLICATIONS}/{app}.desktop of {}: {reason}", env.name))
            })?;
        let path = host.file(&env.name, app);
        let dir = host.data.join("applications");
        fs::create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
        atomic::write_file(&path, rewritten.as_bytes())?;
        Ok(path)
    }

    /// Reads from the environment where it is mounted, or mounts it for the moment.
    fn look_inside<T>(&self, env: &Metadata, look: &mut dyn FnMut(&Inside) -> Result<T>) -> Result<T> {
        if let Some(mount) = self.live_mount(&env.instance)? {
            if !mount.is_seen_here() {
                return Err(self.mounted_error(env));
            }
            return look(&Inside::open(&mount.dir)?);
        }
        let dir =
            tempfile::tempdir().map_err(|e| Error::io("create a directory in", &std::env::temp_dir(), e))?;
        let options = Options { read_only: true, ..Options::new(dir.path().to_owned()) };
        let (at, server) = self.mount(env, &options, false)?;
        let result = Inside::open(&at).and_then(|inside| look(&inside));
        self.umount_env(env)?;
        server.wait();
        result
    }
}

/// Takes a program out of the menu, whether or not its environment is still there. Gives the file.
pub fn remove_app(env: &str, app: &str, host: &Host) -> Result<PathBuf> {
    let app = app.strip_suffix(".desktop").unwrap_or(app);
    check_name(env)?;
    check_app(app)?;
    let path = host.file(env, app);
    if let Err(e) = fs::remove_file(&path) {
        if e.kind() == std::io::ErrorKind::NotFound {
            return Err(Error::Invalid(format!(
                "{app} of {env} is not exported: {} is not there",
                path.display()
            )));
        }
        return Err(Error::io("remove", &path, e));
    }
    for ending in inside::ICON_ENDINGS {
        let icon = host.icons().join(format!("{PREFIX}{env}-{app}.{ending}"));
        match fs::remove_file(&icon) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", &icon, e)),
            _ => {}
        }
    }
    Ok(path)
}

/// It becomes part of a file's name.
fn check_app(app: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'+');
    if !app.is_empty() && app.len() <= 128 && app.bytes().all(good) && !app.starts_with('.') {
        return Ok(());
    }
    Err(Error::Invalid(format!("{app:?} is no program's name: it is that of a file in /{APPLICATIONS}")))
}

/// The program itself, as the desktop should start it.
pub fn this_program() -> Result<PathBuf> {
    let exe = Path::new("/proc/self/exe");
    std::env::current_exe().map_err(|e| Error::io("read", exe, e))
}
