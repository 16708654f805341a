//! What was built from Nix on this host, written down so that it can be used without asking Nix again, and
//! kept from garbage collection.
//!
//! ```text
//!   STATE/environments/records/KEY.json    what a reference stood for, and when
//!   STATE/environments/records/KEY.lock    held by whoever builds it
//!   STATE/environments/roots/HASH-NAME     a root of Nix's garbage collector: a link to a store path
//! ```
//!
//! There is a root for each path, not for each name: a sandbox goes on with the path that it was started with
//! when its name stands for another. `firn env gc` removes those that nothing needs.

use super::reference::Freshness;
use crate::sys::lock::Lock;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The records and roots of this user.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    folder: PathBuf,
}

/// What was built from a reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// What was asked for.
    pub(crate) reference: String,
    /// What the environment calls itself.
    pub(crate) name: String,
    /// Its folder, a store path.
    pub(crate) path: PathBuf,
    /// When, in seconds since 1970-01-01T00:00:00Z.
    pub(crate) built_at: u64,
    /// The checksum of a local flake's Nix files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fingerprint: Option<String>,
}

impl Built {
    /// Those of the state folder `state`.
    pub(crate) fn of(state: &Path) -> Built {
        Built { folder: state.join("environments") }
    }

    /// What `reference` stands for, if that was built and still holds.
    pub(crate) fn find(&self, reference: &str, freshness: &Freshness) -> Option<Record> {
        let record = self.read(&self.record(reference))?;
        (record.reference == reference && record.holds(freshness, SystemTime::now())).then_some(record)
    }

    /// All that was built and is still there, the latest last.
    pub(crate) fn all(&self) -> Vec<Record> {
        let Ok(entries) = fs::read_dir(self.folder.join("records")) else { return Vec::new() };
        let mut records: Vec<Record> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension() == Some(OsStr::new("json")))
            .filter_map(|path| self.read(&path))
            .collect();
        records.sort_by(|one, other| (one.built_at, &one.name).cmp(&(other.built_at, &other.name)));
        records
    }

    /// Waits until nobody else builds `reference`.
    pub(crate) fn lock(&self, reference: &str) -> io::Result<Lock> {
        fs::create_dir_all(self.folder.join("records"))?;
        Lock::wait(&self.record(reference).with_extension("lock"))
    }

    /// Writes down what was built.
    pub(crate) fn put(&self, record: &Record) -> io::Result<()> {
        let path = self.record(&record.reference);
        // Whoever reads sees the old one or the new one.
        let fresh = path.with_extension(format!("{}.new", std::process::id()));
        fs::write(&fresh, serde_json::to_vec(record)?)?;
        fs::rename(fresh, path)
    }

    /// Where the root of a store path is.
    pub(crate) fn root(&self, path: &Path) -> io::Result<PathBuf> {
        let roots = self.folder.join("roots");
        fs::create_dir_all(&roots)?;
        Ok(roots.join(path.file_name().unwrap_or_default()))
    }

    /// Whether a store path is kept from garbage collection by a root of ours.
    pub(crate) fn is_kept(&self, path: &Path) -> bool {
        let root = self.folder.join("roots").join(path.file_name().unwrap_or_default());
        fs::read_link(root).is_ok_and(|target| target == path)
    }

    /// Lets go of every path that is neither `used` nor what some reference stands for, and forgets what is
    /// gone. The paths that were let go.
    pub(crate) fn collect(&self, used: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
        let current = self.all();
        let mut gone = Vec::new();
        let entries = match fs::read_dir(self.folder.join("roots")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(gone),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let link = entry?.path();
            let Ok(target) = fs::read_link(&link) else { continue };
            if !used.contains(&target) && !current.iter().any(|record| record.path == target) {
                fs::remove_file(&link)?;
                gone.push(target);
            }
        }
        gone.sort();
        Ok(gone)
    }

    /// Forgets what `name` stands for: the path is let go by the next collection. Whether there was one.
    pub(crate) fn forget(&self, name: &str) -> io::Result<bool> {
        let mut found = false;
        for record in self.all().iter().filter(|record| record.name == name || record.reference == name) {
            fs::remove_file(self.record(&record.reference))?;
            found = true;
        }
        Ok(found)
    }

    fn record(&self, reference: &str) -> PathBuf {
        let key = hexadecimal(&Sha256::digest(reference)[..16]);
        self.folder.join("records").join(format!("{key}.json"))
    }

    fn read(&self, path: &Path) -> Option<Record> {
        let record: Record = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        record.path.exists().then_some(record)
    }
}

impl Record {
    fn holds(&self, freshness: &Freshness, now: SystemTime) -> bool {
        match freshness {
            Freshness::Always => true,
            Freshness::Never => false,
            Freshness::While(fingerprint) => self.fingerprint.as_ref() == Some(fingerprint),
            Freshness::For(time) => {
                let built_at = SystemTime::UNIX_EPOCH + Duration::from_secs(self.built_at);
                // One that is in the future was written before the clock was set.
                now.duration_since(built_at).is_ok_and(|age| age < *time)
            }
        }
    }
}

/// Bytes as text.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(reference: &str, path: &Path) -> Record {
        Record {
            reference: reference.into(),
            name: "x".into(),
            path: path.into(),
            built_at: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(),
            fingerprint: Some("a".into()),
        }
    }

    #[test]
    fn what_was_built_is_found_while_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let built = Built::of(dir.path());
        let path = dir.path().join("built");
        fs::create_dir(&path).unwrap();
        drop(built.lock("r").unwrap());
        built.put(&record("r", &path)).unwrap();
        assert!(built.find("r", &Freshness::Always).is_some());
        assert!(built.find("r", &Freshness::For(Duration::from_secs(60))).is_some());
        assert!(built.find("r", &Freshness::For(Duration::ZERO)).is_none());
        assert!(built.find("r", &Freshness::While("a".into())).is_some());
        assert!(built.find("r", &Freshness::While("b".into())).is_none());
        assert!(built.find("r", &Freshness::Never).is_none());
        assert!(built.find("other", &Freshness::Always).is_none());
        fs::remove_dir(&path).unwrap();
        assert!(built.find("r", &Freshness::Always).is_none(), "what was collected is not there");
    }

    #[test]
    fn a_path_is_kept_while_something_needs_it() {
        let dir = tempfile::tempdir().unwrap();
        let built = Built::of(dir.path());
        let [current, used, unused] = ["current", "used", "unused"].map(|name| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            std::os::unix::fs::symlink(&path, built.root(&path).unwrap()).unwrap();
            path
        });
        drop(built.lock("r").unwrap());
        built.put(&record("r", &current)).unwrap();
        assert_eq!(built.collect(std::slice::from_ref(&used)).unwrap(), [unused.as_path()]);
        assert!(built.is_kept(&current) && built.is_kept(&used) && !built.is_kept(&unused));
        assert!(built.forget("x").unwrap() && !built.forget("x").unwrap());
        assert_eq!(built.collect(&[]).unwrap(), [current, used]);
    }
}
