//! What of the host's kernel a jail may not use. A guest has a kernel of its own, and its root may do
//! with that what it likes: these tests are of jails, but for the few that say so.

use firn_tests::{Grade, Host, both_grades, jail_only};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Makes each system call with arguments that do no harm, in a process of its own, and prints what
/// came of it. Where the kernel looks at the arguments at all it says EFAULT, EINVAL, EBADF or the
/// like; where the call is denied, EPERM or ENOSYS.
const CALL: &str = r"
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, arguments):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        ctypes.set_errno(0)
        caller = os.getpid()
        result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in arguments])
        if os.getpid() != caller:
            os._exit(0)
        name = 'done' if result >= 0 else errno.errorcode.get(ctypes.get_errno(), '?')
        os.write(writer, name.encode())
        os._exit(0)
    os.close(writer)
    name = os.read(reader, 100).decode()
    os.close(reader)
    _, status = os.waitpid(child, 0)
    return name or 'signal %d' % os.WTERMSIG(status)
print(json.dumps({name: call(n, a) for name, (n, a) in json.loads(sys.argv[1]).items()}))
";

/// What a kernel says to a call it does not let happen.
const DENIED: &[&str] = &["EPERM", "ENOSYS", "EACCES", "signal 31"];

type Calls = BTreeMap<&'static str, (i64, Vec<i64>)>;

/// The same calls on the host and in a jail.
fn both_sides(calls: &Calls) -> Vec<(String, String, String)> {
    let calls_as_text = serde_json::to_string(calls).unwrap();
    let output = Command::new("/usr/bin/python3").args(["-c", CALL, &calls_as_text]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let outside: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let host = Host::of(Grade::Jail);
    let inside = host.python(&[], CALL, &[&calls_as_text]).finish().expect(0).json();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    calls.keys().map(|name| ((*name).to_owned(), text(&outside[*name]), text(&inside[*name]))).collect()
}

jail_only!(system_calls_that_open_the_kernel_are_denied);
fn system_calls_that_open_the_kernel_are_denied() {
    const NEW_USER: i64 = libc::CLONE_NEWUSER as i64;
    let nowhere = -1_i64;
    let calls: Calls = [
        ("add_key", libc::SYS_add_key, vec![0, 0, 0, 0, 0]),
        ("keyctl", libc::SYS_keyctl, vec![0, -3, 0]),
        ("request_key", libc::SYS_request_key, vec![0, 0, 0, 0]),
        ("bpf", libc::SYS_bpf, vec![0, 0, 0]),
        ("userfaultfd", libc::SYS_userfaultfd, vec![0xffff]),
        ("perf_event_open", libc::SYS_perf_event_open, vec![0, 0, -1, -1, 0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, vec![1, 0]),
        ("io_uring_enter", libc::SYS_io_uring_enter, vec![nowhere, 0, 0, 0, 0, 0]),
        ("kexec_load", libc::SYS_kexec_load, vec![0, 0, 0, 0xffff]),
        ("kexec_file_load", libc::SYS_kexec_file_load, vec![nowhere, nowhere, 0, 0, 0xffff]),
        ("init_module", libc::SYS_init_module, vec![0, 0, 0]),
        ("finit_module", libc::SYS_finit_module, vec![nowhere, 0, 0xffff]),
        ("delete_module", libc::SYS_delete_module, vec![0, 0]),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, vec![nowhere, 0, 0]),
        ("new user namespace", libc::SYS_unshare, vec![NEW_USER]),
        ("new mount namespace", libc::SYS_unshare, vec![libc::CLONE_NEWNS.into()]),
        ("new network namespace", libc::SYS_unshare, vec![libc::CLONE_NEWNET.into()]),
        ("new pid namespace", libc::SYS_unshare, vec![libc::CLONE_NEWPID.into()]),
        (
            "clone into a user namespace",
            libc::SYS_clone,
            vec![NEW_USER | i64::from(libc::SIGCHLD), 0, 0, 0, 0],
        ),
        ("setns", libc::SYS_setns, vec![nowhere, 0]),
        ("mount", libc::SYS_mount, vec![0, 0, 0, 0, 0]),
        ("umount", libc::SYS_umount2, vec![0, 0]),
        ("pivot_root", libc::SYS_pivot_root, vec![0, 0]),
        ("fsopen", libc::SYS_fsopen, vec![0, 0xffff]),
        ("move_mount", libc::SYS_move_mount, vec![nowhere, 0, nowhere, 0, 0xffff]),
        ("open_tree", libc::SYS_open_tree, vec![nowhere, 0, 0x0fff_ffff]),
        ("swapon", libc::SYS_swapon, vec![0, 0]),
        ("reboot", libc::SYS_reboot, vec![0, 0, 0, 0]),
        ("settimeofday", libc::SYS_settimeofday, vec![1, 0]),
        ("clock_settime", libc::SYS_clock_settime, vec![0, 0]),
        ("sethostname", libc::SYS_sethostname, vec![0, 5]),
        ("chroot", libc::SYS_chroot, vec![0]),
        ("acct", libc::SYS_acct, vec![1]),
        ("quotactl", libc::SYS_quotactl, vec![0x800002, 0, 0, 0]),
        ("syslog", libc::SYS_syslog, vec![3, 0, 0]),
        ("fanotify_init", libc::SYS_fanotify_init, vec![0x0fff_ffff, 0]),
    ]
    .into_iter()
    .map(|(name, number, arguments)| (name, (number, arguments)))
    .collect();
    let mut looked_at = 0;
    let mut wrong = Vec::new();
    for (name, outside, inside) in both_sides(&calls) {
        // What this host does not have either, or not for us, shows nothing.
        if DENIED.contains(&outside.as_str()) {
            eprintln!("not shown: {name}, which the host answers with {outside}");
        } else {
            looked_at += 1;
            if !DENIED.contains(&inside.as_str()) {
                wrong.push(format!("{name}: {inside} in the jail, {outside} on the host"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    if nix::unistd::geteuid().is_root() {
        assert!(looked_at > calls.len() / 2, "only {looked_at} calls show something");
    }
}

jail_only!(ordinary_system_calls_are_not_denied);
fn ordinary_system_calls_are_not_denied() {
    // The control of the test above: denied is not simply everything.
    let calls: Calls = [
        ("getpid", libc::SYS_getpid, vec![]),
        ("pipe2", libc::SYS_pipe2, vec![0, 0]),
        ("openat", libc::SYS_openat, vec![-1, 0, 0]),
        ("eventfd2", libc::SYS_eventfd2, vec![0, 0]),
        ("inotify_init1", libc::SYS_inotify_init1, vec![0]),
        ("memfd_create", libc::SYS_memfd_create, vec![0, 0]),
        ("timerfd_create", libc::SYS_timerfd_create, vec![1, 0]),
        ("socketpair", libc::SYS_socketpair, vec![1, 1, 0, 0]),
        ("clone without a namespace", libc::SYS_clone, vec![libc::SIGCHLD.into(), 0, 0, 0, 0]),
        ("ptrace of oneself", libc::SYS_ptrace, vec![0, 0, 0, 0]),
    ]
    .into_iter()
    .map(|(name, number, arguments)| (name, (number, arguments)))
    .collect();
    for (name, outside, inside) in both_sides(&calls) {
        assert_eq!(outside, inside, "{name}");
    }
}

jail_only!(a_command_has_no_privilege_whoever_it_seems_to_be);
fn a_command_has_no_privilege_whoever_it_seems_to_be() {
    let host = Host::of(Grade::Jail);
    for user in ["root", "sandbox", "0:0", "1000:1000"] {
        let script = "grep -E '^(Cap...|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'";
        let done = host.sh(&["--user", user], script).finish().expect(0);
        let none = "0000000000000000";
        let expected = ["Inh", "Prm", "Eff", "Bnd", "Amb"].map(|set| format!("Cap{set}:{none}")).join("\n");
        assert_eq!(done.text(), format!("{expected}\nNoNewPrivs:1\nSeccomp:2\n"), "{user}");
    }
    // Nor on the host.
    let child = host.run(&["--", "sleep", "98765"]).spawn();
    let running = || host.living().into_iter().find(|it| it.line == "sleep 98765");
    host.wait_until("the command runs", || running().is_some());
    let status = fs::read_to_string(format!("/proc/{}/status", running().unwrap().pid)).unwrap();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let ids: Vec<String> = ["Uid:", "Gid:"]
        .map(line)
        .iter()
        .flat_map(|line| line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert_eq!(ids.len(), 8);
    assert!(ids.iter().all(|id| id != "0"), "{ids:?}");
    assert_eq!(line("CapEff:"), "CapEff:\t0000000000000000");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    let _ = firn_tests::collect(child).expect(128 + 15);
}

/// Writes to files and names those that took it. Their own values, so that nothing is harmed where it
/// works after all; `h` is SysRq's help.
const WRITE: &str = "write() { for file in \"$@\"; do \
                         old=$(cat $file 2>/dev/null); case $file in */sysrq-trigger) old=h ;; esac; \
                         (printf %s \"${old:-0}\" > $file) 2>/dev/null && echo $file; \
                     done; true; }; ";

jail_only!(settings_of_the_kernel_cannot_be_changed);
fn settings_of_the_kernel_cannot_be_changed() {
    let host = Host::of(Grade::Jail);
    let settings = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/domainname",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/fs/file-max",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/user/max_user_namespaces",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/power/state",
        "/sys/fs/cgroup/firn-was-here",
    ];
    let read = |path: &str| fs::read(path).unwrap_or_default();
    let before = settings.map(read);
    assert!(before.iter().filter(|value| !value.is_empty()).count() > 8, "hardly any is there");
    // Their own values, so that nothing is harmed where it works after all. `h` is SysRq's help.
    let script = format!("{WRITE}touch /tmp/control; write /tmp/control $@");
    let done = host.run(&[&["--", "sh", "-c", &script, "sh"], &settings[..]].concat()).finish().expect(0);
    assert_eq!(done.text(), "/tmp/control\n", "{}", done.stderr);
    assert_eq!(before, settings.map(read));
}

jail_only!(settings_of_its_own_namespaces_cannot_be_changed_either);
fn settings_of_its_own_namespaces_cannot_be_changed_either() {
    let host = Host::of(Grade::Jail);
    // What the kernel keeps for each namespace belongs to whoever seems to be root there.
    let files = "$(find /proc/sys /proc/irq /proc/bus /proc/fs /sys -xdev -type f 2>/dev/null)";
    let script = format!("{WRITE}touch /tmp/control; write /tmp/control {files}");
    for user in ["root", "sandbox"] {
        let done = host.sh(&["--user", user], &script).finish().expect(0);
        assert_eq!(done.text(), "/tmp/control\n", "as {user}");
    }
}

jail_only!(devices_are_those_that_do_no_harm);
fn devices_are_those_that_do_no_harm() {
    let host = Host::of(Grade::Jail);
    let harmless = [
        "null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "stdin", "stdout",
        "stderr", "core", "console", "mqueue",
    ];
    let done =
        host.sh(&[], "ls -A /dev; find / -xdev \\( -type b -o -type c \\) 2>/dev/null").finish().expect(0);
    let odd: Vec<&str> = done.text().lines().filter(|name| !harmless.contains(name)).collect();
    assert_eq!(odd, Vec::<&str>::new());
    assert!(done.text().contains("null\n"), "{}", done.text());
    // A folder in memory that no limit of the disk's is about.
    let _ = host.sh(&[], "echo x > /dev/file || mkdir /dev/dir").finish().expect(1);
    let script = "mknod /tmp/memory c 1 1 2>/dev/null && echo memory; mknod disk b 8 0 2>/dev/null && echo disk; \
                  mknod null c 1 3 2>/dev/null && echo null; mkfifo fifo && test -p fifo && echo fifo";
    let done = host.sh(&["-w", "."], script).finish().expect(0);
    assert_eq!(done.text(), "fifo\n");
}

both_grades!(no_disk_and_no_hypervisor_of_the_host_is_there);
fn no_disk_and_no_hypervisor_of_the_host_is_there(grade: Grade) {
    let host = Host::of(grade);
    let script = "ls -d /dev/kvm /dev/vd* /dev/sd* /dev/nvme* /dev/dm-* /dev/loop* /dev/net/tun 2>/dev/null; \
                  find /dev -type b; ls /sys/block 2>/dev/null; sed 1,2d /proc/partitions 2>/dev/null; true";
    assert!(fs::read_dir("/sys/block").unwrap().count() > 0, "a host without disks shows nothing");
    let done = host.sh(&[], script).finish().expect(0);
    // /proc/partitions tells a jail the names and sizes of the host's disks, as it does everybody.
    let shown: Vec<&str> = done.text().lines().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(shown, Vec::<&str>::new());
}

jail_only!(nothing_can_be_mounted);
fn nothing_can_be_mounted() {
    let host = Host::of(Grade::Jail);
    let script = "mkdir /tmp/at; cat /proc/self/mountinfo > /tmp/before; \
        for options in '-t tmpfs none' '-t proc none' '-t sysfs none' '--bind /usr' '-t overlay -o lowerdir=/usr none' \
            '-o remount,rw /usr'; do mount $options /tmp/at 2>/dev/null && echo \"mounted: $options\"; done; \
        umount /proc/kcore 2>/dev/null && echo unmasked; umount -l /usr 2>/dev/null && echo unmounted; \
        unshare -Ur true 2>/dev/null && echo user; unshare -m true 2>/dev/null && echo mounts; \
        unshare -n true 2>/dev/null && echo net; \
        cmp /proc/self/mountinfo /tmp/before && echo unchanged";
    for user in ["root", "sandbox"] {
        let done = host.sh(&["--user", user], script).finish().expect(0);
        assert_eq!(done.text(), "unchanged\n", "as {user}");
    }
}

both_grades!(shared_memory_works_and_has_a_bound);
fn shared_memory_works_and_has_a_bound(grade: Grade) {
    let host = Host::of(grade);
    let script = "echo small > /dev/shm/file && cat /dev/shm/file; rm /dev/shm/file; \
                  python3 -c 'import multiprocessing as m; l = m.Lock(); l.acquire(); print(m.Value(\"i\", 7).value)'; \
                  head -c 400000000 /dev/zero > /dev/shm/big || echo full";
    let done = host.sh(&["--memory", "512M", "--disk", "64M"], script).finish().expect(0);
    assert_eq!(done.text(), "small\n7\nfull\n");
    assert!(done.stderr.contains("No space left on device"), "{}", done.stderr);
}

both_grades!(a_crash_leaves_no_core_in_the_workspace);
fn a_crash_leaves_no_core_in_the_workspace(grade: Grade) {
    use std::os::unix::process::CommandExt as _;
    let host = Host::of(grade);
    let script = "sleep 1000 & kill -SEGV $!; wait $!; echo $?";
    let crash = |mut command: Command| {
        #[allow(unsafe_code, reason = "a limit is set between fork and exec")]
        // SAFETY: setrlimit(2) is async-signal-safe, and nothing else is done.
        unsafe {
            command.pre_exec(|| {
                let all = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
                libc::setrlimit(libc::RLIMIT_CORE, &all);
                Ok(())
            });
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let done = firn_tests::collect(command.spawn().unwrap()).expect(0);
        assert_eq!(done.text(), "139\n");
    };
    let left = |dir: &Path| fs::read_dir(dir).unwrap().map(|it| it.unwrap().file_name()).collect::<Vec<_>>();
    let mut outside = Command::new("/bin/sh");
    outside.args(["-c", script]).current_dir(host.home());
    crash(outside);
    // Where the host hands cores to a program there is nothing to see.
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    assert!(pattern.contains(['|', '/']) || left(&host.home()).len() == 1, "{:?}", left(&host.home()));
    crash(host.sh(&["-w", "."], script).into_command());
    assert!(left(&host.work()).is_empty(), "{:?}", left(&host.work()));
}
