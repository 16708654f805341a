//! `firn prune`: sandboxes that are over are forgotten.

use super::exit::Failed;
use super::output::Output;
use crate::api::client::Client;

/// Forget all sandboxes that are over, and print their ids
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn prune\n  firn prune --json | jq '.removed | length'")]
pub(super) struct Prune {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Prune {
    pub(super) async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        let pruned = client.prune().await?;
        if self.json {
            output.json(&pruned)?;
        } else {
            let lines: String = pruned.removed.iter().map(|id| format!("{id}\n")).collect();
            output.stdout(lines.as_bytes())?;
        }
        Ok(0)
    }
}
