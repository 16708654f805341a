//! An interpreter with a driver of ours in it.
//!
//! It is a command like any other: a supervisor keeps everything it starts together. What it has besides
//! is a line to the agent: a pipe for orders, and a socket for reports that keeps packets apart, so that
//! bytes which code has written there by accident are packets of their own and are passed over.
//!
//! ```text
//!            ── orders: a header, the code ──▶
//!   agent    ◀─ reports: ready, begun, done ──   driver ── runs ──▶ code
//!            ◀───────── stdout, stderr ─────────────────────────────┘
//! ```
//!
//! A report counts only if it has the run's number and its nonce, which the driver is told with the code.
//! Code in the driver's own process can find them out: what it says then is of its own run only, which it
//! could have said without.

use crate::agent::Agent;
use crate::exec::{
    Beyond, Command, Ended, Order, Output, Report, Stage, StartFailure, Stdio, Streams, Supervised,
    not_started,
};
use crate::sys;
use bytes::{Buf as _, BytesMut};
use firn_protocol::{Driver, Exec, NotStarted, SessionCreate, Stdin, Text};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The numbers of the driver's descriptors are the last below this, or below the hard limit: above those
/// that code closes or replaces in passing.
const HIGHEST: u64 = 4096;

/// How many descriptors a driver has: orders, reports, and `/dev/null`, stdout and stderr once more.
const DESCRIPTORS: usize = 5;

/// The longest report, in bytes. Drivers use less than a hundred.
const LONGEST_REPORT: usize = 256;

/// The exit code of a driver that cannot talk to the agent any more (`EX_SOFTWARE` of `sysexits.h`).
const CUT_OFF: i32 = 70;

/// Reads the driver from the orders, and runs it.
const PYTHON_START: &str = "import os,sys\n\
    def f(n):\n b=b''\n while len(b)<n:\n  c=os.read(int(sys.argv[1]),n-len(b))\n  if not c:os._exit(70)\n  b+=c\n return b\n\
    exec(compile(f(int(f(8))),'<firn>','exec'),{'__name__':'firn'})";

/// The same.
const NODE_START: &str = "((o,s)=>{const f=(n)=>{const b=Buffer.alloc(n);for(let a=0;a<n;){\
    const c=s.readSync(o,b,a,n-a);if(!c)process.reallyExit(70);a+=c}return b.toString()};\
    (0,require('vm').runInThisContext)('(require,process)=>{'+f(Number(f(8)))+'\\n}',\
    {filename:'node:firn'})(require,process)})(Number(process.argv[1]),require('fs'))";

/// What a driver says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It takes runs.
    Ready,
    /// The run has its stdin open.
    Begun(Tag),
    /// The run is over.
    Done { tag: Tag, outcome: Outcome, code: i32 },
}

/// Tells a run from all others of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) run: u64,
    pub(super) nonce: u64,
}

/// How a run ended in the driver's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Ok,
    Exception,
    Exited,
    Interrupted,
}

/// What is heard of an interpreter.
#[derive(Debug)]
pub(super) enum Heard {
    Said(Said),
    /// It has ended, with all it started.
    Ended(Ended),
    /// Its supervisor has died.
    Vanished,
    Failed(StartFailure),
}

/// Whether an interpreter takes orders.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Readiness {
    /// It has not started.
    Never,
    /// It is at something else.
    Busy,
    Ready,
}

/// See the module. Dropping it ends it.
pub(super) struct Interpreter {
    supervised: Supervised,
    pub(super) outputs: [Option<Output>; 2],
    orders: AsyncFd<OwnedFd>,
    /// What waits to be written to `orders`.
    unsent: BytesMut,
    /// Whether it takes orders. Bash is none the wiser for one that it has not asked for: its parser may have
    /// taken it for a command.
    ready: Readiness,
    reports: Option<AsyncFd<OwnedFd>>,
    /// Its number in the driver.
    reports_number: RawFd,
    driver: Driver,
    pub(super) pid: u32,
}

impl Interpreter {
    /// Starts one. It is of use when it has said that it is ready.
    pub(super) fn start(agent: &Rc<Agent>, create: &SessionCreate) -> Result<Interpreter, NotStarted> {
        let failed = |errno: Errno| not_started(StartFailure { stage: Stage::Stdio, errno: errno as i32 });
        let io_failed = |error: io::Error| failed(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw));
        let first = first_number().map_err(failed)?;
        let exec = exec(create, first);
        let command = Command::new(&exec)?;
        let streams = Streams::open(&exec, || agent.null()).map_err(not_started)?;
        let Stdio::Pipes([stdin, stdout, stderr]) = streams.stdio else {
            return Err(failed(Errno::EINVAL));
        };
        let (theirs, orders) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
        fcntl(&orders, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(failed)?;
        let (reports, say) =
            socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)
                .map_err(failed)?;
        let null = agent.null().map_err(io_failed)?;
        let copies = (stdout.try_clone().map_err(io_failed)?, stderr.try_clone().map_err(io_failed)?);
        // Bash reads its orders as its own input, and has them again where code does not close them.
        let stdin = match create.driver {
            Driver::Bash => theirs.try_clone().map_err(io_failed)?,
            Driver::Python | Driver::Node => stdin,
        };
        let beyond = (first..).zip([theirs, say, null, copies.0, copies.1]);
        let beyond = beyond.map(|(number, fd)| Beyond { fd, number }).collect();
        let stdio = Stdio::Pipes([stdin, stdout, stderr]);
        let orders = sys::watch(orders, Interest::WRITABLE).map_err(io_failed)?;
        let reports = sys::watch(reports, Interest::READABLE).map_err(io_failed)?;
        Ok(Interpreter {
            supervised: Supervised::spawn(agent, command, stdio, beyond).map_err(not_started)?,
            outputs: streams.outputs,
            orders,
            unsent: driver_text(create.driver, first),
            ready: Readiness::Never,
            reports: Some(reports),
            reports_number: first + 1,
            driver: create.driver,
            pid: 0,
        })
    }

    /// Hands it a run. `stdin` is a FIFO that is open for writing.
    pub(super) fn begin(&mut self, tag: Tag, code: &[u8], artifacts: &str, stdin: Option<&str>) {
        let Tag { run, nonce } = tag;
        let stdin = stdin.unwrap_or("-");
        let header = format!("run {run} {nonce} {} {artifacts} {stdin}\n", code.len());
        let next = match self.driver {
            Driver::Bash => next_of_bash(tag, self.reports_number),
            Driver::Python | Driver::Node => String::new(),
        };
        self.unsent.reserve(header.len() + code.len() + next.len());
        self.unsent.extend_from_slice(header.as_bytes());
        self.unsent.extend_from_slice(code);
        self.unsent.extend_from_slice(next.as_bytes());
    }

    /// Whether it takes orders at once.
    pub(super) fn is_ready(&self) -> bool {
        self.ready == Readiness::Ready
    }

    pub(super) fn order(&self, order: Order) {
        self.supervised.order(order);
    }

    /// For when it does not carry out an order to kill.
    pub(super) fn kill_supervisor(&self) {
        self.supervised.kill_supervisor();
    }

    /// After [`Heard::Vanished`].
    pub(super) async fn end_strays(&self) {
        self.supervised.end_strays().await;
    }

    /// What is heard next. Sends what waits meanwhile.
    pub(super) fn poll_heard(&mut self, cx: &mut Context<'_>) -> Poll<Heard> {
        self.poll_send(cx);
        if self.pid == 0 {
            // The driver may be quicker to speak than its supervisor.
            match ready!(self.poll_supervisor(cx)) {
                None => {}
                Some(end) => return Poll::Ready(end),
            }
        }
        // What it said before it ended comes first.
        loop {
            match self.poll_said(cx) {
                Poll::Ready(Some(packet)) => {
                    let Some(said) = parse(&packet) else { continue };
                    if said == Said::Ready {
                        self.ready = Readiness::Ready;
                    }
                    return Poll::Ready(Heard::Said(said));
                }
                Poll::Ready(None) => self.reports = None,
                Poll::Pending => break,
            }
        }
        loop {
            if let Some(end) = ready!(self.poll_supervisor(cx)) {
                return Poll::Ready(end);
            }
        }
    }

    /// What its supervisor says. `None`: that it runs.
    fn poll_supervisor(&mut self, cx: &mut Context<'_>) -> Poll<Option<Heard>> {
        Poll::Ready(match ready!(self.supervised.poll_report(cx)) {
            Some(Report::Started { pid }) => {
                self.pid = pid.unsigned_abs();
                None
            }
            Some(Report::Ended(ended)) => Some(Heard::Ended(ended)),
            Some(Report::Failed(failure)) => Some(Heard::Failed(failure)),
            None => Some(Heard::Vanished),
        })
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) {
        if self.ready == Readiness::Busy || self.unsent.is_empty() {
            return;
        }
        while !self.unsent.is_empty() {
            let Poll::Ready(Ok(mut ready)) = self.orders.poll_write_ready(cx) else { return };
            match ready.try_io(|fd| nix::unistd::write(fd.get_ref(), &self.unsent).map_err(io::Error::from)) {
                Ok(Ok(written)) => self.unsent.advance(written),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nobody reads them. The interpreter ends, or code has closed them: its end tells.
                Ok(Err(_)) => self.unsent.clear(),
                Err(_would_block) => {}
            }
        }
        self.unsent = BytesMut::new();
        if self.driver == Driver::Bash && self.ready == Readiness::Ready {
            self.ready = Readiness::Busy;
        }
    }

    /// The next packet, which may be empty. `None`: there will be none.
    fn poll_said(&self, cx: &mut Context<'_>) -> Poll<Option<Vec<u8>>> {
        let Some(reports) = &self.reports else { return Poll::Pending };
        loop {
            let Ok(mut ready) = ready!(reports.poll_read_ready(cx)) else { return Poll::Ready(None) };
            let mut packet = [0; LONGEST_REPORT];
            let received = ready.try_io(|fd| {
                recv(fd.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from)
            });
            match received {
                Ok(Ok(length)) => return Poll::Ready(Some(packet[..length].to_vec())),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => return Poll::Ready(None),
                Err(_would_block) => {}
            }
        }
    }

    /// Whether this is how a driver ends that cannot talk to the agent any more.
    pub(super) fn was_cut_off(&self, ended: &Ended) -> bool {
        libc::WIFEXITED(ended.status) && libc::WEXITSTATUS(ended.status) == CUT_OFF
    }
}

/// The first of the driver's numbers.
fn first_number() -> Result<RawFd, Errno> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let end = hard.min(HIGHEST);
    let first = end.checked_sub(DESCRIPTORS as u64).filter(|first| *first > 32).ok_or(Errno::EMFILE)?;
    RawFd::try_from(first).map_err(|_too_large| Errno::EMFILE)
}

/// The interpreter as a command.
fn exec(create: &SessionCreate, first: RawFd) -> Exec {
    let (name, start): (&str, &[&str]) = match create.driver {
        Driver::Python => ("python3", &["-c", PYTHON_START]),
        Driver::Bash => ("bash", &["--noprofile", "--norc", "--noediting", "-i"]),
        Driver::Node => ("node", &["-e", NODE_START]),
    };
    let mut argv = create.argv.clone();
    if argv.is_empty() {
        argv.push(name.into());
    }
    argv.extend(start.iter().map(Text::from));
    if create.driver != Driver::Bash {
        argv.extend((first..).take(DESCRIPTORS).map(|number| Text::from(number.to_string())));
    }
    Exec {
        argv,
        cwd: create.cwd.clone(),
        env: create.env.clone(),
        user: create.user.clone(),
        terminal: None,
        stdin: Stdin::Null,
        timeout_ms: None,
        max_output_bytes: None,
        resource_limits: create.resource_limits.clone(),
        keep: None,
    }
}

/// What an interpreter is sent first.
fn driver_text(driver: Driver, first: RawFd) -> BytesMut {
    let sized = |text: &str| format!("{:08}{text}", text.len());
    let text = match driver {
        Driver::Python => sized(include_str!("drivers/python.py")),
        Driver::Node => sized(include_str!("drivers/node.js")),
        Driver::Bash => include_str!("drivers/bash.sh")
            .replace("@ORDERS@", &first.to_string())
            .replace("@REPORTS@", &(first + 1).to_string())
            .replace("@NULL@", &(first + 2).to_string())
            .replace("@OUT@", &(first + 3).to_string())
            .replace("@ERR@", &(first + 4).to_string()),
    };
    BytesMut::from(text.as_bytes())
}

/// The line behind the code of a run, for bash: see its driver.
fn next_of_bash(Tag { run, nonce }: Tag, reports: RawFd) -> String {
    format!("\\builtin printf 'done {run} {nonce} interrupted 130' >&{reports}; \\builtin eval \"$__firn\"\n")
}

/// A report, if it is one.
fn parse(packet: &[u8]) -> Option<Said> {
    let mut words = std::str::from_utf8(packet).ok()?.split(' ');
    let kind = words.next()?;
    if kind == "ready" {
        return words.next().is_none().then_some(Said::Ready);
    }
    let tag = Tag { run: words.next()?.parse().ok()?, nonce: words.next()?.parse().ok()? };
    let said = match kind {
        "begun" => Said::Begun(tag),
        "done" => {
            let outcome = match words.next()? {
                "ok" => Outcome::Ok,
                "exception" => Outcome::Exception,
                "exited" => Outcome::Exited,
                "interrupted" => Outcome::Interrupted,
                _ => return None,
            };
            let code = words.next()?.parse().ok().filter(|code| (0..=255).contains(code))?;
            Said::Done { tag, outcome, code }
        }
        _ => return None,
    };
    words.next().is_none().then_some(said)
}

/// What the interpreter itself uses of memory, in bytes. 0: it is gone, or does not let itself be looked at.
/// Not from `statm`: its counters lag behind by megabytes on many processors.
pub(super) fn resident_bytes(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("{pid}/smaps_rollup")).unwrap_or_default();
    let resident = rollup.lines().find_map(|line| line.strip_prefix("Rss:")?.trim().strip_suffix(" kB"));
    resident.and_then(|resident| resident.trim().parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_report_is_one() {
        let tag = Tag { run: 3, nonce: 7 };
        assert_eq!(parse(b"ready"), Some(Said::Ready));
        assert_eq!(parse(b"begun 3 7"), Some(Said::Begun(tag)));
        assert_eq!(parse(b"done 3 7 exited 4"), Some(Said::Done { tag, outcome: Outcome::Exited, code: 4 }));
        for other in [
            &b""[..],
            b"ready ",
            b"done 3 7 ok",
            b"done 3 7 ok 256",
            b"done 3 7 ok -1",
            b"done 3 7 fine 0",
            b"done 3 7 ok 0 0",
            b"done 99999999999999999999 7 ok 0",
            b"\xff\xfe",
            &[b' '; LONGEST_REPORT],
        ] {
            assert_eq!(parse(other), None, "{}", String::from_utf8_lossy(other));
        }
    }
}
