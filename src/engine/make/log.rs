//! The output of a build's programs, written to a file and passed on to the report. A build that succeeds
//! removes its log.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use karapace_store::files::Files;
use karapace_store::inode::Timestamp;
use karapace_store::text;

use crate::engine::At as _;
use crate::engine::{Error, Report, Result};

/// How many of the last lines an error shows.
const TAIL: usize = 12;

/// How many logs are kept; a new build removes older ones.
const KEPT: usize = 20;

/// The errors by which overlayfs refuses what an environment allows, in lower case and as far as libraries
/// agree: EPERM for devices, EXDEV for the rename of a directory of the base, EOPNOTSUPP for attributes,
/// EIO where it cannot keep its own (docs/SEMANTICS.md, "Builds").
const REFUSALS: [&str; 4] =
    ["operation not permitted", "cross-device link", "not supported", "input/output error"];

/// Prefix of a log's name; the time and the process id of its start follow.
const PREFIX: &str = "build-";

/// The log of one build.
pub(super) struct BuildLog<'a> {
    files: Files,
    path: PathBuf,
    file: File,
    tail: VecDeque<String>,
    /// Whether a line of the last command names an error that overlayfs causes.
    is_refused: bool,
    report: &'a dyn Report,
}

impl<'a> BuildLog<'a> {
    /// Starts a log in `dir`.
    pub fn begin(files: &Files, dir: &Path, report: &'a dyn Report) -> Result<BuildLog<'a>> {
        files.make_dirs(dir).at("create", dir)?;
        sweep(files, dir)?;
        let name = format!("{PREFIX}{:010}-{}.log", Timestamp::now().secs, std::process::id());
        let path = dir.join(name);
        let file = files.open_to_append(&path);
        let file = file.at("create", &path)?;
        Ok(BuildLog { files: files.clone(), path, file, tail: VecDeque::new(), is_refused: false, report })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a command: [`BuildLog::tail`] has only lines of this command from here on.
    pub fn command(&mut self, argv: &[String]) -> Result<()> {
        self.line(&format!("+ {}", argv.join(" ")), false)?;
        self.tail.clear();
        self.is_refused = false;
        Ok(())
    }

    /// Adds a line; `shown`: passes it to the report as well.
    pub fn line(&mut self, line: &str, shown: bool) -> Result<()> {
        // People read the log, and its lines come from programs of an image: escape them.
        let line = &*text::line(line);
        writeln!(self.file, "{line}").at("write", &self.path)?;
        if !line.trim().is_empty() {
            if self.tail.len() == TAIL {
                self.tail.pop_front();
            }
            self.tail.push_back(line.to_owned());
        }
        let said = line.to_ascii_lowercase();
        self.is_refused |= REFUSALS.iter().any(|words| said.contains(words));
        if shown {
            self.report.output(line);
        }
        Ok(())
    }

    /// Whether the last command has named an error that overlayfs causes where an environment does not.
    pub fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// The report that it passes lines on to.
    pub fn report(&self) -> &'a dyn Report {
        self.report
    }

    /// Reports a remark to the user and writes it to the log.
    pub fn note(&mut self, text: &str) -> Result<()> {
        self.report.note(text);
        self.line(&format!("note: {text}"), false)
    }

    /// Whether the user wants the build to stop.
    pub fn is_cancelled(&self) -> bool {
        self.report.is_cancelled()
    }

    /// The last lines, each after a newline and indented.
    pub fn tail(&self) -> String {
        self.tail.iter().map(|line| format!("\n  {line}")).collect()
    }

    /// Removes the log after a successful build.
    pub fn remove(self) -> Result<()> {
        self.files.remove(&self.path).at("remove", &self.path)
    }
}

/// Removes the oldest logs, so that there are at most [`KEPT`] together with a new one.
fn sweep(files: &Files, dir: &Path) -> Result<()> {
    let mut logs = files.names(dir).at("list", dir)?;
    logs.retain(|name| name.to_string_lossy().starts_with(PREFIX));
    logs.sort();
    let old = (logs.len() + 1).saturating_sub(KEPT);
    for path in logs.iter().take(old).map(|name| dir.join(name)) {
        match files.remove(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", &path, e)),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Silent;
    use std::fs;

    #[test]
    fn the_last_lines_are_shown_and_old_logs_go() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..30 {
            fs::write(dir.path().join(format!("{PREFIX}{i:010}-1.log")), "").unwrap();
        }
        fs::write(dir.path().join("other"), "").unwrap();
        let mut log = BuildLog::begin(&Files::at(dir.path()).unwrap(), dir.path(), &Silent).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), KEPT + 1);
        for i in 0..20 {
            log.line(&format!("line {i}"), true).unwrap();
            log.line("", true).unwrap();
        }
        assert_eq!(log.tail().lines().count(), TAIL + 1);
        assert!(log.tail().starts_with("\n  line 8\n") && log.tail().ends_with("\n  line 19"));
        assert!(fs::read_to_string(log.path()).unwrap().starts_with("line 0\n\nline 1\n"));
        log.line("\x1b[2J\tünpacking\u{202e}", true).unwrap();
        for text in [log.tail(), fs::read_to_string(log.path()).unwrap()] {
            assert!(text.trim_end().ends_with("\\033[2J\tünpacking\\342\\200\\256"), "{text:?}");
        }
        let path = log.path().to_owned();
        log.remove().unwrap();
        assert!(!path.exists());
    }
}
