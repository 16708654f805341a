//! Processes of the host, as its kernel tells of them.

use std::fs;
use std::process::{Child, Command, Stdio};

/// A process of the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its arguments, with spaces between them. Empty: it is dead, and nobody has asked how.
    pub line: String,
}

/// Makes this process inherit whatever loses its parent, so that [`descendants`] misses nothing.
/// Only where each test has a process of its own: elsewhere they would inherit from each other.
pub(crate) fn adopt_orphans() -> bool {
    let alone = crate::host::setting("NEXTEST_EXECUTION_MODE");
    let alone = alone.is_some_and(|mode| mode.as_os_str() == "process-per-test");
    alone && nix::sys::prctl::set_child_subreaper(true).is_ok()
}

/// The number, the state and the parent's number out of `/proc/PID/stat`.
fn parse(stat: &str) -> Option<(u32, &str, u32)> {
    let (pid, rest) = stat.split_once(" (")?;
    // The name between the parentheses may hold anything.
    let (_, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some((pid.parse().ok()?, fields.next()?, fields.next()?.parse().ok()?))
}

/// All that this process has started, and all that those have started.
#[must_use]
pub fn descendants() -> Vec<Process> {
    descendants_of(std::process::id())
}

/// All that a process has started, and all that those have started.
#[must_use]
pub fn descendants_of(ancestor: u32) -> Vec<Process> {
    let stats: Vec<String> = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
        .collect();
    let parents: Vec<(u32, u32)> =
        stats.iter().filter_map(|stat| parse(stat)).map(|(pid, _, parent)| (pid, parent)).collect();
    let mut found = vec![ancestor];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found[1..].iter().map(|pid| Process { pid: *pid, line: command_line(*pid) }).collect()
}

fn command_line(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ").trim_end().to_owned()
}

/// Asks after the dead among those we inherited, and says how many there were. Whoever holds a
/// [`Child`] must have asked after it before.
pub(crate) fn bury() -> usize {
    let ours = std::process::id();
    let stats = fs::read_dir("/proc").unwrap().flatten();
    let dead = stats.filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (pid, state, parent) = parse(&stat)?;
        (state == "Z" && parent == ours).then_some(pid)
    });
    let mut buried = 0;
    for pid in dead.collect::<Vec<_>>() {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        if nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG)).is_ok() {
            buried += 1;
        }
    }
    buried
}

/// A process of the host that has nothing to do with any sandbox, until it is dropped.
#[derive(Debug)]
pub struct Bystander(Child);

impl Bystander {
    /// Starts one. Its arguments hold `mark`, which should be nowhere else.
    #[must_use]
    pub fn start(mark: &str) -> Bystander {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "read never", mark]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let bystander = Bystander(command.spawn().unwrap());
        // Right after exec a process has no arguments yet.
        while !command_line(bystander.pid()).contains(mark) {
            std::thread::yield_now();
        }
        bystander
    }

    /// Its number on the host.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Checks that it is as it was.
    pub fn assert_unharmed(&mut self) {
        assert_eq!(self.0.try_wait().unwrap(), None, "a process of the host was ended");
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let (_, state, _) = parse(&stat).unwrap();
        assert!(!["T", "t", "Z", "X"].contains(&state), "a process of the host is in state {state}");
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
