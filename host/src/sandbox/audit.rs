//! What was asked of sandboxes, by whom, and what came of it: told to whoever listens, and written down
//! in a file for each sandbox that is only ever added to.
//!
//! The file outlives its sandbox, and nothing in firn reads it but to show it. What a command was given
//! on its stdin or in its variables is not in it; its arguments are, and in no other log.

use super::SandboxId;
use crate::api::types::{Caller, EventRecord};
use serde_json::{Map, Value as Json};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio::sync::broadcast;

/// How many events are kept in memory for those who ask what has happened.
const REMEMBERED: usize = 4096;

/// How many events a listener may be behind before it misses some.
const BACKLOG: usize = 1024;

/// The longest line of an audit file that is read back, in bytes.
const LONGEST_LINE: usize = 1 << 20;

/// What is done in a sandbox, and would hide in the daemon's log what becomes of it.
const OFTEN: [&str; 4] = ["exec-started", "exec-exited", "run-started", "run-ended"];

/// The detail with a command's arguments.
pub(super) const ARGUMENTS: &str = "argv";

/// The audit log of a state folder.
#[derive(Debug)]
pub(crate) struct Audit {
    dir: PathBuf,
    state: Mutex<Told>,
    tell: broadcast::Sender<Arc<EventRecord>>,
}

#[derive(Debug)]
struct Told {
    next: u64,
    recent: VecDeque<Arc<EventRecord>>,
}

/// A sandbox's file, while it is open.
#[derive(Debug, Default)]
pub(crate) struct Open(Mutex<Option<File>>);

/// Details of an event, one after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Details(Map<String, Json>);

impl Details {
    /// With one more.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: impl Into<Json>) -> Details {
        self.0.insert(name.to_owned(), value.into());
        self
    }
}

impl Open {
    /// Until it is needed again.
    pub(super) fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Audit {
    /// The one in `dir`. `generation` is of the daemon: it makes the numbers of events unique.
    pub(crate) fn new(dir: PathBuf, generation: u64) -> Audit {
        let (tell, _) = broadcast::channel(BACKLOG);
        let state = Mutex::new(Told { next: generation << 32, recent: VecDeque::new() });
        Audit { dir, state, tell }
    }

    /// Something happened to a sandbox. Its file stays open as long as `open`, if that is given.
    pub(crate) fn note(
        &self,
        id: SandboxId,
        open: Option<&Open>,
        event: &str,
        by: Option<Caller>,
        details: Details,
    ) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.next += 1;
        let record = Arc::new(EventRecord {
            sequence: state.next,
            ts: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            session_id: id.to_string(),
            event: event.to_owned(),
            by,
            details: details.0,
        });
        // Under the lock, so that the file has them in order.
        if let Err(error) = self.append(open, &record) {
            // What was done is done: a full disk must not keep a sandbox from being ended.
            tracing::error!(sandbox = %id, event, %error, "cannot write to the audit log");
        }
        if state.recent.len() == REMEMBERED {
            state.recent.pop_front();
        }
        state.recent.push_back(Arc::clone(&record));
        drop(state);
        if OFTEN.contains(&event) {
            tracing::debug!(sandbox = %record.session_id, details = %for_log(&record.details), "{event}");
        } else {
            tracing::info!(sandbox = %record.session_id, details = %for_log(&record.details), "{event}");
        }
        // Nobody has to listen.
        let _ = self.tell.send(record);
    }

    fn append(&self, open: Option<&Open>, record: &EventRecord) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let path = self.path(&record.session_id);
        let file = || OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        // In one write: two lines never mix, and a daemon that is killed leaves whole lines.
        let Some(Open(open)) = open else { return file()?.write_all(&line) };
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match &mut *open {
            Some(file) => file,
            none => none.insert(file()?),
        };
        file.write_all(&line)
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.jsonl"))
    }

    /// What happens from now on, and before it what happened after number `since`: to all sandboxes, as
    /// far as it is remembered, or to `of`, as far as it is written down.
    pub(crate) fn since(
        &self,
        of: Option<SandboxId>,
        since: u64,
    ) -> (Vec<EventRecord>, broadcast::Receiver<Arc<EventRecord>>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = self.tell.subscribe();
        let past = match of {
            Some(id) => read(&self.path(&id.to_string())),
            None => state.recent.iter().map(|record| (**record).clone()).collect(),
        };
        (past.into_iter().filter(|record| record.sequence > since).collect(), receiver)
    }
}

/// What the daemon's log is told of an event: others may read it, as the journal, and arguments may hold
/// what is not for them.
fn for_log(details: &Map<String, Json>) -> Json {
    Json::Object(
        details.iter().filter(|(name, _)| *name != ARGUMENTS).map(|(n, v)| (n.clone(), v.clone())).collect(),
    )
}

/// The last of what is in an audit file. A line that is none, because the disk was full, is left out.
fn read(path: &Path) -> Vec<EventRecord> {
    let Ok(file) = std::fs::File::open(path) else { return Vec::new() };
    let mut reader = BufReader::new(file);
    let mut records = VecDeque::new();
    let mut line = Vec::new();
    while let Ok(1..) = reader.read_until(b'\n', &mut line) {
        if line.len() <= LONGEST_LINE
            && let Ok(record) = serde_json::from_slice(&line)
        {
            if records.len() == REMEMBERED {
                records.pop_front();
            }
            records.push_back(record);
        }
        line.clear();
    }
    records.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_log_has_no_arguments() {
        let details = Details::default().with(ARGUMENTS, vec!["secret"]).with("user", "root");
        assert_eq!(for_log(&details.0), serde_json::json!({"user": "root"}));
    }

    #[test]
    fn events_are_told_remembered_and_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::new(dir.path().to_owned(), 1);
        let (one, other) = (SandboxId::from_number(1), SandboxId::from_number(2));
        let (past, mut told) = audit.since(None, 0);
        assert!(past.is_empty());
        let by = Some(Caller { uid: 7, pid: 8 });
        audit.note(one, None, "created", by, Details::default().with("name", "x"));
        audit.note(other, None, "created", None, Details::default());
        let open = Open::default();
        audit.note(one, Some(&open), "paused", None, Details::default());
        audit.note(one, Some(&open), "stopped", None, Details::default());
        assert_eq!(told.try_recv().unwrap().by, by);
        let (past, _) = audit.since(None, 0);
        assert_eq!(
            past.iter().map(|record| record.event.as_str()).collect::<Vec<_>>(),
            ["created", "created", "paused", "stopped"]
        );
        assert!(past.is_sorted_by(|a, b| a.sequence < b.sequence));
        let (rest, _) = audit.since(None, past[1].sequence);
        assert_eq!(rest.len(), 2);

        // The next daemon knows it from the file, also when the last line was cut.
        let path = dir.path().join("00000001.jsonl");
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"sequence\":");
        std::fs::write(&path, text).unwrap();
        let audit = Audit::new(dir.path().to_owned(), 2);
        audit.note(one, None, "adopted", None, Details::default());
        let (past, _) = audit.since(Some(one), 0);
        assert_eq!(past[0].details["name"], "x");
        assert_eq!(past[2].event, "stopped");
        assert!(past.is_sorted_by(|a, b| a.sequence < b.sequence));
    }
}
