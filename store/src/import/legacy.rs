//! Images as `docker save` wrote them before version 1.10: a directory for each layer, with a configuration
//! that names the layer below, and `repositories`, which names the top layer. Layers have no digests.
//!
//! Format: Docker's image specification 1.0.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::blob::Files;
use super::oci::{self, Config, Image, Layer, MAX_LAYERS};
use super::sha::Sha;
use crate::error::Result;

/// The id of the top layer, by name and tag.
type Repositories = BTreeMap<String, BTreeMap<String, String>>;

#[derive(Deserialize)]
struct Level {
    id: String,
    #[serde(default)]
    parent: Option<String>,
    #[serde(flatten)]
    config: Config,
}

/// Reads the image; `None` if `files` are not such an image.
pub(super) fn image(files: &dyn Files) -> Result<Option<Image>> {
    let named: Option<Repositories> =
        oci::small(files, "repositories")?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let tops: BTreeMap<String, String> = match named {
        // If an image has several names, any of them will do.
        Some(named) => named
            .into_iter()
            .flat_map(|(name, tags)| tags.into_iter().map(move |(tag, id)| (id, format!("{name}:{tag}"))))
            .collect(),
        // An image saved by its id has no names.
        None => uppermost(files)?.into_iter().map(|id| (id.clone(), id)).collect(),
    };
    let mut there = BTreeMap::new();
    for (id, name) in tops {
        if level(files, &id)?.is_some() {
            there.insert(id, name);
        }
    }
    let names: Vec<&str> = there.values().map(String::as_str).collect();
    match there.keys().next() {
        None => Ok(None),
        Some(id) if there.len() == 1 => of_chain(files, id).map(Some),
        Some(_) => Err(oci::several(files, &names.join(", "))),
    }
}

/// The layers that are not below any other.
fn uppermost(files: &dyn Files) -> Result<BTreeSet<String>> {
    let (mut all, mut below) = (BTreeSet::new(), BTreeSet::new());
    for name in files.names()? {
        if let Some(level) = level(files, &name)? {
            below.extend(level.parent);
            all.insert(name);
        }
        // Each one costs reading a document, which may be long.
        if all.len() > MAX_LAYERS {
            return Err(oci::refuse(files, &format!("it has more than {MAX_LAYERS} layers")));
        }
    }
    Ok(all.difference(&below).cloned().collect())
}

fn of_chain(files: &dyn Files, top: &str) -> Result<Image> {
    let mut image = Image::default();
    let mut top_config = None;
    let mut next = Some(top.to_owned());
    while let Some(id) = next {
        if image.layers.len() >= MAX_LAYERS {
            return Err(oci::refuse(files, &format!("its image has more than {MAX_LAYERS} layers")));
        }
        let Some(level) = level(files, &id)? else {
            let shown: String = id.chars().take(100).collect();
            let reason = format!("its layer {shown:?} has no readable json: the archive is incomplete");
            return Err(oci::refuse(files, &reason));
        };
        image.layers.push(Layer { file: layer_file(&id), size: None, digest: None, diff_id: None });
        next = level.parent.filter(|parent| !parent.is_empty());
        top_config.get_or_insert(level.config);
    }
    image.layers.reverse();
    let form =
        "it was written by docker save before 1.10, which has no digests: damage in it would not be noticed";
    image.notes.push(form.to_owned());
    if let Some(config) = top_config {
        oci::take_config(files, &mut image, &config)?;
    }
    Ok(image)
}

/// The description of a layer; `None` if this is not a layer.
fn level(files: &dyn Files, id: &str) -> Result<Option<Level>> {
    if Sha::parse(id).is_none() || !files.has(&layer_file(id))? {
        return Ok(None);
    }
    let bytes = oci::small(files, &format!("{id}/json"))?;
    let level: Option<Level> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(level.filter(|level| level.id == id))
}

fn layer_file(id: &str) -> String {
    format!("{id}/layer.tar")
}
