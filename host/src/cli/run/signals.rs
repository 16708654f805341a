//! Signals to firn while a command runs.

use super::super::exit::Failed;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// All of them, from the moment this is made: none is lost, and none ends the process.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    window: Signal,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// Somebody wants the command to end, or to know something: the signal's number.
    ForCommand(i32),
    /// Our terminal is gone.
    Hangup,
    /// Our terminal has another size.
    Resized,
}

impl Signals {
    pub(super) fn listen() -> Result<Signals, Failed> {
        let listen = |kind| signal(kind).map_err(Failed::Runtime);
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            quit: listen(SignalKind::quit())?,
            window: listen(SignalKind::window_change())?,
        })
    }

    /// The next one. May be dropped at any time without loss.
    pub(super) async fn next(&mut self) -> Received {
        tokio::select! {
            _ = self.interrupt.recv() => Received::ForCommand(libc::SIGINT),
            _ = self.terminate.recv() => Received::ForCommand(libc::SIGTERM),
            _ = self.quit.recv() => Received::ForCommand(libc::SIGQUIT),
            _ = self.hangup.recv() => Received::Hangup,
            _ = self.window.recv() => Received::Resized,
        }
    }

    /// Waits for one that asks firn to end, while there is no command to pass it on to.
    pub(super) async fn end(&mut self) -> i32 {
        loop {
            match self.next().await {
                Received::ForCommand(signal) => return signal,
                Received::Hangup => return libc::SIGHUP,
                Received::Resized => {}
            }
        }
    }
}
