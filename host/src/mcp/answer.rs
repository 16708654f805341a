//! What a client is told of a run: the text that models read, and the structured result.
//!
//! The first block of text is nix-sandbox-mcp's, to the letter: stdout, stderr, or both with a line between them,
//! cut at 1 MiB. What that one has no words for, as what a run that timed out had written, is in blocks after it.

use super::captured::{Streams, cut};
use super::policy::seconds;
use super::run::{Blame, End, Failure, Finished};
use crate::api::types::Isolation;
use crate::spec::protection::Protection;
use firn_protocol::Exceeded;
use rmcp::model::{CallToolResult, ContentBlock, Resource};
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

/// What stands at the end of a text that was cut.
const TRUNCATED: &str = "\n\n[truncated — output exceeded 1MB]";

/// What stands between both streams.
const BETWEEN: &str = "\n--- stderr ---\n";

/// The call that is answered.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) env: String,
    /// The session, as the caller calls it.
    pub(super) session: Option<String>,
    pub(super) isolation: Isolation,
    pub(super) timeout: Option<Duration>,
    /// What the daemon calls what its caller calls otherwise.
    pub(super) names: Vec<(String, String)>,
}

/// How a call went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// The code ran to its end and says that all is well.
    Ok,
    /// The code ran to its end and says that it is not.
    Error,
    /// Its time was over.
    Timeout,
    /// It was interrupted.
    Interrupted,
    /// It goes on in the background.
    Running,
    /// It was not run, for what was asked.
    Refused,
    /// It was not run, or not to its end: the sandbox, or what makes it, failed.
    Failed,
}

/// The structured result.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    stdout: &'a str,
    stderr: &'a str,
    truncated: bool,
    duration_ms: f64,
    env: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
    isolation: Value,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    session_state_lost: bool,
    #[serde(skip_serializing_if = "<[Exceeded]>::is_empty")]
    exceeded: &'a [Exceeded],
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
}

impl Call {
    /// What its caller is told of a run that is over.
    pub(super) fn over(&self, streams: &Streams, finished: &Finished) -> CallToolResult {
        let output = text_of(streams, finished.cut);
        let (status, text) = match &finished.end {
            End::Exited(0) => (Status::Ok, None),
            End::Exited(_) => (Status::Error, None),
            End::TimedOut => (Status::Timeout, Some(self.timed_out(finished))),
            End::Interrupted => (Status::Interrupted, Some("Execution error: Interrupted".to_owned())),
            End::Failed(failure) => match failure.blame {
                Blame::Caller => (Status::Refused, Some(failure.message.clone())),
                Blame::Sandbox => (Status::Failed, Some(format!("Execution error: {}", failure.message))),
            },
        };
        let blocks = match text {
            None => vec![output],
            Some(text) if output.is_empty() => vec![text],
            Some(text) => vec![text, output],
        };
        self.result(status, streams, finished, blocks)
    }

    /// What its caller is told of a run that goes on in the background.
    pub(super) fn running(&self, streams: &Streams) -> CallToolResult {
        let session = self.session.as_deref().unwrap_or_default();
        let how = format!(
            "[running in the background: call run with session {session:?} and empty code to collect the rest]"
        );
        let output = text_of(streams, false);
        let blocks = if output.is_empty() { vec![how] } else { vec![output, how] };
        self.result(Status::Running, streams, &Finished::default(), blocks)
    }

    /// What its caller is told of a call that came to nothing.
    pub(super) fn failed(&self, failure: impl Into<Failure>) -> CallToolResult {
        self.over(&Streams::default(), &Finished::failed(failure))
    }

    /// A failure in the words of the caller.
    pub(super) fn in_its_words(&self, mut failure: Failure) -> Failure {
        for (theirs, ours) in &self.names {
            failure.message = failure.message.replace(theirs, ours);
        }
        failure
    }

    fn timed_out(&self, finished: &Finished) -> String {
        let what = if self.session.is_some() { "Session execution" } else { "Command" };
        let limit = self.timeout.or_else(|| finished.protection.as_deref().and_then(Protection::time));
        format!("Execution error: {what} timed out after {}s", seconds(limit.unwrap_or_default()))
    }

    fn result(
        &self,
        status: Status,
        streams: &Streams,
        finished: &Finished,
        mut blocks: Vec<String>,
    ) -> CallToolResult {
        let lost = finished.state_lost || finished.state_lost_before;
        blocks.extend(remarks(finished, self.session.is_some()));
        let failure = match &finished.end {
            End::Failed(failure) => Some(failure),
            End::Exited(_) | End::TimedOut | End::Interrupted => None,
        };
        let (stdout, stderr) = (streams.stdout.text(), streams.stderr.text());
        let report = Report {
            status,
            exit_code: match finished.end {
                End::Exited(code) if status != Status::Running => Some(code),
                _ => None,
            },
            stdout: cut(&stdout),
            stderr: cut(&stderr),
            truncated: finished.cut || streams.stdout.is_cut() || streams.stderr.is_cut(),
            #[expect(clippy::cast_precision_loss, reason = "of no time that anybody waits for")]
            duration_ms: finished.duration_us as f64 / 1000.0,
            env: &self.env,
            session: self.session.as_deref(),
            isolation: self.isolation(finished),
            session_state_lost: lost && self.session.is_some(),
            exceeded: &finished.exceeded,
            error: failure.map(|failure| failure.message.as_str()),
            hint: failure.and_then(|failure| failure.hint.as_deref()),
        };
        let content = blocks.into_iter().map(ContentBlock::text).collect();
        let mut result = match status {
            Status::Ok | Status::Running => CallToolResult::success(content),
            Status::Error | Status::Timeout | Status::Interrupted | Status::Refused | Status::Failed => {
                CallToolResult::error(content)
            }
        };
        // Strings and numbers have a JSON.
        result.structured_content = serde_json::to_value(report).ok();
        result
    }

    /// What was asked for and what was given, if anything was.
    fn isolation(&self, finished: &Finished) -> Value {
        match &finished.protection {
            Some(protection) => {
                let protection = serde_json::to_value(protection).unwrap_or_default();
                protection.get("isolation").cloned().unwrap_or_default()
            }
            None => serde_json::json!({ "requested": self.isolation.name() }),
        }
    }
}

/// Adds the files that a run has left.
pub(super) fn add_files(result: &mut CallToolResult, files: Vec<Resource>) {
    if files.is_empty() {
        return;
    }
    if let Some(Value::Object(report)) = &mut result.structured_content {
        report.insert("artifacts".to_owned(), serde_json::to_value(&files).unwrap_or_default());
    }
    result.content.extend(files.into_iter().map(ContentBlock::resource_link));
}

/// Both streams as one text.
fn text_of(streams: &Streams, dropped: bool) -> String {
    let Streams { stdout, stderr } = streams;
    let whole = match (stdout.is_empty(), stderr.is_empty()) {
        (_, true) => stdout.text().into_owned(),
        (true, false) => stderr.text().into_owned(),
        (false, false) => format!("{}{BETWEEN}{}", stdout.text(), stderr.text()),
    };
    let shown = cut(&whole);
    if shown.len() < whole.len() || stdout.is_cut() || stderr.is_cut() || dropped {
        return format!("{shown}{TRUNCATED}");
    }
    whole
}

/// What a model must know besides.
fn remarks(finished: &Finished, in_session: bool) -> Vec<String> {
    let mut remarks = Vec::new();
    if in_session && finished.state_lost_before {
        remarks.push("[the session's earlier state was lost: its interpreter had ended]");
    }
    if in_session && finished.state_lost {
        remarks.push("[the session's state is lost: its interpreter ended; the next call starts a new one]");
    }
    if finished.exceeded.contains(&Exceeded::Memory) {
        remarks.push("[a process was killed: the sandbox's memory limit was reached]");
    }
    if finished.exceeded.contains(&Exceeded::Processes) {
        remarks.push("[the sandbox's limit of processes was reached]");
    }
    let hint = match &finished.end {
        End::Failed(Failure { hint: Some(hint), .. }) => Some(format!("[{hint}]")),
        _ => None,
    };
    remarks.into_iter().map(str::to_owned).chain(hint).collect()
}

#[cfg(test)]
mod tests {
    use super::super::captured::MOST_TEXT;
    use super::*;

    fn streams(stdout: &str, stderr: &str) -> Streams {
        let mut streams = Streams::default();
        streams.stdout.push(stdout.as_bytes());
        streams.stderr.push(stderr.as_bytes());
        streams
    }

    fn call(session: Option<&str>) -> Call {
        Call {
            env: "python".to_owned(),
            session: session.map(str::to_owned),
            isolation: Isolation::Jail,
            timeout: Some(Duration::from_secs(5)),
            names: Vec::new(),
        }
    }

    fn texts(result: &CallToolResult) -> Vec<&str> {
        result.content.iter().filter_map(|block| block.as_text().map(|text| text.text.as_str())).collect()
    }

    #[test]
    fn text_is_that_of_nix_sandbox_mcp() {
        assert_eq!(text_of(&streams("", ""), false), "");
        assert_eq!(text_of(&streams("out", ""), false), "out");
        assert_eq!(text_of(&streams("", "err"), false), "err");
        assert_eq!(text_of(&streams("out\n", "err\n"), false), "out\n\n--- stderr ---\nerr\n");
        let long = text_of(&streams(&"ä".repeat(MOST_TEXT / 2 + 1), "err"), false);
        assert_eq!(long.strip_suffix(TRUNCATED).map(str::len), Some(MOST_TEXT));
        assert_eq!(text_of(&streams("out", ""), true), format!("out{TRUNCATED}"));
        let exact = "x".repeat(MOST_TEXT);
        assert_eq!(text_of(&streams(&exact, ""), false), exact);
    }

    #[test]
    fn ends_are_told_apart() {
        let end = |end, session| {
            let finished = Finished { end, duration_us: 1500, ..Finished::default() };
            call(session).over(&streams("so far", ""), &finished)
        };
        let ok = end(End::Exited(0), None);
        assert_eq!((texts(&ok), ok.is_error), (vec!["so far"], Some(false)));
        let error = end(End::Exited(3), None);
        assert_eq!((texts(&error), error.is_error), (vec!["so far"], Some(true)));
        let late = end(End::TimedOut, None);
        assert_eq!(texts(&late), ["Execution error: Command timed out after 5s", "so far"]);
        let late = end(End::TimedOut, Some("s"));
        assert_eq!(texts(&late)[0], "Execution error: Session execution timed out after 5s");
        let refused = end(End::Failed(Failure::of_caller("no")), None);
        assert_eq!(texts(&refused)[0], "no");
        let failed = end(End::Failed(Failure::of_sandbox("no vm")), None);
        assert_eq!(texts(&failed)[0], "Execution error: no vm");
        for result in [ok, error, late, refused, failed] {
            insta::assert_json_snapshot!(result.structured_content);
        }
    }

    #[test]
    fn names_are_those_of_the_caller() {
        let names = vec![("/nix/store/x-py".to_owned(), "py".to_owned()), ("a.s".to_owned(), "s".to_owned())];
        let call = Call { names, ..call(Some("s")) };
        let failure = Failure::of_caller("Session 'a.s' has '/nix/store/x-py'");
        assert_eq!(call.in_its_words(failure).message, "Session 's' has 'py'");
    }

    #[test]
    fn a_lost_state_is_told() {
        let finished = Finished { state_lost: true, ..Finished::default() };
        let told = call(Some("s")).over(&streams("out", ""), &finished);
        assert_eq!(texts(&told)[0], "out");
        assert!(texts(&told)[1].contains("state is lost"));
        // A sandbox that is made for the code has none to lose.
        assert_eq!(texts(&call(None).over(&streams("out", ""), &finished)), ["out"]);
    }

    #[test]
    fn what_goes_on_says_how_to_go_on() {
        let told = call(Some("s")).running(&streams("", ""));
        assert!(texts(&told)[0].contains("session \"s\" and empty code"), "{told:?}");
        insta::assert_json_snapshot!(told.structured_content);
    }
}
