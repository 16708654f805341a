//! A running sandbox, for as long as it is measured.

use crate::process::{self, Process};
use firn_tests::{Host, Peer};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// How long `firn` may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Sandbox {
    firn: Child,
    socket: PathBuf,
    pub(crate) agent: Peer,
}

/// Waits until nothing is left of any sandbox.
pub(crate) fn settled(host: &Host) {
    while !host.sandboxes().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Sandbox {
    /// `firn run` with these arguments. The command must say a line and then not end by itself.
    pub(crate) fn start(host: &Host, args: &[&str]) -> Sandbox {
        settled(host);
        let mut command = host.run(args).into_command();
        let mut firn = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("starts firn");
        let said = firn.stdout.take().map(BufReader::new);
        let line = said.and_then(|mut said| said.by_ref().bytes().next());
        let connect = || {
            let socket = host.sandboxes().first()?.join("sockets/vsock");
            Some((socket.clone(), Peer::vsock(&socket)?))
        };
        if let (Some(_), Some((socket, agent))) = (line, connect()) {
            return Sandbox { firn, socket, agent };
        }
        let _ = firn.kill();
        let _ = firn.wait();
        panic!("firn does not run a sandbox");
    }

    /// The host's end of vsock.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// All its processes, the daemon and its client among them: it is the only sandbox.
    #[expect(clippy::unused_self, reason = "there has to be one")]
    pub(crate) fn processes(&self) -> Vec<Process> {
        process::all()
    }

    /// What a command in it says.
    pub(crate) fn output(&mut self, argv: &[&str]) -> Vec<u8> {
        let mut said = Vec::new();
        let exited = self.agent.run(firn_tests::exec(argv), |_, bytes| said.extend_from_slice(bytes));
        let said_so = String::from_utf8_lossy(&said);
        assert_eq!(exited.status, firn_protocol::ExitStatus::Code(0), "{argv:?}: {said_so}");
        said
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.firn.id().cast_signed());
        let deadline = Instant::now() + PATIENCE;
        // Passed on to the command; repeated, it ends the sandbox whatever the command does.
        while matches!(self.firn.try_wait(), Ok(None)) && Instant::now() < deadline {
            let _ = kill(pid, Signal::SIGTERM);
            std::thread::sleep(Duration::from_millis(300));
        }
        let _ = self.firn.kill();
        let _ = self.firn.wait();
    }
}
