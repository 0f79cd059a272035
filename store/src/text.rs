//! Renders names and messages with arbitrary bytes as text for people. Characters that control a terminal,
//! change the writing direction or end a line are escaped like git's quoted paths: `\n`, `\t` and the like,
//! otherwise `\ooo` for each byte, in octal.

use std::borrow::Cow;

/// Whether a character is shown unescaped: not a control character (C0, DEL, C1), and not one that ends a
/// line or changes the writing direction (Unicode's `Bidi_Control`).
pub fn is_plain(c: char) -> bool {
    let ends_or_turns =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && !ends_or_turns
}

/// Renders text on one line. Backslashes are not escaped, so that text which is already escaped stays
/// unchanged; tabs stay too.
pub fn line(text: &str) -> Cow<'_, str> {
    replaced(text, '\t', escape_char)
}

/// Renders a path on one line, so that it can be read back: unchanged, or in quotes with escapes if it is not
/// plain text or begins with a quote.
pub fn path(path: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(path)
        && text.chars().all(is_plain)
        && !text.starts_with('"')
    {
        return Cow::Borrowed(text);
    }
    let mut out = String::from("\"");
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                c if is_plain(c) => out.push(c),
                c => escape_char(c, &mut out),
            }
        }
        chunk.invalid().iter().for_each(|byte| escape_byte(*byte, &mut out));
    }
    out.push('"');
    Cow::Owned(out)
}

/// Returns an equivalent JSON document without control characters: JSON itself escapes only C0.
pub fn json(document: &str) -> Cow<'_, str> {
    // Outside strings JSON has no such characters, and all of them are in the basic multilingual plane.
    replaced(document, '\n', |c, out| out.push_str(&format!("\\u{:04x}", u32::from(c))))
}

/// Replaces every character that is neither plain nor `kept`.
fn replaced(text: &str, kept: char, replace: impl Fn(char, &mut String)) -> Cow<'_, str> {
    let stays = |c: char| is_plain(c) || c == kept;
    if text.chars().all(stays) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if stays(c) { out.push(c) } else { replace(c, &mut out) }
    }
    Cow::Owned(out)
}

fn escape_char(c: char, out: &mut String) {
    c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| escape_byte(byte, out));
}

fn escape_byte(byte: u8, out: &mut String) {
    let letter = match byte {
        0x07 => 'a',
        0x08 => 'b',
        b'\t' => 't',
        b'\n' => 'n',
        0x0b => 'v',
        0x0c => 'f',
        b'\r' => 'r',
        other => return out.push_str(&format!("\\{other:03o}")),
    };
    out.extend(['\\', letter]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_hold_nothing_but_text() {
        for (text, expected) in [
            ("", ""),
            ("Größe 日本 e\u{301} \u{200d} a\\b \"c\"", "Größe 日本 e\u{301} \u{200d} a\\b \"c\""),
            ("\ta", "\ta"),
            ("a\nb\r\n", "a\\nb\\r\\n"),
            ("\x1b[31m\x07\x08\x0b\x0c\0\x7f", "\\033[31m\\a\\b\\v\\f\\000\\177"),
            ("\u{80}\u{9b}2J\u{9f}", "\\302\\200\\302\\2332J\\302\\237"),
            ("a\u{202e}b\u{2066}", "a\\342\\200\\256b\\342\\201\\246"),
            ("\u{200e}\u{200f}\u{61c}", "\\342\\200\\216\\342\\200\\217\\330\\234"),
            ("\u{2028}\u{2029}", "\\342\\200\\250\\342\\200\\251"),
            ("\\033", "\\033"),
        ] {
            assert_eq!(line(text), expected, "{text:?}");
            assert_eq!(line(&line(text)), expected, "{text:?} twice");
        }
    }

    #[test]
    fn paths_are_quoted_where_they_are_not_plain() {
        let table: &[(&[u8], &str)] = &[
            (b"/etc/x", "/etc/x"),
            ("/Größe".as_bytes(), "/Größe"),
            (b"/a\"b\\", "/a\"b\\"),
            (b"\"", "\"\\\"\""),
            (b"/a\nb\"\\", "\"/a\\nb\\\"\\\\\""),
            (b"/a\tb", "\"/a\\tb\""),
            (b"/\xff\\", "\"/\\377\\\\\""),
            (b"/\x1b[2J\x9b\xc2\x9b", "\"/\\033[2J\\233\\302\\233\""),
        ];
        for (bytes, expected) in table {
            assert_eq!(path(bytes), *expected, "{bytes:?}");
        }
    }

    #[test]
    fn documents_mean_the_same() {
        let value = "a\u{1b}\u{7f}\u{9b}\u{202e}\"\\\n\u{1f600}ä";
        let text = serde_json::to_string_pretty(&[value]).unwrap();
        let shown = json(&text);
        assert!(shown.chars().all(|c| is_plain(c) || c == '\n'), "{shown:?}");
        assert_eq!(serde_json::from_str::<[String; 1]>(&shown).unwrap(), [value]);
        assert_eq!(json("{\n  \"ä\": 1\n}"), "{\n  \"ä\": 1\n}");
    }

    /// The bytes that a rendered path stands for.
    fn read_back(shown: &str) -> Vec<u8> {
        let Some(inner) = shown.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
            return shown.as_bytes().to_vec();
        };
        let (mut out, mut rest) = (Vec::new(), inner.as_bytes());
        while let [byte, after @ ..] = rest {
            let (value, used) = match (byte, after) {
                (b'\\', [digit @ b'0'..=b'3', ..]) => {
                    let octal = std::str::from_utf8(&after[..3]).unwrap();
                    assert_eq!(octal.as_bytes()[0], *digit);
                    (u8::from_str_radix(octal, 8).unwrap(), 4)
                }
                (b'\\', [letter, ..]) => {
                    let at = b"abtnvfr".iter().position(|known| known == letter);
                    (at.map_or(*letter, |at| [7, 8, 9, 10, 11, 12, 13][at]), 2)
                }
                _ => (*byte, 1),
            };
            out.push(value);
            rest = &rest[used..];
        }
        out
    }

    proptest! {
        #[test]
        fn paths_can_be_read_back(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\\'), Just(b'"')], 0..24)) {
            let shown = path(&bytes);
            prop_assert!(shown.chars().all(is_plain));
            prop_assert_eq!(read_back(&shown), bytes);
        }

        #[test]
        fn lines_of_anything_are_plain(text in any::<String>()) {
            prop_assert!(line(&text).chars().all(|c| is_plain(c) || c == '\t'));
        }
    }
}
