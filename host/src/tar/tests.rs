//! What is written is read, and other implementations agree.

use super::reader::LONGEST_EXTENSION;
use super::writer::header;
use super::*;

use proptest::prelude::*;
use std::io::Read as _;
use std::process::{Command, Stdio};

fn entry(name: &[u8], kind: Kind) -> Entry {
    Entry { name: name.to_vec(), kind, mode: 0o644, modified: 1_700_000_000 }
}

fn read(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(archive);
    let mut found = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut content = Vec::new();
        reader.read_to_end(&mut content)?;
        found.push((entry, content));
    }
    Ok(found)
}

fn written(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in entries {
        match &entry.kind {
            Kind::File { size } => writer.file(entry, *size, content.as_slice()).unwrap(),
            _ => writer.entry(entry).unwrap(),
        }
    }
    writer.finish().unwrap()
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(1_u8.., 1..300).prop_filter("a folder's", |name| !name.ends_with(b"/"))
}

proptest! {
    #[test]
    fn what_was_written_is_read(
        files in proptest::collection::vec((names(), proptest::collection::vec(any::<u8>(), 0..1500)), 0..6),
        links in proptest::collection::vec((names(), names()), 0..6),
    ) {
        let mut entries: Vec<(Entry, Vec<u8>)> = files
            .into_iter()
            .map(|(name, content)| (entry(&name, Kind::File { size: content.len() as u64 }), content))
            .collect();
        entries.extend(links.into_iter().map(|(name, target)| (entry(&name, Kind::Symlink { target }), Vec::new())));
        prop_assert_eq!(read(&written(&entries)).unwrap(), entries);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..3000),
        repair in any::<bool>(),
        kind in proptest::sample::select(b"01235LKxgS7".to_vec()),
    ) {
        if repair && bytes.len() >= BLOCK {
            let mut first = [0; BLOCK];
            first.copy_from_slice(&bytes[..BLOCK]);
            first[156] = kind;
            first[124..136].copy_from_slice(b"00000001000\0");
            let sum = checksum(&first);
            first[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            bytes[..BLOCK].copy_from_slice(&first);
        }
        let _ = read(&bytes);
    }
}

/// Sizes, names and links as another implementation writes and reads them.
#[test]
fn gnu_tar_understands_it_and_is_understood() {
    let dir = tempfile::tempdir().unwrap();
    let long = "long".repeat(40);
    std::fs::create_dir_all(dir.path().join("in").join(&long)).unwrap();
    std::fs::write(dir.path().join("in").join(&long).join("f"), "content").unwrap();
    std::os::unix::fs::symlink(&long, dir.path().join("in/link")).unwrap();
    for format in ["gnu", "posix", "ustar", "v7"] {
        let tar = Command::new("tar")
            .args(["--create", "--format", format, "--sort=name", "--directory"])
            .arg(dir.path())
            .arg(if format == "v7" { "in/link" } else { "in" })
            .stderr(Stdio::null())
            .output()
            .unwrap();
        let found = read(&tar.stdout).unwrap();
        if format == "posix" || format == "gnu" {
            assert!(tar.status.success());
            assert_eq!(found.len(), 4, "{format}");
            let mut names: Vec<&[u8]> = found.iter().map(|(entry, _)| entry.name.as_slice()).collect();
            names.sort_unstable();
            let (folder, file) = (format!("in/{long}/"), format!("in/{long}/f"));
            assert_eq!(names, [&b"in/"[..], b"in/link", folder.as_bytes(), file.as_bytes()]);
            let (file, content) = found.iter().find(|(entry, _)| entry.name.ends_with(b"/f")).unwrap();
            assert_eq!((&file.kind, content.as_slice()), (&Kind::File { size: 7 }, &b"content"[..]));
            let (link, _) = found.iter().find(|(entry, _)| entry.name == b"in/link").unwrap();
            assert_eq!(link.kind, Kind::Symlink { target: long.clone().into() }, "{format}");
        }
    }
    let name = format!("out/{}", "n".repeat(200));
    let ours = written(&[
        (entry(b"out", Kind::Folder), Vec::new()),
        (entry(name.as_bytes(), Kind::File { size: 600 }), vec![7; 600]),
    ]);
    std::fs::write(dir.path().join("ours.tar"), ours).unwrap();
    let done = Command::new("tar").arg("-xf").arg("ours.tar").current_dir(dir.path()).status().unwrap();
    assert!(done.success());
    assert_eq!(std::fs::read(dir.path().join(name)).unwrap(), vec![7; 600]);
}

#[test]
fn a_file_that_shrinks_is_filled_up_and_one_that_grows_is_cut() {
    let mut writer = Writer::new(Vec::new());
    writer.file(&entry(b"short", Kind::File { size: 700 }), 700, &[1; 3][..]).unwrap();
    writer.file(&entry(b"long", Kind::File { size: 2 }), 2, &[1; 3][..]).unwrap();
    let found = read(&writer.finish().unwrap()).unwrap();
    assert_eq!(found[0].1, [vec![1; 3], vec![0; 697]].concat());
    assert_eq!(found[1].1, [1, 1]);
}

#[test]
fn sizes_beyond_octal_digits_survive() {
    let block = header(b"huge", b'0', 1 << 40, b"", 0o600, 0);
    let mut reader = Reader::new(&block[..]);
    assert_eq!(reader.next().unwrap().unwrap().kind, Kind::File { size: 1 << 40 });
    assert!(matches!(reader.next(), Err(TarError::Io(_))), "it is not there");
}

#[test]
fn names_and_extensions_have_an_end() {
    for (kind, size) in [(b'L', 1 << 40), (b'K', LONGEST_NAME as u64 + 2), (b'x', LONGEST_EXTENSION + 1)] {
        let block = header(b"x", kind, size, b"", 0, 0);
        assert!(matches!(Reader::new(&block[..]).next(), Err(TarError::LongName)));
    }
}

#[test]
fn a_length_of_pax_that_points_nowhere_is_refused() {
    for record in ["3 a=b\n", "0 path=x\n", "99 path=x\n", "path=x\n", "18446744073709551615 a=b\n"] {
        let mut archive = header(b"x", b'x', record.len() as u64, b"", 0, 0).to_vec();
        archive.extend(record.as_bytes());
        archive.resize(2 * BLOCK, 0);
        assert!(matches!(read(&archive), Err(TarError::Pax)), "{record}");
    }
}
