//! What `--env` names: `host`, a folder, an environment that is known by its name, or a flake.

use sha2::{Digest as _, Sha256};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the answer to a reference that can move is taken to hold: what Nix itself does
/// (`tarball-ttl` of nix.conf(5)).
const HOLDS: Duration = Duration::from_secs(3600);

/// The most files that are looked at to see whether a local flake has changed. One with more is asked
/// about every time.
const MOST_FILES: usize = 5_000;

/// What is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    /// The host's own programs.
    Host,
    /// A folder in the layout of an artifact.
    Folder(PathBuf),
    /// An environment by its name.
    Name(String),
    /// A flake's output.
    Flake(FlakeRef),
}

/// A flake's output, as Nix reads it: `.#data`, `github:owner/repo#attribute`. A local one is absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FlakeRef(String);

/// How long what was built from a reference is what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// It is pinned.
    Always,
    /// As long as it is not older.
    For(Duration),
    /// As long as its Nix files are these, by a checksum of their names, times and sizes.
    While(String),
    /// Not at all.
    Never,
}

impl Reference {
    /// What `text` means, to somebody who is in `cwd`.
    pub(crate) fn parse(text: &OsStr, cwd: &Path) -> Reference {
        let Some(text) = text.to_str() else { return Reference::Folder(cwd.join(text)) };
        if text == "host" {
            Reference::Host
        } else if text.contains('#') || scheme(text).is_some() {
            Reference::Flake(FlakeRef::new(text, cwd))
        } else if text.contains('/') || matches!(text, "." | "..") {
            Reference::Folder(cwd.join(text))
        } else {
            Reference::Name(text.to_owned())
        }
    }
}

/// The scheme of a URL-like reference.
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once(':')?;
    let named =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'+' | b'.' | b'-');
    (scheme.starts_with(|first: char| first.is_ascii_lowercase()) && scheme.bytes().all(named))
        .then_some(scheme)
}

impl FlakeRef {
    /// The one that `text` means in `cwd`.
    pub(crate) fn new(text: &str, cwd: &Path) -> FlakeRef {
        let (flake, attribute) = match text.split_once('#') {
            Some((flake, attribute)) => (flake, Some(attribute)),
            None => (text, None),
        };
        let local = flake.strip_prefix("path:").unwrap_or(flake);
        let relative = scheme(flake).is_none_or(|scheme| scheme == "path") && !local.starts_with('/');
        let is_path = local.is_empty() || local.starts_with('.') || flake.starts_with("path:");
        let mut absolute = flake.to_owned();
        if relative && is_path {
            let prefix = if flake.starts_with("path:") { "path:" } else { "" };
            let folder = if local.is_empty() { "." } else { local };
            // Nix does not take `..` in the middle.
            let folder = fs::canonicalize(cwd.join(folder)).unwrap_or_else(|_absent| cwd.join(folder));
            absolute = format!("{prefix}{}", folder.display());
        }
        FlakeRef(match attribute {
            Some(attribute) => format!("{absolute}#{attribute}"),
            None => absolute,
        })
    }

    /// An output of `flake`.
    pub(crate) fn output(flake: &str, attribute: &str, cwd: &Path) -> FlakeRef {
        FlakeRef::new(&format!("{flake}#{attribute}"), cwd)
    }

    /// As Nix takes it.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Without the output.
    pub(crate) fn flake(&self) -> &str {
        self.0.split_once('#').map_or(self.0.as_str(), |(flake, _)| flake)
    }

    /// How long what is built from it now is what it stands for.
    pub(crate) fn freshness(&self) -> Freshness {
        let flake = self.flake();
        let is_commit = |part: &str| part.len() == 40 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        if flake.contains("narHash=") || flake.contains("rev=") || flake.split(['/', '?']).any(is_commit) {
            return Freshness::Always;
        }
        let local = ["path:", "git+file://", ""].iter().find_map(|prefix| {
            let rest = flake.strip_prefix(prefix)?;
            rest.starts_with('/').then(|| rest.split_once('?').map_or(rest, |(path, _)| path))
        });
        match local {
            // What is in the store does not change.
            Some(folder) if folder.starts_with(super::STORE) => Freshness::Always,
            Some(folder) => match fingerprint(Path::new(folder)) {
                Ok(Some(fingerprint)) => Freshness::While(fingerprint),
                Ok(None) | Err(_) => Freshness::Never,
            },
            None => Freshness::For(HOLDS),
        }
    }
}

/// A checksum of the Nix files and the lock below `folder`. None: there are too many.
fn fingerprint(folder: &Path) -> io::Result<Option<String>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    let mut seen = 0_usize;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            seen += 1;
            if seen > MOST_FILES {
                return Ok(None);
            }
            let (name, kind) = (entry.file_name(), entry.file_type()?);
            let text = name.to_string_lossy();
            if kind.is_dir() && !text.starts_with('.') && !matches!(&*text, "target" | "node_modules") {
                folders.push(entry.path());
            } else if kind.is_file() && (text.ends_with(".nix") || text == "flake.lock") {
                let about = entry.metadata()?;
                found.push((entry.path(), about.mtime(), about.mtime_nsec(), about.size()));
            }
        }
    }
    found.sort();
    let mut hash = Sha256::new();
    for (path, seconds, nanoseconds, size) in found {
        hash.update(format!("{}\0{seconds}\0{nanoseconds}\0{size}\0", path.display()));
    }
    Ok(Some(super::built::hexadecimal(&hash.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Reference {
        Reference::parse(OsStr::new(text), Path::new("/no/such"))
    }

    fn flake(text: &str) -> Reference {
        Reference::Flake(FlakeRef(text.to_owned()))
    }

    #[test]
    fn a_name_is_told_from_a_folder_and_a_flake() {
        assert_eq!(parse("host"), Reference::Host);
        assert_eq!(parse("python"), Reference::Name("python".into()));
        assert_eq!(parse("./py"), Reference::Folder("/no/such/./py".into()));
        assert_eq!(parse("/nix/store/x"), Reference::Folder("/nix/store/x".into()));
        assert_eq!(parse(".#data"), flake("/no/such/.#data"));
        assert_eq!(parse("#data"), flake("/no/such/.#data"));
        assert_eq!(parse("path:x#data"), flake("path:/no/such/x#data"));
        for text in
            ["github:a/b", "github:a/b#c", "git+https://x.y/z?ref=q#c", "flake:firn", "nixpkgs#hello", "/a#b"]
        {
            assert_eq!(parse(text), flake(text));
        }
    }

    #[test]
    fn what_is_pinned_holds_for_ever() {
        let freshness = |text: &str| FlakeRef::new(text, Path::new("/")).freshness();
        assert_eq!(freshness("github:a/b/bf9f49c8118e7a77b68a675dbe26e93e91412066#c"), Freshness::Always);
        assert_eq!(freshness("path:/x?narHash=sha256-abc#c"), Freshness::Always);
        assert_eq!(freshness("github:a/b#c"), Freshness::For(HOLDS));
        assert_eq!(freshness("/no/such#c"), Freshness::Never);
    }

    #[test]
    fn an_edit_of_a_local_flake_shows() {
        let dir = tempfile::tempdir().unwrap();
        let reference = FlakeRef::new(".#x", dir.path());
        fs::write(dir.path().join("flake.nix"), "{ }").unwrap();
        let before = reference.freshness();
        assert!(matches!(before, Freshness::While(_)));
        assert_eq!(reference.freshness(), before);
        fs::create_dir(dir.path().join("nix")).unwrap();
        fs::write(dir.path().join("nix/a.nix"), "1").unwrap();
        assert_ne!(reference.freshness(), before);
    }
}
