//! What a sandbox sees of the host's files.
//!
//! A [`View`] is a value: a read-only tree, built entry by entry, and the folders of the caller
//! that are shown besides it. It is made once from what was asked for and rendered by whoever
//! starts the sandbox: for a jail, bubblewrap builds it and the command runs in it ([`jail`]); for a
//! vm, bubblewrap builds the same tree around an unprivileged `virtiofsd`, which exports it
//! ([`export`]). What no entry names does not exist for the sandbox: home folders, `/var`,
//! `/etc/shadow`, sockets, the host's `/proc` and `/sys`.

mod accounts;
mod closure;
pub(crate) mod export;
mod host;
pub(crate) mod jail;
mod share;

use crate::env::STORE;
use crate::sys::bubblewrap::Bubblewrap;
pub(crate) use accounts::{home, ids};
pub(crate) use closure::{closure_tools, store_of};
pub(crate) use host::host_tools;
pub(crate) use share::{Share, ShareError, parse_mount, parse_project, parse_workspace};
use std::io;
use std::path::{Path, PathBuf};

/// Where the workspace is in every sandbox.
pub(crate) const WORKSPACE: &str = "/workspace";

/// What a sandbox sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// The read-only tree, in the order it is built.
    pub(crate) base: Vec<Entry>,
    /// Folders and files of the caller, in the order they are mounted.
    pub(crate) shares: Vec<Share>,
}

/// One entry of the read-only tree. Every `path` is the sandbox's, absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The host's file or folder, read-only; nothing if the host has none.
    Bind {
        /// On the host.
        from: PathBuf,
        /// In the sandbox.
        path: PathBuf,
    },
    /// `/bin`, `/lib` and the like, as the host has them.
    MergedUsr,
    /// An empty folder with these permission bits: a mount point, or something to write over.
    Folder {
        /// In the sandbox.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
    },
    /// A symbolic link.
    Link {
        /// In the sandbox.
        path: PathBuf,
        /// Where it leads, in the sandbox.
        target: PathBuf,
    },
    /// A file that is not the host's, with these contents.
    File {
        /// In the sandbox.
        path: PathBuf,
        /// Its text.
        contents: String,
    },
    /// Entries of the Nix store, at their own paths, read-only.
    Store(Vec<PathBuf>),
}

/// The sandbox's absolute `path`, where its root is at `root`.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

impl View {
    /// Shows a folder of the host at its own path, read-only.
    pub(crate) fn show(&mut self, folder: &Path) {
        let shown = |entry: &Entry| matches!(entry, Entry::Bind { path, .. } if folder.starts_with(path));
        if !self.base.iter().any(shown) {
            self.base.push(Entry::Bind { from: folder.to_owned(), path: folder.to_owned() });
        }
    }

    /// Adds the read-only tree to a namespace, below `root`.
    fn build(&self, namespace: &mut Bubblewrap, root: &Path) -> io::Result<()> {
        let inside = |path: &Path| below(root, path);
        for entry in &self.base {
            match entry {
                Entry::Bind { from, path } => namespace.try_read_only(from, &inside(path)),
                Entry::MergedUsr => namespace.merged_usr(root),
                Entry::Folder { path, mode } => namespace.dir(&inside(path), *mode),
                Entry::Link { path, target } => namespace.symlink(target, &inside(path)),
                Entry::File { path, contents } => namespace.file(contents.as_bytes(), &inside(path))?,
                Entry::Store(paths) => namespace.entries(paths, &inside(Path::new(STORE)))?,
            }
        }
        Ok(())
    }
}
