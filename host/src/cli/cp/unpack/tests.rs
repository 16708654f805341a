//! Archives that are what they should be, and such that are not.

use super::super::pack::pack;
use super::*;
use crate::tar::Writer;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

/// A folder to unpack into, beside one with a secret.
struct Scene(tempfile::TempDir);

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        for name in ["in", "outside"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        Scene(dir)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// Unpacks these as `out` in the folder.
    fn unpack(&self, entries: &[(&[u8], Kind, u32)]) -> Result<Vec<OsString>, UnpackError> {
        let mut left_out = Vec::new();
        let land = |_: &Kind| Destination::new(&self.path("in"), Some("out".into()));
        unpack(archive(entries).as_slice(), land, &mut |name| left_out.push(name.to_owned()))?;
        Ok(left_out)
    }

    /// What is anywhere, with folders before what is in them.
    fn tree(&self, path: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.path(path)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                found.push(entry.path().strip_prefix(self.path(path)).unwrap().display().to_string());
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        found.sort();
        found
    }

    fn assert_outside_unharmed(&self) {
        assert_eq!(self.tree("outside"), ["secret"]);
        assert_eq!(fs::read_to_string(self.path("outside/secret")).unwrap(), "secret");
        assert!(!self.tree("in").iter().any(|name| name.contains(".firn-")), "{:?}", self.tree("in"));
    }
}

/// Files hold `new`.
fn archive(entries: &[(&[u8], Kind, u32)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (name, kind, mode) in entries {
        let entry = Entry { name: name.to_vec(), kind: kind.clone(), mode: *mode, modified: 1_600_000_000 };
        match kind {
            Kind::File { size } => writer.file(&entry, *size, &b"new"[..]).unwrap(),
            _ => writer.entry(&entry).unwrap(),
        }
    }
    writer.finish().unwrap()
}

const FILE: Kind = Kind::File { size: 3 };

fn to(target: &Path) -> Vec<u8> {
    target.as_os_str().as_bytes().to_vec()
}

#[test]
fn files_folders_and_links_arrive() {
    let scene = Scene::new();
    let name = b"top/\xff\n";
    let left_out = scene
        .unpack(&[
            (b"top", Kind::Folder, 0o2777),
            (name, FILE, 0o6777),
            (b"top/sub/deep/file", FILE, 0o600),
            (b"top/link", Kind::Symlink { target: b"../nowhere".to_vec() }, 0o777),
            (b"top/other", Kind::HardLink { target: b"top/sub/deep/file".to_vec() }, 0o600),
            (b"top/pipe", Kind::Special, 0o600),
        ])
        .unwrap();
    assert_eq!(left_out, ["top/pipe"]);
    let out = scene.path("in/out");
    let file = out.join(OsStr::from_bytes(b"\xff\n"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    let about = fs::metadata(&file).unwrap();
    assert_eq!((about.mode() & 0o7777, about.mtime()), (0o755, 1_600_000_000));
    assert_eq!(fs::metadata(&out).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::read_link(out.join("link")).unwrap(), Path::new("../nowhere"));
    let same = |path: &str| fs::metadata(out.join(path)).unwrap().ino();
    assert_eq!(same("other"), same("sub/deep/file"));
    assert!(!out.join("pipe").exists());
    scene.assert_outside_unharmed();
}

#[test]
fn no_name_leads_out() {
    for name in ["../x", "top/../../x", "/etc/x", "top/..", "..", "elsewhere", "top2/x", "a/b"] {
        let scene = Scene::new();
        let refused = scene.unpack(&[(b"top", Kind::Folder, 0o755), (name.as_bytes(), FILE, 0o644)]);
        assert!(matches!(refused, Err(UnpackError::Outside(_))), "{name}: {refused:?}");
        assert_eq!(scene.tree("in"), ["out"], "{name}");
        scene.assert_outside_unharmed();
        let first = scene.unpack(&[(format!("{name}/y").as_bytes(), FILE, 0o644)]);
        assert!(matches!(first, Err(UnpackError::Outside(_))), "{name}: {first:?}");
    }
}

#[test]
fn nothing_is_written_through_a_link() {
    let scene = Scene::new();
    let outside = scene.path("outside");
    let link = |target: &Path| Kind::Symlink { target: to(target) };
    // Into a folder that is a link, which came first or is there already.
    let refused = scene.unpack(&[
        (b"top", Kind::Folder, 0o755),
        (b"top/link", link(&outside), 0o777),
        (b"top/link/secret", FILE, 0o644),
    ]);
    assert!(matches!(refused, Err(UnpackError::Replace { .. })), "{refused:?}");
    let refused = scene.unpack(&[(b"top", Kind::Folder, 0o755), (b"top/link", Kind::Folder, 0o755)]);
    assert!(matches!(refused, Err(UnpackError::Replace { .. })), "{refused:?}");
    scene.assert_outside_unharmed();
    // A file takes the place of a link to a file.
    scene
        .unpack(&[
            (b"top", Kind::Folder, 0o755),
            (b"top/file", link(&outside.join("secret")), 0o777),
            (b"top/file", FILE, 0o644),
        ])
        .unwrap();
    assert!(fs::symlink_metadata(scene.path("in/out/file")).unwrap().is_file());
    scene.assert_outside_unharmed();
    // The top itself.
    let scene = Scene::new();
    let refused = scene.unpack(&[(b"top", link(&outside), 0o777), (b"top/secret", FILE, 0o644)]);
    assert!(matches!(refused, Err(UnpackError::Replace { .. })), "{refused:?}");
    scene.assert_outside_unharmed();
}

#[test]
fn only_what_was_sent_gets_another_name() {
    let scene = Scene::new();
    fs::create_dir(scene.path("in/out")).unwrap();
    fs::write(scene.path("in/out/theirs"), "theirs").unwrap();
    let outside = scene.path("outside");
    let hard = |target: &[u8]| Kind::HardLink { target: target.to_vec() };
    for target in [
        b"top/theirs".to_vec(),
        b"../outside/secret".to_vec(),
        to(&outside.join("secret")),
        b"top/link".to_vec(),
        b"top/link/secret".to_vec(),
        b"top/missing".to_vec(),
        b"top".to_vec(),
    ] {
        let refused = scene.unpack(&[
            (b"top", Kind::Folder, 0o755),
            (b"top/link", Kind::Symlink { target: to(&outside) }, 0o777),
            (b"top/new", hard(&target), 0o644),
        ]);
        assert!(refused.is_err(), "{target:?}");
        assert!(!scene.path("in/out/new").exists(), "{target:?}");
        scene.assert_outside_unharmed();
    }
    // A second name for a file under the name it has is no loss.
    scene
        .unpack(&[(b"top", Kind::Folder, 0o755), (b"top/a", FILE, 0o644), (b"top/a", hard(b"top/a"), 0o644)])
        .unwrap();
    scene.assert_outside_unharmed();
}

#[test]
fn folders_and_files_do_not_replace_each_other() {
    let scene = Scene::new();
    fs::create_dir_all(scene.path("in/out/folder")).unwrap();
    fs::write(scene.path("in/out/file"), "old").unwrap();
    for (name, kind) in [
        (&b"top/folder"[..], FILE),
        (b"top/folder", Kind::Symlink { target: b"x".to_vec() }),
        (b"top/file", Kind::Folder),
    ] {
        let refused = scene.unpack(&[(b"top", Kind::Folder, 0o755), (name, kind, 0o755)]);
        assert!(matches!(refused, Err(UnpackError::Replace { .. })), "{refused:?}");
    }
    assert_eq!(fs::read_to_string(scene.path("in/out/file")).unwrap(), "old");
    scene.unpack(&[(b"top", Kind::Folder, 0o755), (b"top/file", FILE, 0o600)]).unwrap();
    assert_eq!(fs::read_to_string(scene.path("in/out/file")).unwrap(), "new");
    scene.assert_outside_unharmed();
}

#[test]
fn what_breaks_off_leaves_no_half_file() {
    let scene = Scene::new();
    fs::create_dir(scene.path("in/out")).unwrap();
    fs::write(scene.path("in/out/file"), "old").unwrap();
    let whole = archive(&[(b"top", Kind::Folder, 0o755), (b"top/file", Kind::File { size: 5000 }, 0o644)]);
    for end in [600, 1000, 1024, 1030, 4000] {
        let land = |_: &Kind| Destination::new(&scene.path("in"), Some("out".into()));
        let broken = unpack(&whole[..end], land, &mut |_| ());
        assert!(broken.is_err() || end <= 1024, "{end}");
        assert_eq!(fs::read_to_string(scene.path("in/out/file")).unwrap(), "old", "{end}");
        assert_eq!(scene.tree("in"), ["out", "out/file"], "{end}");
    }
    assert!(matches!(unpack(&[][..], |_| panic!(), &mut |_| ()), Err(UnpackError::Empty)));
}

/// What is in `out` of a copy of `from` to `to`, or the error.
fn copied(scene: &Scene, from: &str, to: &str) -> Result<(), String> {
    let mut bytes = Vec::new();
    pack(&scene.path(from), OsStr::new("sent"), &mut bytes, &mut |_| ()).unwrap();
    let name = super::super::name(OsStr::new(from)).map(OsStr::to_owned);
    let to = PathBuf::from(format!("{}/{to}", scene.0.path().display()));
    let land = |kind: &Kind| Destination::choose(&to, name.as_deref(), kind);
    unpack(bytes.as_slice(), land, &mut |_| ()).map_err(|error| error.to_string())
}

#[test]
fn a_copy_goes_where_docker_puts_it() {
    let scene = Scene::new();
    fs::write(scene.path("file"), "f").unwrap();
    fs::create_dir(scene.path("folder")).unwrap();
    fs::write(scene.path("folder/x"), "x").unwrap();
    std::os::unix::fs::symlink("in", scene.path("link-in")).unwrap();
    for (from, to, made) in [
        ("file", "in/a", "in/a"),
        ("file", "in", "in/file"),
        ("file", "in/a", "in/a"),
        ("file", "link-in/b", "in/b"),
        ("file", "link-in", "in/file"),
        ("folder", "in/new", "in/new/x"),
        ("folder", "in/new", "in/new/folder/x"),
        ("folder/.", "in/same", "in/same/x"),
        ("folder/.", "in", "in/x"),
    ] {
        copied(&scene, from, to).unwrap();
        assert!(scene.path(made).is_file(), "{from} to {to}: {:?}", scene.tree("in"));
    }
    for (from, to) in
        [("file", "in/missing/"), ("file", "in/missing/x"), ("folder", "in/a"), ("folder", "in/no/such")]
    {
        assert!(copied(&scene, from, to).is_err(), "{from} to {to}");
    }
    nix::unistd::mkfifo(&scene.path("in/pipe"), Mode::from_bits_truncate(0o600)).unwrap();
    assert!(copied(&scene, "file", "in/pipe").unwrap_err().contains("cannot replace"));
}

#[test]
fn a_deep_folder_is_packed_with_few_descriptors() {
    use nix::fcntl::{OFlag, open, openat};
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const DEPTH: usize = 1200;
    let scene = Scene::new();
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut folder = open(&scene.path("in"), flags, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        nix::sys::stat::mkdirat(&folder, "d", Mode::from_bits_truncate(0o755)).unwrap();
        folder = openat(&folder, "d", flags, Mode::empty()).unwrap();
    }
    // After the deepest, on the way up.
    fs::write(scene.path("in/d/d/e"), "e").unwrap();
    drop(folder);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
    let mut bytes = Vec::new();
    let packed = pack(&scene.path("in"), OsStr::new("x"), &mut bytes, &mut |_| ());
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(4096)), hard).unwrap();
    packed.unwrap();
    let mut reader = Reader::new(bytes.as_slice());
    let mut names = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        names.push(entry.name);
    }
    assert_eq!(names.len(), 1 + DEPTH + 1);
    assert_eq!(names.last().unwrap(), b"x/d/d/e");
    assert_eq!(names[DEPTH].iter().filter(|byte| **byte == b'd').count(), DEPTH);
}

#[test]
fn what_is_packed_is_unpacked() {
    let scene = Scene::new();
    let from = scene.path("from");
    fs::create_dir_all(from.join("deep/er")).unwrap();
    fs::write(from.join("deep/er").join(OsStr::from_bytes(b"a\n\xfe")), [0, 255, 10]).unwrap();
    fs::write(from.join("empty"), "").unwrap();
    fs::write(from.join("big"), vec![7; 300_000]).unwrap();
    fs::set_permissions(from.join("big"), fs::Permissions::from_mode(0o4711)).unwrap();
    std::os::unix::fs::symlink("/nowhere", from.join("link")).unwrap();
    nix::unistd::mkfifo(&from.join("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
    let mut left_out = Vec::new();
    let mut bytes = Vec::new();
    pack(&from, OsStr::new("x"), &mut bytes, &mut |name| left_out.push(name.to_owned())).unwrap();
    assert_eq!(left_out, [from.join("pipe").into_os_string()]);
    let land = |_: &Kind| Destination::new(&scene.path("in"), Some("to".into()));
    unpack(bytes.as_slice(), land, &mut |_| ()).unwrap();
    let to = scene.path("in/to");
    fs::remove_file(from.join("pipe")).unwrap();
    assert_eq!(scene.tree("in/to"), scene.tree("from"));
    assert_eq!(fs::read(to.join("deep/er").join(OsStr::from_bytes(b"a\n\xfe"))).unwrap(), [0, 255, 10]);
    assert_eq!(fs::read(to.join("big")).unwrap(), vec![7; 300_000]);
    assert_eq!(fs::metadata(to.join("big")).unwrap().mode() & 0o7777, 0o711);
    assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/nowhere"));
    assert!(pack(&scene.path("in/none"), OsStr::new("x"), Vec::new(), &mut |_| ()).is_err());
}
