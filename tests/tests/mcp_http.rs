//! The MCP server over HTTP: who is let in, and who sees what.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::{Grade, Host, McpHttp, jail_only};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt as _;

const ALICE: &str = "alices-token-0123456789";
const BOB: &str = "bobs-token-0123456789";

fn in_session(session: &str, code: &str) -> Value {
    json!({ "env": "python", "session": session, "code": code })
}

fn for_both(host: &Host) -> McpHttp {
    let tokens = host.work().join("tokens");
    std::fs::write(&tokens, format!("alice {ALICE}\nbob {BOB}\n")).unwrap();
    std::fs::set_permissions(&tokens, std::fs::Permissions::from_mode(0o600)).unwrap();
    McpHttp::start(host.firn(&["mcp", "--http", "127.0.0.1:0", "--tokens", "tokens"]))
}

jail_only!(only_who_has_a_token_is_let_in);
fn only_who_has_a_token_is_let_in() {
    let host = Host::of(Grade::Jail);
    let server = for_both(&host);
    let list = |headers: &[(&str, &str)]| server.ask(headers, "tools/list", &json!({}));
    let bearer = format!("Bearer {ALICE}");
    for headers in [&[][..], &[("Authorization", "Bearer wrong")], &[("Authorization", ALICE)]] {
        assert_eq!(list(headers).status, 401, "{headers:?}");
    }
    let let_in = list(&[("Authorization", &bearer)]);
    assert_eq!(let_in.status, 200, "{let_in:?}");
    assert_eq!(let_in.messages[0]["result"]["tools"][0]["name"], "run");
    // A page that has given this host a name of its own, or comes from elsewhere.
    for header in [("Host", "evil.example"), ("Origin", "http://evil.example"), ("Origin", "null")] {
        assert_eq!(list(&[("Authorization", &bearer), header]).status, 403, "{header:?}");
    }
    assert_eq!(list(&[("Authorization", &bearer), ("Origin", "http://localhost:8080")]).status, 200);
    server.stop();
}

jail_only!(clients_do_not_see_each_others_sessions);
fn clients_do_not_see_each_others_sessions() {
    let host = Host::of(Grade::Jail);
    let server = for_both(&host);
    let leave = "import os\nx = 'alices'\nopen(os.environ['FIRN_ARTIFACTS'] + '/f', 'w').write(x)\nprint(x)";
    assert_eq!(server.run(ALICE, &in_session("s", leave)), "alices\n");
    assert!(server.run(BOB, &in_session("s", "x")).contains("NameError"));
    assert_eq!(server.run(ALICE, &in_session("s", "x")), "'alices'\n");
    for guess in ["alice.s", "mcp-alice.s", "../mcp-alice.s"] {
        assert!(server.run(BOB, &in_session(guess, "x")).contains("NameError"), "{guess}");
    }
    let ask = |token: &str, method: &str, params: &Value| {
        let bearer = format!("Bearer {token}");
        server.ask(&[("Authorization", &bearer)], method, params).messages[0].clone()
    };
    let listed = ask(ALICE, "resources/list", &json!({}))["result"]["resources"].clone();
    let uri = listed[0]["uri"].as_str().unwrap();
    assert_eq!(
        ask(ALICE, "resources/read", &json!({ "uri": uri }))["result"]["contents"][0]["text"],
        "alices"
    );
    assert_eq!(ask(BOB, "resources/list", &json!({}))["result"]["resources"], json!([]));
    assert!(ask(BOB, "resources/read", &json!({ "uri": uri }))["error"].is_object());
    // Many at once.
    std::thread::scope(|scope| {
        for number in 0..16 {
            let (server, token) = (&server, if number % 2 == 0 { ALICE } else { BOB });
            scope.spawn(move || {
                let code = json!({ "env": "shell", "code": format!("echo {number}") });
                assert_eq!(server.run(token, &code), format!("{number}\n"));
            });
        }
    });
    server.stop();
}

jail_only!(clients_of_the_older_protocol_are_apart_too);
fn clients_of_the_older_protocol_are_apart_too() {
    let host = Host::of(Grade::Jail);
    let server = for_both(&host);
    let (alice, bob) = (format!("Bearer {ALICE}"), format!("Bearer {BOB}"));
    let client = json!({ "name": "tests", "version": "0" });
    let hello = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client });
    let hello = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello });
    let begun = server.post(&[("Authorization", &alice)], &hello);
    assert_eq!(begun.status, 200, "{begun:?}");
    let session = begun.session.unwrap();
    let call = json!({ "name": "run", "arguments": { "env": "shell", "code": "echo hi" } });
    let call = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call });
    let of = |bearer: &str| server.post(&[("Authorization", bearer), ("Mcp-Session-Id", &session)], &call);
    // A session of the protocol belongs to who began it.
    assert_eq!(of(&bob).status, 404);
    let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    let headers = [("Authorization", alice.as_str()), ("Mcp-Session-Id", &session)];
    assert_eq!(server.post(&headers, &ready).status, 202);
    let called = of(&alice);
    let result =
        called.messages.iter().find(|message| message["id"] == 2).unwrap_or_else(|| panic!("{called:?}"));
    assert_eq!(result["result"]["content"][0]["text"], "hi\n");
    server.stop();
}

jail_only!(nobody_is_let_in_by_mistake);
fn nobody_is_let_in_by_mistake() {
    let host = Host::of(Grade::Jail);
    for wrong in [
        &["--http", "127.0.0.1:0"][..],
        &["--http", "0.0.0.0:0", "--no-token"],
        &["--http", "[::]:0", "--no-token"],
        &["--no-token"],
    ] {
        let done = host.firn(&[&["mcp"], wrong].concat()).finish();
        assert_eq!(done.code, 2, "{wrong:?}: {}", done.stderr);
    }
    let short = host.firn(&["mcp", "--http", "127.0.0.1:0"]).env("FIRN_MCP_TOKEN", "short").finish();
    assert!(short.code != 0 && short.stderr.contains("shorter"), "{}", short.stderr);
    let anyone = McpHttp::start(host.firn(&["mcp", "--http", "127.0.0.1:0", "--no-token"]));
    assert_eq!(anyone.ask(&[], "tools/list", &json!({})).status, 200);
    assert_eq!(anyone.ask(&[("Host", "evil.example")], "tools/list", &json!({})).status, 403);
    anyone.stop();
    let one = McpHttp::start(host.firn(&["mcp", "--http", "127.0.0.1:0"]).env("FIRN_MCP_TOKEN", ALICE));
    assert_eq!(one.ask(&[], "tools/list", &json!({})).status, 401);
    assert_eq!(one.run(ALICE, &json!({ "env": "shell", "code": "echo hi" })), "hi\n");
    one.stop();
}

jail_only!(nothing_is_left_of_a_client_that_hangs_up);
fn nothing_is_left_of_a_client_that_hangs_up() {
    let host = Host::of(Grade::Jail);
    let server = for_both(&host);
    let bearer = format!("Bearer {ALICE}");
    let code =
        json!({ "name": "run", "arguments": { "env": "shell", "code": "sleep 1000", "timeout": 2000 } });
    let call = server.begin(&[("Authorization", &bearer)], "tools/call", &code);
    host.wait_until("the sandbox is there", || !host.sandboxes().is_empty());
    drop(call);
    host.wait_until("the sandbox is gone", || host.sandboxes().is_empty());
    server.stop();
    host.assert_clean();
}

jail_only!(nothing_is_left_of_a_server_that_is_told_to_end);
fn nothing_is_left_of_a_server_that_is_told_to_end() {
    let host = Host::of(Grade::Jail);
    let server = for_both(&host);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let bearer = format!("Bearer {ALICE}");
            let code = json!({ "name": "run", "arguments": { "env": "shell", "code": "sleep 1000", "timeout": 2000 } });
            server.ask(&[("Authorization", &bearer)], "tools/call", &code)
        });
        host.wait_until("the sandbox is there", || !host.sandboxes().is_empty());
        let pid = nix::unistd::Pid::from_raw(server.pid().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let _cut_off = asked.join();
    });
    server.stop();
    host.wait_until("the sandbox is gone", || host.sandboxes().is_empty());
    host.assert_clean();
}
