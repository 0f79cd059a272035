//! Opening files that others name or make: images, manifests, lock files. Nobody is waited for, and no device is touched.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};

/// Opens a regular file or a directory for reading, through symbolic links.
///
/// # Errors
/// What the system says. Of anything else, which could keep who opens it waiting for ever (a FIFO) or do something when it is
/// opened (a device): what it is, and what to give instead.
pub fn open(path: &Path) -> io::Result<File> {
    reopen(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens for reading what an O_PATH descriptor stands for, as [`open`] does: it can no longer be exchanged for something else.
pub(crate) fn reopen(found: OwnedFd) -> io::Result<File> {
    let reason = match FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) {
        FileType::RegularFile | FileType::Directory => {
            let own = format!("/proc/self/fd/{}", found.as_raw_fd());
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            return Ok(rustix::fs::open(own, flags, Mode::empty())?.into());
        }
        FileType::Fifo => "it is a FIFO (a named pipe): put what it gives into a file, and give that",
        FileType::Socket => "it is a socket: give a file or a directory",
        FileType::CharacterDevice => "it is a character device: give a file or a directory",
        FileType::BlockDevice => "it is a block device: mount what is on it, and give the directory",
        _ => "it is neither a file nor a directory",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

/// The text of a file that a person wrote, of at most `most` bytes.
///
/// # Errors
/// As [`open`], and for a file that is longer or no UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let mut text = String::new();
    open(path)?.take(most + 1).read_to_string(&mut text)?;
    if text.len() as u64 > most {
        let reason = format!("it has more than the {most} bytes that are read of such a file");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_no_file_is_told_and_not_waited_for() {
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
        // A thread may be left waiting where this fails.
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
        assert!(read_text(&here("file"), 3).unwrap_err().to_string().contains("more than the 3 bytes"));
    }
}
