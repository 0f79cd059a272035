//! Images of several layers: finds them, and lays the layers over one another.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::archive::{Counted, Uncounted, broken, take_in};
use super::blob::Files;
use super::blobs::{Archive, At, Directory};
use super::builder::{Builder, MAX_METADATA};
use super::compress::{MAGIC, decompress, is_plain};
use super::copied::Copied;
use super::legacy;
use super::oci::{self, Image, Layer};
use super::sha::Sha;
use super::{Intake, ROOT_NAMES};
use crate::error::{IoContext, Result};
use crate::progress::Progress;
use crate::tar::Reader;

/// How many bytes at the start of an archive are read to decide whether it may be an image.
const MAX_HEAD: u64 = 32 << 20;

/// Imports the image in a directory; `None` if there is none.
pub(super) fn in_directory(
    intake: &mut Intake<'_>,
    directory: &File,
    path: &Path,
) -> Result<Option<Builder>> {
    let files = Directory::new(directory, path)?;
    let is_root = ROOT_NAMES.iter().any(|name| path.join(name).exists());
    match if is_root && !oci::is_layout(&files)? { None } else { in_files(&files)? } {
        Some(image) => layers(intake, &files, image).map(Some),
        None => Ok(None),
    }
}

/// Reads the image in `files`, in any of the known formats.
fn in_files(files: &dyn Files) -> Result<Option<Image>> {
    if oci::is_layout(files)? {
        return oci::of_layout(files).map(Some);
    }
    if oci::is_saved(files)? {
        return oci::of_saved(files).map(Some);
    }
    match Copied::of(files)? {
        Some(copied) => oci::of_layout(&copied).map(Some),
        None => legacy::image(files),
    }
}

/// Imports an archive: an image, or a root filesystem.
pub(super) fn in_archive(intake: &mut Intake<'_>, file: &Arc<File>, source: &str) -> Result<Builder> {
    let mut magic = [0; MAGIC];
    let got = file.read_at(&mut magic, 0).at("read", Path::new(source))?;
    let is_packed = !is_plain(&magic[..got]);
    let whole = || At::whole(file, source);
    let maybe = unpacked(whole()?, source, |input| Ok(may_be_image(input)))?;
    if maybe && let Some(builder) = in_image(intake, file, is_packed, source)? {
        return Ok(builder);
    }
    let again = Uncounted(intake.progress);
    let progress: &dyn Progress = if maybe { &again } else { intake.progress };
    root_filesystem(intake, Counted { input: whole()?, progress }, source)
}

/// Imports an archive that is not an image.
pub(super) fn root_filesystem(
    intake: &mut Intake<'_>,
    input: impl Read + Send,
    source: &str,
) -> Result<Builder> {
    unpacked(input, source, |input| {
        let mut builder = Builder::new(MAX_METADATA);
        take_in(intake, &mut builder, None, input, source)?;
        intake.doubt(&builder, source);
        Ok(builder)
    })
}

/// Whether an archive that starts with these bytes, compressed or not, may be an image.
pub(super) fn begins_like_one(head: &[u8], source: &str) -> Result<bool> {
    unpacked(head, source, |input| Ok(may_be_image(input)))
}

/// Imports an archive whose first member may be an image's; `None` if it is not an image. A compressed
/// archive is read twice: which of its members are needed is known only at its end.
fn in_image(
    intake: &mut Intake<'_>,
    file: &Arc<File>,
    is_packed: bool,
    source: &str,
) -> Result<Option<Builder>> {
    let mut files = if is_packed {
        let input = Counted { input: At::whole(file, source)?, progress: intake.progress };
        unpacked(input, source, |input| Archive::survey(input, source))?
    } else {
        Archive::index(intake.store, file, source)?
    };
    let is_root = ROOT_NAMES.iter().any(|name| files.has_at_top(name));
    let Some(image) = (if is_root { None } else { in_files(&files)? }) else { return Ok(None) };
    if is_packed {
        let input = Counted { input: At::whole(file, source)?, progress: &Uncounted(intake.progress) };
        unpacked(input, source, |input| files.unpack(intake.store, input, &image.layers))?;
    }
    layers(intake, &files, image).map(Some)
}

/// Calls `read` with the decompressed `input`.
fn unpacked<T>(
    input: impl Read + Send,
    source: &str,
    read: impl FnOnce(&mut dyn Read) -> Result<T>,
) -> Result<T> {
    std::thread::scope(|scope| {
        let mut input = decompress(scope, input).map_err(|e| broken(source, &e))?;
        read(&mut input)
    })
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

/// Imports one layer. Its digest is checked before any of it is parsed.
fn one_layer(
    intake: &mut Intake<'_>,
    files: &dyn Files,
    layer: &Layer,
    below: &Builder,
    own: &mut Builder,
) -> Result<()> {
    let name = format!("layer {} of {}", layer.file, files.source());
    let blob = oci::open(files, &layer.file)?;
    oci::check_size(files, &layer.file, layer.size.unwrap_or(blob.size), blob.size)?;
    if let Some(expected) = layer.digest {
        let input = Counted { input: blob.reader, progress: &Uncounted(intake.progress) };
        let mut hashed = Hashed { input, hasher: Sha256::new() };
        io::copy(&mut hashed, &mut io::sink()).map_err(|e| broken(&name, &e))?;
        oci::check(files, &layer.file, expected, hashed.sha())?;
    }
    let input = Counted { input: oci::open(files, &layer.file)?.reader, progress: intake.progress };
    let found = unpacked(input, &name, |input| {
        Ok(take_in(intake, own, Some(below), Hashed { input, hasher: Sha256::new() }, &name)?.sha())
    })?;
    match layer.diff_id {
        Some(expected) => oci::check(files, &layer.file, expected, found),
        None => Ok(()),
    }
}

/// Reads an archive up to its first member other than the root; returns whether that may be an image's.
fn may_be_image(input: &mut dyn Read) -> bool {
    let mut reader = Reader::new(input.take(MAX_HEAD));
    loop {
        // Whatever reads the archive next reports what is broken.
        let Ok(Some(member)) = reader.next_member() else { return false };
        let path = member.path.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b"."));
        let path: Vec<&[u8]> = path.collect();
        if !path.is_empty() {
            return is_of_image(&path);
        }
    }
}

/// Whether an image may have a file of this name. A root filesystem may have one too; that is decided later.
fn is_of_image(path: &[&[u8]]) -> bool {
    let is_id = |name: &[u8]| name.len() == 64 && name.iter().all(u8::is_ascii_hexdigit);
    let [first, more @ ..] = path else { return false };
    if *first == b"blobs" || is_id(first) {
        return true;
    }
    let ends = [&b".json"[..], b".tar", b".tar.gz", b".tgz"];
    more.is_empty()
        && (matches!(*first, b"oci-layout" | b"repositories" | b"version")
            || first.starts_with(b"sha256:")
            || first.starts_with(b"signature-")
            || ends.iter().any(|end| first.ends_with(end)))
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
