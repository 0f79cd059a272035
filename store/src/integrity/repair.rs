//! Repairs: rebuilds what can be derived, quarantines the rest, and deletes nothing.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;

use super::places::can_be_made_anew;
use super::{Finding, Kind};
use crate::batch::Batch;
use crate::content::{self, BLOCK, BlockList, FileContent};
use crate::error::{IoContext, Result};
use crate::id::{InstanceId, ObjectId, RecordId};
use crate::layer::LayerRecord;
use crate::lock::StoreLock;
use crate::metadata::Metadata;
use crate::open::Store;
use crate::quarantine::{self, keep_copy, set_aside};
use crate::reach::{Fault, Met, Reach, Watch};

/// Files up to this many bytes are retried with each single bit flipped: the time grows with the square of
/// the size.
const MEND_MAX: u64 = 16 << 10;

/// What was done about a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    /// A single bit was wrong and was flipped back; the hash proves which one.
    Mended,
    /// It was rebuilt from what it can be derived from.
    Rebuilt,
    /// Its bytes were fetched again from the image.
    Fetched,
    /// It was moved to the quarantine.
    SetAside,
    /// A journal was truncated before its damage; a full copy is in the quarantine.
    Cut,
}

/// One action of a repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Action {
    /// What was done.
    pub deed: Deed,
    /// The id of the object, layer record or environment.
    pub object: Option<String>,
    /// The file on the host.
    pub file: Option<String>,
    /// A description of the action.
    pub message: String,
}

impl Action {
    /// An action on a file.
    pub fn new(deed: Deed, object: Option<String>, file: &Path, message: String) -> Action {
        Action { deed, object, file: Some(file.to_string_lossy().into_owned()), message }
    }
}

/// Repairs what [`super::verify`] found, as far as the store alone can. Each finding is checked again first.
/// The caller handles uppers, and bytes that can be fetched from an image.
///
/// Takes the store's lock exclusively: no other process may find an object while it is being quarantined.
///
/// # Errors
/// When the file system refuses an action; earlier actions remain done.
pub fn repair(store: &Arc<Store>, findings: &[Finding]) -> Result<Vec<Action>> {
    let _alone = StoreLock::exclusive(store)?;
    let mut actions = Vec::new();
    for finding in findings {
        let file = finding.file.as_ref().map(PathBuf::from);
        let object = finding.object.as_deref();
        let action = match (finding.kind, &file) {
            (Kind::MissingDirectory, Some(dir)) => make_directory(store, dir)?,
            (Kind::WrongPermissions, Some(file)) => set_mode(store, file)?,
            (Kind::CorruptIntent, Some(file)) => move_intent(store, file)?,
            (Kind::CorruptObject | Kind::CorruptTree, _) => match object.and_then(|id| id.parse().ok()) {
                Some(id) => mend_object(store, &id)?,
                None => None,
            },
            (Kind::CorruptLayer, _) => match object.and_then(|id| id.parse().ok()) {
                Some(id) => mend_layer(store, &id)?,
                None => None,
            },
            (Kind::CorruptEnvironment, _) => match object.and_then(|id| id.parse().ok()) {
                Some(instance) => mend_environment(store, &instance)?,
                None => None,
            },
            _ => None,
        };
        actions.extend(action);
    }
    actions.extend(rebuild_block_lists(store, findings)?);
    Ok(actions)
}

/// Returns `bytes` with one bit flipped such that `is_right` holds, if there is such a bit.
pub fn mend(bytes: &[u8], is_right: &dyn Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    if bytes.len() as u64 > MEND_MAX {
        return None;
    }
    let mut tried = bytes.to_vec();
    for bit in 0..bytes.len() * 8 {
        tried[bit / 8] ^= 1 << (bit % 8);
        if is_right(&tried) {
            return Some(tried);
        }
        tried[bit / 8] ^= 1 << (bit % 8);
    }
    None
}

fn make_directory(store: &Store, dir: &Path) -> Result<Option<Action>> {
    if !can_be_made_anew(store.layout(), dir) {
        return Ok(None);
    }
    match store.files().make_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        other => other.at("create", dir)?,
    }
    dir.parent().map_or(Ok(()), |parent| store.files().sync_dir(parent))?;
    let message = format!("the directory {} was created again", dir.display());
    Ok(Some(Action::new(Deed::Rebuilt, None, dir, message)))
}

fn set_mode(store: &Store, path: &Path) -> Result<Option<Action>> {
    let metadata = path.symlink_metadata().at("read", path)?;
    let in_objects = path.starts_with(store.objects().dir());
    let mode = match (metadata.is_dir(), metadata.is_file() && in_objects) {
        (true, _) => 0o700,
        (_, true) => 0o444,
        _ => return Ok(None),
    };
    if metadata.permissions().mode() & 0o7777 == mode {
        return Ok(None);
    }
    store.files().set_mode(path, mode).at("set the mode of", path)?;
    let message = format!("the mode of {} was set to {mode:04o}", path.display());
    Ok(Some(Action::new(Deed::Rebuilt, None, path, message)))
}

fn move_intent(store: &Store, path: &Path) -> Result<Option<Action>> {
    let name = crate::files::name(path).unwrap_or("intent");
    let to = set_aside(store, quarantine::Kind::Wal, path, name)?;
    let message = format!("the intent {name} was moved to {}", to.display());
    Ok(Some(Action::new(Deed::SetAside, None, path, message)))
}

fn mend_object(store: &Arc<Store>, id: &ObjectId) -> Result<Option<Action>> {
    let path = store.objects().path(id);
    let Ok(metadata) = path.symlink_metadata() else { return Ok(None) };
    // A file that cannot be read is quarantined like one that reads wrongly.
    let files = store.files();
    let small = match metadata.len() <= MEND_MAX {
        true => files.read(&path, u64::MAX).unwrap_or_default(),
        false => Vec::new(),
    };
    let is_right = |bytes: &[u8]| ObjectId::of(bytes) == *id;
    let whole = match metadata.len() <= MEND_MAX {
        true => is_right(&small),
        false => files
            .open_object(&path)
            .and_then(|file| super::hash(file, &mut vec![0; 1 << 20]))
            .is_ok_and(|(_, hash)| hash == *id),
    };
    if whole {
        return Ok(None);
    }
    let to = set_aside(store, quarantine::Kind::Objects, &path, &id.to_hex())?;
    let name = Some(id.to_hex());
    if let Some(good) = mend(&small, &is_right) {
        let mut batch = Batch::new(store)?;
        batch.put(&good)?;
        batch.commit()?;
        let message =
            format!("object {id} was repaired by flipping one bit; the damaged original is {}", to.display());
        return Ok(Some(Action::new(Deed::Mended, name, &path, message)));
    }
    let message = format!(
        "object {id} was moved to {}; the next import or commit of the same content stores it again",
        to.display()
    );
    Ok(Some(Action::new(Deed::SetAside, name, &path, message)))
}

fn mend_layer(store: &Store, id: &RecordId) -> Result<Option<Action>> {
    let path = store.layout().layer(id);
    if LayerRecord::read(store, id).is_ok() || path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let bytes = store.files().read(&path, u64::MAX).unwrap_or_default();
    let to = set_aside(store, quarantine::Kind::Layers, &path, &id.to_hex())?;
    let name = Some(id.to_hex());
    if let Some(good) = mend(&bytes, &|bytes| RecordId::of(bytes) == *id) {
        store.files().write(&path, &good)?;
        let message = format!(
            "layer record {id} was repaired by flipping one bit; the damaged original is {}",
            to.display()
        );
        return Ok(Some(Action::new(Deed::Mended, name, &path, message)));
    }
    let message = format!(
        "layer record {id} was moved to {}; a snapshot that needs it can only be removed (`karapace snapshots rm`)",
        to.display()
    );
    Ok(Some(Action::new(Deed::SetAside, name, &path, message)))
}

/// A record that cannot be mended stays in place: without it, what the environment refers to is garbage.
fn mend_environment(store: &Store, instance: &InstanceId) -> Result<Option<Action>> {
    let path = Metadata::path(store, instance);
    if Metadata::load(store, instance).is_ok() {
        return Ok(None);
    }
    let Ok(bytes) = store.files().read(&path, u64::MAX) else { return Ok(None) };
    let is_right = |bytes: &[u8]| Metadata::decode(bytes, instance, &path).is_ok();
    let Some(good) = mend(&bytes, &is_right) else { return Ok(None) };
    let to = keep_copy(store, quarantine::Kind::Environments, &path, &instance.to_hex())?;
    store.files().write(&path, &good)?;
    let message = format!(
        "environment record {instance} was repaired by flipping one bit; the damaged original is {}",
        to.display()
    );
    Ok(Some(Action::new(Deed::Mended, Some(instance.to_hex()), &path, message)))
}

/// Rebuilds missing block lists from their files' data, if the result has the wanted hash.
fn rebuild_block_lists(store: &Arc<Store>, findings: &[Finding]) -> Result<Vec<Action>> {
    let wanted: HashSet<ObjectId> = findings
        .iter()
        .filter_map(|finding| finding.object.as_ref()?.parse().ok())
        .filter(|id| !store.objects().contains(id) && !store.objects().is_elsewhere(id))
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let mut reach = Reach::new(store.clone());
    for metadata in Metadata::list(store)?.into_iter().flatten() {
        for (_, _, record) in metadata.layers() {
            if let Ok(record) = LayerRecord::read(store, &record) {
                reach.root(record.tree, &Rc::from(metadata.name.as_str()));
            }
        }
    }
    let mut listed = Listed { wanted: &wanted, found: Vec::new() };
    reach.run(&mut listed)?;
    let mut actions = Vec::new();
    let mut batch = Batch::new(store)?;
    for content in listed.found {
        // Unreadable data proves nothing.
        let Ok(list) = block_list(store, &content) else { continue };
        let bytes = list.encode();
        if ObjectId::of(&bytes) == content.hash {
            batch.put(&bytes)?;
            let message = format!("block list {} was rebuilt from the file's data", content.hash);
            let path = store.objects().path(&content.hash);
            actions.push(Action::new(Deed::Rebuilt, Some(content.hash.to_hex()), &path, message));
        }
    }
    batch.commit()?;
    Ok(actions)
}

/// Collects the contents whose block lists are missing.
struct Listed<'a> {
    wanted: &'a HashSet<ObjectId>,
    found: Vec<FileContent>,
}

impl Watch for Listed<'_> {
    fn fault(&mut self, _fault: Fault) -> Result<()> {
        Ok(())
    }

    fn file(&mut self, content: &FileContent, _by: &dyn Fn() -> Met) -> Result<()> {
        let is_new = || self.found.iter().all(|known| known.hash != content.hash);
        if !content.is_plain() && self.wanted.contains(&content.hash) && is_new() {
            self.found.push(content.clone());
        }
        Ok(())
    }
}

fn block_list(store: &Store, content: &FileContent) -> Result<BlockList> {
    let mut list = BlockList::new(content.size);
    let mut block = vec![0; BLOCK as usize];
    for (start, length) in content.data_ranges() {
        for offset in (start..start + length).step_by(BLOCK as usize) {
            let part = &mut block[..BLOCK.min(content.size - offset) as usize];
            content::read_at(store, content, offset, part)?;
            list.set(offset / BLOCK, Some(ObjectId::of(part)));
        }
    }
    Ok(list)
}
