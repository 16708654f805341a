//! What a command may use, and what it is told when it wants more.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::{Finished, Grade, Host, binaries, both_grades, jail_only, vm_only};
use serde_json::Value;

/// The last event.
fn result(done: &Finished) -> Value {
    let result: Value = serde_json::from_str(done.text().lines().last().unwrap()).unwrap();
    assert_eq!(result["type"], "result");
    result["payload"].clone()
}

/// Takes memory and uses it, up to a bound that is far above any limit here.
const HOG: &str = "x = []\nfor _ in range(400): x.append(bytearray(b'x') * 10_000_000)\nprint('all of it')";

both_grades!(more_memory_than_allowed_ends_the_command_and_says_so);
fn more_memory_than_allowed_ends_the_command_and_says_so(grade: Grade) {
    let host = Host::of(grade);
    let limits = ["--memory", "256M", "--disk", "64M", "--timeout", "200s"];
    let done = host.python(&limits, HOG, &[]).finish().expect(128 + 9);
    assert_eq!(done.text(), "");
    assert!(done.stderr.contains("killed: memory limit 256 MiB"), "{}", done.stderr);

    let done = host.python(&[&limits[..], &["--json"]].concat(), HOG, &[]).finish().expect(128 + 9);
    let result = result(&done);
    assert_eq!(result["signal"], "SIG9");
    assert_eq!(result["exceeded"], serde_json::json!(["memory"]), "{result}");

    // The control: killed by a signal alone is not by a limit, and what fits is not killed.
    let done = host.sh(&limits, "kill -9 $$").finish().expect(128 + 9);
    assert!(!done.stderr.contains("memory limit"), "{}", done.stderr);
    let fits = "x = bytearray(b'x') * 50_000_000; print(len(x))";
    assert_eq!(host.python(&limits, fits, &[]).finish().expect(0).text(), "50000000\n");
}

both_grades!(memory_of_children_counts);
fn memory_of_children_counts(grade: Grade) {
    let host = Host::of(grade);
    let script = format!("import subprocess\nprint(subprocess.run(['python3', '-c', {HOG:?}]).returncode)");
    let done =
        host.python(&["--memory", "256M", "--disk", "64M", "--timeout", "200s"], &script, &[]).finish();
    // Whether one of its processes is killed or all are, none had all of it.
    assert!(!done.text().contains("all of it"), "{}", done.text());
    assert!(done.code == 128 + 9 || done.text() == "-9\n", "{}: {}", done.code, done.stderr);
}

/// Starts sleeping children, at most 300, until that is refused; prints how many there were.
const FORKS: &str = r"
import os, signal, time
children = []
try:
    for _ in range(300):
        child = os.fork()
        if child == 0:
            time.sleep(1000)
        children.append(child)
    print('all')
except BlockingIOError:
    print('refused', 10 < len(children) < 64)
for child in children:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(os.system('true')))
";

both_grades!(more_processes_than_allowed_are_refused_and_it_is_said);
fn more_processes_than_allowed_are_refused_and_it_is_said(grade: Grade) {
    let host = Host::of(grade);
    let done = host.python(&["--pids", "64"], FORKS, &[]).finish().expect(0);
    assert_eq!(done.text(), "refused True\n0\n");
    assert!(done.complaints().contains("64") && done.complaints().contains("process"), "{}", done.stderr);
    // The control.
    let done = host.python(&["--pids", "600"], FORKS, &[]).finish().expect(0);
    assert_eq!(done.text(), "all\n0\n");
    assert_eq!(done.complaints(), "");
}

// Only with a limit in force: the first line of the bomb's script is the proof that it is.
jail_only!(a_fork_bomb_hurts_only_the_jail);
fn a_fork_bomb_hurts_only_the_jail() {
    let host = Host::of(Grade::Jail);
    let proof = host.python(&["--pids", "64"], FORKS, &[]).finish().expect(0);
    assert_eq!(proof.text(), "refused True\n0\n", "no limit is in force: the bomb is not set off");
    let bomb = "bomb() { bomb | bomb & }; bomb; sleep 1000";
    let done = host.run(&["--pids", "64", "--timeout", "3s", "--", "bash", "-c", bomb]).finish();
    assert_eq!(done.code, 124, "{}", done.complaints());
    assert_eq!(host.living(), []);
}

both_grades!(a_timeout_ends_all_and_says_so);
fn a_timeout_ends_all_and_says_so(grade: Grade) {
    let host = Host::of(grade);
    let script = "setsid nohup sleep 98765 >/dev/null 2>&1 & trap '' TERM INT HUP; echo begun; sleep 98765; sleep 98765";
    let done = host.sh(&["--timeout", "1s"], script).finish().expect(124);
    assert_eq!(done.text(), "begun\n");
    assert!(done.complaints().contains("killed: timeout 1s"), "{}", done.complaints());
    assert_eq!(host.living(), []);
    let done = host.sh(&["--timeout", "1s", "--json"], script).finish().expect(124);
    assert_eq!(result(&done)["timedOut"], true);
    // What ends in time is not told of it.
    let done = host.sh(&["--timeout", "100s"], "exit 3").finish().expect(3);
    assert_eq!(done.complaints(), "");
}

both_grades!(more_output_than_allowed_is_cut_and_counted);
fn more_output_than_allowed_is_cut_and_counted(grade: Grade) {
    let host = Host::of(grade);
    let done = host.sh(&["--max-output", "1M"], "head -c 3000000 /dev/zero | tr '\\0' x; exit 4").finish();
    let done = done.expect(4);
    assert_eq!(done.stdout.len(), 1 << 20);
    assert!(done.complaints().contains("3000000"), "{}", done.complaints());
    assert!(done.complaints().lines().count() < 4, "{}", done.complaints());
    // Exactly as much is not too much.
    let done = host.sh(&["--max-output", "1M"], "head -c 1048576 /dev/zero").finish().expect(0);
    assert_eq!((done.stdout.len(), done.complaints().as_str()), (1 << 20, ""));
    // Output without end does not run for ever into nothing that anybody sees: it ends with its time.
    let done = host.run(&["--max-output", "64K", "--timeout", "2s", "--", "yes"]).finish().expect(124);
    assert_eq!(done.stdout.len(), 64 << 10);
    assert!(done.stdout.starts_with(b"y\ny\n"));
    assert!(done.complaints().contains("killed: timeout 2s"), "{}", done.complaints());
}

both_grades!(everything_that_can_be_written_has_one_bound);
fn everything_that_can_be_written_has_one_bound(grade: Grade) {
    let host = Host::of(grade);
    // In a guest /tmp and the like are parts of the same disk too.
    let script = "for dir in /tmp /var/tmp /home /root /opt /workspace; do \
                      head -c 40000000 /dev/zero > $dir/fill 2>/dev/null && echo $dir; \
                  done; rm -f /tmp/fill; echo small > /tmp/small && cat /tmp/small";
    let done = host.sh(&["--memory", "512M", "--disk", "64M"], script).finish().expect(0);
    assert_eq!(done.text(), "/tmp\nsmall\n");
    // So are many small files.
    let done = host
        .python(&["--memory", "512M", "--disk", "16M", "--timeout", "200s"], FILES, &["100"])
        .finish()
        .expect(0);
    assert_eq!(done.text(), "No space left on device\n");
}

/// Makes files of that size until it is told no; at most ten million.
const FILES: &str = r"
import os, sys
contents = b'x' * int(sys.argv[1])
try:
    for number in range(10_000_000):
        file = os.open(f'/tmp/{number}', os.O_CREAT | os.O_WRONLY)
        os.write(file, contents)
        os.close(file)
    print('all of them')
except OSError as error:
    print(error.strerror)
";

// Files without contents take none of the disk, but memory of the host's kernel: one of both limits
// holds. In a guest it is memory of its own, which it has no more of than it was given.
jail_only!(files_without_contents_have_a_bound_too);
fn files_without_contents_have_a_bound_too() {
    let host = Host::of(Grade::Jail);
    let limits = ["--memory", "256M", "--disk", "16M", "--timeout", "200s"];
    let done = host.python(&limits, FILES, &["0"]).finish();
    match done.code {
        0 => assert_eq!(done.text(), "No space left on device\n"),
        137 => assert!(done.stderr.contains("memory limit 256 MiB"), "{}", done.stderr),
        other => panic!("{other}: {}", done.stderr),
    }
    assert_eq!(host.living(), []);
}

both_grades!(processors_are_limited);
fn processors_are_limited(grade: Grade) {
    let host = Host::of(grade);
    // Four busy threads' worth of time against the clock: far more than one processor cannot be had.
    let script = r"
import os, time
start = time.monotonic()
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        while time.monotonic() < start + 2: pass
        os._exit(0)
    children.append(child)
for child in children: os.waitpid(child, 0)
times = os.times()
print((times.children_user + times.children_system) / (time.monotonic() - start))
";
    let used = |cpus: &str| {
        let done = host.python(&["--cpus", cpus], script, &[]).finish().expect(0);
        done.text().trim().parse::<f64>().unwrap()
    };
    let one = used("1");
    assert!(one < 1.3, "{one} processors instead of 1");
    if grade == Grade::Jail {
        let half = used("0.5");
        assert!(half < 0.7, "{half} processors instead of half a one");
    }
}

// A guest has whole processors.
both_grades!(fractions_of_a_processor_are_for_jails);
fn fractions_of_a_processor_are_for_jails(grade: Grade) {
    let host = Host::of(grade);
    let done = host.run(&["--cpus", "0.5", "--", "echo", "there"]).finish();
    match grade {
        Grade::Jail => assert_eq!(done.expect(0).text(), "there\n"),
        Grade::Vm => assert!(done.expect(2).stderr.contains("whole")),
    }
}

// The guest's kernel has version 2, whatever this host has; and firn runs in firn.
vm_only!(a_jail_in_a_guest_is_held_by_control_groups_of_version_2);
fn a_jail_in_a_guest_is_held_by_control_groups_of_version_2() {
    let host = Host::of(Grade::Vm);
    let mount = format!("{}:/opt/firn", binaries().display());
    let script = "firn='/opt/firn/firn run -v --isolation jail'
        $firn --memory 64M --pids 24 -- python3 -c 'bytearray(300_000_000)'; echo $?
        $firn --cpus 0.5 -- true; echo $?
        ls -d /sys/fs/cgroup/firn-* /run/firn/sandboxes/*";
    let done = host.run(&["--memory", "1G", "--mount", &mount, "--", "sh", "-c", script]).finish();
    assert_eq!(done.text(), "137\n0\n", "{}", done.stderr);
    for said in [
        "memory 64 MiB (cgroup v2), 24 processes (cgroup v2)",
        "killed: memory limit 64 MiB",
        "0.5 processors (cgroup v2)",
    ] {
        assert!(done.stderr.contains(said), "{said}: {}", done.stderr);
    }
}
