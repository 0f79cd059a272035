//! Output: data on stdout, everything else on stderr.

use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use karapace_store::import::Progress;
use parking_lot::Mutex;
use serde::Serialize;

use super::exit;
use crate::engine::Report;

pub use super::table::table;

/// Why a command did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The engine said so.
    #[error(transparent)]
    Engine(#[from] crate::engine::Error),
    /// Nobody reads stdout any more, or it is full.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// All was said already; only the exit status is left.
    #[error("exit status {0}")]
    Status(i32),
}

impl From<karapace_store::error::StoreError> for Failure {
    fn from(error: karapace_store::error::StoreError) -> Self {
        Failure::Engine(error.into())
    }
}

/// Prints one JSON document and a newline on stdout.
pub fn json<T: Serialize>(value: &T) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Prints one line on stdout.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Set by --quiet.
static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on nothing but data, errors and notes is printed.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether stdout gets colours: a terminal, unless NO_COLOR, CLICOLOR or CLICOLOR_FORCE say otherwise.
pub fn coloured() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

/// Prints a remark on stderr, unless --quiet was given.
pub fn remark(text: &str) {
    if !QUIET.load(Ordering::Relaxed) {
        complain(text);
    }
}

/// Prints on stderr what must be said: errors and notes. That stderr is closed is no reason to fail.
pub fn complain(text: &str) {
    let mut err = io::stderr().lock();
    if writeln!(err, "{text}").is_err() {
        tracing::debug!("stderr is closed");
    }
}

/// Paths as given on the command line.
pub fn bytes(paths: &[OsString]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| path.as_bytes().to_vec()).collect()
}

/// Asks a yes-or-no question on the terminal; `None` when there is no terminal to ask on.
pub fn confirm(question: &str) -> io::Result<Option<bool>> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(None);
    }
    write!(io::stderr(), "{question} [y/N] ")?;
    let mut reply = String::new();
    io::stdin().lock().read_line(&mut reply)?;
    Ok(Some(matches!(reply.trim(), "y" | "Y" | "yes")))
}

/// A letter of `diff` in its colour: A, M or D.
pub fn change(letter: char) -> String {
    use anstyle::{AnsiColor, Style};
    let style = match letter {
        _ if !coloured() => Style::new(),
        'A' => AnsiColor::Green.on_default(),
        'D' => AnsiColor::Red.on_default(),
        _ => AnsiColor::Yellow.on_default(),
    };
    format!("{style}{letter}{style:#}")
}

/// A path as one line of text: as it is, or quoted where it holds a newline or begins with a quote, as in `.karapace/diff`.
pub fn path_line(path: &[u8]) -> Vec<u8> {
    if !path.contains(&b'\n') && path.first() != Some(&b'"') {
        return path.to_vec();
    }
    let mut out = vec![b'"'];
    for &byte in path {
        match byte {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            other => out.push(other),
        }
    }
    out.push(b'"');
    out
}

/// How much of a program's line a bar shows.
const MOST_SHOWN: usize = 60;

/// `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Progress on stderr: a bar on a terminal, nothing elsewhere. Remarks always.
pub struct Bars {
    shown: bool,
    shows_output: bool,
    current: Mutex<Option<Current>>,
}

/// The bar of the stretch of work under way.
struct Current {
    bar: ProgressBar,
    entries: u64,
}

impl Bars {
    /// Bars only where somebody watches.
    pub fn on_stderr() -> Bars {
        Bars {
            shown: io::stderr().is_terminal() && !QUIET.load(Ordering::Relaxed),
            shows_output: false,
            current: Mutex::new(None),
        }
    }

    /// Whether all is shown that programs print which run for the user, or only their last line, in the bar.
    pub fn showing_output(self, shows_output: bool) -> Bars {
        Bars { shows_output, ..self }
    }

    /// The same for work that ends cleanly when it is interrupted. A second signal ends the program at once.
    pub fn stoppable() -> Bars {
        let handler = || {
            if STOP.swap(true, Ordering::Relaxed) {
                std::process::exit(exit::INTERRUPTED);
            }
        };
        if let Err(error) = ctrlc::set_handler(handler) {
            tracing::warn!("an interruption ends this command at once: {error}");
        }
        Bars::on_stderr()
    }
}

impl Bars {
    /// Says something above the bar, if there is one.
    fn above(&self, say: impl Fn()) {
        match &*self.current.lock() {
            Some(current) => current.bar.suspend(say),
            None => say(),
        }
    }
}

impl Progress for Bars {
    fn add(&self, bytes: u64, entries: u64) {
        if let Some(current) = &mut *self.current.lock() {
            current.bar.inc(bytes);
            if entries > 0 {
                current.entries += entries;
                current.bar.set_message(format!("{} entries", current.entries));
            }
        }
    }
}

/// Set by the first SIGINT, SIGTERM or SIGHUP after [`Bars::stoppable`].
static STOP: AtomicBool = AtomicBool::new(false);

impl Report for Bars {
    fn begin(&self, what: &str, bytes: Option<u64>) {
        if !self.shown {
            return;
        }
        let (bar, template) = match bytes {
            Some(total) => (
                ProgressBar::new(total),
                "{prefix:>12} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {msg}",
            ),
            None => (ProgressBar::no_length(), "{prefix:>12} {spinner} {binary_bytes} {msg} {elapsed}"),
        };
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_prefix(what.to_owned());
        if let Some(old) = self.current.lock().replace(Current { bar, entries: 0 }) {
            old.bar.finish_and_clear();
        }
    }

    fn end(&self) {
        if let Some(current) = self.current.lock().take() {
            current.bar.finish_and_clear();
        }
    }

    fn is_cancelled(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }

    fn note(&self, text: &str) {
        self.above(|| complain(&format!("note: {text}")));
    }

    fn output(&self, line: &str) {
        if self.shows_output {
            self.above(|| remark(line));
        } else if let Some(current) = &*self.current.lock() {
            current.bar.tick();
            current
                .bar
                .set_message(line.chars().filter(|c| !c.is_control()).take(MOST_SHOWN).collect::<String>());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_on_their_line() {
        let table: &[(&[u8], &[u8])] = &[
            (b"/etc/x", b"/etc/x"),
            (b"/a\"b\\", b"/a\"b\\"),
            (b"/a\nb\"\\", b"\"/a\\nb\\\"\\\\\""),
            (b"/\xff", b"/\xff"),
        ];
        for (path, expected) in table {
            assert_eq!(path_line(path), *expected);
        }
    }
}
