//! Whether anything is asked of a sandbox.

use crate::sys::clock::boot_ms;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tokio::sync::Notify;

/// What is under way in a sandbox, and since when nothing is.
#[derive(Debug)]
pub(super) struct Activities {
    under_way: AtomicU32,
    /// When the last of them ended, by [`boot_ms`].
    last_end: AtomicU64,
    changed: Notify,
}

/// While it lives the sandbox is not idle.
#[derive(Debug)]
pub(crate) struct Activity(Arc<Activities>);

impl Activities {
    /// None yet.
    pub(super) fn new() -> Arc<Activities> {
        let last_end = AtomicU64::new(boot_ms());
        Arc::new(Activities { under_way: AtomicU32::new(0), last_end, changed: Notify::new() })
    }

    /// Something begins.
    pub(super) fn begin(self: &Arc<Activities>) -> Activity {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        Activity(Arc::clone(self))
    }

    /// How much is under way.
    pub(super) fn count(&self) -> u32 {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Since when nothing is under way, if nothing is.
    pub(super) fn idle_since(&self) -> Option<u64> {
        (self.count() == 0).then(|| self.last_end.load(Ordering::Relaxed))
    }

    /// When the last of them ended, and what is to be waited for may have changed.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Has whoever waits look again.
    pub(super) fn look_again(&self) {
        self.changed.notify_one();
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.0.last_end.store(boot_ms(), Ordering::Relaxed);
        if self.0.under_way.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.changed.notify_one();
        }
    }
}
