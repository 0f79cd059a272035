//! Writes OCI images: the documents of one image, and layouts that hold it.
//!
//! Formats: the OCI image specification 1.0 (image-layout, index, manifest, config, layer). The output
//! depends only on the input, so equal images are equal bytes: fields have a fixed order, times come from the
//! layers, and layers are not compressed unless requested. The specification permits uncompressed layers, and
//! all tools accept them. The output of a compressor changes with its version; a push to a registry can
//! compress the layers (`skopeo copy --dest-compress`).

mod layout;

use karapace_store::compress::Compression;
use karapace_store::inode::Timestamp;
use karapace_store::rfc3339;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

pub(crate) use layout::parent;
pub use layout::{Archive, Blob, Directory, Packed, measure};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The media type of a layer; `None` if the specification defines none.
pub fn layer_type(compression: Compression) -> Option<&'static str> {
    match compression {
        Compression::None => Some("application/vnd.oci.image.layer.v1.tar"),
        Compression::Gzip => Some("application/vnd.oci.image.layer.v1.tar+gzip"),
        Compression::Zstd => Some("application/vnd.oci.image.layer.v1.tar+zstd"),
        Compression::Xz => None,
    }
}

/// The name of an image in its layout, by which tools import it: the environment's name, converted to a valid
/// image name (lower case, words of letters and digits with a single separator in between).
pub fn reference(environment: &str) -> String {
    let lower = environment.to_ascii_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    // Single separators are valid and stay as they are.
    if words.iter().all(|word| !word.is_empty()) {
        return lower;
    }
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    if words.is_empty() { "environment".to_owned() } else { words.join("-") }
}

/// The content of the `oci-layout` file.
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The latest time that RFC 3339 can represent, in seconds since 1970.
const LAST_SECOND: i64 = 253_402_300_799;

/// What an image runs by default, and where it can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// The architecture, as Go names it (`amd64`).
    pub architecture: String,
    /// The default command: a shell.
    pub command: String,
    /// The value of `PATH`.
    pub path: String,
}

/// A layer that was written or measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its tar.
    pub tar: Packed,
    /// The newest modification time in it; `None` if it has no entries.
    pub newest: Option<Timestamp>,
    /// The command that made it.
    pub created_by: String,
    /// The comment given with it.
    pub comment: Option<String>,
}

/// The documents of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// The config, a blob.
    pub config: Vec<u8>,
    /// The manifest, a blob.
    pub manifest: Vec<u8>,
    /// `index.json`.
    pub index: Vec<u8>,
}

impl Documents {
    /// The documents of an image with these layers, lowest first, which all have the media type `layer_type`.
    pub fn new(
        layers: &[Layer],
        layer_type: &'static str,
        defaults: &Defaults,
        reference: &str,
    ) -> serde_json::Result<Documents> {
        let config = serde_json::to_vec(&config(layers, defaults))?;
        let manifest = serde_json::to_vec(&Manifest {
            schema_version: 2,
            media_type: MANIFEST,
            config: Descriptor::new(CONFIG, &Blob::of(&config)),
            layers: layers.iter().map(|layer| Descriptor::new(layer_type, &layer.tar.blob)).collect(),
        })?;
        let reference = Reference { name: reference };
        let manifests =
            [Descriptor { annotations: Some(reference), ..Descriptor::new(MANIFEST, &Blob::of(&manifest)) }];
        let index = serde_json::to_vec(&Index { schema_version: 2, media_type: INDEX, manifests })?;
        Ok(Documents { config, manifest, index })
    }
}

/// A layer's time is its newest modification time, but not earlier than that of the layer below. The time of
/// the commit would make images of equal content differ.
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
            diff_ids: layers.iter().map(|layer| layer.tar.diff_id.as_str()).collect(),
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
struct Descriptor<'a> {
    media_type: &'static str,
    digest: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<Reference<'a>>,
}

impl<'a> Descriptor<'a> {
    fn new(media_type: &'static str, blob: &Blob) -> Descriptor<'a> {
        Descriptor { media_type, digest: blob.digest.clone(), size: blob.size, annotations: None }
    }
}

#[derive(Serialize)]
struct Reference<'a> {
    #[serde(rename = "org.opencontainers.image.ref.name")]
    name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u32,
    media_type: &'static str,
    manifests: [Descriptor<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor<'a>,
    layers: Vec<Descriptor<'a>>,
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
            tar: Packed { blob: Blob::of(bytes), diff_id: Blob::of(bytes).digest },
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
        let documents = Documents::new(&layers, "application/x", &defaults, "dev").unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let one = "sha256:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
        assert_eq!(Blob::of(b"one").digest, one);
        let config = text(&documents.config);
        assert!(config.starts_with(&format!(
            r#"{{"created":"2001-09-09T01:46:40.000000000Z","architecture":"amd64","os":"linux","config":{{"Env":["PATH=/bin"],"Cmd":["/bin/bash"],"WorkingDir":"/"}},"rootfs":{{"type":"layers","diff_ids":["{one}","#
        )), "{config}");
        // Times never decrease, and times that RFC 3339 cannot represent are ignored.
        assert_eq!(config.matches("2001-09-09T01:46:40.000000000Z").count(), 4, "{config}");
        assert!(config.contains(r#""created_by":"karapace commit","comment":"a \"b\"""#), "{config}");
        let manifest = text(&documents.manifest);
        assert!(
            manifest.contains(&Blob::of(&documents.config).digest) && manifest.contains(one),
            "{manifest}"
        );
        let index = text(&documents.index);
        assert!(index.contains(&Blob::of(&documents.manifest).digest), "{index}");
        assert!(index.contains(r#""org.opencontainers.image.ref.name":"dev""#), "{index}");
    }

    #[test]
    fn names_of_images() {
        let table =
            [("dev", "dev"), ("My_Env-2", "my_env-2"), ("_a--b__c-", "a-b-c"), ("-_-", "environment")];
        for (environment, image) in table {
            assert_eq!(reference(environment), image);
        }
    }
}
