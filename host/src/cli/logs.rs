//! `firn logs`: what a detached command has written, or a guest's kernel.

use super::exit::Failed;
use super::output::{Output, printable};
use crate::api::client::Client;
use std::io::{self, IsTerminal as _};

/// Print what a detached command has written
///
/// Both streams, in the order in which they came. What does not fit into the log any more is left out.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn logs build\n  firn logs -f build             and what follows\n  \
    firn logs build --command 2\n  firn logs build --console      what its kernel says")]
pub(super) struct Logs {
    /// Its name, its id, or the beginning of its id.
    #[arg(value_name = "SANDBOX")]
    id: String,

    /// Go on until the command ends.
    #[arg(short, long, conflicts_with = "console")]
    follow: bool,

    /// The number of the command [default: the latest].
    #[arg(long, value_name = "N", conflicts_with = "console")]
    command: Option<u64>,

    /// Print the last of the guest's console instead.
    #[arg(long)]
    console: bool,
}

impl Logs {
    pub(super) async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        if self.console {
            let console = client.console(&self.id).await?;
            if io::stdout().is_terminal() {
                output.stdout(printable(&String::from_utf8_lossy(&console)).as_bytes())?;
            } else {
                output.stdout(&console)?;
            }
            return Ok(0);
        }
        let mut written = client.logs(&self.id, self.command, 0, self.follow).await?;
        while let Some(chunk) = written.next().await? {
            output.stdout(&chunk)?;
        }
        Ok(0)
    }
}
