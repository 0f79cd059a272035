//! Exec lines: arguments, quotes and field codes (Desktop Entry Specification 1.5, "The Exec key"). No I/O.
//!
//! Desktops handle lines that the specification does not allow in different ways; some pass them to a shell.
//! So such a line is refused, and the written line is quoted anew.

use super::entry::escaped;

/// Characters that must be quoted, because they are special in a shell.
const RESERVED: &str = " \t\n\"'\\><~|&;$*?#()`";

/// Characters, besides letters and digits, that need no quotes.
const PLAIN: &str = "/._-+:,@=";

/// Field codes that a desktop replaces: files and URLs, the icon, the name, this file.
const CODES: &str = "fFuUick";

/// Field codes that stand for files. A line has at most one of them.
const FILES: &str = "fFuU";

/// Field codes that must be an argument of their own, because they expand to several arguments.
const ALONE: &str = "FUi";

/// Deprecated field codes, which desktops remove.
const DEPRECATED: &str = "dDnNvm";

/// A part of an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Code(char),
}

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exec(Vec<Vec<Part>>);

impl Exec {
    /// Parses the unescaped value of an Exec key.
    ///
    /// # Errors
    /// The reason why the specification does not allow the value.
    pub fn parse(value: &str) -> Result<Exec, String> {
        if let Some(c) = value.chars().find(|c| c.is_control()) {
            return Err(format!("it has the control character {}", c.escape_debug()));
        }
        let mut args = Vec::new();
        let mut rest = value.trim_matches(' ');
        while !rest.is_empty() {
            let (arg, after) = match rest.strip_prefix('"') {
                Some(quoted) => parse_quoted(quoted)?,
                None => parse_plain(rest)?,
            };
            if !after.is_empty() && !after.starts_with(' ') {
                return Err("quotes must enclose a whole argument".to_owned());
            }
            args.extend(arg);
            rest = after.trim_start_matches(' ');
        }
        match args.first().map(Vec::as_slice) {
            Some([Part::Text(program)]) if !program.is_empty() => {}
            None | Some([Part::Text(_)]) => return Err("it does not name a program".to_owned()),
            Some(_) => return Err("it has a field code in place of the program".to_owned()),
        }
        let files = args.iter().flatten().filter(|p| matches!(p, Part::Code(code) if FILES.contains(*code)));
        if files.count() > 1 {
            return Err("it has more than one of %f, %F, %u and %U".to_owned());
        }
        Ok(Exec(args))
    }

    /// The line that runs this through `command`, escaped as the value of a key.
    pub fn behind(&self, command: &[String]) -> Result<String, String> {
        let mut words = command.iter().map(|word| quoted(word)).collect::<Result<Vec<_>, _>>()?;
        for arg in &self.0 {
            words.push(written(arg)?);
        }
        Ok(escaped(&words.join(" ")))
    }

    /// The literal words before the first argument with a field code.
    pub fn words(&self) -> Vec<&str> {
        let words = self.0.iter().map_while(|arg| match arg.as_slice() {
            [Part::Text(text)] => Some(text.as_str()),
            _ => None,
        });
        words.collect()
    }

    /// Replaces the argument at `index`, which has no field code, by `word`.
    pub fn with_word(mut self, index: usize, word: &str) -> Exec {
        self.0[index] = vec![Part::Text(word.to_owned())];
        self
    }
}

type Parsed<'a> = Result<(Option<Vec<Part>>, &'a str), String>;

/// Parses an argument after its opening quote. Returns it and the rest of the line.
fn parse_quoted(text: &str) -> Parsed<'_> {
    let mut arg = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match (c, chars.clone().next().map(|(_, next)| next)) {
            ('"', _) => return Ok((Some(vec![Part::Text(arg)]), &text[at + 1..])),
            ('\\', Some(next @ ('"' | '`' | '$' | '\\'))) | ('%', Some(next @ '%')) => {
                arg.push(next);
                chars.next();
            }
            ('\\', _) => {
                return Err("in quotes, a backslash is allowed only before \", `, $ or \\".to_owned());
            }
            ('`' | '$', _) => return Err(format!("{c} in quotes needs a backslash")),
            ('%', _) => return Err("a field code must not be in quotes".to_owned()),
            _ => arg.push(c),
        }
    }
    Err("a quote is not closed".to_owned())
}

/// Parses an unquoted argument. Returns it and the rest of the line; the argument is `None` if it was a
/// deprecated field code.
fn parse_plain(text: &str) -> Parsed<'_> {
    let end = text.find(' ').unwrap_or(text.len());
    let (word, after) = text.split_at(end);
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        if RESERVED.contains(c) {
            return Err(format!("{c} must be in quotes"));
        }
        if c != '%' {
            literal.push(c);
            continue;
        }
        match chars.next() {
            Some('%') => literal.push('%'),
            Some(code) if DEPRECATED.contains(code) => {}
            Some(code) if CODES.contains(code) => {
                if ALONE.contains(code) && word.len() > 2 {
                    return Err(format!("%{code} must be an argument of its own"));
                }
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal)));
                }
                parts.push(Part::Code(code));
            }
            Some(other) => return Err(format!("%{} is not a field code", other.escape_debug())),
            None => return Err("it ends in %".to_owned()),
        }
    }
    if !literal.is_empty() {
        parts.push(Part::Text(literal));
    }
    Ok((Some(parts).filter(|parts| !parts.is_empty()), after))
}

/// An argument as written in a line, before the escaping of values.
fn written(arg: &[Part]) -> Result<String, String> {
    match arg {
        [Part::Text(word)] => quoted(word),
        parts => parts.iter().map(beside_a_code).collect(),
    }
}

/// A part of an argument that has a field code; such an argument cannot be quoted.
fn beside_a_code(part: &Part) -> Result<String, String> {
    match part {
        Part::Code(code) => Ok(format!("%{code}")),
        Part::Text(text) if text.chars().all(|c| is_plain(c) || c == '%') => Ok(text.replace('%', "%%")),
        Part::Text(text) => Err(format!("{text:?} beside a field code cannot be quoted")),
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || PLAIN.contains(c)
}

/// Quotes a literal word.
fn quoted(word: &str) -> Result<String, String> {
    if word.contains(char::is_control) {
        return Err(format!("{word:?} has a control character"));
    }
    if !word.is_empty() && word.chars().all(is_plain) {
        return Ok(word.to_owned());
    }
    let mut inner = String::new();
    for c in word.chars() {
        match c {
            '"' | '`' | '$' | '\\' => inner.extend(['\\', c]),
            '%' => inner.push_str("%%"),
            other => inner.push(other),
        }
    }
    Ok(format!("\"{inner}\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::export::app::entry::unescaped;

    fn again(value: &str) -> Result<String, String> {
        unescaped(&Exec::parse(value)?.behind(&[])?, false)
    }

    #[test]
    fn arguments_are_quoted_again() {
        for (value, expected) in [
            ("editor %U", "editor %U"),
            ("  a   b ", "a b"),
            ("\"editor\" \"plain\" \"\"", "editor plain \"\""),
            ("sh -c \"touch x && y\"", "sh -c \"touch x && y\""),
            (r#"a "b \" \` \$ \\ c""#, r#"a "b \" \` \$ \\ c""#),
            ("a 100%% \"5 %% off\"", "a \"100%%\" \"5 %% off\""),
            ("a --file=%f", "a --file=%f"),
            ("a 5%%%f", "a 5%%%f"),
            ("a %i %c %k %F", "a %i %c %k %F"),
            ("a %d %D %n %N %v %m --x=%d b", "a --x= b"),
            ("a {b} [c] ä!", "a \"{b}\" \"[c]\" \"ä!\""),
        ] {
            assert_eq!(again(value).as_deref(), Ok(expected), "{value}");
            assert_eq!(again(expected).as_deref(), Ok(expected), "{value}: it is read as it was written");
        }
        let exec = Exec::parse("editor %U").unwrap();
        let command = ["/opt/a b/karapace".to_owned(), "--store".to_owned(), "/s$x%\\`\"".to_owned()];
        let line = exec.behind(&command).unwrap();
        assert_eq!(line, r#""/opt/a b/karapace" --store "/s\\$x%%\\\\\\`\\"" editor %U"#);
        let words = Exec::parse(&unescaped(&line, false).unwrap()).unwrap();
        assert_eq!(words.words(), [&command[0], &command[1], &command[2], "editor"]);
        assert_eq!(words.with_word(1, "x y").behind(&[]).unwrap().split(' ').nth(2), Some("\"x"));
        assert!(exec.behind(&["a\nb".to_owned()]).is_err());
    }

    #[test]
    fn what_the_specification_does_not_allow_is_refused() {
        for (value, reason) in [
            ("", "does not name a program"),
            ("\"\" x", "does not name a program"),
            ("%f x", "in place of the program"),
            ("foo; touch /tmp/x", "; must be in quotes"),
            ("a|b", "| must be in quotes"),
            ("a & b", "& must be in quotes"),
            ("a $(touch x)", "$ must be"),
            ("a `b`", "` must be in quotes"),
            ("a > b", "> must be in quotes"),
            ("a ~/b", "~ must be in quotes"),
            ("a *", "* must be in quotes"),
            ("a #b", "# must be in quotes"),
            ("sh -c 'x'", "' must be in quotes"),
            ("a\\ b", "\\ must be in quotes"),
            ("a b\"c d\"", "\" must be in quotes"),
            ("a \"b\"c", "a whole argument"),
            ("a \"b", "not closed"),
            ("a \"b\\\"", "not closed"),
            ("a \"$(touch x)\"", "$ in quotes needs"),
            ("a \"`x`\"", "` in quotes needs"),
            ("a \"\\x\"", "a backslash is allowed only before"),
            ("a \"%f\"", "a field code must not be in quotes"),
            ("a \"50%\"", "a field code must not be in quotes"),
            ("a %x", "%x is not a field code"),
            ("a %", "ends in %"),
            ("a --f=%F", "%F must be an argument of its own"),
            ("a %i%i", "%i must be an argument"),
            ("a %f %u", "more than one of"),
            ("a {%f}", "cannot be quoted"),
            ("a \"b\nc\"", "control character \\n"),
            ("a\tb", "control character \\t"),
            ("a\u{9b}b", "control character"),
        ] {
            let refused = again(value).unwrap_err();
            assert!(refused.contains(reason), "{value:?}: {refused}");
        }
    }
}
