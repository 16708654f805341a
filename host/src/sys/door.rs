//! A socket pair through which descriptors are handed to a process that is started with one end.

use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Our end.
#[derive(Debug)]
pub(crate) struct Door(OwnedFd);

impl Door {
    /// Our end, and the end of whoever is handed the descriptors.
    pub(crate) fn pair() -> io::Result<(Door, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Door(ours), theirs))
    }

    /// Puts a descriptor into the door: a packet of one byte, 0, that carries it (`SCM_RIGHTS`,
    /// `unix`(7)). It waits there until it is taken.
    pub(crate) fn hand_over(&self, fd: OwnedFd) -> io::Result<()> {
        let body = [IoSlice::new(&[0])];
        let rights = [fd.as_raw_fd()];
        let message = [ControlMessage::ScmRights(&rights)];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(self.0.as_raw_fd(), &body, &message, flags, None)?;
        Ok(())
    }
}
