//! Which paths belong to an operation on chosen paths (docs/MANIFEST.md, "Chosen paths"): [`scan`] walks,
//! [`resolve`] adds what the found paths need.
//!
//! Both work on any [`PathTree`]: a tree of the store ([`StoredTree`](crate::tree::StoredTree)) or a
//! directory of the host ([`HostTree`]). Paths are absolute within the tree, `/` is its root, and resolution
//! never leaves it: links are followed by name inside the tree.

mod host;

#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::{BTreeSet, VecDeque};

use crate::error::Result;
use crate::inode::FileKind;

pub use host::HostTree;

/// How many symbolic links one path may pass, as in Linux.
const MAX_HOPS: u32 = 40;

/// A tree of files. No method follows a symbolic link.
pub trait PathTree {
    /// A file or directory in the tree.
    type Node: Clone;

    /// The root directory.
    fn root(&self) -> Result<Self::Node>;

    /// What a directory has under a name; `None` if there is nothing.
    fn lookup(&self, dir: &Self::Node, name: &[u8]) -> Result<Option<(Self::Node, FileKind)>>;

    /// The target of a symbolic link.
    fn readlink(&self, link: &Self::Node) -> Result<Vec<u8>>;

    /// The names in a directory, in any order.
    fn list(&self, dir: &Self::Node) -> Result<Vec<Box<[u8]>>>;
}

/// Paths to leave out, each with everything below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignore(Vec<Vec<u8>>);

impl Ignore {
    /// Takes absolute paths without `.` and `..`, such as a manifest's normalised list.
    pub fn new<P: Into<Vec<u8>>>(paths: impl IntoIterator<Item = P>) -> Ignore {
        Ignore(paths.into_iter().map(Into::into).collect())
    }

    /// Whether `path` is one of the paths or below one, by whole components: `/tmp` does not cover
    /// `/tmpfile`.
    pub fn covers(&self, path: &[u8]) -> bool {
        self.0.iter().any(|ignored| is_at_or_below(path, ignored))
    }

    /// The paths.
    pub fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether `path` is `top` or below it, by whole components.
pub fn is_at_or_below(path: &[u8], top: &[u8]) -> bool {
    match path.strip_prefix(top) {
        Some(rest) => rest.is_empty() || rest[0] == b'/' || top == b"/",
        None => false,
    }
}

/// The order of paths in a layer: compared by component, so that a directory is followed by everything below
/// it.
pub fn order(a: &[u8], b: &[u8]) -> Ordering {
    components(a).cmp(components(b))
}

/// The components of a path.
pub fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/').filter(|name| !name.is_empty())
}

/// The normal form of an absolute path: no `.`, no empty component, no trailing slash. `None` for a path that
/// is not absolute or has `..`, whose meaning depends on links.
pub fn normalise(path: &[u8]) -> Option<Vec<u8>> {
    if path.first() != Some(&b'/') || components(path).any(|name| name == b"..") {
        return None;
    }
    let mut normal = Vec::with_capacity(path.len());
    for name in components(path).filter(|name| *name != b".") {
        normal.push(b'/');
        normal.extend_from_slice(name);
    }
    Some(if normal.is_empty() { b"/".to_vec() } else { normal })
}

/// All paths at and below `from`, sorted by [`order`]. Ignored paths are left out and, if they are
/// directories, not opened. Symbolic links are not followed, not even on the way to `from`. Empty if there is
/// nothing at `from`.
pub fn scan<T: PathTree>(tree: &T, from: &[u8], ignore: &Ignore) -> Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    let (mut node, mut kind) = (tree.root()?, FileKind::Directory);
    for name in components(from) {
        match if kind == FileKind::Directory { tree.lookup(&node, name)? } else { None } {
            Some(next) => (node, kind) = next,
            None => return Ok(found),
        }
    }
    let Some(from) = normalise(from).filter(|from| !ignore.covers(from)) else { return Ok(found) };
    // An explicit stack: a tree may be deeper than a thread's stack allows.
    let mut todo = vec![(from, node, kind)];
    while let Some((path, node, kind)) = todo.pop() {
        if kind == FileKind::Directory {
            let mut names = tree.list(&node)?;
            // In reverse, because the stack reverses the order.
            names.sort_unstable_by(|a, b| b.cmp(a));
            for name in names {
                let below = join(&path, &name);
                if ignore.covers(&below) {
                    continue;
                }
                // It may be gone since it was listed: a host directory can change during the walk.
                if let Some((node, kind)) = tree.lookup(&node, &name)? {
                    todo.push((below, node, kind));
                }
            }
        }
        found.push(path);
    }
    Ok(found)
}

/// The paths to include for `paths`, sorted by [`order`]: those that exist and are not ignored; for each
/// symbolic link on the way or at the end, the link itself, every further link it passes, and its target; and
/// every directory above any of these. Links are resolved inside the tree, even if their targets are absolute
/// or have `..`.
/// targets are written.
///
/// If a link leads to an ignored path, the link is included but its target is not; a link that dangles or
/// loops is included alone. Nothing is compared, and deletions are not reported: a path that does not exist
/// adds nothing.
pub fn resolve<T: PathTree>(tree: &T, paths: &[Vec<u8>], ignore: &Ignore) -> Result<Vec<Vec<u8>>> {
    let mut taken: BTreeSet<Ordered> = BTreeSet::new();
    for path in paths.iter().filter(|path| !ignore.covers(path)) {
        let Followed { own: Some(own), way, beyond, .. } = follow(tree, path, ignore)? else { continue };
        for path in way.into_iter().chain(beyond).chain((!ignore.covers(&own)).then_some(own)) {
            insert_with_parents(&mut taken, path);
        }
    }
    Ok(taken.into_iter().map(|Ordered(path)| path).collect())
}

/// The real location of a path: links among the directories above it are resolved, but the path itself is not
/// followed. `None` if it does not exist.
pub fn locate<T: PathTree>(tree: &T, path: &[u8]) -> Result<Option<Vec<u8>>> {
    Ok(follow(tree, path, &Ignore::default())?.own)
}

/// What is at a path after following every link; `None` if there is nothing.
pub fn find<T: PathTree>(tree: &T, path: &[u8]) -> Result<Option<(T::Node, FileKind)>> {
    Ok(follow(tree, path, &Ignore::default())?.end)
}

/// All paths that [`scan`] finds at the chosen ones, and what [`resolve`] adds.
pub fn choose<T: PathTree>(tree: &T, chosen: &[Vec<u8>], ignore: &Ignore) -> Result<Vec<Vec<u8>>> {
    // The chosen paths as given are included too, for the links on the way to them.
    let mut paths = chosen.to_vec();
    for path in chosen {
        if let Some(path) = locate(tree, path)? {
            paths.extend(scan(tree, &path, ignore)?);
        }
    }
    resolve(tree, &paths, ignore)
}

fn insert_with_parents(taken: &mut BTreeSet<Ordered>, path: Vec<u8>) {
    let mut above = Some(path);
    // If a path is in the set, so are its parents.
    while let Some(path) = above.take_if(|path| taken.insert(Ordered(path.clone()))) {
        above = parent(&path).map(<[u8]>::to_vec);
    }
}

/// The directory above; `None` for the root.
pub fn parent(path: &[u8]) -> Option<&[u8]> {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(0) if path.len() == 1 => None,
        Some(0) => Some(b"/"),
        Some(end) => Some(&path[..end]),
        None => None,
    }
}

#[derive(PartialEq, Eq)]
struct Ordered(Vec<u8>);

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> Ordering {
        order(&self.0, &other.0)
    }
}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The result of following a path.
struct Followed<N> {
    /// The location of the path itself, not followed; `None` if it does not exist.
    own: Option<Vec<u8>>,
    /// Links among the directories above it.
    way: Vec<Vec<u8>>,
    /// Where its own links lead: each further link and the target; empty if they dangle or loop.
    beyond: Vec<Vec<u8>>,
    /// What is there in the end; `None` if it does not exist, or its links dangle or loop.
    end: Option<(N, FileKind)>,
}

fn follow<T: PathTree>(tree: &T, path: &[u8], ignore: &Ignore) -> Result<Followed<T::Node>> {
    let mut followed = Followed { own: None, way: Vec::new(), beyond: Vec::new(), end: None };
    let mut todo: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
    // How many of the remaining components are the path's own, rather than from a link's target.
    let mut own_ahead = todo.len();
    let root = tree.root()?;
    let mut at: Vec<(Vec<u8>, T::Node)> = Vec::new();
    let mut hops = 0;
    if todo.is_empty() {
        followed.own = Some(b"/".to_vec());
    }
    // The current location; if it is a directory, its node is the last of `at`.
    let mut end = b"/".to_vec();
    let mut file = None;
    let failed = |mut followed: Followed<T::Node>| {
        followed.beyond.clear();
        Ok(followed)
    };
    while let Some(name) = todo.pop_front() {
        let is_own = todo.len() < own_ahead;
        own_ahead = own_ahead.min(todo.len());
        if name == b"." || name == b".." {
            if name == b".." {
                at.pop();
            }
            end = at.last().map_or(b"/".to_vec(), |(path, _)| path.clone());
            continue;
        }
        let here = join(at.last().map_or(b"/", |(path, _)| path), &name);
        let Some((node, kind)) = tree.lookup(at.last().map_or(&root, |(_, node)| node), &name)? else {
            return failed(followed);
        };
        if is_own && own_ahead == 0 {
            followed.own = Some(here.clone());
        } else if kind == FileKind::Symlink {
            match (&followed.own, ignore.covers(&here)) {
                (Some(_), true) => return Ok(followed),
                (Some(_), false) => followed.beyond.push(here.clone()),
                (None, true) => {}
                (None, false) => followed.way.push(here.clone()),
            }
        }
        match kind {
            FileKind::Symlink => {
                hops += 1;
                if hops > MAX_HOPS {
                    return failed(followed);
                }
                let target = tree.readlink(&node)?;
                if target.first() == Some(&b'/') {
                    at.clear();
                }
                for name in components(&target).collect::<Vec<_>>().into_iter().rev() {
                    todo.push_front(name.to_vec());
                }
                end = at.last().map_or(b"/".to_vec(), |(path, _)| path.clone());
            }
            FileKind::Directory => {
                end.clone_from(&here);
                at.push((here, node));
            }
            _ if todo.is_empty() => {
                end = here;
                file = Some((node, kind));
            }
            // There is nothing below a file that is not a directory.
            _ => return failed(followed),
        }
    }
    if followed.own.as_ref().is_some_and(|own| *own != end) && !ignore.covers(&end) {
        followed.beyond.push(end);
    }
    let directory = || (at.pop().map_or(root, |(_, node)| node), FileKind::Directory);
    followed.end = Some(file.unwrap_or_else(directory));
    Ok(followed)
}

fn join(above: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = if above == b"/" { Vec::new() } else { above.to_vec() };
    path.push(b'/');
    path.extend_from_slice(name);
    path
}
