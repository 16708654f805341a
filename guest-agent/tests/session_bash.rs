//! Bash sessions.

#![allow(clippy::unwrap_used, reason = "whatever fails here fails the test")]

mod agent;
mod session;

use agent::*;
use firn_protocol::*;
use session::*;

#[test]
fn state_lives_on() {
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut bash = Session::new(&agent, Driver::Bash);
    assert_eq!(bash.run("printf hello").fine(), "hello");
    assert_eq!(
        bash.run("x=5; f() { echo \"f $1\"; }; cd /usr; shopt -s nullglob; alias hi='echo hi'; a=(1 2)")
            .fine(),
        ""
    );
    assert_eq!(
        bash.run("f $x; pwd; shopt nullglob; hi; echo ${a[1]}").fine(),
        "f 5\n/usr\nnullglob       \ton\nhi\n2\n"
    );
    assert_eq!(bash.run("cat <<END\nx is $x\nEND").fine(), "x is 5\n");
    let done = bash.run("false");
    assert_eq!(done.kept(RunOutcome::Ok).ran().exit_code, 1);
    assert_eq!(bash.run("echo $?").fine(), "1\n");
    assert_eq!(bash.run("echo $?").fine(), "0\n");
    assert_eq!(bash.run("").fine(), "");
    assert_eq!(bash.run("# nothing").fine(), "");
    assert_eq!(bash.run("export A=b; sh -c 'echo $A'").fine(), "b\n");
    assert_eq!(bash.run("echo one; echo two >&2").err(), "two\n");
    assert_eq!(bash.run("declare -A m=([k]=v); readonly r=1").fine(), "");
    assert_eq!(bash.run("echo ${m[k]} $r").fine(), "v 1\n");
}

#[test]
fn nothing_waits_for_stdin() {
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut bash = Session::new(&agent, Driver::Bash);
    assert_eq!(bash.run("cat; echo end").fine(), "end\n");
    assert_eq!(bash.run("read x; echo $?").fine(), "1\n");
    assert_eq!(bash.run("sh -c 'cat'; wc -c; mapfile l; echo ${#l[@]}").fine(), "0\n0\n");
    assert_eq!(bash.run("exec 0<&-; cat 2>/dev/null; echo after").out(), "after\n");
    assert_eq!(bash.run("cat; echo end").fine(), "end\n");
}

#[test]
fn code_that_cannot_be_read_is_an_error() {
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut bash = Session::new(&agent, Driver::Bash);
    bash.run("x=1").fine();
    for code in
        ["if true; then", "echo $((1 +", "echo 'open", "for", "}", "cat <<'END'\nx", "echo $(", "case x in"]
    {
        let done = bash.run(code);
        let ran = done.ran();
        assert!(!ran.state_lost, "{code}");
        assert!(code.starts_with("cat") || (ran.exit_code != 0 && !done.err().is_empty()), "{code} {done:?}");
    }
    let done = bash.run(b"echo a\0b");
    assert_eq!(done.kept(RunOutcome::Exception).out(), "");
    assert!(done.err().contains("NUL"), "{}", done.err());
    assert_eq!(bash.run(b"echo '\xff\xfe' \xc3\xa9").stdout, b"\xff\xfe \xc3\xa9\n");
    let done = bash.run("nosuchcommand");
    assert_eq!(done.ran().exit_code, 127);
    assert!(done.err().contains("nosuchcommand: command not found"), "{}", done.err());
    assert_eq!(bash.run("echo $x").fine(), "1\n");
}

#[test]
fn an_exit_is_told_and_the_interpreter_started_again() {
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut bash = Session::new(&agent, Driver::Bash);
    for (code, outcome) in [
        ("echo last; exit 3", RunOutcome::Exited { code: 3 }),
        ("set -e; echo last; false; echo never", RunOutcome::Exited { code: 1 }),
        ("echo last; kill -9 $$", RunOutcome::Killed { signal: 9 }),
        ("echo last; exec true", RunOutcome::Exited { code: 0 }),
        ("exec sh -c 'echo last; exit 4'", RunOutcome::Exited { code: 4 }),
        ("trap 'echo last' EXIT; exit 5", RunOutcome::Exited { code: 5 }),
    ] {
        bash.run("x=1").fine();
        let done = bash.run(code);
        done.lost(outcome);
        assert_eq!(done.out(), "last\n", "{code}");
        assert_eq!(bash.run("echo [$x]").fine(), "[]\n");
    }
}

#[test]
fn what_ends_a_command_does_not_end_the_session() {
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut bash = Session::new(&agent, Driver::Bash);
    bash.run("x=1").fine();
    for code in [
        "echo ${nope:?gone}; echo never",
        "set -u; echo $nope; echo never",
        "set +u; return 3",
        "exec nosuchprogram",
        "kill -INT $$; echo never",
        "break",
        "readonly r=1; r=2",
    ] {
        let done = bash.run(code);
        assert!(!done.ran().state_lost, "{code} {done:?}");
        assert_eq!(done.out(), "", "{code}");
    }
    assert_eq!(bash.run("echo $x").fine(), "1\n");
    assert_eq!(bash.run("set +u; set -e; echo on").fine(), "on\n");
    assert_eq!(bash.run("echo still; set +e").fine(), "still\n");
    assert_eq!(bash.run("(exit 7)").ran().exit_code, 7);
}

#[test]
fn an_interrupt_keeps_the_state() {
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut bash = Session::new(&agent, Driver::Bash);
    bash.run("x=1; f() { while :; do :; done; }").fine();
    for code in [
        "x=2; echo on; sleep 1000; echo never",
        "echo on; while :; do sleep 1; done; echo never",
        "echo on; while :; do f; done",
        "echo on; (while :; do :; done)",
        "echo on; sleep 1000 | cat",
    ] {
        let asked = bash.asks(code);
        let id = bash.started(&asked, "on");
        assert_eq!(interrupt(&agent, "test", None), Some(asked.run));
        let done = bash.finish(id, asked.run);
        assert_eq!(done.kept(RunOutcome::Interrupted).ran().exit_code, 130, "{code}");
        assert_eq!(done.out(), "", "{code}");
    }
    assert_eq!(bash.run("echo $x").fine(), "2\n");
    let asked = SessionRun { timeout_ms: Some(200), ..bash.asks("sleep 1000; echo never") };
    assert_eq!(bash.run_as(asked).kept(RunOutcome::TimedOut).out(), "");
    // The code has a say in what an interrupt does, up to a point.
    bash.run("trap 'echo trapped' INT").fine();
    let asked = SessionRun { timeout_ms: Some(200), grace_ms: Some(300), ..bash.asks("while :; do :; done") };
    let done = bash.run_as(asked);
    assert!(done.lost(RunOutcome::TimedOut).out().starts_with("trapped\n"));
}

#[test]
fn code_may_meddle_with_what_the_driver_uses() {
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut bash = Session::new(&agent, Driver::Bash);
    for code in [
        "read() { echo mine; }; printf() { echo mine; }; eval() { echo mine; }; exec() { :; }",
        "unset -f read printf eval exec; alias builtin=false; alias while=false; shopt -s expand_aliases",
        "unalias -a; unset IFS; IFS=0123456789",
        "set -x; x=1; set +x",
        "set -f; set -o noclobber; set -C; shopt -s failglob dotglob extglob nocasematch",
        "set +f; shopt -u failglob nocasematch; PS1=prompt; PS2=more; PROMPT_COMMAND='echo prompt'; PS4=trace",
        "trap 'echo debug >/dev/null' DEBUG; trap 'echo err >/dev/null' ERR",
        "trap - DEBUG ERR; set -- a b c; OPTIND=7; REPLY=x; set -o posix; set +o posix",
        "unset ${!__firn*} 2>/dev/null; __firn=x 2>/dev/null",
        "set -v; set +v; LC_ALL=C.UTF-8; BASH_ENV=x; export POSIXLY_CORRECT=1; unset POSIXLY_CORRECT",
    ] {
        let done = bash.run(code);
        assert!(!done.ran().state_lost && done.ran().outcome != RunOutcome::Interrupted, "{code} {done:?}");
        assert_eq!(bash.run("command printf '%s\\n' fine").out(), "fine\n", "after {code}");
    }
    assert_eq!(bash.run("echo häm 12").fine(), "häm 12\n");
    let traced = bash.run("set -x; echo a");
    assert!(traced.err().ends_with("+ echo a\n") || traced.err().ends_with("echo a\n"), "{}", traced.err());
    assert!(!traced.err().contains("firn"), "{}", traced.err());
    let traced = bash.run("echo b; set +x");
    assert!(traced.err().contains("echo b\n") && !traced.err().contains("firn"), "{}", traced.err());
}

#[test]
fn descriptors_that_are_closed_do_not_end_the_session_unsaid() {
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut bash = Session::new(&agent, Driver::Bash);
    bash.run("exec 1>&- 2>&-").kept(RunOutcome::Ok);
    assert_eq!(bash.run("echo back").out(), "back\n");
    assert_eq!(bash.run("exec 3>/dev/null 9>&1; echo nine >&9").fine(), "nine\n");
    // Bash has its own input among these.
    bash.run("for ((n = 0; n < 1024; n++)); do eval \"exec $n>&-\"; done 2>/dev/null");
    let next = bash.run("echo next");
    assert_eq!((next.ran().outcome, next.out().as_str()), (RunOutcome::Ok, "next\n"), "{next:?}");
}

#[test]
fn a_background_process_is_no_ones_output_but_the_run_it_writes_in() {
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut bash = Session::new(&agent, Driver::Bash);
    let fifo = format!("/tmp/firn-test-{}", agent.pid());
    bash.run(format!(
        "mkfifo {fifo}; (read x <{fifo}; echo late; echo done >{fifo}; sleep 1000) & disown; echo started"
    ))
    .kept(RunOutcome::Ok);
    // Between two runs.
    std::fs::write(&fifo, "go\n").unwrap();
    std::fs::read(&fifo).unwrap();
    let next = bash.run(format!("echo next; rm {fifo}"));
    assert_eq!(next.fine(), "next\n");
    assert_eq!(next.ran().background_bytes, 5);
}

#[test]
fn much_output_on_both_streams() {
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut bash = Session::new(&agent, Driver::Bash);
    let done = bash.run("head -c 5000000 /dev/zero >&2; head -c 10000000 /dev/zero; printf end");
    done.fine();
    assert_eq!((done.stdout.len(), done.stderr.len()), (10_000_003, 5_000_000));
    assert_eq!((done.ran().stdout_bytes, done.ran().stderr_bytes), (10_000_003, 5_000_000));
    let asked = SessionRun { max_output_bytes: Some(100), ..bash.asks("head -c 10000000 /dev/zero") };
    let done = bash.run_as(asked);
    assert_eq!((done.stdout.len(), done.ran().stdout_bytes), (100, 10_000_000));
    assert_eq!((done.cut, done.ran().truncated), (Some(OutputCap::Run), Some(OutputCap::Run)));
    assert_eq!(bash.run("echo short").ran().truncated, None);
    let create = SessionCreate { max_output_bytes: Some(10), ..creation("capped", Driver::Bash) };
    let mut bash = Session::create(&agent, create);
    assert_eq!(bash.run("echo 12345").fine(), "12345\n");
    let done = bash.run("echo 12345");
    assert_eq!((done.out().as_str(), done.cut), ("1234", Some(OutputCap::Session)));
    assert_eq!((done.ran().stdout_bytes, done.ran().truncated), (6, Some(OutputCap::Session)));
}

#[test]
fn artifacts_are_told() {
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut bash = Session::new(&agent, Driver::Bash);
    let done = bash.run("echo hello > $FIRN_ARTIFACTS/note.txt; echo > $FIRN_ARTIFACTS/.hidden");
    let files = &done.ran().artifacts.as_ref().unwrap().files;
    let names: Vec<_> =
        files.iter().map(|file| (file.name.as_os_str().to_str().unwrap(), file.size)).collect();
    assert_eq!(names, [(".hidden", 1), ("note.txt", 6)]);
    assert_eq!(bash.run("echo $FIRN_ARTIFACTS/*").ran().artifacts, None);
    let done = bash.run("echo x > $FIRN_ARTIFACTS/x; kill -9 $$");
    assert_eq!(done.lost(RunOutcome::Killed { signal: 9 }).ran().artifacts.as_ref().unwrap().files.len(), 1);
}
