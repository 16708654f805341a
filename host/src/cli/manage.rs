//! The verbs of sandboxes that stay. All of them ask the daemon, and exit with 1 when it did not work, as
//! nixo's do.

use super::exit::Failed;
use super::output::Output;
use super::{cp, create, destroy, events, lease, list, logs, pause, prune, ps, rename, stats, status, stop};
use super::{update, version};
use crate::config::Config;

/// One of them.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    Create(Box<create::Create>),
    List(list::List),
    Status(status::Status),
    Ps(ps::Ps),
    Stats(stats::Stats),
    Logs(logs::Logs),
    Events(events::Events),
    Cp(cp::Cp),
    Pause(pause::Pause),
    Resume(pause::Resume),
    Rename(rename::Rename),
    Update(update::Update),
    Stop(stop::Stop),
    Destroy(destroy::Destroy),
    Prune(prune::Prune),
    Lease(lease::Lease),
    Version(version::Version),
}

impl Verb {
    pub(super) fn run(&self, config: Config, output: &mut Output) -> Result<u8, Failed> {
        let ours = config.clone();
        super::ask(config, async |client| match self {
            Verb::Create(create) => create.run(client, &ours, output).await,
            Verb::List(list) => list.run(client, output).await,
            Verb::Status(status) => status.run(client, output).await,
            Verb::Ps(ps) => ps.run(client, output).await,
            Verb::Stats(stats) => stats.run(client, output).await,
            Verb::Logs(logs) => logs.run(client, output).await,
            Verb::Events(events) => events.run(client, output).await,
            Verb::Cp(cp) => cp.run(client, output).await,
            Verb::Pause(pause) => pause.run(client, output).await,
            Verb::Resume(resume) => resume.run(client, output).await,
            Verb::Rename(rename) => rename.run(client, output).await,
            Verb::Update(update) => update.run(client, output).await,
            Verb::Stop(stop) => stop.run(client, output).await,
            Verb::Destroy(destroy) => destroy.run(client, output).await,
            Verb::Prune(prune) => prune.run(client, output).await,
            Verb::Lease(lease) => lease.run(client, output).await,
            Verb::Version(version) => version.run(client, &ours, output).await,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory as _, Parser};

    #[derive(Debug, Parser)]
    #[command(name = "firn", disable_help_subcommand = true)]
    struct Cli {
        #[command(subcommand)]
        verb: Verb,
    }

    #[test]
    fn help_is_what_it_was() {
        let mut command = Cli::command().term_width(100);
        command.build();
        for verb in command.get_subcommands() {
            let below: Vec<&clap::Command> = verb.get_subcommands().collect();
            for verb in if below.is_empty() { vec![verb] } else { below } {
                let name = verb.get_bin_name().unwrap_or_default().replace(' ', "_");
                let help = verb.clone().term_width(100).render_long_help().to_string();
                assert!(help.contains("Examples:"), "{name} has no examples");
                insta::assert_snapshot!(name, help);
            }
        }
    }
}
