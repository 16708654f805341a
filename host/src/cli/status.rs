//! `firn status`: all that is known of a sandbox.

use super::exit::Failed;
use super::list::state;
use super::output::Output;
use super::table::card;
use crate::api::client::Client;
use crate::api::types::SandboxInfo;
use crate::spec::Grade;
use std::time::Duration;

/// Show a sandbox, with what protects the host from it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn status build\n  \
    firn status 3f9a --json | jq .protection.isolation")]
pub(super) struct Status {
    /// Its name, its id, or the beginning of its id.
    #[arg(value_name = "SANDBOX")]
    id: String,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        let sandbox = client.sandbox(&self.id).await?;
        if self.json {
            output.json(&sandbox)?;
        } else {
            output.stdout(render(&sandbox).as_bytes())?;
        }
        Ok(0)
    }
}

fn render(sandbox: &SandboxInfo) -> String {
    let or_dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let mut facts = vec![
        ("Name:", sandbox.name.clone()),
        ("Description:", or_dash(&sandbox.description)),
        ("Agent:", or_dash(&sandbox.agent)),
        ("Profile:", sandbox.profile.clone()),
        ("Created:", sandbox.created_at.clone()),
        ("Last Exec:", or_dash(&sandbox.last_exec_at)),
        ("Rootfs:", sandbox.rootfs_path.clone()),
        ("Workspace:", or_dash(&sandbox.workspace)),
        ("Network:", sandbox.network.clone()),
        ("Isolation:", Grade::from(sandbox.isolation).name().to_owned()),
    ];
    let commands = match sandbox.commands {
        0 => "none".to_owned(),
        running => format!("{running} running"),
    };
    let mut now = vec![
        ("State:", state(sandbox.state).to_owned()),
        ("Commands:", commands),
        ("Process:", sandbox.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())),
        ("Cgroup:", or_dash(&sandbox.cgroup)),
    ];
    let idle = sandbox.idle_timeout_ms.map(|time| humantime::format_duration(Duration::from_millis(time)));
    facts.extend(sandbox.owner.clone().map(|owner| ("Owner:", owner)));
    let ends = [
        ("Lease until:", sandbox.lease_until.clone()),
        ("Expires:", sandbox.expires_at.clone()),
        ("Idle limit:", idle.map(|time| time.to_string())),
        ("Reason:", sandbox.reason.clone()),
    ];
    now.extend(ends.into_iter().filter_map(|(name, value)| Some((name, value?))));
    let mut groups = vec![facts, now];
    groups.extend(sandbox.protection.as_ref().map(|protection| protection.rows()));
    card(&format!("Session: {}", sandbox.session_id), &groups)
}

#[cfg(test)]
mod tests {
    use super::super::list::tests::example;
    use super::*;

    #[test]
    fn the_box_has_all_that_is_known() {
        let protection = serde_json::json!({
            "isolation": {"requested": "vm", "effective": "jail", "degraded": true, "reason": "no KVM"},
            "network": {"requested": "off", "effective": "off"},
            "limits": {
                "memory": {"requested": 1_073_741_824, "effective": 1_073_741_824, "by": "cgroup v2"},
                "processes": {"requested": 2048, "by": "none"},
                "disk": {"requested": 1000, "effective": 1000, "by": "tmpfs"},
                "cpus": {"requested": 0.5, "effective": 0.5, "by": "cgroup v2"},
            },
        });
        let protection = Some(serde_json::from_value(protection).unwrap());
        insta::assert_snapshot!(render(&SandboxInfo { protection, ..example() }));
    }
}
