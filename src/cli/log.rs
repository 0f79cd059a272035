//! The log, on stderr: a terminal, or the log file of a mount in the background. One line an event, of text only.
#![allow(clippy::disallowed_methods, reason = "each event is one line of the writer's")]

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Write as _};
use std::io;
use std::panic::PanicHookInfo;

use anstyle::{AnsiColor, Style};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::writer::{self, Line};

/// How events are shown.
pub struct Log {
    /// The least grave that are shown.
    pub level: Level,
    /// With the time of each.
    pub with_time: bool,
    /// With the module that each comes from.
    pub with_target: bool,
}

impl Log {
    /// From now on events and panics are shown.
    pub fn start(self) {
        std::panic::set_hook(Box::new(tell_panic));
        let format = Format { log: self, coloured: writer::stderr_is_coloured() };
        tracing_subscriber::fmt()
            .with_max_level(format.log.level)
            .with_writer(io::stderr)
            .event_format(format)
            .init();
    }
}

struct Format {
    log: Log,
    coloured: bool,
}

impl Format {
    fn style(&self, style: Style) -> Style {
        if self.coloured { style } else { Style::new() }
    }
}

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let dimmed = self.style(Style::new().dimmed());
        let mut line = Line::default();
        if self.log.with_time {
            let mut time = String::new();
            SystemTime.format_time(&mut Writer::new(&mut time))?;
            line = line.styled(dimmed, &time).text(" ");
        }
        let level = *event.metadata().level();
        line = line.styled(self.style(colour(level).on_default()), &format!("{level:>5}")).text(" ");
        if self.log.with_target {
            line = line.styled(dimmed, &format!("{}:", event.metadata().target())).text(" ");
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        writeln!(writer, "{}", line.text(&fields.0))
    }
}

fn colour(level: Level) -> AnsiColor {
    match level {
        Level::TRACE => AnsiColor::Magenta,
        Level::DEBUG => AnsiColor::Blue,
        Level::INFO => AnsiColor::Green,
        Level::WARN => AnsiColor::Yellow,
        Level::ERROR => AnsiColor::Red,
    }
}

/// The message, and then `name=value` for each field.
#[derive(Default)]
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let before = if self.0.is_empty() { "" } else { " " };
        let written = match field.name() {
            "message" => write!(self.0, "{before}{value:?}"),
            name => write!(self.0, "{before}{name}={value:?}"),
        };
        if written.is_err() {
            self.0.push_str("(unprintable)");
        }
    }
}

/// What the standard library says of a panic, as lines of text.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let text = panic.to_string().replacen('\n', " ", 1);
    let mut lines = vec![Line::new(&format!("thread {name:?} {text}"))];
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        lines.extend(trace.to_string().lines().map(Line::new));
    }
    writer::tell(lines);
}
