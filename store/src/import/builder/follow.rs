//! Finds where an entry of a layer belongs when its path contains symbolic links.

use super::{Builder, Child, Content, DirId, MAX_LINKS, Reason, Shape, normalise};

/// Where the path of an entry leads.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::import) enum Way {
    /// The path has no symbolic link above the last component.
    Straight,
    /// To this path.
    To(Vec<u8>),
    /// Through a link that leads to no directory; the text says why.
    Nowhere(String),
}

/// A directory on the path, as this layer and as the layers below have it.
struct Step {
    name: Box<[u8]>,
    own: Option<DirId>,
    below: Option<DirId>,
}

impl Builder {
    /// Follows the symbolic links above the last component of an entry's name, in the tree that this layer,
    /// as read so far, shows over `below`: with `lib -> usr/lib`, `lib/x` is `usr/lib/x`. Absolute targets
    /// and `..` never lead above the root.
    pub fn follow(&self, below: &Builder, path: &[u8]) -> Reason<Way> {
        let components = normalise(path)?;
        let Some((last, above)) = components.split_last() else { return Ok(Way::Straight) };
        // The components still to follow. Those from a link's target must exist; those of the name are made.
        let mut todo: Vec<(Box<[u8]>, bool)> = above.iter().rev().map(|name| (name.clone(), false)).collect();
        let mut at: Vec<Step> = Vec::new();
        let (mut followed, mut first_link): (usize, Option<Vec<u8>>) = (0, None);
        while let Some((name, is_targets)) = todo.pop() {
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    at.pop();
                    continue;
                }
                _ => {}
            }
            let here = at.last().map_or((Some(self.root), Some(below.root)), |step| (step.own, step.below));
            let ours = here.0.and_then(|own| self.directories[own.0].children.get(&name).copied());
            let under = here.1.filter(|_| !here.0.is_some_and(|own| self.hides(own, &name)));
            let theirs = under.and_then(|under| below.directories[under.0].children.get(&name).copied());
            let directory = |child| match child {
                Some(Child::Directory(directory)) => Some(directory),
                _ => None,
            };
            let shape = match (ours, theirs) {
                (Some(Child::Leaf(leaf)), _) => &self.leaves[leaf.0].shape,
                (None, Some(Child::Leaf(leaf))) => &below.leaves[leaf.0].shape,
                (None, None) if is_targets => return Ok(Way::nowhere(first_link.as_deref())),
                (ours, theirs) => {
                    at.push(Step { name, own: directory(ours), below: directory(theirs) });
                    continue;
                }
            };
            let path = || at.iter().map(|step| &*step.name).chain([&*name]).collect::<Vec<_>>().join(&b'/');
            let Shape::Content(Content::Symlink(target)) = shape else {
                return match &first_link {
                    Some(link) => Ok(Way::nowhere(Some(link))),
                    None => {
                        Err(format!("its parent {:?} is not a directory", String::from_utf8_lossy(&path())))
                    }
                };
            };
            first_link.get_or_insert_with(path);
            followed += 1;
            if followed > MAX_LINKS {
                return Ok(Way::nowhere(first_link.as_deref()));
            }
            if target.starts_with(b"/") {
                at.clear();
            }
            todo.extend(target.split(|&b| b == b'/').rev().map(|part| (part.into(), true)));
        }
        if followed == 0 {
            return Ok(Way::Straight);
        }
        Ok(Way::To(at.iter().map(|step| &*step.name).chain([&**last]).collect::<Vec<_>>().join(&b'/')))
    }

    /// Whether a directory of the layer hides this name of the layers below.
    fn hides(&self, directory: DirId, name: &[u8]) -> bool {
        let marks = self.directories[directory.0].marks.as_deref();
        marks.is_some_and(|marks| marks.opaque || marks.whiteouts.contains(name))
    }
}

impl Way {
    fn nowhere(link: Option<&[u8]>) -> Way {
        let link = String::from_utf8_lossy(link.unwrap_or_default()).into_owned();
        Way::Nowhere(format!("{link:?} in its path does not lead to a directory"))
    }
}
