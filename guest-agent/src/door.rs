//! The door of a jail: where the host hands connections over.
//!
//! One end of a `SOCK_SEQPACKET` pair. Each packet is one byte, 0, and carries one descriptor: a Unix
//! stream socket, which is a connection. Nothing in the jail can come in that way, because there is no
//! address to connect to; and only the host has the other end, so its closing is the host's end.

use crate::listen::Doorkeeper;
use crate::sys::{self, Packet};
use nix::errno::Errno;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// See the module.
pub(crate) struct Door(AsyncFd<OwnedFd>);

impl Door {
    /// The door this process was started with. Inside the runtime.
    pub(crate) fn adopt(fd: RawFd) -> io::Result<Door> {
        let fd = sys::inherited(fd)?;
        if sys::socket_kind(&fd)? != (libc::AF_UNIX, libc::SOCK_SEQPACKET) {
            return Err(Errno::EPROTOTYPE.into());
        }
        sys::watch(fd, Interest::READABLE).map(Door)
    }

    /// Admits what comes, until the host closes its end.
    pub(crate) async fn keep(&self, doorkeeper: &Doorkeeper) {
        while let Ok(mut ready) = self.0.readable().await {
            let received =
                ready.try_io(|door| sys::receive_descriptors(door.get_ref()).map_err(io::Error::from));
            match received {
                // An empty packet would look the same. The host sends none.
                Ok(Ok(packet)) if packet.is_empty() => return,
                Ok(Ok(packet)) => {
                    if let Some(stream) = connection(packet) {
                        doorkeeper.admit(stream);
                    }
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => return,
                Err(_would_block) => {}
            }
        }
    }
}

/// The connection of a packet that is as it should be. Any other is dropped, with all that came in it:
/// the host sees that connection close.
fn connection(packet: Packet) -> Option<tokio::net::UnixStream> {
    if packet.is_cut || packet.body != [0] {
        return None;
    }
    let [descriptor] = <[OwnedFd; 1]>::try_from(packet.descriptors).ok()?;
    if sys::socket_kind(&descriptor).ok()? != (libc::AF_UNIX, libc::SOCK_STREAM) {
        return None;
    }
    let stream = UnixStream::from(descriptor);
    stream.set_nonblocking(true).ok()?;
    tokio::net::UnixStream::from_std(stream).ok()
}
