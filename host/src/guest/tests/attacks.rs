//! The attacks: what a peer sends instead of what it should, and what becomes of it.

use bytes::BufMut as _;
use firn_protocol::{Kind, MAX_BODY, PROTOCOL_VERSION};
use serde_json::json;

/// Where in a conversation the peer turns hostile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Instead of its hello.
    Hello,
    /// Instead of saying that it is configured.
    Configuring,
    /// Instead of saying that the command was started.
    Starting,
    /// While the command runs.
    Running,
    /// Together with the reply that ends the command, when nothing was asked yet.
    Over,
    /// Instead of saying that it shuts down.
    ShuttingDown,
}
use Phase::{Configuring, Over, Running as Runs, ShuttingDown, Starting};

pub(super) const PHASES: [Phase; 6] = [Phase::Hello, Configuring, Starting, Runs, Over, ShuttingDown];

impl Phase {
    /// The operation the host waits for.
    pub(super) fn id(self) -> u32 {
        match self {
            Phase::Hello => 0,
            Configuring => 1,
            Starting | Runs => 2,
            // The host has not asked yet, but will.
            Over | ShuttingDown => 3,
        }
    }
}

/// What the peer does after its attack.
#[derive(Clone, Copy, Debug)]
pub(super) enum Then {
    HangUp,
    /// Says no more, but does not hang up either.
    Finish,
    FallSilent,
    GoOn,
}
use Then::{FallSilent, Finish, GoOn, HangUp};

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine,
    Closed,
    TooLong,
    TooShort,
    UnknownKind,
    Truncated,
    Malformed,
    Unexpected,
    Version,
    Silent,
    Refused,
    /// The attack makes no sense in that phase.
    NotTried,
}
use Verdict::{Closed, Fine, Malformed, NotTried, Refused, Silent, TooLong, TooShort, Truncated};
use Verdict::{Unexpected, UnknownKind, Version};

pub(super) struct Attack {
    pub(super) name: &'static str,
    pub(super) bytes: fn(Phase) -> Vec<u8>,
    pub(super) then: Then,
    pub(super) verdict: fn(Phase) -> Verdict,
}

pub(super) fn head(length: u32, kind: u8, id: u32) -> Vec<u8> {
    let mut wire = Vec::new();
    wire.put_u32(length);
    wire.put_u8(kind);
    wire.put_u32(id);
    wire
}

pub(super) fn raw(kind: Kind, id: u32, body: &[u8]) -> Vec<u8> {
    let mut wire = head(u32::try_from(body.len() + 5).unwrap(), kind as u8, id);
    wire.extend_from_slice(body);
    wire
}

pub(super) fn json(kind: Kind, id: u32, body: &serde_json::Value) -> Vec<u8> {
    raw(kind, id, body.to_string().as_bytes())
}

/// The kind of JSON frame the host expects in a phase.
pub(super) fn awaited(phase: Phase) -> Kind {
    match phase {
        Phase::Hello => Kind::Hello,
        Starting | Runs => Kind::Event,
        Configuring | Over | ShuttingDown => Kind::Reply,
    }
}

pub(super) fn started(id: u32) -> Vec<u8> {
    json(Kind::Event, id, &json!({"type": "started", "pid": 7}))
}

pub(super) fn credit(id: u32) -> Vec<u8> {
    json(Kind::Event, id, &json!({"type": "stdin_credit", "bytes": u32::MAX}))
}

pub(super) fn exited(id: u32, status: &serde_json::Value, ended_by: &str) -> Vec<u8> {
    let body = json!({
        "type": "exited", "status": status, "ended_by": ended_by, "duration_us": u64::MAX,
        "user_us": u64::MAX, "system_us": u64::MAX, "max_rss_bytes": u64::MAX,
        "stdout_bytes": u64::MAX, "stderr_bytes": u64::MAX, "truncated": true,
    });
    json(Kind::Reply, id, &body)
}

pub(super) fn hello(protocol: u32) -> Vec<u8> {
    json(
        Kind::Hello,
        0,
        &json!({"protocol": protocol, "software": "\u{1b}[2J", "capabilities": ["x", "exec", "limits"]}),
    )
}

/// JSON of the right kind and the given length, in which there is more than there should be.
pub(super) fn padded(phase: Phase, length: usize) -> Vec<u8> {
    let mut body = String::from(match phase {
        Phase::Hello => r#"{"protocol":1,"software":"x","capabilities":["exec","limits"],"more":["#,
        Starting | Runs => r#"{"type":"stdin_closed","more":["#,
        Configuring => r#"{"type":"configured","more":["#,
        Over | ShuttingDown => r#"{"type":"shutting_down","more":["#,
    });
    while body.len() < length - 4 {
        body.push_str("0,");
    }
    body.push_str("0]}");
    raw(awaited(phase), phase.id(), body.as_bytes())
}

pub(super) fn during_a_run(phase: Phase, verdict: Verdict) -> Verdict {
    if phase == Runs { verdict } else { Unexpected }
}

pub(super) const ATTACKS: &[Attack] = &[
    Attack {
        name: "the largest length there is",
        bytes: |phase| head(u32::MAX, awaited(phase) as u8, phase.id()),
        then: FallSilent,
        verdict: |_| TooLong,
    },
    Attack {
        name: "one byte of output too many",
        bytes: |phase| head(256 * 1024 + 6, Kind::Stdout as u8, phase.id()),
        then: FallSilent,
        verdict: |_| TooLong,
    },
    Attack {
        name: "a length shorter than the header",
        bytes: |phase| head(4, awaited(phase) as u8, phase.id()),
        then: FallSilent,
        verdict: |_| TooShort,
    },
    Attack {
        name: "an unknown kind",
        bytes: |phase| head(5, 0xee, phase.id()),
        then: FallSilent,
        verdict: |_| UnknownKind,
    },
    Attack {
        name: "half a header, then the end",
        bytes: |phase| head(5, awaited(phase) as u8, phase.id())[..3].to_vec(),
        then: Finish,
        verdict: |_| Truncated,
    },
    Attack {
        name: "half a frame, then the end",
        bytes: |phase| [head(5000, awaited(phase) as u8, phase.id()), vec![b' '; 2500]].concat(),
        then: Finish,
        verdict: |_| Truncated,
    },
    Attack {
        name: "half a frame, then nothing",
        bytes: |phase| [head(5000, awaited(phase) as u8, phase.id()), vec![b' '; 2500]].concat(),
        then: FallSilent,
        // A command may be silent for ever.
        verdict: |phase| if phase == Runs { NotTried } else { Silent },
    },
    Attack { name: "the end", bytes: |_| Vec::new(), then: HangUp, verdict: |_| Closed },
    Attack {
        name: "nothing at all",
        bytes: |_| Vec::new(),
        then: FallSilent,
        verdict: |phase| if phase == Runs { NotTried } else { Silent },
    },
    Attack {
        name: "a request to the host",
        bytes: |phase| json(Kind::Request, phase.id(), &json!({"type": "shutdown"})),
        then: FallSilent,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "input for the host",
        bytes: |phase| json(Kind::Input, phase.id(), &json!({"type": "cancel"})),
        then: FallSilent,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "stdin for the host",
        bytes: |phase| raw(Kind::Stdin, phase.id(), b"x"),
        then: FallSilent,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "the end of the host's stdin",
        bytes: |phase| raw(Kind::StdinEnd, phase.id(), b""),
        then: FallSilent,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "a hello of another version",
        bytes: |_| hello(PROTOCOL_VERSION + 1),
        then: FallSilent,
        verdict: |phase| if phase == Phase::Hello { Version } else { Unexpected },
    },
    Attack {
        name: "a hello too many",
        bytes: |_| [hello(PROTOCOL_VERSION), hello(PROTOCOL_VERSION)].concat(),
        then: FallSilent,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "an operation that is none of the host's",
        bytes: |phase| match phase {
            Phase::Hello => json(Kind::Hello, 9, &json!({"protocol": 1, "software": "x"})),
            _ => json(awaited(phase), u32::MAX, &json!({"type": "configured"})),
        },
        then: FallSilent,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "an operation that is over",
        bytes: |phase| json(awaited(phase), phase.id().wrapping_sub(1), &json!({"type": "configured"})),
        then: FallSilent,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "no JSON",
        bytes: |phase| raw(awaited(phase), phase.id(), b"\xff\xfe{]"),
        then: FallSilent,
        verdict: |_| Malformed,
    },
    Attack {
        name: "an empty body",
        bytes: |phase| raw(awaited(phase), phase.id(), b""),
        then: FallSilent,
        verdict: |_| Malformed,
    },
    Attack {
        name: "another message's JSON",
        bytes: |phase| json(awaited(phase), phase.id(), &json!({"type": "resize", "rows": 1, "columns": 1})),
        then: FallSilent,
        verdict: |_| Malformed,
    },
    Attack {
        name: "a long name that a terminal obeys",
        bytes: |phase| {
            json(awaited(phase), phase.id(), &json!({"type": "\u{1b}]0;owned\u{7}\n\u{202e}".repeat(9000)}))
        },
        then: FallSilent,
        verdict: |_| Malformed,
    },
    Attack {
        name: "JSON a thousand deep",
        bytes: |phase| {
            let deep = format!("{{\"type\":{}", "[".repeat(100_000));
            raw(awaited(phase), phase.id(), deep.as_bytes())
        },
        then: FallSilent,
        verdict: |_| Malformed,
    },
    Attack {
        name: "a message as long as a frame can be",
        bytes: |phase| padded(phase, MAX_BODY),
        then: GoOn,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "a message with more in it than is known",
        bytes: |phase| padded(phase, 100_000),
        then: GoOn,
        // Where it is not the one that is waited for, the conversation has come to its end with it.
        verdict: |_| Fine,
    },
    Attack {
        name: "the reply to another request",
        bytes: |phase| json(Kind::Reply, phase.id(), &json!({"type": "pong"})),
        then: FallSilent,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "a refusal with a terminal's commands",
        bytes: |phase| {
            let failure =
                json!({"type": "error", "code": "failed", "message": "\u{1b}[31m\nno\r\n".repeat(9000)});
            json(Kind::Reply, phase.id(), &failure)
        },
        then: FallSilent,
        verdict: |phase| if phase == Phase::Hello { Unexpected } else { Refused },
    },
    Attack {
        name: "output",
        bytes: |phase| raw(Kind::Stdout, phase.id(), b"output"),
        then: GoOn,
        verdict: |phase| during_a_run(phase, Fine),
    },
    Attack {
        name: "errors",
        bytes: |phase| raw(Kind::Stderr, phase.id(), b"errors").repeat(1000),
        then: GoOn,
        verdict: |phase| during_a_run(phase, Fine),
    },
    Attack {
        name: "empty output",
        bytes: |phase| raw(Kind::Stdout, phase.id(), b"").repeat(10_000),
        then: GoOn,
        verdict: |phase| during_a_run(phase, Fine),
    },
    Attack {
        name: "a second start",
        bytes: |phase| started(phase.id()).repeat(2),
        then: FallSilent,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "a part in a command that was not asked for",
        bytes: |phase| json(Kind::Event, phase.id(), &json!({"type": "attached", "from": 0, "pid": 1})),
        then: FallSilent,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "a gap in the output of a command that is not kept",
        bytes: |phase| json(Kind::Event, phase.id(), &json!({"type": "skipped", "bytes": 1})),
        then: FallSilent,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "an event of nobody's",
        bytes: |_| json(Kind::Event, 0, &json!({"type": "skipped", "bytes": 1})),
        then: FallSilent,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "a list that nobody asked for",
        bytes: |phase| json(Kind::Reply, phase.id(), &json!({"type": "commands", "commands": []})),
        then: FallSilent,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "credit without end",
        bytes: |phase| credit(phase.id()).repeat(20_000),
        then: GoOn,
        verdict: |phase| match phase {
            Starting | Runs => Fine,
            _ => Unexpected,
        },
    },
    Attack {
        name: "an end of stdin, and then credit",
        bytes: |phase| {
            [json(Kind::Event, phase.id(), &json!({"type": "stdin_closed"})), credit(phase.id())].concat()
        },
        then: GoOn,
        verdict: |phase| match phase {
            Starting | Runs => Fine,
            _ => Unexpected,
        },
    },
    Attack {
        name: "an exit",
        bytes: |phase| exited(phase.id(), &json!({"code": 0}), "itself"),
        then: FallSilent,
        // A command may also be killed before its start was told. The next phase finds silence.
        verdict: |phase| match phase {
            Starting | Runs => Silent,
            _ => Unexpected,
        },
    },
    Attack {
        name: "an exit code that is none",
        bytes: |phase| exited(phase.id(), &json!({"code": i32::MIN}), "itself"),
        then: FallSilent,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "a signal that is none",
        bytes: |phase| exited(phase.id(), &json!({"signal": -128}), "itself"),
        then: FallSilent,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "a timeout that nobody set",
        bytes: |phase| exited(phase.id(), &json!({"signal": 9}), "timeout"),
        then: FallSilent,
        verdict: |_| Unexpected,
    },
    Attack {
        name: "a command that was not started",
        bytes: |phase| {
            json(
                Kind::Reply,
                phase.id(),
                &json!({"type": "not_started", "reason": "other", "message": "\u{7}"}),
            )
        },
        then: FallSilent,
        verdict: |phase| if phase == Starting { Silent } else { Unexpected },
    },
];
