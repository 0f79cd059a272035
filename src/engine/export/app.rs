//! Programs of an environment in the desktop's menu: their `.desktop` files, written anew so that they start
//! inside.

mod desktop;
mod entry;
mod exec;
mod exported;
mod inside;

use std::path::{Path, PathBuf};

use karapace_store::metadata::{Metadata, check_name};
use serde::Serialize;

use crate::engine::At as _;
use crate::engine::instance::open::Instance;
use crate::engine::{Engine, Error, Result};
use desktop::{Origin, Program};
use entry::MAX_BYTES;
use exported::DESKTOP;
pub use exported::Menu;
use inside::{Inside, Lack, Mounted, Unmounted};

/// Where programs say what they are.
const APPLICATIONS: &str = "usr/share/applications";

/// A program of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct App {
    /// The name of its `.desktop` file without that ending: what `export-app` takes.
    pub app: String,
    /// What it calls itself.
    pub name: String,
    /// The file on the host, when it is exported.
    pub exported: Option<PathBuf>,
}

impl Engine {
    /// The programs inside that can be exported, by name.
    pub fn apps(&self, env: &Metadata, menu: &Menu) -> Result<Vec<App>> {
        let store = self.own_path()?;
        let origin = Origin { store: &store, env: &env.name };
        self.look_inside(env, &mut |inside| {
            let mut apps = Vec::new();
            for file in inside.list(APPLICATIONS)? {
                let Some(app) = file.strip_suffix(DESKTOP).filter(|app| check_app(app).is_ok()) else {
                    continue;
                };
                let text = match inside::text(inside, &path_of(app), MAX_BYTES)? {
                    Err(Lack::Missing) => continue,
                    found => found.map_err(refusal),
                };
                match text.and_then(|text| Program::parse(&text)) {
                    Ok(program) if program.hidden => {}
                    Ok(Program { name, .. }) => {
                        apps.push(App { app: app.to_owned(), name, exported: menu.find(origin, app)? });
                    }
                    Err(refusal) => tracing::info!("{app} is not listed: {refusal}"),
                }
            }
            Ok(apps)
        })
    }

    /// Puts a program into the desktop's menu, to be started by `command` (karapace and its options). Gives
    /// the file.
    ///
    /// # Errors
    /// The environment has no such program, its file does not pass, or another file is in the way: nothing
    /// was written.
    pub fn export_app(&self, env: &Metadata, app: &str, menu: &Menu, command: &[String]) -> Result<PathBuf> {
        let app = app.strip_suffix(DESKTOP).unwrap_or(app);
        check_app(app)?;
        let store = self.own_path()?;
        let origin = Origin { store: &store, env: &env.name };
        let refused = |reason: entry::Refusal| {
            Error::Invalid(format!("/{} of {} is not exported: {reason}", path_of(app), env.name))
        };
        let (program, icon) = self.look_inside(env, &mut |inside| {
            let text = inside::text(inside, &path_of(app), MAX_BYTES)?.map_err(|lack| match lack {
                Lack::Missing => {
                    let known = format!("`karapace export-app {} --list` names those that are", env.name);
                    Error::Invalid(format!("{} has no program {app} (/{}): {known}", env.name, path_of(app)))
                }
                lack => refused(refusal(lack)),
            })?;
            let program = Program::parse(&text).map_err(refused)?;
            let icon = match &program.icon {
                Some(icon) => inside::icon(inside, icon)?,
                None => None,
            };
            Ok((program, icon))
        })?;
        for left_out in &program.left_out {
            tracing::info!("left out of {app}: {left_out}");
        }
        let icon = icon.as_ref().map(|(ending, bytes)| (*ending, bytes.as_slice()));
        menu.write(origin, app, icon, &|icon| program.file(origin, command, icon).map_err(refused))
    }

    /// Takes a program out of the menu, whether or not its environment is still there. Gives the file.
    ///
    /// # Errors
    /// It is not exported, or its file was not written for an environment of this store.
    pub fn remove_app(&self, env: &str, app: &str, menu: &Menu) -> Result<PathBuf> {
        let app = app.strip_suffix(DESKTOP).unwrap_or(app);
        check_name(env)?;
        check_app(app)?;
        menu.remove(Origin { store: &self.own_path()?, env }, app)
    }

    /// Takes all programs of an environment that is gone out of the menu. What fails is told: the environment
    /// is gone all the same.
    pub fn forget_apps(&self, env: &str, menu: &Menu) {
        let removed = self.own_path().and_then(|store| menu.remove_all(Origin { store: &store, env }));
        match removed {
            Ok(count) => tracing::info!("{count} programs of {env} were in the menu"),
            Err(error) => tracing::warn!("programs of {env} stay in the menu: {error}"),
        }
    }

    /// Has the menu start the programs of an environment by its new name. What fails is told: the environment
    /// has it all the same.
    pub fn rename_apps(&self, old: &str, new: &str, menu: &Menu) {
        let renamed =
            self.own_path().and_then(|store| menu.rename_all(Origin { store: &store, env: old }, new));
        if let Err(error) = renamed {
            tracing::warn!("programs of {new} stay in the menu as those of {old}: {error}");
        }
    }

    /// The store's own path, links resolved: what tells it from other stores.
    fn own_path(&self) -> Result<String> {
        let root = self.root();
        let own = std::fs::canonicalize(root).at("resolve", root)?;
        text_of(&own)
    }

    /// Reads from the environment where it is mounted, else from its view. Nothing is mounted for it: as
    /// root, that would be open to others with set-user-id programs in force.
    fn look_inside<T>(&self, env: &Metadata, look: &mut dyn FnMut(&dyn Inside) -> Result<T>) -> Result<T> {
        if let Some(mount) = self.live_mount(&env.instance)? {
            if !mount.is_seen_here() {
                return Err(self.mounted_error(env));
            }
            return look(&Mounted::open(&mount.dir)?);
        }
        let lock = self.lock_unmounted(env)?;
        let instance = Instance::open(self, Metadata::load(self.store(), &env.instance)?, lock, true)?;
        let result = look(&Unmounted(instance.view()));
        instance.close()?;
        result
    }
}

/// Why a file is not exported that cannot be read as text.
fn refusal(lack: Lack) -> entry::Refusal {
    entry::Refusal::of_file(match lack {
        Lack::Missing => "it is no regular file".to_owned(),
        Lack::TooLarge => format!("it is larger than {MAX_BYTES} bytes"),
        Lack::NotText => "it is no UTF-8 text".to_owned(),
    })
}

fn path_of(app: &str) -> String {
    format!("{APPLICATIONS}/{app}{DESKTOP}")
}

/// It becomes part of a file's name.
fn check_app(app: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'+');
    if !app.is_empty() && app.len() <= 128 && app.bytes().all(good) && !app.starts_with('.') {
        return Ok(());
    }
    Err(Error::Invalid(format!("{app:?} is no program's name: it is that of a file in /{APPLICATIONS}")))
}

/// A path as a `.desktop` file can name it.
///
/// # Errors
/// It is no text.
pub fn text_of(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| {
        Error::Invalid(format!("{} is no text, so no .desktop file can name it", path.display()))
    })
}

/// The program itself, as the desktop should start it.
pub fn this_program() -> Result<PathBuf> {
    let exe = Path::new("/proc/self/exe");
    std::env::current_exe().at("read", exe)
}
