//! An environment of the Nix store: its closure and nothing of the host's.

use super::Entry;
use super::host::{files, folders};
use crate::env::{Closure, STORE, Store};
use std::path::{Path, PathBuf};

/// Where certificates are looked for, by what was built for Nix and by what was not.
const CERTIFICATES: [&str; 2] = ["/etc/ssl/certs/ca-bundle.crt", "/etc/ssl/certs/ca-certificates.crt"];

/// Where Nix has its database.
const DATABASE: &str = "/nix/var/nix/db";

/// The tree of a guest that has everything else itself: these paths of the store, or all of it.
pub(crate) fn store_of(paths: &[PathBuf], store: Store) -> Vec<Entry> {
    let folder = |path: &str| Entry::Folder { path: path.into(), mode: 0o755 };
    let shown = match store {
        Store::Closure => Entry::Store(paths.to_owned()),
        Store::Host => Entry::Bind { from: STORE.into(), path: STORE.into() },
    };
    vec![folder("/nix"), folder(STORE), shown]
}

/// The tree of an environment's programs, for a sandbox called `hostname`.
pub(crate) fn closure_tools(closure: &Closure, store: Store, hostname: &str) -> Vec<Entry> {
    let folder = |path: &str| Entry::Folder { path: path.into(), mode: 0o755 };
    let mut tree: Vec<Entry> = folders().collect();
    tree.push(folder("/usr"));
    tree.extend(store_of(&closure.paths, store));
    if let Some(database) = &closure.database {
        tree.extend(["/nix/var", "/nix/var/nix"].map(folder));
        tree.push(Entry::Bind { from: database.clone(), path: DATABASE.into() });
    }
    let programs = closure.programs.as_path();
    let there = |name: &Path| Some(programs.join(name)).filter(|path| path.exists());
    for (path, name) in [("/bin", "bin"), ("/usr/bin", "bin"), ("/usr/lib", "lib"), ("/usr/share", "share")] {
        let link = |target| Entry::Link { path: path.into(), target };
        tree.extend(there(Path::new(name)).map(link));
    }
    if let Some(target) = there(Path::new("etc/ssl/certs/ca-bundle.crt")) {
        tree.extend(["/etc/ssl", "/etc/ssl/certs"].map(folder));
        tree.extend(CERTIFICATES.map(|path| Entry::Link { path: path.into(), target: target.clone() }));
    }
    tree.extend(files(hostname));
    tree
}
