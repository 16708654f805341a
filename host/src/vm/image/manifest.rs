//! The guest manifest: what the host must know to boot a guest image, as one JSON file.
//!
//! Both kinds of guest are described by it: the lean image, whose manifest is written here, and a
//! NixOS guest, whose manifest its Nix build writes. It is read by the VM bring-up and by
//! `firn image`. It holds nothing about a sandbox (no address, no share, no size that a caller
//! chose) and nothing about one VMM: a VMM adds its console, clock and power-off options to the
//! command line itself.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The version of the format that is written, and the newest that is read.
pub(crate) const MANIFEST_VERSION: u32 = 1;

/// The manifest's name in an image's directory.
pub(crate) const MANIFEST_FILE: &str = "manifest.json";

/// Describes a guest image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GuestManifest {
    /// [`MANIFEST_VERSION`].
    pub(crate) manifest_version: u32,
    /// What people call it: `lean`, or the name of the NixOS configuration.
    pub(crate) name: String,
    /// What runs as PID 1.
    pub(crate) kind: GuestKind,
    /// The kernel; relative to the manifest's directory, or absolute.
    pub(crate) kernel: PathBuf,
    /// What sort of file the kernel is.
    pub(crate) kernel_format: KernelFormat,
    /// What `uname -r` says in the guest.
    pub(crate) kernel_release: String,
    /// The initial ramdisk; relative to the manifest's directory, or absolute.
    pub(crate) initrd: PathBuf,
    /// The kernel command line that every VMM passes, before what it adds itself.
    pub(crate) cmdline: String,
    /// The least memory it boots with and can do something, in MiB.
    pub(crate) memory_mib: u32,
    /// The number of vCPUs when nobody says otherwise.
    pub(crate) vcpus: u32,
    /// Where the guest finds its Nix store.
    pub(crate) store: StoreLayout,
    /// The agent inside.
    pub(crate) agent: AgentInfo,
    /// The kernel modules inside, in the order they are to be loaded.
    #[serde(default)]
    pub(crate) modules: Vec<String>,
    /// Where the kernel came from.
    pub(crate) source: Source,
    /// When it was built (RFC 3339, UTC).
    #[serde(with = "rfc3339")]
    pub(crate) built_at: SystemTime,
}

/// What runs as PID 1 of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GuestKind {
    /// The agent, from the initramfs.
    Lean,
    /// systemd; the agent is a service.
    Nixos,
}

/// What sort of file a kernel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KernelFormat {
    /// An uncompressed vmlinux with a PVH entry point.
    Elf,
}

/// Where a guest finds its Nix store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum StoreLayout {
    /// It needs none of its own: what it sees is the sandbox's view.
    None,
    /// The host shares its store over virtio-fs.
    Virtiofs {
        /// The mount tag the guest expects.
        tag: String,
        /// The list of the store paths that are shared, one a line: a file in the manifest's directory.
        closure: PathBuf,
    },
    /// The store is a read-only disk image.
    Disk {
        /// The disk image; relative to the manifest's directory, or absolute.
        path: PathBuf,
    },
}

/// The agent in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AgentInfo {
    /// The release of firn it belongs to.
    pub(crate) version: String,
    /// The protocol version it speaks.
    pub(crate) protocol: u32,
    /// The SHA-256 of the program, in hexadecimal.
    pub(crate) sha256: String,
}

/// Where a kernel came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Source {
    /// A package of the distribution.
    Package {
        /// The package's name.
        name: String,
        /// The package's version.
        version: String,
    },
    /// A file, named by the caller or installed on the host.
    File {
        /// Where it was.
        path: PathBuf,
    },
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The manifest.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not a manifest.
    #[error("{} is not a guest manifest", path.display())]
    Parse {
        /// The manifest.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It was written by a newer firn.
    #[error("{} is a guest manifest of version {version}, newer than {MANIFEST_VERSION}: update firn", path.display())]
    Newer {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A file it names is not there.
    #[error("{} names {}, which is missing or empty: build the image again", path.display(), missing.display())]
    MissingFile {
        /// The manifest.
        path: PathBuf,
        /// The file that is not there.
        missing: PathBuf,
    },
}

impl GuestManifest {
    /// Reads the manifest of the image in `dir` and checks that the files it names are there.
    pub(crate) fn load(dir: &Path) -> Result<Self, ManifestError> {
        let path = dir.join(MANIFEST_FILE);
        match std::fs::read(&path) {
            Ok(text) => Self::parse(dir, &text),
            Err(source) => Err(ManifestError::Read { path, source }),
        }
    }

    /// The same of a manifest in `dir` that has been read already.
    pub(crate) fn parse(dir: &Path, text: &[u8]) -> Result<Self, ManifestError> {
        /// Read first, so that a newer format is called newer, not wrong.
        #[derive(Deserialize)]
        struct Version {
            manifest_version: u32,
        }

        let path = dir.join(MANIFEST_FILE);
        let parsed = serde_json::from_slice(text).and_then(|Version { manifest_version }| {
            if manifest_version > MANIFEST_VERSION {
                return Ok(Err(manifest_version));
            }
            serde_json::from_slice(text).map(Ok)
        });
        let manifest: Self = match parsed {
            Ok(Ok(manifest)) => manifest,
            Ok(Err(version)) => return Err(ManifestError::Newer { path, version }),
            Err(source) => return Err(ManifestError::Parse { path, source }),
        };
        for file in manifest.files() {
            let missing = dir.join(file);
            if !std::fs::metadata(&missing).is_ok_and(|found| found.is_file() && found.len() > 0) {
                return Err(ManifestError::MissingFile { path, missing });
            }
        }
        Ok(manifest)
    }

    /// The files an image consists of beside its manifest.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        let disk = match &self.store {
            StoreLayout::Disk { path } => Some(path.as_path()),
            StoreLayout::None | StoreLayout::Virtiofs { .. } => None,
        };
        [self.kernel.as_path(), self.initrd.as_path()].into_iter().chain(disk)
    }
}

/// Seconds, because nobody needs more and the file is read by people.
mod rfc3339 {
    use super::{Deserialize, SystemTime};
    use serde::de::Error as _;

    pub(super) fn serialize<S: serde::Serializer>(time: &SystemTime, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(&humantime::format_rfc3339_seconds(*time))
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(input: D) -> Result<SystemTime, D::Error> {
        humantime::parse_rfc3339(&String::deserialize(input)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::time::Duration;

    pub(in super::super) fn manifest() -> GuestManifest {
        GuestManifest {
            manifest_version: MANIFEST_VERSION,
            name: "lean".into(),
            kind: GuestKind::Lean,
            kernel: "vmlinux".into(),
            kernel_format: KernelFormat::Elf,
            kernel_release: "6.1.0-1-cloud-amd64".into(),
            initrd: "initramfs.cpio".into(),
            cmdline: "quiet".into(),
            memory_mib: 128,
            vcpus: 1,
            store: StoreLayout::None,
            agent: AgentInfo { version: "0.1.0".into(), protocol: 1, sha256: "ab".repeat(32) },
            modules: vec!["virtio".into(), "vsock".into()],
            source: Source::Package {
                name: "linux-image-6.1.0-1-cloud-amd64".into(),
                version: "6.1.1-1".into(),
            },
            built_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        }
    }

    fn image(manifest: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vmlinux"), "k").unwrap();
        std::fs::write(dir.path().join("initramfs.cpio"), "i").unwrap();
        std::fs::write(dir.path().join(MANIFEST_FILE), manifest).unwrap();
        dir
    }

    #[test]
    fn the_format_is_what_it_was() {
        insta::assert_json_snapshot!(manifest());
    }

    #[test]
    fn the_variants_are_what_they_were() {
        insta::assert_json_snapshot!((
            GuestKind::Nixos,
            StoreLayout::Virtiofs { tag: "store".into(), closure: "closure".into() },
            StoreLayout::Disk { path: "store.erofs".into() },
            Source::File { path: "/boot/vmlinuz-6.1".into() },
        ));
    }

    #[test]
    fn it_comes_back() {
        let dir = image(&serde_json::to_string(&manifest()).unwrap());
        assert_eq!(GuestManifest::load(dir.path()).unwrap(), manifest());
    }

    #[test]
    fn a_newer_one_is_called_newer() {
        let dir = image(r#"{"manifest_version": 2, "shape": "unknown"}"#);
        let error = GuestManifest::load(dir.path()).unwrap_err();
        assert!(matches!(error, ManifestError::Newer { version: 2, .. }), "{error:?}");
    }

    #[test]
    fn damage_is_an_error() {
        for text in ["", "{", "{}", r#"{"manifest_version": 1}"#] {
            let error = GuestManifest::load(image(text).path()).unwrap_err();
            assert!(matches!(error, ManifestError::Parse { .. }), "{text:?}: {error:?}");
        }
    }

    #[test]
    fn a_missing_file_is_an_error() {
        let dir = image(&serde_json::to_string(&manifest()).unwrap());
        std::fs::write(dir.path().join("vmlinux"), "").unwrap();
        let error = GuestManifest::load(dir.path()).unwrap_err();
        assert!(
            matches!(error, ManifestError::MissingFile { ref missing, .. } if missing.ends_with("vmlinux"))
        );
    }
}
