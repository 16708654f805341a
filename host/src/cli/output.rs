//! All printing. Results go to stdout, everything about how they come to be to stderr.
#![allow(clippy::print_stderr, reason = "the one place that prints")]

use super::exit::Failed;
use crate::causes::in_full;
use crate::env::resolver::Told;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
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

    /// A line of a verb's own on stderr, which is its whole answer.
    pub(super) fn say(&mut self, line: &str) {
        self.clear();
        eprintln!("{}", printable(line));
    }

    /// Writes a value to stdout, as JSON for people to read too.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), Failed> {
        let mut bytes = serde_json::to_vec_pretty(value).map_err(|error| Failed::Stdout(error.into()))?;
        bytes.push(b'\n');
        self.stdout(&bytes)
    }

    /// Writes a value to stdout, as one line of JSON.
    pub(super) fn json_line(&mut self, value: &impl Serialize) -> Result<(), Failed> {
        let mut bytes = serde_json::to_vec(value).map_err(|error| Failed::Stdout(error.into()))?;
        bytes.push(b'\n');
        self.stdout(&bytes)
    }

    /// Shows `text` on stdout's terminal instead of what it shows.
    pub(super) fn redraw(&mut self, text: &str) -> Result<(), Failed> {
        // To the upper left; each line to its end; what is below (ECMA-48: CUP, EL, ED).
        let lines = text.replace('\n', "\x1b[K\n");
        self.stdout(format!("\x1b[H{lines}\x1b[J").as_bytes())
    }

    /// Does something with each of `ids`, and goes on when it fails with one. The exit code.
    pub(super) async fn each(
        &mut self,
        ids: &[String],
        mut work: impl AsyncFnMut(&str, &mut Output) -> Result<(), Failed>,
    ) -> Result<u8, Failed> {
        let mut code = 0;
        for id in ids {
            if let Err(failed) = work(id, self).await {
                self.failure(&failed);
                code = failed.plain_code();
            }
        }
        Ok(code)
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

    /// What is told while an environment is looked for. What is evaluated on the host is said in any case.
    pub(super) fn told(&mut self, told: &Told<'_>) {
        match told {
            Told::Evaluates(flake) => self.note(&format!("evaluating {flake} on this host, with Nix")),
            Told::Line(line) => self.doing(&printable(line)),
            Told::Skipped(what) => self.note(what),
        }
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
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|character| matches!(character, '\n' | '\t') || !character.is_control()).collect()
}
