//! The two ends of a copy, and what their names mean.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// `SANDBOX:PATH`.
    Sandbox {
        /// Which sandbox.
        id: String,
        /// Absolute.
        path: OsString,
    },
    /// A path of the host's.
    Host(PathBuf),
    /// `-`.
    Stream,
}

impl Side {
    /// A path that begins with a dot or a slash, or has a slash before its first colon, is the host's.
    pub(super) fn parse(text: &OsStr) -> Side {
        let bytes = text.as_bytes();
        if bytes == b"-" {
            return Side::Stream;
        }
        let colon = bytes.iter().position(|byte| matches!(byte, b':' | b'/')).filter(|at| bytes[*at] == b':');
        let id = colon.and_then(|at| std::str::from_utf8(&bytes[..at]).ok()).filter(|id| !id.is_empty());
        match (id, colon) {
            (Some(id), Some(at)) if !id.starts_with('.') => {
                let path = &bytes[at + 1..];
                let root: &[u8] = if path.starts_with(b"/") { b"" } else { b"/" };
                Side::Sandbox { id: id.to_owned(), path: OsString::from_vec([root, path].concat()) }
            }
            _ => Side::Host(text.into()),
        }
    }
}

/// Whether only what is in a folder is meant: `.`, or something that ends with `/.`.
pub(super) fn means_contents(path: &OsStr) -> bool {
    path == "." || path.as_bytes().ends_with(b"/.")
}

/// The name that a copy of `path` gets. None: only what is in it is copied.
pub(super) fn name(path: &OsStr) -> Option<&OsStr> {
    if means_contents(path) { None } else { Path::new(path).file_name() }
}

/// A folder that is asked for by what is in it is asked for itself.
pub(super) fn wanted(path: &OsStr) -> OsString {
    let bytes = path.as_bytes();
    let plain = bytes.strip_suffix(b"/.").unwrap_or(bytes);
    OsString::from_vec(if plain.is_empty() { b"/".to_vec() } else { plain.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_what_it_looks_like() {
        let side = |text: &str| Side::parse(OsStr::new(text));
        let sandbox = |id: &str, path: &str| Side::Sandbox { id: id.into(), path: path.into() };
        assert_eq!(side("-"), Side::Stream);
        assert_eq!(side("box:/a:b"), sandbox("box", "/a:b"));
        assert_eq!(side("box:a"), sandbox("box", "/a"));
        assert_eq!(side("box:"), sandbox("box", "/"));
        for host in ["a", "/a:b", "./a:b", "../a:b", "a/b:c", ":a", ".a:b"] {
            assert_eq!(side(host), Side::Host(host.into()), "{host}");
        }
    }

    #[test]
    fn names_of_copies() {
        for (path, expected) in [
            ("/a/b", Some("b")),
            ("/a/b/", Some("b")),
            ("/a/b/.", None),
            ("/", None),
            (".", None),
            ("..", None),
        ] {
            assert_eq!(name(OsStr::new(path)), expected.map(OsStr::new), "{path}");
        }
        assert_eq!(wanted(OsStr::new("/a/.")), "/a");
        assert_eq!(wanted(OsStr::new("/.")), "/");
    }
}
