//! `firn cp`: files and folders between a sandbox and the host.
//!
//! ```text
//!   archive ── chunks ──▶ a queue ──▶ unpack (a thread) ──▶ the host's files
//!   the host's files ──▶ pack (a thread) ──▶ a queue ── body ──▶ archive
//! ```
//!
//! Where copies go, and what they are called, is what `docker cp` does.

mod pack;
mod queue;
mod side;
mod unpack;

use super::exit::Failed;
use super::output::Output;
use crate::api::client::{Chunks, Client, ClientError};
use crate::api::types::RefusalKind;
use crate::tar::{Kind, Reader, TarError};
use axum::body::Body;
use bytes::Bytes;
use firn_protocol::Text;
use pack::PackError;
use queue::{CHUNK, Inflow, Outflow};
use side::{Side, name, wanted};
use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use unpack::{Destination, UnpackError};

/// How many chunks may wait to be written, or to be sent.
const WAITING: usize = 4;

/// How many links are followed.
const MOST_LINKS: usize = 8;

/// How long what is sent after the end of an archive is waited for.
const REST_PATIENCE: Duration = Duration::from_secs(5);

/// How many of the things that are left out are named.
const NAMED: usize = 10;

/// Copy files and folders between a sandbox and this host
///
/// One of the two is SANDBOX:PATH, whose PATH is seen from /; the other is a path of this host, or - for a
/// tar archive on stdin or stdout. What is copied goes into DST if that is a folder, and becomes DST
/// otherwise; of SRC/. only what is in it is copied. Links are copied as links. A host's path that holds a
/// colon is written with a slash before it, as ./a:b.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    firn cp build:/workspace/out.tar .         from the sandbox, into this folder\n  \
    firn cp ./src build:/workspace             a folder, as /workspace/src\n  \
    firn cp ./src/. build:/workspace           what is in it, into /workspace\n  \
    firn cp build:/var/log - | tar -t          an archive on stdout\n  \
    tar -c src | firn cp - build:/workspace    one on stdin, unpacked in /workspace")]
pub(super) struct Cp {
    /// What is copied.
    #[arg(value_name = "SRC")]
    source: OsString,

    /// Where it goes.
    #[arg(value_name = "DST")]
    destination: OsString,
}

/// Files were not copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// Which way is it to go?
    #[error("one of SRC and DST must be SANDBOX:PATH, and the other a path of this host")]
    Sides,
    /// The archive could not be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The files could not be read.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// What the sandbox sent is no archive.
    #[error(transparent)]
    Archive(#[from] TarError),
    /// A folder where a file is, or a file in a folder that is not there.
    #[error("cannot copy {source_path:?} to {target:?} in the sandbox: {reason}")]
    Target {
        /// What was to be copied.
        source_path: PathBuf,
        /// Where.
        target: Text,
        /// What is wrong.
        reason: &'static str,
    },
    /// An archive is not for reading.
    #[error("an archive is not written to a terminal")]
    Terminal,
    /// A thread panicked.
    #[error("copying ended unexpectedly")]
    Panicked,
}

impl Cp {
    pub(super) async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        let left_out = match (Side::parse(&self.source), Side::parse(&self.destination)) {
            (Side::Sandbox { id, path }, Side::Host(to)) => out_of(client, &id, path, to).await?,
            (Side::Sandbox { id, path }, Side::Stream) => {
                if io::stdout().is_terminal() {
                    return Err(CopyError::Terminal.into());
                }
                let mut archive = client.archive(&id, &Text::from(path)).await?;
                while let Some(chunk) = archive.next().await? {
                    output.stdout(&chunk)?;
                }
                LeftOut { inside: archive.left_out(), ..LeftOut::default() }
            }
            (Side::Host(from), Side::Sandbox { id, path }) => into(client, from, &id, path).await?,
            (Side::Stream, Side::Sandbox { id, path }) => {
                let stdin = tokio_util::io::ReaderStream::with_capacity(tokio::io::stdin(), CHUNK);
                let inside = client.unpack(&id, &Text::from(path), Body::from_stream(stdin)).await?;
                LeftOut { inside, ..LeftOut::default() }
            }
            _ => return Err(CopyError::Sides.into()),
        };
        left_out.tell(output);
        Ok(0)
    }
}

/// What was not copied, because it is neither file, folder nor link.
#[derive(Debug, Default)]
struct LeftOut {
    first: Vec<OsString>,
    count: u64,
    /// How much the sandbox says it has left out. It does not say what.
    inside: u64,
}

impl LeftOut {
    fn add(&mut self, name: &OsStr) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(name.to_owned());
        }
    }

    fn tell(&self, output: &mut Output) {
        for name in &self.first {
            output.note(&format!("left out: {name:?} is neither a file, a folder nor a link"));
        }
        let more = self.count - self.first.len() as u64;
        if more > 0 {
            output.note(&format!("left out: {more} more"));
        }
        if self.inside > 0 {
            let inside = self.inside;
            output.note(&format!("left out by the sandbox, as neither files, folders nor links: {inside}"));
        }
    }
}

/// Copies out of a sandbox.
async fn out_of(client: &Client, id: &str, path: OsString, to: PathBuf) -> Result<LeftOut, Failed> {
    // A slash at the end asks for what a link leads to.
    let source = if wanted(&path).as_bytes() == path.as_bytes() && !path.as_bytes().ends_with(b"/") {
        path.clone()
    } else {
        follow(client, id, &path).await?.0
    };
    let mut archive = client.archive(id, &Text::from(source)).await?;
    let (queue, chunks) = mpsc::channel(WAITING);
    let unpacking = std::thread::spawn(move || {
        let mut left_out = LeftOut::default();
        let land = |kind: &Kind| Destination::choose(&to, name(&path), kind);
        unpack::unpack(Inflow::new(chunks), land, &mut |name| left_out.add(name)).map(|()| left_out)
    });
    let forwarded = tokio::select! {
        forwarded = forward(&mut archive, &queue) => forwarded.map_err(Failed::from),
        signal = interrupted() => Err(Failed::Signal(signal?)),
    };
    // To the thread this is the end of what comes: it removes what it has not finished.
    drop(queue);
    let unpacked = finish(unpacking).await?;
    forwarded?;
    let mut left_out = unpacked.map_err(CopyError::from)?;
    // After the end of the archive comes what is said of it.
    let rest = async { while let Ok(Some(_)) = archive.next().await {} };
    let _ = tokio::time::timeout(REST_PATIENCE, rest).await;
    left_out.inside = archive.left_out();
    Ok(left_out)
}

/// Passes on what comes, until its end, or until nobody wants it.
async fn forward(archive: &mut Chunks, queue: &mpsc::Sender<Bytes>) -> Result<(), ClientError> {
    while let Some(chunk) = archive.next().await? {
        if queue.send(chunk).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Waits for a signal that asks to end.
async fn interrupted() -> Result<i32, Failed> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failed::Runtime)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failed::Runtime)?;
    tokio::select! {
        _ = interrupt.recv() => Ok(libc::SIGINT),
        _ = terminate.recv() => Ok(libc::SIGTERM),
    }
}

async fn finish<T: Send + 'static>(thread: JoinHandle<T>) -> Result<T, CopyError> {
    let joined = tokio::task::spawn_blocking(move || thread.join()).await;
    joined.ok().and_then(Result::ok).ok_or(CopyError::Panicked)
}

/// Copies into a sandbox.
async fn into(client: &Client, from: PathBuf, id: &str, path: OsString) -> Result<LeftOut, Failed> {
    let looking = |source| PackError::File { action: "look at", path: from.clone(), source };
    // A slash at the end follows a link, here as for the system.
    let is_folder = from.symlink_metadata().map_err(looking).map_err(CopyError::from)?.is_dir();
    let wrong =
        |reason| CopyError::Target { source_path: from.clone(), target: Text::from(path.clone()), reason };
    let (folder, name) = match follow(client, id, &path).await?.1 {
        Some(Kind::Folder) => (path.clone(), name(from.as_os_str()).map(OsStr::to_owned)),
        Some(_) if is_folder => return Err(wrong("there is a file").into()),
        None if !is_folder && path.as_bytes().ends_with(b"/") => {
            return Err(wrong("there is no such folder").into());
        }
        Some(_) | None => {
            let target = Path::new(&path);
            match (target.parent(), target.file_name()) {
                (Some(folder), Some(name)) => (folder.as_os_str().to_owned(), Some(name.to_owned())),
                _ => return Err(wrong("there is no such folder").into()),
            }
        }
    };
    let (queue, mut chunks) = mpsc::channel(WAITING);
    let source = from.clone();
    let packing = std::thread::spawn(move || {
        let mut left_out = LeftOut::default();
        let name = name.unwrap_or_else(|| ".".into());
        let failures = queue.clone();
        let outflow = Outflow::new(queue);
        let packed = pack::pack(&source, &name, outflow, &mut |name| left_out.add(name));
        if packed.is_err() {
            // What has come so far is not to be taken for all.
            let _ = failures.blocking_send(Err(io::Error::other("the files cannot be read")));
        }
        packed.map(|()| left_out)
    });
    let body = Body::from_stream(futures::stream::poll_fn(move |context| chunks.poll_recv(context)));
    let folder = Text::from(folder);
    let sent = tokio::select! {
        sent = client.unpack(id, &folder, body) => sent.map_err(Failed::from),
        signal = interrupted() => Err(Failed::Signal(signal?)),
    };
    match (finish(packing).await?, sent) {
        (Ok(left_out), Ok(inside)) => Ok(LeftOut { inside, ..left_out }),
        // That it could not be sent has a reason, which the other side knows.
        (Ok(_) | Err(PackError::Send { .. }), Err(failed)) => Err(failed),
        (Err(error), _) => Err(CopyError::from(error).into()),
    }
}

/// Where a path of the sandbox's leads, and what is there, if there is something. Of links that lead to each
/// other only so many are followed.
async fn follow(client: &Client, id: &str, path: &OsStr) -> Result<(OsString, Option<Kind>), Failed> {
    let mut path = wanted(path);
    let mut found = look_once(client, id, path.clone()).await?;
    for _ in 0..MOST_LINKS {
        let Some(Kind::Symlink { target }) = &found else { break };
        let next = Path::new(&path).parent().unwrap_or(Path::new("/")).join(OsStr::from_bytes(target));
        match look_once(client, id, next.clone().into_os_string()).await {
            Ok(Some(kind)) => (path, found) = (next.into_os_string(), Some(kind)),
            // A link that leads nowhere is a thing itself, and is copied or replaced.
            Ok(None) | Err(_) => break,
        }
    }
    Ok((path, found))
}

async fn look_once(client: &Client, id: &str, path: OsString) -> Result<Option<Kind>, Failed> {
    let mut archive = match client.archive(id, &Text::from(path)).await {
        Ok(archive) => archive,
        Err(ClientError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => {
            // Either the path is not there, or the sandbox is not.
            return client.sandbox(id).await.map(|_there| None).map_err(Failed::from);
        }
        Err(error) => return Err(error.into()),
    };
    let (queue, chunks) = mpsc::channel(WAITING);
    let reading = std::thread::spawn(move || Reader::new(Inflow::new(chunks)).next());
    let forwarded = forward(&mut archive, &queue).await;
    drop(queue);
    let entry = finish(reading).await?;
    forwarded?;
    Ok(entry.map_err(CopyError::from)?.map(|entry| entry.kind))
}
