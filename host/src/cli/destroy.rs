//! `firn destroy`: the end of sandboxes, with all they have.

use super::exit::Failed;
use super::output::Output;
use crate::api::client::Client;

/// End sandboxes at once and forget them, with all files of their own
///
/// A workspace is the caller's folder and stays.
#[derive(Debug, clap::Args)]
#[command(visible_alias = "rm", after_help = "Examples:\n  firn destroy build\n  firn destroy 3f9a 0bad")]
pub(super) struct Destroy {
    /// Their names, their ids, or the beginnings of their ids.
    #[arg(value_name = "SANDBOX", required = true)]
    ids: Vec<String>,
}

impl Destroy {
    pub(super) async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        output
            .each(&self.ids, async |id, output| {
                client.destroy(id).await?;
                output.say(&format!("Session {id} destroyed."));
                Ok(())
            })
            .await
    }
}
