//! What a walk through a directory of the host reports at its end: counts, with the first names.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// How many names are listed.
const NAMES: usize = 5;

/// Paths with something in common.
#[derive(Default)]
pub(super) struct Paths {
    first: Vec<PathBuf>,
    count: u64,
}

impl Paths {
    pub fn push(&mut self, path: &Path) {
        self.count += 1;
        if self.first.len() < NAMES {
            self.first.push(path.to_owned());
        }
    }

    /// `one` or `many`, with the count in place of `{}`, and the names; `None` if there are no paths.
    fn note(&self, one: &str, many: &str) -> Option<String> {
        let sentence = match self.count {
            0 => return None,
            1 => one.to_owned(),
            count => many.replace("{}", &count.to_string()),
        };
        let names: Vec<String> = self.first.iter().map(|path| path.display().to_string()).collect();
        let mut note = format!("{sentence}: {}", names.join(", "));
        match self.count - self.first.len() as u64 {
            0 => {}
            more => write!(note, " and {more} more").expect("a string takes all"),
        }
        Some(note)
    }
}

/// What happened to some of the entries.
#[derive(Default)]
pub(super) struct Told {
    /// Were listed, but gone when they were read.
    pub vanished: Paths,
    /// Files that were written to while they were read.
    pub changed: Paths,
    /// Mount points whose mounts were left out.
    pub mounts: Paths,
    /// The same for pseudo file systems.
    pub pseudo: Paths,
}

impl Told {
    pub fn notes(&self) -> impl Iterator<Item = String> {
        [
            self.vanished.note(
                "one entry vanished while the directory was read, and was left out",
                "{} entries vanished while the directory was read, and were left out",
            ),
            self.changed.note(
                "one file changed while it was read, and may be a mixture of old and new data",
                "{} files changed while they were read, and may be a mixture of old and new data",
            ),
            self.mounts.note(
                "one mount was left out, and its mount point is empty (`karapace import --cross-mounts` includes it)",
                "{} mounts were left out, and their mount points are empty (`karapace import --cross-mounts` includes them)",
            ),
            self.pseudo.note(
                "one mount was left out, because it shows the kernel's state and holds no files",
                "{} mounts were left out, because they show the kernel's state and hold no files",
            ),
        ]
        .into_iter()
        .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_counted_and_the_first_are_told() {
        let mut told = Told::default();
        assert_eq!(told.notes().count(), 0);
        told.changed.push(Path::new("/a"));
        for number in 0..7 {
            told.vanished.push(Path::new(&format!("/v{number}")));
        }
        let notes: Vec<String> = told.notes().collect();
        assert_eq!(
            notes,
            [
                "7 entries vanished while the directory was read, and were left out: /v0, /v1, /v2, /v3, /v4 and 2 more",
                "one file changed while it was read, and may be a mixture of old and new data: /a",
            ]
        );
    }
}
