//! `firn daemon`: the daemon itself, in the foreground, and what is said to one that runs.

use super::ask;
use super::exit::Failed;
use super::output::Output;
use crate::api::client::{Client, ClientError};
use crate::api::operations;
use crate::api::types::DaemonInfo;
use crate::config::Config;
use crate::daemon::{self, LogFormat, StartedBy};

/// No daemon runs.
const NONE_RUNS: u8 = 1;

/// Run the daemon, or talk to the one that runs.
///
/// Commands start a daemon when they need one, and it ends when it had nothing to do for ten minutes.
/// One that is started here stays until it is told to stop. Sandboxes that are kept outlive it.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
    firn daemon                               in the foreground; Ctrl-C stops it\n  \
    firn daemon status                        whether one runs, and which\n  \
    firn daemon stop                          when what is under way is done; sandboxes live on\n  \
    firn daemon openapi                       a description of its API"
)]
pub(super) struct Daemon {
    #[command(subcommand)]
    action: Option<Action>,

    /// How its log looks, on stderr: for people, or JSON; auto is for people on a terminal.
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    log_format: LogFormat,

    /// A command has started it.
    #[arg(long, hide = true)]
    autostarted: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Say whether a daemon runs, and which. The exit code is 1 when none does.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Have the daemon stop once what is under way is done. Sandboxes that are kept live on.
    Stop {
        /// Do not wait for what is under way.
        #[arg(long)]
        force: bool,
    },
    /// Print the OpenAPI document of the API.
    Openapi,
}

impl Daemon {
    pub(super) fn run(&self, config: Config, output: &mut Output) -> Result<u8, Failed> {
        match &self.action {
            None => {
                let by = if self.autostarted { StartedBy::Command } else { StartedBy::Somebody };
                daemon::run(Config::of_daemon()?, by, self.log_format)?;
                Ok(0)
            }
            Some(Action::Status { json }) => {
                let socket = config.socket.display().to_string();
                match ask(config, async |client| Ok(client.daemon().await?)) {
                    Ok(info) => {
                        let shown = if *json { as_json(&info) } else { as_text(&info) };
                        output.stdout(shown.as_bytes())?;
                        Ok(0)
                    }
                    Err(Failed::Client(ClientError::NoDaemon(_))) => {
                        let shown =
                            if *json { "null\n".to_owned() } else { format!("no daemon runs at {socket}\n") };
                        output.stdout(shown.as_bytes())?;
                        Ok(NONE_RUNS)
                    }
                    Err(failed) => Err(failed),
                }
            }
            Some(Action::Stop { force }) => {
                output.doing("waiting for what is under way");
                let stopped = ask(config, async |client: &Client| Ok(client.stop_daemon(*force).await?));
                output.clear();
                match stopped {
                    Err(Failed::Client(ClientError::NoDaemon(_))) => {
                        output.note("no daemon runs");
                        Ok(0)
                    }
                    stopped => stopped.map(|()| 0),
                }
            }
            Some(Action::Openapi) => {
                output.stdout(format!("{:#}\n", operations::document()).as_bytes())?;
                Ok(0)
            }
        }
    }
}

fn as_json(info: &DaemonInfo) -> String {
    // Writing JSON of strings and numbers into memory cannot fail.
    let mut json = serde_json::to_string_pretty(info).unwrap_or_default();
    json.push('\n');
    json
}

fn as_text(info: &DaemonInfo) -> String {
    let DaemonInfo { software, api, pid, started_at, socket, state_dir, sandboxes, draining, pool } = info;
    let ours = concat!("firn ", env!("CARGO_PKG_VERSION"));
    let version = if software == ours { String::new() } else { format!(" (this is {ours})") };
    let doing = if *draining { "stops when what is under way is done" } else { "running" };
    format!(
        "{doing}: {software}{version}, API {api}\n\
         pid        {pid}\n\
         since      {started_at}\n\
         socket     {socket}\n\
         state      {state_dir}\n\
         sandboxes  {sandboxes}\n\
         pool       {vm} of {wanted_vm} vm, {jail} of {wanted_jail} jail, {code} of {wanted_code} with an \
         interpreter\n",
        vm = pool.vm.ready,
        wanted_vm = pool.vm.wanted,
        jail = pool.jail.ready,
        wanted_jail = pool.jail.wanted,
        code = pool.code.ready,
        wanted_code = pool.code.wanted,
    )
}
