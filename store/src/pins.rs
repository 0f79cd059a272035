//! Pins: keep the trees that a live process serves from being collected.
//!
//! A mount pins the roots of its view. A pin ends with its process, so a crash leaves nothing to clean up.

use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError};
use crate::held::{self, HeldFile, Unreadable};
use crate::id::ObjectId;
use crate::open::Store;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    pid: u32,
    roots: Vec<ObjectId>,
    #[serde(default)]
    objects: Vec<ObjectId>,
}

/// What is pinned.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Pinned {
    /// Root objects, with everything they refer to.
    pub roots: Vec<ObjectId>,
    /// Content objects and block lists.
    pub objects: Vec<ObjectId>,
}

/// Keeps root objects, and everything they refer to, from being collected until it is dropped or the process
/// ends.
///
/// Must be taken under [`crate::lock::StoreLock::shared`], while something else (metadata, an upper) still
/// refers to the roots.
pub struct Pin {
    /// `None` in a read-only store, from which nothing can be removed.
    file: Option<HeldFile>,
}

impl Pin {
    /// Pins `roots`. Not durable: no pin outlives its process.
    pub fn hold(store: &Store, roots: &[ObjectId]) -> Result<Pin> {
        if store.is_read_only() {
            return Ok(Pin { file: None });
        }
        Ok(Pin {
            file: Some(HeldFile::create(store.files(), &store.layout().pins(), &encode(roots, &[])?, false)?),
        })
    }

    /// Atomically replaces what is pinned by `roots` and single content `objects`.
    pub fn set(&mut self, roots: &[ObjectId], objects: &[ObjectId]) -> Result<()> {
        match &mut self.file {
            Some(file) => file.replace(&encode(roots, objects)?),
            None => Ok(()),
        }
    }
}

fn encode(roots: &[ObjectId], objects: &[ObjectId]) -> Result<Vec<u8>> {
    let content = Content { pid: std::process::id(), roots: roots.to_vec(), objects: objects.to_vec() };
    serde_json::to_vec(&content).map_err(|e| StoreError::Invalid(format!("cannot encode a pin: {e}")))
}

/// What live processes pin. Pins of dead processes are removed.
///
/// # Errors
/// When a pin cannot be read, or the directory of pins is missing: then what running mounts need is unknown.
pub(crate) fn live(store: &Store) -> Result<Pinned> {
    let dir = store.layout().pins();
    if dir.symlink_metadata().is_err() {
        let dir = dir.display();
        return Err(StoreError::Invalid(format!(
            "{dir} is missing, so the objects that mounts use are not known: unmount everything, then run `karapace \
             verify-store --repair`"
        )));
    }
    let (pinned, unreadable) = read(store)?;
    match unreadable.into_iter().next() {
        None => Ok(pinned),
        Some((path, reason)) => {
            Err(StoreError::Invalid(format!("the pin {} is unreadable: {reason}", path.display())))
        }
    }
}

/// What live processes pin, and the pins that cannot be read. Pins of dead processes are removed.
pub(crate) fn read(store: &Store) -> Result<(Pinned, Unreadable)> {
    let (mut pinned, mut unreadable) = (Pinned::default(), Vec::new());
    for found in held::scan(store.files(), &store.layout().pins())? {
        if found.dead.is_some() {
            continue; // dropping it removes the file
        }
        match found.parse::<Content>() {
            Ok(content) => {
                pinned.roots.extend(content.roots);
                pinned.objects.extend(content.objects);
            }
            Err(reason) => unreadable.push((found.path, reason)),
        }
    }
    Ok((pinned, unreadable))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_pin_lives_as_long_as_its_holder_and_can_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (a, b) = (ObjectId::of(b"a"), ObjectId::of(b"b"));
        assert_eq!(live(&store).unwrap(), Pinned::default());
        let mut pin = Pin::hold(&store, &[a]).unwrap();
        assert_eq!(live(&store).unwrap().roots, [a]);
        pin.set(&[b], &[a]).unwrap();
        assert_eq!(live(&store).unwrap(), Pinned { roots: vec![b], objects: vec![a] });
        drop(pin);
        assert_eq!(live(&store).unwrap(), Pinned::default());
        assert_eq!(fs::read_dir(store.layout().pins()).unwrap().count(), 0);
    }

    #[test]
    fn pins_of_dead_processes_are_ignored_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let pins = store.layout().pins();
        fs::write(pins.join("00"), encode(&[ObjectId::of(b"a")], &[]).unwrap()).unwrap();
        fs::write(pins.join(".torn"), b"{").unwrap();
        assert_eq!(live(&store).unwrap(), Pinned::default());
        assert_eq!(fs::read_dir(pins).unwrap().count(), 0);
    }
}
