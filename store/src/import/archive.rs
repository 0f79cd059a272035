//! Importing a tar archive.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::builder::{Attributes, Builder, Content, check_xattrs, refuse};
use super::compress::decompress;
use super::{Imported, Progress, Warnings, finish};
use crate::content::{self, FileContent};
use crate::error::{IoContext, Result, StoreError};
use crate::inode::FileKind;
use crate::object::Batch;
use crate::open::Store;
use crate::tar::{Member, MemberKind, Reader, TarError};

/// `source` names the archive in errors.
pub(super) fn import(
    store: &Arc<Store>,
    input: impl Read + Send,
    source: &str,
    progress: &dyn Progress,
) -> Result<Imported> {
    let broken =
        |error: &dyn std::fmt::Display| StoreError::Invalid(format!("cannot import {source}: {error}"));
    std::thread::scope(|scope| {
        let input = decompress(scope, Counted { input, progress }).map_err(|e| broken(&e))?;
        let mut import = Import {
            store,
            batch: Batch::new(store)?,
            reader: Reader::new(BufReader::with_capacity(256 << 10, input)),
            builder: Builder::new(),
            warnings: Warnings::default(),
            bytes: 0,
        };
        while let Some(member) = import.reader.next_member().map_err(|e: TarError| broken(&e))? {
            import.take_in(member)?;
            progress.add(0, 1);
        }
        finish(import.builder, import.batch, import.bytes, import.warnings)
    })
}

struct Import<'a, R> {
    store: &'a Store,
    batch: Batch,
    reader: Reader<R>,
    builder: Builder,
    warnings: Warnings,
    bytes: u64,
}

impl<R: Read> Import<'_, R> {
    fn take_in(&mut self, member: Member) -> Result<()> {
        let path = member.path;
        for note in member.notes {
            self.warnings.push(format!("{:?}: {note}", String::from_utf8_lossy(&path)));
        }
        check_xattrs(&member.xattrs).map_err(|reason| refuse(&path, &reason))?;
        let attributes = Attributes {
            mode: member.mode,
            uid: member.uid,
            gid: member.gid,
            mtime: member.mtime,
            xattrs: member.xattrs.into_iter().collect(),
        };
        let (major, minor) = member.device;
        let special = |kind| Content::Special(kind, rustix::fs::makedev(major, minor));
        let put = match member.kind {
            MemberKind::Directory => self.builder.put_directory(&path, attributes),
            MemberKind::HardLink => self.builder.put_link(&path, &member.link),
            MemberKind::Regular => {
                let content = Content::Regular(self.body(&path, member.size, member.ranges.as_deref())?);
                self.builder.put(&path, attributes, content)
            }
            MemberKind::Symlink => self.builder.put(&path, attributes, Content::Symlink(member.link.into())),
            MemberKind::CharDevice => self.builder.put(&path, attributes, special(FileKind::CharDevice)),
            MemberKind::BlockDevice => self.builder.put(&path, attributes, special(FileKind::BlockDevice)),
            MemberKind::Fifo => self.builder.put(&path, attributes, special(FileKind::Fifo)),
        };
        put.map_err(|reason| refuse(&path, &reason))
    }

    /// Streams a member's content into the batch.
    fn body(&mut self, path: &[u8], size: u64, ranges: Option<&[(u64, u64)]>) -> Result<FileContent> {
        if i64::try_from(size).is_err() {
            return Err(refuse(path, "it is larger than a file can be"));
        }
        let mut body = Body { reader: &mut self.reader, failed: None };
        let content = match ranges {
            None => content::ingest(&mut body, &mut self.batch),
            Some(ranges) => spool(self.store, &mut body, ranges)
                .and_then(|file| content::ingest_ranges(&file, size, ranges, &mut self.batch)),
        };
        // A failing source is the archive's fault, whatever the store made of it.
        if let Some(reason) = body.failed {
            return Err(refuse(path, &reason));
        }
        self.bytes += ranges.map_or(size, |r| r.iter().map(|r| r.1).sum());
        content
    }
}

/// Puts the ranges of a sparse member where they belong in an unnamed file of the store.
fn spool(store: &Store, body: &mut dyn Read, ranges: &[(u64, u64)]) -> Result<File> {
    let dir = store.layout().staging();
    let file = tempfile::tempfile_in(&dir).at("create a file in", &dir)?;
    let mut buf = vec![0; 256 << 10];
    for &(start, length) in ranges {
        let (mut at, end) = (start, start + length);
        while at < end {
            let want = (end - at).min(buf.len() as u64) as usize;
            let got = body.read(&mut buf[..want]).at("read the archive for", &dir)?;
            if got == 0 {
                break; // the map was checked against what is stored, so the body has failed and says so
            }
            file.write_all_at(&buf[..got], at).at("write a file in", &dir)?;
            at += got as u64;
        }
    }
    Ok(file)
}

/// The current member's bytes; keeps what went wrong with them, to be told apart from what goes wrong in the store.
struct Body<'a, R> {
    reader: &'a mut Reader<R>,
    failed: Option<String>,
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

/// Tells the progress how many bytes of the source were read.
struct Counted<'a, R> {
    input: R,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.input.read(buf)?;
        self.progress.add(got as u64, 0);
        Ok(got)
    }
}
