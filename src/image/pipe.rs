//! Images that come from standard input, a pipe or a FIFO.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::os::fd::AsFd as _;
use std::time::Duration;

use karapace_store::input::by_descriptor;
use karapace_store::progress::Progress;
use karapace_store::wait;
use nix::poll::PollFlags;
use rustix::fs::{FileType, Mode, OFlags, fstat};

use super::error::ImageError;

/// The argument with which `import` reads standard input.
pub const STDIN: &str = "-";

/// How often to check for cancellation while waiting for data.
const TICK: Duration = Duration::from_millis(200);

/// A source that an archive can be read from once.
#[derive(Debug)]
pub struct Pipe {
    input: File,
    name: String,
}

impl Pipe {
    /// Opens standard input for `-`, or the FIFO at the path `image`; `None` if it is neither. Does not wait
    /// for a writer of the FIFO.
    ///
    /// # Errors
    /// [`ImageError::Pipe`] if no archive can come from standard input, with what to do; [`ImageError::Path`]
    /// if the FIFO cannot be opened.
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

    /// Its name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A reader of its bytes. A read waits for data until `progress` is cancelled.
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
            return Err(refuse("it is a device, perhaps /dev/null: pipe an archive into it, or give a path"));
        }
    }
    Ok(Pipe { input: input.into(), name: "standard input".to_owned() })
}

/// Reads available data; while there is none, checks regularly for cancellation.
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
            if !wait::for_event(self.input, PollFlags::POLLIN, TICK)? {
                continue;
            }
            match self.input.read(buf) {
                // Another reader of the same pipe took the data.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }
}
