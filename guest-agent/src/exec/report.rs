//! What an exec's supervisor and the agent say to each other over their socket pair.
//!
//! Both are the same program, so the records are plain numbers in native order. One record is one
//! packet of a `SOCK_SEQPACKET` pair: there is nothing to frame.

use std::time::Duration;

/// The size of a packet, in words.
const WORDS: usize = 8;

/// The size of a packet, in bytes.
pub(crate) const PACKET: usize = WORDS * 8;

/// From the agent to a supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Send this signal to the command's process group.
    Signal(i32),
    /// Kill the command and all it started.
    Kill,
}

/// From a supervisor to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// `execve` succeeded.
    Started { pid: i32 },
    /// There is no command, and there will be none. The last report.
    Failed(StartFailure),
    /// The command is over, with everything it started. The last report.
    Ended(Ended),
}

/// At which step a command could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StartFailure {
    pub(crate) stage: Stage,
    pub(crate) errno: i32,
}

/// The steps of starting a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Stage {
    User = 1,
    Group,
    Process,
    Terminal,
    Stdio,
    Identity,
    Directory,
    Limits,
    Program,
    /// The program is there, what it wants to be run by is not.
    Interpreter,
}

impl Stage {
    const ALL: [Stage; 10] = [
        Stage::User,
        Stage::Group,
        Stage::Process,
        Stage::Terminal,
        Stage::Stdio,
        Stage::Identity,
        Stage::Directory,
        Stage::Limits,
        Stage::Program,
        Stage::Interpreter,
    ];
}

/// How a command ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// As in `waitpid(2)`.
    pub(crate) status: i32,
    /// Whether an [`Order::Kill`] was what ended it.
    pub(crate) killed: bool,
    pub(crate) duration: Duration,
    pub(crate) user: Duration,
    pub(crate) system: Duration,
    pub(crate) max_rss_bytes: u64,
    /// Processes it started that would not die.
    pub(crate) leftovers: u64,
}

fn pack(words: [u64; WORDS]) -> [u8; PACKET] {
    let mut packet = [0; PACKET];
    for (to, word) in packet.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    packet
}

fn unpack(packet: &[u8]) -> Option<[u64; WORDS]> {
    if packet.len() != PACKET {
        return None;
    }
    let mut words = [0; WORDS];
    for (word, from) in words.iter_mut().zip(packet.chunks_exact(8)) {
        *word = u64::from_ne_bytes(from.try_into().ok()?);
    }
    Some(words)
}

fn signed(word: u64) -> i32 {
    // Every signed word was widened from an i32 by `unsigned` below.
    word as u32 as i32
}

fn unsigned(number: i32) -> u64 {
    u64::from(number.cast_unsigned())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Order {
    pub(crate) fn to_packet(self) -> [u8; PACKET] {
        pack(match self {
            Order::Signal(signal) => [1, unsigned(signal), 0, 0, 0, 0, 0, 0],
            Order::Kill => [2, 0, 0, 0, 0, 0, 0, 0],
        })
    }

    pub(crate) fn from_packet(packet: &[u8]) -> Option<Order> {
        match unpack(packet)? {
            [1, signal, ..] => Some(Order::Signal(signed(signal))),
            [2, ..] => Some(Order::Kill),
            _ => None,
        }
    }
}

impl Report {
    pub(crate) fn to_packet(self) -> [u8; PACKET] {
        pack(match self {
            Report::Started { pid } => [1, unsigned(pid), 0, 0, 0, 0, 0, 0],
            Report::Failed(StartFailure { stage, errno }) => {
                [2, stage as u64, unsigned(errno), 0, 0, 0, 0, 0]
            }
            Report::Ended(ended) => [
                3,
                unsigned(ended.status),
                ended.killed.into(),
                micros(ended.duration),
                micros(ended.user),
                micros(ended.system),
                ended.max_rss_bytes,
                ended.leftovers,
            ],
        })
    }

    pub(crate) fn from_packet(packet: &[u8]) -> Option<Report> {
        match unpack(packet)? {
            [1, pid, ..] => Some(Report::Started { pid: signed(pid) }),
            [2, stage, errno, ..] => {
                let stage = Stage::ALL.into_iter().find(|known| *known as u64 == stage)?;
                Some(Report::Failed(StartFailure { stage, errno: signed(errno) }))
            }
            [3, status, killed, duration, user, system, max_rss_bytes, leftovers] => {
                Some(Report::Ended(Ended {
                    status: signed(status),
                    killed: killed != 0,
                    duration: Duration::from_micros(duration),
                    user: Duration::from_micros(user),
                    system: Duration::from_micros(system),
                    max_rss_bytes,
                    leftovers,
                }))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_is_unpacked() {
        for order in [Order::Signal(15), Order::Signal(-1), Order::Kill] {
            assert_eq!(Order::from_packet(&order.to_packet()), Some(order));
        }
        let ended = Ended {
            status: -1,
            killed: true,
            duration: Duration::from_micros(7),
            user: Duration::from_micros(8),
            system: Duration::from_micros(9),
            max_rss_bytes: 1 << 40,
            leftovers: 3,
        };
        let failed = Stage::ALL.map(|stage| Report::Failed(StartFailure { stage, errno: 2 }));
        for report in failed.into_iter().chain([Report::Started { pid: 42 }, Report::Ended(ended)]) {
            assert_eq!(Report::from_packet(&report.to_packet()), Some(report));
        }
    }

    #[test]
    fn a_cut_packet_is_none() {
        assert_eq!(Report::from_packet(&Report::Started { pid: 1 }.to_packet()[..PACKET - 1]), None);
        assert_eq!(Order::from_packet(&[]), None);
    }
}
