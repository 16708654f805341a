//! What a process needs before anything else: the kernel's file systems, limits, the loopback.
//!
//! Nothing here can be reported yet, so each step that fails becomes a line of text and the boot
//! goes on: the host gets to hear of it when it configures the guest.

use crate::sys;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::fmt::Display;

/// Open files per process: soft as high as builds and language servers need, hard as the kernel's own
/// default limit for raising it.
const OPEN_FILES: (u64, u64) = (65_536, 524_288);

fn trouble(what: &str, result: Result<(), impl Display>) -> Option<String> {
    result.err().map(|error| format!("{what}: {error}"))
}

/// Mounts `/dev`, `/proc` and `/sys`.
pub(super) fn mount_kernel_filesystems() -> Vec<String> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    [
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID),
        ("proc", "/proc", plain | MsFlags::MS_NODEV),
        ("sysfs", "/sys", plain | MsFlags::MS_NODEV),
    ]
    .into_iter()
    .filter_map(|(kind, target, flags)| {
        // The initramfs may lack the folder; if it has it, this changes nothing.
        let _ = std::fs::create_dir(target);
        let mounted = mount(Some(kind), target, Some(kind), flags, None::<&str>);
        trouble(&format!("mount {kind} on {target}"), mounted)
    })
    .collect()
}

/// Sets limits and brings the loopback interface up.
pub(super) fn settle() -> Vec<String> {
    let (soft, hard) = OPEN_FILES;
    let loopback = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .and_then(|socket| sys::bring_up(socket, "lo"));
    [
        trouble("limit open files", setrlimit(Resource::RLIMIT_NOFILE, soft, hard)),
        // A core dump would only fill the sandbox's memory.
        trouble("limit core dumps", setrlimit(Resource::RLIMIT_CORE, 0, libc::RLIM_INFINITY)),
        trouble("bring lo up", loopback),
        trouble("clear the environment", sys::clear_environment()),
    ]
    .into_iter()
    .flatten()
    .collect()
}
