//! Mounts over the root: parts of shares, and tmpfs.
//!
//! A share is mounted once, in a place nobody else sees, and its parts are bound from there; at the
//! end that place is taken away and only the binds are left. All of this happens before the first
//! command, so nothing races with it.

use super::configure::ConfigureError;
use super::root::{failed, make, mount_on, mount_share};
use firn_protocol::{Access, Mount, MountSource};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

/// The private places. On the tmpfs of `/run`.
const PRIVATE: &str = "/run/.firn";

/// What belongs to the kernel and to the agent.
const RESERVED: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Checks all of them before the first is made.
pub(super) fn check(mounts: &[Mount]) -> Result<(), ConfigureError> {
    for mount in mounts {
        let target = mount.target.as_path();
        let bad = |why| ConfigureError::BadTarget { path: target.to_owned(), why };
        if !target.is_absolute() {
            return Err(bad("it is not absolute"));
        }
        if target.components().any(|part| part == Component::ParentDir) {
            return Err(bad("it contains .."));
        }
        if target.components().count() == 1 {
            return Err(bad("it is the root"));
        }
        if RESERVED.iter().any(|reserved| target.starts_with(reserved)) {
            return Err(bad("it belongs to the kernel"));
        }
        if target.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(bad("it holds a NUL"));
        }
        if let MountSource::Virtiofs { path, .. } = &mount.source {
            let path = path.as_path();
            let inside =
                path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
            if !inside {
                return Err(ConfigureError::BadSource { path: path.to_owned() });
            }
        }
    }
    Ok(())
}

/// Makes them in order. Gives the targets that are shares.
pub(super) fn make_all(mounts: &[Mount]) -> Result<Vec<PathBuf>, ConfigureError> {
    let mut private = Private::default();
    let mut shares = Vec::new();
    for wanted in mounts {
        let target = wanted.target.as_path();
        match &wanted.source {
            MountSource::Tmpfs { size_bytes, mode } => {
                make(target)?;
                let options = format!("size={size_bytes},mode={:o}", mode & 0o7777);
                let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
                flags.set(MsFlags::MS_RDONLY, wanted.access == Access::ReadOnly);
                mount_on("tmpfs", target, "tmpfs", flags, &options)?;
            }
            MountSource::Virtiofs { tag, path } => {
                let source = private.share(tag)?.join(path.as_path());
                bind(&source, target, wanted.access)?;
                shares.push(target.to_owned());
            }
        }
    }
    Ok(shares)
}

fn bind(source: &Path, target: &Path, access: Access) -> Result<(), ConfigureError> {
    let look = |source_error| ConfigureError::Look { path: source.to_owned(), source: source_error };
    if fs::metadata(source).map_err(look)?.is_dir() {
        make(target)?;
    } else {
        if let Some(folder) = target.parent() {
            make(folder)?;
        }
        if fs::symlink_metadata(target).is_err() {
            File::create(target)
                .map_err(|source| ConfigureError::Make { path: target.to_owned(), source })?;
        }
    }
    let what = source.display().to_string();
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| failed(&what, target, errno))?;
    if access == Access::ReadOnly {
        // A bind takes its source's flags; only a second call can change them.
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
            .map_err(|errno| failed(&what, target, errno))?;
    }
    Ok(())
}

/// The private mounts, by tag. Taken away when dropped.
#[derive(Default)]
struct Private {
    shares: BTreeMap<String, PathBuf>,
}

impl Private {
    fn share(&mut self, tag: &str) -> Result<&Path, ConfigureError> {
        if !self.shares.contains_key(tag) {
            let place = Path::new(PRIVATE).join(self.shares.len().to_string());
            make(&place)?;
            mount_share(tag, &place, MsFlags::empty())?;
            self.shares.insert(tag.to_owned(), place);
        }
        Ok(&self.shares[tag])
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        for place in self.shares.values() {
            let _ = umount2(place.as_path(), MntFlags::MNT_DETACH);
            let _ = fs::remove_dir(place);
        }
        let _ = fs::remove_dir(PRIVATE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tmpfs(target: &str) -> Mount {
        Mount {
            source: MountSource::Tmpfs { size_bytes: 1, mode: 0o700 },
            target: target.into(),
            access: Access::ReadWrite,
        }
    }

    fn share(path: &str) -> Mount {
        let source = MountSource::Virtiofs { tag: "work".into(), path: path.into() };
        Mount { source, ..tmpfs("/workspace") }
    }

    #[test]
    fn ordinary_mounts_pass() {
        assert!(
            check(&[tmpfs("/tmp"), tmpfs("/home/a b"), tmpfs("/device"), share(""), share("a/b")]).is_ok()
        );
    }

    #[test]
    fn mounts_that_lead_elsewhere_do_not() {
        for target in
            ["", "tmp", "/", "//", "/.", "/a/../proc", "/proc", "/proc/sys", "/dev/shm", "/./sys", "/a\0"]
        {
            let refused = check(&[tmpfs("/tmp"), tmpfs(target)]);
            assert!(matches!(refused, Err(ConfigureError::BadTarget { .. })), "{target:?}");
        }
        for path in ["/etc", "..", "a/../.."] {
            assert!(matches!(check(&[share(path)]), Err(ConfigureError::BadSource { .. })), "{path:?}");
        }
    }
}
