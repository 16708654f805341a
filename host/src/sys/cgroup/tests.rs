//! Groups of this host, as far as it has them.

#![allow(unsafe_code, reason = "children join groups between fork and exec, as helpers do")]

use super::*;
use crate::sys::limits::{Limits, Mechanism};
use crate::sys::spawn::Born;
use firn_protocol::Exceeded;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};

const PATIENCE: Duration = Duration::from_secs(20);

/// A group of a test's own, which is not left behind by a test that fails.
struct Made(Cgroup);

impl Drop for Made {
    fn drop(&mut self) {
        let _ = self.0.destroy(PATIENCE);
    }
}

impl std::ops::Deref for Made {
    type Target = Cgroup;

    fn deref(&self) -> &Cgroup {
        &self.0
    }
}

/// None where this caller can make none.
fn made(test: &str, limits: &Limits) -> Option<Made> {
    let hierarchies = Hierarchies::find();
    let made = Made(hierarchies.group(&format!("test-{test}-{}", std::process::id()), limits));
    made.create().unwrap();
    made.path().is_some().then_some(made)
}

fn start(group: &Cgroup, script: &str) -> Child {
    let entry = group.entry().unwrap();
    let args = ["-c", script].map(OsString::from).to_vec();
    let Wrapped { program, args, variable } = group.wrap("/bin/sh".into(), args);
    let mut command = Command::new(program);
    command.args(args).envs(variable).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: one write(2) for each folder, and nothing else.
    unsafe { command.pre_exec(move || entry.join(Born::Outside)) };
    command.spawn().unwrap()
}

#[test]
fn counters_are_read_by_their_whole_name() {
    let events = "low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n";
    assert_eq!(counter(events, "oom_kill"), Some(1));
    assert_eq!(counter(events, "oom"), Some(2));
    assert_eq!(counter("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), Some(3));
    assert_eq!(counter(events, "oo"), None);
    assert_eq!(counter("max many\n", "max"), None);
}

#[test]
fn kills_are_blamed_on_the_limit_only_if_it_was_run_into() {
    let dir = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
    let group = || Cgroup::at(vec!["/nowhere".into(), dir.path().to_owned()]);
    assert_eq!(group().events(), Events::default());
    write("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
    assert_eq!(group().events().memory_kills, 2);
    write("memory.events", "max 3\noom 0\noom_kill 1\n");
    write("pids.events", "max 0\n");
    let group = group();
    assert_eq!(group.events(), Events::default());
    write("memory.events", "max 3\noom 1\noom_kill 1\n");
    write("pids.events", "max 4\n");
    assert_eq!(group.events(), Events { memory_kills: 1, processes_refused: 4 });
}

/// Waits until something is so.
fn until(mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// Ends a group, and sees that it is gone and with it the process that was started in it, which
/// still ran.
fn end(group: &Cgroup, child: Child) {
    assert_eq!(destroy(group, child).signal(), Some(libc::SIGKILL));
}

fn destroy(group: &Cgroup, mut child: Child) -> ExitStatus {
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    group.destroy(PATIENCE).unwrap();
    // A scope's manager takes a moment.
    assert!(group.paths().iter().all(|path| until(|| !path.exists())));
    group.destroy(PATIENCE).unwrap();
    reaper.join().unwrap()
}

#[test]
fn a_group_ends_with_all_its_processes() {
    let limits = Limits { processes: Some(64), ..Limits::default() };
    let Some(group) = made("kill", &limits) else { return };
    let child = start(&group, "for i in 1 2 3; do (sleep 60 & sleep 60) & done; wait");
    let pid = i32::try_from(child.id()).unwrap();
    assert!(until(|| group.dirs.iter().all(|dir| dir.processes().contains(&pid))));
    end(&group, child);
}

#[test]
fn what_forks_without_end_is_ended() {
    // Bounded, should it not be: by number and, each of them, by time.
    let limits = Limits { processes: Some(64), ..Limits::default() };
    if Hierarchies::find().mechanisms().processes == Mechanism::Rlimit {
        return;
    }
    let Some(group) = made("forks", &limits) else { return };
    let script = "for n in 1 2 3 4; do
                      (i=0; while [ $i -lt 20000 ]; do /bin/true & i=$((i+1)); done) &
                  done; sleep 60";
    let child = start(&group, script);
    assert!(until(|| group.dirs.iter().all(|dir| dir.processes().len() > 2)));
    // Its shell gives up when it cannot fork, so how that ended is open.
    destroy(&group, child);
}

#[test]
fn memory_is_limited_and_what_was_killed_is_known() {
    let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
    if Hierarchies::find().mechanisms().memory == Mechanism::Rlimit {
        return;
    }
    let Some(group) = made("memory", &limits) else { return };
    let before = group.events();
    // The first has enough, the second has not. Their shell is left alone.
    let script = "dd if=/dev/zero of=/dev/null bs=8M count=1 && sleep 0.1
                  dd if=/dev/zero of=/dev/null bs=256M count=1
                  [ $? = 137 ] && sleep 60";
    let child = start(&group, script);
    assert!(until(|| group.events() != before));
    assert_eq!(limits.exceeded(group.events()), [Exceeded::Memory]);
    assert_eq!(group.events().memory_kills, 1);
    end(&group, child);
}

#[test]
fn processes_are_limited_and_what_was_refused_is_known() {
    let limits = Limits { processes: Some(8), ..Limits::default() };
    if Hierarchies::find().mechanisms().processes == Mechanism::Rlimit {
        return;
    }
    let Some(group) = made("processes", &limits) else { return };
    let before = group.events();
    let script = "(for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 60 & done); sleep 60";
    let child = start(&group, script);
    assert!(until(|| group.events() != before));
    assert_eq!(limits.exceeded(group.events()), [Exceeded::Processes]);
    end(&group, child);
}

#[test]
fn a_process_in_a_group_is_the_one_that_was_started_and_has_its_descriptors() {
    let limits = Limits { processes: Some(64), ..Limits::default() };
    let Some(group) = made("same", &limits) else { return };
    let (mut read, write) = std::io::pipe().unwrap();
    let Wrapped { program, args, variable } = group.wrap(
        "/bin/sh".into(),
        ["-c", "echo $$ >&7; cat /proc/self/cgroup >&7; exec 7>&-; sleep 60"].map(OsString::from).to_vec(),
    );
    let entry = group.entry().unwrap();
    let mut command = Command::new(program);
    let fd = write.as_raw_fd();
    command.args(args).env_clear().envs(variable);
    // SAFETY: write(2) and dup2(2), and nothing else.
    unsafe {
        command.pre_exec(move || {
            entry.join(Born::Outside)?;
            if libc::dup2(fd, 7) == 7 { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
    }
    let child = command.spawn().unwrap();
    drop(write);
    let mut said = String::new();
    io::Read::read_to_string(&mut read, &mut said).unwrap();
    let (pid, groups) = said.split_once('\n').unwrap();
    assert_eq!(pid, child.id().to_string());
    let name = group.path().and_then(Path::file_name).unwrap().to_str().unwrap();
    assert!(groups.lines().any(|line| line.ends_with(name)), "{groups}");
    end(&group, child);
}

#[test]
fn processor_time_is_limited() {
    let limits = Limits { cpus: "0.25".parse().ok(), ..Limits::default() };
    let mechanism = Hierarchies::find().mechanisms().cpus;
    let Some(group) = made("cpus", &limits) else { return };
    let read = |file: &str| {
        let mut found = group.dirs.iter().filter_map(|dir| fs::read_to_string(dir.path.join(file)).ok());
        found.next().unwrap_or_default()
    };
    match mechanism {
        Mechanism::CgroupV2 => assert_eq!(read("cpu.max"), "25000 100000\n"),
        Mechanism::CgroupV1 => assert_eq!(read("cpu.cfs_quota_us"), "25000\n"),
        Mechanism::SystemdScope => {
            let child = start(&group, "sleep 60");
            assert!(until(|| group.dirs.iter().all(|dir| !dir.processes().is_empty())));
            assert_eq!(read("cpu.max"), "25000 100000\n");
            end(&group, child);
        }
        Mechanism::Rlimit | Mechanism::None => {}
    }
}

/// Counts in a file for as long as it runs.
const COUNTING: &str = "while :; do echo >> $COUNT; done";

#[tokio::test]
async fn what_is_frozen_stands_still_and_can_be_ended() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("count");
    let script = COUNTING.replace("$COUNT", file.to_str().unwrap());
    let Some(group) = made("freeze", &Limits { processes: Some(64), ..Limits::default() }) else {
        return;
    };
    let child = start(&group, &script);
    let count = || fs::metadata(&file).map_or(0, |file| file.len());
    assert!(until(|| count() > 10));
    group.freeze().await.unwrap();
    group.freeze().await.unwrap();
    let stood = count();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(count(), stood);
    group.thaw().unwrap();
    assert!(until(|| count() > stood));
    group.freeze().await.unwrap();
    end(&group, child);
    assert!(matches!(group.freeze().await, Err(PauseError::Unsupported)));
}

#[test]
fn limits_can_be_changed_and_use_be_asked() {
    let limits = Limits { memory: Some(256 << 20), processes: Some(8), cpus: "0.5".parse().ok() };
    let mechanisms = Hierarchies::find().mechanisms();
    if [mechanisms.memory, mechanisms.processes].contains(&Mechanism::Rlimit) {
        return;
    }
    let Some(group) = made("change", &limits) else { return };
    let child = start(&group, "n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done; sleep 60");
    // As one that takes it over has it.
    let group_again = Cgroup::at(group.paths());
    assert!(until(|| group_again.usage(&[]).cpu_us.is_none_or(|us| us > 1000)));
    let usage = group_again.usage(&[]);
    assert!(usage.memory_bytes.unwrap() > 0 && usage.processes.unwrap() >= 1, "{usage:?}");
    let read = |file: &str| {
        let mut found = group.dirs.iter().filter_map(|dir| fs::read_to_string(dir.path.join(file)).ok());
        found.next()
    };
    for (memory, processes) in [(512 << 20, 9), (128 << 20, 7)] {
        let limits = Limits { memory: Some(memory), processes: Some(processes), cpus: "0.25".parse().ok() };
        group_again.limit(&limits).unwrap();
        let now = read("memory.max").or_else(|| read("memory.limit_in_bytes")).unwrap();
        assert_eq!(now.trim(), memory.to_string());
        assert_eq!(read("pids.max").unwrap().trim(), processes.to_string());
        let quota = read("cpu.max").or_else(|| read("cpu.cfs_quota_us"));
        assert!(quota.is_none_or(|quota| quota.starts_with("25000")));
    }
    // What is not named stays.
    group_again.limit(&Limits { processes: Some(6), ..Limits::default() }).unwrap();
    assert_eq!(read("pids.max").unwrap().trim(), "6");
    let memory = read("memory.max").or_else(|| read("memory.limit_in_bytes")).unwrap();
    assert_eq!(memory.trim(), (128_u64 << 20).to_string());
    end(&group, child);
    let gone = Cgroup::none().limit(&limits).unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::Unsupported);
    Cgroup::none().limit(&Limits::default()).unwrap();
}
