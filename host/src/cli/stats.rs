//! `firn stats`: what sandboxes use of the host.

use super::exit::Failed;
use super::list::is_over;
use super::output::Output;
use super::table::Table;
use crate::api::client::{Client, ClientError};
use crate::api::types::{RefusalKind, SandboxInfo, StatsInfo};
use serde::Serialize;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

/// How often a terminal is redrawn.
const REDRAW: Duration = Duration::from_secs(1);

/// Over which time the share of the processors is measured where nothing is redrawn.
const SAMPLE: Duration = Duration::from_millis(250);

/// Show what sandboxes use: processors, memory, processes, disks
///
/// Of those named, or of all that live. On a terminal once a second until it is interrupted, else once. CPU
/// % counts each processor as 100.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn stats\n  firn stats build --no-stream\n  \
    firn stats --json | jq '.[] | {name, memoryBytes}'")]
pub(super) struct Stats {
    /// Their names, their ids, or the beginnings of their ids.
    #[arg(value_name = "SANDBOX")]
    ids: Vec<String>,

    /// Print one sample as a JSON array.
    #[arg(long)]
    json: bool,

    /// Show one sample, on a terminal too.
    #[arg(long)]
    no_stream: bool,
}

/// What one uses, and since when it is known.
#[derive(Debug)]
struct Sample {
    sandbox: SandboxInfo,
    stats: StatsInfo,
    taken: Instant,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    session_id: &'a str,
    name: &'a str,
    #[serde(flatten)]
    stats: &'a StatsInfo,
}

impl Stats {
    pub(super) async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        let first = self.sample(client).await?;
        if self.json {
            let rows: Vec<Row<'_>> = first.iter().map(row).collect();
            output.json(&rows)?;
            return Ok(0);
        }
        if self.no_stream || !io::stdout().is_terminal() {
            tokio::time::sleep(SAMPLE).await;
            let second = self.sample(client).await?;
            output.stdout(render(&second, &first).as_bytes())?;
            return Ok(0);
        }
        let mut before = first;
        loop {
            let now = self.sample(client).await?;
            output.redraw(&render(&now, &before))?;
            before = now;
            tokio::time::sleep(REDRAW).await;
        }
    }

    async fn sample(&self, client: &Client) -> Result<Vec<Sample>, Failed> {
        let sandboxes = if self.ids.is_empty() {
            client.list(None).await?.into_iter().filter(|sandbox| !is_over(sandbox)).collect()
        } else {
            let mut named = Vec::new();
            for id in &self.ids {
                named.push(client.sandbox(id).await?);
            }
            named
        };
        let mut samples = Vec::new();
        for sandbox in sandboxes {
            match client.stats(&sandbox.session_id).await {
                Ok(stats) => samples.push(Sample { sandbox, stats, taken: Instant::now() }),
                // Of all that live, one may come up or end at this moment.
                Err(ClientError::Refused(refusal))
                    if self.ids.is_empty()
                        && matches!(refusal.kind, RefusalKind::NotFound | RefusalKind::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(samples)
    }
}

fn row(sample: &Sample) -> Row<'_> {
    Row { session_id: &sample.sandbox.session_id, name: &sample.sandbox.name, stats: &sample.stats }
}

fn render(now: &[Sample], before: &[Sample]) -> String {
    let columns = [
        ("SESSION", 12),
        ("NAME", 20),
        ("CPU %", 7),
        ("MEMORY / LIMIT", 23),
        ("PIDS", 5),
        ("READ / WRITTEN", 0),
    ];
    let mut table = Table::new(&columns);
    for sample in now {
        let same = |other: &&Sample| other.sandbox.session_id == sample.sandbox.session_id;
        let cpu = before.iter().find(same).map_or_else(|| "-".to_owned(), |before| share(sample, before));
        let of = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), size);
        let stats = &sample.stats;
        table.row([
            &sample.sandbox.session_id,
            &sample.sandbox.name,
            &cpu,
            &format!("{} / {}", size(stats.memory_bytes), of(stats.memory_limit_bytes)),
            &stats.processes.to_string(),
            &format!("{} / {}", of(stats.io_read_bytes), of(stats.io_written_bytes)),
        ]);
    }
    table.render()
}

/// The processor time between two samples, in hundredths of one processor.
fn share(now: &Sample, before: &Sample) -> String {
    let passed = now.taken.saturating_duration_since(before.taken).as_micros();
    if passed == 0 {
        return "-".to_owned();
    }
    let used = now.stats.cpu_us.saturating_sub(before.stats.cpu_us);
    format!("{:.1}", used as f64 / passed as f64 * 100.0)
}

/// A size for people: three or four digits and a unit.
pub(super) fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{size:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::super::list::tests::example;
    use super::*;

    fn samples() -> (Vec<Sample>, Vec<Sample>) {
        let taken = Instant::now();
        let sample = |cpu_us, taken| Sample {
            sandbox: example(),
            stats: StatsInfo {
                cpu_us,
                memory_bytes: 300 << 20,
                memory_limit_bytes: Some(1 << 30),
                processes: 7,
                io_read_bytes: None,
                io_written_bytes: Some(1000),
            },
            taken,
        };
        let before = vec![sample(1_000_000, taken)];
        (before, vec![sample(1_500_000, taken + Duration::from_millis(250))])
    }

    #[test]
    fn a_share_is_of_one_processor() {
        let (before, now) = samples();
        insta::assert_snapshot!(render(&now, &before), @r"
        SESSION      NAME                 CPU %   MEMORY / LIMIT          PIDS  READ / WRITTEN
        0badcafe     build                200.0   300.0 MiB / 1.0 GiB     7     - / 1000 B
        ");
        assert!(render(&now, &[]).contains(" - "), "nothing to compare with");
    }

    #[test]
    fn the_shape() {
        let (before, _) = samples();
        insta::assert_json_snapshot!(before.iter().map(row).collect::<Vec<_>>());
    }
}
