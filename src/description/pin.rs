//! Pinned images: a reference followed by a digest. For a download it is the digest of the bytes,
//! `https://host/rootfs.tar.xz#sha256=…`; for a local image that of the content, `./rootfs#content=…`, which
//! is the same for a directory and an archive of it. Does no I/O.

/// Separates a reference from the digest of its content.
const CONTENT: &str = "#content=";

/// Separates an address from the digest of its bytes.
const SHA256: &str = "#sha256=";

/// Length of either digest, in hex digits.
const DIGITS: usize = 64;

/// Splits `image` into the reference and the digest of its content, if it has one.
pub fn split(image: &str) -> (&str, Option<&str>) {
    match image.rsplit_once(CONTENT) {
        Some((reference, digest)) => (reference, Some(digest)),
        None => (image, None),
    }
}

/// Returns `image` without any digest.
pub fn bare(image: &str) -> &str {
    let image = split(image).0;
    if is_address(image) { image.split_once(SHA256).map_or(image, |(url, _)| url) } else { image }
}

/// Whether `image` can have only one content. A registry reference carries a digest of its own.
pub fn is_pinned(image: &str) -> bool {
    split(image).1.is_some()
        || (is_address(image) && image.contains(SHA256))
        || (image.starts_with("oci://") && image.contains("@sha256:"))
}

/// The pinned form of a local image.
pub fn local(image: &str, digest: &str) -> String {
    format!("{image}{CONTENT}{digest}")
}

/// The pinned form of a download.
pub fn downloaded(url: &str, sha256: &str) -> String {
    format!("{url}{SHA256}{sha256}")
}

fn is_address(image: &str) -> bool {
    image.starts_with("http://") || image.starts_with("https://")
}

/// Checks the content digest of an image reference, if it has one.
///
/// # Errors
/// A message that says what is wrong with it.
pub fn check(image: &str) -> Result<(), String> {
    let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    match split(image) {
        (_, Some(digest)) if digest.len() != DIGITS || !digest.bytes().all(is_digit) => Err(format!(
            "base.image: {digest:?} after {CONTENT} is not a digest of {DIGITS} digits 0-9 and a-f; `karapace pin` writes it"
        )),
        ("", Some(_)) => Err(format!("base.image has no image before {CONTENT}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let digest = "ab".repeat(32);
        let (here, there) = (local("./rootfs.tar", &digest), downloaded("https://h/x.tar", &digest));
        assert_eq!(here, format!("./rootfs.tar#content={digest}"));
        assert_eq!(there, format!("https://h/x.tar#sha256={digest}"));
        assert_eq!(split(&here), ("./rootfs.tar", Some(&digest[..])));
        assert_eq!((bare(&here), bare(&there)), ("./rootfs.tar", "https://h/x.tar"));
        assert_eq!((split("./a#b.tar"), bare("./a#sha256=b.tar")), (("./a#b.tar", None), "./a#sha256=b.tar"));
        let table = [
            (here.as_str(), true),
            (there.as_str(), true),
            ("debian/12", false),
            ("https://h/x.tar", false),
            ("oci://host/a:1@sha256:00", true),
            ("oci://host/a:1", false),
            ("./a@sha256:b.tar", false),
        ];
        for (image, expected) in table {
            assert_eq!(is_pinned(image), expected, "{image}");
            assert_eq!(check(image), Ok(()), "{image}");
        }
        for bad in ["x#content=", "x#content=abc", &format!("x#content={}", "AB".repeat(32))] {
            assert!(check(bad).unwrap_err().contains("is not a digest"), "{bad}");
        }
        assert!(check(&format!("#content={digest}")).unwrap_err().contains("has no image"));
    }
}
