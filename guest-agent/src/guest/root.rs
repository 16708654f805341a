//! The sandbox's root: an overlay of a read-only share and a tmpfs.
//!
//! ```text
//!   initramfs   /dev /proc /sys        moved ─┐
//!               /lower   virtiofs, ro  ─┐     │
//!               /rw      tmpfs         ─┴▶ overlay on /root-to-be ─▶ /
//! ```

use super::configure::ConfigureError;
use firn_protocol::Root;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LOWER: &str = "/lower";
const WRITABLE: &str = "/rw";
const UPPER: &str = "/rw/upper";
const WORK: &str = "/rw/work";
const NEW: &str = "/root-to-be";

/// Overlay features that store what only this kernel and this lower tree understand, or that pass
/// inode numbers through which a share may use up. None helps a layer that is thrown away.
const OVERLAY: &str =
    "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work,index=off,metacopy=off,redirect_dir=off,xino=off";

/// Builds the root and makes it `/`.
pub(super) fn enter(root: &Root) -> Result<(), ConfigureError> {
    for folder in [LOWER, WRITABLE, NEW] {
        make(Path::new(folder))?;
    }
    mount_share(&root.tag, LOWER, MsFlags::MS_RDONLY)?;
    let size = format!("size={},mode=0755", root.writable_bytes);
    mount_on("tmpfs", WRITABLE, "tmpfs", MsFlags::empty(), &size)?;
    for folder in [UPPER, WORK] {
        make(Path::new(folder))?;
    }
    mount_on("overlay", NEW, "overlay", MsFlags::empty(), OVERLAY)?;
    furnish()?;
    switch()?;
    // What a command may do to the mounts of /proc later does not concern this.
    nix::unistd::chdir("/proc")
        .map_err(|source| ConfigureError::SwitchRoot { path: PathBuf::from("/proc"), source })
}

/// Mounts what belongs into every root, still below [`NEW`].
fn furnish() -> Result<(), ConfigureError> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let quiet = plain | MsFlags::MS_NOEXEC;
    for folder in ["dev", "proc", "sys", "run", "tmp"] {
        make(&Path::new(NEW).join(folder))?;
    }
    for folder in ["dev", "proc", "sys"] {
        let from = Path::new("/").join(folder);
        let to = Path::new(NEW).join(folder);
        mount(Some(from.as_path()), &to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .map_err(|source| failed(&from.display().to_string(), &to, source))?;
    }
    // Before /sys is read-only: a file system, once mounted on it, is not affected.
    if Path::new("/root-to-be/sys/fs/cgroup").is_dir() {
        let cgroup = |options| mount_on("cgroup2", "/root-to-be/sys/fs/cgroup", "cgroup2", quiet, options);
        // Makes entering a cgroup cheap, which every command does. Kernels before 6.0 do not know it.
        cgroup("nsdelegate,favordynmods").or_else(|_unknown| cgroup("nsdelegate"))?;
    }
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | quiet;
    mount_on("sysfs", "/root-to-be/sys", "", read_only, "")?;
    for folder in ["pts", "shm"] {
        make(&Path::new(NEW).join("dev").join(folder))?;
    }
    let terminals = "newinstance,ptmxmode=0666,mode=0620,gid=5";
    let no_exec = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_on("devpts", "/root-to-be/dev/pts", "devpts", no_exec, terminals)?;
    mount_on("tmpfs", "/root-to-be/dev/shm", "tmpfs", plain, "mode=1777")?;
    mount_on("tmpfs", "/root-to-be/run", "tmpfs", plain, "mode=0755")?;
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        let path = Path::new(NEW).join("dev").join(name);
        // The kernel's own /dev/ptmx is replaced: it asks for a devpts it finds by itself.
        let _ = fs::remove_file(&path);
        symlink(target, &path).map_err(|source| ConfigureError::Make { path, source })?;
    }
    let tmp = Path::new(NEW).join("tmp");
    fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777))
        .map_err(|source| ConfigureError::Make { path: tmp, source })
}

/// Makes [`NEW`] the root, as `switch_root(8)` does. The parts of the overlay stay mounted inside it;
/// their own mounts go with the old root.
fn switch() -> Result<(), ConfigureError> {
    let failed = |source| ConfigureError::SwitchRoot { path: PathBuf::from(NEW), source };
    for part in [LOWER, WRITABLE] {
        umount2(part, MntFlags::MNT_DETACH).map_err(failed)?;
    }
    let old = fs::read_dir("/").ok().zip(fs::metadata("/").ok());
    nix::unistd::chdir(NEW).map_err(failed)?;
    // The initramfs is memory. Nothing in it is needed again: this program is in memory already.
    if let Some((entries, root)) = old {
        for entry in entries.flatten() {
            let _ = remove_within(&entry.path(), root.dev());
        }
    }
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(failed)?;
    nix::unistd::chroot(".").map_err(failed)?;
    nix::unistd::chdir("/").map_err(failed)
}

/// Removes a tree, but nothing of another file system.
fn remove_within(path: &Path, device: u64) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.dev() != device {
        return Ok(());
    }
    if !metadata.is_dir() {
        return fs::remove_file(path);
    }
    for entry in fs::read_dir(path)? {
        let _ = remove_within(&entry?.path(), device);
    }
    fs::remove_dir(path)
}

/// Makes a folder and those above it.
pub(super) fn make(path: &Path) -> Result<(), ConfigureError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|source| ConfigureError::Make { path: path.to_owned(), source })
}

/// Mounts a file system of its own.
pub(super) fn mount_on(
    source: &str,
    target: impl AsRef<Path>,
    kind: &str,
    flags: MsFlags,
    options: &str,
) -> Result<(), ConfigureError> {
    let target = target.as_ref();
    let options = (!options.is_empty()).then_some(options);
    mount(Some(source), target, Some(kind), flags, options).map_err(|errno| {
        let what =
            if kind == source || kind.is_empty() { source.to_owned() } else { format!("{kind} {source:?}") };
        failed(&what, target, errno)
    })
}

/// How long a share's device may take to be found, after the host has added it.
const DEVICE_PATIENCE: Duration = Duration::from_secs(20);

/// How often it is looked for.
const DEVICE_PAUSE: Duration = Duration::from_millis(2);

/// Mounts a share. Its device may have been added a moment ago, and not be found yet.
pub(super) fn mount_share(tag: &str, target: impl AsRef<Path>, flags: MsFlags) -> Result<(), ConfigureError> {
    let deadline = Instant::now() + DEVICE_PATIENCE;
    loop {
        match mount_on(tag, &target, "virtiofs", flags, "") {
            // What the kernel says of a tag that it does not know.
            Err(ConfigureError::Mount { source: Errno::EINVAL, .. }) if Instant::now() < deadline => {
                std::thread::sleep(DEVICE_PAUSE);
            }
            mounted => return mounted,
        }
    }
}

/// The error of a mount that failed.
pub(super) fn failed(what: &str, target: &Path, source: nix::errno::Errno) -> ConfigureError {
    ConfigureError::Mount { what: what.to_owned(), target: target.to_owned(), source, after: Vec::new() }
}
