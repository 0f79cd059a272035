//! Reads the documents of an image: OCI's index and manifest, Docker's equivalents, and the list of `docker
//! save`. The layers' bytes are read in `image`.
//!
//! Formats: the OCI image specification 1.1 (image-layout, image-index, manifest, config), Docker's image
//! manifest version 2 schema 2, and the manifest.json of `docker save` as described in Docker's image
//! specification 1.2.

use std::io::Read;

use serde::Deserialize;

use super::archive::broken;
use super::blob::{Blob, Files};
use super::sha::Sha;
use crate::error::{IoContext, Result, StoreError};

/// Size limit of a document in bytes. Registries allow manifests of 4 MiB.
pub(super) const MAX_DOCUMENT: u64 = 4 << 20;

/// How deeply indexes may be nested.
const MAX_NESTING: usize = 8;

/// How many documents are read to find the image, and how many layers an image may have. Docker allows 127
/// layers.
const MAX_DOCUMENTS: usize = 256;
pub(super) const MAX_LAYERS: usize = 512;

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A manifest of Docker's first schema, which names its layers differently and is not supported.
pub(super) const V1_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v1+json";

/// The image that was chosen.
#[derive(Debug, Default)]
pub(super) struct Image {
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    /// Which parts of the image's configuration are not applied, and other remarks for the user.
    pub notes: Vec<String>,
}

/// One layer of an image.
#[derive(Debug)]
pub(super) struct Layer {
    /// The name of the file that contains it.
    pub file: String,
    /// The file's size in bytes, if a document gives it.
    pub size: Option<u64>,
    /// The digest of the file's bytes, if a document gives it.
    pub digest: Option<Sha>,
    /// The digest of the uncompressed archive, if the configuration gives it.
    pub diff_id: Option<Sha>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// A reference to a blob.
#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize, Clone, Default)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: Option<String>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// The parts of an image's configuration that are used.
#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    config: Option<Defaults>,
    #[serde(default)]
    rootfs: Rootfs,
}

#[derive(Deserialize, Default)]
struct Rootfs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Defaults {
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    working_dir: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

/// A manifest that may be chosen, with what its index says about it.
struct Candidate {
    descriptor: Descriptor,
    manifest: Manifest,
    platform: Platform,
}

/// Whether `files` are an OCI image layout.
pub(super) fn is_layout(files: &dyn Files) -> Result<bool> {
    let Some(layout) = small(files, "oci-layout")? else { return Ok(false) };
    Ok(files.open("index.json")?.is_ok() && parse::<Layout>(&layout).is_ok())
}

/// Whether `files` are an archive written by `docker save`.
pub(super) fn is_saved(files: &dyn Files) -> Result<bool> {
    let Some(list) = small(files, "manifest.json")? else { return Ok(false) };
    Ok(parse::<Vec<Saved>>(&list).is_ok_and(|list| !list.is_empty()))
}

/// The image of a layout: the one for this machine, if there are several.
pub(super) fn of_layout(files: &dyn Files) -> Result<Image> {
    let layout: Layout = document(files, "oci-layout")?;
    if !layout.image_layout_version.starts_with("1.") {
        let version = layout.image_layout_version;
        return Err(refuse(
            files,
            &format!("it is an OCI layout of version {version:?}, but only 1.x is supported"),
        ));
    }
    let index: Index = document(files, "index.json")?;
    let mut candidates = Vec::new();
    let mut documents = 0;
    collect(files, index, 0, &mut documents, &mut candidates)?;
    let Candidate { manifest, descriptor, .. } = choose(files, candidates)?;
    if manifest.layers.len() > MAX_LAYERS {
        return Err(refuse(files, &format!("its image has more than {MAX_LAYERS} layers")));
    }
    let config: Option<Config> = match manifest.config.media_type.as_str() {
        // Without a configuration of a known type, nothing more is known about the layers.
        kind if kind.contains("config") || kind.contains("image") => {
            let bytes = verified(files, &manifest.config)?;
            Some(parse(&bytes).map_err(|reason| unreadable(files, &manifest.config.digest, &reason))?)
        }
        _ => None,
    };
    let mut layers = Vec::new();
    for layer in &manifest.layers {
        check_layer_kind(files, layer)?;
        let digest = sha(files, &layer.digest)?;
        let file = files.blob_name(digest);
        layers.push(Layer { file, size: Some(layer.size), digest: Some(digest), diff_id: None });
    }
    let mut image = Image { layers, notes: Vec::new() };
    tracing::debug!(manifest = descriptor.digest, layers = image.layers.len(), "image chosen");
    if let Some(config) = config {
        take_config(files, &mut image, &config)?;
    }
    Ok(image)
}

/// The image of a `docker save` archive.
pub(super) fn of_saved(files: &dyn Files) -> Result<Image> {
    let mut list: Vec<Saved> = document(files, "manifest.json")?;
    if list.len() > 1 {
        let names: Vec<String> = list
            .iter()
            .map(|image| {
                image.repo_tags.as_ref().and_then(|tags| tags.first()).unwrap_or(&image.config).clone()
            })
            .collect();
        let names = names.join(", ");
        return Err(several(files, &names));
    }
    let Some(saved) = list.pop() else { return Err(refuse(files, "its manifest.json names no image")) };
    if saved.layers.len() > MAX_LAYERS {
        return Err(refuse(files, &format!("its image has more than {MAX_LAYERS} layers")));
    }
    let bytes = open(files, &saved.config)?;
    let bytes = whole(files, &saved.config, bytes)?;
    // The configuration's file name is its digest.
    let name = saved.config.rsplit('/').next().unwrap_or_default();
    let name = name.trim_start_matches("sha256:").trim_end_matches(".json");
    if let Some(expected) = Sha::parse(name) {
        check(files, &saved.config, expected, Sha::of(&bytes))?;
    }
    let config: Config = parse(&bytes).map_err(|reason| unreadable(files, &saved.config, &reason))?;
    let layers = saved.layers.into_iter().map(|file| {
        let digest = file.strip_prefix("blobs/sha256/").and_then(Sha::parse);
        Layer { file, size: None, digest, diff_id: None }
    });
    let mut image = Image { layers: layers.collect(), notes: Vec::new() };
    take_config(files, &mut image, &config)?;
    Ok(image)
}

/// Collects all manifests that an index leads to, depth first.
fn collect(
    files: &dyn Files,
    index: Index,
    depth: usize,
    documents: &mut usize,
    candidates: &mut Vec<Candidate>,
) -> Result<()> {
    for descriptor in index.manifests {
        *documents += 1;
        if *documents > MAX_DOCUMENTS || depth > MAX_NESTING {
            return Err(refuse(files, "its index leads to too many manifests, or is nested too deeply"));
        }
        let digest = sha(files, &descriptor.digest)?;
        // An index may list manifests of other platforms that were not copied.
        if files.open(&files.blob_name(digest))?.is_err() && descriptor.platform.is_some() {
            let platform = descriptor.platform.clone().unwrap_or_default();
            let manifest = Manifest { config: descriptor.clone(), layers: Vec::new() };
            candidates.push(Candidate { descriptor, manifest, platform });
            continue;
        }
        let bytes = verified(files, &descriptor)?;
        if is_index(&descriptor.media_type) {
            let index = parse(&bytes).map_err(|reason| unreadable(files, &descriptor.digest, &reason))?;
            collect(files, index, depth + 1, documents, candidates)?;
            continue;
        }
        if descriptor.media_type.contains("vnd.docker.distribution.manifest.v1") {
            return Err(refuse(files, "it is an image of Docker's schema 1: convert it with skopeo copy"));
        }
        let manifest: Manifest =
            parse(&bytes).map_err(|reason| unreadable(files, &descriptor.digest, &reason))?;
        let platform = match &descriptor.platform {
            Some(platform) => platform.clone(),
            None => platform_of(files, &manifest.config)?,
        };
        candidates.push(Candidate { descriptor, manifest, platform });
    }
    Ok(())
}

fn is_index(media_type: &str) -> bool {
    media_type == INDEX || media_type == "application/vnd.docker.distribution.manifest.list.v2+json"
}

/// The platform that an image's configuration names; empty if the configuration is of another type.
fn platform_of(files: &dyn Files, config: &Descriptor) -> Result<Platform> {
    if !config.media_type.ends_with("+json") {
        return Ok(Platform::default());
    }
    let bytes = verified(files, config)?;
    Ok(parse::<Config>(&bytes).map(|config| config.platform).unwrap_or_default())
}

/// Chooses the image for this machine. If there is only one image, its platform is not checked.
fn choose(files: &dyn Files, mut candidates: Vec<Candidate>) -> Result<Candidate> {
    if candidates.len() == 1
        && let Some(only) = candidates.pop()
    {
        return Ok(only);
    }
    let list: Vec<String> = candidates.iter().map(Candidate::to_string).collect();
    let list = if list.is_empty() { "nothing".to_owned() } else { list.join(", ") };
    let machine = architecture();
    candidates.retain(|c| c.platform.os == "linux" && c.platform.architecture == machine);
    if candidates.len() > 1 {
        // Of several variants, the one that every machine of this architecture runs.
        let usual = |c: &Candidate| matches!(c.platform.variant.as_deref(), None | Some("" | "v1" | "v8"));
        if candidates.iter().filter(|c| usual(c)).count() == 1 {
            candidates.retain(usual);
        }
    }
    let same = candidates.windows(2).all(|pair| pair[0].descriptor.digest == pair[1].descriptor.digest);
    match candidates.pop() {
        Some(found) if same => Ok(found),
        Some(_) => Err(refuse(
            files,
            &format!(
                "it holds several images for linux/{machine}: {list}. Extract the one you want with skopeo copy"
            ),
        )),
        None => Err(refuse(files, &format!("it holds no image for linux/{machine}; available: {list}"))),
    }
}

impl Descriptor {
    /// Its digest, if that is a sha256.
    pub fn sha(&self) -> Option<Sha> {
        self.digest.strip_prefix("sha256:").and_then(Sha::parse)
    }
}

impl std::fmt::Display for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Platform { os, architecture, variant } = &self.platform;
        let unknown = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
        write!(f, "{}/{}", unknown(os), unknown(architecture))?;
        if let Some(variant) = variant.as_deref().filter(|v| !v.is_empty()) {
            write!(f, "/{variant}")?;
        }
        if let Some(name) = self.descriptor.annotations.get("org.opencontainers.image.ref.name") {
            write!(f, " ({name})")?;
        }
        Ok(())
    }
}

/// This machine's architecture by its name in Go, which images use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// Refuses a layer that is not a tar archive, or whose bytes are not part of the image.
fn check_layer_kind(files: &dyn Files, layer: &Descriptor) -> Result<()> {
    let kind = layer.media_type.as_str();
    let reason = if kind.contains("+encrypted") {
        "is encrypted: decrypt the image first (skopeo copy --decryption-key)"
    } else if kind.contains("nondistributable") || kind.contains(".foreign.") {
        "is a foreign layer, whose bytes are not part of the image"
    } else if kind.contains(".tar") || kind.is_empty() {
        return Ok(());
    } else {
        "is not a root filesystem"
    };
    Err(refuse(files, &format!("its layer {} ({kind}) {reason}", layer.digest)))
}

/// Records what the configuration says about the layers, and notes which of its defaults are not applied.
pub(super) fn take_config(files: &dyn Files, image: &mut Image, config: &Config) -> Result<()> {
    let diff_ids = &config.rootfs.diff_ids;
    if !diff_ids.is_empty() && diff_ids.len() != image.layers.len() {
        let (ids, layers) = (diff_ids.len(), image.layers.len());
        return Err(refuse(
            files,
            &format!("its configuration has {ids} layers, but its manifest has {layers}"),
        ));
    }
    for (layer, id) in image.layers.iter_mut().zip(diff_ids) {
        layer.diff_id = Some(sha(files, id)?);
    }
    let machine = architecture();
    let Platform { os, architecture, .. } = &config.platform;
    if (os != "linux" || architecture != machine) && !architecture.is_empty() {
        image
            .notes
            .push(format!("the image is for {os}/{architecture}, but this machine is linux/{machine}"));
    }
    let Some(defaults) = &config.config else { return Ok(()) };
    let env = defaults.env.iter().flatten().any(|variable| !variable.starts_with("PATH="));
    let set =
        |text: &Option<String>| text.as_deref().is_some_and(|text| !matches!(text, "" | "/" | "root" | "0"));
    let ignored: Vec<&str> = [
        ("Env", env),
        ("Entrypoint", defaults.entrypoint.as_ref().is_some_and(|words| !words.is_empty())),
        ("User", set(&defaults.user)),
        ("WorkingDir", set(&defaults.working_dir)),
    ]
    .into_iter()
    .filter_map(|(key, is_set)| is_set.then_some(key))
    .collect();
    if !ignored.is_empty() {
        image.notes.push(format!("the image's defaults are not applied: {}", ignored.join(", ")));
    }
    Ok(())
}

/// Refuses a blob whose digest is wrong.
pub(super) fn check(files: &dyn Files, name: &str, expected: Sha, found: Sha) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(refuse(files, &format!("blob {name} is damaged: its digest should be {expected}, but is {found}")))
}

/// Refuses a blob whose size is wrong.
pub(super) fn check_size(files: &dyn Files, name: &str, expected: u64, found: u64) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let reason = format!("blob {name} is damaged: it should have {expected} bytes, but has {found}");
    Err(refuse(files, &reason))
}

/// Opens a file that the image refers to.
pub(super) fn open(files: &dyn Files, name: &str) -> Result<Blob> {
    files.open(name)?.map_err(|reason| refuse(files, &format!("its blob {name} {reason}")))
}

fn sha(files: &dyn Files, digest: &str) -> Result<Sha> {
    digest.strip_prefix("sha256:").and_then(Sha::parse).ok_or_else(|| {
        let shown: String = digest.chars().take(100).collect();
        refuse(files, &format!("it has the digest {shown:?}; only sha256 is supported"))
    })
}

/// Reads a document from a blob and verifies its digest.
fn verified(files: &dyn Files, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let digest = sha(files, &descriptor.digest)?;
    let name = files.blob_name(digest);
    let blob = open(files, &name)?;
    check_size(files, &name, descriptor.size, blob.size)?;
    let bytes = whole(files, &name, blob)?;
    check(files, &name, digest, Sha::of(&bytes))?;
    Ok(bytes)
}

/// The bytes of a file that may be a document; `None` if there is no such file, or it is too large.
pub(super) fn small(files: &dyn Files, name: &str) -> Result<Option<Vec<u8>>> {
    match files.open(name)?.ok().filter(|file| file.size <= MAX_DOCUMENT) {
        Some(file) => whole(files, name, file).map(Some),
        None => Ok(None),
    }
}

/// The error for an archive of several images, which it names.
pub(super) fn several(files: &dyn Files, names: &str) -> StoreError {
    refuse(files, &format!("it holds several images ({names}): save only the one you want"))
}

fn document<T: for<'de> Deserialize<'de>>(files: &dyn Files, name: &str) -> Result<T> {
    let bytes = open(files, name)?;
    parse(&whole(files, name, bytes)?).map_err(|reason| unreadable(files, name, &reason))
}

/// Reads a whole document.
fn whole(files: &dyn Files, name: &str, blob: Blob) -> Result<Vec<u8>> {
    if blob.size > MAX_DOCUMENT {
        let size = blob.size;
        return Err(refuse(files, &format!("{name} has {size} bytes; a document may have {MAX_DOCUMENT}")));
    }
    let mut bytes = Vec::new();
    blob.reader
        .take(MAX_DOCUMENT)
        .read_to_end(&mut bytes)
        .at("read", std::path::Path::new(files.source()))?;
    Ok(bytes)
}

fn parse<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> std::result::Result<T, String> {
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}

fn unreadable(files: &dyn Files, name: &str, reason: &str) -> StoreError {
    refuse(files, &format!("{name} cannot be read: {reason}"))
}

pub(super) fn refuse(files: &dyn Files, reason: &str) -> StoreError {
    broken(files.source(), &reason)
}
