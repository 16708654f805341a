//! `firn session`: interpreters that live on between runs of code.

use super::ask;
use super::create::source::Source;
use super::create::{self, CreateError};
use super::duration;
use super::exit::Failed;
use super::list::state;
use super::output::Output;
use super::run::at_least_a_millisecond;
use super::run::events::Events;
use super::run::keys::Keys;
use super::run::session::{self, Terms};
use super::table::Table;
use crate::api::client::Client;
use crate::api::types::{
    CreateRequest, EvaluateRequest, InterruptRequest, SessionInfo, SessionRequest, Workspace,
};
use crate::config::Config;
use crate::env::{HOST, Interpreter, Store};
use crate::spec::Grade;
use crate::spec::Size;
use crate::spec::protection::milliseconds;
use crate::view::parse_workspace;
use firn_protocol::{Stdin, Text};
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Read as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::time::Duration;

/// Run code in interpreters that live on
///
/// A session keeps what its code leaves behind: variables, functions, the working directory. It lives in
/// a sandbox of its own, which ends with it, or in one that is there already.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    firn session run --env python --session work 'x = 41'\n  \
    firn session run --session work 'x + 1'        prints 42\n  \
    firn session list                              those there are\n  \
    firn session close work                        gone, with its sandbox")]
pub(super) struct Sessions {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Run(Box<Run>),
    Create(Box<Create>),
    List(List),
    Inspect(Inspect),
    Interrupt(Interrupt),
    Close(Close),
}

/// The sandbox that a session is made in.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Placement {
    /// What its programs and its language come from, if the session is not there yet: python, shell or node, a
    /// folder, a flake's output, or a name that `firn env list` knows.
    #[arg(long = "env", value_name = "ENV")]
    pub(super) environment: Option<OsString>,

    /// How much of the Nix store an environment from Nix shows, read-only: its closure, or all that this host
    /// has [default: closure].
    #[arg(long, value_name = "closure|host")]
    store: Option<Store>,

    /// How it is isolated: a jail has the host's kernel and takes milliseconds, a vm has its own
    /// [default: vm].
    #[arg(short, long, value_name = "GRADE")]
    pub(super) isolation: Option<Grade>,

    /// Show this folder at /workspace, writable unless it ends in :ro.
    #[arg(short, long, value_name = "PATH[:ro|:rw]")]
    workspace: Option<String>,

    /// Memory: a number with K, M or G [default: 1G].
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,

    /// Close it when nothing was asked of it for so long [default: 5m, or SESSION_IDLE_TIMEOUT seconds].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_some)]
    idle_timeout: Option<Duration>,

    /// Close it when it is so old [default: 1h, or SESSION_MAX_LIFETIME seconds].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_some)]
    lifetime: Option<Duration>,

    /// Make do with less where this host cannot give what is asked for.
    #[arg(long)]
    allow_degraded: bool,
}

/// Run code in a session, or in a sandbox of its own
///
/// The value of a last expression is printed. The exit code is 0 when the code ran to its end, 1 after an
/// exception, 124 after --timeout, 130 after an interrupt, and what the code itself exits with. Ctrl-C
/// interrupts the code and keeps the session.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    firn session run --env python --session work 'x = 41'\n  \
    firn session run --session work 'x + 1'        prints 42\n  \
    firn session run --env node '[1, 2].map(x => x + 1)'    in a sandbox of its own\n  \
    firn session run --session work - <cell.py     the code from stdin\n  \
    firn session run --session work --timeout 10s 'while True: pass'")]
struct Run {
    /// The session. It is made if there is none and --env is given [default: none, a sandbox of its own].
    #[arg(short, long, value_name = "NAME")]
    session: Option<String>,

    #[command(flatten)]
    placement: Placement,

    /// Interrupt the code after this time: 30s, 10m; a bare number is seconds.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_some)]
    timeout: Option<Duration>,

    /// How long it may take to end when it is interrupted, before it is killed [default: 2s].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_some)]
    grace: Option<Duration>,

    /// Pass on at most this much of its output, and drop the rest.
    #[arg(long, value_name = "SIZE")]
    max_output: Option<Size>,

    /// Pass stdin to the code. Without, whoever reads it finds its end.
    #[arg(long)]
    stdin: bool,

    /// Print events as JSON, one a line: lifecycle, stdout, stderr, result.
    #[arg(long)]
    json: bool,

    /// Say on stderr how long it takes.
    #[arg(short, long)]
    verbose: bool,

    /// The code; `-` or nothing: what comes from stdin.
    #[arg(value_name = "CODE", allow_hyphen_values = true)]
    code: Option<OsString>,
}

/// Start an interpreter that lives on, and print its name
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    firn session create --env python --name work\n  \
    firn session create --env shell -i jail -w .   with this folder at /workspace\n  \
    firn session create --env .#data --name data   with the programs that this flake names\n  \
    firn session create --env node --within web    in the sandbox that is called web")]
struct Create {
    /// Its name [default: one is made up].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    #[command(flatten)]
    placement: Placement,

    /// In this sandbox, which is there already.
    #[arg(long, value_name = "SANDBOX", conflicts_with_all = ["isolation", "store", "workspace", "memory", "idle_timeout", "lifetime"])]
    within: Option<String>,

    /// Pass on at most this much of the output of all its runs together.
    #[arg(long, value_name = "SIZE")]
    max_output: Option<Size>,

    /// Print the session as JSON.
    #[arg(long)]
    json: bool,
}

/// List sessions
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "ls",
    after_help = "Examples:\n  \
    firn session list\n  \
    firn session list --json | jq -r '.[].name'"
)]
struct List {
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

/// Tell all about a session
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn session inspect work\n  firn session inspect work --json")]
struct Inspect {
    /// Print it as JSON.
    #[arg(long)]
    json: bool,

    /// Its name.
    #[arg(value_name = "SESSION")]
    name: String,
}

/// End what a session runs, and keep the session
///
/// The code is sent SIGINT, then SIGTERM, and then its interpreter is killed. What the interpreter knows is
/// kept if the code ends in time. Exits with 1 when nothing ran.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn session interrupt work\n  firn session interrupt --grace 10s work")]
struct Interrupt {
    /// How long the code may take to end before it is terminated, and then killed [default: as it was run
    /// with, or 2s].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_some)]
    grace: Option<Duration>,

    /// The session.
    #[arg(value_name = "SESSION")]
    name: String,
}

/// End sessions, with the sandboxes that are their own
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn session close work\n  firn session close one two")]
struct Close {
    /// Their names.
    #[arg(value_name = "SESSION", required = true)]
    names: Vec<String>,
}

/// A session that cannot be asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// No language.
    #[error("name an environment, as --env python, --env shell or --env node")]
    NoEnvironment,
    /// The code cannot be read.
    #[error("cannot read the code from stdin")]
    Code(#[source] io::Error),
    /// Where the code comes from is what it is to read.
    #[error("with --stdin the code is an argument: stdin is passed to it")]
    TwoStdins,
    /// No terminal.
    #[error("firn repl is for a terminal: `firn session run` runs code from elsewhere")]
    NoTerminal,
    /// The line editor.
    #[error("cannot read a line")]
    Line(#[source] rustyline::error::ReadlineError),
}

impl Placement {
    /// The sandbox that is made, if an environment is named.
    pub(super) fn request(
        &self,
        config: &Config,
        output: &mut Output,
    ) -> Result<Option<CreateRequest>, Failed> {
        let Some(environment) = &self.environment else { return Ok(None) };
        let environment = Source::environment(environment).resolve(config, output)?.environment;
        let workspace = self.workspace.as_deref().map(|text| {
            let (path, access) = parse_workspace(text);
            Ok::<_, CreateError>(Workspace { host: create::absolute(path)?, access })
        });
        Ok(Some(CreateRequest {
            environment: environment.map(Text::from),
            isolation: self.isolation.map(Into::into),
            store: self.store.map(Into::into),
            workspace: workspace.transpose()?,
            memory_bytes: self.memory.map(|size| size.0),
            idle_timeout_ms: self.idle_timeout.or(config.session_idle_timeout).map(milliseconds),
            lifetime_ms: self.lifetime.or(config.session_lifetime).map(milliseconds),
            allow_degraded: self.allow_degraded,
            ..CreateRequest::default()
        }))
    }
}

impl Sessions {
    pub(super) fn run(&self, config: Config, output: &mut Output) -> Result<u8, Failed> {
        match &self.verb {
            Verb::Run(run) => {
                session::report(run.json, output, |output, events| run.conduct(config, output, events))
            }
            Verb::Create(create) => {
                let request = create.request(&config, output)?;
                ask(config, async |client| create.run(client, &request, output).await)
            }
            Verb::List(list) => ask(config, async |client| list.run(client, output).await),
            Verb::Inspect(inspect) => ask(config, async |client| inspect.run(client, output).await),
            Verb::Interrupt(interrupt) => ask(config, async |client| interrupt.run(client, output).await),
            Verb::Close(close) => ask(config, async |client| {
                for name in &close.names {
                    client.close_session(name).await?;
                }
                Ok(0)
            }),
        }
    }

    /// Whether it runs a command of the caller's, and so its exit code is firn's.
    pub(super) fn runs_code(&self) -> bool {
        matches!(self.verb, Verb::Run(_))
    }
}

impl Run {
    fn conduct(
        &self,
        config: Config,
        output: &mut Output,
        events: &mut Option<Events>,
    ) -> Result<u8, Failed> {
        let sandbox = self.placement.request(&config, output)?;
        if self.session.is_none() && sandbox.is_none() {
            return Err(SessionError::NoEnvironment.into());
        }
        let request = EvaluateRequest {
            session: self.session.clone(),
            sandbox,
            code: self.code()?,
            stdin: if self.stdin { Stdin::Stream } else { Stdin::Null },
            timeout_ms: self.timeout.map(at_least_a_millisecond),
            grace_ms: self.grace.map(milliseconds),
            max_output_bytes: self.max_output.map(|size| size.0),
        };
        let terms = Terms {
            name: None,
            tty: false,
            own_sandbox: self.session.is_none(),
            code: true,
            keys: Keys::Ignored,
            timeout: self.timeout,
            output: self.max_output,
            verbose: self.verbose,
        };
        let concluded = ask(config, async |client| {
            session::conduct(client.evaluate(&request), &terms, output, events).await
        })?;
        Ok(concluded.code)
    }

    fn code(&self) -> Result<Text, Failed> {
        match &self.code {
            Some(code) if code != "-" => Ok(Text::from(code.clone())),
            _ if self.stdin => Err(SessionError::TwoStdins.into()),
            _ => {
                let mut code = Vec::new();
                io::stdin().lock().read_to_end(&mut code).map_err(SessionError::Code)?;
                Ok(OsString::from_vec(code).into())
            }
        }
    }
}

impl Create {
    fn request(&self, config: &Config, output: &mut Output) -> Result<SessionRequest, Failed> {
        let request = SessionRequest {
            name: self.name.clone(),
            within: self.within.clone(),
            max_output_bytes: self.max_output.map(|size| size.0),
            ..SessionRequest::default()
        };
        if self.within.is_none() {
            let sandbox = self.placement.request(config, output)?.ok_or(SessionError::NoEnvironment)?;
            return Ok(SessionRequest { sandbox: Some(sandbox), ..request });
        }
        // A language is one in whichever sandbox, whatever else has its name here.
        let environment = match &self.placement.environment {
            Some(name) if name.to_str().and_then(Interpreter::of).is_none() => {
                Source::environment(name).resolve(config, output)?.environment.or(Some(HOST.into()))
            }
            named => named.clone(),
        };
        let environment = environment.map(|name| name.to_string_lossy().into_owned());
        Ok(SessionRequest { environment, ..request })
    }

    async fn run(
        &self,
        client: &Client,
        request: &SessionRequest,
        output: &mut Output,
    ) -> Result<u8, Failed> {
        let made = client.create_session(request, &mut |phase| output.doing(phase)).await;
        output.clear();
        let made = made?;
        if self.json {
            output.json(&made)?;
        } else {
            output.stdout(format!("{}\n", made.name).as_bytes())?;
        }
        Ok(0)
    }
}

impl List {
    async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        let sessions = client.sessions().await?;
        if self.json {
            output.json(&sessions)?;
        } else {
            output.stdout(render(&sessions).as_bytes())?;
        }
        Ok(0)
    }
}

fn render(sessions: &[SessionInfo]) -> String {
    if sessions.is_empty() {
        return "No sessions.\n".to_owned();
    }
    let columns = [("NAME", 20), ("ENV", 8), ("ISOLATION", 9), ("SANDBOX", 8), ("STATE", 8), ("CREATED", 0)];
    let mut table = Table::new(&columns);
    for session in sessions {
        let SessionInfo { name, environment, isolation, sandbox, created_at, .. } = session;
        table.row([name.as_str(), environment, isolation.name(), sandbox, state(session.state), created_at]);
    }
    table.render()
}

impl Inspect {
    async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        let session = client.session(&self.name).await?;
        if self.json {
            output.json(&session)?;
        } else {
            output.stdout(describe(&session).as_bytes())?;
        }
        Ok(0)
    }
}

/// One fact a line.
fn describe(session: &SessionInfo) -> String {
    let own = if session.own_sandbox { ", its own" } else { "" };
    let mut lines = vec![
        ("name", session.name.clone()),
        ("environment", session.environment.clone()),
        ("language", session.language.clone()),
        ("isolation", session.isolation.name().to_owned()),
        ("sandbox", format!("{} ({}){own}", session.sandbox, state(session.state))),
        ("created", session.created_at.clone()),
        ("last used", session.last_used_at.clone().unwrap_or_else(|| "never".to_owned())),
    ];
    if let Some(expires) = &session.expires_at {
        lines.push(("expires", expires.clone()));
    }
    if let Some(interpreter) = &session.interpreter {
        let doing = if interpreter.busy { "busy" } else { "idle" };
        let pid = interpreter.pid.map_or_else(|| "none".to_owned(), |pid| pid.to_string());
        lines.push(("interpreter", format!("{doing}, process {pid}")));
        lines.push(("memory", format!("{} bytes", interpreter.memory_bytes)));
        lines.push((
            "runs",
            format!(
                "{}, {} waiting, {} restarts",
                interpreter.runs, interpreter.queued, interpreter.restarts
            ),
        ));
        lines.push(("output", format!("{} bytes", interpreter.output_bytes)));
    }
    lines.into_iter().map(|(what, value)| format!("{what:<12} {value}\n")).collect()
}

impl Interrupt {
    async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        let request = InterruptRequest { grace_ms: self.grace.map(milliseconds) };
        if client.interrupt(&self.name, &request).await?.interrupted {
            return Ok(0);
        }
        output.note(&format!("session {} runs nothing", self.name));
        Ok(1)
    }
}

mod completeness;
mod repl;

pub(super) use repl::Repl;

/// Whether people sit at both ends.
fn at_a_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Where a prompt's lines in a language are kept.
fn history(config: &Config, language: Interpreter) -> PathBuf {
    config.state_dir.join(format!("history.{}", language.environment()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{InterpreterInfo, Isolation, SandboxState};

    fn example() -> SessionInfo {
        SessionInfo {
            name: "work".to_owned(),
            environment: "python".to_owned(),
            language: "python".to_owned(),
            isolation: Isolation::Jail,
            sandbox: "0badcafe".to_owned(),
            own_sandbox: true,
            state: SandboxState::Running,
            created_at: "2026-04-08T12:00:00Z".to_owned(),
            last_used_at: None,
            expires_at: Some("2026-04-08T13:00:00Z".to_owned()),
            idle_timeout_ms: Some(300_000),
            interpreter: Some(InterpreterInfo {
                pid: Some(3),
                memory_bytes: 9_000_000,
                runs: 2,
                queued: 1,
                busy: true,
                restarts: 0,
                output_bytes: 17,
            }),
        }
    }

    #[test]
    fn sessions_are_shown() {
        assert_eq!(render(&[]), "No sessions.\n");
        insta::assert_snapshot!(render(&[example()]));
        insta::assert_snapshot!(describe(&example()));
        insta::assert_json_snapshot!(example());
    }
}
