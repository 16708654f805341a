//! `firn events`: what happens to sandboxes.

use super::exit::Failed;
use super::output::Output;
use super::table::line;
use crate::api::client::Client;
use crate::api::types::EventRecord;
use std::time::{Duration, SystemTime};

/// Print what has happened to sandboxes
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn events build\n  firn events --since 10m\n  \
    firn events -f --json | jq 'select(.event == \"limit-hit\")'")]
pub(super) struct Events {
    /// To this one only: its name, its id, or the beginning of its id.
    #[arg(value_name = "SANDBOX")]
    id: Option<String>,

    /// Print JSON objects, one a line.
    #[arg(long)]
    json: bool,

    /// Go on with what happens.
    #[arg(short, long)]
    follow: bool,

    /// Only what came after the event of this number, within this time (10m), or since a moment
    /// (2026-04-08T12:00:00Z).
    #[arg(long, value_name = "NUMBER|DURATION|TIME")]
    since: Option<Since>,
}

/// From where on events are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    Event(u64),
    Time(SystemTime),
}

/// Not one of the three.
#[derive(Clone, Debug, thiserror::Error)]
#[error("neither a number, nor a duration, nor a time like 2026-04-08T12:00:00Z")]
struct NotSince;

impl std::str::FromStr for Since {
    type Err = NotSince;

    fn from_str(text: &str) -> Result<Since, NotSince> {
        let ago = |time: Duration| SystemTime::now().checked_sub(time);
        text.parse()
            .map(Since::Event)
            .ok()
            .or_else(|| humantime::parse_duration(text).ok().and_then(ago).map(Since::Time))
            .or_else(|| humantime::parse_rfc3339(text).ok().map(Since::Time))
            .ok_or(NotSince)
    }
}

impl Since {
    fn holds(self, event: &EventRecord) -> bool {
        match self {
            Since::Event(number) => event.sequence > number,
            // One whose time nobody can read is shown rather than lost.
            Since::Time(time) => humantime::parse_rfc3339(&event.ts).map_or(true, |at| at >= time),
        }
    }
}

impl Events {
    pub(super) async fn run(&self, client: &Client, output: &mut Output) -> Result<u8, Failed> {
        let since = match self.since {
            Some(Since::Event(number)) => number,
            Some(Since::Time(_)) | None => 0,
        };
        let mut events = client.events(self.id.as_deref(), since, self.follow).await?;
        while let Some(event) = events.next().await? {
            if !self.since.is_none_or(|since| since.holds(&event)) {
                continue;
            }
            if self.json {
                output.json_line(&event)?;
            } else {
                output.stdout(render(&event).as_bytes())?;
            }
        }
        Ok(0)
    }
}

/// `2026-04-08T12:00:00Z 0badcafe exec-exited command=1 exitCode=0 by=1000/4711`
fn render(event: &EventRecord) -> String {
    let mut text = format!("{} {} {}", event.ts, event.session_id, event.event);
    for (name, value) in &event.details {
        let value = match value {
            serde_json::Value::String(text) if !text.contains(char::is_whitespace) => text.clone(),
            value => value.to_string(),
        };
        text.push_str(&format!(" {name}={value}"));
    }
    if let Some(by) = event.by {
        text.push_str(&format!(" by={}/{}", by.uid, by.pid));
    }
    line(&text) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::Caller;

    fn event() -> EventRecord {
        let details =
            serde_json::json!({"argv": ["sh", "-c", "echo \u{1b}[31m"], "command": 2, "reason": "two words"});
        EventRecord {
            sequence: 7,
            ts: "2026-04-08T12:00:00Z".to_owned(),
            session_id: "0badcafe".to_owned(),
            event: "exec-started".to_owned(),
            by: Some(Caller { uid: 1000, pid: 4711 }),
            details: serde_json::from_value(details).unwrap(),
        }
    }

    #[test]
    fn an_event_is_a_line() {
        assert_eq!(
            render(&event()),
            "2026-04-08T12:00:00Z 0badcafe exec-started argv=[\"sh\",\"-c\",\"echo \\u001b[31m\"] command=2 \
             reason=\"two words\" by=1000/4711\n"
        );
    }

    #[test]
    fn the_shape() {
        insta::assert_json_snapshot!(event());
    }

    #[test]
    fn since_is_a_number_a_duration_or_a_time() {
        assert_eq!("7".parse::<Since>().unwrap(), Since::Event(7));
        assert!(!Since::Event(7).holds(&event()) && Since::Event(6).holds(&event()));
        assert!(
            !"10m"
                .parse::<Since>()
                .unwrap()
                .holds(&EventRecord { ts: "2001-01-01T00:00:00Z".to_owned(), ..event() })
        );
        assert!("2026-04-08T12:00:00Z".parse::<Since>().unwrap().holds(&event()));
        assert!(!"2026-04-08T12:00:01Z".parse::<Since>().unwrap().holds(&event()));
        assert!("yesterday".parse::<Since>().is_err());
    }
}
