//! Who a helper process is to the host's kernel.
//!
//! A normal user's helpers are that user, inside a user namespace and without a capability. Root's
//! helpers give root up: each sandbox gets an id of its own, so that two sandboxes' helpers are
//! strangers to each other and to everything else on the host.

use nix::unistd::{Gid, Uid};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;

/// The first of the ids that root's sandboxes use. systemd's table of ids leaves
/// 1879048192–2147483647 unused (<https://systemd.io/UIDS-GIDS/>).
const FIRST_SANDBOX_ID: u32 = 1_900_000_000;

/// How much of a sandbox's number makes its id: two sandboxes with the same one would not be
/// strangers, and with 27 bits do not meet.
const SANDBOX_IDS: u32 = (1 << 27) - 1;

/// Who a helper runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The caller. What it makes belongs to the caller. When the caller is root the process is
    /// root by number only: it has no capability in the initial user namespace.
    Caller,
    /// An id that owns nothing, and possibly one supplementary group (that of `/dev/kvm`). Only
    /// root can become it.
    Stranger {
        /// The user and group id.
        id: u32,
        /// The supplementary group.
        group: Option<u32>,
    },
}

impl Identity {
    /// The least privileged identity this caller can give to the helpers of the sandbox with this
    /// number.
    pub(crate) fn least(sandbox: u32) -> Identity {
        if Uid::effective().is_root() {
            Identity::Stranger { id: FIRST_SANDBOX_ID + (sandbox & SANDBOX_IDS), group: None }
        } else {
            Identity::Caller
        }
    }

    /// This identity, able to open `device`: by its group where the group may write it, else as
    /// its owner when the caller is that.
    pub(crate) fn with_device(self, device: &Path) -> Identity {
        let Identity::Stranger { id, .. } = self else { return self };
        match std::fs::metadata(device) {
            Ok(meta) if meta.mode() & 0o006 == 0o006 => self,
            Ok(meta) if meta.mode() & 0o060 == 0o060 => Identity::Stranger { id, group: Some(meta.gid()) },
            _ => Identity::Caller,
        }
    }

    /// Gives `path` to this identity.
    pub(crate) fn own(self, path: &Path) -> std::io::Result<()> {
        match self {
            Identity::Caller => Ok(()),
            Identity::Stranger { id, .. } => chown(path, Some(id), Some(id)),
        }
    }

    /// The user and group that the process has inside its own user namespace, when they have to
    /// differ from those outside: a process that believes to be root tries to use root's rights.
    pub(crate) fn inside(self) -> Option<(u32, u32)> {
        (self == Identity::Caller && Uid::effective().is_root()).then_some((1000, 1000))
    }
}

/// The caller's own user and group.
pub(crate) fn caller() -> (u32, u32) {
    (Uid::effective().as_raw(), Gid::effective().as_raw())
}
