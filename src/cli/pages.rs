//! docs/CLI.md is what `--help` says, for every command. `KARAPACE_BLESS=1` writes it anew.

use std::fmt::Write as _;
use std::fs;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CLI.md");

#[test]
fn the_page_is_what_help_says() {
    let page = render();
    if std::env::var_os("KARAPACE_BLESS").is_some_and(|value| value == "1") {
        fs::write(PAGE, &page).unwrap();
    }
    let kept = fs::read_to_string(PAGE).unwrap_or_default();
    assert!(
        kept == page,
        "docs/CLI.md is not what --help says; write it anew with KARAPACE_BLESS=1 cargo test --test cli_reference"
    );
}

/// The page: the program's own help, then each command's in the order of the overview.
fn render() -> String {
    // The width of whoever runs the test must not show.
    let mut program = karapace::cli::command().term_width(100);
    program.build();
    let mut page = String::from(
        "# Command line\n\nMade from `karapace --help` and `karapace <command> --help` by tests/cli_reference.rs \
         (`KARAPACE_BLESS=1` writes it anew): do not edit.\nEvery command also takes the global options of the first section.\n\n\
         What a message or a list quotes (names, paths, what an image says) is shown as text on one line: control characters, and those\n\
         that turn the direction of writing, as git quotes them, `\\n`, `\\033`. `--json` and `diff -z` give everything as it is\n\
         ([SECURITY.md](SECURITY.md#what-is-shown-to-a-person)).\n",
    );
    section(&mut page, &mut program, true);
    for command in program.get_subcommands_mut() {
        commands(&mut page, command);
    }
    page
}

fn commands(page: &mut String, command: &mut clap::Command) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    section(page, command, false);
    for below in command.get_subcommands_mut() {
        commands(page, below);
    }
}

/// One command's help. The options of every command are said once, in the program's own section.
fn section(page: &mut String, command: &mut clap::Command, with_global: bool) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    let help = command.render_long_help().to_string();
    let own =
        if with_global { &help[..] } else { help.split("\nGlobal options:").next().unwrap_or_default() };
    let lines: Vec<&str> = own.lines().map(str::trim_end).collect();
    write!(page, "\n## {name}\n\n```\n{}\n```\n", lines.join("\n").trim_end()).unwrap();
}
