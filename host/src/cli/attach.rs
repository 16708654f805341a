//! `firn attach`: what a detached command has written, and its streams from there on.

use super::ask;
use super::exit::Failed;
use super::output::Output;
use super::run::keys::Keys;
use super::run::session::{self, Terms};
use crate::api::types::AttachRequest;
use crate::config::Config;
use std::io::IsTerminal as _;

/// Attach to a detached command: its output so far, then as it comes.
///
/// What is typed goes to the command. Ctrl-P Ctrl-Q leaves it alone. When it ends its exit code is
/// firn's, as with `firn run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    firn attach 3f2a                          to the command that was detached last\n  \
    firn attach --command 2 web               to another one\n  \
    firn attach -t web                        to one that has a terminal")]
pub(super) struct Attach {
    /// Which detached command, by its number [default: the last one].
    #[arg(long, value_name = "N")]
    command: Option<u64>,

    /// The command has a terminal: pass on each key.
    #[arg(short, long)]
    tty: bool,

    /// The sandbox: its name, its id, or the start of its id.
    #[arg(value_name = "SANDBOX")]
    id: String,
}

impl Attach {
    pub(super) fn run(&self, config: Config, output: &mut Output) -> Result<u8, Failed> {
        let request = AttachRequest { command: self.command, from: None };
        let terms = Terms {
            name: None,
            tty: self.tty,
            own_sandbox: false,
            // In a file or a pipe they would be bytes as any other.
            code: false,
            keys: if std::io::stdin().is_terminal() { Keys::Awaited } else { Keys::Ignored },
            timeout: None,
            output: None,
            verbose: false,
        };
        let concluded = ask(config, async |client| {
            session::conduct(client.attach(&self.id, &request), &terms, output, &mut None).await
        })?;
        Ok(concluded.code)
    }
}
