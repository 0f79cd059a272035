//! Tables on stdout: columns as wide as their widest cell, two blanks between.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use unicode_width::UnicodeWidthStr;

use super::ui;

/// An aligned table on stdout. A header that begins with `>` is of a column of numbers, which end on one line.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(render(header, rows, ui::coloured()).as_bytes())?;
    out.flush()
}

fn render(header: &[&str], rows: &[Vec<String>], coloured: bool) -> String {
    let titles: Vec<&str> = header.iter().map(|title| title.trim_start_matches('>')).collect();
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width());
        cells.chain([titles[column].width()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    let mut push = |cells: &mut dyn Iterator<Item = &str>, is_title: bool| {
        let mut line = String::new();
        for (column, cell) in cells.enumerate().take(widths.len()) {
            let pad = " ".repeat(widths[column] - cell.width());
            let style = match (coloured, is_title) {
                (false, _) => Style::new(),
                (true, true) => Style::new().bold(),
                (true, false) => style_of(titles[column], cell),
            };
            let cell = format!("{style}{cell}{style:#}");
            let (before, after) =
                if header[column].starts_with('>') { (pad, String::new()) } else { (String::new(), pad) };
            line.extend([&before, &cell, &after, "  "]);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    push(&mut titles.iter().copied(), true);
    for row in &rows {
        push(&mut row.iter().map(String::as_str), false);
    }
    text
}

/// What a name or a path of any characters does to a terminal: nothing.
fn printable(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn style_of(title: &str, cell: &str) -> Style {
    let colour = match (title, cell) {
        ("STATE", "Running") | ("CHECK", "ok") => AnsiColor::Green,
        ("STATE", "Frozen") => AnsiColor::Cyan,
        ("STATE", "Archived") => AnsiColor::BrightBlack,
        _ => return Style::new(),
    };
    colour.on_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect()
    }

    #[test]
    fn columns_align() {
        let lines = rows(&[&["dev", "Built"], &["x", "Running"]]);
        assert_eq!(render(&["NAME", "STATE"], &lines, false), "NAME  STATE\ndev   Built\nx     Running\n");
        assert_eq!(render(&["NAME", "STATE"], &[], false), "NAME  STATE\n");
    }

    #[test]
    fn numbers_end_on_one_line_and_wide_characters_count_twice() {
        let lines = rows(&[&["日本", "7"], &["a", "1000"]]);
        assert_eq!(render(&["NAME", ">SIZE"], &lines, false), "NAME  SIZE\n日本     7\na     1000\n");
        assert_eq!(render(&["NAME"], &rows(&[&["a\x1b[2J\nb"]]), false), "NAME\na?[2J?b\n");
    }

    #[test]
    fn colours_do_not_move_anything() {
        let lines = rows(&[&["Running", "x"], &["Built", "y"]]);
        let text = render(&["STATE", "NAME"], &lines, true);
        assert!(text.contains("\x1b[32mRunning\x1b[0m  x"), "{text:?}");
        assert!(text.contains("Built    y"), "{text:?}");
    }
}
