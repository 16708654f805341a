//! A home for each ordinary user the sandbox names.
//!
//! The tree below the root belongs to root altogether, and shows nobody's home. A program that runs as
//! an ordinary user expects one it may write to.

use super::configure::ConfigureError;
use super::root;
use crate::exec::{Accounts, Home};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, lchown};
use std::path::Path;

/// What is there stays as it is.
pub(super) fn make_all() -> Result<(), ConfigureError> {
    let accounts = Accounts::read(false);
    for Home { path, uid, gid } in accounts.homes() {
        let failed = |source: io::Error| ConfigureError::Make { path: path.clone(), source };
        root::make(path.parent().unwrap_or(Path::new("/")))?;
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.and_then(|()| lchown(&path, Some(uid), Some(gid))).map_err(failed)?,
        }
    }
    Ok(())
}
