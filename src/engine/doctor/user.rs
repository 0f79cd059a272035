//! What an ordinary user needs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{User, geteuid};

use super::{Check, on_path};

/// Ids that an environment's own users and groups take.
const RANGE: u64 = 65_536;

pub(super) fn fusermount() -> Check {
    const NAME: &str = "fusermount3";
    let found = on_path(NAME);
    if geteuid().is_root() {
        return Check::ok(NAME, "not needed by root");
    }
    match found {
        None => Check::failed(NAME, "missing: an ordinary user cannot mount", "sudo apt install fuse3"),
        Some(path) if is_setuid_root(&path) => Check::ok(NAME, path.display().to_string()),
        Some(path) => {
            let mend = format!("sudo chown root '{0}' && sudo chmod u+s '{0}'", path.display());
            Check::failed(NAME, format!("{} is not set-user-id root", path.display()), mend)
        }
    }
}

fn is_setuid_root(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.uid() == 0 && m.permissions().mode() & 0o4000 != 0)
}

pub(super) fn id_range() -> Check {
    const NAME: &str = "id range";
    let uid = geteuid();
    if uid.is_root() {
        return Check::ok(NAME, "not needed by root");
    }
    let name = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    for program in ["newuidmap", "newgidmap"] {
        if on_path(program).is_none() {
            return Check::warning(
                NAME,
                format!("{program} is missing: one id inside"),
                "sudo apt install uidmap",
            );
        }
    }
    for file in ["/etc/subuid", "/etc/subgid"] {
        let table = fs::read_to_string(file).unwrap_or_default();
        let most = granted(&table, &name, uid.as_raw());
        if most < RANGE {
            let found = format!("{file} gives {name} {most} ids, {RANGE} are needed: one id inside");
            let mend = format!("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}");
            return Check::warning(NAME, found, mend);
        }
    }
    Check::ok(NAME, format!("{RANGE} ids of /etc/subuid and /etc/subgid"))
}

/// The largest range that a table gives a user, who stands in it by name or number.
fn granted(table: &str, name: &str, uid: u32) -> u64 {
    let count = |line: &str| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let count = fields.nth(1)?.trim().parse().ok()?;
        (owner == name || owner == uid.to_string()).then_some(count)
    };
    table.lines().filter_map(count).max().unwrap_or(0)
}

pub(super) fn allow_other() -> Check {
    const NAME: &str = "user_allow_other";
    if geteuid().is_root() {
        return Check::ok(NAME, "not needed by root");
    }
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if conf.lines().any(|line| line.trim() == NAME) {
        return Check::ok(NAME, "set");
    }
    Check::ok(
        NAME,
        "not set (needed for --allow-other only: echo user_allow_other | sudo tee -a /etc/fuse.conf)",
    )
}

pub(super) fn runtime_dir() -> Check {
    const NAME: &str = "XDG_RUNTIME_DIR";
    let mend = "log in by a session manager, or: sudo loginctl enable-linger $USER";
    let Some(dir) = std::env::var_os(NAME).map(PathBuf::from).filter(|dir| dir.is_absolute()) else {
        return Check::warning(NAME, "not set: no Wayland, audio or D-Bus inside", mend);
    };
    match fs::metadata(&dir) {
        Ok(m) if m.is_dir() && m.uid() == geteuid().as_raw() && m.permissions().mode() & 0o077 == 0 => {
            Check::ok(NAME, dir.display().to_string())
        }
        Ok(_) => {
            let found = format!("{} is not a directory for this user alone", dir.display());
            Check::warning(NAME, found, format!("chmod 0700 '{}', as its owner", dir.display()))
        }
        Err(e) => Check::warning(NAME, format!("{}: {e}", dir.display()), mend),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_by_name_or_number() {
        let table = "root:1:5\nme:100000:65536\n1000:7:9\nother:1:99999\nbroken\nme:x:y\n";
        for (name, uid, expected) in [("me", 5, 65536), ("you", 1000, 9), ("none", 1, 0), ("broken", 2, 0)] {
            assert_eq!(granted(table, name, uid), expected, "{name}");
        }
    }
}
