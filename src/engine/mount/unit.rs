//! A systemd user unit that runs `mount --all` when the user's session begins.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use karapace_store::atomic;

use crate::engine::At as _;
use crate::engine::{Engine, Error, Result};

/// The unit's name.
pub const UNIT: &str = "karapace.service";

impl Engine {
    /// Writes the unit for `mount --all` of this store below `dir` into `config`, the user's configuration
    /// directory. Returns the unit's path.
    pub fn install_unit(&self, program: &Path, dir: &Path, config: &Path) -> Result<PathBuf> {
        let units = config.join("systemd/user");
        fs::create_dir_all(&units).at("create", &units)?;
        let path = units.join(UNIT);
        atomic::write_user_file(&path, unit(program, self.root(), dir)?.as_bytes())?;
        Ok(path)
    }
}

fn unit(program: &Path, store: &Path, dir: &Path) -> Result<String> {
    let (program, store, dir) = (quoted(program)?, quoted(store)?, quoted(dir)?);
    Ok(format!(
        "[Unit]\n\
         Description=Karapace environments as directories\n\
         \n\
         [Service]\n\
         ExecStart={program} --store {store} mount --all --foreground {dir}\n\
         Restart=on-failure\n\
         KillMode=process\n\
         TimeoutStopSec=60\n\
         \n\
         [Install]\n\
         WantedBy=default.target\n"
    ))
}

/// Quotes a path as one word of ExecStart=.
fn quoted(path: &Path) -> Result<String> {
    let text =
        std::str::from_utf8(path.as_os_str().as_bytes()).ok().filter(|text| !text.contains(char::is_control));
    let Some(text) = text else {
        return Err(Error::Invalid(format!(
            "{}: this path cannot be written in a unit file",
            path.display()
        )));
    };
    let mut word = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => word.extend(['\\', c]),
            '%' | '$' => word.extend([c, c]),
            other => word.push(other),
        }
    }
    word.push('"');
    Ok(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_one_word_each() {
        let text = unit(Path::new("/a b/karapace"), Path::new("/s%t\"x"), Path::new("/h$e\\r")).unwrap();
        assert!(text.contains(
            "ExecStart=\"/a b/karapace\" --store \"/s%%t\\\"x\" mount --all --foreground \"/h$$e\\\\r\"\n"
        ));
        assert!(text.contains("\nKillMode=process\n"), "servers outlive a supervisor that fails");
        assert!(unit(Path::new("/a\nb"), Path::new("/s"), Path::new("/d")).is_err());
    }
}
