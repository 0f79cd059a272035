//! Programs of an environment in the desktop's menu: their `.desktop` files, rewritten so that they start
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

/// Where an environment has its `.desktop` files.
const APPLICATIONS: &str = "usr/share/applications";

/// A program of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct App {
    /// The name of its `.desktop` file without the suffix, as `export-app` accepts it.
    pub app: String,
    /// Its own name (`Name`).
    pub name: String,
    /// The file on the host, if it is exported.
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

    /// Adds a program to the desktop's menu, to be started by `command` (karapace and its options). Returns
    /// the file.
    ///
    /// # Errors
    /// The environment has no such program, its file is refused, or another file is in the way. Nothing was
    /// written then.
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

    /// Removes a program from the menu, even if its environment no longer exists. Returns the file.
    ///
    /// # Errors
    /// The program is not exported, or its file was not written for an environment of this store.
    pub fn remove_app(&self, env: &str, app: &str, menu: &Menu) -> Result<PathBuf> {
        let app = app.strip_suffix(DESKTOP).unwrap_or(app);
        check_name(env)?;
        check_app(app)?;
        menu.remove(Origin { store: &self.own_path()?, env }, app)
    }

    /// Removes all programs of a destroyed environment from the menu. Failures are only logged, because the
    /// environment is already gone.
    pub fn forget_apps(&self, env: &str, menu: &Menu) {
        let removed = self.own_path().and_then(|store| menu.remove_all(Origin { store: &store, env }));
        match removed {
            Ok(count) => tracing::info!("removed {count} programs of {env} from the menu"),
            Err(error) => tracing::warn!("programs of {env} are still in the menu: {error}"),
        }
    }

    /// Makes the menu start the programs of an environment by its new name. Failures are only logged, because
    /// the environment is already renamed.
    pub fn rename_apps(&self, old: &str, new: &str, menu: &Menu) {
        let renamed =
            self.own_path().and_then(|store| menu.rename_all(Origin { store: &store, env: old }, new));
        if let Err(error) = renamed {
            tracing::warn!("programs of {new} are still in the menu as those of {old}: {error}");
        }
    }

    /// The store's path with symlinks resolved, which identifies the store.
    fn own_path(&self) -> Result<String> {
        let root = self.root();
        let own = std::fs::canonicalize(root).at("resolve", root)?;
        text_of(&own)
    }

    /// Reads from the environment's mount or, if it is not mounted, from its view. Does not mount anything:
    /// on root's mount, set-user-ID programs would take effect for other users.
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

/// The refusal of a file that cannot be read as text.
fn refusal(lack: Lack) -> entry::Refusal {
    entry::Refusal::of_file(match lack {
        Lack::Missing => "it is not a regular file".to_owned(),
        Lack::TooLarge => format!("it is larger than {MAX_BYTES} bytes"),
        Lack::NotText => "it is not UTF-8 text".to_owned(),
    })
}

fn path_of(app: &str) -> String {
    format!("{APPLICATIONS}/{app}{DESKTOP}")
}

/// Checks a program's name, which becomes part of a file name.
fn check_app(app: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'+');
    if !app.is_empty() && app.len() <= 128 && app.bytes().all(good) && !app.starts_with('.') {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{app:?} is not the name of a program: give the name of a file in /{APPLICATIONS}"
    )))
}

/// The path as text for a `.desktop` file.
///
/// # Errors
/// [`Error::Invalid`] if it is not UTF-8.
pub fn text_of(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| {
        Error::Invalid(format!("{} is not UTF-8, so a .desktop file cannot name it", path.display()))
    })
}

/// The path of this program, as the desktop should start it.
pub fn this_program() -> Result<PathBuf> {
    let exe = Path::new("/proc/self/exe");
    std::env::current_exe().at("read", exe)
}
