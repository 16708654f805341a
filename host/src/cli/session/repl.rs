//! `firn repl`: a prompt for a session.

use super::completeness::wants_more;
use super::{Placement, SessionError, at_a_terminal, history};
use crate::api::client::Client;
use crate::api::types::{EvaluateRequest, SessionInfo, SessionRequest};
use crate::cli::ask;
use crate::cli::exit::Failed;
use crate::cli::output::{Output, printable};
use crate::cli::run::keys::Keys;
use crate::cli::run::session::{self, Terms};
use crate::config::Config;
use crate::env::Interpreter;
use firn_protocol::{Stdin, Text};
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Completer, Config as Settings, Editor, Helper, Highlighter, Hinter};
use std::ffi::OsString;

/// How many lines are remembered.
const REMEMBERED: usize = 10_000;

/// Type code to an interpreter in a sandbox
///
/// Code that is not finished asks for more lines, which an empty one ends. Ctrl-C interrupts what runs and
/// keeps what the interpreter knows; Ctrl-D leaves. A session that was named stays, and is found by the same
/// name for as long as it lives.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    firn repl                                      Python, in a microVM\n  \
    firn repl --env shell -i jail -w .             a shell in a jail, with this folder at /workspace\n  \
    firn repl --env .#data                         the programs and the language that this flake names\n  \
    firn repl --session work                       the session that is called work, or a new one of that name")]
pub(in crate::cli) struct Repl {
    /// The session [default: a new one, which is closed at the end].
    #[arg(short, long, value_name = "NAME")]
    session: Option<String>,

    #[command(flatten)]
    placement: Placement,
}

/// What the line editor asks: whether the code is finished.
#[derive(Completer, Helper, Highlighter, Hinter)]
struct Language(Interpreter);

impl Validator for Language {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match wants_more(self.0, context.input()) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Repl {
    pub(in crate::cli) fn run(&self, config: Config, output: &mut Output) -> Result<u8, Failed> {
        if !at_a_terminal() {
            return Err(SessionError::NoTerminal.into());
        }
        let mut placement = self.placement.clone();
        let asked = placement.environment.is_some();
        let _ = placement.environment.get_or_insert_with(|| OsString::from("python"));
        let known = match &self.session {
            Some(name) if !asked => ask(config.clone(), async |client| Ok(client.session(name).await.ok()))?,
            _ => None,
        };
        // What is there is not built first.
        let sandbox = match known {
            Some(_) => None,
            None => placement.request(&config, output)?,
        };
        let request = SessionRequest { name: self.session.clone(), sandbox, ..SessionRequest::default() };
        let ours = config.clone();
        ask(config, async |client| {
            let (session, made) = match known {
                Some(session) => (session, false),
                None => {
                    let made = client.create_session(&request, &mut |phase| output.doing(phase)).await;
                    output.clear();
                    (made?, self.session.is_none())
                }
            };
            let talked = converse(client, &ours, &session, output).await;
            if made {
                client.close_session(&session.name).await?;
            }
            talked.map(|()| 0)
        })
    }
}

/// Reads, runs and prints until the end.
async fn converse(
    client: &Client,
    config: &Config,
    session: &SessionInfo,
    output: &mut Output,
) -> Result<(), Failed> {
    let SessionInfo { name, environment, language, isolation, .. } = session;
    let environment = printable(environment);
    output.note(&format!("{environment} in a {}: Ctrl-C interrupts, Ctrl-D leaves", isolation.name()));
    let interpreter = Interpreter::of(language).unwrap_or(Interpreter::Python);
    let failed = |error| Failed::from(SessionError::Line(error));
    let settings = Settings::builder()
        .auto_add_history(true)
        .max_history_size(REMEMBERED)
        .map_err(failed)?
        .bracketed_paste(true)
        .build();
    let mut editor: Editor<Language, DefaultHistory> = Editor::with_config(settings).map_err(failed)?;
    editor.set_helper(Some(Language(interpreter)));
    let history = history(config, interpreter);
    // There may be none yet.
    let _ = editor.load_history(&history);
    let prompt = format!("{environment}> ");
    let talked = loop {
        let code = match editor.readline(&prompt) {
            Ok(code) => code,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break Ok(()),
            Err(error) => break Err(failed(error)),
        };
        if code.trim().is_empty() {
            continue;
        }
        if let Err(error) = evaluate(client, name, code, output).await {
            break Err(error);
        }
    };
    // What was typed before is a comfort, and no reason to fail.
    let _ = editor.save_history(&history);
    talked
}

async fn evaluate(client: &Client, session: &str, code: String, output: &mut Output) -> Result<(), Failed> {
    let request = EvaluateRequest {
        session: Some(session.to_owned()),
        sandbox: None,
        code: Text::from(code),
        stdin: Stdin::Null,
        timeout_ms: None,
        grace_ms: None,
        max_output_bytes: None,
    };
    let terms = Terms {
        name: None,
        tty: false,
        own_sandbox: false,
        code: true,
        keys: Keys::Ignored,
        timeout: None,
        output: None,
        verbose: false,
    };
    session::conduct(client.evaluate(&request), &terms, output, &mut None).await.map(drop)
}
