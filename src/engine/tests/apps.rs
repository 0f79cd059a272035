//! Programs in the menu: read without a mount, written for one environment of one store, removed with it.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;
use crate::engine::export::app::Menu;

const APPLICATIONS: &str = "usr/share/applications";

fn entry(name: &str) -> String {
    format!("[Desktop Entry]\nType=Application\nName={name}\nExec={name} %F\nIcon={name}\n")
}

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn command() -> Vec<String> {
    vec!["/opt/karapace".to_owned()]
}

impl Place {
    fn menu(&self) -> Menu {
        Menu(self.dir.path().join("data"))
    }

    fn add_program(&self, app: &str) {
        put(&self.rootfs(), &format!("{APPLICATIONS}/{app}.desktop"), &entry(app));
        put(&self.rootfs(), &format!("usr/share/pixmaps/{app}.png"), "picture");
    }

    fn export(&self, env: &Metadata, app: &str) -> crate::engine::Result<PathBuf> {
        self.engine.export_app(env, app, &self.menu(), &command())
    }

    /// The names of the files in the menu, sorted.
    fn files(&self) -> Vec<String> {
        let mut names = Vec::new();
        for dir in ["applications", "icons"] {
            let entries = fs::read_dir(self.menu().0.join(dir)).into_iter().flatten();
            names.extend(entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()));
        }
        names.sort();
        names
    }
}

fn refusal<T: std::fmt::Debug>(result: crate::engine::Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn programs_are_found_without_a_mount() {
    let place = Place::new();
    place.add_program("tool");
    fs::write(place.dir.path().join("secret"), entry("outside")).unwrap();
    let applications = place.rootfs().join(APPLICATIONS);
    // Symlinks resolve inside, wherever they point.
    symlink("/late", applications.join("late.desktop")).unwrap();
    symlink(place.dir.path().join("secret"), applications.join("out.desktop")).unwrap();
    symlink("loop.desktop", applications.join("loop.desktop")).unwrap();
    fs::create_dir(applications.join("dir.desktop")).unwrap();
    nix::unistd::mkfifo(&applications.join("pipe.desktop"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    put(&place.rootfs(), &format!("{APPLICATIONS}/bad.desktop"), &entry("bad").replace("bad %F", "bad; x"));
    put(&place.rootfs(), &format!("{APPLICATIONS}/large.desktop"), &"#".repeat((1 << 20) + 1));
    fs::write(applications.join("latin.desktop"), b"[Desktop Entry]\nName=caf\xe9\n").unwrap();
    let env = place.import("dev");
    // Uncommitted files count.
    let instance = place.open(&env);
    write(instance.view(), "late", &entry("late"));
    instance.close().unwrap();
    drop(instance);
    let apps = place.engine.apps(&env, &place.menu()).unwrap();
    let apps: Vec<_> = apps.into_iter().map(|app| (app.app, app.name)).collect();
    assert_eq!(apps, [("late", "late"), ("tool", "tool")].map(|(a, n)| (a.to_owned(), n.to_owned())));
    for none in ["out", "loop", "dir", "pipe", "none"] {
        assert!(refusal(place.export(&env, none)).contains("has no program"), "{none}");
    }
    assert!(
        refusal(place.export(&env, "large")).contains("is not exported: it is larger than 1048576 bytes")
    );
    assert!(refusal(place.export(&env, "latin")).contains("is not exported: it is not UTF-8 text"));
    assert!(refusal(place.export(&env, "bad")).contains("line 4: Exec: ; must be in quotes"));
    assert!(place.files().is_empty());
    let path = place.export(&env, "tool.desktop").unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("Name=tool (dev)\n") && text.contains("Exec=/opt/karapace exec dev -- tool %F\n"));
    assert_eq!(place.files(), ["karapace-dev-tool.desktop", "karapace-dev-tool.png"]);
    assert!(
        text.contains(&format!("Icon={}\n", place.menu().0.join("icons/karapace-dev-tool.png").display()))
    );
    let apps = place.engine.apps(&env, &place.menu()).unwrap();
    assert_eq!(apps[1].exported.as_ref(), Some(&path));
    // It was not mounted for this, and its lock is free afterwards.
    assert!(place.engine.live_mount(&env.instance).unwrap().is_none());
    drop(place.open(&env));
}

#[test]
fn an_exported_file_belongs_to_one_environment() {
    let place = Place::new();
    place.add_program("b-c");
    place.add_program("c");
    let (short, long) = (place.import("a"), place.import("a-b"));
    place.export(&short, "b-c").unwrap();
    let refused = refusal(place.export(&long, "c"));
    assert!(refused.contains("is of the environment a in "), "{refused}");
    assert!(refusal(place.engine.remove_app("a-b", "c", &place.menu())).contains("of the environment a in "));
    assert_eq!(place.engine.apps(&long, &place.menu()).unwrap()[1].exported, None);
    place.engine.forget_apps("a-b", &place.menu());
    assert_eq!(place.files().len(), 2);
    // An environment with the same name in another store.
    let other = Place::new();
    other.add_program("b-c");
    let theirs = other.import("a");
    assert!(
        refusal(other.engine.export_app(&theirs, "b-c", &place.menu(), &command()))
            .contains("of the environment a in ")
    );
    other.engine.forget_apps("a", &place.menu());
    other.engine.rename_apps("a", "z", &place.menu());
    assert_eq!(place.files(), ["karapace-a-b-c.desktop", "karapace-a-b-c.png"]);
    place.engine.remove_app("a", "b-c", &place.menu()).unwrap();
    assert!(place.files().is_empty());
    assert!(refusal(place.engine.remove_app("a", "b-c", &place.menu())).contains("is not exported"));
}

#[test]
fn what_karapace_did_not_write_stays() {
    let place = Place::new();
    place.add_program("tool");
    let env = place.import("dev");
    let path = place.export(&env, "tool").unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let elsewhere = place.dir.path().join("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    // A symlink to a file of ours does not count as one.
    symlink(&elsewhere, &path).unwrap();
    assert!(refusal(place.export(&env, "tool")).contains("not a file that karapace wrote"));
    assert!(
        refusal(place.engine.remove_app("dev", "tool", &place.menu()))
            .contains("not a file that karapace wrote")
    );
    place.engine.forget_apps("dev", &place.menu());
    assert!(path.is_symlink() && elsewhere.exists());
    fs::remove_file(&path).unwrap();
    for foreign in [
        "[Desktop Entry]\nType=Application\nName=x\nExec=x\n",
        "nonsense",
        &text.replace("[Desktop Entry]", "[Desktop Entry]\nIcon=/x"),
    ] {
        fs::write(&path, foreign).unwrap();
        assert!(place.export(&env, "tool").is_err());
        place.engine.forget_apps("dev", &place.menu());
        assert_eq!(fs::read_to_string(&path).unwrap(), foreign);
    }
    // The file names an icon that is not ours.
    let icon = place.dir.path().join("precious.png");
    fs::write(&icon, "").unwrap();
    let own = place.menu().0.join("icons/karapace-dev-tool.png");
    fs::write(&path, text.replace(own.to_str().unwrap(), icon.to_str().unwrap())).unwrap();
    place.engine.forget_apps("dev", &place.menu());
    assert!(!path.exists() && icon.exists());
    // A file of an earlier version does not name its store: a command that names the program applies to it, a
    // destroy does not.
    let early: String =
        text.lines().filter(|l| !l.starts_with("X-Karapace-Store")).map(|l| format!("{l}\n")).collect();
    fs::write(&path, &early).unwrap();
    place.engine.forget_apps("dev", &place.menu());
    assert!(path.exists());
    place.export(&env, "tool").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    fs::write(&path, &early).unwrap();
    place.engine.remove_app("dev", "tool", &place.menu()).unwrap();
    assert!(place.files().is_empty());
}

#[test]
fn exported_programs_follow_a_rename_and_are_removed_with_the_environment() {
    let place = Place::new();
    place.add_program("one");
    place.add_program("two");
    let (env, other) = (place.import("dev"), place.import("dev-x"));
    for (env, app) in [(&env, "one"), (&env, "two"), (&other, "one")] {
        place.export(env, app).unwrap();
    }
    // A file in the way of one of them.
    let in_the_way = place.menu().0.join("applications/karapace-new-two.desktop");
    fs::write(&in_the_way, "mine").unwrap();
    place.engine.rename(&env, "new").unwrap();
    place.engine.rename_apps("dev", "new", &place.menu());
    let others = ["karapace-dev-x-one.desktop", "karapace-dev-x-one.png"];
    let renamed = ["karapace-new-one.desktop", "karapace-new-one.png", "karapace-new-two.desktop"];
    assert_eq!(place.files(), [&others[..], &renamed].concat());
    assert_eq!(fs::read_to_string(&in_the_way).unwrap(), "mine");
    let one = place.menu().0.join("applications/karapace-new-one.desktop");
    let text = fs::read_to_string(&one).unwrap();
    assert_eq!(fs::read_to_string(place.export(&place.reload(&env), "one").unwrap()).unwrap(), text);
    assert!(text.contains("Exec=/opt/karapace exec new -- one %F\n"), "{text}");
    // Whatever path names the store.
    let link = place.dir.path().join("link");
    symlink(place.engine.root(), &link).unwrap();
    let engine = Engine::open(&link).unwrap();
    engine.destroy(&place.reload(&env), true).unwrap();
    engine.forget_apps("new", &place.menu());
    assert_eq!(place.files(), [&others[..], &["karapace-new-two.desktop"]].concat());
}

#[test]
fn exported_programs_survive_a_rebuild() {
    let place = Place::new();
    place.add_program("tool");
    let manifest = place.manifest("");
    let options = BuildOptions { name: Some("dev".to_owned()), ..BuildOptions::default() };
    let before = place.engine.build(&manifest, &options, &Silent).unwrap().metadata;
    let path = place.export(&before, "tool").unwrap();
    let after = place.engine.rebuild(&manifest, &options, &Silent).unwrap().metadata;
    assert_ne!(before.instance, after.instance);
    assert_eq!(place.engine.apps(&after, &place.menu()).unwrap()[0].exported.as_ref(), Some(&path));
    place.engine.destroy(&after, true).unwrap();
    place.engine.forget_apps("dev", &place.menu());
    assert!(place.files().is_empty());
}
