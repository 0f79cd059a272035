//! Shell completion of values that only the store knows: environments and snapshots.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::ValueHint;
use clap_complete::engine::ValueCompleter as _;
use clap_complete::{ArgValueCompleter, CompletionCandidate, PathCompleter};
use karapace_store::Store;
use karapace_store::metadata::Metadata;
use karapace_store::{rfc3339, text};

/// The program's name, as the shell knows it.
pub const PROGRAM: &str = "karapace";

/// Sets, for every command, how each argument is completed, by the argument's name.
pub fn with_completers(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| match arg.get_id().as_str() {
        // An image may be a name on an image server, but most are files.
        "image" => arg.value_hint(ValueHint::AnyPath),
        "target" => arg.add(ArgValueCompleter::new(mounts)),
        "origin" => arg.add(ArgValueCompleter::new(origins)),
        "env" | "onto" => arg.add(ArgValueCompleter::new(environments)),
        "snapshot" | "snapshots" | "from" | "to" => arg.add(ArgValueCompleter::new(snapshots)),
        _ => arg,
    });
    command.mut_subcommands(with_completers)
}

/// Names of environments; after `env@`, snapshots.
fn environments(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let all = all();
    if let Some((name, typed)) = current.split_once('@') {
        let env = all.iter().find(|env| env.name == name);
        let words = env.map(references).unwrap_or_default();
        let words = words.into_iter().filter(|(word, _)| word.starts_with(typed));
        return words.map(|(word, help)| candidate(format!("{name}@{word}"), help)).collect();
    }
    let matching = all.iter().filter(|env| env.name.starts_with(current));
    matching.map(|env| candidate(env.name.clone(), format!("{} {}", env.short_id(), env.state))).collect()
}

/// Names of environments, and directories.
fn mounts(current: &OsStr) -> Vec<CompletionCandidate> {
    let mut words = environments(current);
    words.extend(PathCompleter::dir().complete(current));
    words
}

/// Names of environments, and paths of images.
fn origins(current: &OsStr) -> Vec<CompletionCandidate> {
    let mut words = environments(current);
    words.extend(PathCompleter::any().complete(current));
    words
}

/// Snapshots of the environment that the command line names already.
fn snapshots(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let line = line();
    let all = all();
    let Some(env) = all.iter().find(|env| line.iter().any(|word| word == env.name.as_str())) else {
        return Vec::new();
    };
    let words = references(env).into_iter().filter(|(word, _)| word.starts_with(current));
    words.map(|(word, help)| candidate(word, help)).collect()
}

/// Escapes both texts, because shells print them as they are.
fn candidate(word: String, help: String) -> CompletionCandidate {
    let shown = |text: &str| text::line(text).into_owned();
    CompletionCandidate::new(shown(&word)).help(Some(shown(&help).into()))
}

/// The references to an environment's snapshots, newest first, each with a short description.
fn references(env: &Metadata) -> Vec<(String, String)> {
    let mut words = vec![("head".to_owned(), "the snapshot that it is based on".to_owned())];
    for snapshot in env.snapshots.iter().rev() {
        let time = rfc3339::format(snapshot.created_at);
        let message = snapshot.message.as_deref().and_then(|m| m.lines().next()).unwrap_or_default();
        let word = snapshot.name.clone().unwrap_or_else(|| format!("{:.12}", snapshot.hash));
        words.push((word, format!("{} {message}", &time[..time.len().min(16)])));
    }
    words.push(("base".to_owned(), "as it was imported or built".to_owned()));
    words
}

/// All environments with readable metadata; none if there is no store. Creates no store.
fn all() -> Vec<Metadata> {
    let line = line();
    let mut given = std::env::var_os("KARAPACE_STORE").map(PathBuf::from);
    for (index, word) in line.iter().enumerate() {
        if word == "--store" {
            given = line.get(index + 1).map(PathBuf::from).or(given);
        } else if let Some(path) = word.to_str().and_then(|word| word.strip_prefix("--store=")) {
            given = Some(PathBuf::from(path));
        }
    }
    let Some(root) = super::store_root(given) else { return Vec::new() };
    // Errors are dropped: a shell has nowhere to show them during completion.
    let listed = Store::open_existing(&root).and_then(|store| Metadata::list(&store));
    listed.unwrap_or_default().into_iter().flatten().collect()
}

/// The words of the command line being completed: the shell passes them after `--`.
fn line() -> Vec<OsString> {
    std::env::args_os().skip_while(|arg| arg != "--").skip(1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The completions that a shell gets for the last of these words, in this directory.
    fn offered(words: &[&str], dir: &std::path::Path) -> Vec<String> {
        let args = [PROGRAM].iter().chain(words).map(OsString::from).collect();
        let mut command = crate::cli::command();
        let offered = clap_complete::engine::complete(&mut command, args, words.len(), Some(dir)).unwrap();
        offered.iter().map(|word| word.get_value().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn images_are_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("rootfs.tar.xz"), "").unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        let both = ["root/", "rootfs.tar.xz"];
        assert_eq!(offered(&["import", "root"], dir.path()), both);
        assert_eq!(offered(&["new", "x", "--image", "root"], dir.path()), both);
        assert_eq!(offered(&["build", "rootfs"], dir.path()), both[1..]);
        let there = dir.path().join("root").display().to_string();
        assert_eq!(offered(&["umount", &there], dir.path()), [format!("{there}/")]);
    }
}
