//! Which paths an operation on chosen paths takes (docs/MANIFEST.md, "Chosen paths"): [`scan`] walks,
//! [`resolve`] adds what the found paths need.
//!
//! Both work on any [`PathTree`]: a tree of the store ([`StoredTree`](crate::tree::StoredTree)) or a
//! directory of the host ([`HostTree`]). Paths are absolute within the tree, `/` is its root, and no step
//! ever leaves it: links are followed by name inside the tree.

mod host;

#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::{BTreeSet, VecDeque};

use crate::error::Result;
use crate::inode::FileKind;

pub use host::HostTree;

/// How many symbolic links one path may lead through, as in Linux.
const MAX_HOPS: u32 = 40;

/// A tree of files as the two calls see it. Nothing here follows a symbolic link.
pub trait PathTree {
    /// Something in the tree that was found.
    type Node: Clone;

    /// The root directory.
    fn root(&self) -> Result<Self::Node>;

    /// What a directory has under a name; None if nothing.
    fn lookup(&self, dir: &Self::Node, name: &[u8]) -> Result<Option<(Self::Node, FileKind)>>;

    /// The target of a symbolic link.
    fn readlink(&self, link: &Self::Node) -> Result<Vec<u8>>;

    /// The names in a directory, in any order.
    fn list(&self, dir: &Self::Node) -> Result<Vec<Box<[u8]>>>;
}

/// Paths that are left out, each with everything below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignore(Vec<Vec<u8>>);

impl Ignore {
    /// From absolute paths without `.` and `..`, such as a manifest's normalised list.
    pub fn new<P: Into<Vec<u8>>>(paths: impl IntoIterator<Item = P>) -> Ignore {
        Ignore(paths.into_iter().map(Into::into).collect())
    }

    /// Whether `path` is one of them or below one: by whole components, so `/tmp` does not cover `/tmpfile`.
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

/// The order of paths in a layer: component by component, so that a directory is followed by all that is
/// below it.
pub fn order(a: &[u8], b: &[u8]) -> Ordering {
    components(a).cmp(components(b))
}

/// The names that a path consists of.
pub fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/').filter(|name| !name.is_empty())
}

/// An absolute path in its only form: no `.`, no empty component, no slash at the end. None for a path that
/// is not absolute or has `..`: what that means depends on links.
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

/// All paths at and below `from`, in the order of [`order`]. What is ignored is left out and, when it is a
/// directory, not opened; no symbolic link is followed, on the way to `from` neither. Empty when there is
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
    // A stack of its own: a tree may be deeper than a thread's.
    let mut todo = vec![(from, node, kind)];
    while let Some((path, node, kind)) = todo.pop() {
        if kind == FileKind::Directory {
            let mut names = tree.list(&node)?;
            // Backwards, because the stack turns them round.
            names.sort_unstable_by(|a, b| b.cmp(a));
            for name in names {
                let below = join(&path, &name);
                if ignore.covers(&below) {
                    continue;
                }
                // Gone since it was listed: a host directory may change under the walk.
                if let Some((node, kind)) = tree.lookup(&node, &name)? {
                    todo.push((below, node, kind));
                }
            }
        }
        found.push(path);
    }
    Ok(found)
}

/// The paths to take for `paths`, in the order of [`order`]: those of them that exist and are not ignored;
/// for each symbolic link on the way or at the end the link, every further link that it leads through, and
/// its target; and every directory above any of these. Links are resolved inside the tree, however their
/// targets are written.
///
/// A link that leads to an ignored path is taken and its target is not; a link that dangles or loops is taken
/// alone. Neither compares anything nor says what was deleted: a path that is not there gives nothing.
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

/// Where a path really is: the links among the directories above it resolved, itself not followed. None when
/// it is not there.
pub fn locate<T: PathTree>(tree: &T, path: &[u8]) -> Result<Option<Vec<u8>>> {
    Ok(follow(tree, path, &Ignore::default())?.own)
}

/// What is at a path when every link is followed; None when that is nothing.
pub fn find<T: PathTree>(tree: &T, path: &[u8]) -> Result<Option<(T::Node, FileKind)>> {
    Ok(follow(tree, path, &Ignore::default())?.end)
}

/// Every path that [`scan`] finds at the chosen ones, with what [`resolve`] adds.
pub fn choose<T: PathTree>(tree: &T, chosen: &[Vec<u8>], ignore: &Ignore) -> Result<Vec<Vec<u8>>> {
    // The chosen paths as they were given, too: the links on the way to them are theirs.
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
    // What is there already has its parents there.
    while let Some(path) = above.take_if(|path| taken.insert(Ordered(path.clone()))) {
        above = parent(&path).map(<[u8]>::to_vec);
    }
}

/// The directory above; None of the root.
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

/// Where following a path led.
struct Followed<N> {
    /// Where the path itself is, not followed; None when it is not there.
    own: Option<Vec<u8>>,
    /// Links among the directories above it.
    way: Vec<Vec<u8>>,
    /// Where its own links lead: each further link and the target; empty when they dangle or loop.
    beyond: Vec<Vec<u8>>,
    /// What is there in the end; None when it is not there, or they dangle or loop.
    end: Option<(N, FileKind)>,
}

fn follow<T: PathTree>(tree: &T, path: &[u8], ignore: &Ignore) -> Result<Followed<T::Node>> {
    let mut followed = Followed { own: None, way: Vec::new(), beyond: Vec::new(), end: None };
    let mut todo: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
    // How many of the components ahead are the path's own, not those of a link.
    let mut own_ahead = todo.len();
    let root = tree.root()?;
    let mut at: Vec<(Vec<u8>, T::Node)> = Vec::new();
    let mut hops = 0;
    if todo.is_empty() {
        followed.own = Some(b"/".to_vec());
    }
    // Where the way has come to; a directory's node is the last of `at`.
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
            // Below what is no directory there is nothing.
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
