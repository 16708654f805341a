//! `firn pause` and `firn resume`: sandboxes stand still.

use super::exit::Failed;
use super::output::Output;
use crate::api::client::Client;

/// Have sandboxes stand still: they keep their memory and get no processor time
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn pause build")]
pub(super) struct Pause {
    /// Their names, their ids, or the beginnings of their ids.
    #[arg(value_name = "SANDBOX", required = true)]
    ids: Vec<String>,
}

/// Have sandboxes that stand still go on
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn resume build")]
pub(super) struct Resume {
    /// Their names, their ids, or the beginnings of their ids.
    #[arg(value_name = "SANDBOX", required = true)]
    ids: Vec<String>,
}

impl Pause {
    pub(super) async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        output
            .each(&self.ids, async |id, output| {
                client.pause(id).await?;
                output.say(&format!("Session {id} paused."));
                Ok(())
            })
            .await
    }
}

impl Resume {
    pub(super) async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        output
            .each(&self.ids, async |id, output| {
                client.resume(id).await?;
                output.say(&format!("Session {id} resumed."));
                Ok(())
            })
            .await
    }
}
