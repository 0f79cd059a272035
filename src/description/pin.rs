//! Pinned images: a reference with a digest behind it. What is downloaded has that of its bytes,
//! `https://host/rootfs.tar.xz#sha256=…`, and what is on this machine that of its content,
//! `./rootfs#content=…`, which is the same for a directory and an archive of it. Pure.

/// What stands between a reference and the digest of its content.
const CONTENT: &str = "#content=";

/// What stands between an address and the digest of its bytes.
const SHA256: &str = "#sha256=";

/// Number of hex digits of either digest.
const DIGITS: usize = 64;

/// The reference that `image` is without the digest of its content, and that digest if there is one.
pub fn split(image: &str) -> (&str, Option<&str>) {
    match image.rsplit_once(CONTENT) {
        Some((reference, digest)) => (reference, Some(digest)),
        None => (image, None),
    }
}

/// The reference that `image` is without any digest.
pub fn bare(image: &str) -> &str {
    let image = split(image).0;
    if is_address(image) { image.split_once(SHA256).map_or(image, |(url, _)| url) } else { image }
}

/// Whether `image` can mean one content only. A registry's reference has a digest of its own.
pub fn is_pinned(image: &str) -> bool {
    split(image).1.is_some()
        || (is_address(image) && image.contains(SHA256))
        || (image.starts_with("oci://") && image.contains("@sha256:"))
}

/// The pinned form of what is on this machine.
pub fn local(image: &str, digest: &str) -> String {
    format!("{image}{CONTENT}{digest}")
}

/// The pinned form of what was downloaded.
pub fn downloaded(url: &str, sha256: &str) -> String {
    format!("{url}{SHA256}{sha256}")
}

fn is_address(image: &str) -> bool {
    image.starts_with("http://") || image.starts_with("https://")
}

/// Checks the digest of the content of an image, if it has one.
///
/// # Errors
/// What is wrong with it.
pub fn check(image: &str) -> Result<(), String> {
    let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    match split(image) {
        (_, Some(digest)) if digest.len() != DIGITS || !digest.bytes().all(is_digit) => Err(format!(
            "base.image: {digest:?} after {CONTENT} is no digest of {DIGITS} digits from 0-9 and a-f; `karapace pin` writes it"
        )),
        ("", Some(_)) => Err(format!("base.image names no image before {CONTENT}")),
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
            assert!(check(bad).unwrap_err().contains("is no digest"), "{bad}");
        }
        assert!(check(&format!("#content={digest}")).unwrap_err().contains("names no image"));
    }
}
