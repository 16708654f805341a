//! The control group of all commands: what they may have, and what is kept for the agent.
//!
//! Unless the host limits it further, it may have nearly everything. Without it a fork bomb takes the
//! last page, the supervisor that should end it waits for memory with everybody else, and the host
//! gets no answer any more. It is no means to end commands: see `exec::supervisor`.
//!
//! ```text
//!   /sys/fs/cgroup/firn                          commands of a lean guest, whose control groups are all ours
//!   /sys/fs/cgroup/…/firn-agent.service/agent    where another init has delegated us a group: the agent,
//!                                      /commands and commands
//! ```

use super::Init;
use super::configure::ConfigureError;
use super::counters::{Counters, Tally};
use crate::sys;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Control groups of version 2, where systemd and the agent mount them.
const GROUPS: &str = "/sys/fs/cgroup";

/// How systemd marks a group that is another's to divide (CGROUP_DELEGATION.md, "Delegation").
const DELEGATED: &CStr = c"trusted.delegate";

/// What commands may not have: this much memory at least, in bytes, and this part of it.
const MIN_RESERVE: u64 = 32 * 1024 * 1024;
const RESERVED_PART: u64 = 16;

/// See the module.
pub(super) struct Group {
    entrance: OwnedFd,
    counters: Counters,
}

impl Group {
    /// The file to which a process writes 0 to enter.
    pub(super) fn entrance(&self) -> BorrowedFd<'_> {
        self.entrance.as_fd()
    }

    /// How often its limits were hit so far.
    pub(super) fn tally(&self) -> Tally {
        self.counters.read()
    }
}

/// Makes the group, for at most this many processes.
///
/// Without the controllers (a kernel may lack them) there is none, and the guest works all the same.
/// Only a limit that was asked for is not dropped in silence.
pub(super) fn make(init: Init, most: Option<u64>) -> Result<Option<Group>, ConfigureError> {
    let group = match room(init) {
        Ok(group) => group,
        Err(source) => {
            return match most {
                None => Ok(None),
                Some(_) => Err(ConfigureError::NoControlGroup { source }),
            };
        }
    };
    let group = group.as_path();
    let failed = |path: &Path| {
        let path = PathBuf::from(path);
        move |source: io::Error| ConfigureError::Make { path, source }
    };
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(group)(error)),
        _ => {}
    }
    let meminfo = fs::read_to_string("meminfo").map_err(failed(Path::new("/proc/meminfo")))?;
    let threads = fs::read_to_string("sys/kernel/threads-max")
        .map_err(failed(Path::new("/proc/sys/kernel/threads-max")))?;
    let processes = lower(processes(&threads), most);
    for (file, limit) in [("memory.max", memory(&meminfo)), ("pids.max", processes)] {
        if let Some(limit) = limit {
            let path = group.join(file);
            fs::write(&path, limit.to_string()).map_err(failed(&path))?;
        }
    }
    let entrance = group.join("cgroup.procs");
    let entrance = File::options().write(true).open(&entrance).map_err(failed(&entrance))?;
    Ok(Some(Group { entrance: entrance.into(), counters: Counters::open(group) }))
}

/// Where the group can be made, with the controllers it needs.
fn room(init: Init) -> io::Result<PathBuf> {
    let (parent, name) = match init {
        Init::Own => (PathBuf::from(GROUPS), "firn"),
        Init::Foreign => (delegated()?, "commands"),
    };
    fs::write(parent.join("cgroup.subtree_control"), "+memory +pids")?;
    Ok(parent.join(name))
}

/// The agent's own group, of which the agent has gone into a part: one that has processes cannot be divided.
fn delegated() -> io::Result<PathBuf> {
    let groups = fs::read_to_string("self/cgroup")?;
    let own = own_group(&groups).ok_or_else(|| io::Error::other("the agent is in none of version 2"))?;
    let folder = Path::new(GROUPS).join(own);
    let path = CString::new(folder.as_os_str().as_bytes())?;
    if sys::attribute(&path, DELEGATED).is_none_or(|value| value != b"1") {
        return Err(io::Error::other(format!(
            "{} is not delegated: the agent's unit needs Delegate=yes",
            folder.display()
        )));
    }
    let part = folder.join("agent");
    match fs::create_dir(&part) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::write(part.join("cgroup.procs"), "0")?;
    Ok(folder)
}

/// The path of a process's group of version 2 in the text of its `cgroup` (cgroups(7)), relative.
fn own_group(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// The lower of two limits that need not be there.
fn lower(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

/// What commands may use of the memory `/proc/meminfo` tells of, in bytes.
fn memory(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total = total.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)?;
    total.checked_sub(MIN_RESERVE.max(total / RESERVED_PART))
}

/// How many processes commands may be, of the kernel's own limit.
fn processes(threads_max: &str) -> Option<u64> {
    threads_max.trim().parse::<u64>().ok().map(|threads| threads / 4 * 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_is_left_for_the_agent() {
        assert_eq!(memory("MemTotal:  1048576 kB\nMemFree: 1 kB\n"), Some((1024 - 64) << 20));
        assert_eq!(memory("MemTotal:   131072 kB\n"), Some((128 - 32) << 20));
        assert_eq!(memory("MemTotal:   1024 kB\n"), None);
        assert_eq!(processes("4096\n"), Some(3072));
        assert_eq!(lower(processes("4096\n"), Some(100)), Some(100));
        assert_eq!(lower(processes("4096\n"), Some(u64::MAX)), Some(3072));
        assert_eq!(lower(processes("?"), Some(100)), Some(100));
        assert_eq!(lower(Some(1), None), Some(1));
    }

    #[test]
    fn the_own_group_is_that_of_version_2() {
        let service = "0::/system.slice/firn-agent.service\n";
        assert_eq!(own_group(service), Some("system.slice/firn-agent.service"));
        assert_eq!(own_group("12:pids:/a\n1:name=systemd:/b\n0::/c\n"), Some("c"));
        assert_eq!(own_group("1:name=systemd:/b\n"), None);
    }
}
