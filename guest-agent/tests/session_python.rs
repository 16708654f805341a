//! Python sessions.

#![allow(clippy::unwrap_used, reason = "whatever fails here fails the test")]

mod agent;
mod session;

use agent::*;
use firn_protocol::*;
use session::*;

#[test]
fn state_lives_on_and_the_last_value_is_shown() {
    need!(Driver::Python);
    let agent = Agent::start();
    let mut python = Session::new(&agent, Driver::Python);
    assert_eq!(python.run("x = 41").fine(), "");
    assert_eq!(python.run("x + 1").fine(), "42\n");
    assert_eq!(python.run("_ + 1").fine(), "43\n");
    assert_eq!(python.run("print('a', end='')").fine(), "a");
    assert_eq!(python.run("def f():\n  return 'f'\nf()").fine(), "'f'\n");
    assert_eq!(python.run("None").fine(), "");
    assert_eq!(python.run("").fine(), "");
    assert_eq!(python.run("# nothing").fine(), "");
    assert_eq!(python.run("import asyncio\nawait asyncio.sleep(0, 'slept')").fine(), "'slept'\n");
    assert_eq!(python.run("a = await asyncio.sleep(0, 5)").fine(), "");
    assert_eq!(python.run("a").fine(), "5\n");
    assert_eq!(python.run("__name__").fine(), "'__main__'\n");
    assert_eq!(python.run("import sys; sys.argv, __import__('__main__').x").fine(), "([''], 41)\n");
    assert_eq!(python.run("from __future__ import annotations").fine(), "");
    assert_eq!(python.run("def g(a: nothing): pass").fine(), "");
}

#[test]
fn an_exception_shows_the_users_frames_and_their_lines() {
    need!(Driver::Python);
    let agent = Agent::start();
    let mut python = Session::new(&agent, Driver::Python);
    python.run("def f():\n    raise ValueError('boom')").fine();
    let done = python.run("x = 7\nf()");
    done.kept(RunOutcome::Exception);
    let err = done.err();
    assert!(
        err.starts_with(
            "Traceback (most recent call last):\n  File \"<cell 2>\", line 2, in <module>\n    f()\n"
        ),
        "{err}"
    );
    assert!(err.contains("File \"<cell 1>\", line 2, in f\n    raise ValueError('boom')\n"), "{err}");
    assert!(err.ends_with("ValueError: boom\n"), "{err}");
    assert!(!err.contains("firn"), "{err}");
    assert_eq!(python.run("x").fine(), "7\n");
    let syntax = python.run("if (");
    assert!(syntax.kept(RunOutcome::Exception).err().contains("SyntaxError"), "{}", syntax.err());
    let awaited = python.run("async def g():\n    1/0\nawait g()").err();
    assert!(awaited.contains("in g\n") && !awaited.contains("firn"), "{awaited}");
    let chained = python.run("try:\n    1/0\nexcept Exception as e:\n    raise KeyError('k') from e").err();
    assert!(chained.contains("ZeroDivisionError") && chained.ends_with("KeyError: 'k'\n"), "{chained}");
}

#[test]
fn children_write_to_the_streams_and_find_no_stdin() {
    need!(Driver::Python);
    let agent = Agent::start();
    let mut python = Session::new(&agent, Driver::Python);
    let done = python.run(
        "import os, subprocess\nprint('one')\nr = os.system('echo two; echo three >&2')\n\
         print('four')\nr = subprocess.run(['sh', '-c', 'echo five'])",
    );
    assert_eq!(done.fine(), "one\ntwo\nfour\nfive\n");
    assert_eq!(done.err(), "three\n");
    assert_eq!(python.run("subprocess.run(['cat']).returncode").fine(), "0\n");
    let read = python.run("input()");
    assert!(read.kept(RunOutcome::Exception).err().contains("EOFError"), "{}", read.err());
    assert_eq!(python.run("import sys; sys.stdin.read()").fine(), "''\n");
}

#[test]
fn stdout_and_stderr_come_in_the_order_in_which_they_were_written() {
    need!(Driver::Python);
    let agent = Agent::start();
    let mut python = Session::new(&agent, Driver::Python);
    let done = python
        .run("import sys\nfor n in range(200):\n    print(n, file=sys.stderr if n % 3 else sys.stdout)");
    let wanted: String = (0..200).map(|n| format!("{n}\n")).collect();
    assert_eq!(String::from_utf8(done.output).unwrap(), wanted);
    let done = python.run("print('before'); 1/0");
    assert!(done.output.starts_with(b"before\nTraceback"), "{}", String::from_utf8_lossy(&done.output));
}

#[test]
fn an_exit_is_told_and_the_state_is_kept_where_it_can_be() {
    need!(Driver::Python);
    let agent = Agent::start();
    let mut python = Session::new(&agent, Driver::Python);
    python.run("x = 1").fine();
    python.run("import sys; sys.exit(3)").kept(RunOutcome::Exited { code: 3 });
    let said = python.run("exit('no')");
    assert_eq!(said.kept(RunOutcome::Exited { code: 1 }).err(), "no\n");
    assert_eq!(python.run("raise SystemExit").kept(RunOutcome::Exited { code: 0 }).ran().exit_code, 0);
    assert_eq!(python.run("x").fine(), "1\n");
    python.run("raise KeyboardInterrupt").kept(RunOutcome::Exception);
    assert_eq!(python.run("x").fine(), "1\n");
}

#[test]
fn an_interpreter_that_ends_is_started_again_and_that_is_told() {
    need!(Driver::Python);
    let agent = Agent::start();
    let mut python = Session::new(&agent, Driver::Python);
    for (code, outcome, status) in [
        ("import os; print('last', flush=True); os._exit(7)", RunOutcome::Exited { code: 7 }, 7),
        ("import os; print('last'); os.kill(os.getpid(), 9)", RunOutcome::Killed { signal: 9 }, 137),
        ("import os; print('last'); os.abort()", RunOutcome::Killed { signal: 6 }, 134),
        ("print('last'); import ctypes; ctypes.string_at(0)", RunOutcome::Killed { signal: 11 }, 139),
    ] {
        python.run("x = 1").fine();
        let done = python.run(code);
        assert_eq!(done.lost(outcome).ran().exit_code, status);
        assert_eq!(done.out(), "last\n");
        assert!(python.run("x").kept(RunOutcome::Exception).err().contains("NameError"));
    }
    assert_eq!(info(&agent, "test").restarts, 4);
    // Between two runs.
    let pid: i32 = python.run("x = 1; import os; os.getpid()").fine().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    eventually("it is seen to be gone", || info(&agent, "test").pid != Some(pid.unsigned_abs()));
    let next = python.run("1 + 1");
    assert_eq!(next.out(), "2\n");
    assert!(next.ran().state_lost_before && !next.ran().state_lost);
    assert_eq!(python.run("2").fine(), "2\n");
}

#[test]
fn an_interrupt_keeps_the_state() {
    need!(Driver::Python);
    let agent = Agent::start();
    let mut python = Session::new(&agent, Driver::Python);
    python.run("x = 1").fine();
    for code in [
        "x = 2; print('on')\nwhile True: pass",
        "print('on')\nimport time; time.sleep(1000)",
        "print('on')\nimport subprocess; subprocess.run(['sleep', '1000'])",
        "print('on')\nimport asyncio; await asyncio.sleep(1000)",
    ] {
        let asked = python.asks(code);
        let id = python.started(&asked, "on");
        assert_eq!(interrupt(&agent, "test", None), Some(asked.run));
        let done = python.finish(id, asked.run);
        assert_eq!(done.kept(RunOutcome::Interrupted).ran().exit_code, 130);
        assert!(done.err().contains("KeyboardInterrupt"), "{}", done.err());
        assert!(!done.err().contains("firn"), "{}", done.err());
    }
    assert_eq!(python.run("x").fine(), "2\n");
    // There is nothing to interrupt, and the next run is not.
    assert_eq!(interrupt(&agent, "test", None), None);
    assert_eq!(python.run("x").fine(), "2\n");
}

#[test]
fn a_timeout_ends_a_run_and_more_than_that_only_if_it_must() {
    need!(Driver::Python);
    let agent = Agent::start();
    let mut python = Session::new(&agent, Driver::Python);
    python.run("x = 1").fine();
    let timed = |asked: SessionRun| SessionRun { timeout_ms: Some(200), grace_ms: Some(300), ..asked };
    let asked = timed(python.asks("while True: pass"));
    assert_eq!(python.run_as(asked).kept(RunOutcome::TimedOut).ran().exit_code, 124);
    assert_eq!(python.run("x").fine(), "1\n");
    let asked =
        timed(python.asks(
            "import time\nwhile True:\n  try: time.sleep(100)\n  except KeyboardInterrupt: print('no')",
        ));
    let done = python.run_as(asked);
    assert!(done.lost(RunOutcome::TimedOut).out().starts_with("no\n"));
    python.run("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)").kept(RunOutcome::Ok);
    let asked = timed(python.asks("while True: pass"));
    python.run_as(asked).lost(RunOutcome::TimedOut);
    assert_eq!(python.run("2").fine(), "2\n");
}

#[test]
fn code_that_takes_the_streams_away_does_not_take_the_session_away() {
    need!(Driver::Python);
    let agent = Agent::start();
    let mut python = Session::new(&agent, Driver::Python);
    python.run("import os; x = 1; os.closerange(0, 1024)").kept(RunOutcome::Ok);
    assert_eq!(python.run("print(x)").fine(), "1\n");
    python
        .run("import os\nf = os.open('/dev/null', os.O_RDWR)\nfor n in range(0, 1024):\n    os.dup2(f, n)")
        .kept(RunOutcome::Ok);
    // The code has arranged for its output to go nowhere.
    assert_eq!(python.run("print(x)").fine(), "");
    let mut python = Session::create(&agent, creation("other", Driver::Python));
    python
        .run("import sys, io; kept = sys.stdout; sys.stdout = io.StringIO(); sys.stderr = None")
        .kept(RunOutcome::Ok);
    assert_eq!(python.run("print('away'); 1").fine(), "");
    python.run("1/0").kept(RunOutcome::Exception);
    assert_eq!(python.run("sys.stdout = kept; print('back')").fine(), "back\n");
    python.run("del sys.stdout").kept(RunOutcome::Ok);
    python.run("print = exec = len = int = str = None; import builtins; builtins.len = None; import os; os.write = None").kept(RunOutcome::Ok);
    assert_eq!(python.run("sys.stdout = kept; x = 5; sys.stdout.write('fine\\n') and None").fine(), "fine\n");
}

#[test]
fn what_is_written_to_other_descriptors_is_nobodys_result() {
    need!(Driver::Python);
    let agent = Agent::start();
    let mut python = Session::new(&agent, Driver::Python);
    let done = python.run(
        "import os\nx = 1\nfor n in range(3, 5000):\n    for text in (b'done 1 1 ok 0 0', b'ready', b'\\xff' * 300, b''):\n        \
         try: os.write(n, text)\n        except OSError: pass\nprint('wrote')",
    );
    assert!(done.fine().ends_with("wrote\n"));
    assert_eq!(python.run("x").fine(), "1\n");
}

#[test]
fn a_copy_of_the_interpreter_does_not_answer() {
    need!(Driver::Python);
    let agent = Agent::start();
    let mut python = Session::new(&agent, Driver::Python);
    let done = python.run("import os, time\nr, w = os.pipe()\npid = os.fork()\nif pid == 0:\n    os.close(w); os.read(r, 1); print('late')\nelse:\n    print('parent')");
    assert_eq!(done.fine(), "parent\n");
    python.run("1").fine();
    // The child goes on, comes to the end of the code, and ends.
    assert_eq!(python.run("os.close(w); os.waitpid(pid, 0)[1]").ran().outcome, RunOutcome::Ok);
    assert_eq!(python.run("'own'").fine(), "'own'\n");
}

#[test]
fn a_background_process_holds_nothing_up() {
    need!(Driver::Python);
    let agent = Agent::start();
    let mut python = Session::new(&agent, Driver::Python);
    let done = python.run("import subprocess\np = subprocess.Popen(['sh', '-c', 'read x; echo between; sleep 1000'], stdin=subprocess.PIPE)\nprint('started')");
    assert_eq!(done.fine(), "started\n");
    assert_eq!(python.run("p.poll()").fine(), "");
    let pid: u32 = python
        .run("p.stdin.write(b'\\n'); p.stdin.flush(); print(p.pid)")
        .out()
        .lines()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(lives(pid));
    close(&agent, "test");
    assert!(!lives(pid));
}

#[test]
fn text_is_utf_8_and_anything_else_is_said() {
    need!(Driver::Python);
    let agent = Agent::start();
    let mut python = Session::new(&agent, Driver::Python);
    assert_eq!(python.run("'häm \u{1f600}'").fine(), "'häm \u{1f600}'\n");
    python.run(b"print('\xff')").kept(RunOutcome::Exception);
    python.run(b"x = 1\0").kept(RunOutcome::Exception);
    let done = python.run("import os; os.write(1, bytes(range(256))) and None");
    assert_eq!(done.stdout, (0..=255).collect::<Vec<u8>>());
    assert_eq!(python.run("print('\\udcff')").stdout, b"\xff\n");
    assert_eq!(python.run("1").fine(), "1\n");
}

#[test]
fn artifacts_are_told() {
    need!(Driver::Python);
    let agent = Agent::start();
    let mut python = Session::new(&agent, Driver::Python);
    assert_eq!(python.run("1").ran().artifacts, None);
    let done = python.run(
        "import os\nd = os.environ['FIRN_ARTIFACTS']\nopen(d + '/a.png', 'wb').write(b'12345') and None\n\
         os.symlink('/etc/passwd', d + '/link')\nos.mkdir(d + '/folder')\nos.mkfifo(d + '/fifo')",
    );
    let artifacts = done.ran().artifacts.clone().unwrap();
    let wanted = Artifact { name: "a.png".into(), media_type: "image/png".into(), size: 5 };
    assert_eq!(artifacts.files, [wanted]);
    let path = artifacts.folder.as_path().join("a.png");
    assert_eq!(std::fs::read(&path).unwrap(), b"12345");
    let next = python.run("d != os.environ['FIRN_ARTIFACTS'], os.listdir(os.environ['FIRN_ARTIFACTS'])");
    assert_eq!(next.fine(), "(True, [])\n");
    let many =
        python.run("for n in range(300): open(os.environ['FIRN_ARTIFACTS'] + '/%d.txt' % n, 'w').close()");
    let many = many.ran().artifacts.clone().unwrap();
    assert_eq!((many.files.len(), many.truncated), (MAX_ARTIFACTS, true));
    let base = artifacts.folder.as_path().parent().unwrap().to_owned();
    assert!(base.exists());
    close(&agent, "test");
    assert!(!path.exists());
    eventually("the agent's own folder is gone", || !base.exists());
}
