//! The only writer of text for people, on stdout and stderr. Its input may quote untrusted names and
//! messages, so it escapes every line: only plain text and the colours that are added here get through. Two
//! things are written raw: JSON documents, which do their own escaping, and output requested with -z.
#![allow(clippy::disallowed_methods, reason = "all others write through this one")]

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;

use anstream::{AutoStream, ColorChoice};
use anstyle::Style;
use karapace_store::text;
use serde::Serialize;

/// An escaped line for people, without its newline.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Line(String);

impl Line {
    /// Makes a line of this text.
    pub fn new(text: &str) -> Line {
        Line::default().text(text)
    }

    /// Appends text.
    pub fn text(mut self, text: &str) -> Line {
        self.0.push_str(&text::line(text));
        self
    }

    /// Appends a path, quoted if it is not plain text.
    pub fn path(mut self, path: &[u8]) -> Line {
        self.0.push_str(&text::path(path));
        self
    }

    /// Appends text in a style. The caller must check whether styles are wanted.
    pub fn styled(mut self, style: Style, text: &str) -> Line {
        self.0.push_str(&format!("{style}{}{style:#}", text::line(text)));
        self
    }

    /// Removes trailing white space.
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

/// Prints lines on stderr. It is no failure if stderr is closed.
pub fn tell(lines: impl IntoIterator<Item = Line>) {
    let mut err = io::stderr().lock();
    for line in lines {
        if writeln!(err, "{line}").is_err() {
            tracing::debug!("stderr is closed");
        }
    }
}

/// Prints a question on stderr; the answer follows on the same line.
pub fn ask(question: &Line) -> io::Result<()> {
    write!(io::stderr(), "{question} ")
}

/// Prints one JSON document and a newline on stdout.
pub fn json<T: Serialize>(value: &T) -> io::Result<()> {
    let document = serde_json::to_string_pretty(value)?;
    raw(format!("{}\n", text::json(&document)).as_bytes())
}

/// Prints one JSON value on stderr, on one line.
pub fn tell_json(value: &serde_json::Value) {
    tell([Line(text::json(&value.to_string()).into_owned())]);
}

/// Writes bytes to stdout unchanged: for programs only.
pub fn raw(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// A copy of stdout for bytes that are not ours; unlike `io::stdout` it is not line-buffered.
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

/// Whether stdout gets colours: if it is a terminal, unless NO_COLOR, CLICOLOR or CLICOLOR_FORCE say
/// otherwise.
pub fn stdout_is_coloured() -> bool {
    AutoStream::choice(&io::stdout()) != ColorChoice::Never
}

/// Whether stderr gets colours; see [`stdout_is_coloured`].
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
