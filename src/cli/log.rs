//! The log on stderr, which is a terminal or the log file of a background mount. Each event is one line of
//! plain text, which begins with the request or command that it belongs to.
#![allow(clippy::disallowed_methods, reason = "each event is one line of the writer's")]

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Write as _};
use std::io;
use std::panic::PanicHookInfo;

use anstyle::{AnsiColor, Style};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{FmtSpan, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{self as log, FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use super::writer::{self, Line};

/// The variable that selects what is logged: levels by module, as in `karapace_fs::fuse=trace,info`.
pub const VARIABLE: &str = "KARAPACE_LOG";

/// How to show events.
pub struct Log {
    /// The least severe level to show, unless the variable says otherwise.
    pub level: Level,
    /// Whether to show the time of each event.
    pub with_time: bool,
}

impl Log {
    /// From now on, shows events and panics. If the variable cannot be parsed, reports that and ignores it.
    pub fn start(self) {
        std::panic::set_hook(Box::new(tell_panic));
        let asked = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
        let directives = asked.as_deref().map(str::parse::<Targets>);
        let is_asked = matches!(directives, Some(Ok(_)));
        let targets = match directives {
            Some(Ok(targets)) => targets,
            Some(Err(error)) => {
                let text =
                    format!("karapace: {VARIABLE} is ignored ({error}): write it as karapace_fs=trace,info");
                writer::tell([Line::new(&text)]);
                Targets::new()
            }
            None => Targets::new(),
        };
        let level = targets.default_level().unwrap_or(self.level.into());
        let format = Format {
            with_time: self.with_time || is_asked,
            with_target: self.level == Level::TRACE || is_asked,
            is_coloured: writer::stderr_is_coloured(),
        };
        let lines = log::layer().with_writer(io::stderr).with_ansi(false).with_span_events(FmtSpan::CLOSE);
        tracing_subscriber::registry()
            .with(lines.event_format(format))
            .with(targets.with_default(level))
            .init();
    }
}

struct Format {
    with_time: bool,
    /// Whether to show the module that each event comes from.
    with_target: bool,
    is_coloured: bool,
}

impl Format {
    fn style(&self, style: Style) -> Style {
        if self.is_coloured { style } else { Style::new() }
    }
}

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let dimmed = self.style(Style::new().dimmed());
        let mut line = Line::default();
        if self.with_time {
            let mut time = String::new();
            SystemTime.format_time(&mut Writer::new(&mut time))?;
            line = line.styled(dimmed, &time).text(" ");
        }
        let level = *event.metadata().level();
        line = line.styled(self.style(colour(level).on_default()), &format!("{level:>5}")).text(" ");
        if self.with_target {
            line = line.styled(dimmed, &format!("{}:", event.metadata().target())).text(" ");
        }
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<N>>().map_or("", |fields| fields.as_str());
            line = line.styled(dimmed, &format!("{}{{{fields}}}:", span.name())).text(" ");
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

/// The message, followed by `name=value` for each field.
#[derive(Default)]
struct Fields(String);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{value}")),
            _ => self.record_debug(field, &value),
        }
    }

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

/// Prints the standard library's text for a panic, and the backtrace if there is one, as escaped lines.
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
