//! A command has one effect and one result, whichever way it comes: from the control directory, through the
//! control socket, or from a command line that opens the environment itself.

use std::sync::Arc;

use karapace_fs::control::{Command, ControlPlane, Times, parse_commands};
use karapace_fs::path_text::PathText;

use super::*;
use crate::engine::mount::serve::answer;
use crate::engine::server::control::Plane;
use crate::engine::server::socket::{Request, Server};

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Control,
    Socket,
    Alone,
}

/// What a command answers: the text after `ok `, or the errno and the reason.
type Said = std::result::Result<String, (i32, String)>;

/// What a command answers, and the names of the snapshots after it.
type Done = (Said, Vec<Option<String>>);

/// What happens in the environment: a write by a program, or a command.
enum Step {
    Write(&'static str),
    Do(Command),
}

fn commit(name: Option<&str>, paths: &[&str]) -> Step {
    let paths = paths.iter().map(|path| PathText(path.as_bytes().to_vec())).collect();
    let message = Some("said".to_owned());
    Step::Do(Command::Commit { name: name.map(str::to_owned), message, paths })
}

fn restore(reference: &str, paths: &[&str], times: Option<Times>) -> Step {
    let paths = paths.iter().map(|path| PathText(path.as_bytes().to_vec())).collect();
    Step::Do(Command::Restore { reference: reference.to_owned(), paths, times })
}

fn diff(since: Option<&str>) -> Step {
    Step::Do(Command::Diff { since: since.map(str::to_owned) })
}

fn remove(references: &[&str]) -> Step {
    let references = references.iter().copied().map(str::to_owned).collect();
    Step::Do(Command::RemoveSnapshots { references })
}

/// Every command, with good and with bad input, and the errno if it must fail.
fn steps() -> Vec<(Step, Option<i32>)> {
    let drop_name = || Step::Do(Command::DropName { name: "one".to_owned() });
    vec![
        (Step::Write("1"), None),
        (commit(Some("one"), &[]), None),
        (commit(Some("one"), &[]), Some(libc::EEXIST)),
        (commit(Some("a/b"), &[]), Some(libc::EINVAL)),
        (commit(Some("head"), &[]), Some(libc::EINVAL)),
        (commit(None, &["/nosuch"]), Some(libc::ENOENT)),
        (commit(None, &["/a/../b"]), Some(libc::EINVAL)),
        (Step::Write("2"), None),
        (Step::Do(Command::Status), None),
        (diff(None), None),
        (diff(Some("base")), None),
        (diff(Some("0000")), Some(libc::ENOENT)),
        (diff(Some("~x")), Some(libc::EINVAL)),
        (commit(Some("two"), &["/a"]), None),
        (Step::Write("3"), None),
        (Step::Do(Command::Store), None),
        (Step::Do(Command::Store), None),
        (diff(None), None),
        (restore("0000", &[], None), Some(libc::ENOENT)),
        (restore("~9", &[], None), Some(libc::ENOENT)),
        (restore("../etc", &[], None), Some(libc::EINVAL)),
        (restore("", &[], None), Some(libc::EINVAL)),
        (restore("base", &[], Some(Times::Present)), None),
        (restore("one", &["/a"], Some(Times::Kept)), None),
        (commit(None, &[]), None),
        (drop_name(), None),
        (drop_name(), Some(libc::ENOENT)),
        (remove(&["two", "head"]), Some(libc::EINVAL)),
        (remove(&["two", "a b"]), Some(libc::EINVAL)),
        (remove(&["two"]), None),
        (remove(&["two"]), Some(libc::ENOENT)),
        (Step::Do(Command::Gc { dry_run: true }), None),
        (Step::Do(Command::Gc { dry_run: false }), None),
        (Step::Do(Command::Verify), None),
    ]
}

/// The text without what differs between environments: hashes and sizes on disk.
fn plain(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        let inner = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_hash = inner.len() >= 12 && inner.bytes().all(|b| b.is_ascii_hexdigit());
        if is_hash || word.starts_with("bytes=") { "#" } else { word }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Runs all steps in a new environment. Returns what each command did, and what the file holds at the end.
fn run(way: Way) -> (Vec<Done>, Option<String>) {
    let place = Place::new();
    let env = place.import("dev");
    let instance = (way != Way::Alone).then(|| Arc::new(place.open(&env)));
    let plane = instance.clone().map(|instance| Plane::new(instance, Arc::default()));
    let server = instance.clone().filter(|_| way == Way::Socket).map(|instance| {
        let dir = place.engine.env_dir(&env.instance);
        let serve = move |request, _| match request {
            Request::Command(command) => answer(&instance, &command).into(),
            other => panic!("{other:?}"),
        };
        Server::start(place.engine.store().files(), &dir, serve).unwrap()
    });
    let perform = |command: Command| match (way, &plane) {
        (Way::Control, Some(plane)) => plane.execute(&command).map_err(|e| (e.errno, e.reason)),
        _ => {
            let done = place.engine.perform(&env, command);
            done.map(|outcome| outcome.to_string()).map_err(|e| (e.errno(), e.to_string()))
        }
    };
    let viewed = |look: &dyn Fn(&View) -> Option<String>| match &instance {
        Some(instance) => look(instance.view()),
        None => {
            let instance = place.open(&env);
            let seen = look(instance.view());
            instance.close().unwrap();
            seen
        }
    };
    let mut all = Vec::new();
    for (step, errno) in steps() {
        let said = match step {
            Step::Write(text) => {
                viewed(&|view| {
                    write(view, "a", text);
                    None
                });
                continue;
            }
            Step::Do(command) => perform(command),
        };
        assert_eq!(said.as_ref().err().map(|(errno, _)| *errno), errno, "{said:?}");
        let said = said.map(|text| plain(&text)).map_err(|(errno, reason)| (errno, plain(&reason)));
        all.push((said, place.reload(&env).snapshots.into_iter().map(|s| s.name).collect()));
    }
    let content = viewed(&|view| read(view, "a"));
    if let Some(server) = server {
        server.stop();
    }
    (all, content)
}

#[test]
fn every_way_gives_the_same() {
    let control = run(Way::Control);
    assert_eq!(control.1.as_deref(), Some("1"));
    assert_eq!(run(Way::Socket), control);
    assert_eq!(run(Way::Alone), control);
}

#[test]
fn bad_input_is_refused_alike() {
    let place = Place::new();
    let env = place.import("dev");
    let (dev, none) = (&place.engine, &[][..]);
    for (line, error) in [
        ("commit name=a/b", dev.commit(&env, none, Some("a/b"), None).err()),
        ("commit name=latest", dev.commit(&env, none, Some("latest"), None).err()),
        ("restore ~x", dev.restore(&env, "~x", none, None).err()),
        ("restore ../etc", dev.restore(&env, "../etc", none, None).err()),
        ("restore ../etc", dev.diff_since(&env, "../etc").err()),
        ("restore ../etc", dev.diff_between(&env, "../etc", "head").err()),
        ("restore ../etc", dev.remove_snapshots(&env, &["../etc".to_owned()]).err()),
    ] {
        let error = error.unwrap_or_else(|| panic!("{line} is refused"));
        let refusal = parse_commands(line.as_bytes()).unwrap_err();
        assert_eq!((error.errno(), error.to_string()), (libc::EINVAL, refusal), "{line}");
    }
}

#[test]
fn commands_of_the_control_directory() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = Arc::new(place.open(&env));
    let plane = Plane::new(instance.clone(), Arc::default());
    let commit = |name: Option<&str>| Command::Commit {
        name: name.map(str::to_owned),
        message: Some("said".to_owned()),
        paths: Vec::new(),
    };
    let restore = |reference: &str| Command::Restore {
        reference: reference.to_owned(),
        paths: Vec::new(),
        times: None,
    };
    write(instance.view(), "a", "1");
    let done = plane.execute(&commit(Some("one"))).unwrap();
    assert_eq!(done, format!("commit {}", plane.head()));
    let error = plane.execute(&commit(Some("one"))).unwrap_err();
    assert_eq!(error.errno, libc::EEXIST);
    assert_eq!(plane.execute(&restore("0000")).unwrap_err().errno, libc::ENOENT);
    write(instance.view(), "a", "2");
    let text = plane.execute(&restore("base")).unwrap();
    assert!(text.contains("uncommitted changes are in"), "{text}");
    assert_eq!(plane.head(), plane.base());
    let snapshots = plane.snapshots();
    assert_eq!((snapshots.len(), snapshots[0].message.as_deref()), (2, Some("said")));
    assert!(plane.execute(&Command::Verify).unwrap().starts_with("verify clean"));
    assert_eq!(plane.id().name, "dev");
    assert_eq!(plane.state(), "Built");
    instance.close().unwrap();
    assert_eq!(plane.execute(&commit(None)).unwrap_err().errno, libc::EAGAIN);
}
