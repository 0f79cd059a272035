//! The OCI bundle of one command, written inside by the process that becomes the runtime.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, mkdir, unlink, unlinkat};

use super::init::fail;
use super::lookup::open_below;
use super::mounts::{check_served, write_new};
use crate::runtime::channel::Report;

/// What a runtime is given, and what is checked before it starts: its own failures cannot be told from
/// failures of the command.
pub(in crate::runtime) struct Bundle {
    /// Directories to make, parents first.
    pub(in crate::runtime) directories: Vec<CString>,
    /// Files to write in them: path and content.
    pub(in crate::runtime) files: Vec<(CString, Vec<u8>)>,
    /// The environment's directory.
    pub(in crate::runtime) root: CString,
    /// Whether `root` must be a FUSE mount.
    pub(in crate::runtime) served: bool,
    /// Paths inside where the program may be. If empty, no program is looked for.
    pub(in crate::runtime) programs: Vec<CString>,
    /// The directory to start in, if it must exist in the environment.
    pub(in crate::runtime) workdir: Option<CString>,
}

impl Bundle {
    /// Looks for the program and the working directory as the runtime will, then writes the files. The
    /// directory must be checked here because the runtime would create a missing one.
    pub(in crate::runtime) fn prepare(&self) -> Result<(), Report<'static>> {
        let failed = |action| move |errno| Report::Failed(fail(action)(errno));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(self.root.as_c_str(), flags, Mode::empty()).map_err(failed("open the root of"))?;
        check_served(&root, self.served).map_err(failed("open the root of"))?;
        if let Some(workdir) = &self.workdir {
            open_below(&root, workdir.as_c_str(), flags).map_err(Report::Workdir)?;
        }
        self.find_program(&root).map_err(Report::Exec)?;
        let write = || {
            self.directories
                .iter()
                .try_for_each(|dir| mkdir(dir.as_c_str(), Mode::from_bits_truncate(0o700)))?;
            self.files.iter().try_for_each(|(path, text)| write_new(path, text))
        };
        write().map_err(failed("write the bundle of"))
    }

    /// As in a shell, a program that exists but cannot be executed counts only if no other is found.
    fn find_program(&self, root: &OwnedFd) -> Result<(), Errno> {
        let mut result = if self.programs.is_empty() { Ok(()) } else { Err(Errno::ENOENT) };
        for program in &self.programs {
            match is_program(root, program) {
                Ok(true) => return Ok(()),
                Ok(false) => result = Err(Errno::EACCES),
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(errno) => result = Err(errno),
            }
        }
        result
    }

    /// Removes what was written. State that a killed runtime left behind stays until the inside ends.
    pub(in crate::runtime) fn remove(&self) {
        for (path, _) in &self.files {
            unlink(path.as_c_str()).ok();
        }
        for dir in self.directories.iter().rev() {
            unlinkat(AT_FDCWD, dir.as_c_str(), UnlinkatFlags::RemoveDir).ok();
        }
    }
}

fn is_program(root: &OwnedFd, path: &CStr) -> Result<bool, Errno> {
    let found = fstat(open_below(root, path, OFlag::O_PATH)?)?;
    Ok(found.st_mode & libc::S_IFMT == libc::S_IFREG && found.st_mode & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn where_programs_are_looked_up_and_what_remains() {
        let scratch = tempfile::tempdir().unwrap();
        let (root, own) = (scratch.path().join("root"), scratch.path().join("bundle"));
        fs::create_dir_all(root.join("bin")).unwrap();
        for (name, mode) in [("good", 0o755), ("bad", 0o644)] {
            fs::write(root.join("bin").join(name), "").unwrap();
            fs::set_permissions(root.join("bin").join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        symlink("/bin/good", root.join("link")).unwrap();
        symlink("/etc", root.join("out")).unwrap();
        let c = |bytes: &[u8]| CString::new(bytes).unwrap();
        let prepare = |programs: &[&str], workdir: Option<&str>| {
            let bundle = Bundle {
                directories: vec![c(own.as_os_str().as_bytes())],
                files: vec![(c(own.join("config.json").as_os_str().as_bytes()), b"{}".to_vec())],
                root: c(root.as_os_str().as_bytes()),
                served: false,
                programs: programs.iter().map(|p| c(p.as_bytes())).collect(),
                workdir: workdir.map(|dir| c(dir.as_bytes())),
            };
            let done = bundle.prepare();
            assert_eq!(own.join("config.json").exists(), done.is_ok());
            bundle.remove();
            assert!(!own.exists());
            done.err()
        };
        assert_eq!(prepare(&["/usr/bin/good", "/bin/good"], Some("/bin")), None);
        assert_eq!(prepare(&["/link"], None), None);
        assert_eq!(prepare(&[], None), None);
        assert_eq!(prepare(&["/bin/none", "/bin/good/x"], None), Some(Report::Exec(Errno::ENOENT)));
        assert_eq!(prepare(&["/bin/bad", "/none"], None), Some(Report::Exec(Errno::EACCES)));
        assert_eq!(prepare(&["/bin"], None), Some(Report::Exec(Errno::EACCES)));
        assert_eq!(prepare(&["/link"], Some("/none")), Some(Report::Workdir(Errno::ENOENT)));
        assert_eq!(prepare(&["/link"], Some("/bin/good")), Some(Report::Workdir(Errno::ENOTDIR)));
        // An absolute symlink resolves in the environment, not on the host.
        assert_eq!(prepare(&["/link"], Some("/out")), Some(Report::Workdir(Errno::ENOENT)));
    }
}
