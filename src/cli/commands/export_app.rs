use serde_json::json;

use crate::cli::ui::{self, Failure};
use crate::cli::{Global, menu, store_root};
use crate::engine::At as _;
use crate::engine::Error;
use crate::engine::export::app::{App, text_of, this_program};

/// Add a program of an environment to the desktop menu
///
/// Writes a .desktop file and an icon below ~/.local/share; the menu entry starts the program with `karapace
/// exec`. If a file manager passes names of files, they are those of the host. Parts of the program's own
/// .desktop file that would not be safe on the host are left out (-v lists them) or refused. `rename` and
/// `destroy` of the environment update or remove these files.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix
    env: String,
    /// The program: the name of its file in /usr/share/applications, with or without .desktop
    #[arg(required_unless_present = "list")]
    app: Option<String>,
    /// Remove the program from the menu. If the environment no longer exists, give its former name
    #[arg(long, conflicts_with = "list")]
    remove: bool,
    /// List the programs of the environment that can be exported, and those that are
    #[arg(long, conflicts_with = "app")]
    list: bool,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let menu = menu().ok_or_else(|| {
            Error::Invalid("cannot find the desktop menu: set HOME or XDG_DATA_HOME".to_owned())
        })?;
        let app = self.app.as_deref().unwrap_or_default();
        if self.remove {
            let engine = global.engine()?;
            let name = match engine.find(&self.env) {
                Ok(env) => env.name,
                Err(Error::NoEnvironment { .. }) => self.env.clone(),
                Err(error) => return Err(error.into()),
            };
            let path = engine.remove_app(&name, app, &menu)?.display().to_string();
            if global.json() {
                ui::json(&json!({ "path": path, "removed": true }))?;
            }
            return Ok(());
        }
        let engine = global.engine()?;
        let env = engine.find(&self.env)?;
        if !self.list {
            let path = engine.export_app(&env, app, &menu, &command(global)?)?.display().to_string();
            if global.json() {
                ui::json(&json!({ "path": path, "removed": false }))?;
            } else {
                ui::line(&path)?;
            }
            return Ok(());
        }
        let apps = engine.apps(&env, &menu)?;
        if global.json() {
            ui::json(&apps)?;
        } else if global.quiet() {
            apps.iter().try_for_each(|app| ui::line(&app.app))?;
        } else {
            let row = |app: &App| {
                let exported =
                    app.exported.as_ref().map_or_else(|| "-".to_owned(), |path| path.display().to_string());
                vec![app.app.clone(), app.name.clone(), exported]
            };
            ui::table(&["APP", "NAME", "EXPORTED"], &apps.iter().map(row).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

/// The start of each Exec line. It names the store only if that is not the default one.
fn command(global: &Global) -> Result<Vec<String>, Failure> {
    let mut command = vec![text_of(&this_program()?)?];
    let store = global.store_root()?;
    if Some(&store) != store_root(None).as_ref() {
        let store = std::path::absolute(&store).at("resolve", &store)?;
        command.extend(["--store".to_owned(), text_of(&store)?]);
    }
    Ok(command)
}
