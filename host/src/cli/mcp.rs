//! `firn mcp`: the MCP server, for the clients of models.

mod install;

use super::duration;
use super::exit::Failed;
use super::output::Output;
use crate::api::types::Isolation;
use crate::config::Config;
use crate::mcp::{
    self, EnvironmentsError, Http, HttpError, Keys, KeysError, KnownEnvironments, Policy, PolicyError,
    Project, Server,
};
use crate::spec::{Grade, Size};
use crate::view::parse_project;
use clap::Args as _;
use install::{InstallError, Which};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Serve the Model Context Protocol: one tool, `run`, that runs code in a sandbox
///
/// The client starts it and talks to it over stdin and stdout. Code runs in a jail or a vm, in an environment
/// that the call names, once or in a session. What calls may ask for is decided here.
#[derive(Debug, clap::Args)]
#[command(
    disable_help_subcommand = true,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
    firn mcp                                   what a client's configuration names\n  \
    firn mcp --isolation vm                    code runs in a vm, unless a call asks for a jail\n  \
    firn mcp --allow-isolation jail --env python,shell --max-time 60s --max-sessions 4\n  \
    firn mcp --project .                       this folder at /project, read-only\n  \
    firn mcp install codex                     have Codex start it"
)]
pub(super) struct Mcp {
    #[command(subcommand)]
    verb: Option<Verb>,

    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Add the server to a client's configuration
    ///
    /// The rest of it stays as it is; what changes is shown, and what it was is kept beside it.
    #[command(after_help = "Examples:\n  \
        firn mcp install codex\n  \
        firn mcp install claude -- --isolation vm --project .")]
    Install(Which),
    /// Print what belongs in a client's configuration
    #[command(after_help = "Examples:\n  firn mcp print zed\n  firn mcp print codex -- --max-time 60s")]
    Print(Which),
}

/// How it serves.
#[derive(Debug, clap::Args)]
struct Serve {
    /// The isolation of calls that name none [default: jail, if it is allowed].
    #[arg(short, long, value_name = "GRADE")]
    isolation: Option<Grade>,

    /// The isolation that calls may name [default: both].
    #[arg(long, value_name = "GRADE,…", value_delimiter = ',')]
    allow_isolation: Vec<Grade>,

    /// The environments that calls may name [default: all that `firn env list` knows, and this host's
    /// interpreters].
    #[arg(long = "env", value_name = "NAME,…", value_delimiter = ',')]
    environments: Vec<String>,

    /// The longest that code may take [default: as long as a call says, 30s if it says nothing].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_some)]
    max_time: Option<Duration>,

    /// Memory of each sandbox: a number with K, M or G [default: 1G, or what the environment says].
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,

    /// How many sessions there may be at once [default: as many as sandboxes].
    #[arg(long, value_name = "N")]
    max_sessions: Option<usize>,

    /// Show this folder at /project, or where PROJECT_MOUNT says, read-only unless it ends in :rw [default:
    /// the folder PROJECT_DIR, if it is one].
    #[arg(long, value_name = "PATH[:ro|:rw]")]
    project: Option<String>,

    /// Make do with less isolation where this host cannot give what is asked for.
    #[arg(long)]
    allow_degraded: bool,

    /// Serve streamable HTTP at this address, as http://ADDR/mcp, to clients that have a token: that in
    /// FIRN_MCP_TOKEN, or one of --tokens.
    #[arg(long, value_name = "ADDR:PORT")]
    http: Option<SocketAddr>,

    /// A file with a name and a token a line, for clients that have sessions of their own each.
    #[arg(long, value_name = "FILE", requires = "http")]
    tokens: Option<PathBuf>,

    /// Let in whoever can connect, which on this host is every user of it: without a token, at a loopback address
    /// only.
    #[arg(long, requires = "http", conflicts_with = "tokens")]
    no_token: bool,

    /// A name of this host that clients may use besides its address [default: any, at all addresses].
    #[arg(long, value_name = "NAME", requires = "http")]
    allow_host: Vec<String>,

    /// An origin of web pages that may ask, besides those on this host: `https://example.com:443`.
    #[arg(long, value_name = "ORIGIN", requires = "http")]
    allow_origin: Vec<String>,

    /// Taken for the sake of configurations that were made for nix-sandbox-mcp.
    #[arg(long, hide = true)]
    stdio: bool,

    /// Likewise.
    #[arg(long, hide = true, value_name = "LEVEL")]
    log_level: Option<String>,
}

/// The server cannot be had as it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum McpError {
    /// The policy contradicts itself.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The environments.
    #[error(transparent)]
    Environments(#[from] EnvironmentsError),
    /// No folder.
    #[error("--project {}: it is not a folder", .0.display())]
    Project(PathBuf),
    /// A configuration was not changed.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The tokens.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// Nobody could be let in, or anybody.
    #[error("--http needs FIRN_MCP_TOKEN or --tokens, or --no-token for whoever can connect")]
    NoToken,
    /// It cannot be served over HTTP.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The client.
    #[error(transparent)]
    Stdio(#[from] mcp::StdioError),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
}

impl Mcp {
    pub(super) fn run(&self, config: Config, output: &mut Output) -> Result<u8, Failed> {
        match &self.verb {
            None => self.serve.run(config, output),
            Some(Verb::Install(which)) => which.install(&config, output),
            Some(Verb::Print(which)) => which.print(&config, output),
        }
    }

    /// Whether it only looks after configurations.
    pub(super) fn is_about_clients(&self) -> bool {
        self.verb.is_some()
    }
}

/// Whether `firn mcp` takes these options.
fn check_options(options: &[String]) -> Result<(), clap::Error> {
    let command = Serve::augment_args(clap::Command::new("firn mcp").no_binary_name(true));
    command.try_get_matches_from(options).map(drop)
}

impl Serve {
    fn run(&self, config: Config, output: &mut Output) -> Result<u8, Failed> {
        let policy = self.policy(&config)?;
        let http = self.http(&config)?;
        // Stdout is the client's.
        let environments =
            KnownEnvironments::find(&config, &self.environments, &mut |told| output.told(&told))
                .map_err(McpError::from)?;
        output.clear();
        let server = Server::new(config, policy, environments);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failed::Runtime)?;
        let served = runtime.block_on(async {
            let stop = CancellationToken::new();
            let signals = stop_on_signals(stop.clone()).map_err(McpError::Signals)?;
            let served = match http {
                None => mcp::serve_stdio(server, stop).await.map_err(McpError::from),
                Some(http) => {
                    let tell = |address| output.note(&format!("serving MCP at {address}"));
                    mcp::serve_http(server, http, stop, tell).await.map_err(McpError::from)
                }
            };
            signals.abort();
            served
        });
        // A read of stdin may be under way in a thread, and nobody will end it.
        runtime.shutdown_background();
        served?;
        Ok(0)
    }

    fn policy(&self, config: &Config) -> Result<Policy, McpError> {
        let allowed: Vec<Isolation> = self.allow_isolation.iter().map(|grade| (*grade).into()).collect();
        let mut policy = Policy::new(self.isolation.map(Into::into), allowed)?;
        policy.most_time = self.max_time;
        policy.memory = self.memory.map(|size| size.0);
        policy.most_sessions = self.max_sessions;
        policy.allow_degraded = self.allow_degraded;
        policy.project = self.project(config)?;
        Ok(policy)
    }

    fn http(&self, config: &Config) -> Result<Option<Http>, McpError> {
        let Some(address) = self.http else { return Ok(None) };
        let keys = match (&self.tokens, &config.mcp_token) {
            (Some(path), _) => Keys::read(path)?,
            (None, _) if self.no_token => Keys::Anyone,
            (None, Some(token)) => Keys::one(&token.0)?,
            (None, None) => return Err(McpError::NoToken),
        };
        let http = Http { address, keys, hosts: self.allow_host.clone(), origins: self.allow_origin.clone() };
        http.check()?;
        Ok(Some(http))
    }

    fn project(&self, config: &Config) -> Result<Option<Project>, McpError> {
        let target = config.project_mount.clone();
        let Some(text) = &self.project else {
            // As nix-sandbox-mcp has it: what is no folder is as good as nothing.
            let folder = config.project_dir.clone().filter(|folder| folder.is_dir());
            return Ok(folder.map(|folder| Project {
                folder,
                target,
                access: firn_protocol::Access::ReadOnly,
            }));
        };
        let (path, access) = parse_project(text);
        match std::path::absolute(path) {
            Ok(folder) if folder.is_dir() => Ok(Some(Project { folder, target, access })),
            _ => Err(McpError::Project(path.to_owned())),
        }
    }
}

/// Cancels `stop` when the process is asked to end.
fn stop_on_signals(stop: CancellationToken) -> io::Result<tokio::task::JoinHandle<()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    }))
}
