//! One control group for all processes of a sandbox.
//!
//! It is what "all processes of a sandbox" means to the kernel: killing the group kills them all,
//! however they have multiplied, and an empty group proves that none is left. It is also what
//! holds them to their limits, together. Where no group can be made, a sandbox has none: its pid
//! namespaces alone hold it together, and its processes limit themselves.
//!
//! A group is one folder in version 2. In version 1 it is a folder in each hierarchy that is
//! needed: `pids` always, to kill by, one for each limit, and one to freeze by. A user who may make none that limit
//! asks the user's service manager for one: a scope.

mod freezer;
mod hierarchy;
mod scope;
mod usage;

pub(crate) use freezer::PauseError;
pub(crate) use hierarchy::{Controller, Hierarchies};
#[cfg(test)]
pub(crate) use hierarchy::{Hierarchy, Version};
pub(crate) use scope::Wrapped;
pub(crate) use usage::Usage;

use crate::sys::limits::{CPU_PERIOD, Events, Limits};
use crate::sys::spawn::Born;
use scope::Scope;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A sandbox's group, or the absence of one.
#[derive(Debug, Default)]
pub(crate) struct Cgroup {
    dirs: Vec<Dir>,
    /// Who makes the folder, where we cannot.
    scope: Option<Scope>,
}

/// The group's folder in one hierarchy.
#[derive(Debug, Default)]
struct Dir {
    path: PathBuf,
    /// The controllers that have to be handed down to it.
    enable: Vec<Controller>,
    settings: Vec<Setting>,
}

/// A line for a file of a group.
#[derive(Clone, Debug)]
struct Setting {
    file: &'static str,
    value: String,
    /// Whether some kernels do not have the file.
    optional: bool,
}

impl Dir {
    fn create(&self) -> io::Result<()> {
        fs::create_dir(&self.path)?;
        if let Some(parent) = self.path.parent().filter(|_| !self.enable.is_empty()) {
            hand_down(parent, &self.enable)?;
        }
        for Setting { file, value, optional } in &self.settings {
            match write(&self.path.join(file), value) {
                Err(error) if *optional && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io::Error::new(error.kind(), format!("{file}={value}: {error}"))),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Kills what is in it.
    fn kill(&self) {
        if write(&self.path.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        // Version 1, and kernels before 5.14. What is forked while the list is read would not be on
        // it: nothing can be forked any more where this can be said, and everywhere the caller
        // repeats until the group is empty.
        let _ = write(&self.path.join("pids.max"), "0");
        for pid in self.processes() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }

    fn processes(&self) -> Vec<i32> {
        // Processes of other pid namespaces are listed as 0, which to kill(2) is our own group.
        fs::read_to_string(self.path.join("cgroup.procs"))
            .map(|list| list.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect())
            .unwrap_or_default()
    }

    /// Removes it if nothing is in it.
    fn remove(&self) -> io::Result<()> {
        if scope::is_scope(&self.path) {
            // Its manager removes it as soon as nothing is in it, and would believe that it still
            // runs if we did.
            return match self.counter("cgroup.events", "populated") {
                Some(1..) => Err(io::ErrorKind::ResourceBusy.into()),
                Some(0) | None => Ok(()),
            };
        }
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// A number from a file of `NAME NUMBER` lines.
    fn counter(&self, file: &str, name: &str) -> Option<u64> {
        counter(&fs::read_to_string(self.path.join(file)).ok()?, name)
    }

    /// Processes killed because this group was out of memory. Those that the kernel kills because
    /// the whole host is are counted in the same place. Version 2 also says how often the limit was
    /// run into: never, if they were no fault of it. Version 1 does not say it reliably
    /// (`memory.failcnt` stays 0 on Linux 6.18).
    fn memory_kills(&self) -> Option<u64> {
        let Some(kills) = self.counter("memory.events", "oom_kill") else {
            return self.counter("memory.oom_control", "oom_kill");
        };
        let limit_hit = self.counter("memory.events", "oom")? > 0;
        Some(if limit_hit { kills } else { 0 })
    }
}

fn counter(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// Lets the groups below `dir` have these controllers.
fn hand_down(dir: &Path, controllers: &[Controller]) -> io::Result<()> {
    let file = dir.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file)?;
    for controller in controllers.iter().map(|controller| controller.name()) {
        if !enabled.split_whitespace().any(|name| name == controller) {
            write(&file, &format!("+{controller}"))
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))?;
        }
    }
    Ok(())
}

/// A limit that no folder has a file for is none, which is well if none was asked for.
fn required(done: Option<()>, wanted: bool, what: &str) -> io::Result<()> {
    if done.is_none() && wanted {
        let error = format!("the control group was made without a limit on {what}");
        return Err(io::Error::new(io::ErrorKind::Unsupported, error));
    }
    Ok(())
}

impl Cgroup {
    /// No group.
    #[cfg(test)]
    pub(crate) fn none() -> Cgroup {
        Cgroup::default()
    }

    /// The group in these folders, whether they are there or not.
    pub(crate) fn at(paths: Vec<PathBuf>) -> Cgroup {
        let dirs = paths.into_iter().map(|path| Dir { path, ..Dir::default() }).collect();
        Cgroup { dirs, scope: None }
    }

    fn managed(scope: Scope) -> Cgroup {
        let dirs = vec![Dir { path: scope.path.clone(), ..Dir::default() }];
        Cgroup { dirs, scope: Some(scope) }
    }

    /// Makes the group and sets its limits. A scope is made by the first process that is started in
    /// it.
    pub(crate) fn create(&self) -> io::Result<()> {
        if self.scope.is_some() {
            return Ok(());
        }
        self.dirs.iter().try_for_each(Dir::create)
    }

    /// Its folder: the first of them, where it has several.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.dirs.first().map(|dir| dir.path.as_path())
    }

    /// All of its folders.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.dirs.iter().map(|dir| dir.path.clone()).collect()
    }

    /// What to execute so that `program` runs in this group: another program before it, where
    /// [`Cgroup::entry`] leads nowhere because the group is a scope. Only one process can be started
    /// in a scope; all that it starts are in it too.
    pub(crate) fn wrap(&self, program: PathBuf, args: Vec<OsString>) -> Wrapped {
        match &self.scope {
            Some(scope) => scope.wrap(program, args),
            None => Wrapped { program, args, variable: None },
        }
    }

    /// What a new process needs to be in the group.
    pub(crate) fn entry(&self) -> io::Result<Entry> {
        let mut entry = Entry::default();
        if self.scope.is_some() {
            return Ok(entry);
        }
        for dir in &self.dirs {
            let open = |file| OpenOptions::new().write(true).open(dir.path.join(file)).map(OwnedFd::from);
            match open("tasks") {
                Ok(tasks) => entry.tasks.push(tasks),
                // Only version 1 has it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    entry.folder = Some(OwnedFd::from(fs::File::open(&dir.path)?));
                    entry.procs = Some(open("cgroup.procs")?);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(entry)
    }

    /// Has an existing group hold to these limits from now on; what is `None` is limited no more. With
    /// version 1 only what it was limited in when it was made. Memory below what is in use is an error with
    /// version 1, and may cost processes their lives with version 2.
    pub(crate) fn limit(&self, limits: &Limits) -> io::Result<()> {
        let memory = |none: &str| limits.memory.map_or_else(|| none.to_owned(), |bytes| bytes.to_string());
        let pids = limits.processes.map_or_else(|| "max".to_owned(), |most| most.to_string());
        let quota = |none: &str| limits.cpus.map_or_else(|| none.to_owned(), |cpus| cpus.quota().to_string());
        if self.set("memory.max", &memory("max"))?.is_none() {
            // Memory and swap together may never be less than memory: which goes first depends.
            let (most, both) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
            let value = memory("-1");
            let first = self.set(most, &value);
            self.set(both, &value)?;
            let done = if first.is_err() { self.set(most, &value)? } else { first? };
            required(done, limits.memory.is_some(), "memory")?;
        }
        required(self.set("pids.max", &pids)?, limits.processes.is_some(), "processes")?;
        if self.set("cpu.max", &format!("{} {CPU_PERIOD}", quota("max")))?.is_none() {
            let done = self.set("cpu.cfs_quota_us", &quota("-1"))?;
            required(done, limits.cpus.is_some(), "processor time")?;
        }
        Ok(())
    }

    /// Writes into the file of this name in the folder that has it, if one has.
    fn set(&self, file: &str, value: &str) -> io::Result<Option<()>> {
        for dir in &self.dirs {
            match write(&dir.path.join(file), value) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io::Error::new(error.kind(), format!("{file}={value}: {error}"))),
                Ok(()) => return Ok(Some(())),
            }
        }
        Ok(None)
    }

    /// What it has counted since it was made.
    pub(crate) fn events(&self) -> Events {
        let first = |read: &dyn Fn(&Dir) -> Option<u64>| self.dirs.iter().find_map(read).unwrap_or_default();
        Events {
            memory_kills: first(&Dir::memory_kills),
            processes_refused: first(&|dir| dir.counter("pids.events", "max")),
        }
    }

    /// After [`Cgroup::destroy`] of a group whose owner was killed: has others forget it too.
    pub(crate) fn dismiss(&self) {
        for dir in self.dirs.iter().filter(|dir| scope::is_scope(&dir.path) && dir.path.exists()) {
            scope::dismiss(&dir.path);
        }
    }

    /// Kills every process in the group and removes it. Waits at most `patience`.
    pub(crate) fn destroy(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_micros(200);
        loop {
            // One after the other, whatever becomes of each.
            let failures: Vec<io::Error> = self.dirs.iter().filter_map(|dir| dir.remove().err()).collect();
            let Some(error) = failures.into_iter().next() else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(error);
            }
            self.dirs.iter().for_each(Dir::kill);
            // What is frozen with version 1 dies when it thaws.
            self.melt();
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}

/// The ways into a group for a process that is being made.
///
/// In version 1 it goes through the file `tasks`, for a reason of time: what is written to
/// `cgroup.procs` moves a whole process, for which the kernel stops every fork and exit on the host,
/// which takes until all processors have passed through the scheduler (5 to 20 ms on an idle host).
/// A thread that moves only itself need not wait for that (`cgroup_procs_write_start` in
/// kernel/cgroup/cgroup.c), and a process that was just forked has one thread. In version 2, where
/// threads cannot be apart, the process is made in the group ([`super::spawn`]).
#[derive(Debug, Default)]
pub(crate) struct Entry {
    tasks: Vec<OwnedFd>,
    /// Of version 2, to be made in.
    folder: Option<OwnedFd>,
    /// The same group, to move into where that cannot be done.
    procs: Option<OwnedFd>,
}

impl Entry {
    /// The folder of version 2 that the process should be made in.
    pub(super) fn folder(&self) -> Option<BorrowedFd<'_>> {
        self.folder.as_ref().map(OwnedFd::as_fd)
    }

    /// Moves the calling process, which has one thread, into the group, as far as it is not in it.
    /// Async-signal-safe.
    #[allow(unsafe_code, reason = "write(2) between fork and exec")]
    pub(super) fn join(&self, born: Born) -> io::Result<()> {
        let procs = self.procs.as_ref().filter(|_| born == Born::Outside);
        for file in self.tasks.iter().chain(procs) {
            let fd: RawFd = file.as_raw_fd();
            // SAFETY: the descriptor is open and the buffer is one constant byte; "0" is the writer.
            let written = unsafe { libc::write(fd, c"0".as_ptr().cast(), 1) };
            if written != 1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "children join groups between fork and exec, as helpers do")]
mod tests {
    use super::*;
    use crate::sys::limits::{Limits, Mechanism};
    use firn_protocol::Exceeded;
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
        let group = Cgroup::at(vec!["/nowhere".into(), dir.path().to_owned()]);
        assert_eq!(group.events(), Events::default());
        write("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
        assert_eq!(group.events().memory_kills, 2);
        write("memory.events", "max 3\noom 0\noom_kill 1\n");
        assert_eq!(group.events().memory_kills, 0);
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
            ["-c", "echo $$ >&7; cat /proc/self/cgroup >&7; exec 7>&-; sleep 60"]
                .map(OsString::from)
                .to_vec(),
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
            let limits =
                Limits { memory: Some(memory), processes: Some(processes), cpus: "0.25".parse().ok() };
            group_again.limit(&limits).unwrap();
            let now = read("memory.max").or_else(|| read("memory.limit_in_bytes")).unwrap();
            assert_eq!(now.trim(), memory.to_string());
            assert_eq!(read("pids.max").unwrap().trim(), processes.to_string());
            let quota = read("cpu.max").or_else(|| read("cpu.cfs_quota_us"));
            assert!(quota.is_none_or(|quota| quota.starts_with("25000")));
        }
        group_again.limit(&Limits::default()).unwrap();
        assert_eq!(read("pids.max").unwrap().trim(), "max");
        end(&group, child);
        let gone = Cgroup::none().limit(&limits).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::Unsupported);
        Cgroup::none().limit(&Limits::default()).unwrap();
    }
}
