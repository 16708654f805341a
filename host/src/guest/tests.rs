//! A guest that does what it must not, in every phase of a conversation.
//!
//! Each attack is a script: the peer behaves until its phase comes, sends the attack, and then hangs
//! up, waits for ever, or goes on. What firn makes of it is in the table [`ATTACKS`]. Time is
//! paused: what waits for a deadline takes no time.

mod attacks;
mod files;
mod kept;
mod session;

use super::{Connection, ExecEvent, GuestError, Running};
use attacks::Phase::{Configuring, Over, Running as Runs, ShuttingDown, Starting};
use attacks::Then::{FallSilent, Finish, GoOn, HangUp};
use attacks::Verdict::{Closed, Fine, Malformed, NotTried, Refused, Silent, TooLong, TooShort, Truncated};
use attacks::Verdict::{Unexpected, UnknownKind, Version};
use attacks::{ATTACKS, Attack, PHASES, Phase, Verdict, credit, exited, hello, json, raw, started};
use bytes::{Bytes, BytesMut};
use firn_protocol::{
    Codec, Configure, Event, Exec, ExitStatus, Frame, FrameError, Hello, Input, Kind, MAX_BODY,
    PROTOCOL_VERSION, Reply, Request, Stdin, Text,
};
use futures::{FutureExt as _, StreamExt as _};
use serde_json::json;
use std::error::Error as _;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::{Decoder as _, Encoder as _, FramedRead};

const PATIENCE: Duration = Duration::from_secs(60);

/// No conversation may take longer, deadlines included, in paused time.
const HANG: Duration = Duration::from_secs(600);

/// Far more than any conversation may hold on to: two messages of the largest kind.
const MOST_HELD: usize = 2 * MAX_BODY;

/// The agent's side, as far as it behaves.
struct Peer {
    read: FramedRead<OwnedReadHalf, Codec>,
    write: OwnedWriteHalf,
}

/// The host hung up, as it should when the peer does not behave.
#[derive(Debug)]
struct HungUp;

impl Peer {
    fn new(stream: UnixStream) -> Peer {
        let (read, write) = stream.into_split();
        Peer { read: FramedRead::new(read, Codec), write }
    }

    async fn send(&mut self, wire: &[u8]) -> Result<(), HungUp> {
        self.write.write_all(wire).await.map_err(|_closed| HungUp)
    }

    async fn asked(&mut self, wanted: fn(&Request) -> bool) -> Result<(), HungUp> {
        loop {
            let frame = self.read.next().await.ok_or(HungUp)?.map_err(|_closed| HungUp)?;
            if frame.kind == Kind::Request {
                assert!(wanted(&frame.message().unwrap()));
                return Ok(());
            }
        }
    }

    /// Attacks when the time has come.
    async fn at(&mut self, now: Phase, phase: Phase, attack: &Attack) -> Result<bool, HungUp> {
        if now != phase {
            return Ok(false);
        }
        self.send(&(attack.bytes)(phase)).await?;
        match attack.then {
            GoOn => Ok(attack.name.starts_with("a message with more")),
            HangUp => Err(HungUp),
            Finish => {
                self.write.shutdown().await.map_err(|_closed| HungUp)?;
                std::future::pending().await
            }
            FallSilent => std::future::pending().await,
        }
    }

    async fn play(mut self, phase: Phase, attack: &Attack) -> Result<(), HungUp> {
        if !self.at(Phase::Hello, phase, attack).await? {
            self.send(&hello(PROTOCOL_VERSION)).await?;
        }
        self.asked(|request| matches!(request, Request::Configure(_))).await?;
        if !self.at(Configuring, phase, attack).await? {
            self.send(&json(Kind::Reply, 1, &json!({"type": "configured"}))).await?;
        }
        self.asked(|request| matches!(request, Request::Exec(_))).await?;
        self.at(Starting, phase, attack).await?;
        self.send(&started(2)).await?;
        self.at(Runs, phase, attack).await?;
        self.send(&exited(2, &json!({"code": 3}), "itself")).await?;
        let answered = self.at(Over, phase, attack).await?;
        self.asked(|request| matches!(request, Request::Shutdown)).await?;
        if !answered && !self.at(ShuttingDown, phase, attack).await? {
            self.send(&json(Kind::Reply, 3, &json!({"type": "shutting_down"}))).await?;
        }
        Ok(())
    }
}

fn configure() -> Configure {
    Configure {
        hostname: "test".to_owned(),
        unix_time_ns: 1,
        entropy: Text::from("x".repeat(32)),
        root: None,
        mounts: Vec::new(),
        processes: None,
    }
}

fn exec() -> Exec {
    Exec {
        argv: vec!["true".into()],
        cwd: None,
        env: Vec::new(),
        user: None,
        terminal: None,
        stdin: Stdin::Stream,
        timeout_ms: None,
        max_output_bytes: None,
        resource_limits: Vec::new(),
        keep: None,
    }
}

/// A command from its start to its end, with as much stdin as there is room for.
async fn through(mut running: Running) -> Result<Connection, GuestError> {
    loop {
        let event = running.next().await?;
        assert!(running.held() <= MOST_HELD, "{} bytes are held", running.held());
        match event {
            ExecEvent::Exited(exited) => {
                assert!(matches!(exited.status, ExitStatus::Code(0..=255) | ExitStatus::Signal(1..=64)));
                return Ok(running.into_connection().expect("it was not taken"));
            }
            ExecEvent::NotStarted(reason) => {
                is_harmless(&reason.message)?;
                return Ok(running.into_connection().expect("it was not taken"));
            }
            ExecEvent::StdinRoom | ExecEvent::StdinClosed => {
                let room = running.stdin_room().unwrap_or(0).min(64 * 1024);
                if room > 0 {
                    running.send_stdin(Bytes::from(vec![0; room]))?;
                }
            }
            ExecEvent::Started | ExecEvent::Stdout(_) | ExecEvent::Stderr(_) => {}
            event @ (ExecEvent::Attached { .. }
            | ExecEvent::Skipped(_)
            | ExecEvent::Cut(_)
            | ExecEvent::Ran(_)) => panic!("{event:?} of a command that is not kept"),
        }
    }
}

/// The host's side, as a session has it.
async fn converse(stream: UnixStream) -> Result<(), GuestError> {
    let mut connection = Connection::establish(stream).await?;
    connection.configure(configure(), PATIENCE).await?;
    let mut connection = through(connection.exec(exec())?).await?;
    connection.shutdown(PATIENCE).await
}

/// Fit to be shown: one line of a bearable length.
#[expect(clippy::unnecessary_wraps, reason = "the end of a command")]
fn is_harmless(shown: &str) -> Result<(), GuestError> {
    assert!(
        !shown.contains(|character: char| character.is_control() || character == '\u{202e}'),
        "{shown:?}"
    );
    assert!(shown.chars().count() < 1200, "{} characters", shown.chars().count());
    Ok(())
}

fn verdict(result: &Result<(), GuestError>) -> Verdict {
    let Err(error) = result else { return Fine };
    is_harmless(&error.to_string()).unwrap();
    if let Some(source) = error.source() {
        is_harmless(&source.to_string()).unwrap();
    }
    match error {
        GuestError::Dial(_) | GuestError::Closed { .. } => Closed,
        GuestError::Frame { source: FrameError::TooLong { .. }, .. } => TooLong,
        GuestError::Frame { source: FrameError::TooShort { .. }, .. } => TooShort,
        GuestError::Frame { source: FrameError::UnknownKind(_), .. } => UnknownKind,
        GuestError::Frame { source: FrameError::Truncated, .. } => Truncated,
        GuestError::Malformed { .. } => Malformed,
        GuestError::Unexpected { .. } => Unexpected,
        GuestError::Version { .. } | GuestError::Lacks { .. } => Version,
        GuestError::Silent { .. } => Silent,
        GuestError::Refused { .. } => Refused,
        GuestError::Frame { .. } | GuestError::Deaf => panic!("{error}"),
    }
}

#[tokio::test(start_paused = true)]
async fn every_attack_in_every_phase_has_one_clear_end() {
    for attack in ATTACKS {
        for phase in PHASES {
            let wanted = (attack.verdict)(phase);
            if wanted == NotTried {
                continue;
            }
            let (ours, theirs) = UnixStream::pair().unwrap();
            // Whichever way the peer's part ends, it is the host's end that counts.
            let peer = Peer::new(theirs).play(phase, attack).then(|_| std::future::pending::<()>());
            let host = tokio::time::timeout(HANG, converse(ours));
            let result = tokio::select! {
                result = host => result,
                () = peer => unreachable!(),
            };
            let result = result.unwrap_or_else(|_hang| panic!("{} while {phase:?}: it hangs", attack.name));
            assert_eq!(verdict(&result), wanted, "{} while {phase:?}: {result:?}", attack.name);
        }
    }
}

/// What a peer that behaves sends, in pieces of one byte.
#[tokio::test(start_paused = true)]
async fn one_byte_at_a_time_is_slow_and_nothing_else() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let output = raw(Kind::Stdout, 2, &[0; 1000]);
    let wire = [
        hello(PROTOCOL_VERSION),
        json(Kind::Reply, 1, &json!({"type": "configured"})),
        started(2),
        output,
        exited(2, &json!({"signal": 9}), "cancel"),
        json(Kind::Reply, 3, &json!({"type": "shutting_down"})),
    ]
    .concat();
    let (_read, mut write) = theirs.into_split();
    let dribble = async {
        for byte in wire {
            write.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let (result, ()) = tokio::join!(converse(ours), dribble);
    result.unwrap();
}

/// A frame that comes a byte every other second is not taken for life.
#[tokio::test(start_paused = true)]
async fn a_deadline_is_for_the_whole_answer() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (_read, mut write) = theirs.into_split();
    let dribble = async {
        for byte in hello(PROTOCOL_VERSION) {
            tokio::time::sleep(Duration::from_secs(2)).await;
            if write.write_all(&[byte]).await.is_err() {
                break;
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        result = converse(ours) => assert_eq!(verdict(&result), Silent),
        () = dribble => unreachable!(),
    }
}

/// An agent that talks and talks, but does not start what it was told to.
#[tokio::test(start_paused = true)]
async fn talk_is_no_start() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (_read, mut write) = theirs.into_split();
    write.write_all(&hello(PROTOCOL_VERSION)).await.unwrap();
    let talk = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if write.write_all(&credit(1)).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let connection = Connection::establish(ours).await.unwrap();
    let started = async { through(connection.exec(exec()).unwrap()).await };
    tokio::select! {
        result = tokio::time::timeout(HANG, started) => assert_eq!(verdict(&result.unwrap().map(drop)), Silent),
        () = talk => unreachable!(),
    }
}

/// A peer that has stopped reading, once the command runs.
async fn deaf() -> (Connection, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&[hello(PROTOCOL_VERSION), started(1)].concat()).await.unwrap();
    (Connection::establish(ours).await.unwrap(), theirs)
}

#[tokio::test(start_paused = true)]
async fn stdin_that_nobody_takes_is_not_piled_up() {
    let (connection, mut peer) = deaf().await;
    let mut running = connection.exec(exec()).unwrap();
    assert!(matches!(running.next().await.unwrap(), ExecEvent::Started));
    peer.write_all(&credit(1).repeat(100)).await.unwrap();
    let mut sent = 0;
    for _ in 0..10_000 {
        let room = running.stdin_room().unwrap();
        running.send_stdin(vec![0; room].into()).unwrap();
        sent += room;
        let _ = running.next().now_or_never();
    }
    assert!(running.held() < 2 << 20, "{} bytes are held", running.held());
    // A socket's own buffer takes some too.
    assert!(sent < 4 << 20, "{sent} bytes were sent to nobody");
}

#[tokio::test(start_paused = true)]
async fn who_never_reads_is_deaf() {
    let (connection, _peer) = deaf().await;
    let mut running = connection.exec(exec()).unwrap();
    let error = loop {
        if let Err(error) = running.send(&Input::Signal { signal: 2 }) {
            break error;
        }
        let _ = running.next().now_or_never();
        assert!(running.held() < 4 << 20, "{} bytes are held", running.held());
    };
    assert!(matches!(error, GuestError::Deaf), "{error}");
}

/// What the peer sends while it does not read is read all the same: neither waits for the other.
#[tokio::test(start_paused = true)]
async fn who_does_not_read_can_still_be_heard() {
    let (connection, mut peer) = deaf().await;
    let mut running = connection.exec(exec()).unwrap();
    let room = running.stdin_room().unwrap();
    running.send_stdin(vec![0; room].into()).unwrap();
    let talk = async {
        for _ in 0..200 {
            peer.write_all(&raw(Kind::Stdout, 1, &[0; 100_000])).await.unwrap();
        }
        peer.write_all(&exited(1, &json!({"code": 0}), "itself")).await.unwrap();
    };
    let listen = async {
        let mut heard = 0;
        loop {
            match running.next().await.unwrap() {
                ExecEvent::Stdout(chunk) => heard += chunk.len(),
                ExecEvent::Exited(_) => break heard,
                _ => {}
            }
        }
    };
    assert_eq!(tokio::join!(listen, talk).0, 20_000_000);
}

/// Who hangs up with something unread makes writing fail, not reading what it said before.
#[tokio::test(start_paused = true)]
async fn last_words_are_heard() {
    for _ in 0..100 {
        let (connection, mut peer) = deaf().await;
        let mut running = connection.exec(exec()).unwrap();
        assert!(matches!(running.next().await.unwrap(), ExecEvent::Started));
        let room = running.stdin_room().unwrap();
        running.send_stdin(vec![0; room].into()).unwrap();
        let words =
            [raw(Kind::Stdout, 1, b"last words").repeat(10), exited(1, &json!({"code": 0}), "itself")];
        peer.write_all(&words.concat()).await.unwrap();
        drop(peer);
        let mut heard = 0;
        let exited = loop {
            match running.next().await.unwrap() {
                ExecEvent::Stdout(chunk) => heard += chunk.len(),
                event => break event,
            }
        };
        assert!(matches!(exited, ExecEvent::Exited(_)));
        assert_eq!(heard, 100);
        assert_eq!(verdict(&running.next().await.map(drop)), Closed);
    }
}

/// The peer's frames are written by hand here: this is what the codec makes of the same messages.
#[test]
fn the_scripts_are_the_protocol() {
    let frame = |kind, id, event: &Event| {
        let mut wire = BytesMut::new();
        Codec.encode(Frame::json(kind, id, event).unwrap(), &mut wire).unwrap();
        wire.to_vec()
    };
    let sorted = |wire: &[u8]| -> serde_json::Value { serde_json::from_slice(&wire[9..]).unwrap() };
    assert_eq!(sorted(&frame(Kind::Event, 2, &Event::Started { pid: 7 })), sorted(&started(2)));
    assert_eq!(frame(Kind::Event, 2, &Event::Started { pid: 7 }).len(), started(2).len());
    assert!(serde_json::from_slice::<Hello>(&hello(1)[9..]).is_ok());
    assert!(serde_json::from_slice::<Reply>(&exited(1, &json!({"code": 0}), "itself")[9..]).is_ok());
}

#[tokio::test]
async fn an_agent_that_does_not_know_limits_is_refused() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let hello =
        Hello { protocol: PROTOCOL_VERSION, software: "old".to_owned(), capabilities: vec!["exec".into()] };
    let mut wire = BytesMut::new();
    Codec.encode(Frame::json(Kind::Hello, 0, &hello).unwrap(), &mut wire).unwrap();
    theirs.try_write(&wire).unwrap();
    let refused = Connection::establish(ours).await.unwrap_err();
    assert!(matches!(refused, GuestError::Lacks { capability: "limits" }), "{refused}");
}

#[tokio::test]
async fn the_first_operation_greets_an_agent_that_comes_late() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut connection = Connection::begin(ours).unwrap();
    let host = async {
        let failed = connection.shutdown(Duration::from_secs(60)).await.unwrap_err();
        (failed, connection.is_greeted())
    };
    let agent = async {
        // Hello and the request are there before the agent says anything.
        let mut wire = BytesMut::new();
        let mut frames = Vec::new();
        while frames.len() < 2 {
            theirs.readable().await.unwrap();
            let _ = theirs.try_read_buf(&mut wire);
            while let Some(frame) = Codec.decode(&mut wire).unwrap() {
                frames.push(frame.kind);
            }
        }
        drop(theirs);
        frames
    };
    let ((failed, greeted), frames) = tokio::join!(host, agent);
    assert_eq!(frames, [Kind::Hello, Kind::Request]);
    assert!(failed.hung_up(), "{failed}");
    assert!(!greeted);
}
