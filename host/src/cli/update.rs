//! `firn update`: other limits for a sandbox that lives.

use super::duration;
use super::exit::Failed;
use super::output::Output;
use crate::api::client::Client;
use crate::api::types::UpdateRequest;
use crate::spec::Size;
use crate::spec::protection::milliseconds;
use crate::sys::limits::Cpus;
use std::time::Duration;

/// Change the limits of a sandbox while it lives
///
/// Memory, processes and processors can be changed of a jail only: a vm has what it was started with.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    firn update build --memory 2G --pids 512\n  \
    firn update build --idle-timeout 30m --lifetime 0     stop it when idle, at any age")]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true).args([
    "memory",
    "pids",
    "cpus",
    "idle_timeout",
    "lifetime",
    "description",
]))]
pub(super) struct Update {
    /// Its name, its id, or the beginning of its id.
    #[arg(value_name = "SANDBOX")]
    id: String,

    /// Memory: a number with K, M or G.
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,

    /// Processes and threads.
    #[arg(long, value_name = "N")]
    pids: Option<u64>,

    /// Processors, or a part of one, as 0.5.
    #[arg(long, value_name = "N")]
    cpus: Option<Cpus>,

    /// Stop it when nothing was asked of it for so long; 0: never.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    idle_timeout: Option<Duration>,

    /// Stop it when it is so old; 0: never.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    lifetime: Option<Duration>,

    /// Words about it.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,

    /// Print the sandbox, as it is then, as JSON.
    #[arg(long)]
    json: bool,
}

impl Update {
    pub(super) async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        let request = UpdateRequest {
            name: None,
            description: self.description.clone(),
            memory_bytes: self.memory.map(|size| size.0),
            processes: self.pids,
            cpus: self.cpus.map(|cpus| cpus.to_string()),
            idle_timeout_ms: self.idle_timeout.map(milliseconds),
            lifetime_ms: self.lifetime.map(milliseconds),
        };
        let sandbox = client.update(&self.id, &request).await?;
        if self.json {
            output.json(&sandbox)?;
        } else {
            output.say(&format!("Session {} updated.", self.id));
        }
        Ok(0)
    }
}
