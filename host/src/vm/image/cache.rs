//! The part of the cache directory that belongs to images: where things are, who may write, and how
//! something appears there whole or not at all.
//!
//! ```text
//!   CACHE/images/.lock                  held while anything is made or removed
//!   CACHE/images/index.json             which request gave which image
//!   CACHE/images/ID/manifest.json …     one image
//!   CACHE/kernels/PACKAGE_VERSION/…     one kernel, fetched from the distribution
//!   CACHE/{images,kernels}/.partial-*   being made, or left over by a builder that died
//! ```
//!
//! Readers take no lock: a directory is renamed into place when it is complete. Everything is
//! readable for everybody, because the VMM may run as another user.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

const PARTIAL: &str = ".partial-";

/// The cache directory.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    root: PathBuf,
}

/// The cache while this process may change it.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    cache: &'a Cache,
    _lock: Flock<File>,
}

/// A directory that is being filled; it goes away with this value unless it was published.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
}

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    /// A directory or file cannot be made.
    #[error("cannot create {}", path.display())]
    Create {
        /// What was to be made.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The lock cannot be taken.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory cannot be listed.
    #[error("cannot list {}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something finished cannot be moved to its place.
    #[error("cannot move it to {}", path.display())]
    Publish {
        /// Its place.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something cannot be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// What was to go.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Cache {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where the images are.
    pub(super) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Where fetched kernels are.
    pub(super) fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    /// Where the index is.
    pub(super) fn index(&self) -> PathBuf {
        self.images().join("index.json")
    }

    /// Waits until nobody else changes the cache, and clears away what dead builders left.
    /// `waiting` is called once when somebody else is at it.
    pub(super) fn lock(&self, waiting: impl FnOnce()) -> Result<Locked<'_>, CacheError> {
        for dir in [self.images(), self.kernels()] {
            create_dir(&dir)?;
        }
        let path = self.images().join(".lock");
        let failed = |source| CacheError::Lock { path: path.clone(), source };
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                waiting();
                Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))?
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        // The lock is ours, so whoever made these is gone.
        for dir in [self.images(), self.kernels()] {
            for path in list(&dir)?.into_iter().filter(|path| is_partial(path)) {
                remove(&path)?;
            }
        }
        Ok(Locked { cache: self, _lock: lock })
    }
}

impl Locked<'_> {
    /// The cache that is locked.
    pub(super) fn cache(&self) -> &Cache {
        self.cache
    }

    /// An empty directory to make something in that will end up in `dir`.
    pub(super) fn partial(&self, dir: &Path) -> Result<Partial, CacheError> {
        let path = (0..u32::MAX)
            .map(|number| dir.join(format!("{PARTIAL}{}-{number}", std::process::id())))
            .find(|path| path.symlink_metadata().is_err())
            .unwrap_or_else(|| dir.join(PARTIAL));
        create_dir(&path)?;
        Ok(Partial { path })
    }

    /// Moves `from`, which is finished, to `target`, in place of what is there.
    pub(super) fn publish(&self, from: &Path, target: &Path) -> Result<(), CacheError> {
        self.remove(target)?;
        fs::rename(from, target).map_err(|source| CacheError::Publish { path: target.to_owned(), source })
    }

    /// Removes `target`, which disappears at once, if it is there at all.
    pub(super) fn remove(&self, target: &Path) -> Result<(), CacheError> {
        if target.symlink_metadata().is_err() {
            return Ok(());
        }
        let aside = self.partial(target.parent().unwrap_or(target))?;
        fs::rename(target, aside.path().join("old"))
            .map_err(|source| CacheError::Remove { path: target.to_owned(), source })
    }

    /// Writes a file in one step: readers see the old one or the new one.
    pub(super) fn replace_file(&self, path: &Path, content: &[u8]) -> Result<(), CacheError> {
        let dir = self.partial(path.parent().unwrap_or(path))?;
        let new = dir.path().join("new");
        write_file(&new, content)?;
        fs::rename(&new, path).map_err(|source| CacheError::Publish { path: path.to_owned(), source })
    }
}

impl Partial {
    /// Where to make it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // What cannot be removed now is cleared away under the next lock.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// What is in a directory, sorted; a directory that does not exist is empty.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, CacheError> {
    let failed = |source| CacheError::List { path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(failed)?;
    paths.sort();
    Ok(paths)
}

/// The finished directories in `dir`, sorted.
pub(super) fn list_finished(dir: &Path) -> Result<Vec<PathBuf>, CacheError> {
    Ok(list(dir)?.into_iter().filter(|path| !is_partial(path) && path.is_dir()).collect())
}

/// Makes a directory and what is above it, open to everybody whatever the umask is.
pub(super) fn create_dir(path: &Path) -> Result<(), CacheError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)))
        .map_err(|source| CacheError::Create { path: path.to_owned(), source })
}

/// Writes a file that everybody can read and that survives a crash of the host once it is renamed.
pub(super) fn write_file(path: &Path, content: &[u8]) -> Result<(), CacheError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.sync_all()
    };
    write().map_err(|source| CacheError::Create { path: path.to_owned(), source })
}

fn is_partial(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PARTIAL))
}

fn remove(path: &Path) -> Result<(), CacheError> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(|source| CacheError::Remove { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_cleared_and_invisible() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().join("deep/cache"));
        let locked = cache.lock(|| ()).unwrap();
        let partial = locked.partial(&cache.images()).unwrap();
        let path = partial.path().to_owned();
        fs::write(path.join("half"), "x").unwrap();
        assert!(list_finished(&cache.images()).unwrap().is_empty());
        drop(locked);
        // Its maker never gets to tidy up.
        std::mem::forget(partial);
        assert!(path.exists());
        let _locked = cache.lock(|| ()).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn publishing_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned());
        let locked = cache.lock(|| ()).unwrap();
        let target = cache.images().join("a");
        for content in ["one", "two"] {
            let partial = locked.partial(&cache.images()).unwrap();
            write_file(&partial.path().join("file"), content.as_bytes()).unwrap();
            locked.publish(partial.path(), &target).unwrap();
            assert_eq!(fs::read_to_string(target.join("file")).unwrap(), content);
        }
        assert_eq!(list(&cache.images()).unwrap().len(), 2, "the lock and the directory");
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn the_second_builder_waits() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned());
        let first = cache.lock(|| ()).unwrap();
        let (told, waits) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| cache.lock(move || told.send(()).unwrap()).map(drop));
            waits.recv().unwrap();
            drop(first);
            second.join().unwrap().unwrap();
        });
    }
}
