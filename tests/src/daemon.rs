//! A daemon that a test starts itself, to have it killed.

use crate::{Host, collect};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

/// How long a daemon may take to listen.
const SOON: Duration = Duration::from_secs(60);

/// See the module. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon(Option<Child>);

impl Host {
    /// Starts a daemon, which is killed at `failpoint`, and waits until it listens.
    #[must_use]
    pub fn daemon(&self, failpoint: Option<&str>) -> Daemon {
        let firn = self.firn(&["daemon"]);
        self.listening(match failpoint {
            Some(failpoint) => firn.env("FIRN_FAILPOINT", failpoint).into_command(),
            None => firn.into_command(),
        })
    }

    /// Starts a daemon with a program that executes it, and waits until it listens.
    #[must_use]
    pub fn daemon_under(&self, program: &[&str]) -> Daemon {
        let firn = self.firn(&["daemon"]).into_command();
        let mut command = std::process::Command::new(program[0]);
        command.args(&program[1..]).arg(firn.get_program()).args(firn.get_args()).env_clear();
        command.envs(firn.get_envs().filter_map(|(name, value)| Some((name, value?))));
        self.listening(command)
    }

    fn listening(&self, mut command: std::process::Command) -> Daemon {
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        let log = std::fs::File::create(self.work().join("daemon.log")).unwrap();
        let mut child = command.stderr(log).spawn().unwrap();
        let deadline = Instant::now() + SOON;
        while UnixStream::connect(self.runtime().join("firn.sock")).is_err() {
            let log = || std::fs::read_to_string(self.work().join("daemon.log")).unwrap_or_default();
            assert_eq!(child.try_wait().unwrap(), None, "the daemon ended: {}", log());
            assert!(Instant::now() < deadline, "the daemon does not listen: {}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
        Daemon(Some(child))
    }
}

impl Daemon {
    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        let mut child = self.0.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits until it has ended by itself, as it should.
    pub fn ended(mut self) {
        let _ = collect(self.0.take().unwrap()).expect(0);
    }

    /// Has it stop, and waits until it has. Sandboxes that are kept live on.
    pub fn stop(self) {
        let pid = nix::unistd::Pid::from_raw(self.pid().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.ended();
    }

    /// Waits until it has been killed by its failpoint.
    pub fn killed(mut self) {
        let finished = collect(self.0.take().unwrap());
        assert_eq!(finished.code, 128 + 9, "the failpoint was not reached");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
