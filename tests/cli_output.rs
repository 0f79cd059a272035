//! What the commands print: docs/JSON.md has the output with `--json`, tests/cli_output.txt the output for
//! people. Each command is run on a small environment; `KARAPACE_BLESS=1` regenerates both. Needs /dev/fuse.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/JSON.md");
const SEEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli_output.txt");

/// A command line, and what docs/JSON.md says about its output.
struct Step {
    line: &'static str,
    text: &'static str,
}

const fn step(line: &'static str, text: &'static str) -> Step {
    Step { line, text }
}

/// Every command that has JSON, in an order in which they work. `touch` is not karapace's: it changes a file
/// in a mount.
const STEPS: &[Step] = &[
    step(
        "import rootfs --name dev",
        "`created` is true: an import always makes an environment. `entries` and `bytes` count what was imported.",
    ),
    step(
        "list",
        "One object per environment, sorted by name. `mount` is null, or says where it is mounted, by which process, and \
         whether for sessions only. If the sessions have a mount of their own beside it, `sessions_dir` is where they \
         see it. `sessions` is how many run.",
    ),
    step("mount dev mnt/dev", "`pid` is the mount's server."),
    step("touch mnt/dev/etc/one", ""),
    step(
        "diff dev",
        "`kind` is A, M or D. `path` is text, or `{\"hex\": \"…\"}` with its bytes if it is not UTF-8.",
    ),
    step(
        "commit dev --name first -m words",
        "`created` is false if nothing had changed; `hash` is then the environment's head. The counts are numbers of paths.",
    ),
    step("touch mnt/dev/etc/two", ""),
    step(
        "inspect dev",
        "The fields of `list`, and `dirty_files` and `dirty_bytes` (uncommitted changes), the manifest and the lock file as text.",
    ),
    step("commit dev", ""),
    step(
        "snapshots dev",
        "Oldest first. `name`, the first of `names`, and `message` may be null; `head` marks the environment's head.",
    ),
    step(
        "restore dev first",
        "`saved` is the snapshot in which uncommitted changes were saved, or null; `touched` is how many files, links and the \
         like got the current time, as with `--touch` or paths.",
    ),
    step(
        "restore dev latest -- /etc/two",
        "With paths, `changed` is how many paths were changed; `hash` is the snapshot that they come from.",
    ),
    step("stop dev", "`stopped` is false if nothing was running inside."),
    step("umount dev", "With `--force` also `done`: what was done, one text per step."),
    step(
        "clone dev@first --name second",
        "`origin` is the name of the original; `head` is the clone's head.",
    ),
    step(
        "du",
        "One object per environment. All sizes except `apparent_bytes` are bytes on disk; `bytes` is the sum of `shared_bytes` \
         and `exclusive_bytes`.",
    ),
    step("du dev", "The same for one environment, and for each of its snapshots, oldest first."),
    step("export dev -o dev.tar", "`digest` is that of an OCI image, otherwise null."),
    step(
        "export-app dev --list",
        "The programs inside that can be exported. `exported` is the file on the host or null.",
    ),
    step("export-app dev tool", ""),
    step("export-app dev tool --remove", ""),
    step("mount --all all", ""),
    step(
        "umount --all",
        "`failed` has the reasons why something is still mounted; the exit status is then 1.",
    ),
    step("snapshots rm dev latest", "The hashes of the removed snapshots."),
    step(
        "gc --dry-run --keep-last 1",
        "`snapshots` are those that --keep-last and --keep-within remove; `objects` and `layers` do not count theirs, `bytes` \
         does.",
    ),
    step("gc", ""),
    step("verify-store", ""),
    step("rename second other", ""),
    step("freeze other", ""),
    step("archive other", ""),
    step("destroy other --yes --snapshots", ""),
    step("migrate", ""),
    step(
        "doctor",
        "`ok` is false, and the exit status 1, if a check has `failed`. `outcome` is ok, warning or failed; `mend` is a \
         command, advice or null.",
    ),
    step("man-pages man", ""),
    step("mount --all --install-unit", ""),
    step("new made --image ./rootfs", "`template` is the template used; by default minimal."),
    step("new made --template gui-dev --force", ""),
    step("new made --template minimal --image ./rootfs --force", ""),
    step("build karapace.toml --name built", "`created` is false if it already existed."),
    step(
        "rebuild karapace.toml --name built",
        "`before` is the env_id of the replaced environment, `snapshots` how many were kept, `saved` the snapshot in which \
         uncommitted changes were saved, or null.",
    ),
    step(
        "pin karapace.toml --write-lock",
        "`image` is the new base.image; `lock` is the lock file that was updated, or null.",
    ),
    step("pin karapace.toml --check", "`pinned` is false, and the exit status 1, if it is not pinned."),
];

/// Errors, as `--json` shows them on stderr.
const ERRORS: &[&str] = &[
    "new made --force",
    "inspect nosuch",
    "restore dev nosuch",
    "import rootfs --name dev",
    "list --nosuch",
];

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("rootfs/etc/hostname", "base\n");
        put(
            "rootfs/usr/share/applications/tool.desktop",
            "[Desktop Entry]\nType=Application\nName=Tool\nExec=tool\n",
        );
        fs::create_dir(dir.path().join("home")).unwrap();
        World { dir }
    }

    fn path(&self) -> PathBuf {
        fs::canonicalize(self.dir.path()).unwrap()
    }

    fn run(&self, args: &[&str]) -> Output {
        if let [.., "touch", path] = args {
            fs::write(self.path().join(path), "changed\n").unwrap();
            return Command::new("true").output().unwrap();
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut command = Command::new(env!("CARGO_BIN_EXE_karapace"));
        command.env_clear().env("PATH", path).env("HOME", self.path().join("home")).env("COLUMNS", "100");
        command.env("KARAPACE_STORE", self.path().join("store")).current_dir(self.path());
        command.args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// What changes from run to run, taken out.
    fn plain(&self, text: &str) -> String {
        let text = text.replace(self.path().to_str().unwrap(), "/DIR");
        let text = text.replace(env!("CARGO_BIN_EXE_karapace"), "/BIN/karapace");
        without_times(&without_ids(&text))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.run(&["umount", "--all"]);
    }
}

fn without_ids(text: &str) -> String {
    let (mut out, mut run) = (String::new(), String::new());
    let flush = |run: &mut String, out: &mut String| {
        out.push_str(match run.len() {
            64 => "HASH",
            32 => "INSTANCE",
            12 if run.bytes().any(|b| b.is_ascii_digit()) => "SHORT",
            _ => run,
        });
        run.clear();
    };
    for c in text.chars() {
        if matches!(c, '0'..='9' | 'a'..='f') {
            run.push(c);
        } else {
            flush(&mut run, &mut out);
            out.push(c);
        }
    }
    flush(&mut run, &mut out);
    out
}

/// `2026-01-31T12:34:56.789Z` and the like become TIME.
fn without_times(text: &str) -> String {
    let shape = |word: &str, shape: &str| {
        word.len() >= shape.len()
            && word
                .bytes()
                .zip(shape.bytes())
                .all(|(b, s)| if s == b'0' { b.is_ascii_digit() } else { b == s })
    };
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if shape(rest, "0000-00-00T00:00:00") || shape(rest, "0000-00-00 00:00:00") {
            out.push_str("TIME");
            let end = rest[19..].find(|c: char| !(c.is_ascii_digit() || c == '.' || c == 'Z'));
            rest = &rest[19 + end.unwrap_or(rest.len() - 19)..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// Numbers that depend on the machine.
fn settle(value: &mut Value, key: &str) {
    match value {
        Value::Object(fields) => fields.iter_mut().for_each(|(key, value)| settle(value, key)),
        Value::Array(items) if key == "checks" => {
            items.truncate(1);
            items.iter_mut().for_each(|item| {
                item["found"] = "6.18.5".into();
                item["outcome"] = "ok".into();
                item["mend"] = Value::Null;
            });
        }
        Value::Array(items) => items.iter_mut().for_each(|item| settle(item, key)),
        Value::Number(number) if key == "pid" || (key.ends_with("bytes") && number.as_u64() != Some(0)) => {
            *value = if key == "pid" { 1234.into() } else { 4096.into() };
        }
        Value::Bool(ok) if key == "ok" => *ok = true,
        _ => {}
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn args_of(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// Whether the step may fail: what a machine lacks is its own affair.
fn may_fail(line: &str) -> bool {
    line.starts_with("doctor")
}

#[test]
fn json_is_as_the_page_says() {
    let world = World::new();
    let mut page = String::from(
        "# JSON\n\nWhat every command prints on stdout with `--json`: one document and a newline. Generated by \
         tests/cli_output.rs from what the commands print (`KARAPACE_BLESS=1` regenerates it): do not edit.\n\nFields are not \
         renamed or removed, and keep their type, within a major version; new ones may be added, so ignore unknown fields. \
         `HASH` stands for 64 hex digits, `INSTANCE` for 32, `SHORT` for the first 12 of an `env_id`, `TIME` for a time as in \
         2026-01-31T12:34:56.789Z. Names of environments are unique, and so is `instance`; an `env_id` says what an environment \
         was built from, and clones share it.\n\n`enter`, `exec` and `run` print what the command inside prints. If a command exits \
         with a status other than 0 after it has printed its document (`verify-store`, `doctor`, `umount --all`), the document \
         says why.\n",
    );
    for step in STEPS {
        let output = world.run(&[&["--json"], &args_of(step.line)[..]].concat());
        let (out, err) = (text_of(&output.stdout), text_of(&output.stderr));
        assert!(output.status.success() || may_fail(step.line), "{}: {}\n{err}", step.line, output.status);
        if step.line.starts_with("touch") || out.is_empty() {
            assert!(step.line.starts_with("touch"), "{} prints nothing with --json", step.line);
            continue;
        }
        let mut value: Value =
            serde_json::from_str(&out).unwrap_or_else(|e| panic!("{}: {e}: {out}", step.line));
        settle(&mut value, "");
        let document = world.plain(&serde_json::to_string_pretty(&value).unwrap());
        write!(page, "\n## {}\n{}\n```json\n{document}\n```\n", step.line, paragraph(step.text)).unwrap();
    }
    page.push_str(
        "\n## Errors\n\nAn error is one line on stderr, the last. `status` is the exit status. `kind` is one of ambiguous, busy, corrupt, \
         exists, image, interrupted, invalid, io, lock, locked, manifest, not-found, output, runtime, server, state, usage, version; \
         what stands in `message` is for people. Notes and warnings before it are plain text.\n\n```json\n",
    );
    for line in ERRORS {
        let output = world.run(&[&["--json"], &args_of(line)[..]].concat());
        let err = text_of(&output.stderr);
        let last = err.lines().last().unwrap_or_default();
        let value: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{line}: {e}: {err}"));
        assert_eq!(value["error"]["status"], output.status.code().unwrap(), "{line}");
        assert!(output.stdout.is_empty(), "{line}");
        writeln!(page, "{}", world.plain(&value.to_string())).unwrap();
    }
    page.push_str("```\n");
    compare(PAGE, &page);
}

fn paragraph(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("\n{text}\n") }
}

#[test]
fn the_output_for_people_is_what_the_page_has() {
    let world = World::new();
    let mut seen = String::new();
    for line in STEPS.iter().map(|step| step.line).chain(ERRORS.iter().copied()) {
        let output = world.run(&args_of(line));
        if line.starts_with("touch") || may_fail(line) {
            continue;
        }
        let text = format!("{}{}", text_of(&output.stdout), text_of(&output.stderr));
        assert!(output.status.success() || ERRORS.contains(&line), "{line}: {text}");
        assert!(!text.contains('\x1b'), "{line}: colours in a pipe");
        writeln!(seen, "$ karapace {line}\n{}", squeezed(&world.plain(&text))).unwrap();
    }
    compare(SEEN, &seen);
}

/// Sizes differ from one file system to the next, and with them the width of columns.
fn squeezed(text: &str) -> String {
    let mut out = String::new();
    // What ends a stretch of work that took long, which none does on every machine.
    for line in text.lines().filter(|line| !line.contains("ended after ")) {
        let mut words: Vec<&str> = line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        for word in &mut words {
            let ends = word.split(' ').count() == 2
                && ["B", "KiB", "MiB", "GiB"].iter().any(|unit| word.ends_with(&format!(" {unit}")));
            if ends && word.bytes().next().is_some_and(|b| b.is_ascii_digit()) {
                *word = "SIZE";
            }
        }
        let line = words.join("  ");
        let line = match line.rsplit_once(", ") {
            Some((start, size)) if size.ends_with('B') => format!("{start}, SIZE"),
            _ => line,
        };
        let line = match line.split_once("(pid ") {
            Some((start, _)) => format!("{start}(pid N)"),
            None => line,
        };
        writeln!(out, "{line}").unwrap();
    }
    out
}

fn compare(file: &str, text: &str) {
    if std::env::var_os("KARAPACE_BLESS").is_some_and(|value| value == "1") {
        fs::write(file, text).unwrap();
    }
    let kept = fs::read_to_string(file).unwrap_or_default();
    if kept != text {
        let differs = kept.lines().zip(text.lines()).find(|(a, b)| a != b);
        panic!(
            "{file} is not what the commands print; if the new output is right, regenerate it with KARAPACE_BLESS=1 cargo test \
             --features failpoints --test cli_output\n{differs:#?}"
        );
    }
}

#[test]
fn quiet_prints_ids_only() {
    let world = World::new();
    let ids = |line: &str| -> Vec<String> {
        let output = world.run(&[&["-q"], &args_of(line)[..]].concat());
        assert!(output.status.success() && output.stderr.is_empty(), "{line}: {}", text_of(&output.stderr));
        text_of(&output.stdout).lines().map(str::to_owned).collect()
    };
    let instance = ids("import rootfs --name dev");
    assert_eq!((instance.len(), instance[0].len()), (1, 32));
    assert_eq!(ids("list"), instance);
    let clone = ids("clone dev --name two");
    assert_ne!(clone, instance);
    assert_eq!(ids(&format!("commit {} --name here", clone[0])).len(), 1);
    let snapshots = ids("snapshots two");
    assert_eq!((snapshots.len(), snapshots[0].len()), (1, 64));
    assert!(!Path::new(&world.path().join("home/karapace")).exists());
}
