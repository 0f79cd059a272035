//! The syntax of `.desktop` files (Desktop Entry Specification 1.5): groups, keys, translations, escapes. No
//! I/O.
//!
//! Anything that other readers might interpret differently is refused.

use std::fmt;

/// The name of the main group, which describes the program.
pub(super) const MAIN: &str = "Desktop Entry";

/// Prefix of the name of an action's group; its identifier follows.
pub(super) const ACTION: &str = "Desktop Action ";

/// Largest file that is read, in bytes. Programs with many translations need a tenth of it.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// Why a file is not exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The line, from 1; 0 if the reason is not about one line.
    line: usize,
    reason: String,
}

impl Refusal {
    pub fn at(line: usize, reason: impl Into<String>) -> Refusal {
        Refusal { line, reason: reason.into() }
    }

    pub fn of_file(reason: impl Into<String>) -> Refusal {
        Refusal::at(0, reason)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.reason),
            line => write!(f, "line {line}: {}", self.reason),
        }
    }
}

pub(super) type Result<T> = std::result::Result<T, Refusal>;

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair<'a> {
    pub line: usize,
    pub key: &'a str,
    /// The text in brackets after the key: a locale, or something that only some readers know.
    pub suffix: Option<&'a str>,
    /// The value as written, with its escapes.
    pub raw: &'a str,
}

impl Pair<'_> {
    /// The key as it is written.
    pub fn written(&self) -> String {
        match self.suffix {
            Some(suffix) => format!("{}[{suffix}]", self.key),
            None => self.key.to_owned(),
        }
    }

    /// The value, unescaped.
    pub fn value(&self) -> Result<String> {
        unescaped(self.raw, false).map_err(|reason| self.refused(&reason))
    }

    /// The items of a list value.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.raw.split(';').map(str::trim).filter(|item| !item.is_empty())
    }

    pub fn refused(&self, reason: &str) -> Refusal {
        Refusal::at(self.line, format!("{}: {reason}", shown(&self.written())))
    }
}

/// A group with its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group<'a> {
    pub name: &'a str,
    pub pairs: Vec<Pair<'a>>,
}

impl<'a> Group<'a> {
    /// The pair with this key and without a suffix.
    pub fn find(&self, key: &str) -> Option<&Pair<'a>> {
        self.pairs.iter().find(|pair| pair.key == key && pair.suffix.is_none())
    }

    /// Refuses a duplicate key: some readers use the first one and some the last.
    pub fn check_unique(&self) -> Result<()> {
        let mut seen = std::collections::HashSet::new();
        match self.pairs.iter().find(|pair| !seen.insert((pair.key, pair.suffix))) {
            Some(pair) => Err(pair.refused("this key appears twice")),
            None => Ok(()),
        }
    }
}

/// Parses the groups of a file, in order.
///
/// # Errors
/// A line that is neither comment nor group nor key, a duplicate group, or anything but comments before the
/// first group.
pub(super) fn parse(text: &str) -> Result<Vec<Group<'_>>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let refused = |reason: &str| Refusal::at(number, reason);
        if line.contains('\0') {
            return Err(refused("it has a zero byte"));
        }
        let line = line.trim_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            let odd = |c: char| !c.is_ascii() || c.is_ascii_control() || c == '[' || c == ']';
            let name = header.strip_suffix(']').filter(|name| !name.is_empty() && !name.contains(odd));
            let name = name.ok_or_else(|| refused("it is not the name of a group"))?;
            if groups.iter().any(|group| group.name == name) {
                return Err(refused(&format!("the group [{name}] appears twice")));
            }
            groups.push(Group { name, pairs: Vec::new() });
            continue;
        }
        let (key, raw) =
            line.split_once('=').ok_or_else(|| refused("it is not a comment, a group or a key"))?;
        let (key, raw) = (key.trim_end_matches([' ', '\t']), raw.trim_start_matches([' ', '\t']));
        let suffixed = key.strip_suffix(']').and_then(|key| key.split_once('['));
        let (key, suffix) = suffixed.map_or((key, None), |(key, suffix)| (key, Some(suffix)));
        let group = groups.last_mut().ok_or_else(|| refused("it is before the first group"))?;
        group.pairs.push(Pair { line: number, key, suffix, raw });
    }
    match groups.first() {
        Some(group) if group.name == MAIN => Ok(groups),
        _ => Err(Refusal::of_file(format!("it does not start with the group [{MAIN}]"))),
    }
}

/// Resolves the escapes of a value. In a list, `\;` is a semicolon within an item.
pub(super) fn unescaped(raw: &str, list: bool) -> std::result::Result<String, String> {
    let mut value = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        value.push(match c {
            '\\' => match chars.next() {
                Some('s') => ' ',
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some('\\') => '\\',
                Some(';') if list => ';',
                Some(other) => return Err(format!("\\{} is not an escape", other.escape_default())),
                None => return Err("it ends in a backslash".to_owned()),
            },
            other => other,
        });
    }
    Ok(value)
}

/// Escapes a value.
pub(super) fn escaped(value: &str) -> String {
    let mut raw = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => raw.push_str("\\\\"),
            '\n' => raw.push_str("\\n"),
            '\t' => raw.push_str("\\t"),
            '\r' => raw.push_str("\\r"),
            // Readers skip blanks around the equals sign.
            ' ' if raw.is_empty() => raw.push_str("\\s"),
            other => raw.push(other),
        }
    }
    raw
}

/// The flaw of a text that is to be shown in one line, if any: characters that end the line, hide text or
/// reverse its direction.
pub(super) fn text_flaw(text: &str) -> Option<&'static str> {
    let turns =
        |c: char| matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if text.contains(char::is_control) {
        Some("it has a control character")
    } else if text.contains(turns) {
        Some("it has a character that changes the direction of text or ends a line")
    } else {
        None
    }
}

/// A part of the file, shortened and escaped for a message.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 60;
    let mut shown: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().count() > MOST {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_keys_and_values() {
        let text =
            "# comment\n\n[Desktop Entry]\r\n Name = A b \nName[de_DE@euro]=C\nExec[$e]=x\n[X]\nBad_key=1\n";
        let groups = parse(text).unwrap();
        assert_eq!(groups.iter().map(|group| group.name).collect::<Vec<_>>(), ["Desktop Entry", "X"]);
        let pairs: Vec<_> = groups[0].pairs.iter().map(|p| (p.line, p.key, p.suffix, p.raw)).collect();
        assert_eq!(
            pairs,
            [(4, "Name", None, "A b"), (5, "Name", Some("de_DE@euro"), "C"), (6, "Exec", Some("$e"), "x")]
        );
        assert_eq!(groups[0].find("Exec"), None);
        groups[0].check_unique().unwrap();
    }

    #[test]
    fn files_that_are_not_desktop_entries_are_refused() {
        for (text, reason) in [
            ("", "does not start with"),
            ("[Other]\n[Desktop Entry]\n", "does not start with"),
            ("Exec=x\n[Desktop Entry]\n", "line 1: it is before"),
            ("\u{feff}[Desktop Entry]\n", "line 1: it is not a comment"),
            ("[Desktop Entry]\nnothing\n", "line 2: it is not a comment"),
            ("[Desktop Entry]\n[X]\n[Desktop Entry]\n", "line 3: the group [Desktop Entry] appears twice"),
            ("[Desktop Entry][$i]\n", "line 1: it is not the name"),
            ("[]\n", "line 1: it is not the name"),
            ("[Desktop Entry]\nName=a\0b\n", "line 2: it has a zero byte"),
        ] {
            let refused = parse(text).unwrap_err().to_string();
            assert!(refused.contains(reason), "{text:?}: {refused}");
        }
        let twice = parse("[Desktop Entry]\nType=Application\n Type =Link\n").unwrap();
        assert_eq!(twice[0].check_unique().unwrap_err().to_string(), "line 3: Type: this key appears twice");
    }

    #[test]
    fn escapes() {
        let value = " a\\b\n\t\r;$\"'";
        assert_eq!(escaped(value), "\\sa\\\\b\\n\\t\\r;$\"'");
        assert_eq!(unescaped(&escaped(value), false).unwrap(), value);
        assert_eq!(unescaped("a\\;b", true).unwrap(), "a;b");
        for bad in ["\\x", "\\", "a\\;b", "\\$"] {
            assert!(unescaped(bad, false).is_err(), "{bad}");
        }
        assert_eq!(text_flaw("Schön, עברית\u{200f}"), None);
        for bad in ["a\u{1b}[m", "a\nb", "a\u{85}", "a\u{202e}b", "a\u{2028}b"] {
            assert!(text_flaw(bad).is_some(), "{bad:?}");
        }
        assert_eq!(shown("a\u{1b}"), "a\\u{1b}");
    }
}
