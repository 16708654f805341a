//! Sessions: interpreters that live on between runs of code, whatever the code does.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_protocol::Kind;
use firn_tests::{Evaluated, Evaluation, Finished, Firn, Grade, Host, both_grades, code_in, jail_only};
use serde_json::{Value, json};
use std::time::Duration;

const LANGUAGES: [&str; 3] = ["python", "shell", "node"];

/// `firn session run` in the session of this name, not started yet.
fn run(host: &Host, session: &str, code: &str) -> Firn {
    host.firn(&["session", "run", "--session", session, code])
}

/// Makes a session that is called as its language.
fn create(host: &Host, grade: Grade, language: &str) {
    let made = ["session", "create", "-i", grade.name(), "--env", language, "--name", language];
    assert_eq!(host.firn(&made).finish().expect(0).text(), format!("{language}\n"));
}

/// The last event of a run with `--json`.
fn result(host: &Host, session: &str, code: &str) -> Value {
    let done = host.firn(&["session", "run", "--json", "--session", session, code]).finish();
    let last = done.text().lines().last().unwrap().to_owned();
    let event: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(event["type"], "result", "{event}");
    event["payload"].clone()
}

fn close_all(host: &Host) {
    for session in host.firn(&["session", "list", "--json"]).finish().expect(0).json().as_array().unwrap() {
        host.firn(&["session", "close", session["name"].as_str().unwrap()]).finish().expect(0);
    }
    host.assert_clean();
}

/// What is lost of a session.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Kept,
    Lost,
}

/// Code that nix-sandbox-mcp's sessions break on, and more: what it prints, the end of what it complains
/// about, its exit code, and what becomes of the session.
type Row = (&'static str, &'static str, &'static str, i32, State);

const PYTHON: &[Row] = &[
    ("1+1", "2\\n", "", 0, State::Kept),
    ("import os; os.system('echo hi'); None", "hi\\n", "", 0, State::Kept),
    ("import subprocess; subprocess.run(['echo', 'hi']); None", "hi\\n", "", 0, State::Kept),
    ("input()", "", "EOFError: EOF when reading a line\\n", 1, State::Kept),
    ("raise KeyboardInterrupt", "", "KeyboardInterrupt\\n", 130, State::Kept),
    ("import sys, io; sys.stdout = sys.stderr = io.StringIO()", "", "", 0, State::Kept),
    ("sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__; print('back')", "back\\n", "", 0, State::Kept),
    ("import os; os.write(1, b'raw'); os.write(2, b'err'); None", "raw", "err", 0, State::Kept),
    (
        "import os\\nfor fd in range(1024):\\n  try: os.close(fd)\\n  except OSError: pass",
        "",
        "",
        0,
        State::Kept,
    ),
    ("import os; os._exit(7)", "", "", 7, State::Lost),
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "", "", 139, State::Lost),
];

const SHELL: &[Row] = &[
    ("printf hello", "hello", "", 0, State::Kept),
    ("cat", "", "", 0, State::Kept),
    ("head -c 200000 /dev/zero | tr '\\\\0' x >&2; false", "", "xxx", 1, State::Kept),
    ("f() { echo hi; }; export A=1; cd /tmp", "", "", 0, State::Kept),
    ("f; echo $A $PWD", "hi\\n1 /tmp\\n", "", 0, State::Kept),
    ("cat <<X\\nhere\\nX", "here\\n", "", 0, State::Kept),
    ("if true; then", "", "", -1, State::Kept),
    ("exit 3", "", "", 3, State::Lost),
    ("set -e; false", "", "", 1, State::Lost),
    ("kill -9 $$", "", "", 137, State::Lost),
];

const NODE: &[Row] = &[
    ("1+1", "2\\n", "", 0, State::Kept),
    ("process.stdout.write('hello'); undefined", "hello", "", 0, State::Kept),
    ("throw new Error('boom')", "", "boom", 1, State::Kept),
    ("console.error('Uncaught foo')", "", "Uncaught foo\\n", 0, State::Kept),
    ("const a = 41", "", "", 0, State::Kept),
    ("await Promise.resolve(a + 1)", "42\\n", "", 0, State::Kept),
    (".exit", "", "", -1, State::Kept),
    ("process.exit(4)", "", "", 4, State::Lost),
];

/// `\n` and `\\` as they are meant.
fn unescape(text: &str) -> String {
    text.replace("\\\\", "\u{1}").replace("\\n", "\n").replace('\u{1}', "\\")
}

both_grades!(what_users_do_is_survived);
fn what_users_do_is_survived(grade: Grade) {
    let host = Host::of(grade);
    for (language, remember, recall, rows) in [
        ("python", "kept = 'kept'", "print(kept)", PYTHON),
        ("shell", "kept=kept", "[ -n \"$kept\" ] && echo $kept", SHELL),
        ("node", "var kept = 'kept'", "console.log(kept)", NODE),
    ] {
        create(&host, grade, language);
        let mut known = false;
        for (code, stdout, stderr, exit_code, state) in rows {
            if !known {
                run(&host, language, remember).finish().expect(0);
            }
            let code = unescape(code);
            let done = run(&host, language, &code).finish();
            assert_eq!(done.text(), unescape(stdout), "{language}: {code}: {}", done.stderr);
            let complaints = done.complaints();
            assert!(complaints.contains(&unescape(stderr)), "{language}: {code}: {complaints}");
            match exit_code {
                -1 => {}
                wanted => assert_eq!(done.code, *wanted, "{language}: {code}: {complaints}"),
            }
            let told = complaints.contains("what it knew is lost");
            assert_eq!(told, *state == State::Lost, "{language}: {code}: {complaints}");
            known = *state == State::Kept;
            let recalled = run(&host, language, recall).finish();
            assert_eq!(recalled.code == 0, known, "{language}: {code}: {}", recalled.stderr);
        }
    }
    close_all(&host);
}

both_grades!(out_of_memory_costs_what_the_session_knew);
fn out_of_memory_costs_what_the_session_knew(grade: Grade) {
    let host = Host::of(grade);
    let made =
        ["session", "create", "-i", grade.name(), "--env", "python", "--name", "python", "--memory", "512M"];
    host.firn(&made).finish().expect(0);
    run(&host, "python", "kept = 'kept'").finish().expect(0);
    let greedy = "blocks = [b'x' * (1 << 20) for _ in range(4096)]";
    let payload = result(&host, "python", greedy);
    assert_eq!((&payload["exitCode"], &payload["stateLost"]), (&json!(137), &json!(true)), "{payload}");
    assert_eq!(payload["exceeded"], json!(["memory"]), "{payload}");
    assert_eq!(run(&host, "python", "'kept' in globals()").finish().expect(0).text(), "False\n");
    close_all(&host);
}

both_grades!(a_timeout_and_an_interrupt_leave_the_session_as_it_is);
fn a_timeout_and_an_interrupt_leave_the_session_as_it_is(grade: Grade) {
    let host = Host::of(grade);
    for (language, remember, endless, recall) in [
        ("python", "kept = 42", "while True: pass", "print(kept)"),
        ("shell", "kept=42", "while :; do sleep 0.1; done", "echo $kept"),
        ("node", "var kept = 42", "for (;;) {}", "console.log(kept)"),
    ] {
        create(&host, grade, language);
        run(&host, language, remember).finish().expect(0);
        let timed = ["session", "run", "--session", language, "--timeout", "1s", "--grace", "20s", endless];
        let done = host.firn(&timed).finish().expect(124);
        assert!(done.stderr.contains("interrupted: timeout 1s"), "{}", done.stderr);
        let running =
            host.firn(&["session", "run", "--session", language, "--grace", "20s", endless]).spawn();
        host.wait_until("it runs", || {
            let session = host.firn(&["session", "inspect", "--json", language]).finish().expect(0).json();
            session["interpreter"]["busy"] == true
        });
        host.firn(&["session", "interrupt", language]).finish().expect(0);
        firn_tests::collect(running).expect(130);
        host.firn(&["session", "interrupt", language]).finish().expect(1);
        assert_eq!(run(&host, language, recall).finish().expect(0).text(), "42\n");
    }
    close_all(&host);
}

both_grades!(a_session_outlives_clients_and_daemons);
fn a_session_outlives_clients_and_daemons(grade: Grade) {
    let host = Host::of(grade);
    let daemon = host.daemon(None);
    create(&host, grade, "python");
    run(&host, "python", "x = 41").finish().expect(0);
    // A client that is killed while its code runs does not keep the session from others.
    let mut client = run(&host, "python", "while True: pass").spawn();
    host.wait_until("it runs", || {
        let session = host.firn(&["session", "inspect", "--json", "python"]).finish().expect(0).json();
        session["interpreter"]["busy"] == true
    });
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(run(&host, "python", "x + 1").finish().expect(0).text(), "42\n");
    daemon.kill();
    let daemon = host.daemon(None);
    assert_eq!(run(&host, "python", "x + 1").finish().expect(0).text(), "42\n");
    let listed = host.firn(&["session", "list", "--json"]).finish().expect(0).json();
    assert_eq!(listed[0]["name"], "python");
    assert_eq!(listed[0]["environment"], "python");
    assert_eq!(listed[0]["isolation"], grade.name());
    close_all(&host);
    drop(daemon);
}

both_grades!(sessions_are_bound_to_what_they_were_made_with);
fn sessions_are_bound_to_what_they_were_made_with(grade: Grade) {
    let host = Host::of(grade);
    let first = ["session", "run", "-i", grade.name(), "--env", "python", "--session", "s", "x = 41"];
    host.firn(&first).finish().expect(0);
    let again = ["session", "run", "--env", "python", "-i", grade.name(), "--session", "s", "x + 1"];
    assert_eq!(host.firn(&again).finish().expect(0).text(), "42\n");
    let other = host.firn(&["session", "run", "--env", "node", "--session", "s", "1"]).finish().expect(125);
    let bound = "Session 's' is bound to environment 'python', not 'node'.\n\
                 Use a different session ID, or omit session for ephemeral execution.\n";
    assert!(other.stderr.ends_with(bound), "{}", other.stderr);
    let isolation = if grade == Grade::Jail { "vm" } else { "jail" };
    let other = ["session", "run", "--env", "python", "-i", isolation, "--session", "s", "1"];
    let other = host.firn(&other).finish().expect(125);
    assert!(other.stderr.contains(&format!("bound to isolation '{}'", grade.name())), "{}", other.stderr);
    let none = run(&host, "none", "1").finish().expect(125);
    assert!(none.stderr.contains("there is no session \"none\""), "{}", none.stderr);
    let taken = host.firn(&["session", "create", "--env", "python", "--name", "s"]).finish().expect(1);
    assert!(taken.stderr.contains("there is a session \"s\" already"), "{}", taken.stderr);
    for bad in ["a/b", "", "a b"] {
        let bad = host.firn(&["session", "create", "--env", "python", "--name", bad]).finish().expect(1);
        assert!(bad.stderr.contains("is no name of a session"), "{}", bad.stderr);
    }
    let host_only = host.firn(&["session", "run", "--env", "host", "1"]).finish().expect(2);
    assert!(host_only.stderr.contains("does not support sessions"), "{}", host_only.stderr);
    close_all(&host);
}

both_grades!(one_connection_carries_one_run_after_the_other);
fn one_connection_carries_one_run_after_the_other(grade: Grade) {
    let host = Host::of(grade);
    let daemon = host.daemon(None);
    let sandbox = json!({"isolation": grade.name(), "environment": "python"});
    let mut first = code_in("work", "x = 41");
    first["sandbox"] = sandbox.clone();
    let mut stream = Evaluation::open(&host.runtime().join("firn.sock"), &first);
    let end = |stream: &mut Evaluation| stream.outcome().unwrap();
    assert_eq!(end(&mut stream).last["type"], "ended");
    for number in 0..20 {
        stream.ask(&code_in("work", &format!("print(x + {number})")));
        assert_eq!(end(&mut stream).output, format!("{}\n", 41 + number).as_bytes());
        // What was sent to a run that is over is nobody's.
        stream.say(Kind::Stdin, number + 2, b"late");
        stream.say(Kind::StdinEnd, number + 2, b"");
    }
    // What fails, and what makes no sense, ends only itself; and a sandbox may be made on the way.
    stream.ask(&code_in("other", "1"));
    let Evaluated { last, ran, .. } = end(&mut stream);
    assert!(ran.is_none() && last["type"] == "failed" && last["refusal"]["kind"] == "not-found", "{last}");
    stream.ask(&json!({"code": 5}));
    let Evaluated { last, .. } = end(&mut stream);
    assert_eq!(last["refusal"]["kind"], "invalid", "{last}");
    stream.ask(&json!({"code": "print(input())", "stdin": "null", "sandbox": sandbox}));
    let once = end(&mut stream);
    assert_eq!((once.ran.unwrap().exit_code, once.last["type"].as_str()), (1, Some("ended")));
    stream.ask(&code_in("work", "print(x)"));
    assert_eq!(end(&mut stream).output, b"41\n");
    // A number that was there before is no next one.
    stream.say(Kind::Request, 3, code_in("work", "x = 0").to_string().as_bytes());
    assert!(stream.outcome().is_none());
    assert_eq!(run(&host, "work", "x").finish().expect(0).text(), "41\n");
    // Nobody waits for who has nothing to ask.
    let mut idle = Evaluation::open(&host.runtime().join("firn.sock"), &code_in("work", "x"));
    assert_eq!(idle.outcome().unwrap().output, b"41\n");
    host.firn(&["session", "close", "work"]).finish().expect(0);
    daemon.stop();
    assert!(idle.outcome().is_none());
    host.assert_clean();
}

both_grades!(code_runs_once_in_a_sandbox_of_its_own);
fn code_runs_once_in_a_sandbox_of_its_own(grade: Grade) {
    let host = Host::of(grade);
    for (language, code) in LANGUAGES.into_iter().zip(["6*7", "echo $((6*7))", "6*7"]) {
        let done = host.firn(&["session", "run", "-i", grade.name(), "--env", language, code]).finish();
        assert_eq!(done.expect(0).text(), "42\n");
    }
    assert_eq!(host.firn(&["session", "list"]).finish().expect(0).text(), "No sessions.\n");
    let args = ["session", "run", "-i", grade.name(), "--env", "python", "--stdin", "print(input())"];
    assert_eq!(host.firn(&args).stdin("from stdin\n").finish().expect(0).text(), "from stdin\n");
    let args = ["session", "run", "-i", grade.name(), "--env", "python", "-"];
    assert_eq!(host.firn(&args).stdin("print('code')").finish().expect(0).text(), "code\n");
    host.assert_clean();
}

both_grades!(much_code_and_much_output_go_through);
fn much_code_and_much_output_go_through(grade: Grade) {
    let host = Host::of(grade);
    create(&host, grade, "python");
    let code = format!("x = '''{}'''\nprint(len(x))", "y".repeat(1 << 20));
    let args = ["session", "run", "--session", "python", "-"];
    assert_eq!(host.firn(&args).stdin(code).finish().expect(0).text(), "1048576\n");
    let done =
        run(&host, "python", "import sys; sys.stdout.write('z' * 10_000_000); None").finish().expect(0);
    assert_eq!(done.stdout.len(), 10_000_000);
    assert!(done.stdout.iter().all(|byte| *byte == b'z'));
    let args = ["session", "run", "--session", "python", "--max-output", "1000", "print('z' * 5000)"];
    let cut = host.firn(&args).finish().expect(0);
    assert_eq!(cut.stdout.len(), 1000);
    assert!(cut.stderr.contains("output limit: a part of 5001 bytes was dropped"), "{}", cut.stderr);
    // Bytes that are no text.
    let done = run(&host, "python", "sys.stdout.buffer.write(b'\\x00\\xff\\x1b'); None").finish().expect(0);
    assert_eq!(done.stdout, b"\x00\xff\x1b");
    close_all(&host);
}

both_grades!(files_of_a_run_are_told_and_fetched);
fn files_of_a_run_are_told_and_fetched(grade: Grade) {
    let host = Host::of(grade);
    create(&host, grade, "python");
    let code = "import os\nfolder = os.environ['FIRN_ARTIFACTS']\nopen(folder + '/plot.png', 'wb').write(b'pixels')\n\
                os.symlink('/etc/passwd', folder + '/link')";
    let told = result(&host, "python", code);
    assert_eq!(told["outcome"]["type"], "ok");
    assert_eq!(
        told["artifacts"],
        serde_json::json!([{"name": "plot.png", "mediaType": "image/png", "size": 6}])
    );
    let session = host.firn(&["session", "inspect", "--json", "python"]).finish().expect(0).json();
    let sandbox = session["sandbox"].as_str().unwrap();
    let from = format!("{sandbox}:{}/plot.png", told["artifactsFolder"].as_str().unwrap());
    host.firn(&["cp", &from, "plot.png"]).finish().expect(0);
    assert_eq!(std::fs::read(host.work().join("plot.png")).unwrap(), b"pixels");
    close_all(&host);
}

jail_only!(runs_of_one_session_wait_and_sessions_do_not);
/// Of a jail: eight interpreters at once are too much for an emulated processor.
fn runs_of_one_session_wait_and_sessions_do_not() {
    let host = Host::of(Grade::Jail);
    let _daemon = host.daemon(None);
    let started: Vec<std::process::Child> = (0..8)
        .map(|number| {
            let name = format!("s{number}");
            let args = ["session", "run", "-i", "jail", "--env", "python", "--session", &name];
            host.firn(&[&args[..], &["import time; time.sleep(1); print('done')"]].concat()).spawn()
        })
        .collect();
    for child in started {
        assert_eq!(firn_tests::collect(child).expect(0).text(), "done\n");
    }
    run(&host, "s0", "order = []").finish().expect(0);
    let mut waiting = Vec::new();
    for number in 0..6_u64 {
        let code = format!("import time; time.sleep(0.2); order.append({number})");
        waiting.push(run(&host, "s0", &code).spawn());
        // Until it is in the queue, so that their order is known.
        host.wait_until("it waits", || {
            let known = host.firn(&["session", "inspect", "--json", "s0"]).finish().expect(0).json();
            let known = &known["interpreter"];
            known["runs"].as_u64().unwrap() + known["queued"].as_u64().unwrap() >= 3 + number
        });
    }
    let finished: Vec<Finished> =
        waiting.into_iter().map(|child| firn_tests::collect(child).expect(0)).collect();
    assert_eq!(finished.len(), 6);
    assert_eq!(run(&host, "s0", "order").finish().expect(0).text(), "[0, 1, 2, 3, 4, 5]\n");
    // Two that want the same new session get the same.
    let both: Vec<_> = (0..2)
        .map(|_| {
            let args = ["session", "run", "-i", "jail", "--env", "python", "--session", "same"];
            host.firn(&[&args[..], &["import os; os.getpid()"]].concat()).spawn()
        })
        .collect();
    let pids: Vec<String> =
        both.into_iter().map(|child| firn_tests::collect(child).expect(0).text().to_owned()).collect();
    assert_eq!(pids[0], pids[1]);
    close_all(&host);
}

jail_only!(a_session_ends_for_its_age_and_when_it_is_idle);
/// Of a jail: who ends it is the daemon, for both grades alike.
fn a_session_ends_for_its_age_and_when_it_is_idle() {
    let host = Host::of(Grade::Jail);
    let create = |name: &str, limit: &str| {
        let args = ["session", "create", "-i", "jail", "--env", "shell", "--name", name, limit, "1s"];
        host.firn(&args).finish().expect(0);
    };
    create("idle", "--idle-timeout");
    create("old", "--lifetime");
    let variables = host
        .firn(&["session", "create", "-i", "jail", "--env", "shell", "--name", "env"])
        .env("SESSION_IDLE_TIMEOUT", "1");
    variables.finish().expect(0);
    let gone = || host.firn(&["session", "list"]).finish().expect(0).text() == "No sessions.\n";
    host.wait_until("they are gone", gone);
    assert_eq!(host.firn(&["list", "--all", "--json"]).finish().expect(0).json(), serde_json::json!([]));
    host.assert_clean();
}

both_grades!(a_session_may_be_in_a_sandbox_that_is_there);
fn a_session_may_be_in_a_sandbox_that_is_there(grade: Grade) {
    let host = Host::of(grade);
    let id = host.create(&["--name", "box"]);
    let args = ["session", "create", "--env", "shell", "--within", "box", "--name", "in"];
    host.firn(&args).finish().expect(0);
    run(&host, "in", "echo hi > /tmp/file").finish().expect(0);
    assert_eq!(host.exec(&id, "cat /tmp/file").finish().expect(0).text(), "hi\n");
    host.firn(&["session", "close", "in"]).finish().expect(0);
    assert_eq!(host.status(&id)["state"], "running");
    host.firn(&["destroy", &id]).finish().expect(0);
    host.assert_clean();
}

jail_only!(a_prompt_keeps_what_was_typed);
/// Of a jail: a prompt is a client of the daemon, for both grades alike.
fn a_prompt_keeps_what_was_typed() {
    let host = Host::of(Grade::Jail);
    let refused = host.firn(&["repl", "-i", "jail"]).finish().expect(1);
    assert!(refused.stderr.contains("firn repl is for a terminal"), "{}", refused.stderr);
    let mut prompt = firn_tests::Terminal::start(host.firn(&["repl", "-i", "jail", "--env", "python"]));
    prompt.until("python> ");
    prompt.say("x = 41\r");
    prompt.until("python> ");
    prompt.say("for i in range(2):\r    print(i + x)\r\r");
    prompt.until("41\r\n42\r\n");
    prompt.until("python> ");
    prompt.say("while True: pass\r\r");
    std::thread::sleep(Duration::from_secs(1));
    prompt.say("\u{3}");
    prompt.until("KeyboardInterrupt");
    prompt.until("python> ");
    prompt.say("x + 1\r");
    prompt.until("42");
    prompt.until("python> ");
    prompt.say("\u{4}");
    assert_eq!(prompt.end(), 0);
    assert_eq!(host.firn(&["session", "list"]).finish().expect(0).text(), "No sessions.\n");
}
