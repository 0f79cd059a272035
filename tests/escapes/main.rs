//! Nothing that an image, a manifest, a server, a path or a mount says reaches a person's terminal but as
//! text: each row makes the program quote something hostile, and looks through all it prints. Needs
//! /dev/fuse.

mod rows;
mod world;

use std::fmt::Write as _;

use world::World;

/// What is quoted: an escape sequence, a bell, a backspace, a line that claims to be another message, DEL,
/// C1, and what turns the direction of writing.
const HOSTILE: &str = "x\u{1b}[31m\u{7}\u{8}\r\nFORGED \u{7f}\u{9b}2J\u{202e}\u{2066}";

/// How that is shown.
const SHOWN: &str = r"x\033[31m\a\b\r\nFORGED \177\302\2332J\342\200\256\342\201\246";

/// The same for what is shown in one line of several: Unicode's own controls.
const TURNED: &str = "y\u{202e}\u{200f}\u{2069}\u{9b}z";

/// How that is shown.
const TURNED_SHOWN: &str = r"y\342\200\256\342\200\217\342\201\251\302\233z";

/// Without what only changes colours.
fn without_colours(text: &str) -> String {
    without_sequences(text, "m")
}

/// Without the escape sequences that end in one of these letters.
fn without_sequences(text: &str, letters: &str) -> String {
    let mut pieces = text.split("\u{1b}[");
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let rest = piece.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        out.push_str(rest.strip_prefix(|c| letters.contains(c)).unwrap_or("\u{1b} of another kind"));
    }
    out
}

/// What is wrong with an output, if anything is.
fn fault(output: &[u8], shown: &str) -> Option<String> {
    let Ok(text) = std::str::from_utf8(output) else { return Some("it is not UTF-8".to_owned()) };
    if let Some(c) = text.chars().find(|c| c.is_control() && *c != '\n') {
        return Some(format!("it has {c:?}"));
    }
    let turns = |c: char| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if let Some(c) = text.chars().find(|c| turns(*c)) {
        return Some(format!("it has {c:?}"));
    }
    if text.lines().any(|line| line.starts_with("FORGED")) {
        return Some("it has a line that is not ours".to_owned());
    }
    (!text.contains(shown)).then(|| format!("it does not have {shown}"))
}

#[test]
fn nothing_hostile_reaches_a_terminal() {
    let world = World::new();
    let mut faults = String::new();
    for (name, row) in rows::ROWS {
        let (output, shown) = row(&world);
        if let Some(fault) = fault(&output, shown) {
            write!(faults, "\n{name}: {fault}: {:?}", String::from_utf8_lossy(&output)).unwrap();
        }
    }
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn programs_get_everything_as_it_is() {
    let world = World::new();
    world.overlay();
    let diff = ["diff", "upper", "base", "latest"];
    let raw = world.run(&[&diff[..], &["-z"]].concat());
    let mut entries: Vec<&[u8]> = raw.stdout.split(|byte| *byte == 0).collect();
    assert_eq!(entries.pop(), Some(&b""[..]));
    let named = format!("A /{HOSTILE}");
    assert_eq!(entries, [&b"A /\"quoted\""[..], named.as_bytes(), b"A /\xff\xfe"]);
    let json = world.run(&[&["--json"], &diff[..]].concat());
    assert_eq!(fault(&json.stdout, r"\u009b2J\u202e\u2066"), None);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let paths: Vec<_> = value.as_array().unwrap().iter().map(|change| change["path"].clone()).collect();
    let expected =
        ["/\"quoted\"".into(), format!("/{HOSTILE}").into(), serde_json::json!({ "hex": "2ffffe" })];
    assert_eq!(paths, expected);
    let error = world.run(&["--json", "import", &format!("./{HOSTILE}"), "--name", "never"]);
    let error: serde_json::Value = serde_json::from_slice(&error.stderr).unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains(HOSTILE), "{error}");
}

#[test]
fn colours_are_our_own() {
    let world = World::new();
    world.overlay();
    let mut command = world.command(&["diff", "upper", "base", "latest"]);
    let output = command.env("CLICOLOR_FORCE", "1").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\u{1b}[32mA\u{1b}[0m \""), "{text:?}");
    assert_eq!(fault(without_colours(&text).as_bytes(), SHOWN), None);
}
