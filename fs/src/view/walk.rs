//! Read-ahead for tree walks.
//!
//! Programs that walk a tree (find, tar, cp -a, grep -r) visit the entries of each directory in listing
//! order. Once some entries have been used in sequence, this module selects the next ones, and background
//! threads read and verify them. Errors are left to the request that needs the data.

use std::num::NonZeroUsize;
use std::sync::Arc;

use karapace_store::content::FileContent;
use karapace_store::id::ObjectId;
use karapace_store::inode::{FileKind, Ino};
use karapace_store::tree::Trees;
use lru::LruCache;

use crate::view::View;
use crate::view::content::ContentReader;
use crate::view::node::{FileBody, Node, NodeBody};
use crate::view::table::State;
use crate::view::table::listing::Listing;

/// Entries of one directory that are being read ahead, or were read and not used yet.
const WINDOW: usize = 32;
/// Bytes of file content that are read ahead at a time.
const MOST_BYTES: u64 = 8 << 20;
/// Number of entries used in sequence that makes a walk.
const SURE: u32 = 3;
/// Entries that may be skipped in a sequence: the kernel may have them cached.
const MOST_SKIPPED: usize = 1;
/// Listing entries that are searched for skipped ones.
const LOOKED_AT: usize = 512;
/// Directories whose progress is remembered.
const DIRECTORIES: usize = 64;
/// Items that one thread reads before it looks for other work.
const AT_ONCE: usize = 8;

/// Kind of entry that is read ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sort {
    File,
    Directory,
}

/// Progress of a walk in one directory, as positions in its listing.
struct Progress {
    /// Position after the last used entry.
    next: usize,
    /// Position after the last entry selected for read-ahead.
    named: usize,
    /// Entries selected but not used yet.
    waiting: usize,
}

/// The walks of a view.
pub(super) struct Walks {
    directories: LruCache<(Ino, Sort), Progress>,
    /// Length of the current sequence, of files and of directories, up to [`SURE`].
    in_order: [u32; 2],
}

impl Default for Walks {
    fn default() -> Walks {
        let most = NonZeroUsize::new(DIRECTORIES).unwrap_or(NonZeroUsize::MIN);
        Walks { directories: LruCache::new(most), in_order: [0; 2] }
    }
}

/// The entries of one sort in a listing; `is_one` returns None if the inode is not in the table.
struct Entries<'a> {
    dir: Ino,
    sort: Sort,
    len: usize,
    is_one: &'a dyn Fn(usize) -> Option<bool>,
}

impl Walks {
    /// Records that entry `at` was used; returns the entries to read ahead.
    fn used(&mut self, entries: &Entries<'_>, at: usize) -> Vec<usize> {
        let key = (entries.dir, entries.sort);
        let start = || Progress { next: 0, named: 0, waiting: 0 };
        let progress = self.directories.get_or_insert_mut(key, start);
        let in_order = &mut self.in_order[entries.sort as usize];
        if at + 1 == progress.next {
            return Vec::new();
        }
        let skipped = match at.checked_sub(progress.next) {
            Some(0..=LOOKED_AT) => {
                let between = (progress.next..at).filter(|at| (entries.is_one)(*at) == Some(true));
                between.take(MOST_SKIPPED + 1).count()
            }
            _ => usize::MAX,
        };
        if skipped > MOST_SKIPPED {
            *in_order = 0;
            *progress = Progress { next: at + 1, named: at + 1, waiting: 0 };
            return Vec::new();
        }
        *in_order = SURE.min(*in_order + 1);
        progress.next = at + 1;
        progress.named = progress.named.max(progress.next);
        progress.waiting = progress.waiting.saturating_sub(skipped + 1);
        if *in_order < SURE || progress.waiting > WINDOW / 2 {
            return Vec::new();
        }
        progress.name_more(entries)
    }

    /// Records that a directory is listed from its beginning; returns the entries to read ahead if a walk is
    /// in progress.
    fn begun(&mut self, entries: &Entries<'_>) -> Vec<usize> {
        let mut progress = Progress { next: 0, named: 0, waiting: 0 };
        let is_sure = self.in_order[entries.sort as usize] == SURE;
        let named = if is_sure { progress.name_more(entries) } else { Vec::new() };
        self.directories.put((entries.dir, entries.sort), progress);
        named
    }
}

impl Progress {
    fn name_more(&mut self, entries: &Entries<'_>) -> Vec<usize> {
        let mut more = Vec::new();
        let end = entries.len.min(self.named + LOOKED_AT);
        while self.named < end && self.waiting < WINDOW {
            match (entries.is_one)(self.named) {
                Some(true) => {
                    more.push(self.named);
                    self.waiting += 1;
                }
                Some(false) => {}
                None => break,
            }
            self.named += 1;
        }
        more
    }
}

enum Wanted {
    Tree(ObjectId),
    Content(Arc<FileContent>),
}

/// Trees and contents to read ahead of a walk.
pub struct Ahead {
    trees: Arc<Trees>,
    content: Arc<ContentReader>,
    wanted: Vec<Wanted>,
}

impl Ahead {
    /// Splits the work for several threads; the first part holds what is needed first.
    pub fn parts(self) -> impl Iterator<Item = Ahead> {
        let Ahead { trees, content, wanted } = self;
        let mut wanted = wanted.into_iter();
        std::iter::from_fn(move || {
            let wanted: Vec<Wanted> = wanted.by_ref().take(AT_ONCE).collect();
            (!wanted.is_empty()).then(|| Ahead { trees: trees.clone(), content: content.clone(), wanted })
        })
    }

    /// Reads everything. Errors are only logged at debug level: the request that needs the data reports them.
    pub fn read(self) {
        let mut scratch = Vec::new();
        for wanted in &self.wanted {
            let read = match wanted {
                Wanted::Tree(tree) => self.trees.load(tree).map_err(Into::into),
                Wanted::Content(content) => self.content.read_ahead(content, &mut scratch),
            };
            if let Err(error) = read {
                tracing::debug!(%error, "cannot read ahead");
            }
        }
    }
}

impl View {
    /// Call when a file is read from its beginning. Returns what to read ahead.
    pub fn ahead_of_read(&self, ino: Ino) -> Option<Ahead> {
        let state = self.state.read();
        let wanted = self.used(&state, ino, Sort::File).unwrap_or_default();
        self.ahead(wanted)
    }

    /// Call when a directory has been listed from its beginning. Returns what to read ahead.
    pub fn ahead_of_listing(&self, ino: Ino) -> Option<Ahead> {
        let mut state = self.state.write();
        // The listings of the ancestors are in use too; keep them cached.
        let mut above = ino;
        while let Some(place) = state.nodes.get(&above).and_then(|node| node.place.as_ref()) {
            above = place.parent;
            state.listings.promote(&above);
        }
        let mut wanted = Vec::new();
        if let Some(listing) = state.listings.peek(&ino) {
            for sort in [Sort::File, Sort::Directory] {
                let is_one = &|at| is_one(&state, ino, listing, sort, at);
                let entries = Entries { dir: ino, sort, len: listing.entries.len(), is_one };
                let named = self.walks.lock().begun(&entries);
                wanted.extend(named.into_iter().filter_map(|at| wanted_of(&state, listing, at)));
            }
        }
        wanted.extend(self.used(&state, ino, Sort::Directory).into_iter().flatten());
        self.ahead(wanted)
    }

    /// What follows an inode in its directory's listing; None if that is not known.
    fn used(&self, state: &State, ino: Ino, sort: Sort) -> Option<Vec<Wanted>> {
        let place = state.nodes.get(&ino)?.place.as_ref()?;
        let listing = state.listings.peek(&place.parent)?;
        let at = listing.position(&place.name)?;
        let is_one = &|at| is_one(state, place.parent, listing, sort, at);
        let entries = Entries { dir: place.parent, sort, len: listing.entries.len(), is_one };
        let named = self.walks.lock().used(&entries, at);
        Some(named.into_iter().filter_map(|at| wanted_of(state, listing, at)).collect())
    }

    /// Drops what has been read already, and files beyond [`MOST_BYTES`].
    fn ahead(&self, mut wanted: Vec<Wanted>) -> Option<Ahead> {
        let mut bytes = 0;
        wanted.retain(|wanted| match wanted {
            Wanted::Tree(tree) => !self.trees.is_loaded(tree),
            Wanted::Content(content) => {
                bytes += content.size.min(ContentReader::MOST_AHEAD);
                bytes <= MOST_BYTES && !self.content.is_open(content)
            }
        });
        let (trees, content) = (self.trees.clone(), self.content.clone());
        (!wanted.is_empty()).then(|| Ahead { trees, content, wanted })
    }
}

/// Whether an entry is of this sort and using it reads anything, which an empty file does not. None if its
/// inode is not in the table.
fn is_one(state: &State, dir: Ino, listing: &Listing, sort: Sort, at: usize) -> Option<bool> {
    let entry = &listing.entries[at];
    match (sort, entry.kind) {
        (Sort::Directory, FileKind::Directory) => state.nodes.get(&entry.ino).map(|_| true),
        (Sort::File, FileKind::Regular) => state
            .nodes
            .get(&entry.ino)
            .map(|node| node.meta.size > 0 && node.place.as_ref().is_some_and(|place| place.parent == dir)),
        _ => Some(false),
    }
}

/// The entry's tree or content in the store.
fn wanted_of(state: &State, listing: &Listing, at: usize) -> Option<Wanted> {
    let node: &Node = state.nodes.get(&listing.entries[at].ino)?;
    match &node.body {
        NodeBody::Dir(dir) => dir.tree.map(Wanted::Tree),
        NodeBody::File(FileBody::Lower(content)) => Some(Wanted::Content(content.clone())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(dir: Ino, is_one: &dyn Fn(usize) -> Option<bool>) -> Entries<'_> {
        Entries { dir, sort: Sort::File, len: 100, is_one }
    }

    #[test]
    fn sequential_access_is_read_ahead() {
        let mut walks = Walks::default();
        // Every other entry is a file.
        let is_one = |at: usize| Some(at.is_multiple_of(2));
        let entries = of(7, &is_one);
        assert!(walks.begun(&entries).is_empty(), "no walk yet");
        let mut named = Vec::new();
        let mut most = 0;
        for at in (0..100).step_by(2) {
            let more = walks.used(&entries, at);
            assert!(at >= 4 || more.is_empty(), "too early, at {at}");
            assert!(more.iter().all(|ahead| *ahead > at), "{more:?} at {at}");
            named.extend(more);
            most = most.max(named.iter().filter(|ahead| **ahead > at).count());
        }
        assert_eq!(named, (6..100).step_by(2).collect::<Vec<_>>(), "each once");
        assert_eq!(most, WINDOW);
        // The first entries of the next directory are read ahead.
        let next = of(8, &is_one);
        assert_eq!(walks.begun(&next), (0..2 * WINDOW).step_by(2).collect::<Vec<_>>());
        assert!(walks.used(&next, 0).is_empty(), "enough is under way");
    }

    #[test]
    fn random_access_is_not_read_ahead() {
        let mut walks = Walks::default();
        let is_one = |_| Some(true);
        let entries = of(7, &is_one);
        for step in [3, 7, 97] {
            walks.begun(&entries);
            let named = (1..200).flat_map(|i| walks.used(&entries, i * step % 100)).count();
            assert_eq!(named, 0, "in steps of {step}");
        }
        // Skipping one entry does not end a walk; skipping two does.
        for (step, expected) in [(2, true), (3, false)] {
            walks.begun(&entries);
            let named = (0..8).flat_map(|i| walks.used(&entries, i * step)).count();
            assert_eq!(named > 0, expected, "in steps of {step}");
        }
        // Reading the same file again is no walk either.
        walks.begun(&entries);
        assert_eq!((0..50).flat_map(|_| walks.used(&entries, 0)).count(), 0);
    }

    #[test]
    fn only_known_and_needed_entries_are_examined() {
        let mut walks = Walks::default();
        let known = |at: usize| (at < 10).then_some(true);
        let entries = Entries { len: usize::MAX, ..of(7, &known) };
        let named = (0..5).flat_map(|at| walks.used(&entries, at)).collect::<Vec<_>>();
        assert_eq!(named, [3, 4, 5, 6, 7, 8, 9]);
        // One file, and no other within the range that is searched.
        let none = |_| Some(false);
        assert!(walks.begun(&Entries { len: usize::MAX, ..of(8, &none) }).is_empty());
    }
}
