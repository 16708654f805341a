//! What the sandbox uses, for `Request::Stats`.
//!
//! Reads `/proc` through the working directory, as `exec::tree` does.

use crate::agent::Agent;
use firn_protocol::Stats;
use nix::errno::Errno;
use nix::time::ClockId;
use std::io;

/// Why there are no statistics.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum StatsError {
    #[error("cannot read /proc/{file}")]
    Read {
        file: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the clock")]
    Clock(#[source] Errno),
}

fn read_text(file: &'static str) -> Result<String, StatsError> {
    std::fs::read_to_string(file).map_err(|source| StatsError::Read { file, source })
}

/// Reads all of them.
pub(crate) fn read(agent: &Agent) -> Result<Stats, StatsError> {
    let uptime = ClockId::CLOCK_BOOTTIME.now().map_err(StatsError::Clock)?;
    let meminfo = read_text("meminfo")?;
    let kilobytes = |text: &str, name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
            .unwrap_or(0)
            .saturating_mul(1024)
    };
    // Not `statm`: its counters lag behind by megabytes on many processors.
    let own = read_text("self/smaps_rollup")?;
    Ok(Stats {
        uptime_ms: std::time::Duration::from(uptime).as_millis() as u64,
        memory_total_bytes: kilobytes(&meminfo, "MemTotal:"),
        memory_available_bytes: kilobytes(&meminfo, "MemAvailable:"),
        agent_rss_bytes: kilobytes(&own, "Rss:"),
        commands: agent.commands(),
    })
}
