//! A user of firn, with folders of its own.

use crate::process::{adopt_orphans, bury};
use crate::{Firn, Grade, Peer, Process, descendants};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long to wait for something that happens soon or never.
const SOON: Duration = Duration::from_secs(60);

/// No guest boots that no test has asked for, be there KVM or not.
const USUAL_CONFIG: &str = "[pool]\nvm = 0\ncode = 0\n";

/// Nobody's number.
const NORMAL_USER: u32 = 54_242;

/// A home, folders for what runs and for what is recorded, and a cache; the cache is shared by all tests,
/// because making a guest image takes seconds. Its sandboxes are of one grade. It has a daemon of its own,
/// once a command has started it, which is stopped when the host goes.
#[derive(Debug)]
pub struct Host {
    dir: TempDir,
    /// The folder of running sandboxes, where it is not in the other.
    volatile: Option<TempDir>,
    cache: PathBuf,
    user: Option<u32>,
    grade: Grade,
    /// Whether everything that is left of a sandbox is known to be a descendant of ours.
    heir: bool,
}

#[expect(clippy::disallowed_methods, reason = "the test suite's own settings")]
pub(crate) fn setting(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// The folder with the built `firn` and `firn-agent`: `make test` says where.
#[must_use]
pub fn binaries() -> PathBuf {
    setting("FIRN_TEST_BIN")
        .expect("FIRN_TEST_BIN must name the folder with firn and firn-agent: use `make test`")
}

/// Short, because socket paths are; open for passing through, because root's helpers run as somebody else.
fn short_folder(parent: &str) -> TempDir {
    let dir = tempfile::Builder::new().prefix("firn-").tempdir_in(parent).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    dir
}

impl Default for Host {
    fn default() -> Host {
        Host::new()
    }
}

impl Host {
    /// A new one, whose sandboxes are of the grade that is given to who names none.
    #[must_use]
    pub fn new() -> Host {
        Host::of(Grade::default())
    }

    /// A new one, whose sandboxes are of this grade.
    #[must_use]
    pub fn of(grade: Grade) -> Host {
        let dir = short_folder("/tmp");
        for name in ["home", "work"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("config.toml"), USUAL_CONFIG).unwrap();
        let cache = setting("FIRN_TEST_CACHE").unwrap_or_else(|| binaries().join("test-cache"));
        Host { dir, volatile: None, cache, user: None, grade, heir: adopt_orphans() }
    }

    /// One whose running sandboxes have their folders in memory, as they have below `/run`.
    #[must_use]
    pub fn with_runtime_in_memory(grade: Grade) -> Host {
        let mut host = Host::of(grade);
        host.volatile = Some(short_folder("/dev/shm"));
        host
    }

    /// One with an empty cache.
    #[must_use]
    pub fn with_empty_cache() -> Host {
        let mut host = Host::new();
        host.cache = host.dir.path().join("cache");
        host
    }

    /// One that belongs to a normal user, where the tests run as root; else the same as any.
    #[must_use]
    pub fn of_a_normal_user(grade: Grade) -> Host {
        let mut host = Host::with_empty_cache();
        host.grade = grade;
        if nix::unistd::geteuid().is_root() {
            for dir in [host.dir.path().to_owned(), host.home(), host.work()] {
                std::os::unix::fs::chown(dir, Some(NORMAL_USER), Some(NORMAL_USER)).unwrap();
            }
            host.user = Some(NORMAL_USER);
        }
        host
    }

    pub(crate) fn user(&self) -> Option<u32> {
        self.user
    }

    /// The folder of running sandboxes.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        self.volatile.as_ref().unwrap_or(&self.dir).path().join("run")
    }

    /// The folder of what outlives a daemon.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The folder of kernels and images.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The daemon's configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    /// What a command that prints JSON said of the daemon.
    #[must_use]
    pub fn daemon_status(&self) -> serde_json::Value {
        self.firn(&["daemon", "status", "--json"]).finish().expect(0).json()
    }

    /// A folder to work in, on the host.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// `firn` with these arguments, not started yet.
    #[must_use]
    pub fn firn(&self, args: &[&str]) -> Firn {
        Firn::new(self, args)
    }

    /// `firn run` with these arguments, not started yet.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Firn {
        let mut all = vec!["run"];
        // The other grade is what `firn run` gives by itself, and is to be tested as that.
        if self.grade == Grade::Jail {
            all.extend(["--isolation", "jail"]);
        }
        all.extend_from_slice(args);
        self.firn(&all)
    }

    /// Makes a sandbox that stays, with these options, and gives its id. It is destroyed with the host.
    #[must_use]
    pub fn create(&self, options: &[&str]) -> String {
        let done = self.firn(&[&["create", "--isolation", self.grade.name()], options].concat()).finish();
        let id = done.expect(0).text().trim_end().to_owned();
        assert!(id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id:?} is no id");
        id
    }

    /// `firn exec` of a shell script in a sandbox, not started yet.
    #[must_use]
    pub fn exec(&self, sandbox: &str, script: &str) -> Firn {
        self.firn(&["exec", sandbox, "--", "sh", "-c", script])
    }

    /// What `firn status --json` says of a sandbox.
    #[must_use]
    pub fn status(&self, sandbox: &str) -> serde_json::Value {
        self.firn(&["status", sandbox, "--json"]).finish().expect(0).json()
    }

    /// `firn run` with these options and a shell script, not started yet.
    #[must_use]
    pub fn sh(&self, options: &[&str], script: &str) -> Firn {
        self.run(&[options, &["--", "sh", "-c", script]].concat())
    }

    /// `firn run` with these options and a Python script, which finds `args` in `sys.argv[1:]`, not
    /// started yet.
    #[must_use]
    pub fn python(&self, options: &[&str], script: &str, args: &[&str]) -> Firn {
        self.run(&[options, &["--", "python3", "-c", script], args].concat())
    }

    /// The caller's home.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// The folders of the sandboxes that exist now.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.runtime().join("sandboxes")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }

    /// The control groups, in every hierarchy, that are named after these sandboxes.
    #[must_use]
    pub fn cgroups(&self, sandboxes: &[PathBuf]) -> Vec<PathBuf> {
        let ids: Vec<&str> = sandboxes.iter().filter_map(|sandbox| sandbox.file_name()?.to_str()).collect();
        if ids.is_empty() {
            return Vec::new();
        }
        let mut found = Vec::new();
        let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
        while let Some(folder) = folders.pop() {
            // One that has gone meanwhile is not left.
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let name = entry.file_name();
                    let name = name.to_str().unwrap_or_default();
                    // A scope has an ending.
                    let id = name.strip_prefix("firn-").map(|id| id.trim_end_matches(".scope"));
                    if id.is_some_and(|id| ids.contains(&id)) {
                        found.push(entry.path());
                    }
                    folders.push(entry.path());
                }
            }
        }
        found
    }

    /// What of this host's sandboxes and firns lives, known by its ancestors, without its daemon.
    #[must_use]
    pub fn living(&self) -> Vec<Process> {
        self.all_living().into_iter().filter(|process| !is_daemon(&process.line)).collect()
    }

    fn all_living(&self) -> Vec<Process> {
        let _ = bury();
        if self.heir { descendants() } else { Vec::new() }
    }

    /// The processes that have to do with this host's sandboxes: their command lines name its
    /// folders. Its daemon is none of them.
    #[must_use]
    pub fn processes(&self) -> Vec<String> {
        let folders = [Some(&self.dir), self.volatile.as_ref()];
        let ours: Vec<&str> = folders.iter().flatten().map(|dir| dir.path().to_str().unwrap()).collect();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if ours.iter().any(|ours| line.contains(ours)) && !is_daemon(&line) {
                found.push(format!("{pid} {line}"));
            }
        }
        found
    }

    /// Waits for the sandbox of a `firn run` in the background, and connects to its agent. The
    /// command it was started with must be running.
    #[must_use]
    pub fn peer(&self) -> Peer {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(peer) =
                self.sandboxes().first().and_then(|sandbox| Peer::vsock(&sandbox.join("sockets/vsock")))
            {
                return peer;
            }
            assert!(Instant::now() < deadline, "no sandbox answers");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Destroys all sandboxes and stops the daemon, if there is one.
    pub fn stop_daemon(&self) {
        if !self.runtime().join("firn.sock").exists() {
            return;
        }
        let listed = self.firn(&["list", "--json", "--no-autostart"]).finish();
        // One that was killed has left its socket behind.
        if listed.code != 0 && listed.stderr.contains("no daemon listens") {
            return;
        }
        for sandbox in listed.expect(0).json().as_array().unwrap() {
            let destroyed = self.firn(&["destroy", sandbox["sessionId"].as_str().unwrap()]).finish();
            // One that was ending has ended.
            assert!(destroyed.code == 0 || destroyed.stderr.contains("not found"), "{}", destroyed.stderr);
        }
        let _ = self.firn(&["daemon", "stop", "--force"]).finish().expect(0);
    }

    /// Its daemon, if one runs.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<u32> {
        fs::read_to_string(self.dir.path().join("state/daemon.pid")).ok()?.trim().parse().ok()
    }

    /// Waits until `condition` holds.
    pub fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + SOON;
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain until {what}: {:#?}", self.living());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Checks that nothing is left of any sandbox.
    pub fn assert_clean(&self) {
        let sandboxes = self.sandboxes();
        assert!(sandboxes.is_empty(), "left in the runtime folder: {sandboxes:?}");
        // A killed process is gone a moment later than its parent.
        let deadline = Instant::now() + SOON;
        loop {
            let (processes, living) = (self.processes(), self.living());
            if processes.is_empty() && living.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "still running: {processes:#?} {living:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Whether a command line is a daemon's.
fn is_daemon(line: &str) -> bool {
    line.contains("firn daemon")
}

impl Drop for Host {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let daemon = self.daemon_pid();
            self.stop_daemon();
            self.assert_clean();
            let is_there = || self.all_living().iter().any(|process| Some(process.pid) == daemon);
            self.wait_until("the daemon is gone", || !is_there());
            return;
        }
        // A test that failed leaves nothing to those after it either. First what the groups are, then
        // what may be in them.
        let cgroups = self.cgroups(&self.sandboxes());
        for process in self.all_living() {
            let _ = kill(Pid::from_raw(process.pid.cast_signed()), Signal::SIGKILL);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.all_living().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        for cgroup in cgroups {
            let _ = fs::remove_dir(cgroup);
        }
    }
}
