//! Images that come from standard input, a pipe or a FIFO.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::os::fd::AsFd as _;

use karapace_store::input::by_descriptor;
use karapace_store::progress::Progress;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::io::Errno;

use super::error::ImageError;

/// How `import` is told to read standard input.
pub const STDIN: &str = "-";

/// How long nobody asks whether the user wants it to stop.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Something that an archive comes out of, once.
#[derive(Debug)]
pub struct Pipe {
    input: File,
    name: String,
}

impl Pipe {
    /// What `-` means, or the path of a FIFO; `None` for any other word. A FIFO that nobody writes to yet is
    /// not waited for here.
    ///
    /// # Errors
    /// [`ImageError::Pipe`] for a standard input that no archive comes out of, with what to do.
    pub fn open(image: &str) -> Result<Option<Pipe>, ImageError> {
        if image == STDIN {
            return stdin().map(Some);
        }
        let Ok(found) = rustix::fs::open(image, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
            return Ok(None);
        };
        if !fstat(&found).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo) {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let input = rustix::fs::open(by_descriptor(&found), flags, Mode::empty());
        let input = input.map_err(|errno| ImageError::Path { path: image.into(), source: errno.into() })?;
        Ok(Some(Pipe { input: input.into(), name: image.to_owned() }))
    }

    /// How messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its bytes. Whoever reads waits for whoever writes, until `progress` wants it to stop.
    pub fn reader<'a>(&'a self, progress: &'a dyn Progress) -> impl Read + Send + 'a {
        Patient { input: &self.input, progress }
    }
}

fn stdin() -> Result<Pipe, ImageError> {
    let refuse = |reason: &str| ImageError::Pipe { reason: reason.to_owned() };
    let input = io::stdin();
    if input.is_terminal() {
        return Err(refuse(
            "it is a terminal: pipe an archive into it (docker export ID | karapace import - --name NAME), or give a path",
        ));
    }
    let input = input.as_fd().try_clone_to_owned().map_err(|error| refuse(&error.to_string()))?;
    let stat = fstat(&input).map_err(|errno| refuse(&io::Error::from(errno).to_string()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::Fifo | FileType::Socket => {}
        FileType::Directory => return Err(refuse("it is a directory: give its path")),
        _ => {
            return Err(refuse("it is a device, /dev/null perhaps: pipe an archive into it, or give a path"));
        }
    }
    Ok(Pipe { input: input.into(), name: "standard input".to_owned() })
}

/// Reads what is there; where nothing is, asks from time to time whether it is still wanted.
struct Patient<'a> {
    input: &'a File,
    progress: &'a dyn Progress,
}

impl Read for Patient<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.progress.is_cancelled() {
                return Err(io::Error::other("stopped on request"));
            }
            match poll(&mut [PollFd::new(self.input, PollFlags::IN)], Some(&TICK)) {
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(errno.into()),
            }
            match self.input.read(buf) {
                // Somebody else reads the same pipe.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }
}
