//! The files that were written for the host's menu. Only those that we wrote for an environment of a store
//! are its own: they say so themselves, for names of files do not tell `a-b` with `c` from `a` with `b-c`,
//! nor one store from another.

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

/// What an exported file is called begins so.
const PREFIX: &str = "karapace-";

/// How it ends.
pub(super) const DESKTOP: &str = ".desktop";

/// The user's data directory, `~/.local/share`, with the menu below.
#[derive(Debug, Clone)]
pub struct Menu(pub PathBuf);

/// A file that karapace wrote.
#[derive(Debug)]
struct Exported {
    path: PathBuf,
    /// As it stands there.
    text: String,
    env: String,
    /// Not said by those of earlier versions.
    store: Option<String>,
    icon: Option<PathBuf>,
}

impl Exported {
    /// Reads one; None where there is nothing, or no regular file of this user that says that it is one.
    fn read(path: &Path) -> Result<Option<Exported>> {
        let failed = |e: io::Error| Error::io("read", path, e);
        let mut open = OpenOptions::new();
        open.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
        let file = match open.open(path) {
            Ok(file) => file,
            // A link, a socket or a device that is none.
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

    /// Whether an earlier version wrote it for an environment of this name.
    fn may_be_of(&self, origin: Origin<'_>) -> bool {
        self.env == origin.env && self.store.as_deref().is_none_or(|store| store == origin.store)
    }

    /// The program, where the file is called as we call it.
    fn app(&self) -> Option<&str> {
        let name = self.path.file_name()?.to_str()?.strip_suffix(DESKTOP)?;
        name.strip_prefix(PREFIX)?.strip_prefix(&self.env)?.strip_prefix('-')
    }
}

impl Menu {
    fn applications(&self) -> PathBuf {
        self.0.join("applications")
    }

    /// Where the file of a program is.
    fn file(&self, env: &str, app: &str) -> PathBuf {
        self.applications().join(format!("{PREFIX}{env}-{app}{DESKTOP}"))
    }

    fn icon(&self, env: &str, app: &str, ending: &str) -> PathBuf {
        self.0.join("icons").join(format!("{PREFIX}{env}-{app}.{ending}"))
    }

    /// The file of a program, where there is one that was written for this environment.
    pub(super) fn find(&self, origin: Origin<'_>, app: &str) -> Result<Option<PathBuf>> {
        let found = Exported::read(&self.file(origin.env, app))?;
        Ok(found.filter(|found| found.may_be_of(origin)).map(|found| found.path))
    }

    /// Writes the file of a program, which `text` gives for where its icon lies, and the icon. Gives the
    /// file.
    ///
    /// # Errors
    /// Another file has its name, the menu is another user's; or the text's own.
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

    /// Refuses a path at which something lies that was not written for this environment; gives what was.
    fn check_free(&self, origin: Origin<'_>, path: &Path) -> Result<Option<Exported>> {
        match Exported::read(path)? {
            Some(found) if found.may_be_of(origin) => Ok(Some(found)),
            None if path.symlink_metadata().is_err() => Ok(None),
            found => Err(taken(path, found)),
        }
    }

    /// Refuses the menu of another user, as `sudo` with the caller's HOME finds it: who can exchange its
    /// directories decides where root writes.
    fn check_owner(&self) -> Result<()> {
        let there = self.0.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
        let owner = fs::metadata(there).at("look at", there)?.uid();
        if owner == geteuid().as_raw() {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "{} belongs to {}: run export-app as the user whose menu it is (HOME and XDG_DATA_HOME say where that lies)",
            there.display(),
            user_name(owner)
        )))
    }

    /// Removes the file of a program with its icon. Gives the file.
    ///
    /// # Errors
    /// It is not there, or was not written for this environment.
    pub(super) fn remove(&self, origin: Origin<'_>, app: &str) -> Result<PathBuf> {
        let path = self.file(origin.env, app);
        match self.check_free(origin, &path)? {
            Some(found) => self.remove_found(&found).map(|()| path),
            None => Err(Error::Invalid(format!(
                "{app} of {} is not exported: {} is not there",
                origin.env,
                path.display()
            ))),
        }
    }

    fn remove_found(&self, found: &Exported) -> Result<()> {
        self.remove_icons(found, None)?;
        remove(&found.path)
    }

    /// Removes the icons of a file, but for one.
    fn remove_icons(&self, found: &Exported, but: Option<&Path>) -> Result<()> {
        let Some(app) = found.app() else { return Ok(()) };
        let icons = ICON_ENDINGS.map(|ending| self.icon(&found.env, app, ending));
        // Those of its name may be another store's, so only the one that it names.
        let own = icons.iter().filter(|icon| found.icon.as_ref() == Some(icon) && but != Some(icon));
        own.into_iter().try_for_each(|icon| remove(icon))
    }

    /// What was written for an environment.
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

    /// Removes all that was written for an environment. Gives how many there were.
    pub(super) fn remove_all(&self, origin: Origin<'_>) -> Result<usize> {
        let all = self.exported(origin)?;
        all.iter().try_for_each(|found| self.remove_found(found))?;
        Ok(all.len())
    }

    /// Has all that was written for an environment start it by another name.
    pub(super) fn rename_all(&self, origin: Origin<'_>, new: &str) -> Result<()> {
        for found in self.exported(origin)? {
            if let Err(error) = self.rename(&found, Origin { env: new, ..origin }) {
                // By its old name it would start nothing, or one day another environment.
                self.remove_found(&found)?;
                let path = found.path.display();
                tracing::warn!("{path} is gone, for it could not follow to {new}: {error}; export it again");
            }
        }
        Ok(())
    }

    fn rename(&self, found: &Exported, to: Origin<'_>) -> Result<()> {
        let odd = |reason: String| Error::Invalid(format!("{}: {reason}", found.path.display()));
        let app = found.app().ok_or_else(|| odd("it is not called as it was written".to_owned()))?;
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
        "{} is {whose}: it is left as it is; move it away, or take that out first",
        path.display()
    ))
}

/// Writes a file; the directory is made where there is none.
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
