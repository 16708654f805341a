//! Unix sockets in the folders of sandboxes.

use crate::sys::identity::Identity;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{MsgFlags, recv};
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

/// Whether whoever is at the other end is still there, and has said nothing that was not read.
pub(crate) fn is_quiet(stream: &UnixStream) -> bool {
    let waiting = recv(stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
    matches!(waiting, Err(Errno::EAGAIN))
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

    #[tokio::test]
    async fn a_stream_is_quiet_until_something_is_said_or_it_ends() {
        use tokio::io::AsyncWriteExt as _;

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert!(is_quiet(&ours));
        theirs.write_all(b"x").await.unwrap();
        assert!(!is_quiet(&ours));
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(!is_quiet(&ours));
    }
}
