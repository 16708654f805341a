//! Unix sockets in the folders of sandboxes.

use crate::sys::identity::Identity;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use tokio::net::UnixStream;

/// A socket that only `identity` and root may connect to.
pub(crate) fn listen(path: &Path, identity: Identity) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    identity.own(path)?;
    Ok(listener)
}

/// Connects to what is at `path` itself: in a folder that a guest's VMM can write to, a link would lead
/// wherever it liked, with our rights. Waits for nobody.
pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    // Not `std`'s way to open: with musl it takes `O_PATH` for a mode of its own, and away.
    let socket = open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        let _listener = listen(&real, Identity::Caller).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        connect(&real).await.unwrap();
        assert!(connect(&link).await.is_err());
        assert_eq!(connect(&dir.path().join("none")).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(std::fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
