//! What is on the wire, written down. A change here is a change of the protocol: VERSIONING.md
//! says which changes may keep the version.

use firn_protocol::*;

#[test]
fn schemas_are_what_was_agreed() {
    for (kind, schema) in schema::all() {
        insta::assert_json_snapshot!(kind, schema);
    }
}

#[test]
fn kinds_have_fixed_bytes() {
    let bytes: Vec<String> = Kind::ALL.iter().map(|kind| format!("{kind:?} {:#04x}", *kind as u8)).collect();
    insta::assert_snapshot!("kinds", bytes.join("\n"));
}

#[test]
fn an_exec_reads_well_on_the_wire() {
    let request = Request::Exec(Box::new(Exec {
        argv: vec!["python3".into(), "-c".into(), "print(6*7)".into()],
        cwd: Some("/workspace".into()),
        env: vec![Variable { name: "A".into(), value: "b".into() }],
        user: Some("sandbox".into()),
        terminal: Some(TerminalSize { rows: 24, columns: 80 }),
        stdin: Stdin::Stream,
        timeout_ms: Some(1500),
        max_output_bytes: None,
        resource_limits: vec![ResourceLimit { resource: Resource::OpenFiles, value: 1024 }],
        keep: None,
    }));
    insta::assert_json_snapshot!("exec", request);
}

#[test]
fn fields_a_newer_peer_adds_are_ignored() {
    let hello: Hello =
        serde_json::from_str(r#"{"protocol":1,"software":"x","capabilities":["later"],"new":{"a":1}}"#)
            .unwrap();
    assert_eq!(hello.capabilities, ["later"]);
}

#[test]
fn what_an_older_peer_leaves_out_means_what_it_meant() {
    let exec: Exec = serde_json::from_str(r#"{"argv":["true"],"stdin":"null"}"#).unwrap();
    assert!(exec.resource_limits.is_empty());
    let json = serde_json::to_string(&exec).unwrap();
    assert!(!json.contains("resource_limits"), "an older peer is not told of what is not asked for: {json}");
}

#[test]
fn a_limit_without_a_name_here_is_still_one() {
    let exceeded: Vec<Exceeded> = serde_json::from_str(r#"["memory","disk"]"#).unwrap();
    assert_eq!(exceeded, [Exceeded::Memory, Exceeded::Unknown]);
    // Not so what the host asks for: a limit that is passed over would be one the host believes in.
    assert!(serde_json::from_str::<ResourceLimit>(r#"{"resource":"disk","value":1}"#).is_err());
}
