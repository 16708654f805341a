//! Packages, as nixo's callers name them, among the host's own programs.
//!
//! Without Nix there is nothing to take a package from. What can be said is whether its programs are
//! there: in the folders that a sandbox is shown of the host, not in those of the caller's `PATH`.

use std::path::Path;

/// Where the programs of the host's own tools are, on the host and in the sandbox alike.
const PROGRAMS: [&str; 5] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// Packages of nixo's catalog whose programs have other names: one of each is looked for.
const NAMES: [(&str, &[&str]); 13] = [
    ("coreutils", &["ls"]),
    ("fd", &["fd", "fdfind"]),
    ("findutils", &["find"]),
    ("gnugrep", &["grep"]),
    ("gnumake", &["make"]),
    ("gnused", &["sed"]),
    ("gnutar", &["tar"]),
    ("inetutils", &["telnet", "ftp"]),
    ("netcat-gnu", &["nc", "netcat"]),
    ("nodejs_22", &["node"]),
    ("python312", &["python3.12"]),
    ("ripgrep", &["rg"]),
    ("util-linux", &["mount"]),
];

/// Whether the name can be a package's.
pub(crate) fn is_name(name: &str) -> bool {
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    !name.bytes().all(|byte| byte == b'.') && name.bytes().all(named)
}

/// Whether a program of this package is among the host's.
pub(crate) fn is_there(package: &str) -> bool {
    // Certificates are no program; every sandbox has those of the host.
    if package == "cacert" {
        return true;
    }
    let known = NAMES.iter().find(|(name, _)| *name == package).map(|(_, programs)| *programs);
    let program =
        |name: &str| is_name(name) && PROGRAMS.iter().any(|folder| Path::new(folder).join(name).is_file());
    match known {
        Some(programs) => programs.iter().any(|name| program(name)),
        None => program(package),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_not_paths() {
        for name in ["bash", "python3.12", "nodejs_22", "netcat-gnu"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "../bash", "a b", "ä", "a\0"] {
            assert!(!is_name(name) && !is_there(name), "{name:?}");
        }
    }

    #[test]
    fn packages_are_found_by_their_programs() {
        for package in ["coreutils", "gnugrep", "gnused", "findutils", "cacert", "sh"] {
            assert!(is_there(package), "{package}");
        }
        assert!(!is_there("no-such-package"));
    }
}
