//! Reads a tar stream into a builder: a root filesystem, or a layer of an image.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use super::Intake;
use super::builder::{Attributes, Builder, Content, Way, check_xattrs, normalise, refuse};
use crate::acl;
use crate::content::{self, FileContent};
use crate::error::{IoContext, Result, StoreError};
use crate::inode::FileKind;
use crate::open::Store;
use crate::progress::Progress;
use crate::tar::{Member, MemberKind, Reader};

/// Prefix of a name that marks a deletion in a layer of an image.
pub(super) const WHITEOUT: &[u8] = b".wh.";

/// The name that hides everything a directory has in the layers below.
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";

/// Prefix of the names of AUFS's own records, which layers of old images contain.
const AUFS: &[u8] = b".wh..wh.";

/// Reads all members of an uncompressed archive into `builder`; returns the reader at the end of the archive.
/// `below` is given for a layer: the tree that it lies on. `source` names the archive in errors.
pub(super) fn take_in<R: Read>(
    intake: &mut Intake<'_>,
    builder: &mut Builder,
    below: Option<&Builder>,
    input: R,
    source: &str,
) -> Result<R> {
    let reader = Reader::new(BufReader::with_capacity(256 << 10, input));
    // A layer's digests show whether it is complete; umoci's `insert` writes no end marker.
    let reader = if below.is_some() { reader.unterminated() } else { reader };
    let mut members = Members { intake, builder, below, reader };
    while let Some(member) = members.reader.next_member().map_err(|error| broken(source, &error))? {
        members.take_in(member)?;
        members.intake.progress.add(0, 1);
    }
    if members.reader.has_trailing() {
        members
            .intake
            .warnings
            .push(format!("{source} continues after its end marker; the rest was left out"));
    }
    Ok(members.reader.into_inner().into_inner())
}

/// An error that names the archive.
pub(super) fn broken(source: &str, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Invalid(format!("cannot import {source}: {error}"))
}

struct Members<'a, 'b, R> {
    intake: &'a mut Intake<'b>,
    builder: &'a mut Builder,
    below: Option<&'a Builder>,
    reader: Reader<R>,
}

impl<R: Read> Members<'_, '_, R> {
    fn take_in(&mut self, member: Member) -> Result<()> {
        let path = member.path.clone();
        self.put(member)?.map_err(|reason| refuse(&path, &reason))
    }

    /// The inner error is one of the member itself.
    fn put(&mut self, mut member: Member) -> Result<std::result::Result<(), String>> {
        if let Some(below) = self.below {
            if !member.literal {
                match self.whiteout(&member.path) {
                    Ok(false) => {}
                    other => return Ok(other.map(drop)),
                }
            }
            match self.builder.follow(below, &member.path) {
                Ok(Way::Straight) => {}
                Ok(Way::To(path)) => member.path = path,
                Ok(Way::Nowhere(reason)) | Err(reason) => return Ok(Err(reason)),
            }
        }
        let path = member.path;
        let mut notes = member.notes;
        if let Err(reason) = check_xattrs(&member.xattrs) {
            return Ok(Err(reason));
        }
        // A hard link has no attributes of its own.
        let own_kind = file_kind(member.kind);
        let kind = own_kind.unwrap_or(FileKind::Regular);
        member.xattrs.retain(|(name, _)| self.intake.warnings.keeps(&path, kind, name));
        let mut attributes = Attributes {
            mode: member.mode,
            uid: member.uid,
            gid: member.gid,
            mtime: member.mtime,
            other_times: None,
            xattrs: member.xattrs.into_iter().collect(),
        };
        if let Some(kind) = own_kind {
            acl::reconcile(kind, &mut attributes.mode, &mut attributes.xattrs, &mut notes);
        }
        for note in notes {
            self.intake.warnings.push(format!("{:?}: {note}", String::from_utf8_lossy(&path)));
        }
        let (major, minor) = member.device;
        Ok(match member.kind {
            MemberKind::Directory => self.builder.put_directory(&path, attributes),
            MemberKind::HardLink => self.link(&path, &member.link),
            MemberKind::Regular => {
                let content = Content::Regular(self.body(&path, member.size, member.ranges.as_deref())?);
                self.builder.put(&path, attributes, content)
            }
            MemberKind::Symlink => self.builder.put(&path, attributes, Content::Symlink(member.link.into())),
            MemberKind::CharDevice | MemberKind::BlockDevice | MemberKind::Fifo => {
                let content = Content::Special(kind, rustix::fs::makedev(major, minor));
                self.builder.put(&path, attributes, content)
            }
        })
    }

    fn link(&mut self, path: &[u8], target: &[u8]) -> std::result::Result<(), String> {
        match self.below.map(|below| self.builder.follow(below, target)).transpose()? {
            None | Some(Way::Straight) => self.builder.put_link(path, target),
            Some(Way::To(target)) => self.builder.put_link(path, &target),
            Some(Way::Nowhere(reason)) => Err(format!("the target of its hard link: {reason}")),
        }
    }

    /// Whether a member of a layer is a whiteout; records what it hides in the layers below. Only the name
    /// counts, because writers differ in the type they give such a member.
    fn whiteout(&mut self, path: &[u8]) -> std::result::Result<bool, String> {
        let components = normalise(path)?;
        let Some((name, above)) = components.split_last() else { return Ok(false) };
        let aufs = |name: &[u8]| name.starts_with(AUFS) && name != OPAQUE;
        if components.iter().any(|name| aufs(name)) {
            let path = String::from_utf8_lossy(path);
            self.intake.warnings.push(format!("{path:?} was left out: it is internal to AUFS"));
            return Ok(true);
        }
        for (depth, name) in above.iter().enumerate() {
            if name.starts_with(WHITEOUT) && !self.builder.has_directory(&components[..=depth]) {
                return Err("it lies below a whiteout".to_owned());
            }
        }
        let Some(hidden) = name.strip_prefix(WHITEOUT) else { return Ok(false) };
        if matches!(hidden, b"" | b"." | b"..") {
            return Err("it is a whiteout for a name that no file can have".to_owned());
        }
        let followed = match self.below.map(|below| self.builder.follow(below, path)).transpose()? {
            None | Some(Way::Straight) => None,
            Some(Way::To(path)) => Some(path),
            // A name that does not exist needs no hiding.
            Some(Way::Nowhere(_)) => return Ok(true),
        };
        // Built from the components, because some tools make it a directory, with a trailing slash.
        let plain = components.join(&b'/');
        let (directory, _) = self.builder.place(followed.as_deref().unwrap_or(&plain))?;
        if **name == *OPAQUE {
            self.builder.set_opaque(directory);
        } else {
            self.builder.hide(directory, hidden)?;
        }
        Ok(true)
    }

    /// Streams a member's content into the batch.
    fn body(&mut self, path: &[u8], size: u64, ranges: Option<&[(u64, u64)]>) -> Result<FileContent> {
        if i64::try_from(size).is_err() {
            return Err(refuse(path, "it is larger than the largest file size"));
        }
        let batch = &mut self.intake.batch;
        let mut body = Body { reader: &mut self.reader, failed: None };
        let content = match ranges {
            None => content::ingest(&mut body, batch),
            Some(ranges) => spool(self.intake.store, &mut body, ranges)
                .and_then(|file| content::ingest_ranges(&file, size, ranges, batch)),
        };
        // A read error is the archive's fault, whatever error the store derived from it.
        if let Some(reason) = body.failed {
            return Err(refuse(path, &reason));
        }
        self.intake.bytes += ranges.map_or(size, |r| r.iter().map(|r| r.1).sum());
        content
    }
}

/// The kind of inode that a member creates; `None` for a hard link.
fn file_kind(kind: MemberKind) -> Option<FileKind> {
    Some(match kind {
        MemberKind::Regular => FileKind::Regular,
        MemberKind::HardLink => return None,
        MemberKind::Symlink => FileKind::Symlink,
        MemberKind::CharDevice => FileKind::CharDevice,
        MemberKind::BlockDevice => FileKind::BlockDevice,
        MemberKind::Directory => FileKind::Directory,
        MemberKind::Fifo => FileKind::Fifo,
    })
}

/// Writes the ranges of a sparse member at their offsets into an unnamed file of the store. Pieces that
/// are all zeros become holes.
pub(super) fn spool(store: &Store, body: &mut dyn Read, ranges: &[(u64, u64)]) -> Result<File> {
    let dir = store.layout().staging();
    let file = tempfile::tempfile_in(&dir).at("create a file in", &dir)?;
    let mut buf = vec![0; 256 << 10];
    for &(start, length) in ranges {
        let (mut at, end) = (start, start + length);
        while at < end {
            let want = (end - at).min(buf.len() as u64) as usize;
            let got = body.read(&mut buf[..want]).at("read the archive for", &dir)?;
            if got == 0 {
                break; // the map was checked against the stored size, so the body failed and reports that
            }
            if !content::is_zero(&buf[..got]) {
                file.write_all_at(&buf[..got], at).at("write a file in", &dir)?;
            }
            at += got as u64;
        }
    }
    Ok(file)
}

/// Like [`spool`], for the first `size` bytes of `body`, or as many as there are.
pub(super) fn spool_whole(store: &Store, body: &mut dyn Read, size: u64) -> Result<File> {
    let mut body = body.take(size);
    let file = spool(store, &mut body, &[(0, size)])?;
    file.set_len(size - body.limit()).at("write a file in", &store.layout().staging())?;
    Ok(file)
}

/// Reads the current member's bytes, or a stream, and keeps a read error, to tell it apart from errors in the
/// store.
pub(super) struct Body<'a, R> {
    pub reader: &'a mut R,
    pub failed: Option<String>,
}

impl<R: Read> Read for Body<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buf).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.failed = Some(error.to_string());
            }
        })
    }
}

/// Reports the bytes read to the progress, and fails once that is cancelled.
pub(super) struct Counted<'a, R> {
    pub input: R,
    pub progress: &'a dyn Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.progress.is_cancelled() {
            return Err(io::Error::other("stopped on request"));
        }
        let got = self.input.read(buf)?;
        self.progress.add(got as u64, 0);
        Ok(got)
    }
}

/// Progress for a second pass over the same input: counts no bytes.
pub(super) struct Uncounted<'a>(pub &'a dyn Progress);

impl Progress for Uncounted<'_> {
    fn add(&self, _bytes: u64, entries: u64) {
        self.0.add(0, entries);
    }

    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}
