//! Where an archive goes.

use super::{UnpackError, failed};
use crate::tar::Kind;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Where the archive's one file, folder or link goes.
#[derive(Debug)]
pub(in crate::cli::cp) struct Destination {
    pub(super) folder: OwnedFd,
    /// Its name there. None: it is a folder, and what is in it goes into `folder` itself.
    pub(super) name: Option<OsString>,
    /// How the folder is called, for errors.
    pub(super) path: PathBuf,
}

impl Destination {
    /// What `cp` of docker would choose for what is called `name` and is of `kind`: in the folder `path`,
    /// if there is one; else as `path`. No `name`: what is in it, not itself.
    pub(in crate::cli::cp) fn choose(
        path: &Path,
        name: Option<&OsStr>,
        kind: &Kind,
    ) -> Result<Destination, UnpackError> {
        let new = if *kind == Kind::Folder { "a folder" } else { "a file" };
        let replace = || UnpackError::Replace { path: path.to_owned(), new };
        let at = |path: &Path| {
            let name = path.file_name().ok_or_else(replace)?;
            let within = path.parent().filter(|within| !within.as_os_str().is_empty());
            Destination::new(within.unwrap_or(Path::new(".")), Some(name.to_owned()))
        };
        let looking = |source| UnpackError::File { action: "look at", path: path.to_owned(), source };
        match std::fs::metadata(path) {
            Ok(there) if there.is_dir() => Destination::new(path, name.map(OsStr::to_owned)),
            // A device is not a file to be replaced, whatever the name looks like.
            Ok(there) if there.is_file() && *kind != Kind::Folder => {
                // Through the links that lead to it: the caller named them.
                at(&std::fs::canonicalize(path).map_err(looking)?)
            }
            Ok(_) => Err(replace()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if path.as_os_str().as_bytes().ends_with(b"/") && *kind != Kind::Folder {
                    return Err(looking(error));
                }
                at(path)
            }
            Err(error) => Err(looking(error)),
        }
    }

    /// As `name` in the folder at `path`, which may be named through links: the caller chose it.
    pub(super) fn new(path: &Path, name: Option<OsString>) -> Result<Destination, UnpackError> {
        let folder = openat(AT_FDCWD, path, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(failed("open the folder", path))?;
        Ok(Destination { folder, name, path: path.to_owned() })
    }
}
