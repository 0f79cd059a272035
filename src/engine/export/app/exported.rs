//! The files written for the host's menu. A file belongs to an environment of a store only if it says so
//! itself: file names do not distinguish program `c` of `a-b` from program `b-c` of `a`, nor one store from
//! another.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use karapace_store::atomic;
use karapace_store::files::user_name;
use nix::unistd::geteuid;

use super::desktop::{self, ENVIRONMENT, Origin, STORE};
use super::entry::{self, MAX_BYTES};
use super::inside::ICON_ENDINGS;
use crate::engine::At as _;
use crate::engine::{Error, Result};

/// Prefix of an exported file's name.
const PREFIX: &str = "karapace-";

/// Suffix of an exported file's name.
pub(super) const DESKTOP: &str = ".desktop";

/// The user's data directory (`~/.local/share`), which contains the menu.
#[derive(Debug, Clone)]
pub struct Menu(pub PathBuf);

/// A file that karapace wrote.
#[derive(Debug)]
struct Exported {
    path: PathBuf,
    /// The file's text.
    text: String,
    env: String,
    /// `None` in a file of an earlier version, which did not name its store.
    store: Option<String>,
    icon: Option<PathBuf>,
}

impl Exported {
    /// Reads a file. `None` if there is none, or if it is not a regular file of this user that names an
    /// environment.
    fn read(path: &Path) -> Result<Option<Exported>> {
        let failed = |e: io::Error| Error::io("read", path, e);
        let mut open = OpenOptions::new();
        open.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
        let file = match open.open(path) {
            Ok(file) => file,
            // Nothing, a symlink, a socket, or a device without a driver.
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::ENOENT | libc::ELOOP | libc::ENXIO | libc::ENODEV)
                ) =>
            {
                return Ok(None);
            }
            Err(e) => return Err(failed(e)),
        };
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() || found.uid() != geteuid().as_raw() || found.len() > MAX_BYTES {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
        Ok(String::from_utf8(bytes).ok().and_then(|text| Exported::of(path, text)))
    }

    fn of(path: &Path, text: String) -> Option<Exported> {
        let groups = entry::parse(&text).ok()?;
        groups[0].check_unique().ok()?;
        let value = |key: &str| groups[0].find(key).and_then(|pair| pair.value().ok());
        let (env, store, icon) = (value(ENVIRONMENT)?, value(STORE), value("Icon").map(PathBuf::from));
        Some(Exported { path: path.to_owned(), text, env, store, icon })
    }

    fn is_of(&self, origin: Origin<'_>) -> bool {
        self.env == origin.env && self.store.as_deref() == Some(origin.store)
    }

    /// Like `is_of`, but also true for a file of an earlier version that names this environment and no store.
    fn may_be_of(&self, origin: Origin<'_>) -> bool {
        self.env == origin.env && self.store.as_deref().is_none_or(|store| store == origin.store)
    }

    /// The program, if the file has the name that we would give it.
    fn app(&self) -> Option<&str> {
        let name = self.path.file_name()?.to_str()?.strip_suffix(DESKTOP)?;
        name.strip_prefix(PREFIX)?.strip_prefix(&self.env)?.strip_prefix('-')
    }
}

impl Menu {
    fn applications(&self) -> PathBuf {
        self.0.join("applications")
    }

    /// The path of a program's file.
    fn file(&self, env: &str, app: &str) -> PathBuf {
        self.applications().join(format!("{PREFIX}{env}-{app}{DESKTOP}"))
    }

    fn icon(&self, env: &str, app: &str, ending: &str) -> PathBuf {
        self.0.join("icons").join(format!("{PREFIX}{env}-{app}.{ending}"))
    }

    /// The file of a program, if one was written for this environment.
    pub(super) fn find(&self, origin: Origin<'_>, app: &str) -> Result<Option<PathBuf>> {
        let found = Exported::read(&self.file(origin.env, app))?;
        Ok(found.filter(|found| found.may_be_of(origin)).map(|found| found.path))
    }

    /// Writes the icon, then the file of a program; `text` makes the file's text for the icon's path. Returns
    /// the file.
    ///
    /// # Errors
    /// Another file has that name, the menu belongs to another user, or `text` fails.
    pub(super) fn write(
        &self,
        origin: Origin<'_>,
        app: &str,
        icon: Option<(&str, &[u8])>,
        text: &dyn Fn(Option<&Path>) -> Result<String>,
    ) -> Result<PathBuf> {
        let path = self.file(origin.env, app);
        let before = self.check_free(origin, &path)?;
        let icon = icon.map(|(ending, bytes)| (self.icon(origin.env, app, ending), bytes));
        let text = text(icon.as_ref().map(|(path, _)| path.as_path()))?;
        self.check_owner()?;
        if let Some((path, bytes)) = &icon {
            write(path, bytes)?;
        }
        write(&path, text.as_bytes())?;
        if let Some(before) = before {
            self.remove_icons(&before, icon.as_ref().map(|(path, _)| path.as_path()))?;
        }
        Ok(path)
    }

    /// Returns the file at a path if it was written for this environment, and `None` if there is nothing.
    /// Refuses anything else.
    fn check_free(&self, origin: Origin<'_>, path: &Path) -> Result<Option<Exported>> {
        match Exported::read(path)? {
            Some(found) if found.may_be_of(origin) => Ok(Some(found)),
            None if path.symlink_metadata().is_err() => Ok(None),
            found => Err(taken(path, found)),
        }
    }

    /// Refuses the menu of another user, which `sudo` with the caller's HOME would find: the owner of its
    /// directories could redirect what root writes.
    fn check_owner(&self) -> Result<()> {
        let there = self.0.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
        let owner = fs::metadata(there).at("look at", there)?.uid();
        if owner == geteuid().as_raw() {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "{} belongs to {}: run export-app as the owner of the menu (HOME and XDG_DATA_HOME determine its path)",
            there.display(),
            user_name(owner)
        )))
    }

    /// Removes the file of a program and its icon. Returns the file.
    ///
    /// # Errors
    /// The file does not exist, or was not written for this environment.
    pub(super) fn remove(&self, origin: Origin<'_>, app: &str) -> Result<PathBuf> {
        let path = self.file(origin.env, app);
        match self.check_free(origin, &path)? {
            Some(found) => self.remove_found(&found).map(|()| path),
            None => Err(Error::Invalid(format!(
                "{app} of {} is not exported: {} does not exist",
                origin.env,
                path.display()
            ))),
        }
    }

    fn remove_found(&self, found: &Exported) -> Result<()> {
        self.remove_icons(found, None)?;
        remove(&found.path)
    }

    /// Removes the icon of a file, unless it is `but`.
    fn remove_icons(&self, found: &Exported, but: Option<&Path>) -> Result<()> {
        let Some(app) = found.app() else { return Ok(()) };
        let icons = ICON_ENDINGS.map(|ending| self.icon(&found.env, app, ending));
        // Icons with these names may belong to another store, so remove only the one that the file names.
        let own = icons.iter().filter(|icon| found.icon.as_ref() == Some(icon) && but != Some(icon));
        own.into_iter().try_for_each(|icon| remove(icon))
    }

    /// The files written for an environment.
    fn exported(&self, origin: Origin<'_>) -> Result<Vec<Exported>> {
        let dir = self.applications();
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.at("list", &dir)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let name = entry.at("list", &dir)?.file_name();
            let named = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(DESKTOP));
            if named {
                all.extend(Exported::read(&dir.join(&name))?.filter(|found| found.is_of(origin)));
            }
        }
        Ok(all)
    }

    /// Removes all files written for an environment. Returns how many there were.
    pub(super) fn remove_all(&self, origin: Origin<'_>) -> Result<usize> {
        let all = self.exported(origin)?;
        all.iter().try_for_each(|found| self.remove_found(found))?;
        Ok(all.len())
    }

    /// Makes all files written for an environment start it by its new name.
    pub(super) fn rename_all(&self, origin: Origin<'_>, new: &str) -> Result<()> {
        for found in self.exported(origin)? {
            if let Err(error) = self.rename(&found, Origin { env: new, ..origin }) {
                // With the old name it would start nothing or, one day, another environment.
                self.remove_found(&found)?;
                let path = found.path.display();
                tracing::warn!(
                    "{path} was removed, because it could not be updated for {new}: {error}; export it again"
                );
            }
        }
        Ok(())
    }

    fn rename(&self, found: &Exported, to: Origin<'_>) -> Result<()> {
        let odd = |reason: String| Error::Invalid(format!("{}: {reason}", found.path.display()));
        let app = found.app().ok_or_else(|| odd("its file name does not match its content".to_owned()))?;
        let ending = |icon: &Path| ICON_ENDINGS.into_iter().find(|e| self.icon(&found.env, app, e) == *icon);
        let ending = found.icon.as_deref().and_then(ending);
        let icon = match (&found.icon, ending) {
            (Some(icon), Some(ending)) => Some((ending, fs::read(icon).at("read", icon)?)),
            _ => None,
        };
        let icon = icon.as_ref().map(|(ending, bytes)| (*ending, bytes.as_slice()));
        self.write(to, app, icon, &|icon| {
            desktop::renamed(&found.text, (&found.env, to.env), icon)
                .map_err(|reason| odd(reason.to_string()))
        })?;
        self.remove_found(found)
    }
}

fn taken(path: &Path, found: Option<Exported>) -> Error {
    let whose = match found {
        Some(Exported { env, store: Some(store), .. }) => format!("of the environment {env} in {store}"),
        Some(Exported { env, .. }) => format!("of the environment {env}"),
        None => "not a file that karapace wrote".to_owned(),
    };
    Error::Invalid(format!(
        "{} is {whose}: it was not changed; move it away, or remove that program from the menu first",
        path.display()
    ))
}

/// Writes a file; makes its directory if it is missing.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).at("create", dir)?;
    }
    Ok(atomic::write_user_file(path, bytes)?)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}
