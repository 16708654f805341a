//! Points at which a test has the daemon killed: `FIRN_FAILPOINT=NAME` names one, and whoever reaches it is
//! ended by SIGKILL, as by somebody's `kill -9`. With `NAME:N` the first N-1 times are passed.
//!
//! It is the daemon's own environment that says so, so nobody can have it killed who could not do that
//! anyway.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Debug)]
struct Failpoint {
    name: String,
    left: AtomicU32,
}

static FAILPOINT: OnceLock<Failpoint> = OnceLock::new();

/// Sets the point, once.
pub(crate) fn set(text: &str) {
    let (name, left) = match text.split_once(':') {
        Some((name, times)) => (name, times.parse().unwrap_or(1)),
        None => (text, 1),
    };
    let _ = FAILPOINT.set(Failpoint { name: name.to_owned(), left: AtomicU32::new(left) });
}

/// The point called `name` is reached.
pub(crate) fn reached(name: &str) {
    let Some(point) = FAILPOINT.get().filter(|point| point.name == name) else { return };
    if point.left.fetch_sub(1, Ordering::Relaxed) == 1 {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        // The signal is on its way to this process, and nothing more may be done in it.
        loop {
            std::thread::park();
        }
    }
}
