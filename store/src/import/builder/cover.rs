//! Laying one layer over what is below it.

use std::collections::BTreeMap;

use super::trail::Trail;
use super::{Builder, Child, Content, DirId, LeafId, Marks, Redirect, Shape, refuse};
use crate::content::FileContent;
use crate::error::Result;

/// A directory of the layer that has yet to be merged with the one it covers.
struct Step {
    directory: DirId,
    below: Option<DirId>,
    path: Trail,
}

impl Builder {
    /// Lays `layer` over this tree: its whiteouts and opaque marks hide what was here, wherever they stand in
    /// the layer, but nothing of the layer itself.
    ///
    /// Directories that the layer does not touch stay as they are. So the work is proportional to the layer
    /// and the entries of the directories it touches.
    pub fn cover(&mut self, layer: Builder) -> Result<()> {
        let (renames, links) = (layer.renames, layer.pending.then_some(self.leaves.len()));
        let (top, was) = (self.take_over(layer), self.root);
        if let Some(first) = links {
            self.link_below(first, was);
        }
        let mut unresolved = BTreeMap::new();
        let mut todo = vec![Step { directory: top, below: Some(was), path: Trail::default() }];
        while let Some(step) = todo.pop() {
            // A covered directory is in the result only through the one that covers it.
            if let Some(below) = step.below
                && std::mem::replace(&mut self.directories[below.0].taken, true)
            {
                let reason = "two directories of the upper claim to be the same directory of the lower";
                return Err(refuse(&step.path.path(), reason));
            }
            let directory = step.directory;
            let shown = self.merge(step, was, &mut todo, &mut unresolved)?;
            self.show(directory, shown, renames);
        }
        for (leaf, path) in unresolved {
            if let Shape::Content(Content::Below(..)) = self.leaves[leaf.0].shape {
                let reason =
                    "it has only metadata, and the lower has no regular file of its size with the data";
                return Err(refuse(&path.path(), reason));
            }
        }
        self.root = top;
        self.settle()
    }

    /// Moves a layer's directories and leaves into this builder; returns its root.
    fn take_over(&mut self, layer: Builder) -> DirId {
        let (directories, leaves) = (self.directories.len(), self.leaves.len());
        self.pending |= layer.pending;
        self.room = layer.room;
        self.leaves.extend(layer.leaves);
        self.directories.extend(layer.directories.into_iter().map(|mut directory| {
            for child in directory.children.values_mut() {
                match child {
                    Child::Directory(id) => id.0 += directories,
                    Child::Leaf(id) => id.0 += leaves,
                }
            }
            directory
        }));
        DirId(layer.root.0 + directories)
    }

    /// Resolves hard links, among the leaves from `first` on, to inodes below the layer: the layer did not
    /// have the target itself when the link came. A whiteout hides the target's name, not the file.
    fn link_below(&mut self, first: usize, was: DirId) {
        for leaf in first..self.leaves.len() {
            if let Shape::Pending(wanted) = &self.leaves[leaf].shape
                && let Some(Child::Leaf(found)) = self.find(was, wanted)
            {
                self.leaves[leaf].shape = Shape::Same(found);
            }
        }
    }

    /// Finds what lies below one directory of the layer and below its children. Returns the directory below
    /// that shows through, and the marks that hide parts of it.
    fn merge(
        &mut self,
        step: Step,
        was: DirId,
        todo: &mut Vec<Step>,
        unresolved: &mut BTreeMap<LeafId, Trail>,
    ) -> Result<Option<(DirId, Box<Marks>)>> {
        let marks = self.directories[step.directory.0].marks.take().unwrap_or_default();
        let below = step.below.filter(|_| !marks.opaque);
        let children: Vec<_> = self.directories[step.directory.0]
            .children
            .iter()
            .map(|(name, &child)| (name.clone(), child))
            .collect();
        for (name, child) in children {
            match child {
                Child::Directory(directory) => {
                    let below = self.below(directory, &name, below, &marks, was);
                    let path = step.path.below(name);
                    let below = below.map_err(|reason| refuse(&path.path(), &reason))?;
                    todo.push(Step { directory, below, path });
                }
                Child::Leaf(leaf) => {
                    if let Some(content) = self.content_below(leaf, &name, below, was) {
                        self.leaves[leaf.0].shape = Shape::Content(Content::Regular(content));
                    } else if let Shape::Content(Content::Below(..)) = self.leaves[leaf.0].shape {
                        unresolved.insert(leaf, step.path.below(name));
                    }
                }
            }
        }
        Ok(below.map(|below| (below, marks)))
    }

    /// Adds to a directory of the layer what shows of the one below. The one below is then no longer needed,
    /// unless the layer has renames, which look things up below.
    fn show(&mut self, directory: DirId, below: Option<(DirId, Box<Marks>)>, renames: bool) {
        let Some((below, marks)) = below else { return };
        let below = &mut self.directories[below.0];
        let children = if renames { below.children.clone() } else { std::mem::take(&mut below.children) };
        let (ino, attributes) = (below.ino, below.attributes.clone());
        let directory = &mut self.directories[directory.0];
        for (name, child) in children {
            if !marks.whiteouts.contains(&name) {
                directory.children.entry(name).or_insert(child);
            }
        }
        directory.ino = ino;
        if !directory.explicit {
            directory.attributes = attributes;
        }
    }

    /// The directory that a child of a layer's directory covers; `below` is what its parent covers.
    fn below(
        &self,
        directory: DirId,
        name: &[u8],
        below: Option<DirId>,
        marks: &Marks,
        was: DirId,
    ) -> super::Reason<Option<DirId>> {
        let own = self.directories[directory.0].marks.as_deref();
        if own.is_some_and(|own| own.opaque) {
            return Ok(None);
        }
        if let Some(redirect) = own.and_then(|own| own.redirect.as_ref()) {
            return match self.redirected(redirect, below, was) {
                Some(Child::Directory(found)) => Ok(Some(found)),
                _ => Err(format!("it was renamed from {redirect}, but the lower has no such directory")),
            };
        }
        if marks.whiteouts.contains(name) {
            return Ok(None);
        }
        Ok(match below.and_then(|below| self.directories[below.0].children.get(name)) {
            Some(&Child::Directory(found)) => Some(found),
            _ => None,
        })
    }

    /// The content that a leaf shares with a file below; `None` if it has its own or there is no such file.
    fn content_below(
        &self,
        leaf: LeafId,
        name: &[u8],
        below: Option<DirId>,
        was: DirId,
    ) -> Option<FileContent> {
        let Shape::Content(Content::Below(size, redirect)) = &self.leaves[leaf.0].shape else { return None };
        let found = match redirect {
            Some(redirect) => self.redirected(redirect, below, was)?,
            None => *self.directories[below?.0].children.get(name)?,
        };
        let Child::Leaf(found) = found else { return None };
        match &self.leaves[found.0].shape {
            Shape::Content(Content::Regular(content)) if content.size == *size => Some(content.clone()),
            _ => None,
        }
    }

    fn redirected(&self, redirect: &Redirect, below: Option<DirId>, was: DirId) -> Option<Child> {
        match redirect {
            Redirect::Name(name) => self.directories[below?.0].children.get(name).copied(),
            Redirect::Path(path) => self.find(was, path),
        }
    }
}

impl std::fmt::Display for Redirect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Redirect::Name(name) => write!(f, "{:?}", String::from_utf8_lossy(name)),
            Redirect::Path(path) => write!(f, "{:?}", String::from_utf8_lossy(&path.join(&b'/'))),
        }
    }
}
