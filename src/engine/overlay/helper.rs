//! Work on an overlay with all ids that it may hold: by this process if it is root's, else by one in a user
//! namespace with the user's range of ids, which the hidden command `overlay` runs.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _, stdin};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use karapace_fs::attr::HeadRef;
use karapace_fs::control::DIR_NAME;
use karapace_fs::view::View;
use karapace_store::Store;
use karapace_store::error::StoreError;
use karapace_store::id::InstanceId;
use karapace_store::import::upper::{SESSION_FILE, Writer};
use karapace_store::tree::Trees;
use karapace_store::wait;
use nix::poll::PollFlags;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::engine::At as _;
use crate::engine::{Engine, Error, Report, Result};
use crate::runtime::ranges;

/// The hidden command that the process runs.
const COMMAND: &str = "overlay";

/// This program.
const PROGRAM: &str = "/proc/self/exe";

/// How often to check whether the user has cancelled.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest order, in bytes.
const MAX_ORDER: u64 = 64 << 10;

/// What the process is to do.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    /// Fold the upper directory into an environment, over its head and the tree that it stands on, in hex.
    Fold { store: PathBuf, upper: PathBuf, instance: String, head: [String; 3] },
    /// Remove a directory with all that is in it.
    Remove { dir: PathBuf },
}

/// What it answers, one line each.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// First of all: the namespace is there, and has no ids yet.
    Alone,
    Folded {
        warnings: Vec<String>,
    },
    Removed,
    Failed {
        errno: i32,
        reason: String,
    },
}

/// Folds an upper directory; see [`Engine::fold_overlay`].
pub(super) fn fold(
    engine: &Engine,
    upper: &Path,
    (instance, head): (&InstanceId, HeadRef),
    report: &dyn Report,
) -> Result<Vec<String>> {
    if geteuid().is_root() {
        let cancelled = || report.is_cancelled();
        return fold_here(engine.store(), (upper, Writer::Root), (instance, head), &cancelled);
    }
    let (store, upper) = (engine.root().to_owned(), upper.to_owned());
    let place = upper.clone();
    let head = [head.layer.to_hex(), head.record.to_hex(), head.root.to_hex()];
    let order = Order::Fold { store, upper, instance: instance.to_hex(), head };
    match ask(&order, &place, &|| report.is_cancelled())? {
        Answer::Folded { warnings } => Ok(warnings),
        other => Err(unexpected(other)),
    }
}

/// Removes a directory.
pub(super) fn remove(dir: &Path) -> Result<()> {
    if geteuid().is_root() {
        return remove_here(dir);
    }
    // Often nothing in it belongs to another id, and no process is needed. The kernel makes this directory of
    // its own with no permissions for anybody.
    let opened = match fs::set_permissions(dir.join("work/work"), fs::Permissions::from_mode(0o700)) {
        // Nothing was ever mounted.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        opened => opened.map_err(|error| error.to_string()),
    };
    match opened.and_then(|()| remove_here(dir).map_err(|error| error.to_string())) {
        Ok(()) => return Ok(()),
        Err(reason) => tracing::debug!("removed with all ids: {reason}"),
    }
    match ask(&Order::Remove { dir: dir.to_owned() }, dir, &|| false)? {
        Answer::Removed => Ok(()),
        other => Err(unexpected(other)),
    }
}

fn fold_here(
    store: &Arc<Store>,
    (upper, writer): (&Path, Writer),
    (instance, head): (&InstanceId, HeadRef),
    is_cancelled: &dyn Fn() -> bool,
) -> Result<Vec<String>> {
    let _many = ManyFiles::begin();
    drop_resolv_conf(upper)?;
    drop_control(upper)?;
    let trees = Arc::new(Trees::new(store.clone()));
    let view = View::open(store, &trees, &store.upper_dir(instance), head, false)?;
    let notes = view.fold(upper, writer, is_cancelled)?;
    view.close()?;
    Ok(notes)
}

/// Removes what overlayfs has made of the session's own /etc/resolv.conf, written in place. A file that a
/// program has put there has no mark.
fn drop_resolv_conf(upper: &Path) -> Result<()> {
    let copy = upper.join("etc/resolv.conf");
    let is_parent_plain = fs::symlink_metadata(upper.join("etc")).is_ok_and(|found| found.is_dir());
    if !is_parent_plain {
        return Ok(());
    }
    match rustix::fs::lgetxattr(&copy, OsStr::from_bytes(SESSION_FILE), &mut [0; 0][..]) {
        Ok(_) => fs::remove_file(&copy).at("remove", &copy),
        Err(Errno::NODATA | Errno::NOENT | Errno::PERM) => Ok(()),
        Err(errno) => Err(Error::io("read the attributes of", &copy, errno.into())),
    }
}

/// Removes copies of control files, which root inside can make if it uncovers them.
fn drop_control(upper: &Path) -> Result<()> {
    let control = upper.join(OsStr::from_bytes(DIR_NAME));
    match fs::symlink_metadata(&control) {
        Ok(found) if found.is_dir() => remove_here(&control),
        Ok(_) => fs::remove_file(&control).at("remove", &control),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("read", &control, error)),
    }
}

/// Removes what is there.
fn remove_here(dir: &Path) -> Result<()> {
    let _many = ManyFiles::begin();
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", dir, error)),
        _ => Ok(()),
    }
}

/// As many open files as this process may have: one is needed for each level of a tree. Restored when
/// dropped, for processes that are started later.
struct ManyFiles(Option<(u64, u64)>);

impl ManyFiles {
    fn begin() -> ManyFiles {
        let before = getrlimit(Resource::RLIMIT_NOFILE).ok();
        let raised = before.filter(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, *hard, *hard).is_ok());
        ManyFiles(raised)
    }
}

impl Drop for ManyFiles {
    fn drop(&mut self) {
        if let Some((soft, hard)) = self.0
            && let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, soft, hard)
        {
            tracing::debug!("the limit of open files stays raised: {errno}");
        }
    }
}

/// Starts the process and gives it an order; `place` is for messages. Kills it when the order is cancelled.
fn ask(order: &Order, place: &Path, is_cancelled: &dyn Fn() -> bool) -> Result<Answer> {
    let ids = ranges::available().map_err(|reason| {
        let cure = reason.cure();
        Error::Invalid(format!(
            "{} holds files of your sub-ids, which cannot be reached: {reason}; as root, run `{cure}` (with the range that you had)",
            place.display()
        ))
    })?;
    let mut command = Command::new(PROGRAM);
    // In a process group of its own: the terminal's interrupts are for this process.
    command.arg0("karapace").arg(COMMAND).process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().at("run", Path::new(PROGRAM))?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let answer = input.zip(output).ok_or_else(closed).and_then(|(mut input, output)| {
        let mut output = BufReader::new(output);
        match next(&mut output)? {
            Answer::Alone => {}
            other => return Ok(other),
        }
        ids.give(child.id()).map_err(|source| Error::NoIds { source })?;
        let mut line = serde_json::to_vec(order).map_err(io::Error::from).at("ask about", place)?;
        line.push(b'\n');
        input.write_all(&line).at("ask about", place)?;
        while !wait::for_event(output.get_ref(), PollFlags::POLLIN, PAUSE).at("wait for", place)? {
            if is_cancelled() {
                child.kill().at("stop", Path::new(PROGRAM))?;
                return Err(StoreError::Cancelled.into());
            }
        }
        next(&mut output)
    });
    // On an error the process ends with its input, which is closed by now.
    child.wait().at("wait for", Path::new(PROGRAM))?;
    answer
}

fn next(output: &mut impl io::BufRead) -> Result<Answer> {
    let mut line = Vec::new();
    output.read_until(b'\n', &mut line).at("hear from", Path::new(PROGRAM))?;
    if line.is_empty() {
        return Err(closed());
    }
    serde_json::from_slice(&line).map_err(io::Error::from).at("understand", Path::new(PROGRAM))
}

fn closed() -> Error {
    Error::Invalid("the process that works on the overlay has ended".to_owned())
}

fn unexpected(answer: Answer) -> Error {
    match answer {
        Answer::Failed { errno, reason } => Error::Served { errno, reason },
        _ => Error::Invalid("the process that works on the overlay gave another answer".to_owned()),
    }
}

fn parsed<T: FromStr<Err: Display>>(id: &str) -> Result<T> {
    id.parse().map_err(|error| Error::Invalid(format!("{id:?} is no id: {error}")))
}

/// What the process does: takes one order from standard input, and answers on `answers`. The calling process
/// must be single-threaded.
///
/// # Errors
/// If it cannot answer.
pub fn run(answers: &mut dyn io::Write) -> Result<()> {
    let place = Path::new("the overlay");
    let mut say = |answer: &Answer| -> Result<()> {
        let mut line = serde_json::to_vec(answer).map_err(io::Error::from).at("report on", place)?;
        line.push(b'\n');
        answers.write_all(&line).and_then(|()| answers.flush()).at("report on", place)
    };
    // After that, because a change of credentials takes the signal back.
    let alone = unshare(CloneFlags::CLONE_NEWUSER).and_then(|()| prctl::set_pdeathsig(Signal::SIGKILL));
    if let Err(error) = alone.map_err(io::Error::from).at("make a user namespace for", place) {
        return say(&failed(&error));
    }
    say(&Answer::Alone)?;
    let mut order = Vec::new();
    BufReader::new(stdin()).take(MAX_ORDER).read_until(b'\n', &mut order).at("hear about", place)?;
    if order.is_empty() {
        return Ok(());
    }
    let order = serde_json::from_slice(&order).map_err(io::Error::from).at("understand", place)?;
    say(&obey(order).unwrap_or_else(|error| failed(&error)))
}

fn obey(order: Order) -> Result<Answer> {
    match order {
        Order::Fold { store, upper, instance, head: [layer, record, root] } => {
            let store = Store::open_existing(&store)?;
            let head = HeadRef { layer: parsed(&layer)?, record: parsed(&record)?, root: parsed(&root)? };
            let target = (&parsed(&instance)?, head);
            let warnings = fold_here(&store, (&upper, Writer::User), target, &|| false)?;
            Ok(Answer::Folded { warnings })
        }
        Order::Remove { dir } => remove_here(&dir).map(|()| Answer::Removed),
    }
}

fn failed(error: &Error) -> Answer {
    Answer::Failed { errno: error.errno(), reason: error.to_string() }
}
