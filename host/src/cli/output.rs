//! All printing. Results go to stdout, everything about how they come to be to stderr.
#![allow(clippy::print_stderr, reason = "the one place that prints")]

use super::exit::Failed;
use crate::causes::in_full;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

/// A spinner appears when something takes longer than this.
const SPINNER_AFTER: Duration = Duration::from_secs(1);

/// Where a command prints.
#[derive(Debug)]
pub(super) struct Output {
    spinner: Option<ProgressBar>,
    terminal: bool,
}

impl Output {
    /// The process's own stdout and stderr.
    pub(super) fn standard() -> Output {
        Output { spinner: None, terminal: io::stderr().is_terminal() }
    }

    /// Writes to stdout.
    pub(super) fn stdout(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Failed::Stdout)
    }

    /// A line for people, on stderr.
    pub(super) fn note(&mut self, line: &str) {
        self.clear();
        eprintln!("firn: {}", printable(line));
    }

    /// What is under way. Shown on a terminal, once it takes long.
    pub(super) fn doing(&mut self, what: &str) {
        if !self.terminal {
            return;
        }
        let spinner = self.spinner.get_or_insert_with(|| {
            let spinner = ProgressBar::new_spinner();
            spinner.set_style(
                ProgressStyle::with_template("{spinner} {msg} ({elapsed})")
                    .unwrap_or_else(|_invalid| ProgressStyle::default_spinner()),
            );
            spinner.set_draw_target(indicatif::ProgressDrawTarget::hidden());
            let shown = spinner.clone();
            // A thread, because what takes long may also keep the runtime busy.
            std::thread::spawn(move || {
                std::thread::sleep(SPINNER_AFTER);
                if !shown.is_finished() {
                    shown.set_draw_target(indicatif::ProgressDrawTarget::stderr());
                    shown.enable_steady_tick(Duration::from_millis(100));
                }
            });
            spinner
        });
        spinner.set_message(what.to_owned());
    }

    /// Takes the spinner away: something else is about to be printed.
    pub(super) fn clear(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }

    /// An error, its causes, and what to do.
    pub(super) fn failure(&mut self, failed: &Failed) {
        self.clear();
        crate::sys::terminal::restore();
        eprintln!("firn: error: {}", printable(&in_full(failed)));
        if let Some(hint) = failed.hint() {
            eprintln!("firn: {hint}");
        }
    }
}

/// Text that may come from a guest, without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().filter(|character| matches!(character, '\n' | '\t') || !character.is_control()).collect()
}
