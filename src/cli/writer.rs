//! The one writer for what a person reads, on stdout and stderr. What it is given may quote names and
//! messages of anybody's: of each line nothing but text comes through, and the colours that are added here.
//! Raw are JSON documents, which escape by themselves, and what is asked for with -z.
#![allow(clippy::disallowed_methods, reason = "all others write through this one")]

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;

use anstream::{AutoStream, ColorChoice};
use anstyle::Style;
use karapace_store::text;
use serde::Serialize;

/// A line for a person, without its newline.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Line(String);

impl Line {
    /// A line of this text.
    pub fn new(text: &str) -> Line {
        Line::default().text(text)
    }

    /// Adds text.
    pub fn text(mut self, text: &str) -> Line {
        self.0.push_str(&text::line(text));
        self
    }

    /// Adds a path, in quotes where it is not plain text.
    pub fn path(mut self, path: &[u8]) -> Line {
        self.0.push_str(&text::path(path));
        self
    }

    /// Adds text in a style. Whether there are to be styles is for the caller to ask.
    pub fn styled(mut self, style: Style, text: &str) -> Line {
        self.0.push_str(&format!("{style}{}{style:#}", text::line(text)));
        self
    }

    /// Without blanks at its end.
    pub fn trimmed(mut self) -> Line {
        self.0.truncate(self.0.trim_end().len());
        self
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Prints lines on stdout.
pub fn print(lines: impl IntoIterator<Item = Line>) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    lines.into_iter().try_for_each(|line| writeln!(out, "{line}"))?;
    out.flush()
}

/// Prints lines on stderr. That stderr is closed is no reason to fail.
pub fn tell(lines: impl IntoIterator<Item = Line>) {
    let mut err = io::stderr().lock();
    for line in lines {
        if writeln!(err, "{line}").is_err() {
            tracing::debug!("stderr is closed");
        }
    }
}

/// Prints on stderr what an answer is to follow on the same line.
pub fn ask(question: &Line) -> io::Result<()> {
    write!(io::stderr(), "{question} ")
}

/// Prints one JSON document and a newline on stdout.
pub fn json<T: Serialize>(value: &T) -> io::Result<()> {
    let document = serde_json::to_string_pretty(value)?;
    raw(format!("{}\n", text::json(&document)).as_bytes())
}

/// The line of stderr that is JSON.
pub fn tell_json(value: &serde_json::Value) {
    tell([Line(text::json(&value.to_string()).into_owned())]);
}

/// Puts bytes on stdout as they are: for programs only.
pub fn raw(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Stdout for bytes that are none of ours; it does not look for the ends of lines.
pub fn raw_stdout() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

/// Whether stdout is a terminal.
pub fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether stderr is a terminal.
pub fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Whether stdout gets colours: a terminal, unless NO_COLOR, CLICOLOR or CLICOLOR_FORCE say otherwise.
pub fn stdout_is_coloured() -> bool {
    AutoStream::choice(&io::stdout()) != ColorChoice::Never
}

/// The same of stderr.
pub fn stderr_is_coloured() -> bool {
    AutoStream::choice(&io::stderr()) != ColorChoice::Never
}

#[cfg(test)]
mod tests {
    use anstyle::AnsiColor;

    use super::*;

    #[test]
    fn only_our_own_styles_come_through() {
        let line = Line::new("a\x1b[31m").styled(AnsiColor::Red.on_default(), "b\x1b[0m").path(b"/\xff\n");
        assert_eq!(line.to_string(), "a\\033[31m\x1b[31mb\\033[0m\x1b[0m\"/\\377\\n\"");
        assert_eq!(Line::new("a  ").trimmed(), Line::new("a"));
        assert_eq!(Line::new("forged\nline").to_string(), "forged\\nline");
    }
}
