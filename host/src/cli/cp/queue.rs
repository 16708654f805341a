//! Bytes between a task that speaks with the daemon and a thread that reads or writes files.

use bytes::{Buf as _, Bytes, BytesMut};
use std::io::{self, Read, Write};
use tokio::sync::mpsc;

/// The size of a chunk that is sent.
pub(super) const CHUNK: usize = 64 * 1024;

/// What comes through a queue, for a thread to read.
#[derive(Debug)]
pub(super) struct Inflow {
    queue: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl Inflow {
    pub(super) fn new(queue: mpsc::Receiver<Bytes>) -> Inflow {
        Inflow { queue, chunk: Bytes::new() }
    }
}

impl Read for Inflow {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.queue.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let count = self.chunk.len().min(into.len());
        self.chunk.copy_to_slice(&mut into[..count]);
        Ok(count)
    }
}

/// What a thread writes, through a queue.
#[derive(Debug)]
pub(super) struct Outflow {
    queue: mpsc::Sender<io::Result<Bytes>>,
    chunk: BytesMut,
}

impl Outflow {
    pub(super) fn new(queue: mpsc::Sender<io::Result<Bytes>>) -> Outflow {
        Outflow { queue, chunk: BytesMut::new() }
    }

    fn send(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = self.chunk.split().freeze();
        self.queue.blocking_send(Ok(chunk)).map_err(|_gone| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Outflow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..count]);
        if self.chunk.len() == CHUNK {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
