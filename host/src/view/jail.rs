//! A view as a jail sees it: mounts of its own namespace, made by bubblewrap.
//!
//! Everything that can be written to and is not the caller's is one file system in memory, of one
//! size. The host's programs are shown read-only in it.

use super::{Share, View};
use crate::sys::bubblewrap::Bubblewrap;
use crate::sys::identity::{self, Identity};
use crate::sys::idmap::{self, Mapping};
use crate::sys::staging::Staged;
use firn_protocol::Access;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The size of `/dev/shm`, in bytes: what container runtimes give. It cannot be a part of the root's
/// file system, because `/dev` is frozen.
const SHARED_MEMORY: u64 = 64 << 20;

/// What `/proc` tells of the host whoever asks: masked as container runtimes do it, and what else
/// identifies the host. (Docker's and Podman's default `maskedPaths`; the boot id is masked with a
/// number of its own.)
const MASKED: &[&str] = &["cmdline", "interrupts", "kcore", "keys", "latency_stats", "timer_list"];

/// The same for folders.
const MASKED_FOLDERS: &[&str] = &["acpi", "asound", "scsi"];

/// A view that a jail cannot be given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JailViewError {
    /// A file that is passed to bubblewrap could not be made.
    #[error("cannot prepare the files of the view")]
    Prepare(#[source] io::Error),
    /// The kernel cannot show a folder of root's as the sandbox's.
    #[error(
        "root cannot share {} with a jail: its file system cannot show files as another user's (ID-mapped mounts)",
        path.display()
    )]
    Unmappable {
        /// The folder on the host.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// It could for another reason not be prepared.
    #[error("cannot share {}", path.display())]
    Share {
        /// The folder on the host.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Who and where a jail is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Occupant<'a> {
    /// Who it is on the host.
    pub(crate) identity: Identity,
    /// The home of who it is inside.
    pub(crate) home: &'a Path,
    /// How much it may write, in bytes.
    pub(crate) disk: u64,
    /// A folder of the sandbox's, for mount points.
    pub(crate) staging: &'a Path,
}

impl View {
    /// Adds all of it to an empty namespace.
    pub(crate) fn enter(
        &self,
        namespace: &mut Bubblewrap,
        occupant: Occupant<'_>,
    ) -> Result<(), JailViewError> {
        namespace.memory(Path::new("/"), 0o755, occupant.disk);
        self.build(namespace, Path::new("/")).map_err(JailViewError::Prepare)?;
        // Again where the view has made it, which changes nothing.
        namespace.dir(occupant.home, 0o700);
        namespace.proc_and_dev();
        mask_proc(namespace).map_err(JailViewError::Prepare)?;
        namespace.memory(Path::new("/dev/shm"), 0o1777, SHARED_MEMORY);
        namespace.freeze(Path::new("/dev"));
        self.show_shares(namespace, occupant)
    }

    fn show_shares(&self, namespace: &mut Bubblewrap, occupant: Occupant<'_>) -> Result<(), JailViewError> {
        let Some(stage) = Stage::new(&self.shares, occupant.identity, occupant.staging)? else {
            return Ok(());
        };
        for (index, share) in self.shares.iter().enumerate() {
            let (from, staged) = stage.set(index, share)?;
            staged.into_iter().for_each(|staged| namespace.stage(staged));
            match share.access {
                Access::ReadOnly => namespace.read_only(&from, &share.target),
                Access::ReadWrite => namespace.read_write(&from, &share.target),
            }
        }
        Ok(())
    }
}

/// Where the caller's folders are for whoever shows them to a jail: at their own paths, or, when the
/// jail is a stranger to the caller, at others where what is the caller's is the stranger's.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    mapping: Option<Mapping>,
    folder: &'a Path,
}

impl Stage<'_> {
    /// For these shares, in a folder of the sandbox's. None: there are none.
    pub(crate) fn new<'a>(
        shares: &[Share],
        identity: Identity,
        folder: &'a Path,
    ) -> Result<Option<Stage<'a>>, JailViewError> {
        let Some(first) = shares.first() else { return Ok(None) };
        let mapping = match identity {
            Identity::Stranger { id, .. } => {
                let mapping = Mapping::new(identity::caller(), (id, id));
                Some(mapping.map_err(|source| JailViewError::Share { path: first.host.clone(), source })?)
            }
            Identity::Caller => None,
        };
        Ok(Some(Stage { mapping, folder }))
    }

    /// The path of a share, and what has to be mounted there.
    pub(crate) fn set(
        &self,
        index: usize,
        share: &Share,
    ) -> Result<(PathBuf, Option<Staged>), JailViewError> {
        let Some(mapping) = &self.mapping else { return Ok((share.host.clone(), None)) };
        let failed = |source| JailViewError::Share { path: share.host.clone(), source };
        let at = self.folder.join(format!("share-{index}"));
        let made = if share.host.is_dir() { fs::create_dir(&at) } else { fs::write(&at, "") };
        made.map_err(failed)?;
        let mount = mapping.mount(&share.host).map_err(|source| {
            if idmap::unsupported(&source) {
                JailViewError::Unmappable { path: share.host.clone(), source }
            } else {
                failed(source)
            }
        })?;
        Ok((at.clone(), Some(Staged::Mount { mount, at })))
    }
}

fn mask_proc(namespace: &mut Bubblewrap) -> io::Result<()> {
    let proc = Path::new("/proc");
    for name in MASKED {
        let path = proc.join(name);
        if path.exists() {
            namespace.mask(b"", &path)?;
        }
    }
    for name in MASKED_FOLDERS {
        let path = proc.join(name);
        if path.is_dir() {
            namespace.memory(&path, 0o555, 4096);
            namespace.freeze(&path);
        }
    }
    // What is there of the jail's own namespaces would be its root's to change.
    let settings = proc.join("sys");
    namespace.read_only(&settings, &settings);
    let boot_id = settings.join("kernel/random/boot_id");
    namespace.mask(uuid()?.as_bytes(), &boot_id)
}

/// A random number as `boot_id` writes it (RFC 9562, version 4).
fn uuid() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::new();
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text.push('\n');
    Ok(text)
}
