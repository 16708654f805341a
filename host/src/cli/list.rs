//! `firn list`: the sandboxes there are.

use super::exit::Failed;
use super::output::Output;
use super::table::Table;
use crate::api::client::Client;
use crate::api::types::{SandboxInfo, SandboxState};
use crate::spec::Grade;

/// List sandboxes
///
/// Those that are over are listed with --all, until they are destroyed or pruned. With --json all are, each
/// with its state.
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "ls",
    after_help = "Examples:\n  \
    firn list                                      those that live\n  \
    firn list --all --owner ci                     all of an owner's\n  \
    firn list --json | jq -r '.[].sessionId'       the ids"
)]
pub(super) struct List {
    /// Print a JSON array of all.
    #[arg(long)]
    json: bool,

    /// Only those that belong to OWNER.
    #[arg(long, value_name = "OWNER")]
    owner: Option<String>,

    /// Those that are over too.
    #[arg(short, long)]
    all: bool,
}

impl List {
    pub(super) async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        let mut sandboxes = client.list(self.owner.as_deref()).await?;
        sandboxes.sort_by(|one, other| one.created_at.cmp(&other.created_at));
        if self.json {
            output.json(&sandboxes)?;
        } else {
            sandboxes.retain(|sandbox| self.all || !is_over(sandbox));
            output.stdout(render(&sandboxes).as_bytes())?;
        }
        Ok(0)
    }
}

/// Whether it has ended, by itself or not.
pub(super) fn is_over(sandbox: &SandboxInfo) -> bool {
    matches!(sandbox.state, SandboxState::Stopped | SandboxState::Failed)
}

/// A state, as it stands in JSON.
pub(super) fn state(state: SandboxState) -> &'static str {
    match state {
        SandboxState::Starting => "starting",
        SandboxState::Running => "running",
        SandboxState::Paused => "paused",
        SandboxState::Stopping => "stopping",
        SandboxState::Stopped => "stopped",
        SandboxState::Failed => "failed",
    }
}

/// nixo's columns, at the places where its readers look for them, and then our own.
fn render(sandboxes: &[SandboxInfo]) -> String {
    if sandboxes.is_empty() {
        return "No active sessions.\n".to_owned();
    }
    let columns =
        [("SESSION", 12), ("NAME", 20), ("PROFILE", 16), ("CREATED", 20), ("ISOLATION", 9), ("STATE", 0)];
    let mut table = Table::new(&columns);
    for sandbox in sandboxes {
        table.row([
            &sandbox.session_id,
            &sandbox.name,
            &sandbox.profile,
            &sandbox.created_at,
            Grade::from(sandbox.isolation).name(),
            state(sandbox.state),
        ]);
    }
    table.render()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::types::Isolation;

    /// A sandbox as the daemon tells of it.
    pub(in crate::cli) fn example() -> SandboxInfo {
        SandboxInfo {
            session_id: "0badcafe".to_owned(),
            name: "build".to_owned(),
            profile: "custom:bash,git".to_owned(),
            rootfs_path: "/".to_owned(),
            workspace: Some("/home/me/project".to_owned()),
            created_at: "2026-04-08T12:00:00Z".to_owned(),
            last_exec_at: None,
            pid: Some(4711),
            agent: Some("claude:opus-4-6".to_owned()),
            description: Some("has\x1b[31m colour\nand lines".to_owned()),
            network: "off".to_owned(),
            isolation: Isolation::Jail,
            state: SandboxState::Running,
            reason: None,
            commands: 2,
            owner: Some("ci".to_owned()),
            lease_until: Some("2026-04-08T12:10:00Z".to_owned()),
            expires_at: None,
            idle_timeout_ms: Some(600_000),
            ephemeral: false,
            main_command: None,
            cgroup: Some("/sys/fs/cgroup/firn-0badcafe".to_owned()),
            protection: None,
        }
    }

    #[test]
    fn no_sandboxes_are_no_table() {
        assert_eq!(render(&[]), "No active sessions.\n");
    }

    #[test]
    fn nixos_columns_come_first() {
        let other = SandboxInfo {
            name: "a name that is longer than twenty".to_owned(),
            state: SandboxState::Failed,
            isolation: Isolation::Vm,
            ..example()
        };
        insta::assert_snapshot!(render(&[example(), other]));
    }

    #[test]
    fn the_shape_is_nixos_and_more() {
        insta::assert_json_snapshot!(example());
    }
}
