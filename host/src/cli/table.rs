//! Tables, boxes and single lines, for people.
//!
//! Whatever is put into them may come from a sandbox: a cell is always one line, of characters that a
//! terminal shows and does not obey.

use std::fmt::Write as _;

/// The longest value in a box, in characters.
const WIDEST: usize = 84;

/// The narrowest box is nixo's.
const NARROWEST: usize = 33;

/// The width of the names in a box.
const NAMES: usize = 13;

/// A table: a head, and rows with as many cells. Written with a space between the columns, and nothing
/// after the last.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    least: Vec<usize>,
}

impl Table {
    /// With these columns: their names, and how wide they are at least.
    pub(super) fn new(columns: &[(&str, usize)]) -> Table {
        Table {
            rows: vec![columns.iter().map(|(name, _)| (*name).to_owned()).collect()],
            least: columns.iter().map(|(_, least)| *least).collect(),
        }
    }

    /// Adds a row.
    pub(super) fn row<const N: usize>(&mut self, cells: [&str; N]) {
        self.rows.push(cells.into_iter().map(line).collect());
    }

    /// As text.
    pub(super) fn render(&self) -> String {
        let mut widths = self.least.clone();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            text.push_str(cells.join(" ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// A box with a title, and groups of names and values below it.
pub(super) fn card(title: &str, groups: &[Vec<(&str, String)>]) -> String {
    let rows: Vec<Vec<(&str, String)>> = groups
        .iter()
        .map(|rows| rows.iter().map(|(name, value)| (*name, shortened(&line(value), WIDEST))).collect())
        .collect();
    let longest = rows.iter().flatten().map(|(_, value)| value.chars().count()).max().unwrap_or_default();
    let values = longest.max(NARROWEST);
    let rule = "─".repeat(NAMES + values + 2);
    let mut text = format!("╭{rule}╮\n");
    // Writing into a string cannot fail.
    let _ = writeln!(text, "│ {:<width$} │", line(title), width = NAMES + values);
    for group in rows {
        let _ = writeln!(text, "├{rule}┤");
        for (name, value) in group {
            let _ = writeln!(text, "│ {name:<NAMES$}{value:<values$} │");
        }
    }
    let _ = writeln!(text, "╰{rule}╯");
    text
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(most - 1).collect();
    short.push('…');
    short
}

/// Text as one line without anything that a terminal would obey: such characters are written as
/// escapes.
pub(super) fn line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() || reorders(character) {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Whether it changes the order in which other characters are shown, or shows nothing at all (Unicode
/// 16, "Bidirectional Character Types", and the format characters used like them).
fn reorders(character: char) -> bool {
    matches!(character,
        '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let mut table = Table::new(&[("ID", 4), ("NAME", 0), ("LAST", 0)]);
        table.row(["1", "longer", "x"]);
        table.row(["12345", "", "yy"]);
        assert_eq!(table.render(), "ID    NAME   LAST\n1     longer x\n12345        yy\n");
    }

    #[test]
    fn a_cell_cannot_steer_the_terminal_or_forge_a_row() {
        let mut table = Table::new(&[("NAME", 0)]);
        table.row(["\x1b]0;title\x07\nforged\tä\u{202e}"]);
        assert_eq!(table.render(), "NAME\n\\u{1b}]0;title\\u{7}\\nforged\\tä\\u{202e}\n");
    }

    #[test]
    fn a_box_holds_what_is_in_it() {
        let long = "x".repeat(200);
        let text = card("Session: 1", &[vec![("Name:", "a\nb".to_owned()), ("Words:", long)], vec![]]);
        let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
        assert!(text.contains(r"a\nb"), "{text}");
        assert!(text.contains("xxx… │"), "{text}");
    }
}
