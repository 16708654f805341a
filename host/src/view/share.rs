//! Folders and files of the caller that a sandbox is shown, as the command line names them.

use crate::config::Config;
use firn_protocol::Access;
use nix::unistd::Uid;
use std::collections::BTreeSet;
use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

/// A folder or a file of the host at a path of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// On the host: absolute, without links, and there.
    pub(crate) host: PathBuf,
    /// In the sandbox: absolute, without `.` and `..`.
    pub(crate) target: PathBuf,
    /// Whether the sandbox may write.
    pub(crate) access: Access,
}

/// A share that cannot be given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShareError {
    /// The host's path cannot be used.
    #[error("cannot share {}", path.display())]
    Host {
        /// As it was given.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A workspace must be a folder.
    #[error("the workspace {} is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// Neither a folder nor a file: a socket or a device would be a way out.
    #[error("{} is neither a folder nor a regular file", .0.display())]
    Special(PathBuf),
    /// Sharing everything, or what the kernel makes up, shares secrets.
    #[error("{} cannot be shared: it holds more than a sandbox may see", .0.display())]
    TooMuch(PathBuf),
    /// A sandbox that has it could ask the daemon for anything, or decide what the next daemon does.
    #[error("{} cannot be shared: it is, holds or lies in {own}, which is firn's own", path.display())]
    Own {
        /// What was to be shared.
        path: PathBuf,
        /// What is firn's.
        own: OwnFile,
    },
    /// Root's helpers have no capability, so to them other people's files are what they are to
    /// everybody.
    #[error(
        "{} belongs to user {owner} and is not open to all, and firn as root gives its helpers no right to \
         other people's files: run firn as that user, or change who owns or may {verb} it",
        path.display()
    )]
    OthersFolder {
        /// As it was given.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// What cannot be done: `read` or `write`.
        verb: &'static str,
    },
    /// The sandbox's path cannot be used.
    #[error("{:?} is not a path to mount at: {reason}", path)]
    Target {
        /// As it was given.
        path: PathBuf,
        /// What it should be.
        reason: &'static str,
    },
    /// Not `HOST:GUEST[:ro|:rw]`.
    #[error("{0:?} is not HOST:GUEST, HOST:GUEST:ro or HOST:GUEST:rw")]
    Syntax(String),
    /// Two shares at one place.
    #[error("two shares at {}", .0.display())]
    Twice(PathBuf),
}

/// What firn has for itself on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnFile {
    name: &'static str,
    path: PathBuf,
}

impl fmt::Display for OwnFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.path.display())
    }
}

/// What no sandbox may have, to read or to write: a socket can be connected to wherever it can be seen. And
/// what it may have to read only, if it is told so with `access`.
fn own_files(config: &Config, access: Access) -> Vec<OwnFile> {
    let own = |name, path: &Path| OwnFile { name, path: path.to_owned() };
    let mut files = vec![
        own("the daemon's socket", &config.socket),
        own("the runtime folder", &config.runtime_dir),
        own("the state folder", &config.state_dir),
    ];
    if access == Access::ReadWrite {
        files.extend(config.file.iter().map(|file| own("the configuration file", file)));
        files.push(own("the folder of guest images", &config.cache_dir));
    }
    files
}

/// Which file it is, whatever its path.
type FileId = (u64, u64);

fn file_id(path: &Path) -> Option<FileId> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The file itself, if it is there, and all folders through which its path leads, links and what they lead
/// to alike: whoever may write to one of them can put another in its place.
fn with_folders(path: &Path) -> BTreeSet<FileId> {
    let there = path.ancestors().filter_map(|part| std::fs::canonicalize(part).ok());
    there.flat_map(|part| part.ancestors().filter_map(file_id).collect::<Vec<_>>()).collect()
}

/// Splits `:ro` or `:rw` off the end.
fn split_access(text: &str) -> (&str, Option<Access>) {
    match text.rsplit_once(':') {
        Some((rest, "ro")) => (rest, Some(Access::ReadOnly)),
        Some((rest, "rw")) => (rest, Some(Access::ReadWrite)),
        _ => (text, None),
    }
}

/// A workspace as people name it, `PATH[:ro|:rw]`: writable unless it says otherwise.
pub(crate) fn parse_workspace(text: &str) -> (&Path, Access) {
    let (path, access) = split_access(text);
    (Path::new(path), access.unwrap_or(Access::ReadWrite))
}

/// A project as people name it, `PATH[:ro|:rw]`: read-only unless it says otherwise.
pub(crate) fn parse_project(text: &str) -> (&Path, Access) {
    let (path, access) = split_access(text);
    (Path::new(path), access.unwrap_or(Access::ReadOnly))
}

/// A mount as people name it, `HOST:GUEST[:ro|:rw]`: read-only unless it says otherwise.
pub(crate) fn parse_mount(text: &str) -> Result<(&Path, &Path, Access), ShareError> {
    let (paths, access) = split_access(text);
    // The last colon: a host's path may hold some, a guest's need not.
    let (host, target) = paths.rsplit_once(':').ok_or_else(|| ShareError::Syntax(text.to_owned()))?;
    if host.is_empty() || target.is_empty() {
        return Err(ShareError::Syntax(text.to_owned()));
    }
    Ok((Path::new(host), Path::new(target), access.unwrap_or(Access::ReadOnly)))
}

impl Share {
    /// The folder `path`, shown at `target`.
    pub(crate) fn workspace(path: &Path, access: Access, target: &str) -> Result<Share, ShareError> {
        let host = resolve(path, access)?;
        if !host.is_dir() {
            return Err(ShareError::NotAFolder(path.into()));
        }
        Ok(Share { host, target: target.into(), access })
    }

    /// The folder or file `path`, shown at `target`.
    pub(crate) fn mount(path: &Path, target: &Path, access: Access) -> Result<Share, ShareError> {
        let target = check_target(target)?;
        Ok(Share { host: resolve(path, access)?, target, access })
    }

    /// The path inside `other` that this is, on the host and in the sandbox alike.
    pub(crate) fn part_of(&self, other: &Share) -> Option<&Path> {
        let (host, target) =
            (self.host.strip_prefix(&other.host).ok()?, self.target.strip_prefix(&other.target).ok()?);
        (host == target && !host.as_os_str().is_empty()).then_some(host)
    }

    /// Refuses what is firn's own, what is in it, and what it is in.
    pub(crate) fn check_apart(&self, config: &Config) -> Result<(), ShareError> {
        let (share, within) = (file_id(&self.host), with_folders(&self.host));
        let overlaps = |own: &OwnFile| {
            let holds = share.is_some_and(|share| with_folders(&own.path).contains(&share));
            holds || file_id(&own.path).is_some_and(|own| within.contains(&own))
        };
        match own_files(config, self.access).into_iter().find(overlaps) {
            Some(own) => Err(ShareError::Own { path: self.host.clone(), own }),
            None => Ok(()),
        }
    }

    /// Refuses two shares at the same place.
    pub(crate) fn check_all(shares: &[Share]) -> Result<(), ShareError> {
        for (index, share) in shares.iter().enumerate() {
            if shares[..index].iter().any(|earlier| earlier.target == share.target) {
                return Err(ShareError::Twice(share.target.clone()));
            }
        }
        Ok(())
    }
}

fn resolve(path: &Path, access: Access) -> Result<PathBuf, ShareError> {
    let failed = |source| ShareError::Host { path: path.to_owned(), source };
    let host = std::fs::canonicalize(path).map_err(failed)?;
    let metadata = std::fs::metadata(&host).map_err(failed)?;
    if metadata.is_dir() {
        // Opening it finds out now, with a clear error, what the sandbox would find out later.
        std::fs::read_dir(&host).map_err(failed)?;
    } else if metadata.is_file() {
        std::fs::File::open(&host).map_err(failed)?;
    } else {
        return Err(ShareError::Special(path.to_owned()));
    }
    check_owner(path, &metadata, access, Uid::effective())?;
    let kernels = ["/proc", "/sys", "/dev"].iter().any(|root| host.starts_with(root));
    if host == Path::new("/") || kernels {
        return Err(ShareError::TooMuch(path.to_owned()));
    }
    Ok(host)
}

fn check_owner(path: &Path, metadata: &Metadata, access: Access, caller: Uid) -> Result<(), ShareError> {
    if !caller.is_root() || metadata.uid() == 0 {
        return Ok(());
    }
    let refused = |verb| ShareError::OthersFolder { path: path.to_owned(), owner: metadata.uid(), verb };
    let (read, write) = if metadata.is_dir() { (0o5, 0o3) } else { (0o4, 0o2) };
    let open_to_all = |bits: u32| metadata.mode() & bits == bits;
    if !open_to_all(read) {
        return Err(refused("read"));
    }
    if access == Access::ReadWrite && !open_to_all(write) {
        return Err(refused("write"));
    }
    Ok(())
}

fn check_target(path: &Path) -> Result<PathBuf, ShareError> {
    let wrong = |reason| ShareError::Target { path: path.to_owned(), reason };
    if !path.is_absolute() {
        return Err(wrong("it must be absolute"));
    }
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => plain.push(name),
            Component::ParentDir | Component::Prefix(_) => return Err(wrong("it must not contain ..")),
        }
    }
    let taken = ["/proc", "/sys", "/dev"].iter().any(|root| plain.starts_with(root));
    if plain == Path::new("/") || taken {
        return Err(wrong("the sandbox has its own /, /proc, /sys and /dev"));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> Result<Share, ShareError> {
        let (host, target, access) = parse_mount(text)?;
        Share::mount(host, target, access)
    }

    #[test]
    fn mounts_are_parsed_and_read_only_by_default() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().canonicalize().unwrap();
        let text = host.display().to_string();
        let share = mount(&format!("{text}:/a/./b")).unwrap();
        assert_eq!(share, Share { host: host.clone(), target: "/a/b".into(), access: Access::ReadOnly });
        assert_eq!(mount(&format!("{text}:/a:rw")).unwrap().access, Access::ReadWrite);
        assert_eq!(parse_workspace(&text), (host.as_path(), Access::ReadWrite));
        assert_eq!(parse_workspace(&format!("{text}:ro")), (host.as_path(), Access::ReadOnly));
    }

    #[test]
    fn what_cannot_be_shared_is_refused_by_name() {
        assert!(matches!(mount("/usr"), Err(ShareError::Syntax(_))));
        assert!(matches!(mount("/usr:relative"), Err(ShareError::Target { .. })));
        assert!(matches!(mount("/usr:/a/../b"), Err(ShareError::Target { .. })));
        assert!(matches!(mount("/usr:/proc/x"), Err(ShareError::Target { .. })));
        assert!(matches!(mount("/:/host"), Err(ShareError::TooMuch(_))));
        assert!(matches!(mount("/proc/self:/p"), Err(ShareError::TooMuch(_))));
        assert!(matches!(mount("/no/such:/p"), Err(ShareError::Host { .. })));
        let file = Share::workspace(Path::new("/etc/hostname"), Access::ReadOnly, "/workspace");
        assert!(matches!(file, Err(ShareError::NotAFolder(_))));
        let twice = [mount("/usr:/a").unwrap(), mount("/etc:/a").unwrap()];
        assert!(matches!(Share::check_all(&twice), Err(ShareError::Twice(_))));
    }

    #[test]
    fn root_is_told_when_a_folder_is_somebody_elses() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let check = |mode: u32, access| {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            let metadata = std::fs::metadata(dir.path()).unwrap();
            check_owner(dir.path(), &metadata, access, Uid::from_raw(0))
        };
        if Uid::effective().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(4242), None).unwrap();
        }
        assert!(check(0o755, Access::ReadOnly).is_ok());
        assert!(check(0o777, Access::ReadWrite).is_ok());
        let refused = check(0o755, Access::ReadWrite);
        assert!(matches!(refused, Err(ShareError::OthersFolder { verb: "write", .. })), "{refused:?}");
        let refused = check(0o750, Access::ReadOnly);
        assert!(matches!(refused, Err(ShareError::OthersFolder { verb: "read", .. })), "{refused:?}");
    }

    #[test]
    fn a_share_can_be_a_part_of_another() {
        let share = |host: &str, target: &str| Share {
            host: host.into(),
            target: target.into(),
            access: Access::ReadOnly,
        };
        let outer = share("/h", "/workspace");
        assert_eq!(share("/h/a/b", "/workspace/a/b").part_of(&outer), Some(Path::new("a/b")));
        assert_eq!(share("/h/a", "/workspace/b").part_of(&outer), None);
        assert_eq!(share("/h/a", "/data").part_of(&outer), None);
        assert_eq!(share("/ha", "/workspacea").part_of(&outer), None);
        assert_eq!(outer.part_of(&outer), None);
    }

    #[test]
    fn what_is_firns_own_is_not_shared() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for folder in ["home/state/logs", "home/project", "home/conf", "run/sandboxes", "elsewhere", "cache"]
        {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        std::fs::write(at("elsewhere/firn.toml"), "").unwrap();
        symlink(at("elsewhere/firn.toml"), at("home/conf/config.toml")).unwrap();
        symlink(at("home/state"), at("state-link")).unwrap();
        let mut config = Config::read().unwrap();
        config.runtime_dir = at("run");
        config.socket = at("run/firn.sock");
        config.state_dir = at("state-link");
        config.cache_dir = at("cache");
        config.file = Some(at("home/conf/config.toml"));
        let refused = |path: &str, access| {
            let share = Share::workspace(&at(path), access, "/workspace").unwrap();
            match share.check_apart(&config) {
                Ok(()) => None,
                Err(ShareError::Own { own, .. }) => Some(own.name),
                Err(error) => panic!("{error}"),
            }
        };
        for access in [Access::ReadOnly, Access::ReadWrite] {
            for path in ["", "home", "home/state", "home/state/logs", "state-link", "state-link/logs"] {
                assert!(refused(path, access).is_some(), "{path:?} {access:?}");
            }
            assert_eq!(refused("run/sandboxes", access), Some("the runtime folder"));
            assert_eq!(refused("run", access), Some("the daemon's socket"));
            assert_eq!(refused("home/project", access), None);
        }
        // Who may write there decides what the configuration is, be it a link or not.
        for path in ["home/conf", "elsewhere", "cache"] {
            assert!(refused(path, Access::ReadWrite).is_some(), "{path}");
            assert_eq!(refused(path, Access::ReadOnly), None, "{path}");
        }
        // What is not there yet can be put there.
        config.file = Some(at("home/project/firn/config.toml"));
        let share = Share::workspace(&at("home/project"), Access::ReadWrite, "/workspace").unwrap();
        assert!(share.check_apart(&config).is_err());
    }

    #[test]
    fn a_socket_is_not_shared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(mount(&format!("{}:/s", path.display())), Err(ShareError::Special(_))));
    }
}
