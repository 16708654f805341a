//! Helper processes: the VMM and those that serve it, or a jail.
//!
//! A helper belongs to its sandbox and outlives who started it. Whoever comes next takes it over, by what
//! was recorded of it before it ran ([`ProcessId`]) and by two files beside the sandbox:
//!
//! | `ROLE.log` | a FIFO: its stdout and stderr, of which the last is kept for the error that tells why it failed |
//! | `ROLE.status` | what bubblewrap says of how it ended: nobody is its parent and could wait for it |
//!
//! One that was just started and one that was taken over are the same thing. Dropping its handle kills
//! it, which undoes a launch that fails; [`Helper::release`] lets it live.
//!
//! bubblewrap ends what it started when it is killed itself, but not from its first moment. So root's
//! helpers have a pid namespace around bubblewrap, which the kernel ends with it.
#![allow(unsafe_code, reason = "what happens between fork and exec has no safe wrapper")]

use crate::sys::cgroup::{Cgroup, Wrapped};
use crate::sys::identity::Identity;
use crate::sys::pidfd::Process;
pub(crate) use crate::sys::pidfd::ProcessId;
pub(crate) use crate::sys::spawn::Pids;
use crate::sys::spawn::Program;
use crate::sys::staging::{self, Staged};
use crate::sys::tail::{Tail, make_fifo, open_fifo};
use serde::Deserialize;
use std::ffi::{CString, OsString};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long bubblewrap may take to follow the program it watched.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// What a helper does in its sandbox, where there is one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Role {
    /// Its name in records and of its files.
    pub(crate) id: &'static str,
    /// What it is called in messages.
    pub(crate) name: &'static str,
}

/// Writes down that there is a process for a role, before it runs anything. The role is a [`Role::id`].
pub(crate) type Record<'a> = &'a (dyn Fn(&'static str, ProcessId) -> io::Result<()> + Sync);

/// Where the helpers of a sandbox are started.
#[derive(Clone, Copy)]
pub(crate) struct Station<'a> {
    /// The group of the sandbox.
    pub(crate) cgroup: &'a Cgroup,
    /// A folder of ours alone, for their files.
    pub(crate) folder: &'a Path,
    /// Where they are written down.
    pub(crate) record: Record<'a>,
}

impl fmt::Debug for Station<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Station")
            .field("cgroup", &self.cgroup)
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// A helper that has not been started.
#[derive(Debug)]
pub(crate) struct HelperCommand {
    /// What it is for.
    pub(crate) role: Role,
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<OsString>,
    /// Its environment, all of it.
    pub(crate) variables: Vec<(&'static str, OsString)>,
    /// Who it runs as.
    pub(crate) identity: Identity,
    /// Descriptors it inherits under the same numbers. All others stay ours.
    pub(crate) fds: Vec<OwnedFd>,
    /// What it inherits as descriptor 3, where a program looks that is handed one socket (`sd_listen_fds`(3)).
    pub(crate) third: Option<OwnedFd>,
    /// What is mounted for it alone before it starts.
    pub(crate) staged: Vec<Staged>,
    /// Its working directory: where it belongs, not where the caller happens to be.
    pub(crate) folder: PathBuf,
    /// Its place among processes. For what looks into `/proc` of the host only [`Pids::Shared`] will do.
    pub(crate) pids: Pids,
    /// Whether it says how it ended.
    pub(crate) reports: Reports,
}

/// Whether a program says how what it ran ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reports {
    /// It is bubblewrap.
    End,
    /// It is not.
    Nothing,
}

/// When what only a program sees is unmounted, of one that is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unmounting {
    /// Before the program has ended.
    First,
    /// With [`Mounts`]: it takes as long as all the rest of an end.
    Later,
}

/// What only a program saw that was killed, and may by now be unmounted: dropping this does it, if nothing
/// else has.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Mounts(Vec<File>);

/// How a helper ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With this exit code, which is 128 and the number of the signal that killed it, if one did.
    Code(i32),
    /// Nobody says: bubblewrap itself was killed or gave up, or it ran without.
    Unknown,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Code(code) => write!(f, "exit code {code}"),
            End::Unknown => f.write_str("no exit code"),
        }
    }
}

/// A helper could not be started or did not stay up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    /// `fork` or `exec` failed.
    #[error("cannot start {name} ({})", program.display())]
    Start {
        /// The helper.
        name: &'static str,
        /// What was executed.
        program: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It runs, and cannot be taken over.
    #[error("cannot take {name} over")]
    Adopt {
        /// The helper.
        name: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It ended while it was needed.
    #[error("{name} ended unexpectedly ({status}){}", said(output))]
    Ended {
        /// The helper.
        name: &'static str,
        /// How.
        status: String,
        /// The last of what it wrote.
        output: String,
    },
}

fn said(output: &str) -> String {
    let output = output.trim_end();
    if output.is_empty() { String::new() } else { format!(":\n{output}") }
}

/// A running helper.
#[derive(Debug)]
pub(crate) struct Helper {
    name: &'static str,
    id: ProcessId,
    process: Held,
    /// Whose end comes with its own.
    pids: Pids,
    output: Tail,
    status: PathBuf,
}

/// A process that is killed by letting go of it.
#[derive(Debug)]
struct Held(Option<Process>);

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            process.end();
        }
    }
}

/// Its files in `folder`.
fn log_path(folder: &Path, role: Role) -> PathBuf {
    folder.join(format!("{}.log", role.id))
}

fn status_path(folder: &Path, role: Role) -> PathBuf {
    folder.join(format!("{}.status", role.id))
}

impl HelperCommand {
    /// Starts it. It runs once it is recorded.
    pub(crate) fn start(mut self, station: Station<'_>) -> Result<Helper, ProcessError> {
        let (role, program) = (self.role, self.program.clone());
        let failed = |source| ProcessError::Start { name: role.name, program: program.clone(), source };
        let status = status_path(station.folder, role);
        if self.reports == Reports::End {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&status);
            let file = OwnedFd::from(file.map_err(failed)?);
            let number = file.as_raw_fd().to_string();
            self.args.splice(0..0, ["--json-status-fd".into(), number.into()]);
            self.fds.push(file);
        }
        let log = log_path(station.folder, role);
        let to_log = make_fifo(&log).map_err(failed)?;
        let output = open_fifo(&log).and_then(Tail::follow).map_err(failed)?;
        let pids = self.pids;
        let process = self.spawn(station, to_log).map_err(failed)?;
        let (id, process) = (process.id(), Held(Some(process)));
        Ok(Helper { name: role.name, id, process, pids, output, status })
    }

    fn spawn(self, station: Station<'_>, log: OwnedFd) -> io::Result<Process> {
        let HelperCommand {
            role, program, args, variables, identity, fds, third, staged, folder, pids, ..
        } = self;
        let Wrapped { program, args, variable } = station.cgroup.wrap(program, args);
        let entry = station.cgroup.entry()?;
        let staged = staging::prepare(staged)?;
        let folder = CString::new(folder.into_os_string().into_vec()).map_err(io::Error::other)?;
        let inherited: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let null = File::open("/dev/null")?;
        let env = variables.into_iter().chain(variable.map(|(name, value)| (name, value.into()))).map(
            |(name, value)| {
                let mut variable = OsString::from(name);
                variable.push("=");
                variable.push(value);
                variable
            },
        );
        let start = Program {
            path: program,
            args,
            env: env.collect(),
            stdio: [null.into(), log.try_clone()?, log],
            third,
            pids,
        };
        // SAFETY: only system calls are made, on values that were prepared before.
        unsafe {
            start.start(
                entry.folder(),
                |id| (station.record)(role.id, id),
                |born| {
                    // In this order: a cgroup is joined with the rights we give up next.
                    entry.join(born)?;
                    if libc::chdir(folder.as_ptr()) != 0 {
                        return Err(io::Error::last_os_error());
                    }
                    staging::attach(&staged)?;
                    raise_file_limit();
                    forbid_core_files();
                    become_identity(identity)?;
                    // Out of the terminal's foreground: Ctrl-C is for us, and we decide who ends.
                    if libc::setsid() < 0 {
                        return Err(io::Error::last_os_error());
                    }
                    keep_descriptors()?;
                    for fd in &inherited {
                        if libc::fcntl(*fd, libc::F_SETFD, 0) != 0 {
                            return Err(io::Error::last_os_error());
                        }
                    }
                    Ok(())
                },
            )
        }
    }
}

/// How many descriptors a helper may have: virtiofsd, which here may not use file handles, keeps
/// one for each file the guest's kernel remembers. The kernel's own bound (`fs.nr_open`) is this.
const DESCRIPTORS: libc::rlim_t = 1 << 20;

/// Takes as many descriptors as we may have. Fewer are no failure. Async-signal-safe.
fn raise_file_limit() {
    let most = libc::rlimit { rlim_cur: DESCRIPTORS, rlim_max: DESCRIPTORS };
    let mut given = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain system calls on values that outlive them.
    unsafe {
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const most) != 0
            && libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut given) == 0
        {
            given.rlim_cur = given.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const given);
        }
    }
}

/// A core file would be written where the process happens to be, or handed to a program of the
/// host's. 1 forbids both: 0 forbids only the file (`core`(5)). Async-signal-safe.
fn forbid_core_files() {
    let none = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
    // SAFETY: a plain system call on a value that outlives it.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
}

/// Has every descriptor above stderr closed by the exec to come: ours already are, but whoever started
/// us may have passed some on. Async-signal-safe.
fn keep_descriptors() -> io::Result<()> {
    /// Of linux/close_range.h.
    const CLOEXEC: libc::c_uint = 4;
    /// Before Linux 5.11 they are gone through one by one, to the usual limit.
    const USUAL_LIMIT: RawFd = 1024;
    // SAFETY: plain system calls on numbers.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOEXEC) == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => {
                for fd in 3..USUAL_LIMIT {
                    libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                }
                Ok(())
            }
            error => Err(error),
        }
    }
}

/// Gives up root for another identity. Async-signal-safe.
fn become_identity(identity: Identity) -> io::Result<()> {
    let Identity::Stranger { id, group } = identity else { return Ok(()) };
    let group = group.unwrap_or(id);
    // Not the C library's functions, which act on all threads that it remembers (`nptl`(7)).
    // SAFETY: plain system calls; `group` outlives the call that reads it.
    let done = unsafe {
        libc::syscall(libc::SYS_setgroups, 1, &raw const group) == 0
            && libc::syscall(libc::SYS_setresgid, id, id, id) == 0
            && libc::syscall(libc::SYS_setresuid, id, id, id) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What bubblewrap reports, a line for each event; only its last has this.
#[derive(Deserialize)]
struct Report {
    #[serde(rename = "exit-code")]
    exit_code: i32,
}

/// How long a report may be; it names half a dozen namespaces.
const LONGEST_REPORT: u64 = 4096;

fn reported(status: &Path) -> End {
    let mut text = String::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(status);
    let read =
        file.and_then(|file| io::Read::read_to_string(&mut io::Read::take(file, LONGEST_REPORT), &mut text));
    if read.is_err() {
        return End::Unknown;
    }
    let mut reports = text.lines().rev().filter_map(|line| serde_json::from_str::<Report>(line).ok());
    reports.next().map_or(End::Unknown, |report| End::Code(report.exit_code))
}

impl Helper {
    /// Takes over one that was started from here or by a process that is gone. `None`: it has ended too.
    pub(crate) fn adopt(role: Role, id: ProcessId, folder: &Path) -> Result<Option<Helper>, ProcessError> {
        let failed = |source| ProcessError::Adopt { name: role.name, source };
        let Some(process) = Process::adopt(id).map_err(failed)? else { return Ok(None) };
        let output = open_fifo(&log_path(folder, role)).and_then(Tail::follow).map_err(failed)?;
        let (process, status) = (Held(Some(process)), status_path(folder, role));
        // Which it has nobody says: what is below it is looked for.
        Ok(Some(Helper { name: role.name, id, process, pids: Pids::Shared, output, status }))
    }

    /// Lets it live on without us.
    pub(crate) fn release(mut self) {
        self.process.0 = None;
    }

    fn process(&self) -> Option<&Process> {
        self.process.0.as_ref()
    }

    /// What it is recorded as.
    pub(crate) fn id(&self) -> ProcessId {
        self.id
    }

    /// The last of what it wrote to stdout and stderr.
    pub(crate) fn output(&self) -> String {
        self.output.text()
    }

    /// Waits until it has ended. May be called again, and dropped at any time.
    pub(crate) async fn ended(&self) -> io::Result<End> {
        if let Some(process) = self.process() {
            process.ended().await?;
        }
        Ok(reported(&self.status))
    }

    /// Waits until it has ended, which it should not have.
    pub(crate) async fn failed(&self) -> ProcessError {
        let status = match self.ended().await {
            Ok(end) => end.to_string(),
            Err(error) => error.to_string(),
        };
        ProcessError::Ended { name: self.name, status, output: self.output() }
    }

    /// Its process and those directly below: with bubblewrap, the monitor outside and the program.
    #[cfg(test)]
    pub(crate) fn processes(&self) -> Vec<u32> {
        let Some(process) = self.process().filter(|process| !process.has_ended()) else { return Vec::new() };
        let pid = process.id().pid();
        std::iter::once(pid).chain(crate::sys::pidfd::children(pid)).collect()
    }

    /// Has the kernel begin to end it, where that needs nothing else: with its pid namespace. The program
    /// takes longest, and is not to wait for its monitor; nor for what it sees to be unmounted, if that may
    /// come later.
    pub(crate) fn begin_kill(&self, unmounting: Unmounting) -> Mounts {
        let mut mounts = Mounts::default();
        if let (Pids::Own, Some(process)) = (self.pids, self.process()) {
            process.kill_children_after(|program| {
                if unmounting == Unmounting::Later {
                    // It only takes longer without.
                    mounts.0.extend(File::open(format!("/proc/{program}/ns/mnt")));
                }
            });
            process.kill();
        }
        mounts
    }

    /// Kills it, if it still runs, and waits until it is gone: with all that is in its pid namespace, if it
    /// has its own; otherwise the program first, whose end its monitor waits for, so that both are gone when
    /// this returns.
    pub(crate) async fn kill(&self) {
        let Some(process) = self.process() else { return };
        if self.pids == Pids::Own {
            process.kill();
            // Its first process has ended when all others have.
            let _ = tokio::time::timeout(2 * KILL_PATIENCE, process.ended()).await;
            return;
        }
        process.kill_children();
        let _ = tokio::time::timeout(KILL_PATIENCE, process.ended()).await;
        process.kill();
        let _ = tokio::time::timeout(KILL_PATIENCE, process.ended()).await;
    }
}

/// Ends a process that is recorded, if it still is that process, with what it started. Inside the runtime.
pub(crate) fn end(id: ProcessId) {
    if let Ok(Some(process)) = Process::adopt(id) {
        process.kill_children();
        process.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::bubblewrap::Bubblewrap;
    use crate::sys::spawn::tests::run_ignored;

    const ROLE: Role = Role { id: "test", name: "the helper" };
    const RECORD: &str = "record";
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Starts a shell in a namespace of its own that sees `folder` at /run, recorded in it.
    fn start(folder: &Path, script: &str) -> Helper {
        let bwrap = Path::new("/usr/bin/bwrap");
        let mut namespace = Bubblewrap::new(bwrap, Identity::Caller);
        namespace.read_write(folder, Path::new("/run"));
        let args = ["-c", script].map(OsString::from);
        let command = namespace.command(ROLE, Path::new("/bin/sh"), &args).unwrap();
        let record = |role: &'static str, id| {
            assert_eq!(role, ROLE.id);
            std::fs::write(folder.join(RECORD), serde_json::to_vec(&id)?)
        };
        command.start(Station { cgroup: &Cgroup::none(), folder, record: &record }).unwrap()
    }

    fn adopt(folder: &Path) -> Option<Helper> {
        Helper::adopt(ROLE, recorded(folder), folder).unwrap()
    }

    fn recorded(folder: &Path) -> ProcessId {
        serde_json::from_slice(&std::fs::read(folder.join(RECORD)).unwrap()).unwrap()
    }

    async fn until(mut holds: impl FnMut() -> bool) {
        let held = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, held).await.unwrap();
    }

    /// Writes more than fits into its log, then waits to be told, not for ever, then ends.
    const SCRIPT: &str = "yes | head -c 1000000; echo > /run/flooded
                          for n in $(seq 2000); do [ -e /run/go ] && break; sleep 0.01; done
                          echo; echo the last words; exit 9";

    #[tokio::test]
    #[ignore = "another test starts it"]
    async fn starter_that_is_killed() {
        let helper = start(&std::env::current_dir().unwrap(), SCRIPT);
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
        drop(helper);
    }

    #[tokio::test]
    async fn a_helper_outlives_its_starter_and_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        run_ignored("sys::process::tests::starter_that_is_killed", dir.path());
        // Nobody reads what it says.
        until(|| dir.path().join("flooded").exists()).await;
        let helper = adopt(dir.path()).unwrap();
        assert_eq!(helper.id(), recorded(dir.path()));
        assert!(helper.output().ends_with("y\ny\n"));
        assert!(tokio::time::timeout(Duration::from_millis(20), helper.ended()).await.is_err());
        std::fs::write(dir.path().join("go"), "").unwrap();
        assert_eq!(helper.ended().await.unwrap(), End::Code(9));
        assert!(helper.output().ends_with("\nthe last words\n"));
        assert!(
            helper.failed().await.to_string().starts_with("the helper ended unexpectedly (exit code 9):")
        );
        assert!(adopt(dir.path()).is_none());
    }

    #[tokio::test]
    async fn what_is_released_lives_and_what_is_dropped_does_not() {
        let dir = tempfile::tempdir().unwrap();
        start(dir.path(), SCRIPT).release();
        until(|| dir.path().join("flooded").exists()).await;
        let helper = adopt(dir.path()).unwrap();
        let processes = helper.processes();
        assert_eq!(processes.len(), 2, "bubblewrap, and what it runs");
        drop(helper);
        assert!(!recorded(dir.path()).is_alive());
        until(|| !Path::new(&format!("/proc/{}", processes[1])).exists()).await;
    }

    #[tokio::test]
    async fn what_is_killed_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let helper = start(dir.path(), SCRIPT);
        until(|| helper.processes().len() == 2).await;
        helper.kill().await;
        helper.kill().await;
        assert_eq!(helper.processes(), Vec::<u32>::new());
        // bubblewrap told what became of what it ran, or was ended with it.
        assert!(matches!(helper.ended().await.unwrap(), End::Code(137) | End::Unknown));
    }

    #[tokio::test]
    async fn bubblewrap_that_gives_up_has_no_exit_code_but_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut namespace = Bubblewrap::new(Path::new("/usr/bin/bwrap"), Identity::Caller);
        namespace.read_only(Path::new("/no/such/file"), Path::new("/x"));
        let command = namespace.command(ROLE, Path::new("/bin/true"), &[]).unwrap();
        let record = |_: &'static str, _| Ok(());
        let station = Station { cgroup: &Cgroup::none(), folder: dir.path(), record: &record };
        let failure = command.start(station).unwrap().failed().await.to_string();
        assert!(failure.contains("(no exit code)") && failure.contains("/no/such/file"), "{failure}");
    }
}
