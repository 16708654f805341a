//! Ways to processes of the host, and processes that would like to live on there.

use firn_tests::{Bystander, Grade, Host, both_grades, collect, jail_only};
use std::fs;

both_grades!(a_process_of_the_host_cannot_be_reached);
fn a_process_of_the_host_cannot_be_reached(grade: Grade) {
    let host = Host::of(grade);
    let mut bystander = Bystander::start("firn-test-bystander");
    bystander.assert_unharmed();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(bystander.pid()).unwrap());
    // It could be, from here.
    nix::sys::signal::kill(pid, None).unwrap();
    let script = r"
import ctypes, os, signal, sys
pid = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
mine = open('/proc/self/cmdline').read()
def gone(act):
    try:
        act()
    except ProcessLookupError:
        return True
    except OSError as error:
        print(error)
    return False
# Our own numbers are small; theirs is nobody's here.
assert not os.path.exists(f'/proc/{pid}')
print([gone(lambda: os.kill(pid, n)) for n in (0, signal.SIGKILL)],
      gone(lambda: os.killpg(pid, signal.SIGKILL)), gone(lambda: os.pidfd_open(pid)),
      gone(lambda: os.sched_getaffinity(pid)),
      [(libc.ptrace(kind, pid, 0, 0), ctypes.get_errno()) for kind in (16, 0x4206)])
";
    let done = host.python(&[], script, &[&bystander.pid().to_string()]).finish().expect(0);
    assert_eq!(done.text(), "[True, True] True True True [(-1, 3), (-1, 3)]\n");
    bystander.assert_unharmed();
    for user in ["root", "sandbox"] {
        let _ = host.sh(&["--user", user], "kill -9 -1; kill -9 $$").finish().expect(128 + 9);
        bystander.assert_unharmed();
    }
}

both_grades!(shared_memory_of_the_host_is_unseen);
fn shared_memory_of_the_host_is_unseen(grade: Grade) {
    let host = Host::of(grade);
    let key = i32::try_from(std::process::id()).unwrap();
    #[allow(unsafe_code, reason = "System V shared memory has no safe interface")]
    // SAFETY: plain system calls.
    let segment = unsafe { libc::shmget(key, 4096, libc::IPC_CREAT | libc::IPC_EXCL | 0o666) };
    assert!(segment >= 0, "{}", std::io::Error::last_os_error());
    let listed = fs::read_to_string("/proc/sysvipc/shm").unwrap();
    let script = "import ctypes, sys\n\
                  print(ctypes.CDLL(None).shmget(int(sys.argv[1]), 0, 0), len(open('/proc/sysvipc/shm').readlines()))";
    let done = host.python(&[], script, &[&key.to_string()]).finish();
    #[allow(unsafe_code, reason = "System V shared memory has no safe interface")]
    // SAFETY: as above.
    unsafe {
        libc::shmctl(segment, libc::IPC_RMID, std::ptr::null_mut());
    }
    assert!(listed.lines().any(|line| line.split_whitespace().next() == Some(&key.to_string())), "{listed}");
    // Only the heading.
    assert_eq!(done.expect(0).text(), "-1 1\n");
}

// Root of a guest may look into its agent, which has nothing of the host's.
jail_only!(the_agent_cannot_be_looked_into);
fn the_agent_cannot_be_looked_into() {
    let host = Host::of(Grade::Jail);
    let script = r"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(act):
    try:
        return act()
    except OSError as error:
        return type(error).__name__
def ptrace(pid):
    ctypes.set_errno(0)
    libc.ptrace(0x4206, pid, 0, 0)
    return ctypes.get_errno()
child = os.fork()
if child == 0:
    import time
    time.sleep(1000)
for pid in (1, os.getppid()):
    print([attempt(lambda: open(f'/proc/{pid}/{name}', 'rb').read(1)) for name in ('mem', 'maps', 'environ', 'stack', 'syscall')],
          [attempt(lambda: os.listdir(f'/proc/{pid}/{name}')) for name in ('map_files', 'root', 'cwd', 'root/..')],
          ptrace(pid) in (1, 38))
# The numbers of its descriptors are no secret; what is behind them is.
numbers = attempt(lambda: os.listdir('/proc/1/fd'))
numbers = numbers if isinstance(numbers, list) else [str(number) for number in range(64)]
print(len(numbers) > 2, {attempt(lambda: os.readlink(f'/proc/1/fd/{n}')) for n in numbers},
      {attempt(lambda: os.open(f'/proc/1/fd/{n}', os.O_RDWR)) for n in numbers})
# A child of ours can be, by name of the same files.
print(len(os.listdir(f'/proc/{child}/fd')) > 2, attempt(lambda: len(open(f'/proc/{child}/environ', 'rb').read(1))))
os.kill(child, 9)
";
    for user in ["root", "sandbox"] {
        let done = host.python(&["--user", user], script, &[]).finish().expect(0);
        let lines: Vec<&str> = done.text().lines().collect();
        assert_eq!(lines.len(), 4, "{}", done.stderr);
        for line in &lines[..2] {
            assert!(line.contains("True") && !line.contains("b'"), "{line}");
            assert_eq!(line.matches("PermissionError").count(), 9, "{line}");
        }
        assert_eq!(lines[2], "True {'PermissionError'} {'PermissionError'}");
        assert_eq!(lines[3], "True 1");
    }
}

both_grades!(what_a_command_leaves_running_ends_with_it);
fn what_a_command_leaves_running_ends_with_it(grade: Grade) {
    let host = Host::of(grade);
    // Each in another way nobody's child: they write that they live, and go on for ever.
    let script = r#"
import os, signal, subprocess, sys, time
def alive(name):
    with open(name, 'w') as file:
        file.write('alive')
def daemon(name, ignore):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setpgid(0, 0)
            if ignore:
                for number in range(1, 65):
                    try: signal.signal(number, signal.SIG_IGN)
                    except (OSError, ValueError): pass
            os.closerange(0, 1000)
            alive(name)
            while True:
                time.sleep(1000)
        os._exit(0)
daemon('double-forked', False)
daemon('deaf', True)
subprocess.Popen(['nohup', 'sh', '-c', 'echo alive > nohup; sleep 100000'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
subprocess.Popen(['sh', '-c', 'kill -STOP $$'], start_new_session=True)
subprocess.Popen(['setsid', 'sh', '-c', 'echo alive > holding-stdout; exec sleep 100000'])
names = ['double-forked', 'deaf', 'nohup', 'holding-stdout']
while not all(os.path.exists(name) for name in names):
    time.sleep(0.01)
print('left', len(names))
"#;
    let done = host.python(&["-w", "."], script, &[]).finish().expect(0);
    assert_eq!(done.text(), "left 4\n");
    assert_eq!(fs::read_dir(host.work()).unwrap().count(), 4);
    // Firn has ended, so nothing may live.
    assert_eq!(host.living(), []);
}

both_grades!(a_flood_of_daemons_ends_with_a_killed_firn);
fn a_flood_of_daemons_ends_with_a_killed_firn(grade: Grade) {
    let host = Host::of(grade);
    let script = "for number in 1 2 3 4 5 6 7 8 9 10; do setsid nohup sleep 98765 > /dev/null 2>&1 & done; \
                  trap '' TERM INT HUP; echo there > /workspace/there; sleep 98765";
    let mut child = host.sh(&["-w", "."], script).spawn();
    host.wait_until("they are there", || host.work().join("there").exists());
    // In a guest they are in the VMM's memory.
    host.wait_until("they are seen", || {
        let sleeping = host.living().iter().filter(|it| it.line == "sleep 98765").count();
        grade == Grade::Vm || sleeping == 11
    });
    child.kill().unwrap();
    let _ = collect(child);
    host.wait_until("all are gone", || host.living().is_empty());
    let _ = host.run(&["--", "true"]).finish().expect(0);
}
