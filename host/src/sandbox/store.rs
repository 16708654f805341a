//! What is written down of running sandboxes, so that nothing of a dead one stays.
//!
//! ```text
//!   RUNTIME/sandboxes/.lock            held while an entry is made or reaped
//!   RUNTIME/sandboxes/ID/lock          held by the process that owns the sandbox, while it lives
//!   RUNTIME/sandboxes/ID/record.json   what was made outside this folder, written before it is
//!   RUNTIME/sandboxes/ID/sockets/      the sockets of its helpers, where it has such
//! ```
//!
//! The owner may be killed at any instant. The kernel then ends its helpers and drops its lock, and
//! the next firn command removes the rest: only what a record names, and only when the lock shows
//! that the owner is gone.

use super::SandboxId;
use crate::sys::cgroup::{Cgroup, Hierarchies};
use crate::sys::identity::Identity;
use crate::sys::limits::{Limits, Mechanisms};
use crate::sys::lock::Lock;
use crate::sys::process::ProcessId;
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long killed processes may take to be gone. A guest's memory is given back page by page.
const REAP_PATIENCE: Duration = Duration::from_secs(20);

/// How long a process that was just forked may take to see that its parent is gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Records of this version are written. Older ones are understood too.
const RECORD_VERSION: u32 = 2;

/// What a sandbox has outside its folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// Who made it.
    owner: ProcessId,
    /// The folders of its control group: none, one, or one in each hierarchy.
    cgroups: Vec<PathBuf>,
}

/// A record of version 1.
#[derive(Deserialize)]
struct FirstRecord {
    owner: ProcessId,
    cgroup: Option<PathBuf>,
}

impl From<FirstRecord> for Record {
    fn from(FirstRecord { owner, cgroup }: FirstRecord) -> Record {
        Record { version: 1, owner, cgroups: cgroup.into_iter().collect() }
    }
}

/// What a record turned out to be.
enum Known {
    /// One of this version, or an older one.
    Ours(Record),
    /// A newer firn's: its sandbox is for a newer firn to reap.
    Newer,
    /// There is none.
    Absent,
}

impl Record {
    fn read(path: &Path) -> Result<Known, StoreError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let json = match fs::read(path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Known::Absent),
            Err(error) => return Err(failed("read", path)(error)),
        };
        // It was renamed into place whole, so this is never half a record.
        let unknown = |error: serde_json::Error| failed("understand", path)(error.into());
        let Versioned { version } = serde_json::from_slice(&json).map_err(unknown)?;
        match version {
            1 => serde_json::from_slice::<FirstRecord>(&json).map(Record::from),
            RECORD_VERSION => serde_json::from_slice(&json),
            _ => return Ok(Known::Newer),
        }
        .map(Known::Ours)
        .map_err(unknown)
    }
}

/// The folder of all records could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// A file or folder could not be made, read or removed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The folder belongs to somebody else, who could put anything into it.
    #[error("{} is not ours alone: remove it, or set FIRN_RUNTIME_DIR", .0.display())]
    NotOurs(PathBuf),
    /// Socket paths are short (`unix(7)`).
    #[error("{} is too long a path for sockets: set FIRN_RUNTIME_DIR to a shorter one", .0.display())]
    TooLong(PathBuf),
    /// The control group could not be made.
    #[error("cannot make the control group {}", path.display())]
    Cgroup {
        /// Its folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel gave no random number.
    #[error("cannot choose a name for the sandbox")]
    Name(#[source] getrandom::Error),
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::File { action, path: path.to_owned(), source }
}

/// The records of this user's sandboxes.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

/// What was left of sandboxes whose owners are gone.
#[derive(Debug, Default)]
pub(crate) struct Reaped {
    /// Those that were removed.
    pub(crate) removed: Vec<SandboxId>,
    /// Those that were not, and why.
    pub(crate) failed: Vec<(SandboxId, StoreError)>,
}

/// How many processes firn starts for a sandbox, which start all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Helpers {
    /// bubblewrap, for a jail.
    One,
    /// The VMM and what serves it.
    Several,
}

impl Store {
    /// The store in `runtime_dir`, which is made if it is not there.
    pub(crate) fn open(runtime_dir: &Path) -> Result<Store, StoreError> {
        // Root's helpers run as strangers and must be able to pass through, not to look around.
        let mode = if Uid::effective().is_root() { 0o711 } else { 0o700 };
        let dir = runtime_dir.join("sandboxes");
        let longest = dir.join("00000000/sockets/vsock_4294967295");
        if longest.as_os_str().len() > 107 {
            return Err(StoreError::TooLong(runtime_dir.to_owned()));
        }
        for dir in [runtime_dir, &dir] {
            fs::DirBuilder::new().recursive(true).mode(mode).create(dir).map_err(failed("make", dir))?;
            let found = fs::symlink_metadata(dir).map_err(failed("look at", dir))?;
            let ours =
                found.is_dir() && found.uid() == Uid::effective().as_raw() && found.mode() & 0o022 == 0;
            if !ours {
                return Err(StoreError::NotOurs(dir.to_owned()));
            }
        }
        Ok(Store { dir })
    }

    fn lock(&self) -> Result<Lock, StoreError> {
        let path = self.dir.join(".lock");
        Lock::wait(&path).map_err(failed("lock", &path))
    }

    /// Makes the place of a new sandbox: its folder, its record, then its control group, which holds
    /// it to `limits` as far as groups can: [`Place::mechanisms`] says how far. Its helpers will be
    /// able to open `device`.
    pub(crate) fn claim(
        &self,
        device: Option<&Path>,
        limits: &Limits,
        helpers: Helpers,
    ) -> Result<Place, StoreError> {
        let id = SandboxId::random().map_err(StoreError::Name)?;
        let dir = self.dir.join(id.to_string());
        let hierarchies = match helpers {
            Helpers::One => Hierarchies::find(),
            Helpers::Several => Hierarchies::find().without_scopes(),
        };
        let mechanisms = hierarchies.mechanisms();
        let cgroup = hierarchies.group(&format!("firn-{id}"), limits);
        let record = Record { version: RECORD_VERSION, owner: ProcessId::ours(), cgroups: cgroup.paths() };
        let least = Identity::least(id.number());
        let identity = device.map_or(least, |device| least.with_device(device));
        let held = self.lock()?;
        let mode = if Uid::effective().is_root() { 0o711 } else { 0o700 };
        fs::DirBuilder::new().mode(mode).create(&dir).map_err(failed("make", &dir))?;
        let lock_path = dir.join("lock");
        let lock = Lock::wait(&lock_path).map_err(failed("lock", &lock_path))?;
        // From here on dropping the place undoes what was done.
        let place = Place { id, dir, cgroup, mechanisms, identity, lock: Some(lock) };
        place.write(&record)?;
        drop(held);
        place.cgroup.create().map_err(|source| StoreError::Cgroup {
            path: place.cgroup.path().unwrap_or(Path::new("")).to_owned(),
            source,
        })?;
        Ok(place)
    }

    /// Removes what is left of sandboxes whose owners are gone.
    pub(crate) fn reap(&self) -> Result<Reaped, StoreError> {
        let mut reaped = Reaped::default();
        let ids = self.ids()?;
        if ids.is_empty() {
            return Ok(reaped);
        }
        let _held = self.lock()?;
        for id in ids {
            match self.reap_one(id) {
                Ok(true) => reaped.removed.push(id),
                Ok(false) => {}
                Err(error) => reaped.failed.push((id, error)),
            }
        }
        Ok(reaped)
    }

    /// Whatever else is in the folder is not ours.
    fn ids(&self) -> Result<Vec<SandboxId>, StoreError> {
        let entries = fs::read_dir(&self.dir).map_err(failed("read", &self.dir))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    fn reap_one(&self, id: SandboxId) -> Result<bool, StoreError> {
        let dir = self.dir.join(id.to_string());
        let lock_path = dir.join("lock");
        let attempt = || match Lock::attempt(&lock_path) {
            Ok(lock) => Ok(lock),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Ok(false)),
            Err(error) => Err(Err(failed("lock", &lock_path)(error))),
        };
        let mut lock = match attempt() {
            Ok(lock) => lock,
            // Its owner removed it while we were looking.
            Err(answer) => return answer,
        };
        let record = match Record::read(&dir.join("record.json"))? {
            Known::Ours(record) => Some(record),
            Known::Newer => return Ok(false),
            Known::Absent => None,
        };
        // A process that its owner had just forked holds the lock too, for the moment until it
        // sees that its parent is gone.
        let patience = Instant::now() + LOCK_PATIENCE;
        while lock.is_none() {
            let owner_lives = record.as_ref().is_none_or(|record| record.owner.is_alive());
            if owner_lives || Instant::now() > patience {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
            lock = match attempt() {
                Ok(lock) => lock,
                Err(answer) => return answer,
            };
        }
        let Some(lock) = lock else { return Ok(false) };
        let identity = Identity::least(id.number());
        // Killed before a record was written: then nothing else was made.
        let cgroup = record.map_or_else(Cgroup::none, |record| Cgroup::at(record.cgroups));
        let mechanisms = Mechanisms::WITHOUT_GROUPS;
        let mut place = Place { id, dir, cgroup, mechanisms, identity, lock: Some(lock) };
        place.remove()?;
        place.cgroup.dismiss();
        Ok(true)
    }
}

/// A sandbox's place on the host. Dropping it removes everything it names.
#[derive(Debug)]
pub(crate) struct Place {
    id: SandboxId,
    dir: PathBuf,
    cgroup: Cgroup,
    mechanisms: Mechanisms,
    identity: Identity,
    /// Released when all that it guards is gone.
    lock: Option<Lock>,
}

impl Place {
    /// The sandbox's name.
    pub(crate) fn id(&self) -> SandboxId {
        self.id
    }

    /// Who its helpers are.
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// The group of its processes.
    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// What holds it to each limit, if it has that limit.
    pub(crate) fn mechanisms(&self) -> Mechanisms {
        self.mechanisms
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.dir
    }

    /// Makes the folder of its sockets, for its helpers to make them in.
    pub(crate) fn make_sockets(&self) -> Result<PathBuf, StoreError> {
        let sockets = self.dir.join("sockets");
        fs::DirBuilder::new().mode(0o700).create(&sockets).map_err(failed("make", &sockets))?;
        self.identity.own(&sockets).map_err(failed("give away", &sockets))?;
        Ok(sockets)
    }

    fn write(&self, record: &Record) -> Result<(), StoreError> {
        let (path, new) = (self.dir.join("record.json"), self.dir.join("record.new"));
        let json = serde_json::to_vec(record).map_err(|error| failed("write", &path)(error.into()))?;
        let write = || {
            let mut file = fs::File::create(&new)?;
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            file.write_all(&json)?;
            fs::rename(&new, &path)
        };
        write().map_err(failed("write", &path))
    }

    fn remove(&mut self) -> Result<(), StoreError> {
        self.cgroup.destroy(REAP_PATIENCE).map_err(|source| StoreError::File {
            action: "remove the control group",
            path: self.cgroup.path().unwrap_or(Path::new("")).to_owned(),
            source,
        })?;
        let (sockets, record) = (self.dir.join("sockets"), self.dir.join("record.json"));
        gone(fs::remove_dir_all(&sockets)).map_err(failed("remove", &sockets))?;
        gone(fs::remove_file(&record)).map_err(failed("remove", &record))?;
        // Released before it is removed: to remove an open file takes milliseconds on ext4, where
        // it is written down as an orphan first. Another firn that takes it now finds no record,
        // and removes the rest as we do.
        self.lock = None;
        gone(fs::remove_file(self.dir.join("lock")))
            .and_then(|()| gone(fs::remove_dir(&self.dir)))
            .or_else(|_more| gone(fs::remove_dir_all(&self.dir)))
            .map_err(failed("remove", &self.dir))
    }
}

/// What is not there need not be removed.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next command: the record stays.
        let _ = self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let store = Store::open(&dir.path().join("firn")).unwrap();
        (dir, store)
    }

    fn entries(store: &Store) -> usize {
        store.ids().unwrap().len()
    }

    #[test]
    fn a_place_leaves_nothing() {
        let (_dir, store) = store();
        let place = store.claim(None, &Limits::default(), Helpers::Several).unwrap();
        let cgroup = place.cgroup().path().map(Path::to_owned);
        assert!(place.make_sockets().unwrap().is_dir());
        assert!(cgroup.as_ref().is_none_or(|path| path.is_dir()));
        drop(place);
        assert_eq!(entries(&store), 0);
        assert!(cgroup.is_none_or(|path| !path.exists()));
    }

    #[test]
    fn the_living_are_left_alone_and_the_dead_are_reaped() {
        let (_dir, store) = store();
        let alive = store.claim(None, &Limits::default(), Helpers::Several).unwrap();
        let dead = store.claim(None, &Limits::default(), Helpers::Several).unwrap();
        let dead_id = dead.id();
        let dead_group = dead.cgroup().path().map(Path::to_owned);
        // What is left of a killed owner: everything but the lock.
        let Place { dir, .. } = &dead;
        let lock = dir.join("lock");
        fs::rename(&lock, dir.join("old")).unwrap();
        fs::write(&lock, "").unwrap();
        std::mem::forget(dead);
        let reaped = store.reap().unwrap();
        assert_eq!(reaped.removed, [dead_id]);
        assert!(reaped.failed.is_empty());
        assert!(dead_group.is_none_or(|path| !path.exists()));
        assert!(alive.dir.is_dir());
        assert_eq!(entries(&store), 1);
    }

    #[test]
    fn what_has_no_record_is_not_touched() {
        let (_dir, store) = store();
        fs::create_dir(store.dir.join("precious")).unwrap();
        fs::write(store.dir.join("note"), "x").unwrap();
        assert!(store.reap().unwrap().removed.is_empty());
        assert!(store.dir.join("precious").is_dir());
    }

    /// What an owner that is gone has left, with this record.
    fn left_behind(store: &Store, id: &str, record: &str) -> PathBuf {
        let dir = store.dir.join(id);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("lock"), "").unwrap();
        fs::write(dir.join("record.json"), record).unwrap();
        dir
    }

    #[test]
    fn records_of_both_versions_are_reaped() {
        let (_dir, store) = store();
        let groups = ["first", "second", "third"].map(|name| store.dir.join(name));
        groups.iter().for_each(|group| fs::create_dir(group).unwrap());
        let [first, second, third] = groups.each_ref().map(|path| format!("{path:?}"));
        let owner = r#"{"pid":1,"start_time":18446744073709551615}"#;
        let version_1 = format!(r#"{{"version":1,"owner":{owner},"cgroup":{first}}}"#);
        let version_2 = format!(r#"{{"version":2,"owner":{owner},"cgroups":[{second},{third}]}}"#);
        let none = format!(r#"{{"version":1,"owner":{owner},"cgroup":null}}"#);
        let dirs = [("00000001", version_1), ("00000002", version_2), ("00000003", none)]
            .map(|(id, record)| left_behind(&store, id, &record));
        let reaped = store.reap().unwrap();
        assert!(reaped.failed.is_empty(), "{:?}", reaped.failed);
        assert_eq!(reaped.removed.len(), 3);
        assert!(groups.iter().chain(&dirs).all(|path| !path.exists()));
    }

    #[test]
    fn a_newer_record_is_left_to_a_newer_firn() {
        let (_dir, store) = store();
        let dir = store.dir.join("0badcafe");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("record.json"), r#"{"version":3,"cgroups":[],"tap":"x"}"#).unwrap();
        assert!(store.reap().unwrap().removed.is_empty());
        assert!(dir.is_dir());
    }

    #[test]
    fn a_folder_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let runtime = dir.path().join("firn");
        fs::create_dir(&runtime).unwrap();
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Store::open(&runtime), Err(StoreError::NotOurs(_))));
    }

    #[test]
    fn a_path_too_long_for_sockets_is_refused() {
        let long = Path::new("/tmp").join("x".repeat(90));
        assert!(matches!(Store::open(&long), Err(StoreError::TooLong(_))));
    }
}
