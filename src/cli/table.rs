//! Tables on stdout: each column is as wide as its widest cell, with two spaces in between.

use std::io;

use anstyle::{AnsiColor, Style};
use karapace_store::text;
use unicode_width::UnicodeWidthStr;

use super::writer::{self, Line};

/// Prints an aligned table on stdout. A header that starts with `>` marks a column of numbers, which are
/// aligned to the right.
///
/// # Errors
/// An error of writing to stdout.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    writer::print(render(header, rows, writer::stdout_is_coloured()))
}

fn render(header: &[&str], rows: &[Vec<String>], coloured: bool) -> Vec<Line> {
    let titles: Vec<String> = header.iter().map(|title| title.trim_start_matches('>').to_owned()).collect();
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| shown(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width());
        cells.chain([titles[column].width()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &[String], is_title: bool| {
        let mut line = Line::default();
        for (column, cell) in cells.iter().enumerate().take(widths.len()) {
            let pad = " ".repeat(widths[column] - cell.width());
            let style = match (coloured, is_title) {
                (false, _) => Style::new(),
                (true, true) => Style::new().bold(),
                (true, false) => style_of(&titles[column], cell),
            };
            let (before, after) =
                if header[column].starts_with('>') { (pad, String::new()) } else { (String::new(), pad) };
            line = line.text(&before).styled(style, cell).text(&after).text("  ");
        }
        line.trimmed()
    };
    let below = rows.iter().map(|row| line(row, false));
    std::iter::once(line(&titles, true)).chain(below).collect()
}

/// The cell as it will be printed, so that its width can be measured. Tabs are escaped, because they would
/// move what follows.
fn shown(cell: &str) -> String {
    text::line(cell).replace('\t', "\\t")
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

    fn drawn(header: &[&str], lines: &[Vec<String>], coloured: bool) -> String {
        render(header, lines, coloured).iter().map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn columns_align() {
        let lines = rows(&[&["dev", "Built"], &["x", "Running"]]);
        assert_eq!(drawn(&["NAME", "STATE"], &lines, false), "NAME  STATE\ndev   Built\nx     Running\n");
        assert_eq!(drawn(&["NAME", "STATE"], &[], false), "NAME  STATE\n");
    }

    #[test]
    fn numbers_end_on_one_line_and_wide_characters_count_twice() {
        let lines = rows(&[&["日本", "7"], &["a", "1000"]]);
        assert_eq!(drawn(&["NAME", ">SIZE"], &lines, false), "NAME  SIZE\n日本     7\na     1000\n");
        assert_eq!(drawn(&["NAME"], &rows(&[&["a\x1b[2J\nb"]]), false), "NAME\na\\033[2J\\nb\n");
    }

    #[test]
    fn colours_do_not_move_anything() {
        let lines = rows(&[&["Running", "x"], &["Built", "y"]]);
        let text = drawn(&["STATE", "NAME"], &lines, true);
        assert!(text.contains("\x1b[32mRunning\x1b[0m  x"), "{text:?}");
        assert!(text.contains("Built    y"), "{text:?}");
    }
}
