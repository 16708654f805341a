//! `firn version`: of everything that takes part.

use super::exit::Failed;
use super::output::Output;
use super::table::line;
use crate::api::client::{Client, ClientError};
use crate::api::types::{API_VERSION, DaemonInfo};
use crate::config::{Config, Program};
use firn_protocol::PROTOCOL_VERSION;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Show the versions of firn, of the agent, and of the daemon if one runs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn version\n  firn version --json | jq -r .daemon.software")]
pub(super) struct Version {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Versions {
    client: Ours,
    /// None: it is not installed.
    agent: Option<Agent>,
    /// None: none runs.
    daemon: Option<DaemonInfo>,
}

#[derive(Debug, Serialize)]
struct Ours {
    version: &'static str,
    api: u32,
    protocol: u32,
}

#[derive(Debug, Serialize)]
struct Agent {
    path: PathBuf,
    /// What it says itself. None: it cannot be executed.
    version: Option<String>,
}

impl Version {
    pub(super) async fn run(
        &self,
        client: &Client,
        config: &Config,
        output: &mut Output,
    ) -> Result<u8, Failed> {
        let daemon = match client.daemon().await {
            Ok(daemon) => Some(daemon),
            Err(ClientError::NoDaemon(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let versions = Versions {
            client: Ours { version: env!("CARGO_PKG_VERSION"), api: API_VERSION, protocol: PROTOCOL_VERSION },
            agent: config.program(Program::Agent).ok().map(agent),
            daemon,
        };
        if self.json {
            output.json(&versions)?;
        } else {
            output.stdout(render(&versions).as_bytes())?;
        }
        Ok(0)
    }
}

fn agent(path: PathBuf) -> Agent {
    let mut command = Command::new(&path);
    command.arg("--version").env_clear().stdin(Stdio::null()).stderr(Stdio::null());
    let said = command.output().ok().filter(|done| done.status.success());
    let version = said.map(|done| String::from_utf8_lossy(&done.stdout).trim().to_owned());
    Agent { path, version }
}

fn render(versions: &Versions) -> String {
    let Versions { client, agent, daemon } = versions;
    let mut text = String::new();
    // Writing into a string cannot fail.
    let _ =
        writeln!(text, "client  firn {} (API {}, protocol {})", client.version, client.api, client.protocol);
    let _ = match agent {
        Some(Agent { path, version }) => {
            let version = version.as_deref().unwrap_or("cannot be executed");
            writeln!(text, "agent   {} ({})", line(version), line(&path.to_string_lossy()))
        }
        None => writeln!(text, "agent   not installed"),
    };
    let _ = match daemon {
        Some(daemon) => writeln!(
            text,
            "daemon  {} (API {}, process {}, {} sandboxes, {})",
            line(&daemon.software),
            daemon.api,
            daemon.pid,
            daemon.sandboxes,
            line(&daemon.socket)
        ),
        None => writeln!(text, "daemon  none runs"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_take_part_are_named() {
        let versions = Versions {
            client: Ours { version: "1.2.3", api: 1, protocol: 1 },
            agent: Some(Agent {
                path: "/usr/bin/firn-agent".into(),
                version: Some("firn-agent 1.2.3".into()),
            }),
            daemon: Some(DaemonInfo {
                software: "firn 1.2.2".to_owned(),
                api: 1,
                pid: 4711,
                started_at: "2026-04-08T12:00:00Z".to_owned(),
                socket: "/run/firn/firn.sock".to_owned(),
                state_dir: "/var/lib/firn".to_owned(),
                sandboxes: 3,
                draining: false,
                pool: crate::api::types::PoolInfo::default(),
            }),
        };
        insta::assert_snapshot!(render(&versions), @r"
        client  firn 1.2.3 (API 1, protocol 1)
        agent   firn-agent 1.2.3 (/usr/bin/firn-agent)
        daemon  firn 1.2.2 (API 1, process 4711, 3 sandboxes, /run/firn/firn.sock)
        ");
        insta::assert_json_snapshot!(versions);
        let alone = Versions { agent: None, daemon: None, ..versions };
        assert!(render(&alone).ends_with("agent   not installed\ndaemon  none runs\n"));
    }
}
