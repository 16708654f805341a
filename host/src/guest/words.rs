//! What a guest says, made fit for people.
//!
//! A guest's words are of any length and hold any character. Before they become part of an error
//! they are cut to one short line, without what a terminal obeys or reorders.

/// The longest message of a guest that is passed on, in characters: a path of the longest kind
/// does not fit, the end of an error that names one may be lost.
const LONGEST: usize = 1000;

/// `said`, as one line of at most [`LONGEST`] characters.
pub(super) fn one_line(said: &str) -> String {
    let mut shown = said.trim().chars().filter_map(|character| match character {
        '\n' | '\t' => Some(' '),
        character if character.is_control() || reorders(character) => None,
        character => Some(character),
    });
    let mut line: String = shown.by_ref().take(LONGEST).collect();
    if shown.next().is_some() {
        line.push('…');
    }
    line
}

/// Whether a character has no shape of its own but moves or hides others: line separators, marks
/// of direction, joiners (Unicode, section 23.2 and UAX 9).
fn reorders(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_that_a_terminal_obeys() {
        assert_eq!(one_line("\x1b]0;owned\x07red\u{9b}31m\r\n"), "]0;ownedred31m");
        assert_eq!(one_line("\x1b[2Jfirn: error:\nnothing\u{202e}gnihton"), "[2Jfirn: error: nothinggnihton");
        assert_eq!(one_line("no such file: /häm"), "no such file: /häm");
    }

    #[test]
    fn long_words_are_cut() {
        let line = one_line(&"ä".repeat(4 << 20));
        assert_eq!(line.chars().count(), LONGEST + 1);
        assert!(line.ends_with('…'));
    }
}
