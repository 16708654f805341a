//! What is written down of sandboxes, so that a daemon may be killed at any instant.
//!
//! ```text
//!   STATE/records.db      SQLite: a row for each sandbox, and one for each thing it has outside itself
//!   STATE/audit/ID.jsonl  what was asked of a sandbox, see [`super::audit`]
//!   STATE/logs/ID/        output of detached commands, see [`super::log`]
//! ```
//!
//! Whatever could be left behind (a folder, a control group, a process) is in `resource` before it is
//! made, and only what is there is ever touched. A commit is not waited for to reach the disk
//! (`synchronous = NORMAL` with a write-ahead log survives the end of the process, and what a power cut
//! takes with it are the sandboxes themselves).

use super::SandboxId;
use super::manager::Life;
use super::session::Session;
use crate::api::types::{CreateRequest, SandboxState};
use crate::sys::process::ProcessId;
use rusqlite::{Connection, Row, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How the tables came to be what they are: each step leads to the next version (`PRAGMA user_version`),
/// and none is ever changed.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE sandbox (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        owner TEXT,
        idempotency_key TEXT,
        life TEXT NOT NULL,
        state TEXT NOT NULL,
        doomed INTEGER NOT NULL DEFAULT 0,
        boot TEXT NOT NULL,
        request TEXT NOT NULL,
        facts TEXT NOT NULL,
        remains TEXT
    ) STRICT;
    CREATE UNIQUE INDEX sandbox_key ON sandbox (ifnull(owner, ''), idempotency_key)
        WHERE idempotency_key IS NOT NULL;
    CREATE TABLE resource (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        sandbox INTEGER NOT NULL REFERENCES sandbox (id) ON DELETE CASCADE,
        body TEXT NOT NULL
    ) STRICT;
    CREATE INDEX resource_sandbox ON resource (sandbox);
    CREATE TABLE daemon (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        generation INTEGER NOT NULL
    ) STRICT;
    INSERT INTO daemon (only, generation) VALUES (1, 0);
"];

/// The version that the last step leads to.
const FORMAT: u32 = MIGRATIONS.len() as u32;

/// The records cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordsError {
    /// A file or folder of them.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else's folder.
    #[error("{} is not ours alone: remove it, or set FIRN_STATE_DIR", .0.display())]
    NotOurs(PathBuf),
    /// A newer firn has written them.
    #[error(
        "{} was written by a newer firn (format {found}, this one knows {known}): update firn, or set \
         FIRN_STATE_DIR to another folder",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// SQLite failed.
    #[error("cannot {action} the records in {}", path.display())]
    Database {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rusqlite::Error,
    },
    /// A row holds what no firn of this version writes.
    #[error("the record of sandbox {id} cannot be read")]
    Damaged {
        /// Whose.
        id: SandboxId,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// What a sandbox has outside of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Resource {
    /// Its folder, with its sockets and all else that is removed with it.
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// Its control group: a folder in each hierarchy it is in.
    Cgroup {
        /// The folders.
        paths: Vec<PathBuf>,
    },
    /// A process of it. What that process started is found by the control group, or dies with it.
    Process {
        /// What it is called in messages.
        name: String,
        /// Which.
        id: ProcessId,
    },
}

/// What is known of a sandbox and changes. Times are in milliseconds: those for people since 1970, those
/// to be waited for since the host booted (`CLOCK_BOOTTIME`), which no set clock moves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Facts {
    /// When it was made, for people.
    pub(crate) created_unix_ms: u64,
    /// When it was made.
    pub(crate) created_boot_ms: u64,
    /// When a command was last started in it, for people.
    pub(crate) last_exec_unix_ms: Option<u64>,
    /// When its lease runs out.
    pub(crate) lease_until_boot_ms: Option<u64>,
    /// For how long a lease is renewed when nobody says.
    pub(crate) lease_ms: Option<u64>,
    /// How long it may be idle.
    pub(crate) idle_timeout_ms: Option<u64>,
    /// How old it may become.
    pub(crate) lifetime_ms: Option<u64>,
    /// Words about it.
    pub(crate) description: Option<String>,
    /// Why it ended.
    pub(crate) reason: Option<String>,
    /// The number of the detached command it was made for.
    pub(crate) main_command: Option<u64>,
    /// The number of its last detached command.
    pub(crate) last_command: u64,
    /// The sessions in it.
    pub(crate) sessions: Vec<Session>,
    /// Live limits that differ from the request's.
    pub(crate) memory: Option<u64>,
    /// See `memory`.
    pub(crate) processes: Option<u64>,
    /// See `memory`.
    pub(crate) cpus: Option<String>,
}

/// A sandbox's row.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// Which.
    pub(crate) id: SandboxId,
    /// Its name.
    pub(crate) name: String,
    /// Who owns its life.
    pub(crate) life: Life,
    /// What it did when this was written.
    pub(crate) state: SandboxState,
    /// Whether it was being destroyed.
    pub(crate) doomed: bool,
    /// The boot of the host it was made in.
    pub(crate) boot: String,
    /// What was asked for.
    pub(crate) request: CreateRequest,
    /// What is known of it.
    pub(crate) facts: Facts,
    /// What another daemon needs to take it over: JSON, of [`super::launch::Remains`].
    pub(crate) remains: Option<String>,
}

/// The records of a state folder. One daemon has it at a time: see [`crate::daemon`].
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
    database: Mutex<Connection>,
    /// Of this start of a daemon: no two have the same.
    generation: u64,
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RecordsError {
    move |source| RecordsError::File { action, path: path.to_owned(), source }
}

impl Records {
    /// Those in `dir`, which is made if it is not there. The caller holds its lock.
    pub(crate) fn open(dir: &Path) -> Result<Records, RecordsError> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(dir).map_err(file("make", dir))?;
        let found = fs::symlink_metadata(dir).map_err(file("look at", dir))?;
        let ours = nix::unistd::Uid::effective().as_raw();
        if !found.is_dir() || found.uid() != ours || found.mode() & 0o022 != 0 {
            return Err(RecordsError::NotOurs(dir.to_owned()));
        }
        for name in ["audit", "logs"] {
            let path = dir.join(name);
            builder.create(&path).map_err(file("make", &path))?;
        }
        let path = dir.join("records.db");
        let failed = |action| {
            let path = path.clone();
            move |source| RecordsError::Database { action, path, source }
        };
        let mut database = Connection::open(&path).map_err(failed("open"))?;
        database.busy_timeout(Duration::from_secs(5)).map_err(failed("open"))?;
        let found = database
            .query_row("PRAGMA user_version", (), |row| row.get::<_, u32>(0))
            .map_err(failed("read"))?;
        // Before anything is written to it.
        if found > FORMAT {
            return Err(RecordsError::Newer { path, found, known: FORMAT });
        }
        // The log is written back when it is 1 MiB long, so that it never is much longer.
        let set = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;
            PRAGMA wal_autocheckpoint = 256; PRAGMA journal_size_limit = 1048576;";
        database.execute_batch(set).map_err(failed("set up"))?;
        let upgrade = |database: &mut Connection| {
            let transaction = database.transaction()?;
            for (_, migration) in (0..FORMAT).zip(MIGRATIONS).skip_while(|(from, _)| *from < found) {
                transaction.execute_batch(migration)?;
            }
            transaction.pragma_update(None, "user_version", FORMAT)?;
            let generation = "UPDATE daemon SET generation = generation + 1 RETURNING generation";
            let generation = transaction.query_row(generation, (), |row| row.get::<_, i64>(0))?;
            transaction.commit()?;
            Ok(generation.unsigned_abs())
        };
        let generation = upgrade(&mut database).map_err(failed("upgrade"))?;
        Ok(Records { dir: dir.to_owned(), database: Mutex::new(database), generation })
    }

    /// The folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A number that no other start of a daemon on this folder has had.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    fn database(&self) -> MutexGuard<'_, Connection> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<usize>) -> Result<(), RecordsError> {
        work(&self.database()).map(drop).map_err(|source| self.failed("write", source))
    }

    fn failed(&self, action: &'static str, source: rusqlite::Error) -> RecordsError {
        RecordsError::Database { action, path: self.dir.join("records.db"), source }
    }

    /// Writes a new sandbox down, before anything of it is made: or what a spare of the pool is to be from
    /// now on.
    pub(crate) fn insert(&self, record: &Record) -> Result<(), RecordsError> {
        self.write(|database| {
            database.execute(
                "INSERT INTO sandbox (id, name, owner, idempotency_key, life, state, boot, request, facts)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                 ON CONFLICT (id) DO UPDATE SET
                     name = ?2, owner = ?3, idempotency_key = ?4, life = ?5, state = ?6, boot = ?7,
                     request = ?8, facts = ?9",
                params![
                    record.id.number(),
                    record.name,
                    record.request.owner,
                    record.request.idempotency_key,
                    json(&record.life)?,
                    json(&record.state)?,
                    record.boot,
                    json(&record.request)?,
                    json(&record.facts)?,
                ],
            )
        })
    }

    /// Writes down what a sandbox is about to have.
    pub(crate) fn add(&self, id: SandboxId, resource: &Resource) -> Result<(), RecordsError> {
        self.write(|database| add(database, id, resource))
    }

    /// Writes down that it has come up, and what it takes to take it over.
    pub(crate) fn up(&self, id: SandboxId, remains: &str) -> Result<(), RecordsError> {
        self.write(|database| {
            database.execute(
                "UPDATE sandbox SET state = ?2, remains = ?3 WHERE id = ?1",
                params![id.number(), json(&SandboxState::Running)?, remains],
            )
        })
    }

    /// Writes down what it does now.
    pub(crate) fn set_state(
        &self,
        id: SandboxId,
        state: SandboxState,
        facts: &Facts,
    ) -> Result<(), RecordsError> {
        self.write(|database| {
            database.execute(
                "UPDATE sandbox SET state = ?2, facts = ?3 WHERE id = ?1",
                params![id.number(), json(&state)?, json(facts)?],
            )
        })
    }

    /// Writes down what is known of it now.
    pub(crate) fn set_facts(&self, id: SandboxId, name: &str, facts: &Facts) -> Result<(), RecordsError> {
        self.write(|database| {
            database.execute(
                "UPDATE sandbox SET name = ?2, facts = ?3 WHERE id = ?1",
                params![id.number(), name, json(facts)?],
            )
        })
    }

    /// Writes down that it is being destroyed: whoever finds this finishes it.
    pub(crate) fn doom(&self, id: SandboxId) -> Result<(), RecordsError> {
        self.write(|database| database.execute("UPDATE sandbox SET doomed = 1 WHERE id = ?1", [id.number()]))
    }

    /// Forgets what a sandbox had: it is gone.
    pub(crate) fn clear(&self, id: SandboxId) -> Result<(), RecordsError> {
        self.write(|database| database.execute("DELETE FROM resource WHERE sandbox = ?1", [id.number()]))
    }

    /// Forgets it.
    pub(crate) fn remove(&self, id: SandboxId) -> Result<(), RecordsError> {
        self.write(|database| database.execute("DELETE FROM sandbox WHERE id = ?1", [id.number()]))
    }

    /// What a sandbox has, in the order in which it was made.
    pub(crate) fn resources(&self, id: SandboxId) -> Result<Vec<Resource>, RecordsError> {
        let database = self.database();
        let read = || {
            let mut rows =
                database.prepare("SELECT body FROM resource WHERE sandbox = ?1 ORDER BY sequence")?;
            rows.query_map([id.number()], |row| row.get::<_, String>(0))?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        let bodies = read().map_err(|source| self.failed("read", source))?;
        bodies.iter().map(|body| parse(id, body)).collect()
    }

    /// All sandboxes. A row that cannot be read is told apart, and left alone.
    pub(crate) fn all(&self) -> Result<Vec<Result<Record, RecordsError>>, RecordsError> {
        let database = self.database();
        let read = || {
            let columns = "id, name, life, state, doomed, boot, request, facts, remains";
            let mut rows = database.prepare(&format!("SELECT {columns} FROM sandbox ORDER BY rowid"))?;
            rows.query_map((), columns_of)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        let rows = read().map_err(|source| self.failed("read", source))?;
        Ok(rows.into_iter().map(Columns::record).collect())
    }

    /// Whether the sandbox is still written down.
    #[cfg(test)]
    pub(crate) fn has(&self, id: SandboxId) -> bool {
        let query = "SELECT 1 FROM sandbox WHERE id = ?1";
        self.database().query_row(query, [id.number()], |_| Ok(())).is_ok()
    }
}

fn add(database: &Connection, id: SandboxId, resource: &Resource) -> rusqlite::Result<usize> {
    database
        .prepare_cached("INSERT INTO resource (sandbox, body) VALUES (?1, ?2)")?
        .execute(params![id.number(), json(resource)?])
}

fn json<T: Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

fn parse<T: DeserializeOwned>(id: SandboxId, text: &str) -> Result<T, RecordsError> {
    serde_json::from_str(text).map_err(|source| RecordsError::Damaged { id, source })
}

/// A row as it lies there.
struct Columns {
    id: SandboxId,
    name: String,
    life: String,
    state: String,
    doomed: bool,
    boot: String,
    request: String,
    facts: String,
    remains: Option<String>,
}

fn columns_of(row: &Row<'_>) -> rusqlite::Result<Columns> {
    Ok(Columns {
        id: SandboxId::from_number(row.get(0)?),
        name: row.get(1)?,
        life: row.get(2)?,
        state: row.get(3)?,
        doomed: row.get(4)?,
        boot: row.get(5)?,
        request: row.get(6)?,
        facts: row.get(7)?,
        remains: row.get(8)?,
    })
}

impl Columns {
    fn record(self) -> Result<Record, RecordsError> {
        let id = self.id;
        Ok(Record {
            id,
            name: self.name,
            life: parse(id, &self.life)?,
            state: parse(id, &self.state)?,
            doomed: self.doomed,
            boot: self.boot,
            request: parse(id, &self.request)?,
            facts: parse(id, &self.facts)?,
            remains: self.remains,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u32) -> Record {
        Record {
            id: SandboxId::from_number(number),
            name: format!("s{number}"),
            life: Life::Kept,
            state: SandboxState::Starting,
            doomed: false,
            boot: "b".into(),
            request: CreateRequest { owner: Some("o".into()), ..CreateRequest::default() },
            facts: Facts { created_unix_ms: 7, ..Facts::default() },
            remains: None,
        }
    }

    #[test]
    fn what_is_written_down_is_read_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let records = Records::open(&state).unwrap();
        let first = records.generation();
        let folder = Resource::Folder { path: "/a".into() };
        let process = Resource::Process { name: "qemu".into(), id: ProcessId::ours() };
        records.insert(&record(5)).unwrap();
        records.add(SandboxId::from_number(5), &folder).unwrap();
        records.add(SandboxId::from_number(5), &process).unwrap();
        records.up(SandboxId::from_number(5), "{}").unwrap();
        records.doom(SandboxId::from_number(5)).unwrap();
        drop(records);
        let records = Records::open(&state).unwrap();
        assert!(records.generation() > first);
        let all = records.all().unwrap();
        let [Ok(found)] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!(
            (found.state, found.doomed, found.remains.as_deref()),
            (SandboxState::Running, true, Some("{}"))
        );
        assert_eq!(found.request, record(5).request);
        assert_eq!(found.facts, record(5).facts);
        assert_eq!(records.resources(found.id).unwrap(), [folder, process]);
        records.remove(found.id).unwrap();
        assert!(!records.has(found.id));
        assert!(records.resources(found.id).unwrap().is_empty());
    }

    #[test]
    fn an_owners_key_is_there_once() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("state")).unwrap();
        let mut one = record(1);
        one.request.idempotency_key = Some("k".into());
        records.insert(&one).unwrap();
        let mut other = one.clone();
        other.id = SandboxId::from_number(2);
        assert!(records.insert(&other).is_err());
        other.request.owner = None;
        records.insert(&other).unwrap();
    }

    #[test]
    fn a_newer_format_is_refused_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        drop(Records::open(&state).unwrap());
        let path = state.join("records.db");
        let newer = Connection::open(&path).unwrap();
        newer
            .execute_batch("PRAGMA journal_mode = DELETE; CREATE TABLE new (x); PRAGMA user_version = 99;")
            .unwrap();
        drop(newer);
        let before = fs::read(&path).unwrap();
        assert!(matches!(Records::open(&state), Err(RecordsError::Newer { found: 99, .. })));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_row_that_cannot_be_read_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("state")).unwrap();
        records.insert(&record(1)).unwrap();
        records.insert(&record(2)).unwrap();
        records.database().execute("UPDATE sandbox SET facts = '[' WHERE id = 1", ()).unwrap();
        let all = records.all().unwrap();
        assert!(matches!(&all[..], [Err(RecordsError::Damaged { .. }), Ok(_)]));
    }
}
