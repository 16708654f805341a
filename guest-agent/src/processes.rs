//! The processes of the sandbox, for `Request::Processes`.
//!
//! Reads `/proc` through the working directory, as `exec::tree` does. In a worker: the arguments of a
//! process are read from its own memory, and it can arrange for that to take for ever.

use firn_protocol::{MAX_PROCESSES, ProcessInfo, Processes, Reply, Text};
use nix::unistd::{SysconfVar, sysconf};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;

/// How much is told of a process's arguments, in bytes.
const NAME: usize = 256;

/// How long a list may be, in bytes of JSON.
const LONGEST_LIST: usize = 768 * 1024;

/// A thread of the kernel's (`PF_KTHREAD`).
const KERNEL_THREAD: u64 = 0x0020_0000;

/// All processes but the agent's own.
pub(crate) fn list(own: BTreeSet<i32>) -> Reply {
    let mut own = own;
    own.insert(nix::unistd::Pid::this().as_raw());
    let entries = std::fs::read_dir(".").into_iter().flatten().flatten();
    let mut pids: Vec<i32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| !own.contains(pid))
        .collect();
    pids.sort_unstable();
    let scale = Scale::of_system();
    let mut processes = Vec::new();
    let mut length = 0;
    for pid in pids {
        // It may have ended meanwhile.
        let Some(process) = describe(pid, &own, &scale) else { continue };
        length += serde_json::to_vec(&process).map_or(0, |json| json.len() + 1);
        if processes.len() == MAX_PROCESSES || length > LONGEST_LIST {
            return Reply::Processes(Processes { processes, truncated: true });
        }
        processes.push(process);
    }
    Reply::Processes(Processes { processes, truncated: false })
}

/// What the kernel counts in.
struct Scale {
    /// A tick of the processor clock, in milliseconds.
    tick_ms: u64,
    page_bytes: u64,
}

impl Scale {
    fn of_system() -> Scale {
        let value = |name, usual: u64| {
            let value = sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok());
            value.filter(|value| *value > 0).unwrap_or(usual)
        };
        Scale {
            tick_ms: 1000 / value(SysconfVar::CLK_TCK, 100).min(1000),
            page_bytes: value(SysconfVar::PAGE_SIZE, 4096),
        }
    }
}

fn describe(pid: i32, own: &BTreeSet<i32>, scale: &Scale) -> Option<ProcessInfo> {
    let stat = std::fs::read(format!("{pid}/stat")).ok()?;
    let (name, fields) = parse(&stat)?;
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or_default();
    let number = |at: usize| field(at).parse::<u64>().unwrap_or(0);
    if number(9) & KERNEL_THREAD != 0 {
        return None;
    }
    let parent = field(4).parse::<i32>().ok().filter(|parent| !own.contains(parent)).unwrap_or(0);
    let status = std::fs::read_to_string(format!("{pid}/status")).ok()?;
    let user = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:")?.split_ascii_whitespace().nth(1)?.parse().ok())?;
    Some(ProcessInfo {
        pid: pid.unsigned_abs(),
        parent: parent.unsigned_abs(),
        user,
        state: field(3).to_owned(),
        name: arguments(pid).unwrap_or_else(|| Text::from_bytes(&[b"[", name, b"]"].concat())),
        cpu_ms: number(14).saturating_add(number(15)).saturating_mul(scale.tick_ms),
        rss_bytes: number(24).saturating_mul(scale.page_bytes),
        started_ms: number(22).saturating_mul(scale.tick_ms),
    })
}

/// The name, and the fields from the third on, of `/proc/PID/stat` (`proc(5)`). A name may hold spaces
/// and parentheses itself.
fn parse(stat: &[u8]) -> Option<(&[u8], Vec<&str>)> {
    let begin = stat.iter().position(|byte| *byte == b'(')?;
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let name = stat.get(begin + 1..end)?;
    let fields = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    Some((name, fields.split_ascii_whitespace().collect()))
}

/// `None`: it has none, or has taken them away.
fn arguments(pid: i32) -> Option<Text> {
    let mut text = Vec::new();
    File::open(format!("{pid}/cmdline")).ok()?.take(NAME as u64 + 1).read_to_end(&mut text).ok()?;
    while text.last() == Some(&0) {
        text.pop();
    }
    text.truncate(crate::kept::cut(&text, NAME));
    if text.is_empty() {
        return None;
    }
    for byte in &mut text {
        if *byte == 0 {
            *byte = b' ';
        }
    }
    Some(Text::from_bytes(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_pose_as_other_fields() {
        let (name, fields) = parse(b"7 (a) S 1 (b\xff)) R 42 7").unwrap();
        assert_eq!((name, fields), (&b"a) S 1 (b\xff)"[..], vec!["R", "42", "7"]));
        assert_eq!(parse(b"7 (a"), None);
        assert_eq!(parse(b"7 )a("), None);
    }
}
