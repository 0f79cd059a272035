//! Reads a tar stream: v7, ustar, PAX, GNU and star headers; sparse members of GNU and of PAX 0.0, 0.1 and
//! 1.0.
//!
//! Not the `tar` crate, because archives are untrusted and nothing in them may be lost: extended headers are
//! bounded, PAX sparse members are supported, and ranges are passed on as ranges, so that holes are never
//! read.

use std::io::{self, BufReader, Read};

use super::header::{Header, flag};
use super::member::{Member, MemberKind, device, id, kind};
use super::pax::{MAX_PAX, Pax};
use super::sparse::{self, Ranges};
use super::{BLOCK, acl};
use crate::inode::Timestamp;

/// Maximum length in bytes of a name in a GNU `L` or `K` header.
const MAX_LONG_NAME: u64 = 1 << 20;

/// An error that ends the reading of an archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The source of bytes failed (a read error, or a decompressor that found its stream broken).
    #[error("reading the archive failed at byte {offset}: {source}")]
    Read {
        /// Offset in the uncompressed archive, in bytes.
        offset: u64,
        /// The cause.
        source: io::Error,
    },
    /// The archive ends before its end marker.
    #[error("the archive is truncated: it ends at byte {offset}, {place}")]
    Truncated {
        /// The archive's length as found, in bytes.
        offset: u64,
        /// The part of its structure in which it ends.
        place: &'static str,
    },
    /// This is not a tar archive, or a broken one.
    #[error("the archive is broken at byte {offset}: {reason}")]
    Broken {
        /// Offset of the bad header, in bytes.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
}

struct Words(&'static str);

/// Reads members one after another. After [`Reader::next_member`], the current member's stored bytes are read
/// through `Read`; the next call skips what is left of them. Memory use is bounded whatever the input.
pub struct Reader<R> {
    input: R,
    /// Seeks forward instead of reading, if the input can seek.
    leap: Option<Leap<R>>,
    offset: u64,
    body: u64,
    padding: u64,
    globals: Pax,
    trailing: bool,
    /// See [`Reader::unterminated`].
    unterminated: bool,
}

/// See [`Reader::seeking`].
type Leap<R> = fn(&mut R, i64) -> io::Result<()>;

impl<R: Read + io::Seek> Reader<BufReader<R>> {
    /// A reader at the start of an uncompressed archive that can seek: bodies that are not read are skipped
    /// by seeking.
    pub fn seeking(input: R) -> Self {
        Self { leap: Some(BufReader::seek_relative), ..Self::new(BufReader::new(input)) }
    }
}

impl<R: Read> Reader<R> {
    /// A reader at the start of an uncompressed archive.
    pub fn new(input: R) -> Self {
        Self {
            input,
            leap: None,
            offset: 0,
            body: 0,
            padding: 0,
            globals: Pax::default(),
            trailing: false,
            unterminated: false,
        }
    }

    /// Accepts an archive that ends after any member, without an end marker and without padding after the
    /// last body, as some writers of image layers produce it. Only for input whose completeness is checked by
    /// other means.
    #[must_use]
    pub fn unterminated(self) -> Self {
        Self { unterminated: true, ..self }
    }

    /// Returns the input at its current position.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Whether anything but zeros followed the end marker. It is not parsed: tar programs stop there too.
    pub fn has_trailing(&self) -> bool {
        self.trailing
    }

    /// The offset in the archive, in bytes: after [`Reader::next_member`], where the member's stored bytes
    /// begin.
    pub fn position(&self) -> u64 {
        self.offset
    }

    /// Returns the next member, or `None` at the end marker (the input is then read to its end, so that a
    /// decompressor checks its trailer).
    ///
    /// # Errors
    /// Any [`TarError`]; the reader cannot be used after one.
    pub fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        if self.skip_body()? {
            return Ok(None);
        }
        let mut local = Pax::default();
        let (mut long_name, mut long_link, mut solaris_acl) = (None, None, false);
        let first = self.offset;
        loop {
            let start = self.offset;
            let header = match self.header() {
                Err(TarError::Truncated { offset, .. }) if self.unterminated && offset == first => {
                    return Ok(None);
                }
                other => other?,
            };
            if header.is_zero() {
                self.drain()?;
                return Ok(None);
            }
            let broken = |reason: &str| TarError::Broken { offset: start, reason: reason.to_owned() };
            if !header.checksum_holds() {
                let what =
                    if start == 0 { "this is not a tar archive" } else { "a header's checksum is wrong" };
                return Err(broken(what));
            }
            let size = header.size().and_then(|n| u64::try_from(n).ok());
            let size = size.ok_or_else(|| broken("a header's size is not a number"))?;
            match header.type_flag() {
                flag::PAX | b'X' => {
                    local = Pax::default();
                    let bytes = self.meta(size, MAX_PAX, start)?;
                    local.parse(&bytes).map_err(broken)?;
                }
                flag::PAX_GLOBAL => {
                    let bytes = self.meta(size, MAX_PAX, start)?;
                    self.globals.parse(&bytes).map_err(broken)?;
                    self.globals.check_global().map_err(broken)?;
                }
                flag::GNU_LONG_NAME => long_name = Some(self.long_name(size, start)?),
                flag::GNU_LONG_LINK => long_link = Some(self.long_name(size, start)?),
                flag::GNU_VOLUME => {
                    self.open_body(size);
                    self.skip_body()?;
                }
                flag::SOLARIS_ACL => {
                    solaris_acl = true;
                    self.open_body(size);
                    self.skip_body()?;
                }
                _ => {
                    let mut pax = self.globals.clone();
                    pax.overlay(local);
                    let mut member = self.member(&header, size, &pax, long_name, long_link, start)?;
                    if solaris_acl {
                        member.notes.push("its Solaris ACL was left out".to_owned());
                    }
                    return Ok(Some(member));
                }
            }
        }
    }

    /// Combines a header with the extended headers before it.
    fn member(
        &mut self,
        header: &Header,
        size: u64,
        pax: &Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        start: u64,
    ) -> Result<Member, TarError> {
        let path = pax.get("GNU.sparse.name").or(pax.get("path")).map(<[u8]>::to_vec);
        let path = path.or(long_name).unwrap_or_else(|| header.name());
        let link =
            pax.get("linkpath").map(<[u8]>::to_vec).or(long_link).unwrap_or_else(|| header.link_name());
        let shown = String::from_utf8_lossy(&path).into_owned();
        let broken =
            |reason: &str| TarError::Broken { offset: start, reason: format!("member {shown:?}: {reason}") };
        if path.contains(&0) || link.contains(&0) {
            return Err(broken("its name or its link's target holds a NUL byte"));
        }
        let type_flag = header.type_flag();
        if type_flag == flag::GNU_MULTI_VOLUME {
            return Err(broken("it is continued from another volume: give all volumes as one archive"));
        }
        let known = kind(type_flag, &path);
        // POSIX says to treat unknown types as regular files.
        let kind = known.unwrap_or(MemberKind::Regular);
        let attributes = || -> Result<Member, &'static str> {
            let (mut xattrs, mut notes) = (pax.xattrs()?, Vec::new());
            if known.is_none() {
                let type_flag = type_flag.escape_ascii();
                notes.push(format!("its type '{type_flag}' is unknown, it was imported as a regular file"));
            }
            acl::from_records(pax, &mut xattrs, &mut notes);
            let device = match kind {
                MemberKind::CharDevice | MemberKind::BlockDevice => device(pax, header)?,
                _ => (0, 0),
            };
            Ok(Member {
                path: Vec::new(),
                link: Vec::new(),
                kind,
                mode: (header.mode().ok_or("its mode is not a number")? & 0o7777) as u32,
                uid: id(pax.number("uid")?, header.uid())?,
                gid: id(pax.number("gid")?, header.gid())?,
                mtime: match pax.mtime()? {
                    Some(time) => time,
                    None => Timestamp { secs: header.mtime().ok_or("its mtime is not a number")?, nanos: 0 },
                },
                device,
                xattrs: xattrs.into_iter().collect(),
                size: 0,
                ranges: None,
                literal: pax.get("KARAPACE.literal") == Some(b"1"),
                notes,
            })
        };
        let mut member = attributes().map_err(broken)?;
        let stored = pax.number("size").map_err(broken)?.unwrap_or(size);
        if i64::try_from(stored).is_err() {
            return Err(broken("its size exceeds the largest file size"));
        }
        match kind {
            MemberKind::Regular => {
                self.open_body(stored);
                let at = |error| match error {
                    Fault::Words(Words(reason)) => broken(reason),
                    Fault::Tar(error) => error,
                };
                (member.size, member.ranges) = self.content(header, pax, stored).map_err(at)?;
            }
            // GNU tar and Go write a size with some of these, but never a body; the listing of a dump
            // directory is skipped.
            MemberKind::Directory if type_flag == flag::GNU_DUMPDIR => self.open_body(stored),
            _ => {}
        }
        (member.path, member.link) = (path, link);
        Ok(member)
    }

    /// Size and sparse map of a regular member whose body is open; reads the part of the map that is in the
    /// body.
    fn content(&mut self, header: &Header, pax: &Pax, stored: u64) -> Result<(u64, Option<Ranges>), Fault> {
        if header.type_flag() == flag::GNU_SPARSE {
            return self.old_gnu_map(header, stored);
        }
        let real = pax.number("GNU.sparse.realsize")?.or(pax.number("GNU.sparse.size")?);
        if let Some(major) = pax.number("GNU.sparse.major")? {
            if major != 1 || pax.number("GNU.sparse.minor")?.unwrap_or(0) != 0 {
                return Err(Words("its PAX sparse format is newer than 1.0, which is not supported").into());
            }
            let size = real.ok_or(Words("a PAX sparse member has no size"))?;
            let before = self.body;
            let ranges = sparse::from_body::<Fault>(&mut || self.byte())?;
            let used = (before - self.body) % BLOCK as u64;
            if used != 0 {
                self.skip((BLOCK as u64 - used).min(self.body))?;
            }
            return Ok((size, Some(sparse::check(ranges, size, self.body)?)));
        }
        if let Some(ranges) = sparse::from_records(pax)? {
            let size = real.ok_or(Words("a PAX sparse member has no size"))?;
            return Ok((size, Some(sparse::check(ranges, size, stored)?)));
        }
        if pax.get("SCHILY.realsize").is_some() {
            return Err(Words(
                "it is sparse in star's format, which is not supported: create the archive with GNU tar",
            )
            .into());
        }
        Ok((stored, None))
    }

    fn old_gnu_map(&mut self, header: &Header, stored: u64) -> Result<(u64, Option<Ranges>), Fault> {
        let mut ranges = Vec::new();
        sparse::old_gnu(header.gnu_sparse_pairs(), &mut ranges)?;
        let mut more = header.gnu_sparse_continues();
        while more {
            // The continuation blocks of the map come before the body and do not count in its size.
            let block = self.header()?;
            sparse::old_gnu(&block.0[..504], &mut ranges)?;
            more = block.0[504] != 0;
        }
        let size = header.gnu_real_size().and_then(|n| u64::try_from(n).ok());
        let size = size.ok_or(Words("a sparse member's size is not a number"))?;
        Ok((size, Some(sparse::check(ranges, size, stored)?)))
    }

    fn open_body(&mut self, size: u64) {
        self.body = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        let mut byte = [0];
        match self.read(&mut byte) {
            Ok(1) => Ok(byte[0]),
            Ok(_) => Err(Words("its sparse map is truncated").into()),
            Err(source) => Err(TarError::Read { offset: self.offset, source }.into()),
        }
    }

    fn header(&mut self) -> Result<Header, TarError> {
        let mut block = [0; BLOCK];
        let place = if self.offset == 0 { "before the first header" } else { "without an end marker" };
        self.fill(&mut block, place)?;
        Ok(Header(block))
    }

    /// Reads the body of an extended header.
    fn meta(&mut self, size: u64, max: u64, start: u64) -> Result<Vec<u8>, TarError> {
        if size > max {
            let reason = format!("an extended header of {size} bytes is larger than the {max} allowed");
            return Err(TarError::Broken { offset: start, reason });
        }
        let mut bytes = vec![0; size as usize];
        self.fill(&mut bytes, "within an extended header")?;
        self.skip(size.next_multiple_of(BLOCK as u64) - size)?;
        Ok(bytes)
    }

    fn long_name(&mut self, size: u64, start: u64) -> Result<Vec<u8>, TarError> {
        let mut name = self.meta(size, MAX_LONG_NAME, start)?;
        name.truncate(name.iter().position(|&b| b == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn fill(&mut self, buf: &mut [u8], place: &'static str) -> Result<(), TarError> {
        let mut done = 0;
        while done < buf.len() {
            match self.input.read(&mut buf[done..]) {
                Ok(0) => return Err(TarError::Truncated { offset: self.offset, place }),
                Ok(n) => {
                    done += n;
                    self.offset += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Read { offset: self.offset, source }),
            }
        }
        Ok(())
    }

    /// Skips the rest of the open body. Returns true if the archive may end there, and does.
    fn skip_body(&mut self) -> Result<bool, TarError> {
        let (body, padding) = (self.body, self.padding);
        (self.body, self.padding) = (0, 0);
        self.skip_raw(body)?;
        match self.skip_raw(padding) {
            Err(TarError::Truncated { .. }) if self.unterminated => Ok(true),
            other => other.map(|()| false),
        }
    }

    /// Skips bytes of the open body.
    fn skip(&mut self, count: u64) -> Result<(), TarError> {
        self.body = self.body.saturating_sub(count);
        self.skip_raw(count)
    }

    fn skip_raw(&mut self, mut count: u64) -> Result<(), TarError> {
        let mut scrap = [0; 16 << 10];
        if let (Some(leap), Ok(far)) = (self.leap, i64::try_from(count))
            && count > scrap.len() as u64
        {
            // All but the last byte, so that a truncated archive is detected.
            leap(&mut self.input, far - 1)
                .map_err(|source| TarError::Read { offset: self.offset, source })?;
            self.offset += count - 1;
            count = 1;
        }
        while count > 0 {
            let part = count.min(scrap.len() as u64) as usize;
            self.fill(&mut scrap[..part], "within a member")?;
            count -= part as u64;
        }
        Ok(())
    }

    /// Reads what follows the end marker: zeros, or data that is not part of the archive.
    fn drain(&mut self) -> Result<(), TarError> {
        let mut scrap = [0; 16 << 10];
        loop {
            match self.input.read(&mut scrap) {
                Ok(0) => return Ok(()),
                Ok(got) => self.trailing |= scrap[..got].iter().any(|&b| b != 0),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Read { offset: self.offset, source }),
            }
        }
    }
}

/// Reads the stored bytes of the current member. `UnexpectedEof` if the input ends within them.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = self.body.min(buf.len() as u64) as usize;
        if want == 0 {
            return Ok(0);
        }
        let got = self.input.read(&mut buf[..want])?;
        if got == 0 {
            let what = format!("the archive is truncated: it ends at byte {} within a member", self.offset);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        self.body -= got as u64;
        self.offset += got as u64;
        Ok(got)
    }
}

/// A fault of the member, to be reported with its name, or one of the stream.
enum Fault {
    Words(Words),
    Tar(TarError),
}

impl From<Words> for Fault {
    fn from(words: Words) -> Self {
        Self::Words(words)
    }
}

impl From<&'static str> for Fault {
    fn from(words: &'static str) -> Self {
        Self::Words(Words(words))
    }
}

impl From<TarError> for Fault {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}
