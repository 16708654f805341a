//! `--json`: events, one JSON object a line, in nixo's shape.
//!
//! ```text
//!   {"type":"lifecycle","sequence":1,"ts":"…","payload":{"event":"started"}}
//!   {"type":"stdout","sequence":2,"ts":"…","payload":{"data":"a line without its newline"}}
//!   {"type":"lifecycle","sequence":3,"ts":"…","payload":{"event":"exited"}}
//!   {"type":"result","sequence":4,"ts":"…","payload":{"exitCode":0,"signal":null,…}}
//! ```
//!
//! Nothing is lost: a line that is not UTF-8 has its bytes in `base64` besides (with `data` the
//! nearest text), and one that does not end in a newline (the last, or a part of a very long one)
//! has `"newline": false`.

use super::stdio::Stream;
use crate::spec::protection::Protection;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use firn_protocol::{Exceeded, Ran, RunOutcome, Text};
use serde::Serialize;
use std::time::SystemTime;

/// Longer lines are passed on in parts.
const LONGEST_LINE: usize = 64 * 1024;

/// Numbers and renders events.
#[derive(Debug, Default)]
pub(in crate::cli) struct Events {
    sequence: u64,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

#[derive(Serialize)]
struct Event<'a, P> {
    #[serde(rename = "type")]
    kind: &'a str,
    sequence: u64,
    ts: String,
    payload: P,
}

#[derive(Serialize)]
struct Line<'a> {
    data: std::borrow::Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    newline: Option<bool>,
}

#[derive(Serialize)]
struct Lifecycle<'a> {
    event: &'a str,
}

/// More of a run of code.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct RunReport {
    /// `ok`, `exception`, `exited`, `killed`, `interrupted`, `timed_out` or `broken`.
    outcome: RunOutcome,
    /// Whether what the interpreter knew is lost.
    state_lost: bool,
    /// Whether it was lost before this run.
    state_lost_before: bool,
    /// The folder in the sandbox that the run left files in.
    #[serde(skip_serializing_if = "Option::is_none")]
    artifacts_folder: Option<String>,
    /// These files.
    artifacts: Vec<ArtifactReport>,
}

/// A file that a run has left.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ArtifactReport {
    name: String,
    media_type: String,
    size: u64,
}

impl From<Ran> for RunReport {
    fn from(ran: Ran) -> RunReport {
        let shown = |text: &Text| text.as_os_str().to_string_lossy().into_owned();
        let artifacts = ran.artifacts;
        RunReport {
            outcome: ran.outcome,
            state_lost: ran.state_lost,
            state_lost_before: ran.state_lost_before,
            artifacts_folder: artifacts.as_ref().map(|artifacts| shown(&artifacts.folder)),
            artifacts: artifacts
                .map(|artifacts| artifacts.files)
                .unwrap_or_default()
                .into_iter()
                .map(|file| ArtifactReport {
                    name: shown(&file.name),
                    media_type: file.media_type,
                    size: file.size,
                })
                .collect(),
        }
    }
}

/// How it ended.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct Outcome {
    /// The command's code, -1 when a signal ended it or it timed out, firn's own when it was not
    /// started or its sandbox failed.
    pub(in crate::cli) exit_code: i32,
    /// `SIG9` and the like.
    pub(in crate::cli) signal: Option<String>,
    /// Whether `--timeout` ended it.
    pub(in crate::cli) timed_out: bool,
    /// From its start to its end.
    pub(in crate::cli) duration_ms: u64,
    /// Why it was not started, or why its sandbox failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) error: Option<String>,
    /// Whether output was dropped because of `--max-output`.
    pub(in crate::cli) truncated: bool,
    /// How much it wrote, in bytes, passed on or not.
    pub(in crate::cli) output_bytes: u64,
    /// Limits that it ran into: `memory`, `processes`.
    pub(in crate::cli) exceeded: Vec<Exceeded>,
    /// More of a run of code.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) run: Option<RunReport>,
    /// What was asked for and what was given: `isolation`, `network` and `limits`. Absent when
    /// nothing was.
    #[serde(flatten)]
    pub(in crate::cli) protection: Option<Protection>,
}

impl Outcome {
    /// The outcome when firn or the sandbox failed, so that a reader always gets a result.
    pub(in crate::cli) fn failed(code: u8, error: String) -> Outcome {
        Outcome {
            run: None,
            exit_code: i32::from(code),
            signal: None,
            timed_out: false,
            duration_ms: 0,
            error: Some(error),
            truncated: false,
            output_bytes: 0,
            exceeded: Vec::new(),
            protection: None,
        }
    }
}

impl Events {
    fn render<P: Serialize>(&mut self, kind: &str, payload: P, out: &mut Vec<u8>) {
        self.sequence += 1;
        let ts = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let event = Event { kind, sequence: self.sequence, ts, payload };
        // Writing JSON of strings and numbers into memory cannot fail.
        if serde_json::to_writer(&mut *out, &event).is_ok() {
            out.push(b'\n');
        }
    }

    /// The program runs.
    pub(in crate::cli) fn started(&mut self) -> Bytes {
        let mut out = Vec::new();
        self.render("lifecycle", Lifecycle { event: "started" }, &mut out);
        out.into()
    }

    /// Some output, of which whole lines are rendered and the rest is kept.
    pub(in crate::cli) fn output(&mut self, stream: Stream, chunk: &[u8]) -> Bytes {
        let mut out = Vec::new();
        let mut kept = std::mem::take(self.kept(stream));
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            kept.extend_from_slice(part);
            while let Some(line) = take_line(&mut kept) {
                self.line(stream, &line, &mut out);
            }
        }
        *self.kept(stream) = kept;
        out.into()
    }

    /// It is over.
    pub(in crate::cli) fn finish(&mut self, outcome: &Outcome) -> Bytes {
        let mut out = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = std::mem::take(self.kept(stream));
            if !rest.is_empty() {
                self.line(stream, &rest, &mut out);
            }
        }
        if outcome.error.is_none() {
            self.render("lifecycle", Lifecycle { event: "exited" }, &mut out);
        }
        self.render("result", outcome, &mut out);
        out.into()
    }

    fn kept(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn line(&mut self, stream: Stream, line: &[u8], out: &mut Vec<u8>) {
        let kind = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let (text, newline) = match line.strip_suffix(b"\n") {
            Some(text) => (text, None),
            None => (line, Some(false)),
        };
        let base64 = std::str::from_utf8(text).is_err().then(|| STANDARD.encode(text));
        self.render(kind, Line { data: String::from_utf8_lossy(text), base64, newline }, out);
    }
}

/// Takes a whole line, or a part of one that is too long, off the front. Only called after at most
/// one newline was added, so that is at the end.
fn take_line(kept: &mut Vec<u8>) -> Option<Vec<u8>> {
    if kept.len() > LONGEST_LINE {
        let rest = kept.split_off(LONGEST_LINE);
        return Some(std::mem::replace(kept, rest));
    }
    kept.ends_with(b"\n").then(|| std::mem::take(kept))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Environment, Store};
    use crate::spec::Purpose;
    use crate::spec::protection::Accelerator;
    use crate::spec::protection::Isolation;
    use crate::spec::{Degraded, Grade};
    use crate::spec::{Size, Spec};
    use crate::sys::limits::Mechanisms;
    use proptest::prelude::*;
    use serde_json::Value;
    use std::time::Duration;

    /// What a reader of the events gets back.
    fn read_back(lines: &[u8], wanted: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let event: Value = serde_json::from_slice(line).unwrap();
            if event["type"] == wanted {
                let payload = &event["payload"];
                match payload["base64"].as_str() {
                    Some(base64) => bytes.extend(STANDARD.decode(base64).unwrap()),
                    None => bytes.extend(payload["data"].as_str().unwrap().as_bytes()),
                }
                if payload["newline"] != Value::Bool(false) {
                    bytes.push(b'\n');
                }
            }
        }
        bytes
    }

    fn protection() -> Protection {
        let spec = Spec {
            grade: Grade::Vm,
            degraded: Degraded::Refused,
            environment: Environment::Host,
            store: Store::Closure,
            purpose: Purpose::Commands,
            cpus: None,
            memory: Size(1 << 30),
            disk: Size(1 << 29),
            processes: 64,
            timeout: Some(Duration::from_secs(1)),
            output: None,
            shares: Vec::new(),
            user: None,
            vmm: None,
        };
        let isolation = Isolation::Vm { vmm: "qemu", accelerator: Accelerator::Kvm };
        Protection::new(&spec, &isolation, Mechanisms::WITHOUT_GROUPS)
    }

    fn outcome() -> Outcome {
        Outcome {
            run: None,
            exit_code: 0,
            signal: None,
            timed_out: false,
            duration_ms: 12,
            error: None,
            truncated: false,
            output_bytes: 7,
            exceeded: vec![Exceeded::Memory],
            protection: Some(protection()),
        }
    }

    proptest! {
        #[test]
        fn every_byte_can_be_read_back(
            chunks in proptest::collection::vec(
                (any::<bool>(), proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..100)), 0..20),
            long in 0_usize..200_000,
        ) {
            let mut events = Events::default();
            let (mut out, mut stdout, mut stderr) = (Vec::new(), vec![b'x'; long], Vec::new());
            out.extend(events.output(Stream::Stdout, &stdout));
            for (second, chunk) in &chunks {
                let (stream, sent) =
                    if *second { (Stream::Stderr, &mut stderr) } else { (Stream::Stdout, &mut stdout) };
                sent.extend(chunk);
                out.extend(events.output(stream, chunk));
            }
            out.extend(events.finish(&outcome()));
            prop_assert_eq!(read_back(&out, "stdout"), stdout);
            prop_assert_eq!(read_back(&out, "stderr"), stderr);
        }
    }

    #[test]
    fn the_shape_is_nixos() {
        let mut events = Events::default();
        let mut out = events.started().to_vec();
        out.extend(events.output(Stream::Stdout, b"plain\n\xff\r\nrest"));
        out.extend(events.finish(&outcome()));
        let text = String::from_utf8(out).unwrap();
        let stamps = text.lines().map(|line| {
            let mut event: Value = serde_json::from_str(line).unwrap();
            assert!(humantime::parse_rfc3339(event["ts"].as_str().unwrap()).is_ok());
            event["ts"] = "TIME".into();
            event.to_string()
        });
        insta::assert_snapshot!(stamps.collect::<Vec<_>>().join("\n"));
    }
}
