//! A store, and hostile things for it to take in.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::HOSTILE;

/// A directory with a home and a store, in which the environment `dev` is.
pub struct World {
    dir: tempfile::TempDir,
}

impl World {
    pub fn new() -> World {
        let world = World { dir: tempfile::tempdir().unwrap() };
        world.put("rootfs/etc/hostname", b"base\n");
        fs::create_dir(world.path("home")).unwrap();
        world.done(&["import", "rootfs", "--name", "dev"]);
        world
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn put(&self, name: impl AsRef<Path>, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut command = Command::new(env!("CARGO_BIN_EXE_karapace"));
        command.env_clear().env("PATH", path).env("HOME", self.path("home")).env("COLUMNS", "100");
        command.env("KARAPACE_STORE", self.path("store")).current_dir(self.dir.path());
        command.args(args).stdin(Stdio::null());
        command
    }

    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs what must work.
    pub fn done<S: AsRef<OsStr>>(&self, args: &[S]) {
        let output = self.run(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// All that a command prints.
    pub fn printed<S: AsRef<OsStr>>(&self, args: &[S]) -> Vec<u8> {
        let output = self.run(args);
        [output.stdout, output.stderr].concat()
    }

    /// All that a command prints where stdout and stderr are a terminal.
    pub fn on_a_terminal(&self, args: &str) -> Vec<u8> {
        let plain = self.command::<&str>(&[]);
        let mut command = Command::new("script");
        command.env_clear().envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.env("TERM", "xterm").current_dir(self.dir.path()).stdin(Stdio::null());
        let line = format!("{} {args}", env!("CARGO_BIN_EXE_karapace"));
        command.args(["-qec", &line, "/dev/null"]).output().unwrap().stdout
    }

    /// Makes `upper`, an environment with one snapshot, which adds files with names of all kinds.
    pub fn overlay(&self) {
        fs::create_dir(self.path("overlay")).unwrap();
        for name in [HOSTILE.as_bytes(), b"\xff\xfe", b"\"quoted\""] {
            self.put(Path::new("overlay").join(OsStr::from_bytes(name)), b"");
        }
        self.done(&["import", "overlay", "--onto", "dev", "--name", "upper"]);
    }

    /// An image layout in `name` whose index has these manifests.
    pub fn layout(&self, name: &str, manifests: &Value) {
        self.put(format!("{name}/oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#);
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": manifests });
        self.put(format!("{name}/index.json"), index.to_string().as_bytes());
    }

    /// Puts a blob into a layout; its descriptor.
    pub fn blob(&self, name: &str, media_type: &str, bytes: &[u8]) -> Value {
        let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        self.put(format!("{name}/blobs/sha256/{hash}"), bytes);
        serde_json::json!({ "mediaType": media_type, "digest": format!("sha256:{hash}"), "size": bytes.len() })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.run(&["umount", "--all"]);
    }
}

/// An HTTP server for `answers.len()` requests, one after the other. Gives its address.
pub fn serve(answers: Vec<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for body in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            lines.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
            let length = body.len();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
                .unwrap();
        }
    });
    address
}
