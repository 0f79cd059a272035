//! OCI images as they are written: the documents of one image, and layouts that hold it.
//!
//! Formats: the OCI image specification 1.0 (image-layout, index, manifest, config, layer). Everything written follows from
//! what is given, so equal images are equal bytes: fields stand in one order, times come with the layers, and layers are not
//! compressed. Uncompressed layers are one of the specification's forms, which all tools take; the bytes of a compressor change
//! with its version, and whoever pushes the image to a registry compresses it then (`skopeo copy --dest-compress`).

mod layout;

use karapace_store::inode::Timestamp;
use karapace_store::rfc3339;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

pub(crate) use layout::parent;
pub use layout::{Archive, Blob, Directory, measure};

/// The name of the image within its layout, and the one that tools look for when none is given.
const REFERENCE: &str = "latest";

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The content of the file `oci-layout`.
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The latest time that RFC 3339 can say.
const LAST_SECOND: i64 = 253_402_300_799;

/// What an image runs when nothing else is asked for, and where it can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// In Go's words (`amd64`).
    pub architecture: String,
    /// The command: a shell.
    pub command: String,
    /// `PATH`.
    pub path: String,
}

/// A layer that was written or measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its tar.
    pub blob: Blob,
    /// The newest modification time in it, if it has any entry.
    pub newest: Option<Timestamp>,
    /// What made it.
    pub created_by: String,
    /// What was said about it.
    pub comment: Option<String>,
}

/// The documents of an image, by the names that they have in a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// A blob.
    pub config: Vec<u8>,
    /// A blob.
    pub manifest: Vec<u8>,
    /// `index.json`.
    pub index: Vec<u8>,
}

impl Documents {
    /// Those of an image of these layers, the lowest first.
    pub fn new(layers: &[Layer], defaults: &Defaults) -> serde_json::Result<Documents> {
        let config = serde_json::to_vec(&config(layers, defaults))?;
        let manifest = serde_json::to_vec(&Manifest {
            schema_version: 2,
            media_type: MANIFEST,
            config: Descriptor::new(CONFIG, &Blob::of(&config)),
            layers: layers.iter().map(|layer| Descriptor::new(LAYER, &layer.blob)).collect(),
        })?;
        let reference = Reference { name: REFERENCE };
        let manifests =
            [Descriptor { annotations: Some(reference), ..Descriptor::new(MANIFEST, &Blob::of(&manifest)) }];
        let index = serde_json::to_vec(&Index { schema_version: 2, media_type: INDEX, manifests })?;
        Ok(Documents { config, manifest, index })
    }
}

/// A layer's time is its newest modification time, and no earlier than that of the layer below: the time of the commit would
/// make images of equal content differ.
fn config<'a>(layers: &'a [Layer], defaults: &'a Defaults) -> Config<'a> {
    let mut time = None;
    let history: Vec<History<'a>> = layers
        .iter()
        .map(|layer| {
            time = time.max(layer.newest.filter(|time| (0..=LAST_SECOND).contains(&time.secs)));
            History {
                created: time.map(rfc3339::format),
                created_by: &layer.created_by,
                comment: layer.comment.as_deref(),
            }
        })
        .collect();
    Config {
        created: time.map(rfc3339::format),
        architecture: &defaults.architecture,
        os: "linux",
        config: Execution {
            env: [format!("PATH={}", defaults.path)],
            cmd: [&defaults.command],
            working_dir: "/",
        },
        rootfs: RootFs {
            kind: "layers",
            diff_ids: layers.iter().map(|layer| layer.blob.digest.as_str()).collect(),
        },
        history,
    }
}

impl Blob {
    /// The blob of these bytes.
    pub fn of(bytes: &[u8]) -> Blob {
        Blob::new(Sha256::digest(bytes).as_slice(), bytes.len() as u64)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<Reference>,
}

impl Descriptor {
    fn new(media_type: &'static str, blob: &Blob) -> Descriptor {
        Descriptor { media_type, digest: blob.digest.clone(), size: blob.size, annotations: None }
    }
}

#[derive(Serialize)]
struct Reference {
    #[serde(rename = "org.opencontainers.image.ref.name")]
    name: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: &'static str,
    manifests: [Descriptor; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Serialize)]
struct Config<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    architecture: &'a str,
    os: &'static str,
    config: Execution<'a>,
    rootfs: RootFs<'a>,
    history: Vec<History<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Execution<'a> {
    env: [String; 1],
    cmd: [&'a str; 1],
    working_dir: &'static str,
}

#[derive(Serialize)]
struct RootFs<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: Vec<&'a str>,
}

#[derive(Serialize)]
struct History<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    created_by: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(bytes: &[u8], secs: i64, comment: Option<&str>) -> Layer {
        Layer {
            blob: Blob::of(bytes),
            newest: Some(Timestamp { secs, nanos: 0 }),
            created_by: "karapace commit".to_owned(),
            comment: comment.map(str::to_owned),
        }
    }

    #[test]
    fn the_documents_name_each_other_by_digest() {
        let defaults =
            Defaults { architecture: "amd64".into(), command: "/bin/bash".into(), path: "/bin".into() };
        let layers = [
            layer(b"one", 1_000_000_000, None),
            layer(b"two", 5, Some("a \"b\"")),
            layer(b"3", i64::MAX, None),
        ];
        let documents = Documents::new(&layers, &defaults).unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let one = "sha256:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
        assert_eq!(Blob::of(b"one").digest, one);
        let config = text(&documents.config);
        assert!(config.starts_with(&format!(
            r#"{{"created":"2001-09-09T01:46:40.000000000Z","architecture":"amd64","os":"linux","config":{{"Env":["PATH=/bin"],"Cmd":["/bin/bash"],"WorkingDir":"/"}},"rootfs":{{"type":"layers","diff_ids":["{one}","#
        )), "{config}");
        // Times never go back, and such as RFC 3339 cannot say count for nothing.
        assert_eq!(config.matches("2001-09-09T01:46:40.000000000Z").count(), 4, "{config}");
        assert!(config.contains(r#""created_by":"karapace commit","comment":"a \"b\"""#), "{config}");
        let manifest = text(&documents.manifest);
        assert!(
            manifest.contains(&Blob::of(&documents.config).digest) && manifest.contains(one),
            "{manifest}"
        );
        let index = text(&documents.index);
        assert!(index.contains(&Blob::of(&documents.manifest).digest), "{index}");
        assert!(index.contains(r#""org.opencontainers.image.ref.name":"latest""#), "{index}");
    }
}
