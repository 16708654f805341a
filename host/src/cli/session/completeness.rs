//! Whether lines that were typed are a whole piece of code, or wait for more.
//!
//! It is a guess: brackets and quotes are counted, and what opens a block waits for its end. Whoever is asked
//! for more although all is there gives an empty line.

use crate::env::Interpreter;

/// Whether more lines have to follow.
pub(super) fn wants_more(interpreter: Interpreter, text: &str) -> bool {
    // An empty line ends whatever was begun.
    if text.ends_with("\n") {
        return false;
    }
    let last = text.lines().last().unwrap_or_default().trim_end();
    if last.ends_with('\\') {
        return true;
    }
    match interpreter {
        Interpreter::Python => is_open(text, '#', &["\"\"\"", "'''"]) || text.lines().any(opens_block),
        Interpreter::Node => is_open(text, '/', &["`"]),
        Interpreter::Bash => opened_by_words(text) > 0 || is_open(text, '#', &["\"", "'"]),
    }
}

/// A line of Python that wants an indented one. A block ends with an empty line.
fn opens_block(line: &str) -> bool {
    let line = line.split('#').next().unwrap_or_default().trim_end();
    line.ends_with(':') || line.trim_start().starts_with('@')
}

/// Whether a bracket or one of these quotes is open at the end. Text between other quotes, and after
/// `comment`, counts for nothing.
fn is_open(text: &str, comment: char, long: &[&str]) -> bool {
    let mut depth = 0_i32;
    let mut quoted: Option<String> = None;
    for line in text.lines() {
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            let width = first.len_utf8();
            match &quoted {
                Some(_) if first == '\\' => {
                    let skipped = rest[width..].chars().next().map_or(0, char::len_utf8);
                    rest = &rest[width + skipped..];
                    continue;
                }
                Some(quote) if rest.starts_with(quote.as_str()) => {
                    rest = &rest[quote.len()..];
                    quoted = None;
                    continue;
                }
                Some(_) => {}
                None => {
                    if let Some(quote) = long.iter().find(|quote| rest.starts_with(**quote)) {
                        quoted = Some((*quote).to_owned());
                        rest = &rest[quote.len()..];
                        continue;
                    }
                    match first {
                        '(' | '[' | '{' => depth += 1,
                        ')' | ']' | '}' => depth -= 1,
                        '"' | '\'' => quoted = Some(first.to_string()),
                        _ if first == comment && (comment != '/' || rest.starts_with("//")) => break,
                        _ => {}
                    }
                }
            }
            rest = &rest[width..];
        }
        // A plain quote ends with its line.
        if quoted.as_deref().is_some_and(|quote| !long.contains(&quote)) {
            quoted = None;
        }
    }
    depth > 0 || quoted.is_some()
}

/// How many of the shell's blocks are open.
fn opened_by_words(text: &str) -> i32 {
    let separators = |character: char| character.is_whitespace() || character == ';';
    text.lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().split(separators))
        .map(|word| match word {
            "if" | "do" | "case" => 1,
            "fi" | "done" | "esac" => -1,
            _ => 0,
        })
        .sum::<i32>()
        + i32::from(ends_with_head(text))
}

/// Whether a loop was begun whose `do` is still to come.
fn ends_with_head(text: &str) -> bool {
    let words: Vec<&str> = text.split_whitespace().collect();
    let heads = words.iter().filter(|word| matches!(**word, "for" | "while" | "until")).count();
    heads > words.iter().filter(|word| word.trim_end_matches(';') == "do").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_code_are_told_from_beginnings() {
        for (interpreter, whole) in [
            (Interpreter::Python, "x = 41"),
            (Interpreter::Python, "print('(')"),
            (Interpreter::Python, "f(1,\n  2)"),
            (Interpreter::Python, "for x in y:\n    print(x)\n"),
            (Interpreter::Python, "# (:"),
            (Interpreter::Python, "'''a\nb'''"),
            (Interpreter::Node, "[1, 2].map(x => { return x })"),
            (Interpreter::Node, "// {"),
            (Interpreter::Node, "'it\\'s'"),
            (Interpreter::Bash, "if true; then echo; fi"),
            (Interpreter::Bash, "for x in 1 2; do echo $x; done"),
            (Interpreter::Bash, "echo \"a b\""),
        ] {
            assert!(!wants_more(interpreter, whole), "{whole:?}");
        }
        for (interpreter, begun) in [
            (Interpreter::Python, "for x in y:"),
            (Interpreter::Python, "for x in y:\n    print(x)"),
            (Interpreter::Python, "f(1,"),
            (Interpreter::Python, "'''a"),
            (Interpreter::Python, "x = 1 + \\"),
            (Interpreter::Node, "function f() {"),
            (Interpreter::Node, "`a"),
            (Interpreter::Bash, "if true; then"),
            (Interpreter::Bash, "for x in 1 2"),
            (Interpreter::Bash, "while true; do"),
            (Interpreter::Bash, "echo 'a"),
        ] {
            assert!(wants_more(interpreter, begun), "{begun:?}");
        }
    }
}
