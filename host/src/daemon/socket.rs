//! The daemon's socket: made without a moment in which others could use it, and removed by nobody but who
//! made it.

use super::DaemonError;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// A socket that is listened on. Dropping it removes it, unless somebody else has made it.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    made: Option<(PathBuf, FileId)>,
}

/// Which file it is, whatever its name.
type FileId = (u64, u64);

fn file_id(path: &Path) -> io::Result<FileId> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

impl Socket {
    /// Listens at `path`. To be called by the owner of the state folder only. A socket that a dead daemon
    /// has left is replaced, one that a living one listens on is not.
    pub(super) fn make(path: &Path) -> Result<Socket, DaemonError> {
        let failed =
            |action: &'static str| move |source| DaemonError::File { action, path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at")(error)),
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(DaemonError::SocketInUse(path.to_owned()));
            }
            Ok(_) => {
                tracing::info!(socket = %path.display(), "replacing the socket of a daemon that is gone")
            }
        }
        // Under another name until nobody but its owner can use it.
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", std::process::id()));
        let temporary = PathBuf::from(name);
        let _ = fs::remove_file(&temporary);
        let made = || -> io::Result<(StdListener, FileId)> {
            let listener = StdListener::bind(&temporary)?;
            fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
            let id = file_id(&temporary)?;
            fs::rename(&temporary, path)?;
            Ok((listener, id))
        };
        let (listener, id) = made().map_err(|error| {
            let _ = fs::remove_file(&temporary);
            failed("listen on")(error)
        })?;
        Socket::of(listener, Some((path.to_owned(), id)), path)
    }

    /// Listens on a socket that was made for us.
    pub(super) fn given(path: &Path) -> Result<Socket, DaemonError> {
        let listener = crate::sys::activation::take_listener().map_err(DaemonError::Activation)?;
        Socket::of(listener, None, path)
    }

    fn of(
        listener: StdListener,
        made: Option<(PathBuf, FileId)>,
        path: &Path,
    ) -> Result<Socket, DaemonError> {
        let failed = |source| DaemonError::File { action: "listen on", path: path.to_owned(), source };
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Socket { listener: UnixListener::from_std(listener).map_err(failed)?, made })
    }
}

impl std::ops::Deref for Socket {
    type Target = UnixListener;

    fn deref(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some((path, id)) = &self.made
            && file_id(path).is_ok_and(|found| found == *id)
        {
            let _ = fs::remove_file(path);
        }
    }
}
