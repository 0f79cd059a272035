//! The parts of an environment's `.desktop` file that are kept, and the file written for the host. No I/O.
//!
//! The file comes from an image and is read by the host's desktop, so only keys that are known to describe
//! something, and not to do something, are kept.

use std::path::Path;

use super::entry::{ACTION, Group, MAIN, Pair, Refusal, Result, escaped, parse, shown, text_flaw, unescaped};
use super::exec::Exec;

/// Key in the written file: the environment that the program starts in.
pub(super) const ENVIRONMENT: &str = "X-Karapace-Environment";

/// Key in the written file: the store of that environment.
pub(super) const STORE: &str = "X-Karapace-Store";

/// Longest text shown in one line, in bytes. A longer one would hide the environment's name behind it.
const MAX_TEXT: usize = 512;

/// Longest list, in bytes.
const MAX_LIST: usize = 64 << 10;

/// The type of a key's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One line, which may have translations.
    Text,
    /// A list of such lines.
    Texts,
    /// One line without translations.
    Word,
    /// Identifiers.
    Identifiers,
    /// Media types.
    MediaTypes,
    Boolean,
}

/// The keys of the main group that are kept, besides those that [`Program::parse`] handles.
const MAIN_KEYS: &[(&str, Kind)] = &[
    ("Name", Kind::Text),
    ("GenericName", Kind::Text),
    ("Comment", Kind::Text),
    ("Keywords", Kind::Texts),
    ("Categories", Kind::Identifiers),
    ("MimeType", Kind::MediaTypes),
    ("Terminal", Kind::Boolean),
    ("NoDisplay", Kind::Boolean),
    ("OnlyShowIn", Kind::Identifiers),
    ("NotShowIn", Kind::Identifiers),
    ("StartupNotify", Kind::Boolean),
    ("StartupWMClass", Kind::Word),
    ("SingleMainWindow", Kind::Boolean),
    ("PrefersNonDefaultGPU", Kind::Boolean),
];

/// The keys of an action group that are kept.
const ACTION_KEYS: &[(&str, Kind)] = &[("Name", Kind::Text)];

/// Keys that must not have a suffix.
const STRICT: [&str; 3] = ["Type", "Exec", "Actions"];

/// Keys that are read, but not copied.
const LOOKED_AT: [&str; 3] = ["Icon", "Path", "Hidden"];

/// The kept part of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Section {
    /// Keys as written, and their escaped values.
    lines: Vec<(String, String)>,
    exec: Exec,
}

/// The kept part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    /// The program's own name.
    pub name: String,
    /// The icon that the file names.
    pub icon: Option<String>,
    /// Whether the program should not appear in menus.
    pub hidden: bool,
    /// What was left out, for a message.
    pub left_out: Vec<String>,
    workdir: Option<String>,
    main: Section,
    actions: Vec<(String, Section)>,
}

/// The environment that a written file belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub store: &'a str,
    pub env: &'a str,
}

impl Program {
    /// # Errors
    /// Anything that other readers could interpret differently or not at all.
    pub fn parse(text: &str) -> Result<Program> {
        let groups = parse(text)?;
        let main = &groups[0];
        if main.find("Type").is_none_or(|pair| pair.raw != "Application") {
            return Err(Refusal::of_file("it is not a program: its Type is not Application"));
        }
        let mut left_out = Vec::new();
        let section = Section::take(main, MAIN_KEYS, &mut left_out)?;
        let name = main.find("Name").ok_or_else(|| Refusal::of_file("it has no Name"))?.value()?;
        let mut plain = |key: &str| -> Result<Option<String>> {
            let Some(pair) = main.find(key) else { return Ok(None) };
            let value = pair.value()?;
            if value.is_empty() || text_flaw(&value).is_some() {
                left_out.push(key.to_owned());
                return Ok(None);
            }
            Ok(Some(value))
        };
        let (icon, workdir) = (plain("Icon")?, plain("Path")?);
        let on = |key| main.find(key).is_some_and(|pair| pair.raw == "true");
        let mut program = Program {
            name,
            icon,
            hidden: on("NoDisplay") || on("Hidden"),
            left_out,
            workdir,
            main: section,
            actions: Vec::new(),
        };
        program.take_actions(&groups)?;
        Ok(program)
    }

    /// Takes the groups of the actions that the main group names.
    fn take_actions(&mut self, groups: &[Group<'_>]) -> Result<()> {
        let named: Vec<&str> = groups[0].find("Actions").into_iter().flat_map(Pair::tokens).collect();
        for group in &groups[1..] {
            let id = group.name.strip_prefix(ACTION).filter(|id| named.contains(id) && is_identifier(id));
            // An action without both keys cannot be started.
            match id.filter(|_| group.find("Name").is_some() && group.find("Exec").is_some()) {
                Some(id) => {
                    let section = Section::take(group, ACTION_KEYS, &mut self.left_out)?;
                    self.actions.push((id.to_owned(), section));
                }
                None => self.left_out.push(format!("[{}]", shown(group.name))),
            }
        }
        Ok(())
    }

    /// The text of the host's file. It starts the program by `command` (karapace and its options) inside the
    /// environment.
    pub fn file(&self, origin: Origin<'_>, command: &[String], icon: Option<&Path>) -> Result<String> {
        if command.first().is_none_or(|program| program.contains('=')) {
            return Err(Refusal::of_file("the path of karapace contains '=', which is not allowed in Exec"));
        }
        let mut start = command.to_vec();
        start.extend(["exec", origin.env].map(str::to_owned));
        if let Some(workdir) = &self.workdir {
            start.extend(["-w".to_owned(), workdir.clone()]);
        }
        start.push("--".to_owned());
        let mut out = format!("[{MAIN}]\nType=Application\n");
        for (key, value) in &self.main.lines {
            let is_name = key == "Name" || key.starts_with("Name[");
            let whose = if is_name { suffix(origin.env) } else { String::new() };
            out.push_str(&format!("{key}={value}{whose}\n"));
        }
        if let Some(icon) = icon {
            let icon = icon.to_str().filter(|path| text_flaw(path).is_none());
            let icon = icon.ok_or_else(|| Refusal::of_file("the path of its icon would not be UTF-8"))?;
            out.push_str(&format!("Icon={}\n", escaped(icon)));
        }
        out.push_str(&self.main.start(&start)?);
        let named: Vec<_> = self.actions.iter().map(|(id, _)| format!("{id};")).collect();
        if !named.is_empty() {
            out.push_str(&format!("Actions={}\n", named.concat()));
        }
        out.push_str(&format!("{STORE}={}\n{ENVIRONMENT}={}\n", escaped(origin.store), origin.env));
        for (id, action) in &self.actions {
            out.push_str(&format!("\n[{ACTION}{id}]\n"));
            action.lines.iter().for_each(|(key, value)| out.push_str(&format!("{key}={value}\n")));
            out.push_str(&action.start(&start)?);
        }
        Ok(out)
    }
}

/// The suffix of a name in the menu.
fn suffix(env: &str) -> String {
    format!(" ({env})")
}

impl Section {
    fn take(group: &Group<'_>, keys: &[(&str, Kind)], left_out: &mut Vec<String>) -> Result<Section> {
        group.check_unique()?;
        let mut lines = Vec::new();
        for pair in &group.pairs {
            let kind = keys.iter().find(|(key, _)| *key == pair.key).map(|(_, kind)| *kind);
            if kind.is_some() || STRICT.contains(&pair.key) {
                check_suffix(pair, kind)?;
            }
            match kind.map(|kind| kind.written(pair)) {
                Some(Ok(value)) => lines.push((pair.written(), value)),
                Some(Err(flaw)) if pair.key == "Name" && pair.suffix.is_none() => {
                    return Err(pair.refused(&flaw));
                }
                Some(Err(flaw)) => left_out.push(format!("{} ({flaw})", pair.written())),
                None if pair.suffix.is_none() && STRICT.iter().chain(&LOOKED_AT).any(|k| *k == pair.key) => {}
                None => left_out.push(shown(&pair.written())),
            }
        }
        let exec = group.find("Exec");
        let exec = exec.ok_or_else(|| Refusal::of_file("it does not say how it is started (Exec)"))?;
        let exec = Exec::parse(&exec.value()?).map_err(|reason| exec.refused(&reason))?;
        Ok(Section { lines, exec })
    }

    /// The Exec line that runs it through the command `start`.
    fn start(&self, start: &[String]) -> Result<String> {
        let line = self.exec.behind(start).map_err(|reason| Refusal::of_file(format!("Exec: {reason}")))?;
        Ok(format!("Exec={line}\n"))
    }
}

/// Refuses a suffix that is not a locale, and a translation of a key that has none: KDE, for example, has
/// `[$e]` expanded by a shell.
fn check_suffix(pair: &Pair<'_>, kind: Option<Kind>) -> Result<()> {
    let is_locale = |suffix: &str| {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"_-.@".contains(&b);
        (1..=40).contains(&suffix.len()) && suffix.bytes().all(good)
    };
    match pair.suffix {
        None => Ok(()),
        Some(suffix) if !is_locale(suffix) => Err(pair.refused("the text in brackets is not a locale")),
        Some(_) if !matches!(kind, Some(Kind::Text | Kind::Texts)) => {
            Err(pair.refused("this key has no translations"))
        }
        Some(_) => Ok(()),
    }
}

impl Kind {
    /// The value as it is written to the host's file.
    ///
    /// # Errors
    /// The reason why the value is left out.
    fn written(self, pair: &Pair<'_>) -> std::result::Result<String, String> {
        let most = if matches!(self, Kind::Text | Kind::Word) { MAX_TEXT } else { MAX_LIST };
        if pair.raw.len() > most {
            return Err(format!("it is longer than {most} bytes"));
        }
        let all = |good: fn(&str) -> bool| match pair.tokens().find(|item| !good(item)) {
            None => Ok(pair.tokens().map(|item| format!("{item};")).collect()),
            Some(item) => Err(format!("{} is not one of its values", shown(item))),
        };
        match self {
            Kind::Text | Kind::Word | Kind::Texts => {
                let value = unescaped(pair.raw, self == Kind::Texts)?;
                match text_flaw(&value) {
                    Some(flaw) => Err(flaw.to_owned()),
                    None => Ok(pair.raw.to_owned()),
                }
            }
            Kind::Identifiers => all(is_identifier),
            Kind::MediaTypes => all(is_media_type),
            Kind::Boolean if matches!(pair.raw, "true" | "false") => Ok(pair.raw.to_owned()),
            Kind::Boolean => Err("it is neither true nor false".to_owned()),
        }
    }
}

fn is_identifier(item: &str) -> bool {
    !item.is_empty() && item.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn is_media_type(item: &str) -> bool {
    let good = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._".contains(&b))
    };
    item.split_once('/').is_some_and(|(kind, subtype)| good(kind) && good(subtype))
}

/// The text of a written file after its environment was renamed from `old` to `new`. `icon`: the icon's new
/// path.
///
/// # Errors
/// The file is not in the form that karapace writes.
pub(super) fn renamed(text: &str, (old, new): (&str, &str), icon: Option<&Path>) -> Result<String> {
    let mut out = String::new();
    for group in parse(text)? {
        let gap = if out.is_empty() { "" } else { "\n" };
        out.push_str(&format!("{gap}[{}]\n", group.name));
        for pair in &group.pairs {
            let value = match (pair.key, icon) {
                (ENVIRONMENT, _) => new.to_owned(),
                ("Name", _) if group.name == MAIN => {
                    let name = pair.raw.strip_suffix(&suffix(old)).unwrap_or(pair.raw);
                    format!("{name}{}", suffix(new))
                }
                ("Icon", Some(icon)) if group.name == MAIN => escaped(&icon.to_string_lossy()),
                ("Exec", _) => {
                    let exec = Exec::parse(&pair.value()?).map_err(|reason| pair.refused(&reason))?;
                    let words = exec.words();
                    let at = words.iter().position(|word| *word == "exec").map(|at| at + 1);
                    let at = at.filter(|at| words.get(*at) == Some(&old));
                    let at = at.ok_or_else(|| pair.refused("it does not start the environment"))?;
                    exec.with_word(at, new).behind(&[]).map_err(|reason| pair.refused(&reason))?
                }
                _ => pair.raw.to_owned(),
            };
            out.push_str(&format!("{}={value}\n", pair.written()));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDITOR: &str = "# comment\n[Desktop Entry]\nVersion=1.1\nType=Application\nName=Editor\nName[de]=Schreiber\n\
                          Name[x-test]=xx\nExec=editor %U\nTryExec=editor\nIcon=editor\nPath=/srv/my files\nDBusActivatable=true\n\
                          MimeType=text/plain;application/x-c++;\nCategories=Utility;X-Own\nKeywords=a\\;b;c;\nTerminal=false\n\
                          X-KDE-SubstituteUID=true\nPath[$e]=$HOME\nActions=new;gone;\n\n[Desktop Action new]\nName=New\nName[de]=Neu\n\
                          Exec=editor --new\nIcon=document-new\n\n[Desktop Action other]\nName=Other\nExec=other\n";

    const ORIGIN: Origin<'_> = Origin { store: "/st ore\\", env: "dev" };

    fn command() -> Vec<String> {
        ["/opt/a b/karapace", "--store", "/s$x%"].map(str::to_owned).to_vec()
    }

    fn with(line: &str) -> String {
        format!("[Desktop Entry]\nType=Application\nName=A\nExec=a\n{line}\n")
    }

    #[test]
    fn a_program_starts_inside() {
        let program = Program::parse(EDITOR).unwrap();
        assert_eq!((program.name.as_str(), program.icon.as_deref()), ("Editor", Some("editor")));
        assert!(!program.hidden);
        let text = program.file(ORIGIN, &command(), Some(Path::new("/home/u/i.png"))).unwrap();
        let start = r#""/opt/a b/karapace" --store "/s\\$x%%" exec dev -w "/srv/my files" --"#;
        let expected = format!(
            "[Desktop Entry]\nType=Application\nName=Editor (dev)\nName[de]=Schreiber (dev)\nName[x-test]=xx (dev)\n\
             MimeType=text/plain;application/x-c++;\nCategories=Utility;X-Own;\nKeywords=a\\;b;c;\nTerminal=false\n\
             Icon=/home/u/i.png\nExec={start} editor %U\nActions=new;\nX-Karapace-Store=/st ore\\\\\nX-Karapace-Environment=dev\n\n\
             [Desktop Action new]\nName=New\nName[de]=Neu\nExec={start} editor --new\n"
        );
        assert_eq!(text, expected);
        let left_out = [
            "Version",
            "TryExec",
            "DBusActivatable",
            "X-KDE-SubstituteUID",
            "Path[$e]",
            "Icon",
            "[Desktop Action other]",
        ];
        assert_eq!(
            program.left_out,
            left_out.map(str::to_owned).into_iter().filter(|key| key != "Icon").collect::<Vec<_>>()
        );
        assert!(!program.file(ORIGIN, &command(), None).unwrap().contains("Icon="));
        assert!(program.file(ORIGIN, &["/a=b/karapace".to_owned()], None).is_err());
        assert!(program.file(ORIGIN, &["/a\nb".to_owned()], None).is_err());
    }

    #[test]
    fn dangerous_entries_are_refused_with_their_line() {
        for (text, reason) in [
            (String::new(), "does not start with"),
            ("[Desktop Entry]\nType=Application\nName=A\n".to_owned(), "how it is started (Exec)"),
            ("[Desktop Entry]\nType=Application\nExec=a\n".to_owned(), "it has no Name"),
            ("[Desktop Entry]\nName=A\nExec=a\n".to_owned(), "its Type is not Application"),
            ("[Desktop Entry]\nType=Link\nName=A\nURL=x\nExec=a\n".to_owned(), "its Type is not Application"),
            (with("Type=Link"), "line 5: Type: this key appears twice"),
            (with("Exec=b"), "line 5: Exec: this key appears twice"),
            (with("Name[de]=x\nName[de]=y"), "line 6: Name[de]: this key appears twice"),
            (with("Exec[$e]=b"), "line 5: Exec[$e]: the text in brackets is not a locale"),
            (with("Name[$e]=$(b)"), "line 5: Name[$e]: the text in brackets"),
            (with("Exec[de]=b"), "line 5: Exec[de]: this key has no translations"),
            (with("Type[de]=Application"), "line 5: Type[de]: this key has no translations"),
            (with("Terminal[$i]=true"), "line 5: Terminal[$i]: the text in brackets"),
            (with("[Desktop Entry]"), "line 5: the group [Desktop Entry] appears twice"),
            (
                with("Actions=x;\n[Desktop Action x]\nName=X\nExec=x $(touch y)"),
                "line 8: Exec: $ must be in quotes",
            ),
            (
                with("Actions=x;\n[Desktop Action x]\nName=X\nExec=x\nExec[$e]=$(y)"),
                "line 9: Exec[$e]: the text",
            ),
            (
                "[Desktop Entry]\nType=Application\nName=A\nExec=foo; touch /tmp/x\n".to_owned(),
                "line 4: Exec: ; must be in quotes",
            ),
            (
                "[Desktop Entry]\nType=Application\nName=A\nExec=a \\q\n".to_owned(),
                "line 4: Exec: \\q is not an escape",
            ),
            (
                "[Desktop Entry]\nType=Application\nName=A\u{1b}[31m\nExec=a\n".to_owned(),
                "line 3: Name: it has a control",
            ),
            (
                "[Desktop Entry]\nType=Application\nName=A\\n\\nB\nExec=a\n".to_owned(),
                "line 3: Name: it has a control",
            ),
            (
                format!("[Desktop Entry]\nType=Application\nName={}\nExec=a\n", "A".repeat(600)),
                "line 3: Name: it is longer",
            ),
        ] {
            let refused = Program::parse(&text).unwrap_err().to_string();
            assert!(refused.contains(reason), "{text:?}: {refused}");
        }
    }

    #[test]
    fn harmless_invalid_entries_are_left_out() {
        for line in [
            "Comment=a\u{1b}b",
            "Comment[de]=a\u{202e}b",
            "Keywords=a\\qb",
            "Categories=A B;",
            "Categories=$(x);",
            "MimeType=text;",
            "MimeType=text/$x;",
            "Terminal=yes",
            "OnlyShowIn=a'b",
            "X-Karapace-Store=/other",
            "X-KDE-SubstituteUID=true",
            "Hidden_=x",
            "Exec =x",
            "Path=/a\u{7f}",
        ] {
            // A blank before the equals sign is ignored, so this key appears twice.
            let Ok(program) = Program::parse(&with(line)) else {
                assert_eq!(line, "Exec =x");
                continue;
            };
            let text = program.file(ORIGIN, &command(), None).unwrap();
            assert_eq!(program.left_out.len(), 1, "{line}");
            assert_eq!(
                text,
                Program::parse(&with("")).unwrap().file(ORIGIN, &command(), None).unwrap(),
                "{line}"
            );
        }
        assert!(Program::parse(&with("NoDisplay=true")).unwrap().hidden);
        assert!(Program::parse(&with("Hidden=true")).unwrap().hidden);
    }

    #[test]
    fn a_written_file_follows_a_rename() {
        let program = Program::parse(EDITOR).unwrap();
        let icon = |env: &str| format!("/home/u/{env}.png");
        let file = |env: &str| {
            let origin = Origin { env, ..ORIGIN };
            program.file(origin, &command(), Some(Path::new(&icon(env)))).unwrap()
        };
        assert_eq!(
            renamed(&file("dev"), ("dev", "new"), Some(Path::new(&icon("new")))).unwrap(),
            file("new")
        );
        assert!(renamed(&file("dev"), ("other", "new"), None).is_err());
    }
}
