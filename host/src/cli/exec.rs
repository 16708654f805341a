//! `firn exec` and `firn enter`: a command in a sandbox that is there.

use super::ask;
use super::duration;
use super::exit::Failed;
use super::output::Output;
use super::run::events::Events;
use super::run::keys::Keys;
use super::run::session::{self, Terms};
use super::run::{at_least_a_millisecond, stdin, terminal_size, variables};
use crate::api::types::ExecRequest;
use crate::config::Config;
use crate::spec::Size;
use firn_protocol::Text;
use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::time::Duration;

/// The best shell there is: one of these is in every sandbox.
const SHELL: &str = "if [ -x /bin/bash ]; then exec /bin/bash; fi; exec /bin/sh";

/// Run a command in a sandbox.
///
/// Its exit code is firn's, as with `firn run`. The sandbox goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    firn exec web -- ps aux                   in the sandbox that is called web\n  \
    firn exec -t 3f2a -- bash                 a shell on a terminal; see also `firn enter`\n  \
    firn exec -e DEBUG=1 --timeout 10m web -- make test\n  \
    firn exec --detach web -- ./server        goes on by itself: `firn logs`, `firn attach`\n  \
    firn exec --json web -- make              events, one JSON object a line")]
pub(super) struct Exec {
    /// Print events as JSON, one a line: lifecycle, stdout, stderr, result.
    #[arg(long, conflicts_with = "tty")]
    json: bool,

    /// Kill the command after this time: 30s, 10m, 1h30m; a bare number is seconds.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_some)]
    timeout: Option<Duration>,

    /// Pass on at most this much of stdout and stderr together, and drop the rest.
    #[arg(long, value_name = "SIZE")]
    max_output: Option<Size>,

    /// Set a variable, or pass one of yours on.
    #[arg(short = 'e', long = "env", value_name = "K[=V]")]
    variables: Vec<OsString>,

    /// Give the command a terminal.
    #[arg(short, long)]
    tty: bool,

    /// Who runs it, in the sandbox: root, sandbox, UID or UID:GID [default: as the sandbox was made].
    #[arg(long, value_name = "USER")]
    user: Option<String>,

    /// Where the command starts [default: /workspace].
    #[arg(long, value_name = "DIR")]
    cwd: Option<OsString>,

    /// Print the command's number and leave: it goes on, and its output is kept.
    #[arg(short, long, conflicts_with = "json")]
    detach: bool,

    /// Say on stderr how long it takes.
    #[arg(short, long)]
    verbose: bool,

    /// The sandbox: its name, its id, or the start of its id.
    #[arg(value_name = "SANDBOX")]
    id: String,

    /// The command and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Open a shell in a sandbox.
#[derive(Debug, clap::Args)]
pub(super) struct Enter {
    /// Who runs it, in the sandbox: root, sandbox, UID or UID:GID [default: as the sandbox was made].
    #[arg(long, value_name = "USER")]
    user: Option<String>,

    /// The sandbox: its name, its id, or the start of its id.
    #[arg(value_name = "SANDBOX")]
    id: String,
}

impl Exec {
    pub(super) fn run(&self, config: Config, output: &mut Output) -> Result<u8, Failed> {
        session::report(self.json, output, |output, events| self.conduct(config, output, events))
    }

    fn conduct(
        &self,
        config: Config,
        output: &mut Output,
        events: &mut Option<Events>,
    ) -> Result<u8, Failed> {
        if self.command.is_empty() {
            return Err(Failed::NoCommand);
        }
        let request = ExecRequest {
            argv: self.command.iter().cloned().map(Text::from).collect(),
            cwd: self.cwd.clone().map(Text::from),
            env: variables(&self.variables, self.tty, &config),
            user: self.user.clone(),
            terminal: self.tty.then(terminal_size),
            stdin: stdin(self.tty, self.detach),
            timeout_ms: self.timeout.map(at_least_a_millisecond),
            max_output_bytes: self.max_output.map(|size| size.0),
            detach: self.detach,
        };
        let terms = Terms {
            name: self.command.first().map(OsString::as_os_str),
            tty: self.tty,
            own_sandbox: false,
            code: false,
            keys: Keys::Ignored,
            timeout: self.timeout,
            output: self.max_output,
            verbose: self.verbose,
        };
        let concluded = ask(config, async |client| {
            session::conduct(client.exec(&self.id, &request), &terms, output, events).await
        })?;
        if let Some(command) = concluded.detached {
            output.stdout(format!("{command}\n").as_bytes())?;
        }
        Ok(concluded.code)
    }
}

impl Enter {
    pub(super) fn run(&self, config: Config, output: &mut Output) -> Result<u8, Failed> {
        // From a pipe it runs what comes, as a shell does.
        let tty = std::io::stdin().is_terminal();
        let request = ExecRequest {
            argv: ["/bin/sh", "-c", SHELL].map(Text::from).to_vec(),
            cwd: None,
            env: variables(&[], tty, &config),
            user: self.user.clone(),
            terminal: tty.then(terminal_size),
            stdin: stdin(tty, false),
            timeout_ms: None,
            max_output_bytes: None,
            detach: false,
        };
        let terms = Terms {
            name: None,
            tty,
            own_sandbox: false,
            code: false,
            keys: Keys::Ignored,
            timeout: None,
            output: None,
            verbose: false,
        };
        let concluded = ask(config, async |client| {
            session::conduct(client.exec(&self.id, &request), &terms, output, &mut None).await
        })?;
        Ok(concluded.code)
    }
}
