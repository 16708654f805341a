//! Processes that need not be children of ours.
//!
//! A helper outlives the process that started it, and the next one watches and ends it in the same way.
//! So none is waited for as a child: a process is known by its number and by when it started, and held
//! by a pidfd (`pidfd_open`(2), Linux 5.3), which is never another process's. Whether the number still is
//! that process's is asked once the pidfd is open: from then on it cannot become anybody else's.
#![allow(unsafe_code, reason = "pidfds have no safe wrapper")]

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long a killed process may take to be gone: until it has given its memory back.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// The longest `/proc/PID/stat`: 52 numbers of 20 digits, and a name.
const LONGEST_STAT: usize = 2048;

/// A process, told from a later one with the same number by when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pid: u32,
    /// In clock ticks since the host booted: field 22 of `/proc/PID/stat` (`proc(5)`).
    start_time: u64,
}

/// What `/proc/PID/stat` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) id: ProcessId,
    /// R, S, T, Z and so on.
    pub(super) state: u8,
    pub(super) parent: u32,
    /// Of its own and of the children that it has waited for, in clock ticks.
    pub(super) cpu_ticks: u64,
    pub(super) threads: u64,
}

impl Stat {
    pub(super) fn of(pid: u32) -> Option<Stat> {
        Stat::read(&mut File::open(format!("/proc/{pid}/stat")).ok()?)
    }

    fn read(file: &mut File) -> Option<Stat> {
        let mut text = [0; LONGEST_STAT];
        let read = file.read(&mut text).ok()?;
        Stat::parse(text.get(..read)?)
    }

    /// Takes no memory: a process that was just forked reads its own.
    fn parse(text: &[u8]) -> Option<Stat> {
        let number =
            |field: &[u8]| -> Option<u64> { std::str::from_utf8(field).ok()?.trim_ascii().parse().ok() };
        let pid = number(text.split(|byte| *byte == b' ').next()?)?;
        // The second field is a name in parentheses that may hold anything: count behind it.
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let mut fields = text.get(end + 2..)?.split(|byte| *byte == b' ');
        let state = *fields.next()?.first()?;
        let parent = number(fields.next()?)?;
        let mut cpu_ticks = 0;
        for (index, field) in (14..=17).zip(fields.by_ref().skip(9)) {
            debug_assert!(index <= 17, "utime, stime, cutime, cstime");
            cpu_ticks += number(field)?;
        }
        let threads = number(fields.nth(2)?)?;
        let start_time = number(fields.nth(1)?)?;
        let id = ProcessId { pid: u32::try_from(pid).ok()?, start_time };
        Some(Stat { id, state, parent: u32::try_from(parent).ok()?, cpu_ticks, threads })
    }

    /// Whether it has ended, and only waits to be collected.
    fn is_over(self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

impl ProcessId {
    /// This process.
    #[cfg(test)]
    pub(crate) fn ours() -> ProcessId {
        let none = ProcessId { pid: std::process::id(), start_time: 0 };
        ProcessId::read_own().unwrap_or(none)
    }

    /// The same, as the host's `/proc` has it, whatever pid namespace we are in. Makes system calls and
    /// takes no memory.
    pub(super) fn read_own() -> Option<ProcessId> {
        // SAFETY: plain system calls; the string ends with a null, the descriptor is ours alone.
        let mut file = unsafe {
            let fd = libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            if fd < 0 {
                return None;
            }
            File::from_raw_fd(fd)
        };
        Stat::read(&mut file).map(|stat| stat.id)
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(self) -> bool {
        Stat::of(self.pid).is_some_and(|stat| stat.id == self && !stat.is_over())
    }

    /// Its number.
    pub(crate) fn pid(self) -> u32 {
        self.pid
    }

    /// As it crosses a socket.
    pub(super) fn to_bytes(self) -> [u8; ProcessId::BYTES] {
        let mut bytes = [0; ProcessId::BYTES];
        bytes[..4].copy_from_slice(&self.pid.to_ne_bytes());
        bytes[4..].copy_from_slice(&self.start_time.to_ne_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; ProcessId::BYTES]) -> ProcessId {
        let (mut pid, mut start_time) = ([0; 4], [0; 8]);
        pid.copy_from_slice(&bytes[..4]);
        start_time.copy_from_slice(&bytes[4..]);
        ProcessId { pid: u32::from_ne_bytes(pid), start_time: u64::from_ne_bytes(start_time) }
    }

    pub(super) const BYTES: usize = 12;
}

/// The processes whose parent is `pid`: each thread has its own.
pub(super) fn children(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let listed = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let numbers =
        |list: String| list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<_>>();
    listed.flat_map(numbers).collect()
}

/// A process that is held, so that nothing done to it can hit another. Whose it is does not matter, and
/// letting go of it does nothing to it.
#[derive(Debug)]
pub(super) struct Process {
    id: ProcessId,
    /// Ready to be read when the process has ended.
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// `None`: it is gone. Inside the runtime.
    pub(super) fn adopt(id: ProcessId) -> io::Result<Option<Process>> {
        let pidfd = match pidfd_open(id.pid) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => {
                return Ok(None);
            }
            pidfd => pidfd?,
        };
        if !id.is_alive() {
            return Ok(None);
        }
        Ok(Some(Process { id, pidfd: watch(pidfd)? }))
    }

    pub(super) fn id(&self) -> ProcessId {
        self.id
    }

    /// Waits until it has ended. May be called again, and dropped at any time.
    pub(super) async fn ended(&self) -> io::Result<()> {
        // It stays so: readiness is not cleared.
        self.pidfd.readable().await.map(drop)
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Kills it.
    pub(super) fn kill(&self) {
        let _ = send_kill(self.pidfd.get_ref());
    }

    /// Kills the processes whose parent it is.
    pub(super) fn kill_children(&self) {
        self.kill_children_after(|_child| {});
    }

    /// The same. `last` is given each before it is killed.
    pub(super) fn kill_children_after(&self, mut last: impl FnMut(u32)) {
        for child in children(self.id.pid) {
            let Ok(pidfd) = pidfd_open(child) else { continue };
            // Asked now: the number cannot become another's any more.
            if Stat::of(child).is_some_and(|stat| stat.parent == self.id.pid) && !self.has_ended() {
                last(child);
                let _ = send_kill(&pidfd);
            }
        }
    }

    /// Kills it and waits until it is gone.
    pub(super) fn end(&self) {
        self.kill();
        self.ends_within(KILL_PATIENCE);
    }

    fn ends_within(&self, patience: Duration) -> bool {
        let mut poll = libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let patience = libc::c_int::try_from(patience.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: a plain system call on a value that outlives it.
        unsafe { libc::poll(&raw mut poll, 1, patience) == 1 }
    }
}

/// Tells when there is something to read. Inside the runtime.
pub(super) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor is what it says, at any time, and the only one that closes it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

pub(super) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: a plain system call; the descriptor it gives is ours alone, and close-on-exec.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(RawFd::try_from(fd).map_err(io::Error::other)?)),
        }
    }
}

fn send_kill(pidfd: &OwnedFd) -> io::Result<()> {
    let nothing = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a plain system call; without a siginfo the kernel makes one.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, nothing, 0) };
    if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_name_cannot_pass_for_other_fields() {
        let stat = b"7 (a) b) (c) S 5 7 7 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 3 0 999 8192 5 1\n";
        let id = ProcessId { pid: 7, start_time: 999 };
        assert_eq!(Stat::parse(stat), Some(Stat { id, state: b'S', parent: 5, cpu_ticks: 100, threads: 3 }));
        assert_eq!(Stat::parse(b"7 (a"), None);
        assert_eq!(Stat::parse(b""), None);
        let ours = ProcessId::ours();
        assert!(ours.is_alive() && ours.pid() == std::process::id());
        assert_eq!(ProcessId::from_bytes(ours.to_bytes()), ours);
    }

    #[tokio::test]
    async fn a_process_with_the_number_of_another_is_not_touched() {
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let id = Stat::of(child.id()).unwrap().id;
        let earlier = ProcessId { start_time: id.start_time - 1, ..id };
        assert!(!earlier.is_alive());
        assert!(Process::adopt(earlier).unwrap().is_none());
        assert!(child.try_wait().unwrap().is_none());
        let process = Process::adopt(id).unwrap().unwrap();
        assert!(!process.has_ended());
        process.end();
        process.ended().await.unwrap();
        process.ended().await.unwrap();
        // It is a zombie until it is collected.
        assert!(!id.is_alive() && Process::adopt(id).unwrap().is_none());
        child.wait().unwrap();
        assert!(Process::adopt(id).unwrap().is_none());
    }

    #[tokio::test]
    async fn letting_go_does_nothing() {
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        drop(Process::adopt(Stat::of(child.id()).unwrap().id).unwrap().unwrap());
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
