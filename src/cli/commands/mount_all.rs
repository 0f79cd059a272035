//! `mount --all` and `umount --all`.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cli::ui::{self, Failure};
use crate::cli::{Global, exit};
use crate::engine::mount::all::default_dir;
use crate::engine::mount::background::{tell_failed, tell_ready};
use crate::engine::{Engine, Error};
use crate::process;

/// How to mount all environments.
pub(super) struct All<'a> {
    pub dir: Option<&'a Path>,
    pub foreground: bool,
    pub background_child: bool,
    pub install_unit: bool,
}

impl All<'_> {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        if self.background_child {
            return self.run_background(global);
        }
        let engine = all_of(global)?;
        let dir = self.dir()?;
        if self.install_unit {
            return install_unit(global, &engine, &dir);
        }
        if self.foreground {
            let mut ready = |dir: &Path| {
                ui::remark(&format!("all environments are mounted in {}", dir.display()));
                Ok(())
            };
            process::lift_limits().map_err(std::io::Error::from)?;
            return Ok(engine.mount_all(&dir, global.verbose(), &mut ready, &|text| ui::complain(text))?);
        }
        let (dir, pid) = engine.mount_all_in_background(&dir, global.verbose())?;
        let dir = dir.display().to_string();
        if global.json() {
            ui::json(&json!({ "dir": dir, "pid": pid }))?;
        } else {
            ui::line(&dir)?;
        }
        Ok(())
    }

    fn dir(&self) -> Result<PathBuf, Error> {
        self.dir.map_or_else(default_dir, |dir| Ok(dir.to_owned()))
    }

    /// Runs as the background process. Errors before the mounts are made are reported to the parent process;
    /// later ones go to the log.
    fn run_background(&self, global: &Global) -> Result<(), Failure> {
        let mut told = false;
        let result = self.serve(global, &mut told);
        if let (Err(Failure::Engine(error)), false) = (&result, told) {
            tell_failed(error)?;
        }
        result
    }

    fn serve(&self, global: &Global, told: &mut bool) -> Result<(), Failure> {
        nix::unistd::setsid().map_err(std::io::Error::from)?;
        process::become_server().map_err(std::io::Error::from)?;
        process::lift_limits().map_err(std::io::Error::from)?;
        let engine = all_of(global)?;
        let dir = self.dir()?;
        std::env::set_current_dir("/")?;
        let mut ready = |dir: &Path| {
            *told = true;
            tell_ready(dir)
        };
        Ok(engine.mount_all(&dir, global.verbose(), &mut ready, &|text| tracing::warn!("{text}"))?)
    }
}

/// Opens the store whose environments are mounted as they appear. The default store is created if it does not
/// exist; one that is named must exist.
fn all_of(global: &Global) -> Result<Engine, Failure> {
    match global.engine_if_any()? {
        Some(engine) => Ok(engine),
        None => global.engine_to_begin(),
    }
}

fn install_unit(global: &Global, engine: &Engine, dir: &Path) -> Result<(), Failure> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")));
    let config = config.ok_or_else(|| {
        Error::Invalid(
            "cannot find the directory of systemd user units: set HOME or XDG_CONFIG_HOME".to_owned(),
        )
    })?;
    let program = std::env::current_exe()?;
    let dir = std::path::absolute(dir)?;
    let path = engine.install_unit(&program, &dir, &config)?.display().to_string();
    if global.json() {
        ui::json(&json!({ "unit": path }))?;
        return Ok(());
    }
    ui::line(&path)?;
    ui::remark("now:                  systemctl --user enable --now karapace");
    ui::remark("also when logged out: loginctl enable-linger");
    Ok(())
}

/// Unmounts all environments.
pub(super) fn umount_all(global: &Global) -> Result<(), Failure> {
    let (done, failed) = match global.engine_if_any()? {
        Some(engine) => engine.umount_all()?,
        None => Default::default(),
    };
    if global.json() {
        let dirs: Vec<String> = done.iter().map(|dir| dir.display().to_string()).collect();
        ui::json(&json!({ "dirs": dirs, "failed": failed }))?;
    } else {
        for reason in &failed {
            ui::complain(&format!("karapace: {reason}"));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Failure::Status(exit::FAILURE)) }
}
