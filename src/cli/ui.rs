//! Output: data on stdout, everything else on stderr.

use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use karapace_fs::attr::DiffKind;
use karapace_store::progress::Progress;
use karapace_store::text;
use parking_lot::Mutex;

use super::exit;
use super::writer::{self, Line};
use crate::engine::Report;
use crate::process::signals;

pub use super::table::table;
pub use super::writer::json;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// An error of the engine.
    #[error(transparent)]
    Engine(#[from] crate::engine::Error),
    /// stdout is closed or full.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// The reason has been printed already; only the exit status is left.
    #[error("exit status {0}")]
    Status(i32),
}

impl From<karapace_store::error::StoreError> for Failure {
    fn from(error: karapace_store::error::StoreError) -> Self {
        Failure::Engine(error.into())
    }
}

/// Prints one line on stdout.
pub fn line(text: &str) -> io::Result<()> {
    writer::print([Line::new(text)])
}

/// Set by --quiet.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Set by --quiet and --json.
static WITHOUT_LINES: AtomicBool = AtomicBool::new(false);

/// From now on, prints no lines of progress.
pub fn hide_progress_lines() {
    WITHOUT_LINES.store(true, Ordering::Relaxed);
}

/// From now on, prints nothing but data, errors and notes.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Prints a remark on stderr, unless --quiet was given.
pub fn remark(text: &str) {
    if !QUIET.load(Ordering::Relaxed) {
        complain(text);
    }
}

/// Prints an error or a note on stderr, on one line and whatever options were given.
pub fn complain(text: &str) {
    writer::tell([Line::new(text)]);
}

/// Like [`complain`], for a text of several lines in which quoted parts are already escaped.
pub fn complain_in_lines(text: &str) {
    writer::tell(text.lines().map(Line::new));
}

/// The bytes of paths given on the command line.
pub fn bytes(paths: &[OsString]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| path.as_bytes().to_vec()).collect()
}

/// Asks a yes-or-no question on the terminal; `None` if there is no terminal.
pub fn confirm(question: &str) -> io::Result<Option<bool>> {
    if !is_asked() {
        return Ok(None);
    }
    writer::ask(&Line::new(&format!("{question} [y/N]")))?;
    let mut reply = String::new();
    io::stdin().lock().read_line(&mut reply)?;
    Ok(Some(matches!(reply.trim(), "y" | "Y" | "yes")))
}

/// Whether stdin and stderr are terminals, so that a question can be asked.
fn is_asked() -> bool {
    io::stdin().is_terminal() && writer::stderr_is_terminal()
}

/// Asks on the terminal for one of several choices, each a name and a description. Returns its index; an
/// empty reply selects the first. `None` if there is no terminal, or the input ends.
pub fn choose(question: &str, choices: &[(String, String)]) -> io::Result<Option<usize>> {
    if !is_asked() {
        return Ok(None);
    }
    complain(question);
    let width = choices.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    for (index, (name, line)) in choices.iter().enumerate() {
        complain(&format!("  {}  {name:width$}  {line}", index + 1));
    }
    loop {
        writer::ask(&Line::new("number or name [1]:"))?;
        let mut reply = String::new();
        if io::stdin().lock().read_line(&mut reply)? == 0 {
            complain("");
            return Ok(None);
        }
        if let Some(chosen) = chosen(reply.trim(), choices) {
            return Ok(Some(chosen));
        }
        complain(&format!("there is no {:?}", reply.trim()));
    }
}

/// The index of the choice that a reply selects.
fn chosen(reply: &str, choices: &[(String, String)]) -> Option<usize> {
    if reply.is_empty() {
        return (!choices.is_empty()).then_some(0);
    }
    let number = reply.parse::<usize>().ok().filter(|number| (1..=choices.len()).contains(number));
    number.map(|number| number - 1).or_else(|| choices.iter().position(|(name, _)| name == reply))
}

/// The style of a letter in the output of `diff`: A, M or D.
pub fn change(kind: DiffKind) -> Style {
    match kind {
        _ if !writer::stdout_is_coloured() => Style::new(),
        DiffKind::Added => AnsiColor::Green.on_default(),
        DiffKind::Deleted => AnsiColor::Red.on_default(),
        DiffKind::Modified => AnsiColor::Yellow.on_default(),
    }
}

/// How many characters of a program's line a bar shows.
const MOST_SHOWN: usize = 60;

/// Formats a size in bytes, as in `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Without a bar, work that takes longer than this gets a line at its end.
const LONG: Duration = Duration::from_secs(2);

/// Progress on stderr. On a terminal: a bar. Elsewhere: a line when work begins, and another when long work
/// ends. Remarks are always printed.
pub struct Bars {
    shown: bool,
    in_lines: bool,
    shows_output: bool,
    current: Mutex<Option<Current>>,
}

/// The bar of the current stretch of work.
struct Current {
    what: String,
    since: Instant,
    bar: ProgressBar,
    entries: u64,
}

impl Current {
    /// The counts, for the line at the end.
    fn done(&self) -> String {
        let mut text = String::new();
        if self.entries > 0 {
            text.push_str(&format!("{} entries, ", self.entries));
        }
        if self.bar.position() > 0 {
            text.push_str(&format!("{}, ", size(self.bar.position())));
        }
        text
    }
}

impl Bars {
    /// Shows bars only if stderr is a terminal.
    pub fn on_stderr() -> Bars {
        let is_terminal = writer::stderr_is_terminal();
        Bars {
            shown: is_terminal && !QUIET.load(Ordering::Relaxed),
            in_lines: !is_terminal && !WITHOUT_LINES.load(Ordering::Relaxed),
            shows_output: false,
            current: Mutex::new(None),
        }
    }

    /// Sets whether to show the full output of programs that run for the user, or only its last line, in the
    /// bar.
    pub fn showing_output(self, shows_output: bool) -> Bars {
        Bars { shows_output, ..self }
    }

    /// Like [`Bars::on_stderr`], for work that ends cleanly on an interrupt, from its beginning.
    pub fn stoppable() -> Bars {
        let bars = Bars::on_stderr();
        bars.heed_interruptions();
        bars
    }
}

impl Bars {
    /// Prints something above the bar, if there is one.
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

    fn is_cancelled(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }
}

/// Set by the first SIGINT, SIGTERM or SIGHUP after [`Report::heed_interruptions`].
static STOP: AtomicBool = AtomicBool::new(false);

/// The handler is set only once.
static HEEDED: Once = Once::new();

impl Report for Bars {
    fn begin(&self, what: &str, bytes: Option<u64>) {
        if self.in_lines {
            complain(&format!("{what} …"));
        } else if !self.shown {
            return;
        }
        let (bar, template) = match bytes {
            Some(total) => (
                ProgressBar::new(total),
                "{prefix:>12} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {msg}",
            ),
            None => (ProgressBar::no_length(), "{prefix:>12} {spinner} {binary_bytes} {msg} {elapsed}"),
        };
        // Without a terminal the bar only counts.
        bar.set_draw_target(if self.shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        });
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_prefix(text::line(what).into_owned());
        if let Some(old) = self.current.lock().replace(Current {
            what: what.to_owned(),
            since: Instant::now(),
            bar,
            entries: 0,
        }) {
            old.bar.finish_and_clear();
        }
    }

    fn end(&self) {
        let Some(current) = self.current.lock().take() else { return };
        current.bar.finish_and_clear();
        let took = current.since.elapsed();
        if self.in_lines && took >= LONG {
            complain(&format!("{}: {}ended after {:.1} s", current.what, current.done(), took.as_secs_f64()));
        }
    }

    /// The first signal asks the work to stop; a second one exits at once.
    fn heed_interruptions(&self) {
        let handler = || {
            if STOP.swap(true, Ordering::Relaxed) {
                std::process::exit(exit::INTERRUPTED);
            }
        };
        HEEDED.call_once(|| {
            if let Err(error) = signals::on_request_to_end(handler) {
                tracing::warn!("cannot handle interrupts, which now end this command at once: {error}");
            }
        });
    }

    fn note(&self, text: &str) {
        self.above(|| complain(&format!("note: {text}")));
    }

    fn output(&self, line: &str) {
        if self.shows_output {
            self.above(|| remark(line));
        } else if let Some(current) = &*self.current.lock() {
            current.bar.tick();
            current.bar.set_message(text::line(line).chars().take(MOST_SHOWN).collect::<String>());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_numbers_names_or_nothing() {
        let choices = ["minimal", "dev"].map(|name| (name.to_owned(), String::new()));
        for (reply, expected) in [
            ("", Some(0)),
            ("1", Some(0)),
            ("2", Some(1)),
            ("dev", Some(1)),
            ("0", None),
            ("3", None),
            ("d", None),
        ] {
            assert_eq!(chosen(reply, &choices), expected, "{reply}");
        }
        assert_eq!(chosen("", &[]), None);
    }
}
