//! The `firn` binary, started as a person would start it.

use crate::Host;
use crate::host::binaries;
use std::io::{Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// When a command is taken for hanging.
const HANG: Duration = Duration::from_secs(240);

/// A `firn` that has not been started.
#[derive(Debug)]
pub struct Firn {
    command: Command,
    stdin: Option<Vec<u8>>,
}

/// What came out of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its exit code; 128+n when signal n ended firn itself.
    pub code: i32,
    /// Its stdout.
    pub stdout: Vec<u8>,
    /// Its stderr.
    pub stderr: String,
}

impl Firn {
    pub(crate) fn new(host: &Host, args: &[&str]) -> Firn {
        let mut command = Command::new(binaries().join("firn"));
        command
            .args(args)
            .current_dir(host.work())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", host.home())
            .env("FIRN_RUNTIME_DIR", host.runtime())
            .env("FIRN_STATE_DIR", host.state())
            .env("FIRN_CACHE_DIR", host.cache())
            .env("FIRN_CONFIG", host.config());
        if let Some(user) = host.user() {
            use std::os::unix::process::CommandExt as _;
            command.uid(user).gid(user);
        }
        Firn { command, stdin: None }
    }

    /// With this variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Firn {
        self.command.env(name, value);
        self
    }

    /// In this folder.
    #[must_use]
    pub fn current_dir(mut self, dir: &Path) -> Firn {
        self.command.current_dir(dir);
        self
    }

    /// With these bytes on stdin, then its end. Without: `/dev/null`.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Firn {
        self.stdin = Some(bytes.into());
        self
    }

    /// The process itself, with everything piped.
    #[must_use]
    pub fn spawn(mut self) -> Child {
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The command, for what this type does not foresee.
    #[must_use]
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Runs it to its end.
    #[must_use]
    pub fn finish(mut self) -> Finished {
        let input = self.stdin.take();
        self.command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let writer = std::thread::spawn(move || {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                // Nobody has to read it.
                let _ = stdin.write_all(&input);
            }
        });
        let finished = collect(child);
        writer.join().unwrap();
        finished
    }
}

fn drain(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Waits for a process's end, reading all it says.
#[must_use]
pub fn collect(mut child: Child) -> Finished {
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let deadline = Instant::now() + HANG;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            let _ = child.wait();
            let stderr = stderr.map(|thread| thread.join().unwrap()).unwrap_or_default();
            panic!("firn hangs; it said: {}", String::from_utf8_lossy(&stderr));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Finished {
        code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
        stdout: stdout.map(|thread| thread.join().unwrap()).unwrap_or_default(),
        stderr: stderr
            .map(|thread| String::from_utf8_lossy(&thread.join().unwrap()).into_owned())
            .unwrap_or_default(),
    }
}

impl Finished {
    /// Its stdout, as text.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// What the command in the sandbox and firn said on stderr, without firn's standing remark on
    /// hosts without KVM.
    #[must_use]
    pub fn complaints(&self) -> String {
        let complaints = self.stderr.lines().filter(|line| !line.starts_with("firn: no usable KVM"));
        complaints.map(|line| format!("{line}\n")).collect()
    }

    /// Its stdout, as one value in JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// Checks its exit code.
    pub fn expect(self, code: i32) -> Finished {
        assert_eq!(
            self.code,
            code,
            "stdout: {}\nstderr: {}",
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        );
        self
    }
}
