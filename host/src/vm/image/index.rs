//! Remembers which request gave which image, so that a sandbox starts without reading a kernel.
//!
//! An entry holds a [`Stamp`] of every file that went into the image and of every file of the image.
//! As long as all stamps hold, the image is what building it again would give; that takes some thirty
//! `stat` calls. The index is a cache of a cache: what cannot be read counts as empty.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Request;
use super::cache::{CacheError, Locked};

/// Another version is read as an empty index.
const VERSION: u32 = 1;

/// The state of a path at one moment: enough to notice that it was replaced or written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    path: PathBuf,
    /// `None`: there was nothing.
    file: Option<FileState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    mtime: (i64, i64),
    /// Catches what `mtime` does not: a copy over the file that keeps the time.
    ctime: (i64, i64),
}

/// One request and what it gave.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    request: Request,
    image: String,
    stamps: Vec<Stamp>,
}

/// The whole file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Index {
    version: u32,
    entries: Vec<Entry>,
}

impl Stamp {
    /// Must be taken before the file is read: a change in between then shows as a change.
    pub(super) fn of(path: &Path) -> Self {
        let file = std::fs::metadata(path).ok().map(|found| FileState {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            mtime: (found.mtime(), found.mtime_nsec()),
            ctime: (found.ctime(), found.ctime_nsec()),
        });
        Self { path: path.to_owned(), file }
    }

    fn holds(&self) -> bool {
        *self == Self::of(&self.path)
    }
}

impl Index {
    /// Reads the index at `path`.
    pub(super) fn load(path: &Path) -> Self {
        std::fs::read(path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .filter(|index: &Self| index.version == VERSION)
            .unwrap_or(Self { version: VERSION, entries: Vec::new() })
    }

    /// The name of the image that `request` gave, when nothing has changed since.
    pub(super) fn find(&self, request: &Request) -> Option<&str> {
        let entry = self.entries.iter().find(|entry| entry.request == *request)?;
        entry.stamps.iter().all(Stamp::holds).then_some(entry.image.as_str())
    }

    /// Remembers that `request` gave `image`.
    pub(super) fn record(&mut self, request: &Request, image: &str, stamps: Vec<Stamp>) {
        self.entries.retain(|entry| entry.request != *request);
        self.entries.push(Entry { request: request.clone(), image: image.to_owned(), stamps });
    }

    /// Writes it, without the entries whose image is gone.
    pub(super) fn save(mut self, locked: &Locked<'_>) -> Result<(), CacheError> {
        let images = locked.cache().images();
        self.entries.retain(|entry| images.join(&entry.image).is_dir());
        // Paths that are not UTF-8 cannot be written: then there is no index, only slower starts.
        let text = serde_json::to_vec(&self).unwrap_or_default();
        locked.replace_file(&locked.cache().index(), &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_notices_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let nothing = Stamp::of(&path);
        assert!(nothing.holds());
        std::fs::write(&path, "one").unwrap();
        assert!(!nothing.holds());
        let one = Stamp::of(&path);
        assert!(one.holds());
        std::fs::write(dir.path().join("new"), "two").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(!one.holds());
    }

    #[test]
    fn a_damaged_index_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index.json");
        for text in ["", "{", r#"{"version":9,"entries":[]}"#] {
            std::fs::write(&path, text).unwrap();
            let index = Index::load(&path);
            assert!(index.version == VERSION && index.entries.is_empty(), "{text:?}");
        }
    }
}
