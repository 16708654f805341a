//! Files of a sandbox: looked at, copied, removed.
//!
//! What comes is the guest's: a file has any content and any length, an archive is any bytes, names in lists
//! are names but hold any other character. The protocol's `files` says what is left to check for whoever
//! shows or unpacks it.

use super::connection::{Connection, GuestError, message, unexpected, wrong_reply};
use super::inspection::{ANSWER_PATIENCE, LONGEST_LIST, absurd};
use bytes::Bytes;
use firn_protocol::{
    ArchiveWrite, Event, FileInfo, FileKind, FileList, FileRead, FileRemove, FileTarget, Frame, Kind,
    MAX_FILES, Reply, Request, RequestId, STDIN_WINDOW,
};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long the agent may take to remove something: there may be much of it.
const REMOVE_PATIENCE: Duration = Duration::from_secs(600);

/// How long a transfer may stand still on the agent's side.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(120);

/// An archive is made of blocks of this size.
const BLOCK: u64 = 512;

impl Connection {
    /// Has a file or a folder sent, as a tar stream.
    pub(crate) fn archive_read(&mut self, target: FileTarget) -> Result<Transfer<'_>, GuestError> {
        self.transfer(&Request::ArchiveRead(target), Role::Pack)
    }

    /// Sends a tar stream to be unpacked.
    pub(crate) fn archive_write(&mut self, write: ArchiveWrite) -> Result<Transfer<'_>, GuestError> {
        self.transfer(&Request::ArchiveWrite(write), Role::Unpack { credit: Some(STDIN_WINDOW.into()) })
    }

    fn transfer(&mut self, request: &Request, role: Role) -> Result<Transfer<'_>, GuestError> {
        self.need("files")?;
        let id = self.request(request, DURING)?;
        Ok(Transfer { connection: self, id, role, received: 0, since: Instant::now() })
    }
}

/// Single files.
#[cfg_attr(not(test), expect(dead_code, reason = "what copies files asks for archives"))]
impl Connection {
    /// What a file is.
    pub(crate) async fn file_stat(&mut self, target: FileTarget) -> Result<FileInfo, GuestError> {
        let during = "a look at a file";
        self.need("files")?;
        match self.ask(Request::FileStat(target), during, ANSWER_PATIENCE).await? {
            Reply::FileInfo(info) if is_possible(&info) => Ok(info),
            Reply::FileInfo(_) => Err(absurd(during, "a file that cannot be")),
            other => Err(wrong_reply(during, &other)),
        }
    }

    /// What is in a folder. The names are names, but not fit to be shown as they are.
    pub(crate) async fn file_list(&mut self, target: FileTarget) -> Result<FileList, GuestError> {
        let during = "the list of a folder";
        self.need("files")?;
        match self.ask_at_length(Request::FileList(target), during, ANSWER_PATIENCE, LONGEST_LIST).await? {
            Reply::FileList(list) => checked_list(list, during),
            other => Err(wrong_reply(during, &other)),
        }
    }

    /// Removes a file or a folder.
    pub(crate) async fn file_remove(&mut self, remove: FileRemove) -> Result<(), GuestError> {
        let during = "the removal of a file";
        self.need("files")?;
        match self.ask(Request::FileRemove(remove), during, REMOVE_PATIENCE).await? {
            Reply::FileRemoved => Ok(()),
            other => Err(wrong_reply(during, &other)),
        }
    }

    /// Has a file's content sent. The connection is its until it is over.
    pub(crate) fn file_read(&mut self, read: FileRead) -> Result<Transfer<'_>, GuestError> {
        let role = Role::Read { most: read.length.unwrap_or(u64::MAX) };
        self.transfer(&Request::FileRead(read), role)
    }
}

const DURING: &str = "a transfer";

/// Whether there can be such a file.
fn is_possible(info: &FileInfo) -> bool {
    info.mode <= 0o7777 && info.target.is_some() == (info.kind == FileKind::Link)
}

fn checked_list(list: FileList, during: &'static str) -> Result<FileList, GuestError> {
    if list.entries.len() > MAX_FILES {
        return Err(absurd(during, "more files than a list may have"));
    }
    let mut names = BTreeSet::new();
    for entry in &list.entries {
        let name = entry.name.as_bytes();
        let is_name =
            !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
        if !is_name || !names.insert(name) {
            return Err(absurd(during, "a name that is none"));
        }
        if !is_possible(&entry.info) {
            return Err(absurd(during, "a file that cannot be"));
        }
    }
    Ok(list)
}

/// What happens in a transfer.
#[derive(Debug)]
pub(crate) enum TransferEvent {
    /// Bytes of what is read. Their number is not bounded, but for a read that named a length.
    Chunk(Bytes),
    /// There may be more room for what is written: see [`Transfer::room`].
    Room,
    /// All of a file has come. The last event.
    Read,
    /// All of an archive has come, or has been unpacked. The last event.
    Archived {
        /// How much the agent says it has left out, because it is neither file, folder nor link.
        left_out: u64,
    },
}

/// Which way, and what.
#[derive(Debug)]
enum Role {
    Read {
        most: u64,
    },
    Pack,
    /// `None`: no more will be sent.
    Unpack {
        credit: Option<u64>,
    },
}

/// Bytes on their way. Dropping it leaves the connection of no use: the agent ends the transfer when it
/// closes.
#[derive(Debug)]
pub(crate) struct Transfer<'c> {
    connection: &'c mut Connection,
    id: RequestId,
    role: Role,
    received: u64,
    /// When anything moved last.
    since: Instant,
}

impl Transfer<'_> {
    /// What happens next. May be dropped at any time without loss.
    pub(crate) async fn next(&mut self) -> Result<TransferEvent, GuestError> {
        // While it is this end that could send, the agent has nothing to say.
        let is_our_turn = self.room().is_some_and(|room| room > 0);
        let receiving = self.connection.receive(DURING);
        let frame = if is_our_turn {
            receiving.await?
        } else {
            let silent = GuestError::Silent { during: DURING, patience: TRANSFER_PATIENCE };
            timeout_at(self.since + TRANSFER_PATIENCE, receiving).await.unwrap_or(Err(silent))?
        };
        self.since = Instant::now();
        if frame.id != self.id {
            return Err(unexpected(DURING, &frame));
        }
        match (frame.kind, &mut self.role) {
            (Kind::Stdout, Role::Read { .. } | Role::Pack) => self.chunk(frame),
            (Kind::Event, Role::Unpack { credit }) => match message(DURING, &frame)? {
                Event::StdinCredit { bytes } => {
                    if let Some(credit) = credit {
                        *credit = credit.saturating_add(bytes.into());
                    }
                    Ok(TransferEvent::Room)
                }
                _ => Err(unexpected(DURING, &frame)),
            },
            (Kind::Reply, _) => self.reply(&frame),
            _ => Err(unexpected(DURING, &frame)),
        }
    }

    fn chunk(&mut self, frame: Frame) -> Result<TransferEvent, GuestError> {
        self.received = self.received.saturating_add(frame.body.len() as u64);
        match self.role {
            Role::Read { most } if self.received > most => Err(absurd(DURING, "more than was asked for")),
            _ => Ok(TransferEvent::Chunk(frame.body)),
        }
    }

    fn reply(&self, frame: &Frame) -> Result<TransferEvent, GuestError> {
        match (message(DURING, frame)?, &self.role) {
            (Reply::Error(failure), _) => Err(GuestError::refused(DURING, &failure)),
            (Reply::FileSent { bytes }, Role::Read { .. }) if bytes == self.received => {
                Ok(TransferEvent::Read)
            }
            (Reply::ArchiveSent(summary), Role::Pack)
                if self.received.is_multiple_of(BLOCK) && summary.bytes <= self.received =>
            {
                Ok(TransferEvent::Archived { left_out: summary.left_out })
            }
            (Reply::ArchiveUnpacked(summary), Role::Unpack { .. }) => {
                Ok(TransferEvent::Archived { left_out: summary.left_out })
            }
            (other, _) => Err(wrong_reply(DURING, &other)),
        }
    }

    /// How many bytes can be sent now. None: nothing is to be sent, or no more.
    pub(crate) fn room(&self) -> Option<usize> {
        let Role::Unpack { credit: Some(credit) } = self.role else { return None };
        let ahead = (STDIN_WINDOW as usize).saturating_sub(self.connection.unsent());
        Some(ahead.min(usize::try_from(credit).unwrap_or(usize::MAX)))
    }

    /// Sends some of what is written: no more than there is room for.
    pub(crate) fn send(&mut self, bytes: Bytes) -> Result<(), GuestError> {
        let Role::Unpack { credit: Some(credit) } = &mut self.role else { return Ok(()) };
        *credit = credit.saturating_sub(bytes.len() as u64);
        self.since = Instant::now();
        self.connection.post_frame(Frame::new(Kind::Stdin, self.id, bytes), DURING)
    }

    /// Says that all of it has been sent.
    pub(crate) fn end(&mut self) -> Result<(), GuestError> {
        let Role::Unpack { credit } = &mut self.role else { return Ok(()) };
        if credit.take().is_none() {
            return Ok(());
        }
        self.since = Instant::now();
        self.connection.post_frame(Frame::new(Kind::StdinEnd, self.id, Bytes::new()), DURING)
    }
}
