//! `.desktop` files: what is said of a program, and how it is started. Pure.

use std::path::Path;

const MAIN: &str = "[Desktop Entry]";

/// The value of a key of the main group.
pub(super) fn value(text: &str, key: &str) -> Option<String> {
    let lines = text.lines().skip_while(|line| line.trim() != MAIN).skip(1);
    let mut main = lines.take_while(|line| !line.starts_with('['));
    main.find_map(|line| pair(line).filter(|(found, _)| *found == key).map(|(_, value)| value.to_owned()))
}

/// Whether it is no program for a menu.
pub(super) fn is_hidden(text: &str) -> bool {
    let on = |key| value(text, key).as_deref() == Some("true");
    on("NoDisplay") || on("Hidden") || value(text, "Type").is_some_and(|kind| kind != "Application")
}

/// The file for the host: what it starts, it starts by `command` (karapace and its options) inside `env`.
///
/// # Errors
/// Why it cannot be started.
pub(super) fn rewritten(
    text: &str,
    env: &str,
    command: &[String],
    icon: Option<&Path>,
) -> Result<String, &'static str> {
    if value(text, "Type").is_some_and(|kind| kind != "Application") {
        return Err("it is no program");
    }
    if value(text, "Exec").is_none_or(|exec| exec.trim().is_empty()) {
        return Err("it does not say how it is started (Exec)");
    }
    let workdir = value(text, "Path").filter(|path| !path.is_empty());
    let mut start: Vec<String> = command.iter().map(|word| quoted(word)).collect();
    start.extend(["exec".to_owned(), env.to_owned()]);
    if let Some(workdir) = &workdir {
        start.extend(["-w".to_owned(), quoted(workdir)]);
    }
    start.push("--".to_owned());
    let start = start.join(" ");
    let (mut out, mut group) = (String::new(), String::new());
    for line in text.lines() {
        if line.starts_with('[') {
            group = line.trim().to_owned();
            out.push_str(line);
            if group == MAIN {
                out.push_str(&format!("\nX-Karapace-Environment={env}"));
            }
        } else {
            match pair(line) {
                Some(("Exec", exec)) => out.push_str(&format!("Exec={start} {exec}")),
                // What they name is inside; on the host it would be looked for in vain.
                Some(("TryExec" | "Path" | "DBusActivatable", _)) => continue,
                Some(("Icon", _)) => match icon {
                    Some(icon) if group == MAIN => {
                        out.push_str(&format!("Icon={}", escaped(&icon.to_string_lossy())))
                    }
                    _ => continue,
                },
                Some((key, name)) if group == MAIN && (key == "Name" || key.starts_with("Name[")) => {
                    out.push_str(&format!("{key}={name} ({env})"));
                }
                _ => out.push_str(line),
            }
        }
        out.push('\n');
    }
    Ok(out)
}

fn pair(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once('=')?;
    (!key.starts_with('#')).then(|| (key.trim(), value.trim()))
}

/// A word of an Exec line. Quotes protect from the rules of that line, and backslashes once more from those of any value.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,@=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut inner = String::new();
    for c in word.chars() {
        match c {
            '"' | '`' | '$' | '\\' => inner.extend(['\\', c]),
            '%' => inner.push_str("%%"),
            other => inner.push(other),
        }
    }
    format!("\"{}\"", escaped(&inner))
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDITOR: &str = "# comment\n[Desktop Entry]\nType=Application\nName=Editor\nName[de]=Schreiber\nExec=editor %U\nTryExec=editor\n\
                          Icon=editor\nPath=/srv/my files\nDBusActivatable=true\nActions=new;\n\n[Desktop Action new]\nName=New\n\
                          Exec=editor --new\nIcon=document-new\n";

    #[test]
    fn a_program_starts_inside() {
        let command = ["/opt/a b/karapace".to_owned(), "--store".to_owned(), "/s$x%".to_owned()];
        let text = rewritten(EDITOR, "dev", &command, Some(Path::new("/home/u/i.png"))).unwrap();
        let start = "\"/opt/a b/karapace\" --store \"/s\\\\$x%%\" exec dev -w \"/srv/my files\" --";
        let expected = format!(
            "# comment\n[Desktop Entry]\nX-Karapace-Environment=dev\nType=Application\nName=Editor (dev)\nName[de]=Schreiber (dev)\n\
             Exec={start} editor %U\nIcon=/home/u/i.png\nActions=new;\n\n[Desktop Action new]\nName=New\n\
             Exec={start} editor --new\n"
        );
        assert_eq!(text, expected);
        assert!(!rewritten(EDITOR, "dev", &[], None).unwrap().contains("Icon="));
    }

    #[test]
    fn what_cannot_be_started_is_refused() {
        for text in [
            "",
            "[Desktop Entry]\nType=Application\n",
            "[Desktop Entry]\nType=Link\nExec=x\n",
            "[Other]\nExec=x\n",
        ] {
            assert!(rewritten(text, "dev", &[], None).is_err(), "{text:?}");
        }
        assert!(is_hidden("[Desktop Entry]\nNoDisplay=true\n") && !is_hidden(EDITOR));
        assert_eq!(value(EDITOR, "Name").as_deref(), Some("Editor"));
    }
}
