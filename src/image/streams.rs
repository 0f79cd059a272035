//! Images by name, looked up on an image server like that of the LXC project.
//!
//! Such a server has two JSON files in the simplestreams format. `streams/v1/index.json` names the list of
//! images (the one of type `image-downloads`). The list has a product for each distribution, release,
//! architecture and variant, with its aliases and its versions with their files. Format: doc/README of
//! <https://launchpad.net/simplestreams>; the fields are those that `images.linuxcontainers.org` serves.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::ImageError;
use super::cache::Cached;
use super::download::{Http, Limit, Source};
use super::error::at;

/// The default image server; `KARAPACE_IMAGE_SERVER` overrides it.
const SERVER: &str = "https://images.linuxcontainers.org";

/// The size limit of a list, which is held in memory.
const LIST: Limit = Limit { bytes: 64 << 20, why: "the limit for a list of images" };

/// Our short names for names on the server.
const SHORT: [(&str, &str); 1] = [("rolling", "opensuse/tumbleweed")];

/// The file of a version that contains the root filesystem.
const ROOTFS: &str = "root.tar.xz";

/// How many alternative names a message suggests at most.
const OFFERED: usize = 12;

#[derive(Deserialize)]
struct Index {
    index: BTreeMap<String, Stream>,
}

#[derive(Deserialize)]
struct Stream {
    #[serde(default)]
    datatype: String,
    path: String,
}

#[derive(Deserialize)]
struct Products {
    products: BTreeMap<String, Product>,
}

#[derive(Deserialize)]
struct Product {
    /// Separated by commas.
    #[serde(default)]
    aliases: String,
    arch: String,
    /// Keyed by date and time, in a form that sorts as text.
    versions: BTreeMap<String, Version>,
}

impl Product {
    fn aliases(&self) -> impl Iterator<Item = &str> {
        self.aliases.split(',').map(str::trim)
    }
}

#[derive(Deserialize)]
struct Version {
    items: BTreeMap<String, Item>,
}

#[derive(Deserialize)]
struct Item {
    ftype: String,
    path: String,
    sha256: String,
    size: Option<u64>,
}

/// The address of the image server.
pub(super) fn server() -> String {
    let given = std::env::var("KARAPACE_IMAGE_SERVER").ok().filter(|url| !url.trim().is_empty());
    given.map_or_else(|| SERVER.to_owned(), |url| url.trim().trim_end_matches('/').to_owned())
}

/// Whether a reference can be the name of an image: words separated by slashes, such as `debian/12`.
pub(super) fn is_name(text: &str) -> bool {
    let word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b))
    };
    text.len() <= 128 && text.split('/').all(word)
}

/// Finds the newest root filesystem that `server` has under `name` for this machine's architecture.
pub(super) fn find(server: &str, name: &str, cache: &Path, http: &Http<'_>) -> Result<Source, ImageError> {
    if !server.starts_with("https://") && !server.starts_with("http://") {
        return Err(wrong(name, format!("KARAPACE_IMAGE_SERVER is {server:?}, not an http(s):// URL")));
    }
    let index: Index = list(server, "streams/v1/index.json", name, cache, http)?;
    let images = index.index.into_values().find(|stream| stream.datatype == "image-downloads");
    let images = images.ok_or_else(|| wrong(name, format!("{server} lists no images")))?;
    let products: Products = list(server, &images.path, name, cache, http)?;
    let item = choose(&products, name).map_err(|reason| wrong(name, format!("{reason} ({server})")))?;
    if !super::is_sha256(&item.sha256) {
        return Err(wrong(name, format!("{server} lists it without a sha256")));
    }
    let url = address(server, &item.path).ok_or_else(|| wrong(name, bad_path(server, &item.path)))?;
    let limit = match item.size {
        Some(bytes) if bytes < Limit::IMAGE.bytes => Limit { bytes, why: "as its server's list says" },
        _ => Limit::IMAGE,
    };
    Ok(Source { url, sha256: Some(item.sha256.to_ascii_lowercase()), size: item.size, limit })
}

/// Fetches one of the server's lists. A cached copy is used as long as the server says that it is current.
fn list<T: DeserializeOwned>(
    server: &str,
    path: &str,
    name: &str,
    cache: &Path,
    http: &Http<'_>,
) -> Result<T, ImageError> {
    let url = address(server, path).ok_or_else(|| wrong(name, bad_path(server, path)))?;
    let source = Source { url: url.clone(), sha256: None, size: None, limit: LIST };
    let cached = Cached::open(cache, &url)?;
    let here = cached.fetch(&source, http)?.path;
    let bytes = fs::read(&here).map_err(at("read", &here))?;
    let list = serde_json::from_slice(&bytes);
    if list.is_err() {
        cached.discard()?;
    }
    list.map_err(|e| wrong(name, format!("{url} is not a list of images: {e}")))
}

/// Finds the product for this machine's architecture that has `name` as an alias, and in it the newest
/// version with a root filesystem.
fn choose<'a>(products: &'a Products, name: &str) -> Result<&'a Item, String> {
    let wanted = SHORT.iter().find(|(short, _)| *short == name).map_or(name, |(_, long)| *long);
    let here = architecture();
    let has_name = |product: &&Product| product.aliases().any(|alias| alias.eq_ignore_ascii_case(wanted));
    let all: Vec<&Product> = products.products.values().filter(has_name).collect();
    let Some(product) = all.iter().find(|product| product.arch == here) else {
        if all.is_empty() {
            return Err(format!("the image server has no image of this name{}", offer(products, wanted)));
        }
        let others: Vec<&str> = all.iter().map(|product| product.arch.as_str()).collect();
        return Err(format!("the image server has it for {}, but not for {here}", others.join(", ")));
    };
    let newest = product.versions.values().rev();
    let mut rootfs = newest.filter_map(|version| version.items.values().find(|item| item.ftype == ROOTFS));
    rootfs.next().ok_or_else(|| format!("the image server has no {ROOTFS} for it"))
}

/// Text that suggests what the server has instead: names of the same distribution, shortest first.
fn offer(products: &Products, wanted: &str) -> String {
    let distribution = wanted.split('/').next().unwrap_or(wanted);
    let here = architecture();
    let ours = products.products.values().filter(|product| product.arch == here);
    let mut names: Vec<&str> = ours
        .flat_map(Product::aliases)
        .filter(|alias| alias.split('/').next().is_some_and(|word| word.eq_ignore_ascii_case(distribution)))
        .filter(|alias| alias.split('/').count() <= 2)
        .collect();
    names.sort_unstable();
    names.dedup();
    names.truncate(OFFERED);
    if names.is_empty() { String::new() } else { format!("; there are {}", names.join(", ")) }
}

/// The address of `path`, which a list gave, below the server. `None` if it would lead elsewhere.
fn address(server: &str, path: &str) -> Option<String> {
    let safe = !path.is_empty()
        && !path.starts_with('/')
        && !path.contains("://")
        && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#' && b != b'?')
        && !path.split('/').any(|part| part == "..");
    safe.then(|| format!("{server}/{path}"))
}

fn bad_path(server: &str, path: &str) -> String {
    format!("{server} lists the path {path:?}, which is not below it")
}

/// This machine's architecture, as Debian and the image servers name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "i386",
        "aarch64" => "arm64",
        "arm" => "armhf",
        "powerpc64" => "ppc64el",
        other => other,
    }
}

fn wrong(name: &str, reason: String) -> ImageError {
    ImageError::Index { name: name.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn products() -> Products {
        let arch = architecture();
        let text = format!(
            r#"{{"products": {{
            "debian:12": {{"aliases": "debian/bookworm/default,debian/12", "arch": "{arch}", "versions": {{
                "20260101_05:24": {{"items": {{"root.tar.xz": {{"ftype": "root.tar.xz", "path": "old", "sha256": "aa"}}}}}},
                "20260202_05:24": {{"items": {{"root.tar.xz": {{"ftype": "root.tar.xz", "path": "new", "sha256": "bb", "size": 7}}}}}},
                "20260303_05:24": {{"items": {{"disk": {{"ftype": "disk-kvm.img", "path": "disk", "sha256": "cc"}}}}}}}}}},
            "debian:13": {{"aliases": "debian/13", "arch": "{arch}", "versions": {{}}}},
            "tumbleweed": {{"aliases": "opensuse/tumbleweed", "arch": "{arch}", "versions": {{
                "1": {{"items": {{"r": {{"ftype": "root.tar.xz", "path": "roll", "sha256": "dd"}}}}}}}}}},
            "alpha": {{"aliases": "old/1", "arch": "alpha", "versions": {{}}}}
            }}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn the_newest_version_with_a_root_filesystem() {
        let products = products();
        for (name, path) in [("debian/12", "new"), ("Debian/Bookworm/default", "new"), ("rolling", "roll")] {
            assert_eq!(choose(&products, name).map(|item| item.path.as_str()), Ok(path), "{name}");
        }
    }

    #[test]
    fn missing_images_are_reported_with_the_available_ones() {
        let products = products();
        let table = [
            ("debian/11", "no image of this name; there are debian/12, debian/13"),
            ("arch/1", "no image of this name"),
            ("debian/13", "no root.tar.xz for it"),
            ("old/1", "has it for alpha, but not for"),
        ];
        for (name, message) in table {
            let error = choose(&products, name).map(|item| item.path.clone()).unwrap_err();
            assert!(error.contains(message), "{name}: {error}");
        }
    }

    #[test]
    fn a_list_cannot_point_elsewhere() {
        assert_eq!(address("http://h", "images/a:b/x.tar.xz").unwrap(), "http://h/images/a:b/x.tar.xz");
        for path in ["", "/etc", "http://other/x", "a/../../b", "a b", "x#y", "x?y"] {
            assert_eq!(address("http://h", path), None, "{path}");
        }
    }

    #[test]
    fn names() {
        for name in ["debian/12", "rolling", "alpine/3.20/cloud", "a+b/c_d-e"] {
            assert!(is_name(name), "{name}");
        }
        for text in ["", "/", "a//b", "a/", "-x", ".", "a b", "a/../b", "x:y", &"a".repeat(129)] {
            assert!(!is_name(text), "{text}");
        }
    }
}
