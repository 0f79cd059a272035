//! The bundle's `config.json`, as the OCI runtime specification defines it (version 1.0).
//!
//! Host name, System V IPC and network are those of the namespaces that karapace makes around the runtime.
//! The runtime makes the mount and process namespaces, the devices, the capabilities and the filter. (Without
//! a process namespace of its own, crun would wait for everything that the command leaves behind.)

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::runtime::RuntimeError;
use crate::runtime::error::refused;
use crate::runtime::plan::seccomp::{DENIED, DENIED_IOCTLS, MOUNT_FLAGS};
use crate::runtime::policy::{RUNTIME_DIR, Share, ShareKind, missing_on_host};

/// The capabilities of Linux 5.9 and later; each index is the capability's number.
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a `config.json` is made from.
pub(in crate::runtime) struct Wanted<'a> {
    /// The environment's directory on the host.
    pub root: &'a OsStr,
    pub argv: &'a [OsString],
    pub variables: &'a [(OsString, OsString)],
    pub workdir: &'a OsStr,
    pub ids: (u32, u32),
    pub groups: &'a [u32],
    /// The capabilities of root inside, one bit each.
    pub capabilities: u64,
    /// Columns and rows of the command's terminal, if it has one.
    pub terminal: Option<(u16, u16)>,
    /// Whether more than one id exists inside.
    pub many_ids: bool,
    pub mask_control: bool,
    pub no_new_privileges: bool,
    /// Whether the container gets a seccomp filter.
    pub filter: bool,
    /// Whether to deny changes of mounts, because something of the host is read-only.
    pub keep_read_only: bool,
    pub shares: &'a [Share],
    /// Paths inside the shares that are covered.
    pub covered: &'a [PathBuf],
    /// The path on the host of the session's `/etc/hosts`, and whether to show the host's resolv.conf.
    pub hosts: Option<&'a str>,
    pub resolv_conf: bool,
}

/// Returns the JSON text. JSON holds only Unicode, so other arguments and variables are refused.
pub(super) fn text(wanted: &Wanted<'_>) -> Result<Vec<u8>, RuntimeError> {
    let args = wanted.argv.iter().map(|arg| utf8("an argument", arg)).collect::<Result<Vec<_>, _>>()?;
    let mut env = Vec::new();
    for (name, value) in wanted.variables {
        env.push(format!("{}={}", utf8("a variable", name)?, utf8("a variable", value)?));
    }
    // Users other than root get capabilities only from programs that carry them.
    let bounding: Vec<_> = (0..)
        .zip(CAPABILITIES)
        .filter(|(bit, _)| wanted.capabilities >> bit & 1 == 1)
        .map(|(_, name)| name)
        .collect();
    let held = if wanted.ids.0 == 0 { bounding.clone() } else { Vec::new() };
    let (uid, gid) = wanted.ids;
    // If setgroups is denied, not even an empty list may be set.
    let groups = if wanted.many_ids { wanted.groups } else { &[] };
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": wanted.terminal.is_some(),
            "user": { "uid": uid, "gid": gid, "additionalGids": groups },
            "args": args,
            "env": env,
            "cwd": utf8("the directory to start in", wanted.workdir)?,
            "capabilities": {
                "bounding": bounding, "effective": held, "permitted": held, "inheritable": [], "ambient": []
            },
            "noNewPrivileges": wanted.no_new_privileges,
        },
        "root": { "path": utf8("the environment's directory", wanted.root)?, "readonly": false },
        "mounts": mounts(wanted)?,
        "linux": {
            "namespaces": [{ "type": "mount" }, { "type": "pid" }],
            "rootfsPropagation": "private",
            "maskedPaths": if wanted.mask_control { vec!["/.karapace"] } else { vec![] },
        },
    });
    if let Some((columns, rows)) = wanted.terminal {
        config["process"]["consoleSize"] = json!({ "width": columns, "height": rows });
    }
    if wanted.filter {
        config["linux"]["seccomp"] = seccomp(wanted.keep_read_only);
    }
    let mut text = config.to_string().into_bytes();
    text.push(b'\n');
    Ok(text)
}

fn mounts(wanted: &Wanted<'_>) -> Result<Vec<Value>, RuntimeError> {
    let bind = |inside: &str, host: &str, options: &[&str]| json!({ "destination": inside, "type": "bind", "source": host, "options": options });
    let new = |inside: &str, kind: &str, options: &[&str]| json!({ "destination": inside, "type": kind, "source": kind, "options": options });
    let (on_dev, in_tree): (Vec<_>, Vec<_>) =
        wanted.shares.iter().partition(|share| share.inside.starts_with("/dev"));
    let share = |share: &&Share| {
        let is_directory = matches!(share.kind, ShareKind::Directory | ShareKind::Device { directory: true });
        let access = if share.read_only { "ro" } else { "rw" };
        let kept_out = if matches!(share.kind, ShareKind::Device { .. }) { "noexec" } else { "nodev" };
        let options = ["bind", "nosuid", access, kept_out].map(|option| {
            // crun takes what it is to bind with everything mounted in it for a directory.
            if is_directory && option != "rw" { format!("r{option}") } else { option.to_owned() }
        });
        let options = options.each_ref().map(String::as_str);
        let inside = utf8("a path inside", share.inside.as_os_str())?;
        Ok::<_, RuntimeError>(bind(inside, utf8("a host path", share.host.as_os_str())?, &options))
    };
    let mut list = in_tree.iter().map(share).collect::<Result<Vec<_>, _>>()?;
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if wanted.many_ids {
        pts.push("gid=5");
    }
    for place in wanted.covered {
        let place = utf8("a path inside", place.as_os_str())?;
        list.push(new(place, "tmpfs", &["nosuid", "nodev", "noexec", "ro", "mode=0555", "size=4k"]));
    }
    let (uid, gid) = (format!("uid={}", wanted.ids.0), format!("gid={}", wanted.ids.1));
    list.extend([
        new("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        bind("/sys", "/sys", &["rbind", "rnosuid", "rnoexec", "rnodev", "rro"]),
        new("/dev", "tmpfs", &["nosuid", "mode=755", "size=64m"]),
        new("/dev/pts", "devpts", &pts),
        new("/dev/shm", "tmpfs", &["nosuid", "nodev", "mode=1777"]),
        new(RUNTIME_DIR, "tmpfs", &["nosuid", "nodev", "mode=0700", &uid, &gid]),
    ]);
    for one in &on_dev {
        list.push(share(one)?);
    }
    // The runtime creates missing mount points, even in a directory of the host.
    let may_be = |inside: &str| missing_on_host(wanted.shares, Path::new(inside)).is_none();
    if wanted.resolv_conf && may_be("/etc/resolv.conf") {
        let options = ["bind", "nosuid", "nodev", "noexec", "ro"];
        list.push(bind("/etc/resolv.conf", "/etc/resolv.conf", &options));
    }
    if may_be("/etc/hosts") {
        list.extend(wanted.hosts.map(|hosts| bind("/etc/hosts", hosts, &["bind", "nosuid", "nodev"])));
    }
    Ok(list)
}

fn seccomp(keep_read_only: bool) -> Value {
    let architecture = if cfg!(target_arch = "x86_64") { "SCMP_ARCH_X86_64" } else { "SCMP_ARCH_AARCH64" };
    let names: Vec<_> = DENIED.iter().map(|(name, _)| *name).collect();
    let mut rules = vec![json!({ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM })];
    rules.extend(DENIED_IOCTLS.map(|request| {
        let asked = json!({
            "index": 1, "value": u32::MAX, "valueTwo": request, "op": "SCMP_CMP_MASKED_EQ"
        });
        json!({ "names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM, "args": [asked] })
    }));
    if keep_read_only {
        let asked = json!({
            "index": MOUNT_FLAGS, "value": libc::MS_REMOUNT, "valueTwo": libc::MS_REMOUNT, "op": "SCMP_CMP_MASKED_EQ"
        });
        rules
            .push(json!({ "names": ["mount_setattr", "open_tree_attr"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM }));
        rules.push(json!({
            "names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM, "args": [asked]
        }));
    }
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": [architecture], "syscalls": rules })
}

fn utf8<'a>(what: &str, text: &'a OsStr) -> Result<&'a str, RuntimeError> {
    text.to_str().ok_or_else(|| {
        let reason =
            format!("{what} is not UTF-8 ({}), which an OCI bundle cannot hold", text.to_string_lossy());
        refused("runtime.backend = \"oci\"", reason)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn wanted<'a>(argv: &'a [OsString], shares: &'a [Share]) -> Wanted<'a> {
        Wanted {
            root: OsStr::new("/tmp/root"),
            argv,
            variables: &[],
            workdir: OsStr::new("/"),
            ids: (0, 0),
            groups: &[0],
            capabilities: 0b101,
            terminal: Some((100, 30)),
            many_ids: false,
            mask_control: true,
            no_new_privileges: true,
            filter: true,
            keep_read_only: false,
            shares,
            covered: &[],
            hosts: Some("/dev/shm/hosts"),
            resolv_conf: false,
        }
    }

    fn places(mounts: &[Value]) -> Vec<&str> {
        mounts.iter().map(|mount| mount["destination"].as_str().unwrap()).collect()
    }

    #[test]
    fn shares_come_in_order_and_with_their_options() {
        let share = |inside: &str, kind| Share {
            what: String::new(),
            host: "/tmp/x".into(),
            inside: inside.into(),
            kind,
            read_only: true,
        };
        let device = ShareKind::Device { directory: true };
        let shares = [share("/dev/dri", device), share("/work", ShareKind::Directory)];
        let text = text(&wanted(&["sh".into()], &shares)).unwrap();
        let config: Value = serde_json::from_slice(&text).unwrap();
        let mounts = config["mounts"].as_array().unwrap();
        assert_eq!(
            places(mounts),
            ["/work", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/run", "/dev/dri", "/etc/hosts"]
        );
        // The environment has a directory at /etc/hosts.
        let argv = ["sh".into()];
        let list = super::mounts(&Wanted { hosts: None, ..wanted(&argv, &[]) }).unwrap();
        assert!(!places(&list).contains(&"/etc/hosts"), "{list:?}");
        assert_eq!(mounts[0]["options"], json!(["rbind", "rnosuid", "rro", "rnodev"]));
        assert_eq!(mounts[7]["options"], json!(["rbind", "rnosuid", "rro", "rnoexec"]));
        assert_eq!(
            config["process"]["capabilities"]["effective"],
            json!(["CAP_CHOWN", "CAP_DAC_READ_SEARCH"])
        );
        assert_eq!(config["process"]["noNewPrivileges"], true);
        assert_eq!(config["process"]["consoleSize"], json!({ "width": 100, "height": 30 }));
        assert_eq!(
            config["linux"]["seccomp"]["syscalls"][0]["names"].as_array().unwrap().len(),
            DENIED.len()
        );
    }

    #[test]
    fn what_json_cannot_hold_is_refused() {
        let argv = [OsStr::from_bytes(b"\xff").to_owned()];
        let error = text(&wanted(&argv, &[])).unwrap_err().to_string();
        assert!(error.contains("an argument is not UTF-8"), "{error}");
    }
}
