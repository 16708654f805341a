//! Node sessions.

#![allow(clippy::unwrap_used, reason = "whatever fails here fails the test")]

mod agent;
mod session;

use agent::*;
use firn_protocol::*;
use session::*;

#[test]
fn state_lives_on_and_the_last_value_is_shown() {
    need!(Driver::Node);
    let agent = Agent::start();
    let mut node = Session::new(&agent, Driver::Node);
    assert_eq!(node.run("1+1").fine(), "2\n");
    assert_eq!(
        node.run("const x = 41; let y = 'y'; var z = 1; function f() { return 'f' }; class C {}").fine(),
        ""
    );
    assert_eq!(node.run("x + 1").fine(), "42\n");
    assert_eq!(node.run("[y, z, f(), typeof C]").fine(), "[ 'y', 1, 'f', 'function' ]\n");
    assert_eq!(node.run("{ a: 1 }").fine(), "{ a: 1 }\n");
    assert_eq!(node.run("process.stdout.write('hello'); undefined").fine(), "hello");
    assert_eq!(node.run("await new Promise(r => setTimeout(() => r('awaited'), 5))").fine(), "'awaited'\n");
    assert_eq!(node.run("const w = await 7").fine(), "");
    assert_eq!(node.run("w").fine(), "7\n");
    assert_eq!(node.run("require('path').join('a', 'b')").fine(), "'a/b'\n");
    assert_eq!(node.run("(await import('node:path')).sep").fine(), "'/'\n");
    assert_eq!(node.run("").fine(), "");
    assert_eq!(node.run("process.argv.length").fine(), "1\n");
}

#[test]
fn an_error_shows_its_text_and_the_users_frames() {
    need!(Driver::Node);
    let agent = Agent::start();
    let mut node = Session::new(&agent, Driver::Node);
    node.run("function f() {\n  throw new TypeError('boom')\n}").fine();
    for code in ["f()", "await 0; f()"] {
        let done = node.run(code);
        let err = done.kept(RunOutcome::Exception).err();
        assert!(err.starts_with("Uncaught TypeError: boom\n    at f (<cell 1>:2:9)\n"), "{err}");
        assert!(!err.contains("node:") && !err.contains("firn"), "{err}");
    }
    assert_eq!(node.run("throw 7").kept(RunOutcome::Exception).err(), "Uncaught 7\n");
    assert_eq!(node.run("throw undefined").kept(RunOutcome::Exception).err(), "Uncaught undefined\n");
    assert_eq!(node.run("await Promise.reject(8)").kept(RunOutcome::Exception).err(), "Uncaught 8\n");
    for code in ["if (", ".exit", "await (", "const f = 1", "'open"] {
        let done = node.run(code);
        assert!(done.kept(RunOutcome::Exception).err().contains("SyntaxError"), "{code} {}", done.err());
    }
    let done = node.run("console.error('Uncaught foo')");
    assert_eq!((done.fine().as_str(), done.err().as_str()), ("", "Uncaught foo\n"));
    let cause = node.run("throw new Error('outer', { cause: new Error('inner') })").err();
    assert!(cause.contains("outer") && cause.contains("inner"), "{cause}");
}

#[test]
fn errors_that_nobody_catches_are_told() {
    need!(Driver::Node);
    let agent = Agent::start();
    let mut node = Session::new(&agent, Driver::Node);
    node.run("var x = 1").fine();
    let done = node.run("Promise.reject(new Error('rejected')); 1");
    assert!(done.kept(RunOutcome::Exception).err().contains("rejected"), "{}", done.err());
    let done = node
        .run("setTimeout(() => { throw new Error('timer') }, 1); await new Promise(r => setTimeout(r, 50))");
    assert!(done.kept(RunOutcome::Exception).err().contains("Error: timer"), "{}", done.err());
    // Between two runs: the next tells.
    node.run("setTimeout(() => { throw new Error('late') }, 1); undefined").kept(RunOutcome::Ok);
    eventually("the timer has fired", || node.run("1").err().contains("Error: late"));
    assert_eq!(node.run("x").fine(), "1\n");
}

#[test]
fn an_exit_is_told_and_the_interpreter_started_again() {
    need!(Driver::Node);
    let agent = Agent::start();
    let mut node = Session::new(&agent, Driver::Node);
    for (code, outcome) in [
        ("console.log('last'); process.exit(4)", RunOutcome::Exited { code: 4 }),
        (
            "console.log('last'); process.kill(process.pid, 'SIGKILL'); while (true);",
            RunOutcome::Killed { signal: 9 },
        ),
        ("console.log('last'); process.abort()", RunOutcome::Killed { signal: 6 }),
    ] {
        node.run("var x = 1").fine();
        let done = node.run(code);
        done.lost(outcome);
        assert_eq!(done.out(), "last\n");
        assert_eq!(node.run("typeof x").fine(), "'undefined'\n");
    }
}

#[test]
fn an_interrupt_keeps_the_state() {
    need!(Driver::Node);
    let agent = Agent::start();
    let mut node = Session::new(&agent, Driver::Node);
    node.run("var x = 1").fine();
    for code in ["x = 2; console.log('on'); while (true);", "console.log('on'); await new Promise(() => {})"]
    {
        let asked = node.asks(code);
        let id = node.started(&asked, "on");
        assert_eq!(interrupt(&agent, "test", Some(5000)), Some(asked.run));
        let done = node.finish(id, asked.run);
        assert_eq!(done.kept(RunOutcome::Interrupted).ran().exit_code, 130, "{code}");
    }
    assert_eq!(node.run("x").fine(), "2\n");
    let asked = SessionRun { timeout_ms: Some(200), ..node.asks("while (true);") };
    node.run_as(asked).kept(RunOutcome::TimedOut);
    assert_eq!(node.run("x").fine(), "2\n");
    // Behind an await nothing but the end of the interpreter interrupts a loop.
    let asked =
        SessionRun { timeout_ms: Some(200), grace_ms: Some(200), ..node.asks("await 0; while (true);") };
    node.run_as(asked).lost(RunOutcome::TimedOut);
}

#[test]
fn children_write_to_the_streams_and_find_no_stdin() {
    need!(Driver::Node);
    let agent = Agent::start();
    let mut node = Session::new(&agent, Driver::Node);
    let done = node.run("console.log('one'); require('child_process').execSync('echo two', { stdio: 'inherit' }); console.log('three')");
    assert_eq!(done.fine(), "one\ntwo\nthree\n");
    assert_eq!(node.run("require('fs').readFileSync(0).length").fine(), "0\n");
    let done = node.run(
        "process.stdout.write(Buffer.alloc(3000000)); process.stderr.write(Buffer.alloc(1000000)); undefined",
    );
    done.fine();
    assert_eq!((done.stdout.len(), done.stderr.len()), (3_000_000, 1_000_000));
    let done = node.run(b"'h\xc3\xa4m \xff\0'");
    assert_eq!(done.fine(), "'häm \u{fffd}\\x00'\n");
}

#[test]
fn code_that_takes_everything_away_is_told_of() {
    need!(Driver::Node);
    let agent = Agent::start();
    let mut node = Session::new(&agent, Driver::Node);
    node.run("for (let n = 0; n < 1024; n++) try { require('fs').closeSync(n) } catch {}");
    let next = node.run("1");
    assert_eq!((next.ran().outcome, next.out().as_str()), (RunOutcome::Ok, "1\n"), "{next:?}");
    let mut node = Session::create(&agent, creation("other", Driver::Node));
    node.run("var fs = require('fs'); for (const k in fs) try { fs[k] = null } catch {}; Buffer.from = null; process.stdout.write = () => {}; JSON = Promise = Error = setImmediate = null").kept(RunOutcome::Ok);
    assert_eq!(node.run("2").fine(), "2\n");
}

#[test]
fn artifacts_are_told() {
    need!(Driver::Node);
    let agent = Agent::start();
    let mut node = Session::new(&agent, Driver::Node);
    let done = node.run("require('fs').writeFileSync(process.env.FIRN_ARTIFACTS + '/a.json', '{}')");
    let artifact = Artifact { name: "a.json".into(), media_type: "application/json".into(), size: 2 };
    assert_eq!(done.ran().artifacts.as_ref().unwrap().files, [artifact]);
}
