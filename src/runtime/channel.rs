//! The messages between karapace and a process inside (process 1, a monitor): one datagram each, over a
//! socket pair.
//!
//! The inside writes reports, karapace writes orders. Encoding does not allocate, because the inside must
//! not. A report that hands over namespaces carries their descriptors. When every process inside is gone,
//! karapace reads the end of the stream, and the other way round.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, send, shutdown, socketpair,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Largest message, in bytes; a longer path is truncated.
const MESSAGE_MAX: usize = 4096 + 128;

/// Most descriptors that one message carries.
pub(super) const DESCRIPTORS_MAX: usize = 8;

/// The kind of [`Report::Ready`].
const READY: u8 = b'R';

/// A step that failed: "cannot {action} {path}".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure<'a> {
    pub action: &'a str,
    pub path: &'a [u8],
    pub errno: Errno,
}

/// From the inside to karapace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Report<'a> {
    /// The requested process was made; this is its id as karapace sees it.
    Started(i32),
    /// The inside is ready for commands.
    Ready,
    /// A step failed; the session can do without it.
    Skipped(Failure<'a>),
    /// A step failed; the session cannot go on.
    Failed(Failure<'a>),
    /// The directory to start in cannot be entered.
    Workdir(Errno),
    /// The program cannot be executed.
    Exec(Errno),
    /// The command was stopped by this signal.
    Stopped(i32),
    /// The terminal sent the command's group this signal.
    Keyboard(i32),
    /// The command exited with this status.
    Exited(i32),
    /// The command was killed by this signal.
    Killed(i32),
}

/// From karapace to the inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// To process 1: karapace holds the namespaces; prepare the inside. To a monitor: karapace knows it;
    /// start the command.
    Prepare,
    /// Send this signal to the command.
    Signal(i32),
    /// Send this signal to the command's process group.
    SignalGroup(i32),
    /// Continue the stopped command, in the terminal's foreground or in its background.
    Continue { foreground: bool },
}

/// A message on the wire: the kind, a number (4 bytes, little-endian), then optional text.
struct Message<'b> {
    kind: u8,
    value: i32,
    text: &'b [u8],
}

/// One end of the socket pair.
pub(super) struct Channel(OwnedFd);

impl Channel {
    pub fn pair() -> Result<(Channel, Channel), Errno> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Channel(a), Channel(b)))
    }

    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// The descriptor of this end. The other end reads the end of the stream only once all copies are closed.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Shuts down both directions, for every copy of this end.
    pub fn shut(&self) -> Result<(), Errno> {
        shutdown(self.0.as_raw_fd(), Shutdown::Both)
    }

    pub fn report(&self, report: &Report<'_>) -> Result<(), Errno> {
        let (kind, value, failure) = match report {
            Report::Started(pid) => (b'P', *pid, None),
            Report::Ready => (READY, 0, None),
            Report::Skipped(f) => (b'S', f.errno as i32, Some(f)),
            Report::Failed(f) => (b'F', f.errno as i32, Some(f)),
            Report::Workdir(errno) => (b'W', *errno as i32, None),
            Report::Exec(errno) => (b'X', *errno as i32, None),
            Report::Stopped(signal) => (b'T', *signal, None),
            Report::Keyboard(signal) => (b'K', *signal, None),
            Report::Exited(status) => (b'E', *status, None),
            Report::Killed(signal) => (b'D', *signal, None),
        };
        let mut buffer = [0; MESSAGE_MAX];
        let mut used = 0;
        let parts = failure.map_or((&[][..], &[][..]), |f| (f.action.as_bytes(), f.path));
        for part in [&[kind][..], &value.to_le_bytes(), parts.0, b"\0", parts.1] {
            let part = &part[..part.len().min(MESSAGE_MAX - used)];
            buffer[used..used + part.len()].copy_from_slice(part);
            used += part.len();
        }
        self.send(&buffer[..used])
    }

    /// Sends the report that the inside is ready, with its namespaces; E2BIG if there are more than
    /// [`DESCRIPTORS_MAX`]. Uses rustix, because nix would allocate.
    pub fn report_ready(&self, namespaces: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !namespaces.is_empty() && !control.push(SendAncillaryMessage::ScmRights(namespaces)) {
            return Err(Errno::E2BIG);
        }
        let message = [READY, 0, 0, 0, 0];
        sendmsg(&self.0, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL)
            .map(drop)
            .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
    }

    /// Like [`Channel::next_report`], and adds the descriptors that came with it to `descriptors`.
    pub fn next_report_with<'b>(
        &self,
        buffer: &'b mut MessageBuffer,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<Option<Report<'b>>, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let length = loop {
            let into = &mut [IoSliceMut::new(&mut buffer.0)];
            match recvmsg(&self.0, into, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => break 0,
                Err(errno) => return Err(Errno::from_raw(errno.raw_os_error())),
                Ok(received) => break received.bytes,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        Message::parse(&buffer.0[..length])?.map(Message::report).transpose()
    }

    pub fn order(&self, order: Order) -> Result<(), Errno> {
        let (kind, value) = match order {
            Order::Prepare => (b'P', 0),
            Order::Signal(signal) => (b'S', signal),
            Order::SignalGroup(signal) => (b'G', signal),
            Order::Continue { foreground } => (b'C', i32::from(foreground)),
        };
        let [a, b, c, d] = value.to_le_bytes();
        self.send(&[kind, a, b, c, d])
    }

    /// The next report, borrowed from `buffer`; `None` at the end of the stream.
    pub fn next_report<'b>(&self, buffer: &'b mut MessageBuffer) -> Result<Option<Report<'b>>, Errno> {
        self.receive(buffer)?.map(Message::report).transpose()
    }

    /// The next order; `None` at the end of the stream.
    pub fn next_order(&self, buffer: &mut MessageBuffer) -> Result<Option<Order>, Errno> {
        let Some(Message { kind, value, .. }) = self.receive(buffer)? else { return Ok(None) };
        match kind {
            b'P' => Ok(Some(Order::Prepare)),
            b'S' => Ok(Some(Order::Signal(value))),
            b'G' => Ok(Some(Order::SignalGroup(value))),
            b'C' => Ok(Some(Order::Continue { foreground: value != 0 })),
            _ => Err(Errno::EBADMSG),
        }
    }

    fn send(&self, message: &[u8]) -> Result<(), Errno> {
        send(self.0.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL).map(drop)
    }

    fn receive<'b>(&self, buffer: &'b mut MessageBuffer) -> Result<Option<Message<'b>>, Errno> {
        let length = loop {
            match recv(self.0.as_raw_fd(), &mut buffer.0, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) | Ok(0) => return Ok(None),
                other => break other?,
            }
        };
        Message::parse(&buffer.0[..length])
    }
}

impl<'b> Message<'b> {
    /// Parses a message; `None` for no bytes at all, which is the end of the stream. EBADMSG if it is too
    /// short.
    fn parse(bytes: &'b [u8]) -> Result<Option<Message<'b>>, Errno> {
        match bytes {
            [] => Ok(None),
            [kind, a, b, c, d, text @ ..] => {
                Ok(Some(Message { kind: *kind, value: i32::from_le_bytes([*a, *b, *c, *d]), text }))
            }
            _ => Err(Errno::EBADMSG),
        }
    }

    fn report(self) -> Result<Report<'b>, Errno> {
        let Message { kind, value, text } = self;
        let errno = Errno::from_raw(value);
        let failure = || {
            let cut = text.iter().position(|b| *b == 0).unwrap_or(text.len());
            let action = std::str::from_utf8(&text[..cut]).unwrap_or("do");
            Failure { action, path: text.get(cut + 1..).unwrap_or_default(), errno }
        };
        Ok(match kind {
            b'P' => Report::Started(value),
            READY => Report::Ready,
            b'S' => Report::Skipped(failure()),
            b'F' => Report::Failed(failure()),
            b'W' => Report::Workdir(errno),
            b'X' => Report::Exec(errno),
            b'T' => Report::Stopped(value),
            b'K' => Report::Keyboard(value),
            b'E' => Report::Exited(value),
            b'D' => Report::Killed(value),
            _ => return Err(Errno::EBADMSG),
        })
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Room for one message.
pub(super) struct MessageBuffer([u8; MESSAGE_MAX]);

impl MessageBuffer {
    pub fn new() -> MessageBuffer {
        MessageBuffer([0; MESSAGE_MAX])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_as_they_went_in() {
        let (inside, outside) = Channel::pair().unwrap();
        let mut buffer = MessageBuffer::new();
        let failure = Failure { action: "mount", path: b"/dev/\xff", errno: Errno::EROFS };
        for report in [
            Report::Started(4_000_000),
            Report::Ready,
            Report::Skipped(failure),
            Report::Failed(Failure { path: b"", ..failure }),
            Report::Workdir(Errno::ENOENT),
            Report::Exec(Errno::EACCES),
            Report::Stopped(20),
            Report::Keyboard(2),
            Report::Exited(143),
            Report::Killed(9),
        ] {
            inside.report(&report).unwrap();
            assert_eq!(outside.next_report(&mut buffer).unwrap(), Some(report));
        }
        for order in [
            Order::Prepare,
            Order::Signal(15),
            Order::SignalGroup(2),
            Order::Continue { foreground: true },
            Order::Continue { foreground: false },
        ] {
            outside.order(order).unwrap();
            assert_eq!(inside.next_order(&mut buffer).unwrap(), Some(order));
        }
        let mut descriptors = Vec::new();
        inside.report_ready(&[outside.as_fd(), inside.as_fd()]).unwrap();
        let report = outside.next_report_with(&mut buffer, &mut descriptors).unwrap();
        assert_eq!((report, descriptors.len()), (Some(Report::Ready), 2));
        drop((inside, descriptors));
        assert_eq!(outside.next_report(&mut buffer).unwrap(), None);
        assert_eq!(outside.next_report_with(&mut buffer, &mut Vec::new()).unwrap(), None);
    }

    #[test]
    fn a_long_path_is_cut() {
        let (inside, outside) = Channel::pair().unwrap();
        let mut buffer = MessageBuffer::new();
        let path = vec![b'x'; 10_000];
        inside.report(&Report::Failed(Failure { action: "mount", path: &path, errno: Errno::EIO })).unwrap();
        match outside.next_report(&mut buffer).unwrap() {
            Some(Report::Failed(f)) => assert!(f.action == "mount" && f.path.len() > 4096),
            other => panic!("{other:?}"),
        }
    }
}
