//! The path to a node during a walk: a chain of names, shared by everything below, so that a wide directory
//! at a great depth costs no more than its names.

use std::rc::Rc;

/// A path from the top; the default is the top itself.
#[derive(Clone, Default)]
pub(super) struct Trail(Option<Rc<Part>>);

struct Part {
    above: Trail,
    name: Box<[u8]>,
}

impl Trail {
    /// The path of the entry with this name, below this path.
    pub fn below(&self, name: Box<[u8]>) -> Trail {
        Trail(Some(Rc::new(Part { above: self.clone(), name })))
    }

    /// The names, joined by `/`; empty for the top.
    pub fn path(&self) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = self;
        while let Some(part) = &at.0 {
            names.push(&part.name[..]);
            at = &part.above;
        }
        names.reverse();
        names.join(&b'/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_put_together() {
        let top = Trail::default();
        let a = top.below((*b"a").into());
        assert_eq!(top.path(), b"");
        assert_eq!(a.below((*b"b").into()).path(), b"a/b");
        assert_eq!(a.path(), b"a");
    }
}
