//! The host environment: the host's own programs, read-only.

use super::accounts;
use super::{Entry, WORKSPACE};
use std::path::{Path, PathBuf};

/// What programs look for in `/etc` and is nobody's secret. Everything else there stays out.
const ETC: &[&str] = &[
    // The C library and the dynamic linker.
    "gai.conf",
    "host.conf",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "protocols",
    "services",
    // Links that Debian's commands go through.
    "alternatives",
    // Certificates of authorities; `ssl/private` stays out.
    "ca-certificates",
    "pki/ca-trust",
    "pki/tls/certs",
    "ssl/cert.pem",
    "ssl/certs",
    "ssl/openssl.cnf",
    // What system this is.
    "debian_version",
    "lsb-release",
    "os-release",
    "redhat-release",
    // Interpreters and shells.
    "bash.bashrc",
    "inputrc",
    "perl",
    "profile",
    "python3",
    "shells",
    "terminfo",
    "zsh",
    // Types, fonts, editors.
    "fonts",
    "magic",
    "mime.types",
    "nanorc",
    "vim",
    "login.defs",
];

/// Empty folders: mount points of every guest, and places that programs write to.
const FOLDERS: &[(&str, u32)] = &[
    ("/dev", 0o755),
    ("/etc", 0o755),
    ("/home", 0o755),
    ("/mnt", 0o755),
    ("/opt", 0o755),
    ("/proc", 0o755),
    ("/root", 0o700),
    ("/run", 0o755),
    ("/srv", 0o755),
    ("/sys", 0o755),
    ("/tmp", 0o1777),
    ("/var", 0o755),
    ("/var/cache", 0o755),
    ("/var/lib", 0o755),
    ("/var/log", 0o755),
    ("/var/tmp", 0o1777),
    (WORKSPACE, 0o1777),
];

/// The tree of the host's programs, for a sandbox called `hostname`.
pub(crate) fn host_tools(hostname: &str) -> Vec<Entry> {
    let mut tree = vec![bind("/usr"), Entry::MergedUsr];
    tree.extend(folders());
    tree.extend(etc());
    tree.extend(localtime());
    tree.extend(nix_store());
    tree.extend(files(hostname));
    tree
}

/// The empty folders of every sandbox.
pub(super) fn folders() -> impl Iterator<Item = Entry> {
    FOLDERS.iter().map(|(path, mode)| Entry::Folder { path: path.into(), mode: *mode })
}

/// The files of every sandbox, called `hostname`.
pub(super) fn files(hostname: &str) -> [Entry; 8] {
    let file = |path: &str, contents: String| Entry::File { path: path.into(), contents };
    [
        file("/etc/passwd", accounts::passwd()),
        file("/etc/group", accounts::group()),
        file("/etc/hostname", format!("{hostname}\n")),
        file("/etc/hosts", format!("127.0.0.1 localhost {hostname}\n::1 localhost\n")),
        file("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
        // Without a network there is no name server; an absent file means one on loopback.
        file("/etc/resolv.conf", "# no network\n".to_owned()),
        Entry::Link { path: "/etc/mtab".into(), target: "/proc/mounts".into() },
        Entry::Link { path: "/var/run".into(), target: "/run".into() },
    ]
}

/// What there is of [`ETC`]. The folders between are named too: those that bubblewrap makes by itself
/// are closed to everybody but their owner.
fn etc() -> Vec<Entry> {
    let etc = Path::new("/etc");
    let mut tree = Vec::new();
    for path in ETC.iter().map(|name| etc.join(name)).filter(|path| path.exists()) {
        let above: Vec<&Path> = path.ancestors().skip(1).take_while(|above| *above != etc).collect();
        tree.extend(above.iter().rev().map(|above| Entry::Folder { path: above.into(), mode: 0o755 }));
        tree.push(bind(path));
    }
    tree
}

fn bind(path: impl Into<PathBuf>) -> Entry {
    let path = path.into();
    Entry::Bind { from: path.clone(), path }
}

/// The time zone is a link into `/usr/share/zoneinfo`; a bind of it would follow the link and lose
/// the name that programs read from it.
fn localtime() -> Option<Entry> {
    let target = std::fs::read_link("/etc/localtime").ok()?;
    Some(Entry::Link { path: "/etc/localtime".into(), target })
}

/// On a host with Nix its store holds programs too; on NixOS all of them, found through the
/// system's profile.
fn nix_store() -> Vec<Entry> {
    let store = Path::new("/nix/store");
    if !store.is_dir() {
        return Vec::new();
    }
    let profile = std::fs::canonicalize("/run/current-system/sw").ok().filter(|path| path.starts_with(store));
    let link = profile.map(|target| Entry::Link { path: "/nix/profile".into(), target });
    let above = Entry::Folder { path: "/nix".into(), mode: 0o755 };
    [above, bind(store)].into_iter().chain(link).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_private_is_named() {
        for entry in host_tools("box") {
            if let Entry::Bind { from, .. } = entry {
                for private in
                    ["/home", "/root", "/var", "/etc/shadow", "/etc/ssl/private", "/proc", "/sys", "/run"]
                {
                    assert!(!Path::new(private).starts_with(&from), "{} shows {private}", from.display());
                    assert!(!from.starts_with(private), "{} is in {private}", from.display());
                }
            }
        }
    }

    #[test]
    fn no_folder_above_is_left_to_bubblewrap() {
        let tree = host_tools("box");
        let folders: Vec<&Path> = tree
            .iter()
            .filter_map(|entry| match entry {
                Entry::Folder { path, .. } => Some(path.as_path()),
                _ => None,
            })
            .collect();
        for entry in &tree {
            let (Entry::Bind { path, .. } | Entry::Link { path, .. } | Entry::File { path, .. }) = entry
            else {
                continue;
            };
            let above = path.parent().unwrap();
            assert!(above == Path::new("/") || folders.contains(&above), "{} is closed", above.display());
        }
    }
}
