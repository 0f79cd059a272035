//! What a command finds inside.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::{Bench, Test, Who, assert_status, stdout};

pub const TESTS: &[Test] = &[
    ("missing mount points are made", mount_points_are_made),
    ("ids, host name and process 1", identity),
    ("only chosen variables are passed", variables),
    ("devices work", devices),
    ("/sys is read-only", sys_is_read_only),
    ("chosen user", chosen_user),
    ("directory to start in", workdir),
    ("login shell", login_shell),
    ("host's resolv.conf over any kind of file", resolv_conf),
    ("no resolv.conf where there is no /etc", no_etc),
    ("whatever stands where a session has files of its own", odd_files),
    ("no /proc, /sys or /dev to be mounted on", odd_directories),
    ("control directory is masked", mask),
    ("symlinks lead nowhere outside", symlinks),
    ("nothing is mounted on the host", host_is_untouched),
    ("a session inside a session", nested),
];

fn mount_points_are_made(bench: &Bench) {
    for dir in ["proc", "sys", "dev"] {
        // Of the first session; only this test removes them.
        fs::remove_dir(bench.root.path().join(dir)).unwrap_or_default();
    }
    assert_eq!(
        stdout(&bench.sh("ls -d /proc/self /sys/class /dev/null")),
        "/dev/null\n/proc/self\n/sys/class\n"
    );
    for dir in ["proc", "sys", "dev"] {
        assert_eq!(fs::read_dir(bench.root.path().join(dir)).unwrap().count(), 0, "{dir}");
    }
}

fn identity(bench: &Bench) {
    let options = ["--hostname", "dev-box"];
    let script = "id -u; id -g; hostname; cat /proc/1/comm; ls /proc | while read p; do [ -d /proc/$p/task ] && echo $p; done | wc -w; pwd; readlink /proc/self/root";
    let output = stdout(&bench.run(&options, ["sh", "-c", script]));
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines[..4], ["0", "0", "dev-box", "karapace-init"]);
    // init, the shell, ls, the loop, wc, and "self" with "thread-self"; never the host's.
    assert!(lines[4].parse::<u32>().unwrap() <= 8, "{output}");
    assert_eq!(lines[5..], ["/", "/"]);
    let host = nix::unistd::gethostname().unwrap();
    assert_ne!(host, "dev-box");
}

fn variables(bench: &Bench) {
    let mut command = bench.program();
    let secrets = ["SSH_AUTH_SOCK", "GPG_AGENT_INFO", "AWS_SECRET_ACCESS_KEY", "DOCKER_HOST", "LD_PRELOAD_X"];
    command
        .envs(secrets.map(|key| (key, "secret")))
        .env("LANG", "C.UTF-8")
        .env("XDG_RUNTIME_DIR", "/run/user/7");
    command.args(["--env", "A=b=c", "--", "env"]).stdin(Stdio::null());
    let output = stdout(&command.output().unwrap());
    let mut lines: Vec<_> = output.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "A=b=c",
            "HOME=/root",
            "LANG=C.UTF-8",
            "LOGNAME=root",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "SHELL=/bin/sh",
            "TERM=dumb",
            "USER=root",
            "XDG_RUNTIME_DIR=/dev/run",
        ]
    );
}

fn devices(bench: &Bench) {
    let script = "cd /dev; echo x > null; head -c 3 zero | wc -c; head -c 3 urandom | wc -c; \
                  (echo > full) 2>/dev/null || echo full; ls shm | wc -l; touch shm/x; readlink ptmx fd stdin; \
                  ls -d *; stat -c %a shm pts/ptmx; echo via-stdout | cat /dev/stdin; \
                  (echo via-stdout > /dev/stdout) | cat";
    let lines = "3\n3\nfull\n0\npts/ptmx\n/proc/self/fd\n/proc/self/fd/0\n\
                 fd\nfull\nnull\nptmx\npts\nrandom\nrun\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n\
                 1777\n666\nvia-stdout\nvia-stdout\n";
    assert_eq!(stdout(&bench.sh(script)), lines);
}

fn sys_is_read_only(bench: &Bench) {
    let options = stdout(&bench.sh("while read -r _ _ _ _ at opts _; do case $at in /sys*) echo $opts;; esac; done < /proc/self/mountinfo"));
    assert!(!options.is_empty() && options.lines().all(|o| o.starts_with("ro,")), "{options}");
}

fn chosen_user(bench: &Bench) {
    let ids = |user| {
        stdout(&bench.run(&["--user", user], ["sh", "-c", "id -u; id -g; id -G; echo $HOME $USER $SHELL"]))
    };
    let ana = ids("ana");
    if bench.who == Who::Root {
        assert_eq!(ana, "1000\n1001\n1001 29\n/home/ana ana /bin/bash\n");
        assert_eq!(ids("ana:audio"), "1000\n29\n29\n/home/ana ana /bin/bash\n");
        let output = bench.run(&["--user", "ana"], ["touch", "/etc/passwd"]);
        assert_status(&output, 1);
    } else {
        // One id: the groups of ana cannot exist.
        assert!(ana.starts_with("1000\n1001\n1001") && ana.ends_with("/home/ana ana /bin/bash\n"), "{ana}");
    }
    assert!(ids("4242:77").starts_with("4242\n77\n77"));
    let output = bench.run(&["--user", "nobody-here"], ["true"]);
    assert_status(&output, 125);
    assert!(String::from_utf8_lossy(&output.stderr).contains("nobody-here"));
}

fn workdir(bench: &Bench) {
    assert_eq!(stdout(&bench.run(&["--workdir", "/home/ana"], ["sh", "-c", "pwd"])), "/home/ana\n");
    let output = bench.run(&["--workdir", "/missing"], ["sh", "-c", "pwd"]);
    assert_status(&output, 125);
    assert!(String::from_utf8_lossy(&output.stderr).contains("/missing"));
}

fn login_shell(bench: &Bench) {
    let shell = |user| {
        let mut command = bench.program();
        command.args(["--user", user, "--"]).stdin(script(bench, "echo $0; pwd; exit 3\n"));
        let output = command.output().unwrap();
        assert_status(&output, 3);
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(shell("root"), "-sh\n/root\n");
    assert_eq!(shell("ana"), "-bash\n/home/ana\n");
}

fn script(bench: &Bench, text: &str) -> Stdio {
    bench.root.write("tmp/script", text);
    fs::File::open(bench.root.path().join("tmp/script")).unwrap().into()
}

fn resolv_conf(bench: &Bench) {
    let Ok(host) = fs::read_to_string("/etc/resolv.conf") else {
        panic!("this machine has no /etc/resolv.conf to compare with")
    };
    let path = bench.root.path().join("etc/resolv.conf");
    let look = "cat /etc/resolv.conf; echo; (echo bad >> /etc/resolv.conf) 2>/dev/null || echo refused";
    let expected = format!("{host}\nrefused\n");
    let remove = || fs::remove_file(&path).unwrap_or_default();
    remove();
    assert_eq!(stdout(&bench.sh(look)), expected, "missing");
    assert_eq!(fs::read(&path).unwrap(), b"", "an empty file to mount over");
    bench.root.write("etc/resolv.conf", "nameserver 192.0.2.1\n");
    assert_eq!(stdout(&bench.sh(look)), expected, "a file");
    assert_eq!(fs::read(&path).unwrap(), b"nameserver 192.0.2.1\n");
    for target in ["../run/systemd/resolve/stub-resolv.conf", "/etc/passwd", "/proc/self/nothing"] {
        remove();
        symlink(target, &path).unwrap();
        assert_eq!(stdout(&bench.sh(look)), expected, "a symlink to {target}");
        assert_eq!(fs::read_link(&path).unwrap().to_str(), Some(target));
    }
    remove();
    assert_eq!(fs::read_to_string("/etc/resolv.conf").unwrap(), host);
}

fn no_etc(bench: &Bench) {
    let (etc, aside) = (bench.root.path().join("etc"), bench.root.path().join("etc-aside"));
    fs::rename(&etc, &aside).unwrap();
    let output = bench.sh("id -u; ls -d /etc");
    fs::rename(&aside, &etc).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n");
}

/// What a shell says inside, within half a minute.
fn soon(bench: &Bench, script: &str) -> Output {
    let mut command = bench.program();
    command
        .args(["--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

fn odd_files(bench: &Bench) {
    let etc = bench.root.path().join("etc");
    for name in ["hosts", "resolv.conf", "passwd", "group"] {
        let (path, aside) = (etc.join(name), etc.join("aside"));
        let was_there = fs::rename(&path, &aside).is_ok();
        for kind in ["a directory", "a FIFO", "a loop", "a dangling link", "a link to a FIFO", "too long"] {
            match kind {
                "a directory" => fs::create_dir(&path).unwrap(),
                "a FIFO" => mkfifo(&path, Mode::from_bits_truncate(0o644)).unwrap(),
                "a loop" => symlink(name, &path).unwrap(),
                "a dangling link" => symlink("/no/such/file", &path).unwrap(),
                "a link to a FIFO" => {
                    mkfifo(&etc.join("fifo"), Mode::from_bits_truncate(0o644)).unwrap();
                    symlink("fifo", &path).unwrap();
                }
                _ => fs::File::create(&path).unwrap().set_len(20 << 20).unwrap(),
            }
            let look =
                "id -u; [ -f /etc/hosts ] && cat /etc/hosts; [ -f /etc/resolv.conf ] && echo resolv.conf";
            let output = soon(bench, look);
            let what = format!("{name} is {kind}");
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.starts_with("0\n"), "{what}: {said} {}", String::from_utf8_lossy(&output.stderr));
            // Only a directory cannot be covered.
            let missing = |file: &str| name == file && kind == "a directory";
            assert_eq!(said.contains("127.0.1.1\tinside"), !missing("hosts"), "{what}: {said}");
            assert_eq!(said.contains("resolv.conf"), !missing("resolv.conf"), "{what}: {said}");
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
            fs::remove_file(etc.join("fifo")).unwrap_or_default();
        }
        if was_there {
            fs::rename(&aside, &path).unwrap();
        }
    }
    // The point that was made for it stays, as after any session.
    fs::remove_file(etc.join("resolv.conf")).unwrap_or_default();
}

fn odd_directories(bench: &Bench) {
    // Those of the first session, of whoever runs them.
    stdout(&bench.sh("true"));
    let root = bench.root.path();
    let names =
        || -> Vec<_> { fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect() };
    for name in ["proc", "sys", "dev"] {
        let (path, aside) = (root.join(name), root.join("tmp/aside"));
        fs::rename(&path, &aside).unwrap();
        let mut results = Vec::new();
        for target in [None, Some("/"), Some("tmp"), Some("/no/such"), Some(name)] {
            match target {
                None => fs::write(&path, "").unwrap(),
                Some(target) => symlink(target, &path).unwrap(),
            }
            let before = names();
            results.push((target, soon(bench, "true"), before, names()));
            fs::remove_file(&path).unwrap();
        }
        fs::rename(&aside, &path).unwrap();
        for (target, output, before, after) in results {
            assert_status(&output, 125);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains(&format!("cannot mount /{name}")), "{target:?}: {said}");
            assert!(said.contains("has no directory there: mount it"), "{target:?}: {said}");
            assert_eq!(after, before, "{name} to {target:?} leaves something");
        }
    }
}

fn mask(bench: &Bench) {
    let control = bench.root.path().join(".karapace");
    assert_eq!(stdout(&bench.run(&["--mask"], ["ls", "-A", "/tmp"])), "script\n");
    assert!(!control.exists(), "nothing to hide, nothing made");
    fs::create_dir(&control).unwrap();
    fs::write(control.join("ctl"), "").unwrap();
    assert_eq!(stdout(&bench.run(&[], ["ls", "/.karapace"])), "ctl\n");
    let script = "ls -A /.karapace; touch /.karapace/ctl 2>/dev/null || echo refused";
    assert_eq!(stdout(&bench.run(&["--mask"], ["sh", "-c", script])), "refused\n");
    fs::remove_dir_all(&control).unwrap();
}

fn symlinks(bench: &Bench) {
    let root = bench.root.path();
    let outside = root.parent().unwrap().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("passwd"), "evil:x:0:0::/:/bin/sh\n").unwrap();
    let (passwd, aside) = (root.join("etc/passwd"), root.join("etc/passwd-aside"));
    fs::rename(&passwd, &aside).unwrap();
    let mut results = Vec::new();
    for target in [outside.join("passwd"), "../../outside/passwd".into()] {
        symlink(target, &passwd).unwrap();
        results.push(bench.run(&["--user", "evil"], ["true"]));
        fs::remove_file(&passwd).unwrap();
    }
    fs::rename(&aside, &passwd).unwrap();
    results.iter().for_each(|output| assert_status(output, 125));

    // A mount point that points outside ends inside, too.
    let shared = outside.join("dev");
    fs::create_dir_all(&shared).unwrap();
    fs::remove_dir(root.join("dev")).unwrap();
    symlink(&shared, root.join("dev")).unwrap();
    let output = bench.sh("echo $$");
    fs::remove_file(root.join("dev")).unwrap();
    assert_status(&output, 125);
    assert_eq!(fs::read_dir(&shared).unwrap().count(), 0);
}

fn host_is_untouched(bench: &Bench) {
    // But for FUSE mounts, which other tests on this machine make and sessions do not.
    let mounts = || {
        let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
        all.lines().filter(|line| !line.contains(" - fuse")).map(str::to_owned).collect::<Vec<_>>()
    };
    let (before, host) = (mounts(), nix::unistd::gethostname().unwrap());
    stdout(&bench.run(&["--hostname", "other"], ["true"]));
    // And while one runs.
    let mut child = bench.program().args(["--", "sleep", "0.3"]).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(mounts(), before);
    assert!(child.wait().unwrap().success());
    assert_eq!(mounts(), before);
    assert_eq!(nix::unistd::gethostname().unwrap(), host);
}

/// A root that is an ordinary user's one id has less to give than a real one.
fn nested(bench: &Bench) {
    bench.root.install_program();
    let output = bench.run(
        &[],
        ["runtime", "session", "/", "--hostname", "deep", "--", "sh", "-c", "id -u; hostname; exit 6"],
    );
    assert_status(&output, 6);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\ndeep\n");
}
