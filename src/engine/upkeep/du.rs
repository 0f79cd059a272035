//! What environments take on disk.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use karapace_store::error::StoreError;
use karapace_store::id::LayerHash;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::Metadata;
use karapace_store::usage::{Group, Survey, Usage};
use serde::Serialize;

use super::gc::upper_roots;
use crate::engine::At as _;
use crate::engine::instance::snapshots::snapshots;
use crate::engine::{Engine, Error, Result};

/// What an environment takes. Sizes on disk are as `du` counts them, in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct EnvUsage {
    /// Its name.
    pub name: String,
    /// Its instance id, 32 hex digits.
    pub instance: String,
    /// Names in the snapshot that it stands on.
    pub entries: u64,
    /// Sizes of the files in it, added up.
    pub apparent_bytes: u64,
    /// What it and its snapshots refer to in the store.
    pub bytes: u64,
    /// Of that, what other environments refer to as well.
    pub shared_bytes: u64,
    /// Of that, what it alone refers to: what `destroy` and then `gc` free in the store.
    pub exclusive_bytes: u64,
    /// What is uncommitted, and its own files: what `destroy` frees at once.
    pub upper_bytes: u64,
}

/// What a snapshot takes.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotUsage {
    /// Its hash.
    pub hash: String,
    /// Its names, if it has any.
    pub names: Vec<String>,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Whether the environment stands on it.
    pub head: bool,
    /// Names in it.
    pub entries: u64,
    /// Sizes of the files in it, added up.
    pub apparent_bytes: u64,
    /// What it refers to in the store.
    pub bytes: u64,
    /// What nothing else refers to: what removing it and then `gc` free.
    pub exclusive_bytes: u64,
}

impl Engine {
    /// What each environment takes, by name, and what is wrong with the records that do not read.
    pub fn usage(&self) -> Result<(Vec<EnvUsage>, Vec<StoreError>)> {
        let _shared = StoreLock::shared(self.store())?;
        let (environments, unreadable) = self.readable()?;
        let mut survey = Survey::new(self.store().clone())?;
        let groups = environments.iter().map(|env| self.group(env)).collect::<Result<Vec<_>>>()?;
        let usages = survey.measure(&groups)?;
        let lines = environments.iter().zip(usages).map(|(env, usage)| self.line(&mut survey, env, usage));
        Ok((lines.collect::<Result<_>>()?, unreadable))
    }

    /// What `env` takes, and each of its snapshots, oldest first.
    pub fn usage_of(&self, env: &Metadata) -> Result<(EnvUsage, Vec<SnapshotUsage>)> {
        let _shared = StoreLock::shared(self.store())?;
        let env = Metadata::load(self.store(), &env.instance)?;
        let mut others = Group::default();
        for other in self.readable()?.0.iter().filter(|other| other.instance != env.instance) {
            let group = self.group(other)?;
            others.layers.extend(group.layers);
            others.uppers.extend(group.uppers);
        }
        let mut survey = Survey::new(self.store().clone())?;
        let usage = survey.measure(&[self.group(&env)?, others.clone()])?[0];
        let line = self.line(&mut survey, &env, usage)?;
        // Whatever becomes of the snapshots, base, packages and head stay.
        others.layers.extend([env.base_record, env.foundation().1, env.head_record]);
        others.uppers.push(upper_roots(self, &env.instance)?);
        let made = env.made();
        let mut groups: Vec<Group> = made.iter().map(|entry| group_of(&env, &entry.hash)).collect();
        groups.push(others);
        let usages = survey.measure(&groups)?;
        let mut lines = Vec::new();
        for (line, (entry, usage)) in snapshots(&env).into_iter().zip(made.iter().zip(usages)) {
            let shown = survey.shown(&entry.record)?;
            lines.push(SnapshotUsage {
                hash: line.hash,
                names: line.names,
                created_at: line.created_at,
                head: line.head,
                entries: shown.entries,
                apparent_bytes: shown.bytes,
                bytes: usage.bytes,
                exclusive_bytes: usage.exclusive_bytes,
            });
        }
        Ok((line, lines))
    }

    /// What the removal of snapshots would let a collection free: what nothing refers to but them.
    /// Call with the store's lock held, shared.
    pub(in crate::engine) fn held_by(&self, gone: &[(&Metadata, Vec<LayerHash>)]) -> Result<u64> {
        let (mut stays, mut goes) = (Group::default(), Group::default());
        for env in &self.readable()?.0 {
            let removed =
                gone.iter().find(|(other, _)| other.instance == env.instance).map(|(_, hashes)| hashes);
            stays.layers.extend([env.base_record, env.foundation().1, env.head_record]);
            stays.uppers.push(upper_roots(self, &env.instance)?);
            for snapshot in &env.snapshots {
                let is_removed = removed.is_some_and(|hashes| hashes.contains(&snapshot.hash));
                if is_removed { &mut goes } else { &mut stays }.layers.push(snapshot.record);
            }
        }
        let usages = Survey::new(self.store().clone())?.measure(&[stays, goes])?;
        Ok(usages[1].exclusive_bytes)
    }

    fn group(&self, env: &Metadata) -> Result<Group> {
        let layers = env.layers().into_iter().map(|(_, _, record)| record).collect();
        Ok(Group { layers, uppers: vec![upper_roots(self, &env.instance)?] })
    }

    fn line(&self, survey: &mut Survey, env: &Metadata, usage: Usage) -> Result<EnvUsage> {
        let shown = survey.shown(&env.head_record)?;
        Ok(EnvUsage {
            name: env.name.clone(),
            instance: env.instance.to_hex(),
            entries: shown.entries,
            apparent_bytes: shown.bytes,
            bytes: usage.bytes,
            shared_bytes: usage.bytes - usage.exclusive_bytes,
            exclusive_bytes: usage.exclusive_bytes,
            upper_bytes: on_disk(&self.env_dir(&env.instance))?,
        })
    }
}

/// All records of the snapshots with this hash: they go together.
fn group_of(env: &Metadata, hash: &LayerHash) -> Group {
    let layers = env.snapshots.iter().filter(|s| s.hash == *hash).map(|s| s.record).collect();
    Group { layers, uppers: Vec::new() }
}

/// What a directory takes with all that is in it. What goes meanwhile does not count.
fn on_disk(dir: &Path) -> Result<u64> {
    let (mut bytes, mut todo) = (0, vec![dir.to_owned()]);
    while let Some(path) = todo.pop() {
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io("read", &path, e)),
        };
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            let entries = match fs::read_dir(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                other => other.at("list", &path)?,
            };
            for entry in entries {
                todo.push(entry.at("list", &path)?.path());
            }
        }
    }
    Ok(bytes)
}
