//! What a caller has about itself when it starts firn, and must not hand to a command.

use firn_tests::{Grade, Host, both_grades, collect, descendants};
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

/// Gives a command descriptors as careless programs leave them: not closed at exec.
fn with_descriptors(command: &mut Command, descriptors: Vec<(OwnedFd, RawFd)>) {
    #[allow(unsafe_code, reason = "descriptors are doubled between fork and exec")]
    // SAFETY: dup2(2) is async-signal-safe, and nothing else is done.
    unsafe {
        command.pre_exec(move || {
            for (from, to) in &descriptors {
                if libc::dup2(from.as_raw_fd(), *to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

both_grades!(descriptors_of_the_caller_are_not_passed_on);
fn descriptors_of_the_caller_are_not_passed_on(grade: Grade) {
    let host = Host::of(grade);
    let secret = host.home().join("secret-file");
    fs::write(&secret, "a secret").unwrap();
    let careless = |command: &mut Command| {
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        let descriptors = vec![
            (File::open(&secret).unwrap().into(), 40),
            (reader, 41),
            (TcpListener::bind("127.0.0.1:0").unwrap().into(), 42),
            (File::open("/").unwrap().into(), 43),
        ];
        with_descriptors(command, descriptors);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    };
    let script = "ls /proc/self/fd | tr '\\n' ' '; ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c secret-file; \
                  cat <&40; cat /proc/self/fd/40; ls /proc/self/fd/43/root; true";
    // Not `sh`, which knows numbers of one digit only.
    let mut command = Command::new("/bin/bash");
    command.args(["-c", script]);
    careless(&mut command);
    let outside = collect(command.spawn().unwrap()).expect(0);
    assert!(outside.text().contains("40 41 42 43"), "{}", outside.text());
    assert!(outside.text().contains("a secreta secret"), "{}", outside.text());

    let mut command = host.run(&["--", "bash", "-c", script]).into_command();
    careless(&mut command);
    let inside = collect(command.spawn().unwrap()).expect(0);
    // `ls` itself has the folder open.
    assert_eq!(inside.text(), "0 1 2 3 0\n");
}

both_grades!(nobody_but_firn_holds_the_callers_descriptors);
fn nobody_but_firn_holds_the_callers_descriptors(grade: Grade) {
    let host = Host::of(grade);
    let secret = host.home().join("secret-file");
    fs::write(&secret, "a secret").unwrap();
    let mut command = host.sh(&["-w", "."], "echo there > there; sleep 1000").into_command();
    with_descriptors(&mut command, vec![(File::open(&secret).unwrap().into(), 40)]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    host.wait_until("it runs", || host.work().join("there").exists());
    let holds = |pid: u32| {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        links.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| target == secret)
    };
    assert!(holds(child.id()), "firn was given it");
    let helpers: Vec<_> = descendants().into_iter().filter(|process| process.pid != child.id()).collect();
    assert!(helpers.len() > 1, "{helpers:?}");
    let holders: Vec<_> = helpers.iter().filter(|helper| holds(helper.pid)).collect();
    let count = holders.len();
    let holders = format!("{holders:#?}");
    child.kill().unwrap();
    let _ = collect(child);
    host.wait_until("all are gone", || host.living().is_empty());
    let _ = host.run(&["--", "true"]).finish().expect(0);
    assert_eq!(count, 0, "{holders}");
}

both_grades!(ignored_and_blocked_signals_are_not_passed_on);
fn ignored_and_blocked_signals_are_not_passed_on(grade: Grade) {
    let host = Host::of(grade);
    let odd = |command: &mut Command| {
        #[allow(unsafe_code, reason = "signals are set between fork and exec")]
        // SAFETY: all of these are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGPIPE, libc::SIG_IGN);
                libc::signal(libc::SIGHUP, libc::SIG_IGN);
                libc::signal(libc::SIGUSR1, libc::SIG_IGN);
                let mut set = std::mem::zeroed();
                libc::sigemptyset(&mut set);
                libc::sigaddset(&mut set, libc::SIGUSR2);
                libc::sigaddset(&mut set, libc::SIGALRM);
                libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
                Ok(())
            });
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    };
    // Without signals 32 and 33, which are the C library's own.
    let script = "grep -E '^Sig(Blk|Ign):' /proc/self/status | tr -d '\\t' | sed -E 's/[0-9a-f]{8}$/ &/; s/ [89a-f]/ 0/'";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    odd(&mut command);
    let outside = collect(command.spawn().unwrap()).expect(0);
    assert_eq!(outside.text(), "SigBlk:00000000 00002800\nSigIgn:00000000 00001201\n");

    let mut command = host.sh(&[], script).into_command();
    odd(&mut command);
    let inside = collect(command.spawn().unwrap()).expect(0);
    assert_eq!(inside.text(), "SigBlk:00000000 00000000\nSigIgn:00000000 00000000\n");
}

both_grades!(a_strict_umask_is_neither_passed_on_nor_in_the_way);
fn a_strict_umask_is_neither_passed_on_nor_in_the_way(grade: Grade) {
    let host = Host::of(grade);
    let strict = |mut command: Command| {
        #[allow(unsafe_code, reason = "the mask is set between fork and exec")]
        // SAFETY: umask(2) is async-signal-safe, and nothing else is done.
        unsafe {
            command.pre_exec(|| {
                libc::umask(0o077);
                Ok(())
            });
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        collect(command.spawn().unwrap()).expect(0).text().to_owned()
    };
    let mut outside = Command::new("/bin/sh");
    outside.args(["-c", "umask"]);
    assert_eq!(strict(outside), "0077\n");
    assert_eq!(strict(host.sh(&["-w", "."], "umask").into_command()), "0022\n");
}

both_grades!(the_callers_terminal_takes_no_input_from_inside);
fn the_callers_terminal_takes_no_input_from_inside(grade: Grade) {
    let host = Host::of(grade);
    let script = r"
import fcntl, os, sys, termios
def attempt(act):
    try:
        act()
        return 'done'
    except OSError as error:
        return 'no'
def terminal():
    with open('/dev/tty', 'rb+', buffering=0) as tty:
        fcntl.ioctl(tty, termios.TIOCSTI, b'T')
print(*[attempt(lambda: fcntl.ioctl(fd, termios.TIOCSTI, b'I')) for fd in (0, 1, 2)], attempt(terminal),
      *[os.isatty(fd) for fd in (0, 1, 2)])
";
    let on_a_terminal = |mut command: Command| {
        let pty = nix::pty::openpty(None, None).unwrap();
        let slave = || Stdio::from(pty.slave.try_clone().unwrap());
        command.stdin(slave()).stdout(Stdio::piped()).stderr(slave());
        #[allow(unsafe_code, reason = "a terminal is taken between fork and exec")]
        // SAFETY: setsid(2) and ioctl(2) are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let done = collect(command.spawn().unwrap()).expect(0);
        // A line that is not finished is not there to be read, but is counted so.
        nix::sys::termios::tcgetattr(&pty.slave)
            .map(|mut settings| {
                settings.local_flags.remove(nix::sys::termios::LocalFlags::ICANON);
                nix::sys::termios::tcsetattr(&pty.slave, nix::sys::termios::SetArg::TCSANOW, &settings)
            })
            .unwrap()
            .unwrap();
        let mut waiting: libc::c_int = 0;
        #[allow(unsafe_code, reason = "an ioctl that nix has no name for")]
        // SAFETY: FIONREAD writes one int.
        unsafe {
            libc::ioctl(pty.slave.as_raw_fd(), libc::FIONREAD, &mut waiting);
        }
        (done.text().to_owned(), waiting)
    };
    let mut outside = Command::new("/usr/bin/python3");
    outside.args(["-c", script]);
    let (tried, waiting) = on_a_terminal(outside);
    // Unless the host's kernel allows it to nobody, it works out here.
    if nix::unistd::geteuid().is_root() {
        assert_eq!((tried.as_str(), waiting), ("done no done done True False True\n", 3));
    }
    let (tried, waiting) = on_a_terminal(host.python(&[], script, &[]).into_command());
    assert_eq!((tried.as_str(), waiting), ("no no no no False False False\n", 0));
    // On a terminal of its own it may type to itself.
    let (_, waiting) = on_a_terminal(host.python(&["-t"], script, &[]).into_command());
    assert_eq!(waiting, 0);
}
