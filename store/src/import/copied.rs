//! Images as written by `skopeo copy … dir:PATH` and `podman save --format docker-dir`: the manifest beside
//! its blobs, each named by the hex digits of its digest. They are read as a layout with this one manifest.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::blob::{Blob, Files, Found};
use super::oci::{self, Descriptor, V1_MANIFEST};
use super::sha::Sha;
use crate::error::Result;

/// The beginning of the file `version`, if there is one.
pub(super) const VERSION: &[u8] = b"Directory Transport Version: ";

/// The suffixes of a blob's name: none, `.tar` for a layer in version 1.0 of the format, `.manifest.json` for
/// a manifest of an index.
const ENDINGS: [&str; 3] = ["", ".tar", ".manifest.json"];

/// Such an image, presented as a layout.
pub(super) struct Copied<'a> {
    files: &'a dyn Files,
    manifest: Sha,
    index: Vec<u8>,
}

/// What distinguishes a manifest from other documents.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    media_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
    fs_layers: Option<IgnoredAny>,
}

impl<'a> Copied<'a> {
    /// `None` if `files` are not such an image.
    pub fn of(files: &'a dyn Files) -> Result<Option<Copied<'a>>> {
        let Some(manifest) = oci::small(files, "manifest.json")? else { return Ok(None) };
        let Ok(head) = serde_json::from_slice::<Head>(&manifest) else { return Ok(None) };
        let kind = match &head {
            Head { fs_layers: Some(_), .. } => V1_MANIFEST,
            Head { manifests, .. } if !manifests.is_empty() => oci::INDEX,
            Head { config: Some(_), .. } => oci::MANIFEST,
            _ => return Ok(None),
        };
        let kind = head.media_type.as_deref().unwrap_or(kind);
        let digest = Sha::of(&manifest);
        let index = serde_json::json!({
            "manifests": [{"mediaType": kind, "digest": digest.to_string(), "size": manifest.len()}],
        });
        let copied = Copied { files, manifest: digest, index: index.to_string().into_bytes() };
        // Any directory may contain a manifest.json. An image's has a `version` file, or a blob that it
        // refers to, beside it.
        let says_so = oci::small(files, "version")?.is_some_and(|version| version.starts_with(VERSION));
        let mut refers_to = head.config.iter().chain(&head.manifests).filter_map(Descriptor::sha);
        let is_one = says_so || refers_to.any(|digest| copied.find(digest).is_some());
        Ok(is_one.then_some(copied))
    }

    fn find(&self, digest: Sha) -> Option<String> {
        let mut names = ENDINGS.iter().map(|ending| format!("{}{ending}", digest.hex()));
        names.find(|name| self.files.has(name).is_ok_and(|has| has))
    }
}

impl Files for Copied<'_> {
    fn open(&self, name: &str) -> Result<Found> {
        match name {
            "index.json" => Ok(Ok(Blob::of(&self.index))),
            "oci-layout" => Ok(Ok(Blob::of(br#"{"imageLayoutVersion":"1.0.0"}"#))),
            _ => self.files.open(name),
        }
    }

    fn has(&self, name: &str) -> Result<bool> {
        self.files.has(name)
    }

    fn blob_name(&self, digest: Sha) -> String {
        if digest == self.manifest {
            return "manifest.json".to_owned();
        }
        self.find(digest).unwrap_or_else(|| digest.hex())
    }

    fn names(&self) -> Result<Vec<String>> {
        self.files.names()
    }

    fn source(&self) -> &str {
        self.files.source()
    }
}
