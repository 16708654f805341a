//! Files: what an agent may say of them, and what it must not.

use super::kept::against;
use super::*;
use crate::guest::TransferEvent;
use firn_protocol::{ArchiveWrite, FileRead, FileRemove, FileTarget, MAX_FILES, STDIN_WINDOW};
use serde_json::Value;

fn able() -> Vec<u8> {
    let capabilities = ["exec", "limits", "files"];
    json(
        Kind::Hello,
        0,
        &json!({"protocol": PROTOCOL_VERSION, "software": "x", "capabilities": capabilities}),
    )
}

fn target() -> FileTarget {
    FileTarget { path: "/x".into(), user: None }
}

fn reply(body: &Value) -> Vec<u8> {
    json(Kind::Reply, 1, body)
}

fn chunk(length: usize) -> Vec<u8> {
    raw(Kind::Stdout, 1, &vec![7; length])
}

fn file(kind: &str, mode: u32, link: Option<&str>) -> Value {
    json!({"kind": kind, "mode": mode, "size": u64::MAX, "user": 0, "group": 0, "modified_s": i64::MIN,
           "target": link})
}

fn info(kind: &str, mode: u32, link: Option<&str>) -> Vec<u8> {
    let mut info = file(kind, mode, link);
    info["type"] = json!("file_info");
    reply(&info)
}

fn list(names: &[Value]) -> Vec<u8> {
    let entry = |name| json!({"name": name, "info": file("file", 0o644, None)});
    let entries: Vec<_> = names.iter().map(entry).collect();
    reply(&json!({"type": "file_list", "entries": entries, "truncated": false}))
}

#[tokio::test(start_paused = true)]
async fn what_is_said_of_a_file_is_possible() {
    for (wire, wanted) in [
        (info("file", 0o7777, None), Fine),
        (info("link", 0o777, Some("\u{1b}[2J")), Fine),
        (info("link", 0o777, None), Unexpected),
        (info("file", 0o777, Some("x")), Unexpected),
        (info("file", 0o10000, None), Unexpected),
        (info("ghost", 0, None), Malformed),
        (reply(&json!({"type": "pong"})), Unexpected),
        (reply(&json!({"type": "error", "code": "denied", "message": "\u{1b}[31mno"})), Refused),
        (chunk(1), Unexpected),
        (Vec::new(), Silent),
    ] {
        let result = against(&[able(), wire], async |stream| {
            Connection::establish(stream).await?.file_stat(target()).await.map(drop)
        })
        .await;
        assert_eq!(verdict(&result), wanted, "{result:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn names_in_a_list_are_names() {
    let many = |count: usize| (0..count).map(|number| json!(format!("{number}"))).collect::<Vec<_>>();
    for (names, wanted) in [
        (vec![json!("a"), json!("\u{1b}[2J\n"), json!({"base64": "/w=="})], Fine),
        (many(MAX_FILES), Fine),
        (many(MAX_FILES + 1), Unexpected),
        (vec![json!("a"), json!("a")], Unexpected),
        (vec![json!("")], Unexpected),
        (vec![json!(".")], Unexpected),
        (vec![json!("..")], Unexpected),
        (vec![json!("a/b")], Unexpected),
        (vec![json!("../../etc/passwd")], Unexpected),
        (vec![json!("a\u{0}b")], Unexpected),
        (vec![json!(7)], Malformed),
        (vec![json!("x".repeat(2 << 20))], Unexpected),
    ] {
        let result = against(&[able(), list(&names)], async |stream| {
            Connection::establish(stream).await?.file_list(target()).await.map(drop)
        })
        .await;
        assert_eq!(verdict(&result), wanted, "{:?}: {result:?}", names.first());
    }
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Read(Option<u64>),
    Pack,
    Unpack,
}

/// What becomes of a transfer of which the peer says this.
async fn transferred(way: Way, wire: &[Vec<u8>]) -> Result<(), GuestError> {
    against(&[&[able()], wire].concat(), async |stream| {
        let mut connection = Connection::establish(stream).await?;
        let mut transfer = match way {
            Way::Read(length) => connection.file_read(FileRead { target: target(), offset: 0, length })?,
            Way::Pack => connection.archive_read(target())?,
            Way::Unpack => connection.archive_write(ArchiveWrite { folder: target(), name: None })?,
        };
        let mut sent = 0;
        loop {
            match transfer.room() {
                Some(room) if room > 0 && sent < 3 * STDIN_WINDOW as usize => {
                    transfer.send(Bytes::from(vec![0; room]))?;
                    sent += room;
                }
                Some(room) if room > 0 => transfer.end()?,
                _ => {}
            }
            match transfer.next().await? {
                TransferEvent::Chunk(_) | TransferEvent::Room => {}
                TransferEvent::Read | TransferEvent::Archived { .. } => return Ok(()),
            }
        }
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_transfer_has_one_clear_end() {
    let sent = |bytes: u64| reply(&json!({"type": "file_sent", "bytes": bytes}));
    let archive = |name: &str, bytes: u64| {
        reply(
            &json!({"type": name, "files": u64::MAX, "folders": 0, "links": 0, "bytes": bytes, "left_out": 0}),
        )
    };
    let packed = |bytes| archive("archive_sent", bytes);
    let unpacked = || archive("archive_unpacked", u64::MAX);
    let failed = || reply(&json!({"type": "error", "code": "failed", "message": "\u{1b}]0;owned\u{7}"}));
    let other = raw(Kind::Stdout, 2, b"x");
    for (way, wire, wanted) in [
        (Way::Read(None), vec![chunk(1000), chunk(0), chunk(1000), sent(2000)], Fine),
        (Way::Read(Some(2000)), vec![chunk(1000), chunk(1000), sent(2000)], Fine),
        (Way::Read(Some(1999)), vec![chunk(1000), chunk(1000), sent(2000)], Unexpected),
        (Way::Read(None), vec![chunk(1000), sent(1001)], Unexpected),
        (Way::Read(None), vec![chunk(1000), packed(0)], Unexpected),
        (Way::Read(None), vec![chunk(1000), failed()], Refused),
        (Way::Read(None), vec![raw(Kind::Stderr, 1, b"x")], Unexpected),
        (Way::Read(None), vec![credit(1)], Unexpected),
        (Way::Read(None), vec![started(1)], Unexpected),
        (Way::Read(None), vec![other.clone()], Unexpected),
        (Way::Read(None), vec![chunk(1000)], Silent),
        (Way::Read(None), vec![], Silent),
        (Way::Pack, vec![chunk(1024), packed(0)], Fine),
        (Way::Pack, vec![chunk(1000), packed(0)], Unexpected),
        (Way::Pack, vec![chunk(1024), packed(1025)], Unexpected),
        (Way::Pack, vec![chunk(1024), sent(1024)], Unexpected),
        (Way::Pack, vec![chunk(1024), failed()], Refused),
        (Way::Unpack, vec![credit(1), credit(1), unpacked()], Fine),
        (Way::Unpack, vec![unpacked()], Fine),
        (Way::Unpack, vec![packed(0)], Unexpected),
        (Way::Unpack, vec![chunk(1)], Unexpected),
        (Way::Unpack, vec![started(1)], Unexpected),
        (Way::Unpack, vec![failed()], Refused),
        // It is sent all there is room for, and then the agent has to say something.
        (Way::Unpack, vec![], Silent),
        (Way::Unpack, vec![credit(1)], Silent),
    ] {
        let result = transferred(way, &wire).await;
        assert_eq!(verdict(&result), wanted, "{way:?}: {result:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_without_files_is_not_asked() {
    against(&[hello(PROTOCOL_VERSION)], async |stream| {
        let mut connection = Connection::establish(stream).await.unwrap();
        let lacks = |error: GuestError| matches!(error, GuestError::Lacks { capability: "files" });
        assert!(lacks(connection.file_stat(target()).await.unwrap_err()));
        assert!(lacks(connection.file_list(target()).await.unwrap_err()));
        let remove = FileRemove { target: target(), recursive: false };
        assert!(lacks(connection.file_remove(remove).await.unwrap_err()));
        assert!(lacks(connection.archive_read(target()).map(drop).unwrap_err()));
    })
    .await;
}

#[test]
fn transfers_may_move_between_threads() {
    fn moves<T: Send>(_: &T) {}
    let _ = async |mut connection: Connection| {
        moves(&connection.file_stat(target()));
        moves(&connection.file_list(target()));
        let mut transfer = connection.archive_read(target()).unwrap();
        moves(&transfer.next());
        moves(&transfer);
    };
}
