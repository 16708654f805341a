//! `firn ps`: the processes in a sandbox.

use super::duration::clock;
use super::exit::Failed;
use super::output::Output;
use super::table::Table;
use crate::api::client::Client;
use crate::api::types::ProcessRow;

/// List the processes in a sandbox
///
/// As it sees them: its numbers, its users, and what each says of itself.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn ps build\n  firn ps build --json | jq '.[] | select(.user == 0)'")]
pub(super) struct Ps {
    /// Its name, its id, or the beginning of its id.
    #[arg(value_name = "SANDBOX")]
    id: String,

    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

impl Ps {
    pub(super) async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        let processes = client.processes(&self.id).await?;
        if self.json {
            output.json(&processes)?;
        } else {
            output.stdout(render(&processes).as_bytes())?;
        }
        Ok(0)
    }
}

fn render(processes: &[ProcessRow]) -> String {
    let columns = [("PID", 7), ("PPID", 7), ("USER", 7), ("S", 1), ("TIME", 8), ("RSS", 9), ("COMMAND", 0)];
    let mut table = Table::new(&columns);
    for process in processes {
        table.row([
            &process.pid.to_string(),
            &process.parent.to_string(),
            &process.user.to_string(),
            &process.state,
            &clock(process.cpu_ms),
            &super::stats::size(process.rss_bytes),
            &process.command.as_os_str().to_string_lossy(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_protocol::Text;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt as _;

    fn rows() -> [ProcessRow; 2] {
        let row = |pid, command: &[u8]| ProcessRow {
            pid,
            parent: 0,
            user: 1000,
            state: "S".to_owned(),
            cpu_ms: 61_500,
            rss_bytes: 5 << 20,
            command: Text::from(OsString::from_vec(command.to_vec())),
        };
        [row(2, b"sleep 1000"), row(12, b"\x1b[2Jname\nroot \xff")]
    }

    #[test]
    fn what_a_process_says_of_itself_is_one_line() {
        insta::assert_snapshot!(render(&rows()), @r"
        PID     PPID    USER    S TIME     RSS       COMMAND
        2       0       1000    S 00:01:01 5.0 MiB   sleep 1000
        12      0       1000    S 00:01:01 5.0 MiB   \u{1b}[2Jname\nroot �
        ");
    }

    #[test]
    fn the_shape() {
        insta::assert_json_snapshot!(rows());
    }
}
