//! What can be asked of an open environment ([`Command`]), and the text form that `ctl` accepts
//! (docs/CONTROL.md).
//!
//! In `ctl`, one command per line. A value may be quoted ("…" or '…', without escapes); an unquoted message
//! extends over spaces until the next `name=` or `async=` or the end of the line.

use karapace_store::metadata::{MAX_NAME, check_name};
use serde::{Deserialize, Serialize};

use crate::path_text::PathText;

/// Longest text in one write to `ctl`, in bytes.
pub const MAX_TEXT: usize = 4096;

/// Hex digits of a complete hash.
const HASH_DIGITS: usize = 64;

/// Every command word with the `key=value` arguments it accepts. A test compares [`HELP`] and docs/CONTROL.md
/// with this table.
const COMMANDS: [(&str, &[&str]); 4] = [
    ("commit", &["name", "message", "async"]),
    ("restore", &["touch"]),
    ("gc", &["dry_run"]),
    ("verify", &[]),
];

/// The commands in the text of `help`.
pub(super) const HELP: &str = "  commit [name=N] [message=TEXT] [async=1]
                   make a snapshot; returns when it is durable, async=1: at once with a job number
  restore SNAPSHOT [touch=1]
                   make the tree equal to a snapshot: a hash or prefix, a name, head, latest, base, ~k (the k-th
                   parent of head); uncommitted changes are committed first; with touch=1 everything that it
                   changes gets the current time
  gc [dry_run=1]   collect garbage in the store, as a job
  verify           read and check the whole store, as a job
";

/// The forms of a reference to a snapshot.
const SNAPSHOT: &str = "a hash or prefix, a name, head, latest, base or ~k";

/// What can be asked of an open environment, whichever way it comes: from the control directory, through the
/// control socket, or from a command line that has opened the environment itself. The serialised form is what
/// the socket carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Command {
    /// Make a snapshot of the view.
    Commit {
        /// Name for the snapshot.
        name: Option<String>,
        /// Message stored with the snapshot.
        message: Option<String>,
        /// Only these paths; all when empty.
        paths: Vec<PathText>,
    },
    /// Make the view equal to a snapshot.
    Restore {
        /// The snapshot; resolved when the command runs.
        reference: String,
        /// Only at these paths; everywhere when empty.
        paths: Vec<PathText>,
        /// Which modification times files get, if not the default ones.
        times: Option<Times>,
    },
    /// Remove snapshots, all or none.
    RemoveSnapshots {
        /// The snapshots.
        references: Vec<String>,
    },
    /// Remove a snapshot's name; the snapshot stays. In the control directory, `rmdir snapshots/<name>`.
    DropName {
        /// The name.
        name: String,
    },
    /// List what differs from the head.
    Diff {
        /// From this snapshot instead.
        since: Option<String>,
    },
    /// Count what is uncommitted.
    Status,
    /// Store what is uncommitted, so that one tree has all that the view shows. No snapshot is made.
    Store,
    /// Collect garbage in the store.
    Gc {
        /// Only report what would be removed.
        dry_run: bool,
    },
    /// Read and check the whole store.
    Verify,
}

/// Which modification times files have after a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Times {
    /// The snapshot's.
    Kept,
    /// The present time for everything whose content the restore changes, or that it adds; everything else
    /// keeps its current time (see [`karapace_store::tree::retime`]).
    Present,
}

impl Command {
    /// The command's word, for job listings and messages.
    pub fn word(&self) -> &'static str {
        match self {
            Command::Commit { .. } => "commit",
            Command::Restore { .. } => "restore",
            Command::RemoveSnapshots { .. } => "remove-snapshots",
            Command::DropName { .. } => "drop-name",
            Command::Diff { .. } => "diff",
            Command::Status => "status",
            Command::Store => "store",
            Command::Gc { .. } => "gc",
            Command::Verify => "verify",
        }
    }

    /// Whether the command changes nothing, so that it can be repeated and the view be opened read-only.
    pub fn only_reads(&self) -> bool {
        match self {
            Command::Diff { .. } | Command::Status | Command::Verify => true,
            Command::Gc { dry_run } => *dry_run,
            Command::Commit { .. }
            | Command::Restore { .. }
            | Command::RemoveSnapshots { .. }
            | Command::DropName { .. }
            | Command::Store => false,
        }
    }

    /// Checks what can be checked without the environment: names and references to snapshots.
    ///
    /// # Errors
    /// The reason; the command is invalid (EINVAL).
    pub fn check(&self) -> Result<(), String> {
        match self {
            Command::Commit { name, .. } => name.as_deref().map_or(Ok(()), check_snapshot_name),
            Command::Restore { reference, .. } => check_reference(reference),
            Command::RemoveSnapshots { references } => references.iter().try_for_each(|r| check_reference(r)),
            Command::Diff { since } => since.as_deref().map_or(Ok(()), check_reference),
            Command::DropName { .. }
            | Command::Status
            | Command::Store
            | Command::Gc { .. }
            | Command::Verify => Ok(()),
        }
    }
}

/// A line of `ctl`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What it asks.
    pub command: Command,
    /// The writer gets a job number at once instead of waiting for completion.
    pub is_job: bool,
}

/// Parses all commands in a text; blank lines are allowed. The error names the line and the reason.
///
/// # Errors
/// An unknown word, a bad or repeated argument, invalid UTF-8 or a control character. No command of the text
/// may run then.
pub fn parse_commands(text: &[u8]) -> Result<Vec<Line>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "the command is not UTF-8 text".to_owned())?;
    let mut lines = Vec::new();
    for (number, line) in text.split('\n').enumerate() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let parsed = if line.chars().any(|c| c.is_control() && c != '\t') {
            Err("the command contains control characters".to_owned())
        } else {
            parse_line(line)
        };
        let parsed = parsed.and_then(|line| line.command.check().map(|()| line));
        lines.push(parsed.map_err(|reason| {
            if text.trim().contains('\n') { format!("line {}: {reason}", number + 1) } else { reason }
        })?);
    }
    Ok(lines)
}

/// Whether a snapshot may have this name: it must be a valid name ([`check_name`]), not a word that refers to
/// a snapshot, and not look like a hash.
pub fn check_snapshot_name(name: &str) -> Result<(), String> {
    check_name(name).map_err(|error| error.to_string())?;
    if matches!(name, "head" | "latest" | "base") {
        return Err(format!("bad name {name:?}: it is reserved"));
    }
    if name.len() == HASH_DIGITS && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(format!("bad name {name:?}: it looks like a hash"));
    }
    Ok(())
}

/// Whether a text has the form of a reference to a snapshot.
///
/// # Errors
/// The reason, which lists the forms.
pub fn check_reference(reference: &str) -> Result<(), String> {
    let body = reference.strip_prefix('~').unwrap_or(reference);
    let is_good = !body.is_empty()
        && body.len() <= HASH_DIGITS.max(MAX_NAME)
        && body.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        && (body.len() == reference.len() || body.bytes().all(|b| b.is_ascii_digit()));
    if is_good { Ok(()) } else { Err(format!("bad snapshot {reference:?}: {SNAPSHOT}")) }
}

fn parse_line(line: &str) -> Result<Line, String> {
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let Some((word, known)) = COMMANDS.into_iter().find(|(known, _)| *known == word) else {
        return Err(format!(
            "unknown command {word:?}; known: {}",
            COMMANDS.map(|(word, _)| word).join(", ")
        ));
    };
    match word {
        "commit" => parse_commit(rest, known),
        "restore" => parse_restore(rest, known),
        "gc" => {
            let mut dry_run = None;
            for (key, value) in arguments(rest, known)? {
                set(&mut dry_run, key, flag(key, &value)?)?;
            }
            Ok(Line { command: Command::Gc { dry_run: dry_run.unwrap_or(false) }, is_job: true })
        }
        "verify" => arguments(rest, known).map(|_| Line { command: Command::Verify, is_job: true }),
        _ => Err(format!("{word} is in the table of commands, and nothing is written for it")),
    }
}

fn parse_commit(rest: &str, known: &[&'static str]) -> Result<Line, String> {
    let (mut name, mut message, mut run_async) = (None, None, None);
    for (key, value) in arguments(rest, known)? {
        match key {
            "name" => set(&mut name, key, value)?,
            "message" => set(&mut message, key, value)?,
            _ => set(&mut run_async, key, flag(key, &value)?)?,
        }
    }
    let command = Command::Commit { name, message, paths: Vec::new() };
    Ok(Line { command, is_job: run_async.unwrap_or(false) })
}

fn parse_restore(rest: &str, known: &[&'static str]) -> Result<Line, String> {
    let rest = rest.trim();
    let (reference, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    if reference.is_empty() {
        return Err(format!("restore needs a snapshot: {SNAPSHOT}"));
    }
    if let Some(extra) = rest.split_whitespace().find(|word| !word.contains('=')) {
        return Err(format!("restore takes one snapshot; remove {extra:?}"));
    }
    let mut touch = None;
    for (key, value) in arguments(rest, known)? {
        set(&mut touch, key, flag(key, &value)?)?;
    }
    let times = touch.map(|touch| if touch { Times::Present } else { Times::Kept });
    Ok(Line {
        command: Command::Restore { reference: reference.to_owned(), paths: Vec::new(), times },
        is_job: false,
    })
}

/// Parses `key=value …`; accepts only keys in `known`, in any order.
fn arguments<'a>(rest: &'a str, known: &[&'static str]) -> Result<Vec<(&'static str, String)>, String> {
    let key_of = |text: &'a str| -> Option<(&'static str, &'a str)> {
        let (key, value) = text.split_once('=')?;
        known.iter().find(|k| **k == key).map(|k| (*k, value))
    };
    let mut found = Vec::new();
    let mut rest = rest.trim();
    while !rest.is_empty() {
        let Some((key, value)) = key_of(rest) else {
            let word = rest.split_whitespace().next().unwrap_or(rest);
            return Err(format!("unknown argument {word:?}"));
        };
        let end;
        if let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) {
            let inner = &value[1..];
            let close = inner.find(quote).ok_or_else(|| format!("{key}: the quote is not closed"))?;
            found.push((key, inner[..close].to_owned()));
            end = close + 2;
            if value[end..].chars().next().is_some_and(|c| !c.is_whitespace()) {
                return Err(format!("{key}: text right after the closing quote"));
            }
        } else {
            end = if key == "message" { message_end(value, &key_of) } else { word_end(value) };
            found.push((key, value[..end].trim_end().to_owned()));
        }
        rest = value[end..].trim_start();
    }
    Ok(found)
}

fn word_end(text: &str) -> usize {
    text.find(char::is_whitespace).unwrap_or(text.len())
}

/// End of an unquoted message: before the next word that is `<known key>=…`.
fn message_end<'a, T>(text: &'a str, key_of: &dyn Fn(&'a str) -> Option<T>) -> usize {
    let mut at = word_end(text);
    while at < text.len() {
        let word = at + (text[at..].len() - text[at..].trim_start().len());
        if key_of(&text[word..]).is_some() {
            return at;
        }
        at = word + word_end(&text[word..]);
    }
    text.len()
}

fn set<T>(slot: &mut Option<T>, key: &str, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{key} is given twice")),
    }
}

fn flag(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "1" => Ok(true),
        "0" => Ok(false),
        other => Err(format!("{key} must be 0 or 1, not {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(name: Option<&str>, message: Option<&str>, is_job: bool) -> Line {
        let (name, message) = (name.map(Into::into), message.map(Into::into));
        Line { command: Command::Commit { name, message, paths: Vec::new() }, is_job }
    }

    fn restore(reference: &str, times: Option<Times>) -> Line {
        let command = Command::Restore { reference: reference.into(), paths: Vec::new(), times };
        Line { command, is_job: false }
    }

    fn gc(dry_run: bool) -> Line {
        Line { command: Command::Gc { dry_run }, is_job: true }
    }

    #[test]
    fn good_texts() {
        let table: &[(&str, Vec<Line>)] = &[
            ("", vec![]),
            ("\n", vec![]),
            (" \n\t\n", vec![]),
            ("commit", vec![commit(None, None, false)]),
            ("commit\n", vec![commit(None, None, false)]),
            ("  commit  \r\n", vec![commit(None, None, false)]),
            ("commit name=a-B_9", vec![commit(Some("a-B_9"), None, false)]),
            ("commit message=one", vec![commit(None, Some("one"), false)]),
            ("commit message=two  words", vec![commit(None, Some("two  words"), false)]),
            ("commit message=a b async=1", vec![commit(None, Some("a b"), true)]),
            ("commit message=x=y z=1 name=n", vec![commit(Some("n"), Some("x=y z=1"), false)]),
            (
                "commit message=\"async=1 in it\" name=n",
                vec![commit(Some("n"), Some("async=1 in it"), false)],
            ),
            ("commit message='it is \"so\"'", vec![commit(None, Some("it is \"so\""), false)]),
            ("commit message= name=n", vec![commit(Some("n"), Some(""), false)]),
            ("commit message=Größe", vec![commit(None, Some("Größe"), false)]),
            ("commit async=0", vec![commit(None, None, false)]),
            ("restore head", vec![restore("head", None)]),
            ("restore ~12\n", vec![restore("~12", None)]),
            ("restore 0a1b", vec![restore("0a1b", None)]),
            ("restore  a touch=1 ", vec![restore("a", Some(Times::Present))]),
            ("restore a touch=0", vec![restore("a", Some(Times::Kept))]),
            ("gc", vec![gc(false)]),
            ("gc dry_run=1", vec![gc(true)]),
            ("verify", vec![Line { command: Command::Verify, is_job: true }]),
            ("commit\n\nrestore a\ngc", vec![commit(None, None, false), restore("a", None), gc(false)]),
        ];
        for (text, wanted) in table {
            assert_eq!(parse_commands(text.as_bytes()).as_ref(), Ok(wanted), "{text:?}");
        }
    }

    #[test]
    fn bad_texts() {
        let table: &[(&[u8], &str)] = &[
            (b"nonsense", "unknown command \"nonsense\""),
            (b"commit\nnonsense", "line 2: unknown command"),
            (b"Commit", "unknown command"),
            (b"commit now", "unknown argument \"now\""),
            (b"commit nam=a", "unknown argument \"nam=a\""),
            (b"commit name=", "bad name"),
            (b"commit name=a/b", "bad name"),
            (b"commit name=..", "bad name"),
            (b"commit name=head", "it is reserved"),
            (b"commit name=a name=b", "name is given twice"),
            (b"commit async=yes", "async must be 0 or 1"),
            (b"commit message=\"open", "not closed"),
            (b"commit message=\"a\"b", "right after"),
            (b"restore", "needs a snapshot"),
            (b"restore a b", "takes one snapshot"),
            (b"restore a touch", "takes one snapshot"),
            (b"restore a touch=yes", "touch must be 0 or 1"),
            (b"restore a touch=1 touch=1", "touch is given twice"),
            (b"restore a keep=1", "unknown argument"),
            (b"restore touch=1", "bad snapshot"),
            (b"restore ~", "bad snapshot"),
            (b"restore ~x", "bad snapshot"),
            (b"restore ../etc", "bad snapshot"),
            (b"gc dry_run", "unknown argument"),
            (b"verify all=1", "unknown argument"),
            (b"commit\0", "control characters"),
            (b"\xff\xfe", "not UTF-8"),
        ];
        for (text, wanted) in table {
            let error = parse_commands(text).expect_err(&String::from_utf8_lossy(text));
            assert!(error.contains(wanted), "{:?}: {error}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn names() {
        assert!(check_snapshot_name(&"a".repeat(64)).is_err(), "64 hex digits read as a hash");
        assert!(check_snapshot_name(&"z".repeat(64)).is_ok());
        assert!(check_snapshot_name(&"z".repeat(65)).is_err());
        assert!(check_snapshot_name("dead").is_ok());
    }

    /// The keys of `[key=…]` in a line.
    fn keys(line: &str) -> Vec<&str> {
        line.split('[').skip(1).filter_map(|rest| rest.split_once('=')).map(|(key, _)| key).collect()
    }

    /// The first word of each line that begins with `start`, and its keys.
    fn commands<'a>(text: &'a str, start: &str) -> Vec<(&'a str, Vec<&'a str>)> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(start));
        let lines = lines.filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
        lines.map(|line| (&line[..line.find([' ', '`']).unwrap_or(line.len())], keys(line))).collect()
    }

    #[test]
    fn help_and_the_page_name_every_command_and_its_arguments() {
        let page = include_str!("../../../docs/CONTROL.md");
        let table = &page[page.find("| command |").expect("the table of commands")..];
        let table = &table[..table.find("\n\n").expect("the end of the table")];
        let known = COMMANDS.map(|(word, keys)| (word, keys.to_vec()));
        assert_eq!(commands(HELP, "  "), known, "HELP");
        assert_eq!(commands(table, "| `"), known, "docs/CONTROL.md");
        for (word, _) in known {
            let parsed = parse_line(&format!("{word} {}", if word == "restore" { "head" } else { "" }));
            assert_eq!(parsed.map(|line| line.command.word()), Ok(word));
        }
    }
}
