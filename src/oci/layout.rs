//! Writes an image as a layout directory, or as an archive of one.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use karapace_store::atomic::{fsync_dir, fsync_name};
use karapace_store::compress::{Compression, Compressor};
use karapace_store::error::{IoContext as _, Result, StoreError};
use karapace_store::inode::Timestamp;
use karapace_store::tar::{Encoder, EntryHeader, Records};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::{Documents, LAYOUT};

/// Bytes to gather for one write.
const BUFFER: usize = 256 << 10;

/// The digest and size of a blob.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blob {
    /// `sha256:` and 64 hex digits.
    pub digest: String,
    /// Size in bytes.
    pub size: u64,
}

impl Blob {
    pub(super) fn new(hash: &[u8], size: u64) -> Blob {
        let mut digest = "sha256:".to_owned();
        for byte in hash {
            // Writing to a string cannot fail.
            write!(digest, "{byte:02x}").unwrap_or_default();
        }
        Blob { digest, size }
    }

    /// Its path in a layout.
    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replacen(':', "/", 1))
    }
}

/// A writer that counts and hashes the bytes that pass through.
struct Hashing<W> {
    out: W,
    hasher: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    fn new(out: W) -> Self {
        Self { out, hasher: Sha256::new(), size: 0 }
    }

    fn blob(&self) -> Blob {
        Blob::new(self.hasher.clone().finalize().as_slice(), self.size)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A function that writes a blob's bytes.
type Source<'a, T> = &'a mut dyn FnMut(&mut dyn Write) -> Result<T>;

/// A layer's tar as it is stored, compressed or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Its blob.
    pub blob: Blob,
    /// The digest of the tar before compression.
    pub diff_id: String,
}

/// Determines digest and size of the blob that `source` writes, without storing it.
///
/// # Errors
/// Those of `source` and of the compression.
pub fn measure<T>(compression: Compression, source: Source<'_, T>) -> Result<(Packed, T)> {
    let (packed, _, made) = pack(io::sink(), compression, Path::new("a layer"), source)?;
    Ok((packed, made))
}

/// Writes the output of `source` to `out`, compressed; errors name it `name`.
fn pack<W: Write, T>(
    out: W,
    compression: Compression,
    name: &Path,
    source: Source<'_, T>,
) -> Result<(Packed, W, T)> {
    let blob = Hashing::new(out);
    if compression == Compression::None {
        let mut out = BufWriter::with_capacity(BUFFER, blob);
        let made = source(&mut out)?;
        let blob = out.into_inner().map_err(io::IntoInnerError::into_error).at("write", name)?;
        let packed = Packed { diff_id: blob.blob().digest, blob: blob.blob() };
        return Ok((packed, blob.out, made));
    }
    let compressor = Compressor::new(compression, blob).at("write", name)?;
    let mut out = BufWriter::with_capacity(BUFFER, Hashing::new(compressor));
    let made = source(&mut out)?;
    let tar = out.into_inner().map_err(io::IntoInnerError::into_error).at("write", name)?;
    let diff_id = tar.blob().digest;
    let blob = tar.out.finish().at("write", name)?;
    Ok((Packed { blob: blob.blob(), diff_id }, blob.out, made))
}

/// A layout directory that is being written. If it is dropped before [`Directory::finish`], it leaves nothing
/// behind.
pub struct Directory {
    dir: TempDir,
    target: PathBuf,
}

impl Directory {
    /// Begins a layout for the path `target`, which must not exist yet or be an empty directory.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if the directory is not empty; [`StoreError::Io`].
    pub fn create(target: &Path) -> Result<Directory> {
        match fs::read_dir(target) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    let shown = target.display();
                    return Err(StoreError::Invalid(format!(
                        "{shown} is not empty: choose a new or empty directory"
                    )));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).at("open", target),
        }
        let parent = parent(target);
        let dir = tempfile::Builder::new()
            .prefix(".karapace-export-")
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(parent)
            .at("create a directory in", parent)?;
        let blobs = dir.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).at("create", &blobs)?;
        Ok(Directory { dir, target: target.to_owned() })
    }

    /// Stores the blob that `source` writes.
    ///
    /// # Errors
    /// Those of `source`; [`StoreError::Io`].
    pub fn blob<T>(&self, compression: Compression, source: Source<'_, T>) -> Result<(Packed, T)> {
        let unnamed = self.dir.path().join("blob");
        let file = File::create_new(&unnamed).at("create", &unnamed)?;
        let (packed, file, made) = pack(file, compression, &self.target, source)?;
        file.sync_all().at("write", &self.target)?;
        let path = self.dir.path().join(packed.blob.path());
        fs::rename(&unnamed, &path).at("rename", &unnamed)?;
        Ok((packed, made))
    }

    /// Adds the documents and moves the layout to its final path.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn finish(self, documents: &Documents) -> Result<()> {
        let write = |name: &str, bytes: &[u8]| {
            let path = self.dir.path().join(name);
            let file = File::create(&path);
            let written = file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
            written.at("write", &path)
        };
        for bytes in [&documents.config, &documents.manifest] {
            write(&Blob::of(bytes).path(), bytes)?;
        }
        write("index.json", &documents.index)?;
        write("oci-layout", LAYOUT)?;
        for dir in ["blobs/sha256", "blobs", ""] {
            fsync_dir(&self.dir.path().join(dir))?;
        }
        fs::rename(self.dir.path(), &self.target).at("create", &self.target)?;
        // The directory has its final name, so the temporary one must not be removed.
        drop(self.dir.keep());
        let inside = self.target.join("oci-layout");
        fsync_name(parent(&self.target), &File::open(&inside).at("open", &inside)?)?;
        Ok(())
    }
}

/// The directory that contains `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A layout as one tar archive. A blob's header precedes it, so blobs must be measured first.
pub struct Archive<'a> {
    tar: Encoder<&'a mut dyn Write>,
    name: &'a Path,
    /// The compression of the layers.
    compression: Compression,
}

impl<'a> Archive<'a> {
    /// Begins an archive on `out`; errors name it `name`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn new(out: &'a mut dyn Write, name: &'a Path, compression: Compression) -> Result<Archive<'a>> {
        let mut archive = Archive { tar: Encoder::new(out), name, compression };
        for directory in ["blobs/", "blobs/sha256/"] {
            archive.header(directory, b'5', 0o755, 0)?;
        }
        Ok(archive)
    }

    /// Writes all blobs in the order of their digests, then the other documents. `layer` writes the bytes of
    /// the layer with the given index.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if a layer is not the same as when it was measured; write errors.
    pub fn finish(
        mut self,
        layers: &[Blob],
        documents: &Documents,
        layer: &mut dyn FnMut(usize, &mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        /// Where a blob's bytes are.
        enum Bytes<'b> {
            Here(&'b [u8]),
            Layer(usize),
        }
        let here =
            [&documents.config, &documents.manifest].map(|bytes| (Blob::of(bytes), Bytes::Here(bytes)));
        let mut blobs: Vec<(Blob, Bytes<'_>)> =
            layers.iter().enumerate().map(|(i, blob)| (blob.clone(), Bytes::Layer(i))).chain(here).collect();
        blobs.sort_by(|a, b| a.0.cmp(&b.0));
        // Two layers may have the same bytes.
        blobs.dedup_by(|a, b| a.0 == b.0);
        for (blob, bytes) in blobs {
            match bytes {
                Bytes::Here(bytes) => self.file(&blob.path(), bytes)?,
                Bytes::Layer(index) => self.layer(&blob, &mut |out| layer(index, out))?,
            }
        }
        self.file("index.json", &documents.index)?;
        self.file("oci-layout", LAYOUT)?;
        self.tar.finish().at("write", self.name)?;
        Ok(())
    }

    fn layer(&mut self, blob: &Blob, source: Source<'_, ()>) -> Result<()> {
        self.header(&blob.path(), b'0', 0o644, blob.size)?;
        let name = self.name;
        let body = Body { tar: &mut self.tar, left: blob.size };
        if pack(body, self.compression, name, source)?.0.blob == *blob {
            return Ok(());
        }
        Err(StoreError::Invalid(format!(
            "{} is not a valid archive: a layer changed between two reads",
            name.display()
        )))
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.header(path, b'0', 0o644, bytes.len() as u64)?;
        self.tar.body(bytes).at("write", self.name)
    }

    fn header(&mut self, path: &str, type_flag: u8, mode: u32, size: u64) -> Result<()> {
        let header = EntryHeader {
            path: path.as_bytes(),
            link: b"",
            type_flag,
            mode,
            uid: 0,
            gid: 0,
            size,
            mtime: Timestamp::default(),
            device: (0, 0),
        };
        self.tar.entry(&header, Records::new()).at("write", self.name)
    }
}

/// The body of one entry; fails if it exceeds the size in the entry's header.
struct Body<'a, 'b> {
    tar: &'a mut Encoder<&'b mut dyn Write>,
    left: u64,
}

impl Write for Body<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::other("a layer is larger than when it was measured"))?;
        self.tar.body(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karapace_store::tar::Reader;
    use std::collections::BTreeMap;
    use std::io::Read as _;

    fn documents() -> Documents {
        Documents { config: b"{}".to_vec(), manifest: b"{\"m\":1}".to_vec(), index: b"{\"i\":1}".to_vec() }
    }

    const LAYERS: [&[u8]; 3] = [b"first", b"second", b"first"];

    fn write(bytes: &[u8], out: &mut dyn Write) -> Result<()> {
        out.write_all(bytes).at("write", Path::new("out"))
    }

    fn archive(compression: Compression) -> Vec<u8> {
        let measured = |bytes: &&[u8]| measure(compression, &mut |out| write(bytes, out)).unwrap().0.blob;
        let blobs: Vec<Blob> = LAYERS.iter().map(measured).collect();
        let mut bytes: Vec<u8> = Vec::new();
        let archive = Archive::new(&mut bytes, Path::new("out"), compression).unwrap();
        archive.finish(&blobs, &documents(), &mut |i, out| write(LAYERS[i], out)).unwrap();
        bytes
    }

    /// The names and contents of the files in an archive.
    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut reader = Reader::new(archive);
        let mut files = BTreeMap::new();
        while let Some(member) = reader.next_member().unwrap() {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            let path = String::from_utf8(member.path).unwrap();
            if !path.ends_with('/') {
                assert!(files.insert(path, bytes).is_none());
            }
        }
        files
    }

    #[test]
    fn the_directory_and_the_archive_hold_the_same() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let place = tempfile::tempdir().unwrap();
            let target = place.path().join("image");
            fs::create_dir(&target).unwrap();
            let directory = Directory::create(&target).unwrap();
            for bytes in LAYERS {
                let (packed, ()) = directory.blob(compression, &mut |out| write(bytes, out)).unwrap();
                assert_eq!(packed.diff_id, Blob::of(bytes).digest);
                assert_eq!(packed.blob == Blob::of(bytes), compression == Compression::None);
            }
            directory.finish(&documents()).unwrap();
            let archived = files(&archive(compression));
            assert_eq!(archived.len(), 6);
            for (path, bytes) in &archived {
                assert_eq!(&fs::read(target.join(path)).unwrap(), bytes, "{path}");
                if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                    assert_eq!(Blob::of(bytes).digest, format!("sha256:{digest}"));
                }
            }
            assert_eq!(fs::read_dir(target.join("blobs/sha256")).unwrap().count(), 4);
            assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
            assert_eq!(archive(compression), archive(compression));
        }
    }

    #[test]
    fn what_is_there_is_kept_and_what_fails_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("image");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("x"), b"x").unwrap();
        assert!(Directory::create(&target).err().unwrap().to_string().contains("is not empty"));
        let directory = Directory::create(&place.path().join("other")).unwrap();
        directory.blob(Compression::None, &mut |out| write(b"x", out)).unwrap();
        drop(directory);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_layer_that_changes_between_the_passes_is_an_error() {
        for second in [&b"sec0nd"[..], b"longer than it was", b"short"] {
            let (packed, ()) = measure(Compression::None, &mut |out| write(b"second", out)).unwrap();
            let mut bytes: Vec<u8> = Vec::new();
            let archive = Archive::new(&mut bytes, Path::new("out"), Compression::None).unwrap();
            let result = archive.finish(&[packed.blob], &documents(), &mut |_, out| write(second, out));
            assert!(result.is_err(), "{second:?}");
        }
    }
}
