//! Files of the sandbox.
#![allow(clippy::unwrap_used, reason = "whatever fails here fails the test")]

mod agent;

use agent::*;
use firn_protocol::*;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use tar::{Archive, Builder, EntryType, Header};

fn target(path: impl AsRef<Path>) -> FileTarget {
    FileTarget { path: path.as_ref().as_os_str().into(), user: None }
}

fn as_user(path: impl AsRef<Path>, user: &str) -> FileTarget {
    FileTarget { user: Some(user.to_owned()), ..target(path) }
}

/// The output of a request and its reply.
fn output(host: &mut Host, request: &Request) -> (Vec<u8>, Reply) {
    let id = host.request(request);
    let mut output = Vec::new();
    loop {
        let frame = host.frame().unwrap();
        assert_eq!(frame.id, id);
        match frame.kind {
            Kind::Stdout => output.extend_from_slice(&frame.body),
            Kind::Reply => return (output, frame.message().unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

fn refused(reply: Reply) -> FailureCode {
    match reply {
        Reply::Error(failure) => {
            assert!(!failure.message.is_empty());
            failure.code
        }
        other => panic!("{other:?}"),
    }
}

fn unpack(host: &mut Host, write: ArchiveWrite, archive: &[u8]) -> Reply {
    let id = host.request(&Request::ArchiveWrite(write));
    host.finish(id, Some(archive)).reply
}

fn into(folder: &Path) -> ArchiveWrite {
    ArchiveWrite { folder: target(folder), name: None }
}

/// Kind, name, target of a link, content.
type Entry<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

/// A header with any name, as a hostile archive has it.
fn entry(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, link: &str, content: &[u8]) {
    let mut header = Header::new_gnu();
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o4751);
    header.set_mtime(1_000_000_000);
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, link, content) in entries {
        entry(&mut builder, *kind, name, link, content);
    }
    builder.into_inner().unwrap()
}

#[test]
fn files_are_looked_at_as_they_are() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "content").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    symlink("nowhere", folder.path().join("link")).unwrap();
    nix::unistd::mkfifo(&folder.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let Reply::FileInfo(info) = host.ask(&Request::FileStat(target(&file))) else { panic!() };
    assert_eq!((info.kind, info.mode, info.size), (FileKind::File, 0o640, 7));
    assert_eq!(info.modified_s, fs::metadata(&file).unwrap().mtime());
    let Reply::FileList(list) = host.ask(&Request::FileList(target(&folder))) else { panic!() };
    let seen: Vec<_> = list
        .entries
        .iter()
        .map(|entry| (entry.name.as_os_str().to_str().unwrap(), entry.info.kind))
        .collect();
    assert_eq!(seen, [("fifo", FileKind::Other), ("file", FileKind::File), ("link", FileKind::Link)]);
    assert_eq!(list.entries[2].info.target, Some("nowhere".into()));
    assert!(!list.truncated);
    let missing = target(folder.path().join("missing"));
    assert_eq!(refused(host.ask(&Request::FileStat(missing))), FailureCode::NotFound);
    assert_eq!(refused(host.ask(&Request::FileStat(target("relative")))), FailureCode::Invalid);
    assert_eq!(refused(host.ask(&Request::FileList(target(&file)))), FailureCode::NotFound);
    assert_eq!(host.ask(&Request::Ping), Reply::Pong);
}

#[test]
fn a_list_has_an_end() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    for number in 0..MAX_FILES + 5 {
        fs::write(folder.path().join(number.to_string()), "").unwrap();
    }
    let Reply::FileList(list) = agent.connect().ask(&Request::FileList(target(&folder))) else { panic!() };
    assert!(list.truncated);
    assert!(list.entries.len() > 1000 && list.entries.len() <= MAX_FILES);
    assert!(list.entries.is_sorted_by(|one, other| one.name < other.name));
}

#[test]
fn a_file_is_read_whole_or_in_part() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&file, &content).unwrap();
    let read = |offset, length| Request::FileRead(FileRead { target: target(&file), offset, length });
    let (all, reply) = output(&mut host, &read(0, None));
    assert_eq!(reply, Reply::FileSent { bytes: content.len() as u64 });
    assert!(all == content);
    let (part, _) = output(&mut host, &read(1000, Some(500)));
    assert!(part == content[1000..1500]);
    assert!(output(&mut host, &read(u64::from(u32::MAX), None)).0.is_empty());
    let other = |path: &str| Request::FileRead(FileRead { target: target(path), offset: 0, length: None });
    assert_eq!(refused(output(&mut host, &other("/dev/zero")).1), FailureCode::Invalid);
    assert_eq!(refused(output(&mut host, &other("/etc")).1), FailureCode::Invalid);
    nix::unistd::mkfifo(&folder.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = folder.path().join("fifo");
    assert_eq!(refused(output(&mut host, &other(fifo.to_str().unwrap())).1), FailureCode::Invalid);
}

#[test]
fn who_does_not_read_holds_up_a_worker_and_nobody_else() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::File::create(&file).unwrap().set_len(1 << 40).unwrap();
    let read = || Request::FileRead(FileRead { target: target(&file), offset: 0, length: None });
    let id = host.request(&read());
    assert_eq!(agent.connect().ask(&Request::Ping), Reply::Pong);
    host.input(id, Input::Cancel);
    loop {
        let frame = host.frame().unwrap();
        if frame.kind == Kind::Reply {
            assert_eq!(refused(frame.message().unwrap()), FailureCode::Cancelled);
            break;
        }
    }
    // So does hanging up.
    host.request(&read());
    drop(host);
    let children = || {
        let path = format!("/proc/{0}/task/{0}/children", agent.pid());
        fs::read_to_string(path).unwrap_or_default().trim().to_owned()
    };
    eventually("the workers are gone", || children().is_empty());
}

#[test]
fn what_is_removed_is_gone_and_nothing_else() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "").unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("a/b/c")).unwrap();
    fs::write(tree.join("a/b/file"), "").unwrap();
    symlink(&outside, tree.join("a/link")).unwrap();
    let mut remove = |path: &Path, recursive| {
        host.ask(&Request::FileRemove(FileRemove { target: target(path), recursive }))
    };
    assert_eq!(refused(remove(&tree, false)), FailureCode::Failed);
    assert_eq!(remove(&tree, true), Reply::FileRemoved);
    assert!(!tree.exists() && outside.join("kept").exists());
    assert_eq!(refused(remove(&tree, true)), FailureCode::NotFound);
    assert_eq!(refused(remove(Path::new("/"), true)), FailureCode::Invalid);
    assert_eq!(refused(remove(Path::new("/.."), true)), FailureCode::Invalid);
    assert_eq!(remove(&outside.join("kept"), false), Reply::FileRemoved);
    assert_eq!(remove(&outside, false), Reply::FileRemoved);
}

#[test]
fn a_tree_goes_out_and_in_again() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    let long = "ä".repeat(120);
    let deep = tree.join(&long).join("b".repeat(200));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), vec![7; 1_000_001]).unwrap();
    fs::write(tree.join("empty"), "").unwrap();
    fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o711)).unwrap();
    symlink("/".to_owned() + &"x/".repeat(150), tree.join("link")).unwrap();
    fs::create_dir(tree.join("locked")).unwrap();
    fs::write(tree.join("locked/file"), "in").unwrap();
    fs::set_permissions(tree.join("locked"), fs::Permissions::from_mode(0o555)).unwrap();
    nix::unistd::mkfifo(&tree.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (bytes, reply) = output(&mut host, &Request::ArchiveRead(target(&tree)));
    let sent = ArchiveSummary { files: 3, folders: 4, links: 1, bytes: 1_000_003, left_out: 1 };
    assert_eq!(reply, Reply::ArchiveSent(sent));
    let mut first = Archive::new(bytes.as_slice());
    assert_eq!(first.entries().unwrap().next().unwrap().unwrap().path().unwrap(), Path::new("tree/"));

    let copy = folder.path().join("copy");
    let write = ArchiveWrite { folder: target(&folder), name: Some("copy".into()) };
    let reply = unpack(&mut host, write.clone(), &bytes);
    assert_eq!(reply, Reply::ArchiveUnpacked(ArchiveSummary { left_out: 0, ..sent }));
    assert_eq!(fs::read(copy.join(&long).join("b".repeat(200)).join("file")).unwrap(), vec![7; 1_000_001]);
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), fs::read_link(tree.join("link")).unwrap());
    for name in ["empty", "locked", "locked/file", "."] {
        let [one, other] = [&tree, &copy].map(|root| fs::metadata(root.join(name)).unwrap());
        assert_eq!((one.mode(), one.mtime()), (other.mode(), other.mtime()), "{name}");
    }
    // Once more, over what is there.
    if is_root() {
        assert!(matches!(unpack(&mut host, write, &bytes), Reply::ArchiveUnpacked(_)));
    }
    for root in [tree, copy] {
        fs::set_permissions(root.join("locked"), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn one_file_is_an_archive_too_and_so_is_a_link() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "content").unwrap();
    symlink("file", folder.path().join("link")).unwrap();
    for (name, kind) in [("file", EntryType::Regular), ("link", EntryType::Symlink)] {
        let (bytes, _) = output(&mut host, &Request::ArchiveRead(target(folder.path().join(name))));
        let mut archive = Archive::new(bytes.as_slice());
        let entries: Vec<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().header().clone()).collect();
        assert_eq!(entries.len(), 1);
        assert_eq!((entries[0].entry_type(), &*entries[0].path_bytes()), (kind, name.as_bytes()));
    }
    let missing = Request::ArchiveRead(target(folder.path().join("missing")));
    assert_eq!(refused(output(&mut host, &missing).1), FailureCode::NotFound);
}

#[test]
fn sizes_beyond_eight_gigabytes_have_their_place() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::File::create(&file).unwrap().set_len(9 << 30).unwrap();
    let id = host.request(&Request::ArchiveRead(target(&file)));
    let frame = host.frame().unwrap();
    assert_eq!(Header::from_byte_slice(&frame.body[..512]).entry_size().unwrap(), 9 << 30);
    host.input(id, Input::Cancel);
}

#[test]
fn nothing_outside_the_folder_is_written_to() {
    use EntryType::{Directory, Link, Regular, Symlink};
    let agent = Agent::start();
    let mut host = agent.connect();
    let root = tempfile::tempdir().unwrap();
    let (folder, outside) = (root.path().join("folder"), root.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    let away = outside.to_str().unwrap();
    let file = outside.join("file");
    let file = file.to_str().unwrap();
    let absolute = format!("{away}/new");
    let x: &[u8] = b"x";
    let attacks: &[(&str, &[Entry<'_>])] = &[
        ("dots", &[(Regular, "../outside/new", "", x)]),
        ("dots within", &[(Regular, "a/../../outside/new", "", x)]),
        ("only dots", &[(Directory, "..", "", b"")]),
        ("an absolute name", &[(Regular, &absolute, "", x)]),
        ("a link, and through it", &[(Symlink, "a", away, b""), (Regular, "a/new", "", x)]),
        ("a relative link", &[(Symlink, "a", "../outside", b""), (Regular, "a/new", "", x)]),
        (
            "a link to a link",
            &[(Symlink, "a", "b", b""), (Symlink, "b", away, b""), (Regular, "a/new", "", x)],
        ),
        (
            "a folder over a link",
            &[(Symlink, "a", away, b""), (Directory, "a", "", b""), (Regular, "a/new", "", x)],
        ),
        ("a folder through a link", &[(Symlink, "a", away, b""), (Directory, "a/new", "", b"")]),
        ("a link through a link", &[(Symlink, "a", away, b""), (Symlink, "a/new", "x", b"")]),
        ("a hard link to the outside", &[(Link, "a", file, b"")]),
        ("a hard link by dots", &[(Link, "a", "../outside/file", b"")]),
        ("a hard link through a link", &[(Symlink, "a", away, b""), (Link, "b", "a/file", b"")]),
        (
            "a hard link in the outside",
            &[(Regular, "f", "", x), (Symlink, "a", away, b""), (Link, "a/new", "f", b"")],
        ),
        ("what was there before", &[(Regular, "before/new", "", x)]),
        ("a file in place of the folder", &[(Regular, ".", "", x)]),
    ];
    for (name, entries) in attacks {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        fs::write(file, "kept").unwrap();
        symlink(&outside, folder.join("before")).unwrap();
        let reply = unpack(&mut host, into(&folder), &archive(entries));
        assert_eq!(refused(reply), FailureCode::Invalid, "{name}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{name}");
        assert_eq!(fs::read(file).unwrap(), b"kept", "{name}");
        assert_eq!(fs::metadata(file).unwrap().nlink(), 1, "{name}");
    }
    // A link that leads away is a link, and what replaces it or a hard link is a new file.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).unwrap();
    fs::hard_link(file, folder.join("hard")).unwrap();
    symlink(file, folder.join("soft")).unwrap();
    let entries: &[Entry<'_>] = &[
        (Regular, "hard", "", b"new"),
        (Regular, "soft", "", b"new"),
        (Regular, "one", "", b"one"),
        (Link, "two", "one", b""),
        (Regular, "two", "", b"other"),
        (Symlink, "away", file, b""),
        (Regular, "away", "", b"new"),
    ];
    assert!(matches!(unpack(&mut host, into(&folder), &archive(entries)), Reply::ArchiveUnpacked(_)));
    assert_eq!(fs::read(file).unwrap(), b"kept");
    for (name, content) in
        [("hard", "new"), ("soft", "new"), ("one", "one"), ("two", "other"), ("away", "new")]
    {
        assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), content);
        assert!(fs::symlink_metadata(folder.join(name)).unwrap().is_file());
    }
    for name in ["..", "a/b", "", "/", "."] {
        let write = ArchiveWrite { folder: target(&folder), name: Some(name.into()) };
        assert_eq!(
            refused(unpack(&mut host, write, &archive(&[(Regular, "a", "", x)]))),
            FailureCode::Invalid
        );
    }
}

#[test]
fn set_id_bits_and_devices_are_left_out() {
    use EntryType::{Block, Char, Fifo, Regular};
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let entries: &[Entry<'_>] = &[
        (Regular, "file", "", b"x"),
        (Char, "char", "", b""),
        (Block, "block", "", b""),
        (Fifo, "fifo", "", b""),
    ];
    let reply = unpack(&mut agent.connect(), into(folder.path()), &archive(entries));
    let summary = ArchiveSummary { files: 1, bytes: 1, left_out: 3, ..ArchiveSummary::default() };
    assert_eq!(reply, Reply::ArchiveUnpacked(summary));
    let metadata = fs::metadata(folder.path().join("file")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o751, 1_000_000_000));
    assert!(!metadata.file_type().is_fifo());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn what_is_no_archive_is_refused() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let folder = tempfile::tempdir().unwrap();
    let whole = archive(&[(EntryType::Regular, "file", "", &[7; 5000])]);
    assert_eq!(refused(unpack(&mut host, into(folder.path()), &[b'x'; 2000])), FailureCode::Invalid);
    assert_eq!(refused(unpack(&mut host, into(folder.path()), &whole[..3000])), FailureCode::Invalid);
    let missing = into(&folder.path().join("missing"));
    assert_eq!(refused(unpack(&mut host, missing, &whole)), FailureCode::NotFound);
    // Megabytes behind the end are no trouble, and nor are those of a file that cannot be there.
    let much = [whole, vec![0; 5_000_000]].concat();
    assert!(matches!(unpack(&mut host, into(folder.path()), &much), Reply::ArchiveUnpacked(_)));
    fs::create_dir(folder.path().join("taken")).unwrap();
    let large = archive(&[(EntryType::Regular, "taken", "", &[7; 5_000_000])]);
    assert_eq!(refused(unpack(&mut host, into(folder.path()), &large)), FailureCode::Invalid);
    assert_eq!(host.ask(&Request::Ping), Reply::Pong);
    let id = host.request(&Request::ArchiveWrite(into(folder.path())));
    for _ in 0..20 {
        host.stdin(id, &vec![0; STDIN_WINDOW as usize]);
    }
    while host.frame().is_some() {}
}

#[test]
fn a_user_may_do_what_the_user_may_do() {
    if !is_root() {
        return;
    }
    let agent = Agent::start();
    let mut host = agent.connect();
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o711)).unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let read =
        |user: &str| Request::FileRead(FileRead { target: as_user(&secret, user), offset: 0, length: None });
    assert_eq!(refused(output(&mut host, &read("54321:54321")).1), FailureCode::Denied);
    assert_eq!(output(&mut host, &read("0")).0, b"secret");
    assert_eq!(refused(output(&mut host, &read("nobody-of-that-name")).1), FailureCode::Invalid);
    let remove = FileRemove { target: as_user(&secret, "54321:54321"), recursive: false };
    assert_eq!(refused(host.ask(&Request::FileRemove(remove))), FailureCode::Denied);
    let own = folder.path().join("own");
    fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(54321), Some(54321)).unwrap();
    let write = ArchiveWrite { folder: as_user(&own, "54321:54321"), name: None };
    let bytes = archive(&[(EntryType::Regular, "a/file", "", b"x")]);
    assert!(matches!(unpack(&mut host, write, &bytes), Reply::ArchiveUnpacked(_)));
    assert_eq!(fs::metadata(own.join("a/file")).unwrap().uid(), 54321);
}
