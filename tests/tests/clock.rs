//! Clocks that jump: what is waited for does not depend on what time it is.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::{Grade, Host, binaries, vm_only};

vm_only!(a_clock_that_is_set_moves_no_end);
/// The clock of this host is not ours to set, but that of a guest is: firn runs in there, with jails.
fn a_clock_that_is_set_moves_no_end() {
    let host = Host::of(Grade::Vm);
    let script = r#"
        set -e
        export FIRN_RUNTIME_DIR=/run/firn FIRN_STATE_DIR=/var/lib/firn FIRN_CACHE_DIR=/var/cache/firn
        firn() { /mnt/firn/firn "$@"; }
        firn create --isolation jail --name kept --owner me --lease 1h --lifetime 1h --idle-timeout 1h >&2
        date -s '+1 year' >&2
        firn exec kept -- echo forward
        # So is the next daemon, for which it is another time than what it finds written down.
        kill -9 $(cat /var/lib/firn/daemon.pid)
        firn exec kept -- echo taken over
        date -s '-2 years' >&2
        firn exec kept -- echo back
        firn create --isolation jail --name short --owner me --lease 1s >&2
        date -s '-1 year' >&2
        while firn status short >/dev/null 2>&1; do sleep 1; done
        echo over
        firn exec kept -- echo still there
        firn destroy kept
        firn daemon stop
    "#;
    let mount = format!("{}:/mnt/firn:ro", binaries().display());
    let done = host.sh(&["--mount", &mount], script).finish().expect(0);
    assert_eq!(done.text(), "forward\ntaken over\nback\nover\nstill there\n", "{}", done.stderr);
}

#[test]
fn a_daemon_for_which_the_host_is_older_leaves_nothing() {
    let host = Host::of(Grade::Jail);
    let first = host.daemon(None);
    let leased = host.create(&["--owner", "me", "--lease", "1h"]);
    let lasting = host.create(&[]);
    first.kill();
    // Such a jump is what a machine sees that was put to sleep, or moved to another host.
    let jump = ["unshare", "--time", "--boottime", "86400", "--monotonic", "86400", "--fork", "--kill-child"];
    let second = host.daemon_under(&jump);
    let state = |id: &str| {
        let listed = host.firn(&["list", "--all", "--json"]).finish().expect(0).json();
        let all = listed.as_array().unwrap();
        all.iter()
            .find(|known| known["sessionId"] == id)
            .map(|known| known["state"].as_str().unwrap().to_owned())
    };
    host.wait_until("the lease is over", || state(&leased).is_none_or(|state| state == "failed"));
    // What it makes itself it can use and end.
    let own = host.create(&["--lease", "1h", "--owner", "me"]);
    assert_eq!(host.exec(&own, "echo ok").finish().expect(0).text(), "ok\n");
    for id in [leased, lasting, own] {
        let done = host.firn(&["destroy", &id]).finish();
        assert!(done.code == 0 || done.stderr.contains("not found"), "{}", done.stderr);
    }
    host.wait_until("nothing lives", || {
        host.living().iter().all(|process| process.line.starts_with("unshare"))
    });
    assert!(host.sandboxes().is_empty());
    host.stop_daemon();
    drop(second);
}
