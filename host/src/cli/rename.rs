//! `firn rename`: another name for a sandbox.

use super::exit::Failed;
use super::output::Output;
use crate::api::client::Client;
use crate::api::types::UpdateRequest;

/// Give a sandbox another name
///
/// 1 to 63 letters, digits, '-', '_' and '.', not like an id; no two that live have the same.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn rename 3f9a build")]
pub(super) struct Rename {
    /// Its name, its id, or the beginning of its id.
    #[arg(value_name = "SANDBOX")]
    id: String,

    /// The new one.
    #[arg(value_name = "NAME")]
    name: String,
}

impl Rename {
    pub(super) async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        let request = UpdateRequest { name: Some(self.name.clone()), ..UpdateRequest::default() };
        let sandbox = client.update(&self.id, &request).await?;
        output.say(&format!("Session {} renamed to {}.", self.id, sandbox.name));
        Ok(0)
    }
}
