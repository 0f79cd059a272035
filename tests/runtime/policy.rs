//! What of the host comes in, and what does not.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::libc;

use super::{Bench, Test, Who, assert_status, stdout};

pub const TESTS: &[Test] = &[
    ("mounts of the manifest", mounts),
    ("a missing mount point is made", missing_points),
    ("a mount makes nothing on the host", nothing_made_on_the_host),
    ("mounts that are refused", refusals),
    ("a symlink inside leads no mount over the session's own", symlink_inside),
    ("home directory: private, share, ro", homes),
    ("/etc/hosts knows the host name", hosts),
    ("a runtime directory of its own", runtime_dir),
    ("network isolation", network),
    ("variables that never go in", variables),
    ("system calls that are denied", denied),
    ("privileges are gained only where there are ids for it", privileges),
    ("sockets of the desktop", desktop),
];

/// A directory of the host that belongs to whoever runs the session, below /tmp as the policy wants it.
struct Host {
    dir: tempfile::TempDir,
    owner: Option<u32>,
}

impl Host {
    fn new(bench: &Bench) -> Host {
        let dir = tempfile::Builder::new().prefix("karapace-policy-").tempdir_in("/tmp").unwrap();
        let host = Host { dir, owner: bench.root.owner() };
        host.give(host.dir.path());
        host
    }

    fn give(&self, path: &Path) {
        if let Some(owner) = self.owner {
            std::os::unix::fs::chown(path, Some(owner), Some(owner)).unwrap();
        }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        self.give(&path);
        path
    }

    /// A manifest with these sections; returns its path.
    fn manifest(&self, sections: &str) -> String {
        let text = format!("manifest_version = 1\n[base]\nimage = \"none\"\n{sections}\n");
        self.write("karapace.toml", &text).to_str().unwrap().to_owned()
    }
}

fn run(bench: &Bench, manifest: &str, script: &str) -> Output {
    bench.run(&["--manifest", manifest], ["sh", "-c", script])
}

fn mounts(bench: &Bench) {
    let host = Host::new(bench);
    let file = host.write("file", "of the host\n");
    let work = host.dir.path().join("work");
    fs::create_dir(&work).unwrap();
    host.give(&work);
    let manifest = host.manifest(&format!(
        "[mounts]\nwork = \"./:/srv/deep/work\"\none = \"{}:/root/one\"\nunder = \"./:/srv/deep\"",
        file.display()
    ));
    let script = "cat /srv/deep/work/file /root/one; echo new > /srv/deep/work/new; \
                  while read -r _ _ _ _ at opts _; do case $at in /srv/*|/root/one) echo $at $opts;; esac; done < /proc/self/mountinfo";
    let output = stdout(&run(bench, &manifest, script));
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines[..2], ["of the host", "of the host"]);
    assert!(lines[2..].iter().all(|line| line.contains("nosuid") && line.contains("nodev")), "{output}");
    assert_eq!(lines[2..].len(), 3, "{output}");
    assert_eq!(fs::read_to_string(host.dir.path().join("new")).unwrap(), "new\n");
}

/// What a mount would be attached to is not made on the host, whether it is asked for or the session's own.
fn nothing_made_on_the_host(bench: &Bench) {
    let host = Host::new(bench);
    let file = host.write("file", "x\n");
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(host.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let refused = host.manifest(&format!(
        "[mounts]\nall = \"./:/srv\"\nconf = \"{}:/srv/deep/resolv.conf\"",
        file.display()
    ));
    let output = run(bench, &refused, "echo ran");
    assert_status(&output, 125);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.stdout.is_empty()
            && said.contains("mounts.conf: /srv/deep/resolv.conf is in a shared directory"),
        "{said}"
    );
    // An /etc of the host's gets no resolv.conf and no hosts; also when only a symlink inside leads there.
    let etc = host.manifest("[mounts]\netc = \"./:/etc\"");
    assert_eq!(stdout(&run(bench, &etc, "cat /etc/file; ls /etc")), "x\nfile\nkarapace.toml\n");
    // It is mounted after what it leads into.
    let link = bench.root.path().join("z-link");
    std::os::unix::fs::symlink("/srv", &link).unwrap();
    let manifest = format!("[mounts]\nall = \"./:/srv\"\nconf = \"{}:/z-link/deep/conf\"", file.display());
    let output = run(bench, &host.manifest(&manifest), "echo ran");
    fs::remove_file(&link).unwrap();
    assert_status(&output, 125);
    assert_eq!(names(), ["file", "karapace.toml"]);
}

fn missing_points(bench: &Bench) {
    let host = Host::new(bench);
    host.write("file", "x\n");
    let manifest = host.manifest("[mounts]\nwork = \"./:/work\"\nfile = \"./file:/root/file\"");
    assert_eq!(stdout(&run(bench, &manifest, "ls /work; cat /root/file")), "file\nkarapace.toml\nx\n");
    // Nothing serves this root and could take them for mount points. They are empty.
    fs::remove_dir(bench.root.path().join("work")).unwrap();
    for path in ["root/file", "etc/hosts"] {
        let path = bench.root.path().join(path);
        assert_eq!(fs::read(&path).unwrap(), b"");
        fs::remove_file(&path).unwrap();
    }
}

fn refusals(bench: &Bench) {
    let host = Host::new(bench);
    std::os::unix::fs::symlink("/etc", host.dir.path().join("out")).unwrap();
    let here = host.dir.path().display();
    for (mount, reason) in [
        ("/etc:/data".to_owned(), "mounts.data: /etc is not below /home or /tmp"),
        (format!("{here}/../../etc:/data"), "which is /etc, is not below /home or /tmp"),
        (format!("{here}/out:/data"), "which is /etc, is not below /home or /tmp"),
        ("./missing:/data".to_owned(), "missing: No such file or directory"),
        ("./:/dev/shm/x".to_owned(), "nothing can be mounted on or below /dev"),
        ("./:/.karapace".to_owned(), "nothing can be mounted on or below /.karapace"),
        ("../../dev/null:/data".to_owned(), "/dev/null is a device"),
    ] {
        let manifest = host.manifest(&format!("[mounts]\ndata = \"{mount}\""));
        let output = run(bench, &manifest, "echo ran");
        assert_status(&output, 125);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("mounts.data: ") && said.contains(reason), "{mount}: {said}");
        assert!(output.stdout.is_empty());
    }
}

fn symlink_inside(bench: &Bench) {
    let host = Host::new(bench);
    let link = bench.root.path().join("link");
    let manifest = host.manifest("[mounts]\ndata = \"./:/link/shm\"");
    std::os::unix::fs::symlink("/dev", &link).unwrap();
    let output = run(bench, &manifest, "ls /dev/shm; echo x > /dev/shm/x; test -c /dev/null");
    fs::remove_file(&link).unwrap();
    assert_eq!(stdout(&output), "");
    assert!(!host.dir.path().join("x").exists());
}

fn homes(bench: &Bench) {
    let host = Host::new(bench);
    host.write("mine", "mine\n");
    let home = host.dir.path().to_str().unwrap();
    let run = |mode: Option<&str>, script: &str| {
        let mut command: Command = bench.program();
        command.env("HOME", home);
        if let Some(mode) = mode {
            command.args(["--home", mode]);
        }
        command.args(["--", "sh", "-c", script]).stdin(Stdio::null()).output().unwrap()
    };
    assert_eq!(stdout(&run(None, &format!("echo $HOME; ls {home} 2>/dev/null; echo x"))), "/root\nx\n");
    assert_eq!(
        stdout(&run(Some("share"), "echo $HOME; cat ~/mine; echo out > ~/out")),
        format!("{home}\nmine\n")
    );
    assert_eq!(fs::read_to_string(host.dir.path().join("out")).unwrap(), "out\n");
    let script = "cat ~/mine; (echo no > ~/no) 2>/dev/null || echo refused";
    assert_eq!(stdout(&run(Some("ro"), script)), "mine\nrefused\n");
    assert!(!host.dir.path().join("no").exists());
}

fn hosts(bench: &Bench) {
    let options = ["--hostname", "dev-box"];
    let look = |script| stdout(&bench.run(&options, ["sh", "-c", script]));
    let added = "127.0.1.1\tdev-box\n";
    assert_eq!(look("cat /etc/hosts"), format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n{added}"));
    bench.root.write("etc/hosts", "192.0.2.1 other\n");
    assert_eq!(
        look("cat /etc/hosts; echo 192.0.2.2 more >> /etc/hosts; cat /etc/hosts; ls -a /dev"),
        format!("192.0.2.1 other\n{added}192.0.2.1 other\n{added}192.0.2.2 more\n{}", look("ls -a /dev"))
    );
    let path = bench.root.path().join("etc/hosts");
    assert_eq!(fs::read_to_string(&path).unwrap(), "192.0.2.1 other\n", "the environment's own is untouched");
    fs::remove_file(path).unwrap();
}

fn runtime_dir(bench: &Bench) {
    let script = "stat -c '%a %u %g' $XDG_RUNTIME_DIR; echo x > $XDG_RUNTIME_DIR/x; ls -A $XDG_RUNTIME_DIR";
    assert_eq!(stdout(&bench.sh(script)), "700 0 0\nx\n");
    let output = stdout(&bench.run(&["--user", "ana"], ["sh", "-c", script]));
    assert_eq!(output, "700 1000 1001\nx\n");
}

fn network(bench: &Bench) {
    let host = Host::new(bench);
    let isolated = host.manifest("[runtime]\nnetwork_isolation = true");
    // The flags of an interface: 1 is up. Routes: a heading, and nothing below it.
    let script = "ls /proc/self/net/dev_mcast >/dev/null; wc -l < /proc/self/net/route; \
                  while read -r name rest; do case $name in *:*) echo $name;; esac; done < /proc/self/net/dev; \
                  while read -r address _ _ _ flags name; do echo $address $name; done < /proc/self/net/if_inet6";
    let output = stdout(&run(bench, &isolated, script));
    let up = "00000000000000000000000000000001 lo\n";
    assert!(output == format!("1\nlo:\n{up}") || output == format!("0\nlo:\n{up}"), "{output}");
    let own = |options: &[&str]| stdout(&bench.run(options, ["readlink", "/proc/self/ns/net"]));
    let outside = fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(own(&[]).trim(), outside.to_str().unwrap());
    assert_ne!(own(&["--manifest", &isolated]).trim(), outside.to_str().unwrap());
}

fn variables(bench: &Bench) {
    for name in ["SSH_AUTH_SOCK", "GPG_AGENT_INFO", "AWS_SECRET_ACCESS_KEY", "DOCKER_HOST"] {
        let output = bench.run(&["--env", &format!("{name}=x")], ["true"]);
        assert_status(&output, 125);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&format!("variable {name}: never passed on")), "{said}");
    }
    // Under another name nobody can tell.
    assert_eq!(stdout(&bench.run(&["--env", "X=1"], ["sh", "-c", "echo $X"])), "1\n");
    if bench.who == Who::User {
        assert_eq!(stdout(&bench.run(&[], ["env", "DOCKER_HOST=x", "sh", "-c", "echo $DOCKER_HOST"])), "x\n");
    }
}

fn denied(bench: &Bench) {
    bench.root.install_program();
    let call = |options: &[&str], number: i64, first: i64, second: i64| {
        let numbers = [number, first, second].map(|n| n.to_string());
        let [number, first, second] = &numbers;
        stdout(&bench.run(options, ["runtime", "call", number, first, second])).trim().to_owned()
    };
    let user_namespace = i64::from(libc::CLONE_NEWUSER);
    for (number, first, second, with, without) in [
        (libc::SYS_keyctl, 0, -3, "EPERM", "OK"),
        (libc::SYS_set_mempolicy, 0, 0, "EPERM", "OK"),
        (libc::SYS_ioctl, 0, libc::TIOCSTI as i64, "EPERM", "ENOTTY"),
        (libc::SYS_ioctl, 0, libc::TIOCGWINSZ as i64, "ENOTTY", "ENOTTY"),
        (libc::SYS_unshare, user_namespace, 0, "OK", "OK"),
    ] {
        assert_eq!(call(&[], number, first, second), with, "{number}");
        assert_eq!(call(&["--privileged"], number, first, second), without, "{number}");
    }
    #[cfg(target_arch = "x86_64")]
    assert_eq!(call(&[], 0x4000_0000 + libc::SYS_getpid, 0, 0), "ENOSYS");
}

fn privileges(bench: &Bench) {
    let status = |options: &[&str]| {
        let text = stdout(&bench.run(options, ["cat", "/proc/self/status"]));
        let value =
            |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
        (value("NoNewPrivs:"), value("Seccomp:"))
    };
    let bound = if bench.who == Who::User { "1" } else { "0" };
    assert_eq!(status(&[]), (bound.to_owned(), "2".to_owned()));
    assert_eq!(status(&["--user", "ana"]), (bound.to_owned(), "2".to_owned()));
    assert_eq!(status(&["--privileged"]), ("0".to_owned(), "0".to_owned()));
}

fn desktop(bench: &Bench) {
    let host = Host::new(bench);
    host.write("wayland-9", "");
    host.write("bus", "");
    host.write("pipewire-0", "");
    let mode = |mode| fs::set_permissions(host.dir.path(), Permissions::from_mode(mode)).unwrap();
    let run = |sections: &str| {
        let manifest = host.manifest(sections);
        let mut command = bench.program();
        command.env("XDG_RUNTIME_DIR", host.dir.path()).env("WAYLAND_DISPLAY", "wayland-9");
        command.args(["--manifest", &manifest, "--", "sh", "-c"]);
        command
            .arg("ls $XDG_RUNTIME_DIR; echo $WAYLAND_DISPLAY $DBUS_SESSION_BUS_ADDRESS")
            .stdin(Stdio::null());
        stdout(&command.output().unwrap())
    };
    // What others may write to is not used.
    mode(0o777);
    assert_eq!(run("[hardware]\naudio = true"), "\n");
    mode(0o700);
    assert_eq!(run(""), "\n");
    assert_eq!(run("[gui]\napps = [\"x\"]"), "bus\nwayland-9\nwayland-9 unix:path=/dev/run/bus\n");
    assert_eq!(run("[hardware]\naudio = true\ngpu = true"), "pipewire-0\n\n");
}
