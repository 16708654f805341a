//! An archive out of a sandbox becomes files of the host's.
//!
//! The archive is an adversary's: it may name anything. Every name is walked from the folder that was
//! opened at the start, one component at a time and following no link, so nothing outside is reached,
//! whatever was unpacked before or lies there. A file is written under a name of its own and gets its
//! own at the end, so nothing that exists is written into, and nothing half-written is ever seen under
//! a name that was asked for. Files belong to the caller; of the permissions the set-id bits, the sticky
//! bit and those to write for others are dropped. What is neither file, folder nor link is left out.

use super::tar::{Entry, Kind, Reader, TarError};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// How many files are remembered, to be linked to: a bound for memory, not for what is copied.
const MOST_LINKABLE: usize = 1 << 20;

/// The permissions that are kept.
const PERMISSIONS: u32 = 0o755;

/// The permissions that folders have in any case: what is in them has to be written.
const OF_FOLDERS: u32 = 0o700;

/// Where the archive's one file, folder or link goes.
#[derive(Debug)]
pub(super) struct Destination {
    folder: OwnedFd,
    /// Its name there. None: it is a folder, and what is in it goes into `folder` itself.
    name: Option<OsString>,
    /// How the folder is called, for errors.
    path: PathBuf,
}

/// What is in the archive was not unpacked, or not all of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// The archive cannot be read.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// There is nothing in it.
    #[error("the sandbox sent nothing")]
    Empty,
    /// A name that leads elsewhere.
    #[error("the sandbox sent {0:?}, which is not within what was asked for: nothing more was copied")]
    Outside(OsString),
    /// A link to what this copy did not make.
    #[error("the sandbox sent {0:?} as another name of a file that it did not send")]
    Stray(OsString),
    /// A folder where a file should go, or the other way round.
    #[error("cannot replace {path:?} by {new}")]
    Replace {
        /// What is there.
        path: PathBuf,
        /// What was to be there.
        new: &'static str,
    },
    /// A step failed.
    #[error("cannot {action} {path:?}")]
    File {
        /// What was done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> UnpackError {
    move |errno| UnpackError::File { action, path: path.to_owned(), source: errno.into() }
}

impl Destination {
    /// What `cp` of docker would choose for what is called `name` and is of `kind`: in the folder `path`,
    /// if there is one; else as `path`. No `name`: what is in it, not itself.
    pub(super) fn choose(path: &Path, name: Option<&OsStr>, kind: &Kind) -> Result<Destination, UnpackError> {
        let new = if *kind == Kind::Folder { "a folder" } else { "a file" };
        let replace = || UnpackError::Replace { path: path.to_owned(), new };
        let at = |path: &Path| {
            let name = path.file_name().ok_or_else(replace)?;
            let within = path.parent().filter(|within| !within.as_os_str().is_empty());
            Destination::new(within.unwrap_or(Path::new(".")), Some(name.to_owned()))
        };
        let looking = |source| UnpackError::File { action: "look at", path: path.to_owned(), source };
        match std::fs::metadata(path) {
            Ok(there) if there.is_dir() => Destination::new(path, name.map(OsStr::to_owned)),
            // A device is not a file to be replaced, whatever the name looks like.
            Ok(there) if there.is_file() && *kind != Kind::Folder => {
                // Through the links that lead to it: the caller named them.
                at(&std::fs::canonicalize(path).map_err(looking)?)
            }
            Ok(_) => Err(replace()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if path.as_os_str().as_bytes().ends_with(b"/") && *kind != Kind::Folder {
                    return Err(looking(error));
                }
                at(path)
            }
            Err(error) => Err(looking(error)),
        }
    }

    /// As `name` in the folder at `path`, which may be named through links: the caller chose it.
    pub(super) fn new(path: &Path, name: Option<OsString>) -> Result<Destination, UnpackError> {
        let folder = openat(AT_FDCWD, path, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(failed("open the folder", path))?;
        Ok(Destination { folder, name, path: path.to_owned() })
    }
}

/// Unpacks `archive` where `land` says when it is told what the archive holds, and tells of what is left
/// out.
pub(super) fn unpack(
    archive: impl Read,
    land: impl FnOnce(&Kind) -> Result<Destination, UnpackError>,
    left_out: &mut dyn FnMut(&OsStr),
) -> Result<(), UnpackError> {
    let mut archive = Reader::new(archive);
    let first = archive.next()?.ok_or(UnpackError::Empty)?;
    let top = components(&first)?;
    if top.len() > 1 {
        return Err(UnpackError::Outside(shown(&first)));
    }
    let to = land(&first.kind)?;
    let mut unpacking = Unpacking { to: &to, linkable: HashSet::new(), last: None };
    let mut next = Some(first);
    while let Some(entry) = next {
        let below = below(components(&entry)?, &top).ok_or_else(|| UnpackError::Outside(shown(&entry)))?;
        unpacking.entry(&entry, below, &top, &mut archive, left_out)?;
        next = archive.next()?;
    }
    Ok(())
}

/// The parts of an entry's name.
fn components(entry: &Entry) -> Result<Vec<OsString>, UnpackError> {
    parts(&entry.name).ok_or_else(|| UnpackError::Outside(shown(entry)))
}

/// The parts of a name. None: it is absolute, or leads upwards.
fn parts(name: &[u8]) -> Option<Vec<OsString>> {
    if name.starts_with(b"/") {
        return None;
    }
    let parts = name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    // No kernel takes a NUL in a name, and it would say so with an error about something else.
    let sound =
        |part: &[u8]| (part != b".." && !part.contains(&0)).then(|| OsString::from_vec(part.to_vec()));
    parts.map(sound).collect()
}

/// What follows `top`.
fn below(mut parts: Vec<OsString>, top: &[OsString]) -> Option<Vec<OsString>> {
    parts.starts_with(top).then(|| parts.split_off(top.len()))
}

fn shown(entry: &Entry) -> OsString {
    OsString::from_vec(entry.name.clone())
}

/// An unpacking under way.
#[derive(Debug)]
struct Unpacking<'a> {
    to: &'a Destination,
    /// The files that were made.
    linkable: HashSet<(u64, u64)>,
    /// The folder that was written to last: mostly the next one too.
    last: Option<(Vec<OsString>, OwnedFd)>,
}

impl Unpacking<'_> {
    fn entry(
        &mut self,
        entry: &Entry,
        below: Vec<OsString>,
        top: &[OsString],
        content: &mut impl Read,
        left_out: &mut dyn FnMut(&OsStr),
    ) -> Result<(), UnpackError> {
        let mut parts: Vec<OsString> = self.to.name.iter().cloned().chain(below).collect();
        let path = self.path(&parts);
        let Some(name) = parts.pop() else {
            // The folder itself, which is there.
            return match entry.kind {
                Kind::Folder => Ok(()),
                _ => Err(UnpackError::Replace { path, new: "a file" }),
            };
        };
        if entry.kind == Kind::Special {
            left_out(&shown(entry));
            return Ok(());
        }
        let made = match &entry.kind {
            Kind::HardLink { target } => {
                let stray = || UnpackError::Stray(shown(entry));
                let target =
                    self::parts(target).and_then(|parts| self::below(parts, top)).ok_or_else(stray)?;
                Some(self.linkable_file(target)?.ok_or_else(stray)?)
            }
            _ => None,
        };
        let folder = self.folder(parts)?;
        match &entry.kind {
            Kind::Folder => {
                let mode = Mode::from_bits_truncate(entry.mode & PERMISSIONS | OF_FOLDERS);
                make_folder(folder, &name, mode, &path)?;
            }
            Kind::Symlink { target } => symlink(folder, &name, OsStr::from_bytes(target), entry, &path)?,
            Kind::File { .. } => {
                let file = write(folder, &name, content, entry, &path)?;
                if self.linkable.len() < MOST_LINKABLE {
                    self.linkable.insert(file);
                }
            }
            Kind::HardLink { .. } | Kind::Special => {
                if let Some((from, old)) = made {
                    link(&from, &old, folder, &name, &path)?;
                }
            }
        }
        Ok(())
    }

    fn path(&self, parts: &[OsString]) -> PathBuf {
        self.to.path.iter().chain(parts.iter().map(OsString::as_os_str)).collect()
    }

    /// The folder of this name, opened. What is missing of it is made.
    fn folder(&mut self, parts: Vec<OsString>) -> Result<&OwnedFd, UnpackError> {
        if self.last.as_ref().is_none_or(|(last, _)| *last != parts) {
            let mut folder = self.to.folder.try_clone().map_err(|source| UnpackError::File {
                action: "open",
                path: self.to.path.clone(),
                source,
            })?;
            for (index, part) in parts.iter().enumerate() {
                let path = self.path(&parts[..=index]);
                folder = make_folder(&folder, part, Mode::from_bits_truncate(PERMISSIONS), &path)?;
            }
            self.last = None;
            return Ok(&self.last.insert((parts, folder)).1);
        }
        match &self.last {
            Some((_, folder)) => Ok(folder),
            None => Ok(&self.to.folder),
        }
    }

    /// The folder and the name of a file that this unpacking made: nothing else may get another name.
    fn linkable_file(&mut self, below: Vec<OsString>) -> Result<Option<(OwnedFd, OsString)>, UnpackError> {
        let mut parts: Vec<OsString> = self.to.name.iter().cloned().chain(below).collect();
        let path = self.path(&parts);
        let Some(name) = parts.pop() else { return Ok(None) };
        let folder = self.folder(parts)?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let about = match openat(folder, name.as_os_str(), flags, Mode::empty()) {
            Ok(file) => File::from(file).metadata(),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => Err(errno.into()),
        };
        let folder = folder.try_clone();
        let in_vain = |source| UnpackError::File { action: "look at", path, source };
        let (about, folder) = about.and_then(|about| Ok((about, folder?))).map_err(in_vain)?;
        let ours = about.is_file() && self.linkable.contains(&(about.dev(), about.ino()));
        Ok(ours.then_some((folder, name)))
    }
}

/// Makes a folder, if it is not there, and opens it.
fn make_folder(within: &OwnedFd, name: &OsStr, mode: Mode, path: &Path) -> Result<OwnedFd, UnpackError> {
    match mkdirat(within, name, mode) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(failed("make the folder", path)(errno)),
    }
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(within, name, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::ENOTDIR | Errno::ELOOP => UnpackError::Replace { path: path.to_owned(), new: "a folder" },
        errno => failed("open the folder", path)(errno),
    })
}

/// A name that nobody else has, until it is [given up](Temporary::becomes). Dropping it removes what
/// has it.
#[derive(Debug)]
struct Temporary<'a> {
    folder: &'a OwnedFd,
    name: OsString,
}

impl<'a> Temporary<'a> {
    fn new(folder: &'a OwnedFd, path: &Path) -> Result<Temporary<'a>, UnpackError> {
        let random = getrandom::u64().map_err(|error| UnpackError::File {
            action: "choose a name beside",
            path: path.to_owned(),
            source: io::Error::other(error),
        })?;
        Ok(Temporary { folder, name: format!(".firn-{random:016x}").into() })
    }

    /// Gives what has this name its own, which takes the place of a file or link that had it.
    fn becomes(self, name: &OsStr, new: &'static str, path: &Path) -> Result<(), UnpackError> {
        renameat(self.folder, self.name.as_os_str(), self.folder, name).map_err(|errno| match errno {
            Errno::EISDIR | Errno::ENOTEMPTY | Errno::EEXIST => {
                UnpackError::Replace { path: path.to_owned(), new }
            }
            errno => failed("write", path)(errno),
        })
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // Renaming one name of a file to another name of the same file does nothing: both stay
        // (rename(2)). So this is done in any case.
        let _ = unlinkat(self.folder, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
    }
}

fn write(
    folder: &OwnedFd,
    name: &OsStr,
    content: &mut impl Read,
    entry: &Entry,
    path: &Path,
) -> Result<(u64, u64), UnpackError> {
    let temporary = Temporary::new(folder, path)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(folder, temporary.name.as_os_str(), flags, Mode::from_bits_truncate(0o600))
        .map_err(failed("write", path))?;
    let mut file = File::from(file);
    let writing = |source| UnpackError::File { action: "write", path: path.to_owned(), source };
    io::copy(content, &mut file).map_err(writing)?;
    let about = file.metadata().map_err(writing)?;
    fchmod(&file, Mode::from_bits_truncate(entry.mode & PERMISSIONS)).map_err(failed("write", path))?;
    let time = TimeSpec::new(entry.modified, 0);
    // A file system that has no such time loses nothing that matters.
    let _ = futimens(file.as_fd(), &time, &time);
    // What a network's file system could not write it says now.
    nix::unistd::close(file).map_err(failed("write", path))?;
    temporary.becomes(name, "a file", path)?;
    Ok((about.dev(), about.ino()))
}

fn symlink(
    folder: &OwnedFd,
    name: &OsStr,
    target: &OsStr,
    entry: &Entry,
    path: &Path,
) -> Result<(), UnpackError> {
    let temporary = Temporary::new(folder, path)?;
    symlinkat(target, folder, temporary.name.as_os_str()).map_err(failed("make the link", path))?;
    let time = TimeSpec::new(entry.modified, 0);
    let flags = UtimensatFlags::NoFollowSymlink;
    let _ = utimensat(folder, temporary.name.as_os_str(), &time, &time, flags);
    temporary.becomes(name, "a link", path)
}

fn link(from: &OwnedFd, old: &OsStr, folder: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), UnpackError> {
    let temporary = Temporary::new(folder, path)?;
    linkat(from, old, folder, temporary.name.as_os_str(), AtFlags::empty())
        .map_err(failed("make the link", path))?;
    temporary.becomes(name, "a file", path)
}

#[cfg(test)]
mod tests {
    use super::super::pack::pack;
    use super::super::tar::Writer;
    use super::*;
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
            let entry =
                Entry { name: name.to_vec(), kind: kind.clone(), mode: *mode, modified: 1_600_000_000 };
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
            .unpack(&[
                (b"top", Kind::Folder, 0o755),
                (b"top/a", FILE, 0o644),
                (b"top/a", hard(b"top/a"), 0o644),
            ])
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
        let whole =
            archive(&[(b"top", Kind::Folder, 0o755), (b"top/file", Kind::File { size: 5000 }, 0o644)]);
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
}
