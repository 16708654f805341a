//! A NixOS guest: programs that come with a kernel and an init of their own.
//!
//! Its folder is a guest image: `manifest.json` names the kernel, the initial ramdisk and the list of the store
//! paths that the guest is shown. Whoever builds an image decides what it boots, and nothing else: what it
//! names is in its folder or in the store, so a sandbox is shown none of the host's other files.

use super::closure::{self, STORE};
use super::{EnvironmentError, metadata};
use crate::view::export::SHARES_TAG;
use crate::vm::image::{GuestKind, GuestManifest, Image, MANIFEST_FILE, ManifestError, StoreLayout};
use firn_protocol::PROTOCOL_VERSION;
use std::path::{Path, PathBuf};

/// The most of a manifest that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// The longest tag that virtio-fs has (its specification, "Device configuration layout").
const LONGEST_TAG: usize = 36;

/// A guest image that can be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestImage {
    /// The image.
    pub(crate) image: Image,
    /// What of the store it is shown. None: it brings its own, or has none.
    pub(crate) store: Option<StoreShare>,
}

/// What a guest is shown of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoreShare {
    /// The virtio-fs tag by which the guest mounts it.
    pub(crate) tag: String,
    /// The entries that its image lists, in their order.
    pub(crate) paths: Vec<PathBuf>,
}

/// Why an image is not booted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestImageError {
    /// Its manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// It is one of firn's own.
    #[error("it is the lean guest's, which firn takes by itself: leave --env out")]
    Lean,
    /// It would have a file of the host's loaded into the guest.
    #[error("{} is neither in it nor in {STORE}", .0.display())]
    Outside(PathBuf),
    /// Its store cannot be given to it.
    #[error("its store is on a disk, which no sandbox has: share the host's by a tag (firn.guest.storeTag)")]
    Disk,
    /// A tag that no device can have.
    #[error(
        "its store's tag {0:?} is not 1 to {LONGEST_TAG} letters, digits, '.', '_' and '-', and not {SHARES_TAG}"
    )]
    Tag(String),
    /// Its agent could not be talked to.
    #[error("its agent speaks protocol {0}, this firn {PROTOCOL_VERSION}: build it with the same release")]
    Protocol(u32),
}

impl GuestImage {
    /// Whether a folder is a guest image, and no other environment.
    pub(super) fn is_in(folder: &Path) -> bool {
        folder.join(MANIFEST_FILE).exists() && !folder.join(metadata::FILE).exists()
    }

    /// Reads the one in `folder`, which is without links.
    pub(super) fn open(folder: PathBuf) -> Result<GuestImage, EnvironmentError> {
        let text = metadata::read(&folder.join(MANIFEST_FILE), LONGEST).map_err(|source| {
            EnvironmentError::Lacks { folder: folder.clone(), file: MANIFEST_FILE.into(), source }
        })?;
        let refused = |source| EnvironmentError::Guest { folder: folder.clone(), source };
        let manifest = read(&folder, &text).map_err(refused)?;
        let store = match &manifest.store {
            StoreLayout::Virtiofs { tag, closure } => {
                let list = metadata::beside(&folder, closure)?;
                Some(StoreShare { tag: tag.clone(), paths: closure::list(&folder, list)? })
            }
            StoreLayout::None | StoreLayout::Disk { .. } => None,
        };
        let id = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(GuestImage { image: Image { id, dir: folder, manifest }, store })
    }

    /// What it calls itself.
    pub(crate) fn name(&self) -> &str {
        &self.image.manifest.name
    }

    /// The least memory it boots with, in bytes.
    pub(crate) fn least_memory(&self) -> u64 {
        u64::from(self.image.manifest.memory_mib) << 20
    }
}

fn read(folder: &Path, text: &[u8]) -> Result<GuestManifest, GuestImageError> {
    let manifest = GuestManifest::parse(folder, text)?;
    if manifest.kind == GuestKind::Lean {
        return Err(GuestImageError::Lean);
    }
    if manifest.agent.protocol != PROTOCOL_VERSION {
        return Err(GuestImageError::Protocol(manifest.agent.protocol));
    }
    for file in manifest.files() {
        let file = folder.join(file);
        let real = std::fs::canonicalize(&file).unwrap_or_else(|_gone| file.clone());
        if !real.starts_with(folder) && !real.starts_with(STORE) {
            return Err(GuestImageError::Outside(file));
        }
    }
    match &manifest.store {
        StoreLayout::Disk { .. } => Err(GuestImageError::Disk),
        StoreLayout::Virtiofs { tag, .. } if !is_tag(tag) => Err(GuestImageError::Tag(tag.clone())),
        StoreLayout::Virtiofs { .. } | StoreLayout::None => Ok(manifest),
    }
}

fn is_tag(tag: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    // That of the caller's folders is taken.
    (1..=LONGEST_TAG).contains(&tag.len()) && tag.bytes().all(plain) && tag != SHARES_TAG
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::env::Environment;
    use serde_json::{Value, json};
    use std::fs;

    fn manifest() -> Value {
        json!({
            "manifest_version": 1, "name": "nixos", "kind": "nixos", "kernel": "vmlinux",
            "kernel_format": "elf", "kernel_release": "6.12.1", "initrd": "initrd", "cmdline": "quiet",
            "memory_mib": 512, "vcpus": 2, "store": {"kind": "none"},
            "agent": {"version": "0.1.0", "protocol": PROTOCOL_VERSION, "sha256": "ab"},
            "source": {"kind": "package", "name": "linux", "version": "6.12.1"},
            "built_at": "2026-01-01T00:00:00Z",
        })
    }

    /// An image that can be found, if not booted.
    pub(crate) fn guest_image() -> tempfile::TempDir {
        image(&manifest())
    }

    fn image(manifest: &Value) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in ["vmlinux", "initrd"] {
            fs::write(dir.path().join(file), "x").unwrap();
        }
        fs::write(dir.path().join(MANIFEST_FILE), manifest.to_string()).unwrap();
        dir
    }

    fn refused(change: impl FnOnce(&mut Value)) -> GuestImageError {
        let mut manifest = manifest();
        change(&mut manifest);
        match Environment::find(image(&manifest).path().as_os_str()) {
            Err(EnvironmentError::Guest { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_image_is_an_environment() {
        let dir = guest_image();
        let Environment::Guest(guest) = Environment::find(dir.path().as_os_str()).unwrap() else { panic!() };
        assert_eq!((guest.name(), guest.least_memory()), ("nixos", 512 << 20));
        assert_eq!(guest.store, None);
    }

    #[test]
    fn what_cannot_be_booted_is_refused_with_the_reason() {
        assert!(matches!(refused(|it| it["kind"] = "lean".into()), GuestImageError::Lean));
        assert!(matches!(refused(|it| it["agent"]["protocol"] = 99.into()), GuestImageError::Protocol(99)));
        assert!(matches!(refused(|it| it["surprise"] = 1.into()), GuestImageError::Manifest(_)));
        let disk = json!({"kind": "disk", "path": "initrd"});
        assert!(matches!(refused(|it| it["store"] = disk), GuestImageError::Disk));
        for tag in ["", SHARES_TAG, "a,b", "a/b", &"x".repeat(37)] {
            let store = json!({"kind": "virtiofs", "tag": tag, "closure": "closure"});
            assert!(matches!(refused(|it| it["store"] = store), GuestImageError::Tag(_)), "{tag:?}");
        }
    }

    #[test]
    fn a_file_of_the_hosts_is_not_loaded_into_a_guest() {
        for path in ["/etc/passwd", "../../../etc/passwd"] {
            let outside = refused(|it| it["initrd"] = path.into());
            assert!(matches!(outside, GuestImageError::Outside(_) | GuestImageError::Manifest(_)), "{path}");
        }
        let dir = image(&manifest());
        fs::remove_file(dir.path().join("initrd")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("initrd")).unwrap();
        let found = Environment::find(dir.path().as_os_str());
        let Err(EnvironmentError::Guest { source: GuestImageError::Outside(_), .. }) = found else {
            panic!("{found:?}")
        };
    }

    #[test]
    fn a_guest_is_shown_entries_of_the_store_only() {
        let mut manifest = manifest();
        manifest["store"] = json!({"kind": "virtiofs", "tag": "store", "closure": "closure"});
        let dir = image(&manifest);
        fs::write(dir.path().join("closure"), "/etc\n").unwrap();
        let found = Environment::find(dir.path().as_os_str());
        assert!(matches!(found, Err(EnvironmentError::OutsideStore { line: 1, .. })), "{found:?}");
        manifest["store"]["closure"] = "/etc/passwd".into();
        fs::write(dir.path().join(MANIFEST_FILE), manifest.to_string()).unwrap();
        let found = Environment::find(dir.path().as_os_str());
        assert!(matches!(found, Err(EnvironmentError::NotBeside { .. })), "{found:?}");
    }
}
