//! Images of several layers: finding them, and laying the layers over one another.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::Intake;
use super::archive::{Counted, broken, take_in};
use super::blobs::{Archive, Directory, Files};
use super::builder::{Builder, MAX_METADATA};
use super::compress::decompress;
use super::oci::{self, Image, Layer, Sha};
use crate::error::{IoContext, Result};
use crate::tar::Reader;

/// How many bytes at the start of an archive are read to see whether it may be an image.
const MAX_HEAD: usize = 32 << 20;

/// Takes in the image in a directory, if it is one.
pub(super) fn in_directory(
    intake: &mut Intake<'_>,
    directory: &File,
    path: &Path,
) -> Result<Option<Builder>> {
    let files = Directory::new(directory, path)?;
    let image = if oci::is_layout(&files)? {
        oci::of_layout(&files)?
    } else if oci::is_saved(&files)? && !path.join("usr").exists() && !path.join("etc").exists() {
        oci::of_saved(&files)?
    } else {
        return Ok(None);
    };
    layers(intake, &files, image).map(Some)
}

/// Takes in an archive: an image, or a root filesystem. `plain` is the archive where it is a file that is not compressed.
pub(super) fn in_stream(
    intake: &mut Intake<'_>,
    input: impl Read + Send,
    plain: Option<File>,
    source: &str,
) -> Result<Builder> {
    std::thread::scope(|scope| {
        let counted = Counted { input, progress: intake.progress };
        let mut input = decompress(scope, counted).map_err(|e| broken(source, &e))?;
        let (head, maybe) = head(&mut input);
        let input = Cursor::new(head).chain(input);
        if !maybe {
            let mut builder = Builder::new(MAX_METADATA);
            take_in(intake, &mut builder, None, input, source)?;
            return Ok(builder);
        }
        let file = match plain {
            Some(file) => file,
            None => unpacked(intake, input, source)?,
        };
        in_file(intake, file, source)
    })
}

/// The same of an uncompressed archive whose first member may be an image's.
fn in_file(intake: &mut Intake<'_>, mut file: File, source: &str) -> Result<Builder> {
    let files = Archive::index(intake.store, &file, source)?;
    let is_rootfs = ["etc", "usr", "bin"].iter().any(|name| files.has_at_top(name));
    if !is_rootfs && oci::is_layout(&files)? {
        let image = oci::of_layout(&files)?;
        return layers(intake, &files, image);
    }
    if !is_rootfs && oci::is_saved(&files)? {
        let image = oci::of_saved(&files)?;
        return layers(intake, &files, image);
    }
    file.seek(SeekFrom::Start(0)).at("read", Path::new(source))?;
    let mut builder = Builder::new(MAX_METADATA);
    take_in(intake, &mut builder, None, file, source)?;
    Ok(builder)
}

/// Lays the layers of an image over one another.
fn layers(intake: &mut Intake<'_>, files: &dyn Files, image: Image) -> Result<Builder> {
    image.notes.into_iter().for_each(|note| intake.warnings.push(note));
    let mut tree = Builder::new(MAX_METADATA);
    for layer in &image.layers {
        let mut own = Builder::new(tree.room());
        one_layer(intake, files, layer, &tree, &mut own)?;
        tree.cover(own)?;
    }
    Ok(tree)
}

/// Takes in one layer. Its digest is checked before a byte of it is looked at.
fn one_layer(
    intake: &mut Intake<'_>,
    files: &dyn Files,
    layer: &Layer,
    below: &Builder,
    own: &mut Builder,
) -> Result<()> {
    let name = format!("layer {} of {}", layer.file, files.source());
    if let Some(expected) = layer.digest {
        let mut hashed = Hashed { input: oci::open(files, &layer.file)?.reader, hasher: Sha256::new() };
        io::copy(&mut hashed, &mut io::sink()).map_err(|e| broken(&name, &e))?;
        oci::check(files, &layer.file, expected, hashed.sha())?;
    }
    let input = Counted { input: oci::open(files, &layer.file)?.reader, progress: intake.progress };
    let found = std::thread::scope(|scope| -> Result<Sha> {
        let input = decompress(scope, input).map_err(|e| broken(&name, &e))?;
        let hashed = take_in(intake, own, Some(below), Hashed { input, hasher: Sha256::new() }, &name)?;
        Ok(hashed.sha())
    })?;
    match layer.diff_id {
        Some(expected) => oci::check(files, &layer.file, expected, found),
        None => Ok(()),
    }
}

/// Reads an archive to its first member but the root, and says whether that may be an image's. Gives all bytes that were read.
fn head(input: &mut dyn Read) -> (Vec<u8>, bool) {
    let mut recorded = Recorded { input, bytes: Vec::new() };
    let mut reader = Reader::new(&mut recorded);
    let maybe = loop {
        // What is broken is told by who reads it next.
        let Ok(Some(member)) = reader.next_member() else { break false };
        let path = member.path.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b"."));
        let path: Vec<&[u8]> = path.collect();
        if !path.is_empty() {
            break is_of_image(&path);
        }
    };
    (recorded.bytes, maybe)
}

/// Whether an image may have a file of this name. A root filesystem may too: that is found out later.
fn is_of_image(path: &[&[u8]]) -> bool {
    let is_id = |name: &[u8]| name.len() == 64 && name.iter().all(u8::is_ascii_hexdigit);
    let [first, more @ ..] = path else { return false };
    if *first == b"blobs" || is_id(first) {
        return true;
    }
    let ends = [&b".json"[..], b".tar", b".tar.gz", b".tgz"];
    more.is_empty()
        && (matches!(*first, b"oci-layout" | b"repositories")
            || first.starts_with(b"sha256:")
            || ends.iter().any(|end| first.ends_with(end)))
}

/// A compressed archive, or a stream, as an unnamed file of the store.
fn unpacked(intake: &Intake<'_>, mut input: impl Read, source: &str) -> Result<File> {
    let dir = intake.store.layout().staging();
    let file = tempfile::tempfile_in(&dir).at("create a file in", &dir)?;
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(got) => {
                file.write_all_at(&buffer[..got], at).at("write a file in", &dir)?;
                at += got as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(source, &error)),
        }
    }
}

/// Keeps what was read.
struct Recorded<'a> {
    input: &'a mut dyn Read,
    bytes: Vec<u8>,
}

impl Read for Recorded<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.bytes.len() > MAX_HEAD {
            return Err(io::Error::other("no member is met"));
        }
        let got = self.input.read(buf)?;
        self.bytes.extend_from_slice(&buf[..got]);
        Ok(got)
    }
}

/// Hashes what is read.
struct Hashed<R> {
    input: R,
    hasher: Sha256,
}

impl<R> Hashed<R> {
    fn sha(self) -> Sha {
        Sha(self.hasher.finalize().into())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.input.read(buf)?;
        self.hasher.update(&buf[..got]);
        Ok(got)
    }
}
