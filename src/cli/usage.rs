//! Prints what clap reports about a command line: help, the version, errors.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue};
use karapace_store::text;

use super::{complain_as_json, exit, ui};

/// Prints the report and returns the exit status, which is 0 for help and version.
pub fn tell(mut error: clap::Error, args: &[OsString]) -> i32 {
    // Only the command line is quoted. It may contain file names, from a pattern that the shell expanded.
    if !args.iter().all(|arg| arg.to_str().is_some_and(|arg| text::line(arg) == arg)) {
        escape(&mut error);
    }
    let is_session = args.iter().skip(1).take(8).any(|arg| arg == "enter" || arg == "exec" || arg == "run");
    let status = match (error.use_stderr(), is_session) {
        (false, _) => 0,
        (true, true) => exit::RUNTIME,
        (true, false) => exit::FAILURE,
    };
    let message = error.render().to_string();
    if status != 0 && args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json") {
        complain_as_json("usage", message.trim_start_matches("error: ").trim_end(), status);
    } else if message.lines().any(|line| text::line(line) != line) {
        // No known quotation reaches this point unescaped. If one does, safety outweighs colours.
        ui::complain_in_lines(&message);
    } else if error.print().is_err() {
        tracing::debug!("the output is closed");
    }
    status
}

/// Escapes what the message quotes of the command line. The rest, with its colours, is clap's own.
fn escape(error: &mut clap::Error) {
    let quoted: Vec<_> = error.context().map(|(kind, value)| (kind, shown(kind, value))).collect();
    for (kind, value) in quoted {
        error.insert(kind, value);
    }
}

fn shown(kind: ContextKind, value: &ContextValue) -> ContextValue {
    let line = |text: &str| text::line(text).into_owned();
    match value {
        ContextValue::String(text) => ContextValue::String(line(text)),
        ContextValue::Strings(all) => ContextValue::Strings(all.iter().map(|text| line(text)).collect()),
        // Suggestions quote too, with colours, which are lost here.
        ContextValue::StyledStrs(all) if kind == ContextKind::Suggested => {
            ContextValue::StyledStrs(all.iter().map(|text| line(&text.to_string()).into()).collect())
        }
        ContextValue::StyledStr(text) if kind == ContextKind::Suggested => {
            ContextValue::StyledStr(line(&text.to_string()).into())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_is_escaped() {
        let hostile = "--a\x1b[31m\u{9b}2J\u{202e}\nerror: forged";
        let lines: [&[&str]; 6] = [
            &[hostile],
            &["list", hostile],
            &["list", &hostile[2..]],
            &["mount", "dev", "--threads", hostile],
            &["export", "dev", "--format", &hostile[2..]],
            &["exec", "dev", "-e", &hostile[2..], "--", "true"],
        ];
        for args in lines {
            let args = ["karapace"].iter().chain(args);
            let mut error = crate::cli::command().try_get_matches_from(args).unwrap_err();
            escape(&mut error);
            let shown = error.render();
            let without_colours = shown.to_string();
            assert!(without_colours.contains("a\\033[31m"), "{without_colours:?}");
            assert!(!without_colours.contains("\nerror: forged"), "{without_colours:?}");
            for text in [without_colours, shown.ansi().to_string().replace("\x1b[", "")] {
                let stays = |c: char| c == '\n' || text::is_plain(c);
                assert!(text.chars().all(stays), "{text:?}");
                assert!(!text.contains("\u{9b}"));
            }
        }
    }
}
