//! Sockets of the caller's desktop: the display for graphical programs, the sound server for audio.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::private_dir;

use super::{Policy, RUNTIME_DIR, Share, ShareKind};

/// Which parts of the desktop are asked for.
#[derive(Debug, Clone, Copy)]
pub(in crate::runtime) struct Wanted {
    /// The display and the session bus: the manifest lists `gui.apps`.
    pub display: bool,
    /// The sound server: `hardware.audio`.
    pub sound: bool,
}

/// Lets in the sockets that are asked for and that the caller has, and sets the variables by which programs
/// find them.
pub(super) fn apply(policy: &mut Policy, wanted: Wanted, variable: &dyn Fn(&str) -> Option<OsString>) {
    let mut desktop = Desktop { policy, variable };
    if wanted.display {
        desktop.wayland();
        desktop.x11();
        desktop.bus();
    }
    if wanted.sound {
        desktop.sound();
    }
}

struct Desktop<'a> {
    policy: &'a mut Policy,
    variable: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Desktop<'_> {
    fn wayland(&mut self) {
        let Some(name) = (self.variable)("WAYLAND_DISPLAY").filter(|name| !name.is_empty()) else {
            return tracing::info!("gui.apps: WAYLAND_DISPLAY is not set: no Wayland inside");
        };
        // Relative to the runtime directory, unless it is absolute.
        let Some(socket) = self.in_runtime_dir(&name) else { return };
        let name = Path::new(&name).file_name().map_or_else(|| "wayland-0".into(), OsStr::to_owned);
        if self.share("gui.apps", &socket, &Path::new(RUNTIME_DIR).join(&name)) {
            self.set("WAYLAND_DISPLAY", name);
        }
    }

    fn x11(&mut self) {
        let Some(display) = (self.variable)("DISPLAY").filter(|display| !display.is_empty()) else {
            return tracing::info!("gui.apps: DISPLAY is not set: no X11 inside");
        };
        if let Some(number) = local_display(display.as_bytes()) {
            let socket = PathBuf::from(format!("/tmp/.X11-unix/X{number}"));
            if !self.share("gui.apps", &socket, &socket) {
                return;
            }
        }
        self.set("DISPLAY", display);
        let cookies = (self.variable)("XAUTHORITY").map(PathBuf::from);
        let cookies = cookies.or_else(|| Some(Path::new(&(self.variable)("HOME")?).join(".Xauthority")));
        let inside = Path::new(RUNTIME_DIR).join("Xauthority");
        if let Some(cookies) = cookies
            && self.share("gui.apps", &cookies, &inside)
        {
            self.set("XAUTHORITY", inside.into());
        }
    }

    fn bus(&mut self) {
        let address = (self.variable)("DBUS_SESSION_BUS_ADDRESS");
        let socket = match &address {
            Some(address) => bus_path(address.as_bytes()).map(|path| PathBuf::from(OsStr::from_bytes(path))),
            None => self.in_runtime_dir(OsStr::new("bus")),
        };
        let Some(socket) = socket else {
            return tracing::info!("gui.apps: the session bus has no socket file: no D-Bus inside");
        };
        let inside = Path::new(RUNTIME_DIR).join("bus");
        if self.share("gui.apps", &socket, &inside) {
            self.set("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", inside.display()).into());
        }
    }

    fn sound(&mut self) {
        // Clients of both servers look below XDG_RUNTIME_DIR.
        for name in ["pipewire-0", "pulse/native"] {
            if let Some(socket) = self.in_runtime_dir(OsStr::new(name)) {
                self.share("hardware.audio", &socket, &Path::new(RUNTIME_DIR).join(name));
            }
        }
    }

    fn in_runtime_dir(&self, name: &OsStr) -> Option<PathBuf> {
        if Path::new(name).is_absolute() {
            return Some(name.into());
        }
        // The directory must be private: programs inside would talk to anyone who can put a socket there.
        let dir = private_dir::runtime_dir((self.variable)("XDG_RUNTIME_DIR"));
        if dir.is_none() {
            tracing::info!("there is no runtime directory: no {} inside", name.to_string_lossy());
        }
        Some(dir?.join(name))
    }

    /// Shares a socket if the host has it. Returns whether it does.
    fn share(&mut self, what: &str, host: &Path, inside: &Path) -> bool {
        let Ok(found) = fs::canonicalize(host).and_then(|path| fs::metadata(&path).map(|_| path)) else {
            tracing::info!("{what}: the host has no {}", host.display());
            return false;
        };
        self.policy.shares.push(Share {
            what: what.to_owned(),
            host: found,
            inside: inside.to_owned(),
            kind: ShareKind::File,
            read_only: false,
        });
        true
    }

    fn set(&mut self, name: &str, value: OsString) {
        self.policy.variables.push((name.into(), value));
    }
}

/// The number of a display on this machine: `:0`, `:0.1`, `unix:0`. Other displays are reached over the
/// network.
fn local_display(display: &[u8]) -> Option<u32> {
    let display = std::str::from_utf8(display).ok()?;
    let (host, rest) = display.rsplit_once(':')?;
    let number = rest.split('.').next()?;
    if host.is_empty() || host == "unix" { number.parse().ok() } else { None }
}

/// The socket file of a bus address, `unix:path=FILE,guid=…`; there may be several, separated by `;`.
fn bus_path(address: &[u8]) -> Option<&[u8]> {
    address.split(|b| *b == b';').find_map(|one| {
        let options = one.strip_prefix(b"unix:")?;
        options.split(|b| *b == b',').find_map(|option| option.strip_prefix(b"path="))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    fn applied(wanted: Wanted, variables: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let mut policy = Policy::default();
        let find = |key: &str| variables.iter().find(|(k, _)| *k == key).map(|(_, value)| value.into());
        apply(&mut policy, wanted, &find);
        let shares =
            policy.shares.iter().map(|s| format!("{} {}", s.host.display(), s.inside.display())).collect();
        let set = policy.variables.iter();
        (shares, set.map(|(k, v)| format!("{}={}", k.display(), v.display())).collect())
    }

    #[test]
    fn only_sockets_that_exist_are_shared() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(scratch.path()).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
        fs::create_dir_all(dir.join("pulse")).unwrap();
        for name in ["wayland-7", "bus", "pulse/native", "cookies"] {
            fs::write(dir.join(name), "").unwrap();
        }
        let here = dir.to_str().unwrap();
        let cookies = format!("{here}/cookies");
        let variables = [
            ("XDG_RUNTIME_DIR", here),
            ("WAYLAND_DISPLAY", "wayland-7"),
            ("DISPLAY", "remote:0"),
            ("XAUTHORITY", cookies.as_str()),
        ];
        let (shares, set) = applied(Wanted { display: true, sound: false }, &variables);
        let expected = [("wayland-7", "wayland-7"), ("cookies", "Xauthority"), ("bus", "bus")];
        assert_eq!(shares, expected.map(|(host, inside)| format!("{here}/{host} /dev/run/{inside}")));
        assert_eq!(
            set,
            [
                "WAYLAND_DISPLAY=wayland-7",
                "DISPLAY=remote:0",
                "XAUTHORITY=/dev/run/Xauthority",
                "DBUS_SESSION_BUS_ADDRESS=unix:path=/dev/run/bus"
            ]
        );
        let (shares, set) = applied(Wanted { display: false, sound: true }, &variables);
        assert_eq!(shares, [format!("{here}/pulse/native /dev/run/pulse/native")]);
        assert!(set.is_empty());
        assert_eq!(applied(Wanted { display: true, sound: true }, &[]), (vec![], vec![]));
        // A runtime directory that is a symlink, or that others can write to.
        let link = format!("{here}/link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        let sound = Wanted { display: false, sound: true };
        assert_eq!(applied(sound, &[("XDG_RUNTIME_DIR", &link)]), (vec![], vec![]));
        fs::set_permissions(&dir, Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(applied(sound, &[("XDG_RUNTIME_DIR", here)]), (vec![], vec![]));
    }

    #[test]
    fn addresses() {
        for (display, number) in [
            (":0", Some(0)),
            (":12.3", Some(12)),
            ("unix:1", Some(1)),
            ("host:0", None),
            ("", None),
            (":x", None),
        ] {
            assert_eq!(local_display(display.as_bytes()), number, "{display}");
        }
        for (address, path) in [
            ("unix:path=/run/user/1/bus", Some("/run/user/1/bus")),
            ("unix:guid=1,path=/b", Some("/b")),
            ("tcp:host=x;unix:path=/c,guid=2", Some("/c")),
            ("unix:abstract=/tmp/x", None),
        ] {
            assert_eq!(bus_path(address.as_bytes()), path.map(str::as_bytes), "{address}");
        }
    }
}
