//! The last of what somebody writes who may be hostile, and who goes on when we end.
//!
//! A helper writes into a FIFO that it holds open for reading too. So there is a reader whatever becomes
//! of us, and nobody is killed for writing to nobody. It does not block either: what does not fit while
//! nobody reads is lost, and the helper goes on.

use crate::sys::pidfd::watch;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

/// How much is kept, in bytes.
const TAIL: usize = 16 * 1024;

/// How much is read at once, in bytes.
const CHUNK: usize = 4096;

/// Makes a FIFO and gives the end for who writes to it.
pub(crate) fn make_fifo(path: &Path) -> io::Result<OwnedFd> {
    nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    open(path, OpenOptions::new().read(true).write(true))
}

/// The end of a FIFO for who reads from it.
pub(crate) fn open_fifo(path: &Path) -> io::Result<OwnedFd> {
    open(path, OpenOptions::new().read(true))
}

fn open(path: &Path, options: &mut OpenOptions) -> io::Result<OwnedFd> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    options.custom_flags(flags.bits()).open(path).map(OwnedFd::from)
}

/// The last bytes of a stream: bounded, however much comes. They are read in the background, until this
/// is dropped or the stream ends.
#[derive(Debug)]
pub(crate) struct Tail {
    stream: Arc<Stream>,
    reader: AbortHandle,
}

#[derive(Debug)]
struct Stream {
    fd: AsyncFd<OwnedFd>,
    kept: Mutex<VecDeque<u8>>,
}

impl Stream {
    /// Reads once, in the order in which it came whoever reads.
    fn take(&self) -> io::Result<usize> {
        let mut chunk = [0; CHUNK];
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let read = nix::unistd::read(self.fd.get_ref(), &mut chunk)?;
        kept.extend(&chunk[..read]);
        let excess = kept.len().saturating_sub(TAIL);
        kept.drain(..excess);
        Ok(read)
    }
}

impl Tail {
    /// Follows a pipe or socket. Inside the runtime.
    pub(crate) fn follow(stream: OwnedFd) -> io::Result<Tail> {
        set_nonblocking(&stream)?;
        let stream = Arc::new(Stream { fd: watch(stream)?, kept: Mutex::default() });
        let followed = Arc::clone(&stream);
        let reader = tokio::spawn(async move {
            while let Ok(mut ready) = followed.fd.readable().await {
                match ready.try_io(|_| followed.take()) {
                    Ok(Ok(1..)) | Err(_) => {}
                    Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(Ok(0) | Err(_)) => return,
                }
            }
        });
        Ok(Tail { stream, reader: reader.abort_handle() })
    }

    /// What was kept, with all that has been written by now, as text that a terminal can be shown.
    pub(crate) fn text(&self) -> String {
        // Bounded, should somebody write as fast as it is read.
        for _ in 0..TAIL {
            match self.stream.take() {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
            }
        }
        let kept = self.stream.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: Vec<u8> = kept.iter().copied().collect();
        String::from_utf8_lossy(&kept)
            .chars()
            .filter(|character| *character == '\n' || !character.is_control())
            .collect()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn set_nonblocking(fd: &OwnedFd) -> Result<(), Errno> {
    use nix::fcntl::{FcntlArg, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}
