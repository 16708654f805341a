//! Our own stdout and stderr, written by tasks: a reader that is slow holds the command up, as it
//! should, but does not make us deaf to signals.

use bytes::Bytes;
use std::io;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How many chunks may wait to be written.
const WAITING: usize = 4;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Stream {
    Stdout,
    Stderr,
}

/// Both.
#[derive(Debug)]
pub(super) struct Sinks {
    stdout: Sink,
    stderr: Sink,
}

#[derive(Debug)]
struct Sink {
    queue: mpsc::Sender<Bytes>,
    task: JoinHandle<io::Result<()>>,
}

/// The reader of one of our streams is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReaderGone;

/// Whether our stdin is `/dev/null` (character device 1:3, Documentation/admin-guide/devices.txt):
/// then it need not be read to be known.
pub(in crate::cli) fn stdin_is_null() -> bool {
    use nix::sys::stat::{SFlag, fstat, major, minor};
    fstat(io::stdin()).is_ok_and(|stdin| {
        SFlag::from_bits_truncate(stdin.st_mode).contains(SFlag::S_IFCHR)
            && (major(stdin.st_rdev), minor(stdin.st_rdev)) == (1, 3)
    })
}

impl Sinks {
    pub(super) fn open() -> Sinks {
        Sinks { stdout: Sink::open(tokio::io::stdout()), stderr: Sink::open(tokio::io::stderr()) }
    }

    /// Waits until the chunk is taken. May be dropped at any time: the chunk is then not written.
    pub(super) async fn write(&self, stream: Stream, chunk: &Bytes) -> Result<(), ReaderGone> {
        let sink = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        match sink.queue.reserve().await {
            Ok(place) => {
                place.send(chunk.clone());
                Ok(())
            }
            Err(_closed) => Err(ReaderGone),
        }
    }

    /// Waits until all is written.
    pub(super) async fn finish(self) -> Result<(), ReaderGone> {
        let Sinks { stdout, stderr } = self;
        let (stdout, stderr) = tokio::join!(stdout.finish(), stderr.finish());
        stdout.and(stderr)
    }
}

impl Sink {
    fn open(mut stream: impl AsyncWrite + Send + Unpin + 'static) -> Sink {
        let (queue, mut chunks) = mpsc::channel::<Bytes>(WAITING);
        let task = tokio::spawn(async move {
            while let Some(chunk) = chunks.recv().await {
                stream.write_all(&chunk).await?;
                // Together with what has come meanwhile, but never held back.
                if chunks.is_empty() {
                    stream.flush().await?;
                }
            }
            stream.flush().await
        });
        Sink { queue, task }
    }

    async fn finish(self) -> Result<(), ReaderGone> {
        drop(self.queue);
        match self.task.await {
            Ok(Ok(())) => Ok(()),
            _ => Err(ReaderGone),
        }
    }
}
