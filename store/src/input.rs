//! Opens files that a user names or an image contains: images, manifests, lock files. Opening never blocks
//! and never touches a device.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How often a path is resolved again when the kernel reports a change during resolution.
const TRIES: u32 = 64;

/// Opens a regular file or a directory for reading, following symbolic links.
///
/// # Errors
/// Those of the system. Any other type of file could block the caller forever (a FIFO) or act when opened (a
/// device): the error says what it is, and what to use instead.
pub fn open(path: &Path) -> io::Result<File> {
    reopen(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens the file of an `O_PATH` descriptor for reading, like [`open`]: it cannot be replaced meanwhile.
///
/// # Errors
/// Those of [`open`].
pub fn reopen(found: OwnedFd) -> io::Result<File> {
    let reason = match FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) {
        FileType::RegularFile | FileType::Directory => {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            return Ok(rustix::fs::open(by_descriptor(&found), flags, Mode::empty())?.into());
        }
        FileType::Fifo => "it is a FIFO (a named pipe): write its output to a file, and give that file",
        FileType::Socket => "it is a socket: give a file or a directory",
        FileType::CharacterDevice => "it is a character device: give a file or a directory",
        FileType::BlockDevice => "it is a block device: mount it, and give the directory",
        _ => "it is neither a file nor a directory",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

/// Opens a path relative to a directory, like openat2. The kernel gives up on a path with `..` (`EAGAIN`)
/// when anything is renamed meanwhile, anywhere; then the path is resolved again.
///
/// # Errors
/// Those of the system.
pub fn open_in(
    dir: &impl AsFd,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let mut tries = 0;
    loop {
        tries += 1;
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if tries < TRIES => {}
            other => return other,
        }
    }
}

/// A path that leads to the file of a descriptor.
pub fn by_descriptor(fd: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// Reads a text file written by a user, of at most `most` bytes.
///
/// # Errors
/// Those of [`open`]; also for a file that is longer or not UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    // Checked first, because truncated text may end within a character.
    if bytes.len() as u64 > most {
        let reason = format!("it has more than {most} bytes, the limit for such a file");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    String::from_utf8(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("it is not UTF-8 text: {error}")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::{TryRecvError, channel};
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_not_a_file_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let here = |name: &str| dir.path().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, here("fifo"), 0o600.into()).unwrap();
        symlink("fifo", here("link")).unwrap();
        symlink("loop", here("loop")).unwrap();
        let _socket = UnixListener::bind(here("socket")).unwrap();
        std::fs::write(here("file"), "text").unwrap();
        let table = [
            (here("fifo"), "FIFO"),
            (here("link"), "FIFO"),
            (here("loop"), "symbolic links"),
            (here("socket"), "socket"),
            (here("gone"), "No such file"),
            ("/dev/null".into(), "character device"),
        ];
        // If this fails, a thread may be left blocked.
        let (told, answers) = channel();
        std::thread::spawn(move || {
            for (path, words) in table {
                let both = [open(&path).map(drop), read_text(&path, 10).map(drop)];
                told.send((both.map(|result| result.unwrap_err().to_string()), words)).unwrap();
            }
        });
        for _ in 0..6 {
            let (errors, words) = answers.recv_timeout(Duration::from_secs(20)).unwrap();
            assert!(errors.iter().all(|error| error.contains(words)), "{words}: {errors:?}");
        }
        assert!(open(dir.path()).unwrap().metadata().unwrap().is_dir());
        assert_eq!(read_text(&here("file"), 4).unwrap(), "text");
        assert!(read_text(&here("file"), 3).unwrap_err().to_string().contains("more than 3 bytes"));
    }

    #[test]
    fn a_text_that_is_too_long_is_not_reported_as_invalid_utf8() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "123é").unwrap();
        let error = |most| read_text(&file, most).unwrap_err().to_string();
        assert!(error(3).contains("more than 3 bytes"), "{}", error(3));
        std::fs::write(&file, b"123\xc3").unwrap();
        assert!(error(4).contains("not UTF-8"), "{}", error(4));
    }

    #[test]
    fn renames_meanwhile_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(&one, "").unwrap();
        let root = open(dir.path()).unwrap();
        let (ended, goes_on) = channel::<()>();
        let renames = std::thread::spawn(move || {
            while goes_on.try_recv() == Err(TryRecvError::Empty) {
                std::fs::rename(&one, &two).unwrap();
                std::fs::rename(&two, &one).unwrap();
            }
        });
        let path = PathBuf::from("sub/../".repeat(20));
        for _ in 0..20_000 {
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            open_in(&root, &path, OFlags::PATH, Mode::empty(), resolve).unwrap();
        }
        drop(ended);
        renames.join().unwrap();
    }
}
