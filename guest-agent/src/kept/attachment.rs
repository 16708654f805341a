//! One connection's part in a kept command.

use super::Kept;
use crate::connection::{Connection, ConnectionError};
use bytes::Bytes;
use firn_protocol::{Attach, Event, Frame, Input, Kind, Reply, RequestId, Stdin};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

/// Output is added only while less than this waits to be sent, in bytes.
const ENOUGH: usize = 64 * 1024;

/// The host is not listened to while this much waits for the command, in bytes. It takes all at once, so
/// this is a matter of moments.
const INBOX: usize = 64 * 1024;

/// See the module. Dropping it changes nothing for the command, but that it does not wait any more.
pub(crate) struct Attachment {
    kept: Rc<Kept>,
    /// Tells it from the others.
    number: u64,
    /// Where in the output it is.
    next: u64,
    /// How much stdin it may send.
    credit: u32,
    beginning: Beginning,
    stdin: StdinSource,
}

/// How the host is told that the program runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beginning {
    Started,
    Attached,
    Told,
}

/// Whether stdin comes from here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StdinSource {
    No,
    Yes,
    /// Not any more, and the host knows.
    Closed,
}

impl Attachment {
    /// That of the connection which starts the command.
    pub(super) fn first(kept: Rc<Kept>, stdin: Stdin, back_pressure: bool) -> Attachment {
        Attachment::new(kept, Beginning::Started, 0, stdin, back_pressure)
    }

    /// That of another.
    pub(crate) fn later(kept: Rc<Kept>, attach: &Attach) -> Attachment {
        Attachment::new(kept, Beginning::Attached, attach.from, attach.stdin, attach.back_pressure)
    }

    fn new(kept: Rc<Kept>, beginning: Beginning, from: u64, stdin: Stdin, back_pressure: bool) -> Attachment {
        let mut state = kept.state.borrow_mut();
        let number = state.next_attachment;
        state.next_attachment += 1;
        let next = from.clamp(state.ring.start(), state.ring.end());
        if back_pressure {
            state.waited_for.insert(number, next);
        }
        let (stdin, credit) = match (stdin, state.stdin.credit) {
            (Stdin::Stream, Some(credit)) => {
                state.stdin.holder = Some(number);
                state.stdin.untold = 0;
                (StdinSource::Yes, credit)
            }
            (Stdin::Stream, None) => (StdinSource::Closed, 0),
            (Stdin::Null, _) => (StdinSource::No, 0),
        };
        drop(state);
        // Whoever stdin came from so far is told.
        kept.changed.notify_waiters();
        Attachment { kept, number, next, credit, beginning, stdin }
    }

    /// Serves the host until the command is over, whose result is the reply, or the connection is.
    pub(crate) async fn serve(
        mut self,
        connection: &mut Connection,
        id: RequestId,
    ) -> Result<Reply, ConnectionError> {
        let kept = Rc::clone(&self.kept);
        loop {
            let changed = kept.changed.notified();
            if let Some(result) = self.tell(connection, id)? {
                return Ok(result);
            }
            // Ready without a frame: what waited has been sent.
            let heard = poll_fn(|cx| {
                if kept.state.borrow().inbox.waiting() < INBOX
                    && let Poll::Ready(frame) = connection.poll_frame(cx)
                {
                    let frame = frame?.ok_or(ConnectionError::Closed)?;
                    return Poll::Ready(Ok(Some(frame)));
                }
                if connection.outgoing.waiting() > 0 && connection.poll_flush(cx)?.is_ready() {
                    return Poll::Ready(Ok(None));
                }
                Poll::<Result<_, ConnectionError>>::Pending
            });
            tokio::select! {
                frame = heard => {
                    if let Some(frame) = frame? && !connection.is_late_input(&frame) {
                        self.take(&frame, id)?;
                    }
                }
                () = changed => {}
            }
        }
    }

    /// Adds what there is to be told. The result comes last.
    fn tell(&mut self, connection: &mut Connection, id: RequestId) -> Result<Option<Reply>, ConnectionError> {
        let outgoing = &mut connection.outgoing;
        let mut state = self.kept.state.borrow_mut();
        if self.beginning != Beginning::Told {
            let Some(pid) = state.pid else { return Ok(state.result.clone()) };
            let event = if self.beginning == Beginning::Started {
                Event::Started { pid }
            } else {
                self.next = self.next.max(state.ring.start());
                let stdin_credit = (self.stdin == StdinSource::Yes).then_some(self.credit);
                Event::Attached { from: self.next, pid, stdin_credit }
            };
            outgoing.push(Kind::Event, id, &event)?;
            self.beginning = Beginning::Told;
        }
        if self.stdin == StdinSource::Yes {
            if state.stdin.holder != Some(self.number) || state.stdin.credit.is_none() {
                self.stdin = StdinSource::Closed;
                outgoing.push(Kind::Event, id, &Event::StdinClosed)?;
            } else if state.stdin.untold > 0 {
                let bytes = std::mem::take(&mut state.stdin.untold);
                self.credit = self.credit.saturating_add(bytes);
                outgoing.push(Kind::Event, id, &Event::StdinCredit { bytes })?;
            }
        }
        let before = self.next;
        while self.next < state.ring.end() && outgoing.waiting() < ENOUGH {
            let bytes = state.ring.start().saturating_sub(self.next);
            if bytes > 0 {
                self.next += bytes;
                outgoing.push(Kind::Event, id, &Event::Skipped { bytes })?;
            }
            let Some((kind, length)) = state.ring.copy(self.next, ENOUGH, |length| outgoing.room(length))
            else {
                break;
            };
            outgoing.commit(kind, id, length);
            self.next += length as u64;
        }
        if self.next > before
            && let Some(position) = state.waited_for.get_mut(&self.number)
        {
            *position = self.next;
            // The keeper may go on.
            self.kept.changed.notify_waiters();
        }
        Ok(if self.next == state.ring.end() { state.result.clone() } else { None })
    }

    /// Takes a frame of the host's. One that must not be ends this connection and not the command.
    fn take(&mut self, frame: &Frame, id: RequestId) -> Result<(), ConnectionError> {
        let unexpected = ConnectionError::Unexpected { kind: frame.kind, id: frame.id };
        if frame.id != id {
            return Err(unexpected);
        }
        let mut state = self.kept.state.borrow_mut();
        let has_stdin = state.stdin.holder == Some(self.number);
        match frame.kind {
            Kind::Stdin => {
                let length = u32::try_from(frame.body.len()).unwrap_or(u32::MAX);
                self.credit = self.credit.checked_sub(length).ok_or(ConnectionError::OverCredit)?;
                if !has_stdin || length == 0 {
                    return Ok(());
                }
                let Some(credit) = &mut state.stdin.credit else { return Ok(()) };
                // At least as much as was granted to the one that holds it.
                *credit = credit.saturating_sub(length);
                state.inbox.pass(&Frame::new(Kind::Stdin, super::ID, frame.body.clone()));
            }
            Kind::StdinEnd => {
                if has_stdin && state.stdin.credit.take().is_some() {
                    self.stdin = StdinSource::Closed;
                    state.inbox.pass(&Frame::new(Kind::StdinEnd, super::ID, Bytes::new()));
                }
            }
            Kind::Input => {
                let input = frame.message()?;
                if let Input::Signal { signal } = input
                    && !(1..=64).contains(&signal)
                {
                    return Err(ConnectionError::NoSignal(signal));
                }
                if state.result.is_none() {
                    state.inbox.push(Kind::Input, super::ID, &input)?;
                }
            }
            _ => return Err(unexpected),
        }
        drop(state);
        self.kept.changed.notify_waiters();
        Ok(())
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut state = self.kept.state.borrow_mut();
        state.waited_for.remove(&self.number);
        if state.stdin.holder == Some(self.number) {
            state.stdin.holder = None;
        }
        drop(state);
        self.kept.changed.notify_waiters();
    }
}
