//! Checks that generated pages are up to date, as far as possible without running a command: docs/CLI.md
//! matches `--help`; docs/JSON.md and tests/cli_output.txt have every step of tests/cli_output.rs; and those
//! steps cover every command. `KARAPACE_BLESS=1` rewrites docs/CLI.md.

use std::fmt::Write as _;
use std::fs;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CLI.md");

/// Commands whose output is not karapace's own, or is not data: that of programs inside, and scripts.
const WITHOUT_JSON: [&str; 5] = ["enter", "exec", "run", "completions", "help"];

#[test]
fn the_page_is_what_help_says() {
    let page = render();
    if std::env::var_os("KARAPACE_BLESS").is_some_and(|value| value == "1") {
        fs::write(PAGE, &page).unwrap();
    }
    let kept = fs::read_to_string(PAGE).unwrap_or_default();
    assert!(
        kept == page,
        "docs/CLI.md is not what --help says; regenerate it with KARAPACE_BLESS=1 cargo test --features failpoints --lib \
         cli::pages"
    );
}

/// Builds the page: the program's help, then each command's, in the order of the overview.
fn render() -> String {
    // A fixed width: the page must not depend on the terminal of the test.
    let mut program = super::command().term_width(100);
    program.build();
    let mut page = String::from(
        "# Command line\n\nGenerated from `karapace --help` and `karapace <command> --help` by src/cli/pages.rs \
         (`KARAPACE_BLESS=1` regenerates it): do not edit.\nEvery command also takes the global options of the first section.\n\n\
         Messages and lists print names, paths and texts from images on one line. Control characters, and characters that change the\n\
         direction of writing, are escaped as git does it, `\\n`, `\\033`. `--json` and `diff -z` print everything unchanged\n\
         ([SECURITY.md](SECURITY.md#what-is-shown-to-a-person)).\n",
    );
    section(&mut page, &mut program, true);
    for command in program.get_subcommands_mut() {
        commands(&mut page, command);
    }
    page
}

/// The first string literal of each entry in the list `name` of tests/cli_output.rs.
fn listed(name: &str) -> Vec<&'static str> {
    let source = include_str!("../../tests/cli_output.rs");
    let list = source.split_once(&format!("const {name}: ")).expect("the list").1;
    let list = list.split_once("= ").expect("its value").1;
    let list = list.split_once("];").expect("its end").0;
    let entries = if list.contains("step(") { list.split("step(") } else { list.split(",") };
    entries.filter_map(|entry| entry.split('"').nth(1)).collect()
}

/// The rest of each line of a page that starts with `start`.
fn lines_of<'a>(page: &'a str, start: &str) -> Vec<&'a str> {
    page.lines().filter_map(|line| line.strip_prefix(start)).collect()
}

#[test]
fn every_command_has_a_step_and_every_step_is_in_the_pages() {
    let (steps, errors) = (listed("STEPS"), listed("ERRORS"));
    assert!(
        steps.len() > 30 && errors.len() > 3,
        "tests/cli_output.rs is read as it was written: {steps:?} {errors:?}"
    );
    for command in super::command().get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = command.get_name();
        let shown = steps.iter().any(|step| step.split(' ').next() == Some(name));
        assert!(
            shown || WITHOUT_JSON.contains(&name),
            "{name} has no step in tests/cli_output.rs: add one, so that its JSON is documented"
        );
    }
    let anew = "regenerate them with KARAPACE_BLESS=1 cargo test --features failpoints --test cli_output";
    let steps: Vec<&str> = steps.into_iter().filter(|step| !step.starts_with("touch")).collect();
    let page = include_str!("../../docs/JSON.md");
    assert_eq!(lines_of(page, "## "), [&steps[..], &["Errors"]].concat(), "docs/JSON.md is stale: {anew}");
    let printed = |step: &&str| !step.starts_with("doctor");
    let shown: Vec<&str> = steps.into_iter().filter(printed).chain(errors).collect();
    let kept = include_str!("../../tests/cli_output.txt");
    assert_eq!(lines_of(kept, "$ karapace "), shown, "tests/cli_output.txt is stale: {anew}");
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

/// Appends one command's help. The global options appear only in the program's own section.
fn section(page: &mut String, command: &mut clap::Command, with_global: bool) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    let help = command.render_long_help().to_string();
    let own =
        if with_global { &help[..] } else { help.split("\nGlobal options:").next().unwrap_or_default() };
    let lines: Vec<&str> = own.lines().map(str::trim_end).collect();
    write!(page, "\n## {name}\n\n```\n{}\n```\n", lines.join("\n").trim_end()).unwrap();
}
