//! Writes compressed streams. Equal input gives equal bytes, on every machine and at any time, as long as the
//! compressor's version is the same: no time and no name is included, and the number of threads has no
//! influence.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;

use flate2::write::GzEncoder;
use liblzma::stream::{Check, MtStreamBuilder};
use liblzma::write::XzEncoder;

/// Each tool's default level.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;
const XZ_LEVEL: u32 = 6;

/// Size of an xz block in bytes, which one thread compresses: three dictionaries, as in xz.
const XZ_BLOCK: u64 = 24 << 20;

/// Maximum number of xz threads. Each takes some 140 MiB.
const XZ_THREADS: usize = 8;

/// The compression of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// Uncompressed.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// The .xz format.
    Xz,
}

impl Compression {
    /// The compression of an archive by its file name: `.tar`, `.tar.gz` or `.tgz`, `.tar.zst`, `.tar.xz`,
    /// and the like. `None` if the name says nothing.
    pub fn of_archive(path: &Path) -> Option<Compression> {
        let extension = |path: &Path| path.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
        let compression = match extension(path)?.as_str() {
            "tar" => return Some(Compression::None),
            "tgz" => return Some(Compression::Gzip),
            "tzst" => return Some(Compression::Zstd),
            "txz" => return Some(Compression::Xz),
            "gz" => Compression::Gzip,
            "zst" => Compression::Zstd,
            "xz" => Compression::Xz,
            _ => return None,
        };
        let stem = Path::new(path.file_stem()?);
        (extension(stem).as_deref() == Some("tar")).then_some(compression)
    }
}

/// Compresses what is written. The output is complete only after [`Compressor::finish`].
pub enum Compressor<W: Write> {
    /// Uncompressed.
    None(W),
    /// RFC 1952.
    Gzip(GzEncoder<W>),
    /// RFC 8878.
    Zstd(zstd::stream::write::Encoder<'static, W>),
    /// The .xz format.
    Xz(XzEncoder<W>),
}

impl<W: Write> Compressor<W> {
    /// Begins a stream on `out`.
    ///
    /// # Errors
    /// When the compressor cannot allocate memory.
    pub fn new(compression: Compression, out: W) -> io::Result<Compressor<W>> {
        Ok(match compression {
            Compression::None => Compressor::None(out),
            Compression::Gzip => Compressor::Gzip(GzEncoder::new(out, flate2::Compression::new(GZIP_LEVEL))),
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                Compressor::Zstd(encoder)
            }
            Compression::Xz => {
                let threads = std::thread::available_parallelism().map_or(1, usize::from).min(XZ_THREADS);
                let stream = MtStreamBuilder::new()
                    .preset(XZ_LEVEL)
                    .block_size(XZ_BLOCK)
                    .check(Check::Crc64)
                    .threads(threads as u32)
                    .encoder()?;
                Compressor::Xz(XzEncoder::new_stream(out, stream))
            }
        })
    }

    /// Ends the stream. Returns the output.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Compressor::None(out) => Ok(out),
            Compressor::Gzip(encoder) => encoder.finish(),
            Compressor::Zstd(encoder) => encoder.finish(),
            Compressor::Xz(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Compressor::None(out) => out.write(bytes),
            Compressor::Gzip(encoder) => encoder.write(bytes),
            Compressor::Zstd(encoder) => encoder.write(bytes),
            Compressor::Xz(encoder) => encoder.write(bytes),
        }
    }

    /// Does not end a block: flushing must not affect the bytes.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Compressor::None(out) => out.flush(),
            Compressor::Gzip(_) | Compressor::Zstd(_) | Compressor::Xz(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn names() {
        let table = [
            ("x.tar", Some(Compression::None)),
            ("x.tar.gz", Some(Compression::Gzip)),
            ("/a/b.TGZ", Some(Compression::Gzip)),
            ("x.tar.zst", Some(Compression::Zstd)),
            ("x.y.tar.xz", Some(Compression::Xz)),
            ("x.txz", Some(Compression::Xz)),
            ("x.gz", None),
            ("x", None),
            (".tar", None),
            ("tar.gz", None),
            ("x.tar.bz2", None),
        ];
        for (name, expected) in table {
            assert_eq!(Compression::of_archive(Path::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn what_is_written_comes_back_and_is_the_same_bytes_however_it_was_written() {
        let text: Vec<u8> = (0..300_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd, Compression::Xz] {
            let compress = |piece: usize| {
                let mut out = Compressor::new(compression, Vec::new()).unwrap();
                for bytes in text.chunks(piece) {
                    out.write_all(bytes).unwrap();
                    out.flush().unwrap();
                }
                out.finish().unwrap()
            };
            let bytes = compress(1000);
            assert_eq!(bytes, compress(70_001), "{compression:?}");
            let mut back = Vec::new();
            let read = match compression {
                Compression::None => bytes.as_slice().read_to_end(&mut back),
                Compression::Gzip => flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut back),
                Compression::Zstd => {
                    zstd::stream::read::Decoder::new(&bytes[..]).unwrap().read_to_end(&mut back)
                }
                Compression::Xz => liblzma::read::XzDecoder::new(&bytes[..]).read_to_end(&mut back),
            };
            read.unwrap();
            assert!(back == text, "{compression:?}");
            assert!(compression == Compression::None || bytes.len() < text.len() / 2);
        }
        let mut gzip = Compressor::new(Compression::Gzip, Vec::new()).unwrap();
        gzip.write_all(b"x").unwrap();
        // The header has neither a name nor a time.
        assert_eq!(gzip.finish().unwrap()[3..8], [0; 5]);
    }
}
