//! `firn lease`: sandboxes that end with whoever they belong to.

use super::duration;
use super::exit::Failed;
use super::list::state;
use super::output::Output;
use super::table::Table;
use crate::api::client::Client;
use crate::api::types::{RenewRequest, SandboxInfo};
use crate::spec::protection::milliseconds;
use std::time::Duration;

/// Keep an owner's sandboxes, or see until when they are kept
///
/// A sandbox that was made with --owner and --lease is destroyed when nobody has renewed its lease in time.
#[derive(Debug, clap::Args)]
#[command(disable_help_subcommand = true)]
pub(super) struct Lease {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Renew the leases of all of an owner's sandboxes
    #[command(after_help = "Examples:\n  firn lease renew ci\n  firn lease renew ci --for 1h")]
    Renew {
        /// Whose.
        owner: String,

        /// For so long from now [default: for as long as each was given].
        #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse_some)]
        period: Option<Duration>,

        /// Print the sandboxes as JSON.
        #[arg(long)]
        json: bool,
    },
    /// List an owner's sandboxes, with their leases
    #[command(after_help = "Examples:\n  firn lease list ci")]
    List {
        /// Whose.
        owner: String,

        /// Print the sandboxes as JSON.
        #[arg(long)]
        json: bool,
    },
}

impl Lease {
    pub(super) async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        let (sandboxes, json) = match &self.verb {
            Verb::Renew { owner, period, json } => {
                let request = RenewRequest { lease_ms: period.map(milliseconds) };
                (client.renew(owner, &request).await?, *json)
            }
            Verb::List { owner, json } => (client.list(Some(owner)).await?, *json),
        };
        if json {
            output.json(&sandboxes)?;
        } else {
            output.stdout(render(&sandboxes).as_bytes())?;
        }
        Ok(0)
    }
}

fn render(sandboxes: &[SandboxInfo]) -> String {
    if sandboxes.is_empty() {
        return "No active sessions.\n".to_owned();
    }
    let mut table = Table::new(&[("SESSION", 12), ("NAME", 20), ("STATE", 8), ("LEASE UNTIL", 0)]);
    for sandbox in sandboxes {
        let until = sandbox.lease_until.as_deref().unwrap_or("-");
        table.row([&sandbox.session_id, &sandbox.name, state(sandbox.state), until]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::super::list::tests::example;
    use super::*;

    #[test]
    fn leases_are_listed() {
        let without = SandboxInfo { lease_until: None, ..example() };
        assert_eq!(
            render(&[example(), without]),
            "SESSION      NAME                 STATE    LEASE UNTIL\n\
             0badcafe     build                running  2026-04-08T12:10:00Z\n\
             0badcafe     build                running  -\n"
        );
    }
}
