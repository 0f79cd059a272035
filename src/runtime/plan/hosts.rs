//! The `/etc/hosts` of a session: the environment's own, plus the session's host name.

/// Returns `own` with a line for `hostname`, unless it has one. If there is no `own`, it starts with
/// loopback's lines.
pub(super) fn text(own: Option<&[u8]>, hostname: &str) -> Vec<u8> {
    let mut text = own.map_or_else(|| b"127.0.0.1\tlocalhost\n::1\tlocalhost\n".to_vec(), <[u8]>::to_vec);
    if !resolves(&text, hostname.as_bytes()) {
        if text.last().is_some_and(|last| *last != b'\n') {
            text.push(b'\n');
        }
        // As Debian does: a loopback address other than localhost's.
        text.extend_from_slice(format!("127.0.1.1\t{hostname}\n").as_bytes());
    }
    text
}

fn resolves(text: &[u8], hostname: &[u8]) -> bool {
    text.split(|b| *b == b'\n').any(|line| {
        let line = line.split(|b| *b == b'#').next().unwrap_or_default();
        let mut words = line.split(|b| b.is_ascii_whitespace()).filter(|word| !word.is_empty());
        words.next().is_some() && words.any(|word| word.eq_ignore_ascii_case(hostname))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_name_resolves() {
        for (own, expected) in [
            (None, "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\tdev\n"),
            (Some("127.0.0.1 localhost"), "127.0.0.1 localhost\n127.0.1.1\tdev\n"),
            (Some("10.0.0.1 a.example DEV\n"), "10.0.0.1 a.example DEV\n"),
            (Some("# 10.0.0.1 dev\n"), "# 10.0.0.1 dev\n127.0.1.1\tdev\n"),
            (Some("dev 10.0.0.1\n"), "dev 10.0.0.1\n127.0.1.1\tdev\n"),
            (Some(""), "127.0.1.1\tdev\n"),
        ] {
            let given = text(own.map(str::as_bytes), "dev");
            assert_eq!(String::from_utf8(given).unwrap(), expected, "{own:?}");
        }
    }
}
