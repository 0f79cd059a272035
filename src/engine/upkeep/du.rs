//! Disk usage of environments.

use std::fs;
use std::io::{self, ErrorKind};
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

/// Disk usage of an environment. Sizes on disk are as `du` counts them, in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct EnvUsage {
    /// Its name.
    pub name: String,
    /// Its instance id, 32 hex digits.
    pub instance: String,
    /// Number of entries in its head.
    pub entries: u64,
    /// Sum of the sizes of the files in it, in bytes.
    pub apparent_bytes: u64,
    /// Size of what it and its snapshots refer to in the store.
    pub bytes: u64,
    /// The part of `bytes` that other environments refer to as well.
    pub shared_bytes: u64,
    /// The part of `bytes` that only it refers to: what `destroy` and then `gc` free in the store.
    pub exclusive_bytes: u64,
    /// Size of the uncommitted changes and the environment's own files: what `destroy` frees at once.
    pub upper_bytes: u64,
}

/// Disk usage of a snapshot, sizes in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotUsage {
    /// Its hash.
    pub hash: String,
    /// Its names, if it has any.
    pub names: Vec<String>,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Whether it is the environment's head.
    pub head: bool,
    /// Number of entries in it.
    pub entries: u64,
    /// Sum of the sizes of the files in it, in bytes.
    pub apparent_bytes: u64,
    /// Size of what it refers to in the store.
    pub bytes: u64,
    /// Size of what only it refers to: what removing it and then `gc` free.
    pub exclusive_bytes: u64,
}

impl Engine {
    /// The usage of each environment by name, and the errors of the records that cannot be read.
    pub fn usage(&self) -> Result<(Vec<EnvUsage>, Vec<StoreError>)> {
        let _shared = StoreLock::shared(self.store())?;
        let (environments, unreadable) = self.readable()?;
        let mut survey = Survey::new(self.store().clone())?;
        let groups = environments.iter().map(|env| self.group(env)).collect::<Result<Vec<_>>>()?;
        let usages = survey.measure(&groups)?;
        let lines = environments.iter().zip(usages).map(|(env, usage)| self.line(&mut survey, env, usage));
        Ok((lines.collect::<Result<_>>()?, unreadable))
    }

    /// The usage of `env` and of each of its snapshots, oldest first.
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
        // Base, packages and head stay even if snapshots are removed.
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

    /// The bytes that a collection could free after the removal of these snapshots, because nothing else
    /// refers to them. The caller holds the store's lock, shared.
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

/// All records of the snapshots with this hash, which are removed together.
fn group_of(env: &Metadata, hash: &LayerHash) -> Group {
    let layers = env.snapshots.iter().filter(|s| s.hash == *hash).map(|s| s.record).collect();
    Group { layers, uppers: Vec::new() }
}

/// Disk usage of a directory tree, in bytes, without what is mounted in it. What vanishes meanwhile does not
/// count, nor what directories of sub-ids hold: a build makes such.
fn on_disk(dir: &Path) -> Result<u64> {
    let (mut bytes, mut todo) = (0, vec![dir.to_owned()]);
    let mut device = None;
    while let Some(path) = todo.pop() {
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) if is_out_of_reach(&e) => continue,
            Err(e) => return Err(Error::io("read", &path, e)),
        };
        // The sessions' mount may be here.
        if *device.get_or_insert(metadata.dev()) != metadata.dev() {
            continue;
        }
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            let entries = match fs::read_dir(&path) {
                Err(e) if is_out_of_reach(&e) => continue,
                other => other.at("list", &path)?,
            };
            for entry in entries {
                todo.push(entry.at("list", &path)?.path());
            }
        }
    }
    Ok(bytes)
}

/// Whether something is gone, or in a directory of a sub-id.
fn is_out_of_reach(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied)
}
