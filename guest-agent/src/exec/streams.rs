//! The agent's ends of a command's streams.

use super::report::{Stage, StartFailure};
use super::supervisor::Stdio;
use crate::connection::ConnectionError;
use crate::sys;
use bytes::{Buf as _, BytesMut};
use firn_protocol::{Exec, Kind, STDIN_WINDOW, Stdin};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The first read of a stream asks for this much, in bytes: most commands say little.
const FIRST_CHUNK: usize = 16 * 1024;

/// A stream that fills its chunks is read in chunks of this size, in bytes.
const FULL_CHUNK: usize = 256 * 1024;

/// The size of the pipe of such a stream. Fewer switches between writer and reader.
const FULL_PIPE: i32 = 1024 * 1024;

/// End of file, typed on a terminal (`VEOF` of a fresh one).
const END_OF_TRANSMISSION: u8 = 0x04;

/// How many bytes of stdin are taken before the host is told: an event per keystroke is enough.
const CREDIT_STEP: u32 = STDIN_WINDOW / 4;

type Descriptor = Rc<AsyncFd<OwnedFd>>;

/// All streams of a command, both ends.
pub(crate) struct Streams {
    pub(crate) stdin: Input,
    /// Stdout (or the terminal) and stderr.
    pub(crate) outputs: [Option<Output>; 2],
    pub(crate) terminal: Option<Descriptor>,
    /// The command's ends.
    pub(crate) stdio: Stdio,
}

impl Streams {
    /// Makes the streams a request asks for. `null` gives `/dev/null`.
    pub(crate) fn open(
        exec: &Exec,
        null: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> Result<Streams, StartFailure> {
        match exec.terminal {
            Some(size) => {
                let failed = |errno: Errno| StartFailure { stage: Stage::Terminal, errno: errno as i32 };
                let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                let master = nix::fcntl::open("/dev/ptmx", flags, Mode::empty()).map_err(failed)?;
                sys::unlock_terminal(&master).map_err(failed)?;
                sys::set_terminal_size(&master, size.rows, size.columns).map_err(failed)?;
                let peer = sys::open_terminal_peer(&master).map_err(failed)?;
                let master = register(master, Interest::READABLE | Interest::WRITABLE)?;
                let stdin = (exec.stdin == Stdin::Stream).then(|| Rc::clone(&master));
                Ok(Streams {
                    stdin: Input::new(stdin, InputKind::Terminal),
                    outputs: [Some(Output::new(Kind::Stdout, Rc::clone(&master), Ending::Hangup)), None],
                    terminal: Some(master),
                    stdio: Stdio::Terminal(peer),
                })
            }
            None => {
                let failed = |errno: Errno| StartFailure { stage: Stage::Stdio, errno: errno as i32 };
                let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed);
                let (stdin, command_in) = match exec.stdin {
                    Stdin::Null => (None, null().map_err(|error| failed(errno_of(&error)))?),
                    Stdin::Stream => {
                        let (theirs, ours) = pipe()?;
                        (Some(register(ours, Interest::WRITABLE)?), theirs)
                    }
                };
                let (stdout, command_out) = pipe()?;
                let (stderr, command_err) = pipe()?;
                Ok(Streams {
                    stdin: Input::new(stdin, InputKind::Pipe),
                    outputs: [
                        Some(Output::new(Kind::Stdout, register(stdout, Interest::READABLE)?, Ending::Empty)),
                        Some(Output::new(Kind::Stderr, register(stderr, Interest::READABLE)?, Ending::Empty)),
                    ],
                    terminal: None,
                    stdio: Stdio::Pipes([command_in, command_out, command_err]),
                })
            }
        }
    }
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn register(fd: OwnedFd, interest: Interest) -> Result<Descriptor, StartFailure> {
    let failed = |errno: Errno| StartFailure { stage: Stage::Stdio, errno: errno as i32 };
    // On our end only: the command's is another open file and stays blocking.
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(failed)?;
    sys::watch(fd, interest).map(Rc::new).map_err(|error| failed(errno_of(&error)))
}

/// When a stream is over although it may still be open somewhere.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// A pipe: what the command wrote is in it when the command has ended.
    Empty,
    /// A terminal: the kernel moves the last bytes on its own time, then hangs up.
    Hangup,
}

/// Where a command writes.
pub(crate) struct Output {
    pub(crate) kind: Kind,
    fd: Descriptor,
    ending: Ending,
    /// How much to read at once.
    pub(crate) chunk: usize,
    /// What is still to be read now that the command is over.
    left: Option<u64>,
}

impl Output {
    fn new(kind: Kind, fd: Descriptor, ending: Ending) -> Output {
        Output { kind, fd, ending, chunk: FIRST_CHUNK, left: None }
    }

    /// The command is over, with all it started: from now on the stream ends when it is empty, even
    /// if a stranger (a process of another exec that was handed the pipe) holds it open.
    pub(crate) fn command_over(&mut self) {
        if self.ending == Ending::Empty {
            self.left = Some(sys::bytes_readable(self.fd.get_ref()).unwrap_or(0));
        }
    }

    /// Reads into `room`, which is [`Output::chunk`] long. 0 is the end.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<usize> {
        if let Some(left) = &mut self.left {
            // Without asking whether it is ready: that news may lag behind.
            let most = usize::try_from(*left).map_or(room.len(), |left| left.min(room.len()));
            let read = if most == 0 {
                0
            } else {
                nix::unistd::read(self.fd.get_ref(), &mut room[..most]).unwrap_or(0)
            };
            *left -= read as u64;
            return Poll::Ready(read);
        }
        loop {
            let Ok(mut ready) = ready!(self.fd.poll_read_ready(cx)) else {
                return Poll::Ready(0);
            };
            match ready.try_io(|fd| nix::unistd::read(fd.get_ref(), room).map_err(io::Error::from)) {
                Ok(Ok(read)) => {
                    if read == room.len() {
                        self.grow();
                    } else if self.ending == Ending::Empty {
                        // A pipe gives all it has: asking it again would only be refused.
                        ready.clear_ready();
                    }
                    return Poll::Ready(read);
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                // EIO is how a terminal says that nobody has it open any more.
                Ok(Err(_)) => return Poll::Ready(0),
                Err(_would_block) => {}
            }
        }
    }

    /// There is more to come after all: it was not the command that was over.
    pub(crate) fn go_on(&mut self) {
        self.left = None;
    }

    fn grow(&mut self) {
        if self.chunk == FIRST_CHUNK && self.ending == Ending::Empty {
            // The system may forbid it; then the pipe stays as it is.
            let _ = fcntl(self.fd.get_ref(), FcntlArg::F_SETPIPE_SZ(FULL_PIPE));
        }
        self.chunk = (self.chunk * 4).min(FULL_CHUNK);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum InputKind {
    Pipe,
    Terminal,
}

/// What happened to stdin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Bytes were written. The host may be granted this many (0: later).
    Credit(u32),
    /// Nobody reads it any more.
    Closed,
}

/// What a command reads. Holds at most [`STDIN_WINDOW`] bytes, because the host may send no more
/// than was granted.
pub(crate) struct Input {
    fd: Option<Descriptor>,
    kind: InputKind,
    buffer: BytesMut,
    /// How much the host may still send.
    credit: u32,
    /// How much was written but not granted again.
    taken: u32,
    ended: bool,
}

impl Input {
    /// One that goes into this pipe. `None`: nothing reads it.
    pub(crate) fn into_pipe(pipe: Option<OwnedFd>) -> Result<Input, StartFailure> {
        let pipe = pipe.map(|pipe| register(pipe, Interest::WRITABLE)).transpose()?;
        Ok(Input::new(pipe, InputKind::Pipe))
    }

    fn new(fd: Option<Descriptor>, kind: InputKind) -> Input {
        let credit = if fd.is_some() { STDIN_WINDOW } else { 0 };
        Input { fd, kind, buffer: BytesMut::new(), credit, taken: 0, ended: false }
    }

    /// Takes bytes from the host.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.credit = self.credit.checked_sub(length).ok_or(ConnectionError::OverCredit)?;
        if self.fd.is_some() && !self.ended {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// No more will come.
    pub(crate) fn end(&mut self) {
        if !self.ended && self.kind == InputKind::Terminal {
            self.buffer.extend_from_slice(&[END_OF_TRANSMISSION]);
        }
        self.ended = true;
        self.close_if_done();
    }

    /// Lets go of it.
    pub(crate) fn close(&mut self) {
        self.fd = None;
        self.buffer = BytesMut::new();
    }

    fn close_if_done(&mut self) {
        if self.ended && self.buffer.is_empty() {
            self.fd = None;
        }
    }

    /// Writes what there is. Pending too when there is nothing to write.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Taken> {
        let Some(fd) = &self.fd else {
            return Poll::Pending;
        };
        if self.buffer.is_empty() {
            return Poll::Pending;
        }
        loop {
            let written = match ready!(fd.poll_write_ready(cx)) {
                Ok(mut ready) => {
                    ready.try_io(|fd| nix::unistd::write(fd.get_ref(), &self.buffer).map_err(io::Error::from))
                }
                Err(error) => Ok(Err(error)),
            };
            match written {
                Ok(Ok(written)) => {
                    self.buffer.advance(written);
                    self.close_if_done();
                    return Poll::Ready(Taken::Credit(self.grant(written)));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => {
                    self.close();
                    return Poll::Ready(Taken::Closed);
                }
                Err(_would_block) => {}
            }
        }
    }

    fn grant(&mut self, written: usize) -> u32 {
        // At most the window, and no more than was received: the Ctrl-D of a terminal is our own.
        let outstanding = STDIN_WINDOW - self.credit - self.taken;
        self.taken += u32::try_from(written).unwrap_or(u32::MAX).min(outstanding);
        if self.taken < CREDIT_STEP || self.ended {
            return 0;
        }
        let granted = std::mem::take(&mut self.taken);
        self.credit += granted;
        granted
    }
}
