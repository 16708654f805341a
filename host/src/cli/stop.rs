//! `firn stop`: the orderly end of sandboxes.

use super::duration;
use super::exit::Failed;
use super::output::Output;
use crate::api::client::Client;
use std::time::Duration;

/// End sandboxes in order, and keep the records of them
///
/// Their commands end, and what is shared with them is written back. What they wrote to files of their own
/// is gone. `firn status` and `firn logs` still tell of them, until they are destroyed or pruned.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn stop build\n  firn stop --time 1m build test")]
pub(super) struct Stop {
    /// Their names, their ids, or the beginnings of their ids.
    #[arg(value_name = "SANDBOX", required = true)]
    ids: Vec<String>,

    /// How long that may take before they are killed [default: 10s].
    #[arg(short, long, value_name = "DURATION", value_parser = duration::parse)]
    time: Option<Duration>,
}

impl Stop {
    pub(super) async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        output
            .each(&self.ids, async |id, output| {
                client.stop(id, self.time).await?;
                output.say(&format!("Session {id} stopped."));
                Ok(())
            })
            .await
    }
}
