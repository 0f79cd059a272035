//! Exporting an environment as a tar of its root filesystem, or as an OCI image.

use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use karapace_store::atomic::{become_like, fsync_name};
use karapace_store::compress::{Compression, Compressor};
use karapace_store::error::{IoContext as _, StoreError};
use karapace_store::id::{InstanceId, LayerHash, ObjectId};
use karapace_store::input::by_descriptor;
use karapace_store::layer::{LayerKind, LayerRecord};
use karapace_store::lock::StoreLock;
use karapace_store::metadata::Metadata;
use karapace_store::paths::{Ignore, choose, locate};
use karapace_store::pins::Pin;
use karapace_store::root::Root;
use karapace_store::tar::{Dialect, FullTar, Written};
use karapace_store::tree::{StoredTree, Trees};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::linkat;

use crate::engine::instance::damage;
use crate::engine::instance::layering::normalised;
use crate::engine::instance::reference;
use crate::engine::instance::reference::LayerRef;
use crate::engine::{Engine, Error, Report, Result};
use crate::oci::{self, Archive, Blob, Directory, Documents, Layer, Packed};

/// Buffer size for writes, in bytes.
const BUFFER: usize = 256 << 10;

/// How many sockets, and how many files with holes, are named one by one at most.
const MOST_NAMED: usize = 20;

/// The format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The root filesystem as one tar.
    Tar,
    /// An OCI image: the base and one layer for each snapshot.
    Oci,
}

/// What to export.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The snapshot; `None` for the head.
    pub snapshot: Option<&'a str>,
    /// The format.
    pub format: Format,
    /// Only these paths, with the targets of their links and the directories above; everything if empty.
    /// [`Format::Tar`] only.
    pub paths: &'a [Vec<u8>],
    /// Compression of the tar, or of the image's layers. `None`: for a tar, by the suffix of its name; layers
    /// are not compressed.
    pub compression: Option<Compression>,
}

/// Where to write the export.
pub enum Target<'a> {
    /// A stream, and its name for errors.
    Stream(&'a mut dyn Write, &'a Path),
    /// A file, which is written completely or not at all. With [`Format::Oci`], a layout directory, unless
    /// the name has an archive's suffix (`.tar`, `.tar.gz`, …); the archive is then compressed by its suffix.
    Path(&'a Path),
}

impl Target<'_> {
    /// The compression that the file's name implies.
    fn compression(&self) -> Compression {
        match self {
            Target::Path(path) => Compression::of_archive(path).unwrap_or_default(),
            Target::Stream(..) => Compression::None,
        }
    }
}

/// The result of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The exported layer.
    pub layer: LayerHash,
    /// Entries written, in all layers together.
    pub entries: u64,
    /// The digest of an OCI image's manifest.
    pub digest: Option<String>,
}

impl Engine {
    /// Exports what `wanted` describes of `env` to the target. Uncommitted changes are not exported; the
    /// report is told if there are any.
    pub fn export(
        &self,
        env: &Metadata,
        wanted: &Wanted<'_>,
        target: Target<'_>,
        report: &dyn Report,
    ) -> Result<Exported> {
        if wanted.format == Format::Oci && !wanted.paths.is_empty() {
            let reason =
                "an OCI image always has the whole environment: use --format tar to export single paths";
            return Err(Error::Invalid(reason.to_owned()));
        }
        let layers = wanted.compression.unwrap_or_default();
        if wanted.format == Format::Oci && oci::layer_type(layers).is_none() {
            let reason = "the layers of an OCI image can be compressed with gzip or zstd only";
            return Err(Error::Invalid(reason.to_owned()));
        }
        if wanted.snapshot.is_none() {
            self.note_uncommitted(env, report)?;
        }
        let export = Export::begin(self, env, wanted.snapshot, report)?;
        report.begin("exporting", None);
        let exported = match wanted.format {
            Format::Tar => export.tar(wanted, target),
            Format::Oci => export.oci(layers, target),
        };
        report.end();
        exported.map_err(|error| {
            // The exported layer's root comes first.
            let roots: Vec<ObjectId> = export.chain.iter().rev().map(|(record, _)| record.tree).collect();
            damage::named(self.store(), &env.name, &roots, error)
        })
    }

    fn note_uncommitted(&self, env: &Metadata, report: &dyn Report) -> Result<()> {
        let dirty = self.count_uncommitted(env)?;
        if dirty > 0 {
            let name = &env.name;
            report.note(&format!(
                "{dirty} uncommitted changes of {name} are not in the export: to include them, run `karapace commit {name}` first"
            ));
        }
        Ok(())
    }
}

/// An export in progress. Its trees are pinned, so they cannot be collected.
struct Export<'a> {
    trees: Trees,
    /// The environment's name.
    name: String,
    /// The layers from the base to the exported one.
    chain: Vec<(LayerRecord, Arc<Root>)>,
    report: &'a dyn Report,
    _pin: Pin,
}

impl<'a> Export<'a> {
    fn begin(
        engine: &Engine,
        env: &Metadata,
        snapshot: Option<&str>,
        report: &'a dyn Report,
    ) -> Result<Export<'a>> {
        let store = engine.store();
        let shared = StoreLock::shared(store)?;
        // Read again under the lock: opening an environment after a crash may have moved the head, and a
        // snapshot may be gone.
        let env = engine.find(&env.instance.to_hex())?;
        let layer = reference::resolve(&env, snapshot.unwrap_or("head"))?;
        let records = chain(engine, &env, &layer)?;
        let roots: Vec<ObjectId> = records.iter().map(|record| record.tree).collect();
        let pin = Pin::hold(store, &roots)?;
        drop(shared);
        let trees = Trees::new(store.clone());
        let with_root = |record: LayerRecord| Ok((trees.root(&record.tree)?, record));
        let chain = records
            .into_iter()
            .map(|record| with_root(record).map(|(root, record)| (record, root)))
            .collect::<Result<_>>()?;
        Ok(Export { trees, name: env.name, chain, report, _pin: pin })
    }

    /// The exported layer and its root.
    fn last(&self) -> Result<&(LayerRecord, Arc<Root>)> {
        self.chain.last().ok_or_else(|| Error::Invalid("an environment has no layer".to_owned()))
    }

    fn full<'b>(&'b self, dialect: Dialect, name: &'b Path) -> FullTar<'b> {
        FullTar { trees: &self.trees, dialect, progress: self.report, name }
    }

    fn tar(&self, wanted: &Wanted<'_>, target: Target<'_>) -> Result<Exported> {
        let (record, root) = self.last()?;
        let chosen = if wanted.paths.is_empty() { None } else { Some(self.chosen(root, wanted.paths)?) };
        let is_chosen = |path: &[u8]| chosen.as_ref().is_none_or(|chosen| chosen.contains(path));
        let compression = wanted.compression.unwrap_or_else(|| target.compression());
        let written = stream(target, compression, &mut |out, name| {
            Ok(self.full(Dialect::Pax, name).tree(root, Some(&is_chosen), out)?)
        })?;
        self.tell(&written);
        Ok(Exported { layer: record.hash, entries: written.entries, digest: None })
    }

    /// The chosen paths with everything below them and what they need (docs/MANIFEST.md, "Chosen paths"). No
    /// path is ignored: what the manifest keeps out of layers is in the tree only if the base has it.
    fn chosen(&self, root: &Root, paths: &[Vec<u8>]) -> Result<HashSet<Vec<u8>>> {
        let tree = StoredTree::new(&self.trees, root);
        let ignore = Ignore::default();
        let paths = normalised(paths, &ignore)?;
        for path in &paths {
            if locate(&tree, path)?.is_none() {
                return Err(Error::Invalid(format!("{} is not in what is exported", shown(path))));
            }
        }
        Ok(choose(&tree, &paths, &ignore)?.into_iter().collect())
    }

    fn oci(&self, compression: Compression, target: Target<'_>) -> Result<Exported> {
        match target {
            Target::Path(path) if is_layout_directory(path) => self.oci_directory(compression, path),
            target => self.oci_archive(compression, target),
        }
    }

    fn oci_directory(&self, compression: Compression, path: &Path) -> Result<Exported> {
        let directory = Directory::create(path)?;
        let blob = |index| directory.blob(compression, &mut |out| self.layer(index, path, out));
        let layers = self.layers(&mut |index| blob(index))?;
        let documents = self.documents(compression, &layers)?;
        directory.finish(&documents)?;
        self.exported(&layers, &documents)
    }

    fn oci_archive(&self, compression: Compression, target: Target<'_>) -> Result<Exported> {
        let hashed = Path::new("the hash of a layer");
        let measure = |index| oci::measure(compression, &mut |out| self.layer(index, hashed, out));
        let layers = self.layers(&mut |index| measure(index))?;
        let documents = self.documents(compression, &layers)?;
        let blobs: Vec<Blob> = layers.iter().map(|(layer, _)| layer.tar.blob.clone()).collect();
        let archived = target.compression();
        stream(target, archived, &mut |out, name| {
            let archive = Archive::new(out, name, compression)?;
            let layer = &mut |index, out: &mut dyn Write| self.layer(index, name, out).map(|_| ());
            Ok(archive.finish(&blobs, &documents, layer)?)
        })?;
        self.exported(&layers, &documents)
    }

    /// Writes the tar of one layer of the chain.
    fn layer(
        &self,
        index: usize,
        name: &Path,
        out: &mut dyn Write,
    ) -> std::result::Result<Written, StoreError> {
        let full = self.full(Dialect::Layer, name);
        let root = &self.chain[index].1;
        match index.checked_sub(1) {
            None => full.tree(root, None, out),
            Some(below) => full.changes(&self.chain[below].1, root, out),
        }
    }

    /// Writes every layer of the chain with `make`.
    fn layers(
        &self,
        make: &mut dyn FnMut(usize) -> std::result::Result<(Packed, Written), StoreError>,
    ) -> Result<Vec<(Layer, u64)>> {
        let mut layers = Vec::new();
        for (index, (record, _)) in self.chain.iter().enumerate() {
            let (tar, written) = make(index)?;
            self.tell(&written);
            let verb = match record.kind {
                LayerKind::Base => "import",
                LayerKind::Dependency | LayerKind::Policy => "build",
                LayerKind::Snapshot => "commit",
            };
            let layer = Layer {
                tar,
                newest: written.newest,
                created_by: format!("karapace {verb}"),
                comment: record.message.clone(),
            };
            layers.push((layer, written.entries));
        }
        Ok(layers)
    }

    fn documents(&self, compression: Compression, layers: &[(Layer, u64)]) -> Result<Documents> {
        let defaults = super::defaults::of(&self.trees, &self.last()?.1)?;
        let layers: Vec<Layer> = layers.iter().map(|(layer, _)| layer.clone()).collect();
        let layer_type = oci::layer_type(compression).unwrap_or_default();
        let documents = Documents::new(&layers, layer_type, &defaults, &oci::reference(&self.name));
        Ok(documents.map_err(|e| StoreError::Invalid(format!("cannot encode the image's documents: {e}")))?)
    }

    fn exported(&self, layers: &[(Layer, u64)], documents: &Documents) -> Result<Exported> {
        Ok(Exported {
            layer: self.last()?.0.hash,
            entries: layers.iter().map(|(_, entries)| entries).sum(),
            digest: Some(Blob::of(&documents.manifest).digest),
        })
    }

    /// Reports what could not be written unchanged.
    fn tell(&self, written: &Written) {
        for path in written.sockets.iter().take(MOST_NAMED) {
            self.report.note(&format!("{} is a socket: left out", shown(path)));
        }
        if let Some(more) = written.sockets.len().checked_sub(MOST_NAMED + 1) {
            self.report.note(&format!("and {} more sockets", more + 1));
        }
        for (path, bytes) in written.filled.iter().take(MOST_NAMED) {
            let gib = bytes >> 30;
            self.report.note(&format!(
                "{} is sparse, but image layers cannot be: it is written with {gib} GiB of zeros",
                shown(path)
            ));
        }
    }
}

fn shown(path: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(path))
}

/// The layers from the base to `layer`. The changes of a removed snapshot are part of the layer above it, and
/// so are those of layers from before the environment's last rebuild.
fn chain(engine: &Engine, env: &Metadata, layer: &LayerRef) -> Result<Vec<LayerRecord>> {
    let store = engine.store();
    let mut at = *layer;
    let mut chain = vec![LayerRecord::read(store, &at.record)?];
    while let Some(parent) = reference::parent(env, at) {
        at = parent;
        chain.push(LayerRecord::read(store, &at.record)?);
    }
    chain.reverse();
    Ok(chain)
}

/// Whether the layout is a directory: an existing directory, or a new path without an archive's suffix.
fn is_layout_directory(path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(metadata) => metadata.is_dir(),
        Err(_) => Compression::of_archive(path).is_none(),
    }
}

/// Writes an archive to a stream with the given name.
type Source<'a, T> = &'a mut dyn FnMut(&mut dyn Write, &Path) -> Result<T>;

/// Writes to the target. A file is written under another name first, so that the final name always has a
/// complete file.
fn stream<T>(target: Target<'_>, compression: Compression, source: Source<'_, T>) -> Result<T> {
    let path = match target {
        Target::Stream(out, name) => return Ok(buffered(out, compression, name, source)?.0),
        Target::Path(path) => path,
    };
    let (path, old) = match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            let shown = path.display();
            return Err(Error::Invalid(format!("{shown} is a directory: name a file")));
        }
        // A device or a pipe must not be replaced.
        Ok(metadata) if !metadata.is_file() => {
            let file = File::options().write(true).open(path).at("open", path)?;
            return Ok(buffered(file, compression, path, source)?.0);
        }
        // Resolve symlinks, so that they stay.
        Ok(metadata) => (fs::canonicalize(path).at("resolve", path)?, Some(metadata)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => (path.to_owned(), None),
        Err(e) => return Err(e).at("read", path)?,
    };
    write_file(&path, old.as_ref(), compression, source)
}

fn write_file<T>(
    path: &Path,
    old: Option<&fs::Metadata>,
    compression: Compression,
    source: Source<'_, T>,
) -> Result<T> {
    let parent = oci::parent(path);
    let like_old =
        |file: &File| old.map_or(Ok(()), |old| become_like(file, old)).at("set owner and mode of", path);
    match unnamed_in(parent) {
        Ok(file) => {
            like_old(&file)?;
            let (made, file) = buffered(file, compression, path, source)?;
            file.sync_all().at("write", path)?;
            name_file(&file, parent, path)?;
            fsync_name(parent, &file)?;
            return Ok(made);
        }
        // Not every file system supports O_TMPFILE.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {}
        Err(errno) => return Err(errno).at("create a file in", parent)?,
    }
    let temporary = tempfile::Builder::new()
        .prefix(".karapace-export-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(parent)
        .at("create a file in", parent)?;
    like_old(temporary.as_file())?;
    let (made, temporary) = buffered(temporary, compression, path, source)?;
    temporary.as_file().sync_all().at("write", path)?;
    let file = temporary.persist(path).map_err(|e| e.error).at("rename a file to", path)?;
    fsync_name(parent, &file)?;
    Ok(made)
}

/// A file without a name, which vanishes if the export is killed.
fn unnamed_in(dir: &Path) -> nix::Result<File> {
    let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    nix::fcntl::open(dir, flags, Mode::from_bits_truncate(0o666)).map(File::from)
}

/// Gives the file its name, and replaces what has that name.
fn name_file(file: &File, parent: &Path, path: &Path) -> Result<()> {
    let link = |to: &Path| linkat(AT_FDCWD, &by_descriptor(file), AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW);
    match link(path) {
        Err(Errno::EEXIST) => {
            let temporary = parent.join(format!(".karapace-export-{}", InstanceId::random()?.to_hex()));
            link(&temporary).at("create a file in", parent)?;
            let renamed = fs::rename(&temporary, path);
            if renamed.is_err()
                && let Err(error) = fs::remove_file(&temporary)
            {
                tracing::warn!("cannot remove {}: {error}", temporary.display());
            }
            Ok(renamed.at("rename a file to", path)?)
        }
        done => Ok(done.at("give a name to", path)?),
    }
}

fn buffered<T, W: Write>(
    out: W,
    compression: Compression,
    name: &Path,
    source: Source<'_, T>,
) -> Result<(T, W)> {
    let out = Compressor::new(compression, out).at("write", name)?;
    let mut out = BufWriter::with_capacity(BUFFER, out);
    let made = source(&mut out, name)?;
    let out = out.into_inner().map_err(io::IntoInnerError::into_error).at("write", name)?;
    Ok((made, out.finish().at("write", name)?))
}
