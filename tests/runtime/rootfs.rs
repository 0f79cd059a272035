//! A small root file system: the machine's own programs and the libraries they need.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAMS: [&str; 18] = [
    "sh", "bash", "cat", "id", "ls", "sleep", "hostname", "true", "head", "readlink", "stty", "env", "yes",
    "wc", "rm", "mv", "touch", "stat",
];

/// A root file system in a temporary directory, which also holds a copy of the test program that any user may
/// run.
pub struct RootFs {
    dir: tempfile::TempDir,
    owner: Option<u32>,
}

impl RootFs {
    /// `owner`: who the files belong to, if not the caller.
    pub fn build(owner: Option<u32>) -> RootFs {
        let dir =
            tempfile::Builder::new().prefix("karapace-runtime-").tempdir().expect("temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::copy(std::env::current_exe().expect("own path"), dir.path().join("runtime"))
            .expect("copy the program");
        let rootfs = RootFs { dir, owner };
        let root = rootfs.path();
        // No proc, dev, sys: the first session has to make them.
        for sub in ["etc", "tmp", "root", "home/ana", "usr/bin"] {
            fs::create_dir_all(root.join(sub)).expect("mkdir");
        }
        symlink("usr/bin", root.join("bin")).expect("symlink");
        for name in PROGRAMS {
            install(&root, name);
        }
        rootfs.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nana:x:1000:1001::/home/ana:/bin/bash\n");
        rootfs.write("etc/group", "root:x:0:\nana:x:1001:\naudio:x:29:ana\n");
        rootfs.write("plain", "not a program\n");
        if let Some(owner) = owner {
            give(&root, owner);
        }
        rootfs
    }

    /// The root directory.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A copy of this test program.
    pub fn program(&self) -> PathBuf {
        self.dir.path().join("runtime")
    }

    /// Makes this test program a program inside.
    pub fn install_program(&self) {
        let root = self.path();
        fs::copy(self.program(), root.join("usr/bin/runtime")).expect("copy the program");
        libraries(&root, &self.program());
    }

    /// Who the sessions must be run as, when not as the caller.
    pub fn owner(&self) -> Option<u32> {
        self.owner
    }

    /// Writes a file, given by its path inside without the leading slash.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path().join(path);
        fs::write(&path, text).expect("write");
        if let Some(owner) = self.owner {
            chown(&path, Some(owner), Some(owner)).expect("chown");
        }
    }
}

fn install(root: &Path, name: &str) {
    let program = ["/usr/bin", "/bin"].iter().map(|dir| Path::new(dir).join(name)).find(|p| p.exists());
    let program = program.unwrap_or_else(|| panic!("this machine has no {name}, which the tests need"));
    fs::copy(&program, root.join("usr/bin").join(name)).expect("copy a program");
    libraries(root, &program);
}

fn libraries(root: &Path, program: &Path) {
    let output = Command::new("ldd").arg(program).output().expect("run ldd");
    for word in String::from_utf8_lossy(&output.stdout).split_whitespace().filter(|w| w.starts_with('/')) {
        let target = root.join(&word[1..]);
        if !target.exists() {
            fs::create_dir_all(target.parent().expect("a directory")).expect("mkdir");
            fs::copy(word, target).expect("copy a library");
        }
    }
}

fn give(path: &Path, owner: u32) {
    std::os::unix::fs::lchown(path, Some(owner), Some(owner)).expect("chown");
    if path.symlink_metadata().expect("stat").is_dir() {
        for entry in fs::read_dir(path).expect("list") {
            give(&entry.expect("list").path(), owner);
        }
    }
}
