//! A vm out of the pool against one that boots: each from a daemon of its own.

use crate::report::{Line, Target};
use crate::{millis, wait_until};
use firn_tests::{Daemon, Grade, Host};
use std::time::Instant;

/// As many as are taken before the pool is asked whether it is full again.
const READY: u64 = 1;

/// A daemon, and the vms that it makes.
struct Side {
    host: Host,
    daemon: Daemon,
}

impl Side {
    fn new(vms: u64) -> Side {
        let host = Host::with_runtime_in_memory(Grade::Vm);
        std::fs::write(host.config(), format!("[pool]\nvm = {vms}\ncode = 0\n"))
            .expect("configures the daemon");
        let daemon = host.daemon(None);
        Side { host, daemon }
    }

    fn ready(&self) -> u64 {
        self.host.daemon_status()["pool"]["vm"]["ready"]
            .as_u64()
            .expect("the daemon says how full its pool is")
    }

    /// From the wish for a vm to what its first command says.
    fn first_output(&self) -> f64 {
        let since = Instant::now();
        let id = self.host.create(&[]);
        let said = self.host.firn(&["exec", &id, "--", "echo", "there"]).finish().expect(0);
        let taken = millis(since.elapsed());
        assert_eq!(said.text(), "there\n");
        let _ = self.host.firn(&["destroy", &id]).finish().expect(0);
        taken
    }
}

/// See the module.
pub(crate) fn measure(runs: usize) -> Line {
    let (pooled, cold) = (Side::new(READY), Side::new(0));
    let pair = |_| {
        // What refills the pool takes a processor: neither is measured meanwhile.
        wait_until("the pool is full", || pooled.ready() == READY);
        let taken = pooled.first_output();
        wait_until("the pool is full", || pooled.ready() == READY);
        (taken, cold.first_output())
    };
    // Also makes the guest image, when there is none.
    pair(0);
    let pairs: Vec<(f64, f64)> = (0..runs).map(pair).collect();
    for Side { host, daemon } in [pooled, cold] {
        host.stop_daemon();
        drop(daemon);
    }
    Line::pairs("a vm from the pool, to first output (floor: cold)", "ms", &pairs, Target::AtMost(0.25))
}
