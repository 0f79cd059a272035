//! Reads input in a thread of its own and decompresses it; the format is detected from the content.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

use flate2::bufread::GzDecoder;

/// Size in bytes of a piece handed over, and how many pieces may be queued.
const PIECE: usize = 256 << 10;
const QUEUE: usize = 8;

/// Memory limit of the xz decoder in bytes. `xz -9` takes 65 MiB.
const XZ_MEMORY: u64 = 1 << 30;

/// How many bytes at the start identify the format.
pub(super) const MAGIC: usize = 6;

/// Whether input that begins with these bytes is not compressed.
pub(super) fn is_plain(magic: &[u8]) -> bool {
    matches!(Kind::of(magic), Kind::Plain)
}

/// A reader of the uncompressed stream. A thread of `scope` decompresses, in parallel with the caller's
/// hashing and storing; it ends with the stream, or when the reader is dropped.
pub(super) fn decompress<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    mut input: impl Read + Send + 'scope,
) -> io::Result<Box<dyn Read + Send + 'scope>> {
    let mut magic = Vec::new();
    input.by_ref().take(MAGIC as u64).read_to_end(&mut magic)?;
    let kind = Kind::of(&magic);
    let input = BufReader::with_capacity(PIECE, Cursor::new(magic).chain(input));
    let decoder: Box<dyn Read + Send + 'scope> = match kind {
        Kind::Plain => Box::new(input),
        Kind::Gzip => Box::new(Gzip { member: Some(GzDecoder::new(input)) }),
        Kind::Xz => {
            let stream =
                liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
        Kind::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
        Kind::Other(name) => {
            let what = format!("{name} archives are not supported: use .tar, .tar.gz, .tar.xz or .tar.zst");
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
    };
    let (send, receive) = sync_channel(QUEUE);
    scope.spawn(move || pump(decoder, &send));
    Ok(Box::new(Pieces { receive, piece: Cursor::default(), ended: false, failed: None }))
}

enum Kind {
    Plain,
    Gzip,
    Xz,
    Zstd,
    Other(&'static str),
}

impl Kind {
    fn of(magic: &[u8]) -> Kind {
        match magic {
            [0x1f, 0x8b, ..] => Kind::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Kind::Xz,
            // A data frame, or a skippable frame before it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Kind::Zstd,
            [b'B', b'Z', b'h', ..] => Kind::Other("bzip2"),
            [b'P', b'K', 3, 4, ..] => Kind::Other("zip"),
            [b'7', b'z', 0xbc, 0xaf, ..] => Kind::Other("7z"),
            [b'h', b's', b'q', b's', ..] => Kind::Other("squashfs"),
            _ => Kind::Plain,
        }
    }
}

/// Concatenated gzip members, and zeros after the last: they fill up a tape's block, and gzip(1) ignores
/// them.
struct Gzip<R> {
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let got = member.read(buf)?;
            if got > 0 || buf.is_empty() {
                return Ok(got);
            }
            // Checked before the member is dropped, so that an error leaves the state unchanged.
            match member.get_mut().fill_buf()?.first() {
                None => return Ok(0),
                Some(0) => return skip_zeros(member.get_mut()),
                Some(_) => self.member = self.member.take().map(|over| GzDecoder::new(over.into_inner())),
            }
        }
        Ok(0)
    }
}

/// Reads to the end, where only zeros may follow; returns 0 for end of file.
fn skip_zeros(input: &mut impl BufRead) -> io::Result<usize> {
    loop {
        let length = match input.fill_buf() {
            Ok([]) => return Ok(0),
            Ok(zeros) if zeros.iter().all(|&b| b == 0) => zeros.len(),
            Ok(_) => {
                let what = "there is other data after the gzip stream";
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        input.consume(length);
    }
}

fn pump(mut decoder: impl Read, send: &SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        let read = decoder.by_ref().take(PIECE as u64).read_to_end(&mut piece);
        let last = piece.is_empty() || read.is_err();
        // An error is sent after the bytes before it. It is no failure if the receiver is gone.
        if send.send(Ok(piece)).is_err() {
            return;
        }
        if let Err(error) = read
            && send.send(Err(error)).is_err()
        {
            return;
        }
        if last {
            return;
        }
    }
}

/// The receiving end. If the thread ends without an end mark (it panicked), that is an error, not an end of
/// file.
struct Pieces {
    receive: Receiver<io::Result<Vec<u8>>>,
    piece: Cursor<Vec<u8>>,
    ended: bool,
    /// The error that ended it, returned again on further reads.
    failed: Option<(io::ErrorKind, String)>,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let got = self.piece.read(buf)?;
            if got > 0 || buf.is_empty() || self.ended {
                return Ok(got);
            }
            if let Some((kind, reason)) = &self.failed {
                return Err(io::Error::new(*kind, reason.clone()));
            }
            let piece = self
                .receive
                .recv()
                .unwrap_or_else(|_| Err(io::Error::other("the thread that reads it stopped")));
            match piece {
                Ok(piece) => {
                    self.ended = piece.is_empty();
                    self.piece = Cursor::new(piece);
                }
                Err(error) => self.failed = Some((error.kind(), error.to_string())),
            }
        }
    }
}
