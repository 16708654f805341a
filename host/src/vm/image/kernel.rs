//! Finds the kernel for a guest on the host.
//!
//! Candidates are files: those the caller names, or what is installed. Whether a candidate really
//! serves shows when it is read ([`Kernel::read`]); the caller goes on to the next one, and to
//! [`package`](super::package) when there is none.

use std::cmp::Ordering;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::build::sha256_hex;
use super::bzimage::{self, ExtractError};
use super::index::Stamp;
use super::manifest::Source;
use super::modules::{Module, ModuleError, ModuleTree, WANTED};

/// Which kernel a guest image is built with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum KernelSource {
    /// An installed one that serves, else one of the distribution's packages, which is fetched into
    /// the cache and not installed.
    Auto,
    /// These files.
    Files {
        /// A bzImage or vmlinux.
        kernel: PathBuf,
        /// Its modules: a directory like `/lib/modules/RELEASE`.
        modules: PathBuf,
    },
}

/// A kernel that may serve.
#[derive(Debug)]
pub(super) struct Kernel {
    /// A bzImage or vmlinux.
    pub(super) image: PathBuf,
    /// The directory of its modules.
    pub(super) modules: PathBuf,
    /// How the manifest describes it.
    pub(super) source: Source,
}

/// A kernel in memory, with the modules the guest needs.
#[derive(Debug)]
pub(super) struct LoadedKernel {
    /// The file it came from, before anything was read.
    pub(super) stamp: Stamp,
    /// The SHA-256 of that file.
    pub(super) sha256: String,
    /// The uncompressed kernel.
    pub(super) vmlinux: Vec<u8>,
    /// What `uname -r` will say.
    pub(super) release: String,
    /// In load order.
    pub(super) modules: Vec<Module>,
    /// How the manifest describes it.
    pub(super) source: Source,
}

/// Why a kernel does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// The file cannot be read.
    #[error("cannot read the kernel {}", path.display())]
    Read {
        /// The kernel.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not a kernel a VMM can start.
    #[error("cannot use the kernel {}", path.display())]
    Extract {
        /// The kernel.
        path: PathBuf,
        /// Why.
        #[source]
        source: ExtractError,
    },
    /// Its modules are not what the guest needs.
    #[error("cannot use the modules of the kernel {}", path.display())]
    Modules {
        /// The kernel.
        path: PathBuf,
        /// Why.
        #[source]
        source: ModuleError,
    },
    /// The modules are those of another kernel: it would refuse to load them.
    #[error("the kernel {} is {kernel}, but its module {module} is for {built_for}", path.display())]
    OtherRelease {
        /// The kernel.
        path: PathBuf,
        /// Its release.
        kernel: String,
        /// A module.
        module: String,
        /// The release that module was built for.
        built_for: String,
    },
}

impl Kernel {
    /// Reads, extracts and checks everything that goes into an image.
    pub(super) fn read(self) -> Result<LoadedKernel, KernelError> {
        let path = self.image;
        let stamp = Stamp::of(&path);
        let image = match std::fs::read(&path) {
            Ok(image) => image,
            Err(source) => return Err(KernelError::Read { path, source }),
        };
        let modules = ModuleTree::open(&self.modules).and_then(|tree| tree.load(WANTED));
        let modules = match modules {
            Ok(modules) => modules,
            Err(source) => return Err(KernelError::Modules { path, source }),
        };
        let sha256 = sha256_hex(&image);
        let named = bzimage::release(&image);
        let built_for = modules.iter().find_map(|module| module.built_for.clone());
        let directory = || self.modules.file_name().map(|name| name.to_string_lossy().into_owned());
        let release = named.or(built_for).or_else(directory).unwrap_or_default();
        for module in &modules {
            if let Some(built_for) = module.built_for.clone().filter(|built_for| *built_for != release) {
                return Err(KernelError::OtherRelease {
                    path,
                    kernel: release,
                    module: module.name.clone(),
                    built_for,
                });
            }
        }
        match bzimage::extract_vmlinux(image) {
            Ok(vmlinux) => Ok(LoadedKernel { stamp, sha256, vmlinux, release, modules, source: self.source }),
            Err(source) => Err(KernelError::Extract { path, source }),
        }
    }
}

/// Where a host keeps its installed kernels.
#[derive(Debug, Clone)]
pub(super) struct Installed {
    /// Holds `vmlinuz-RELEASE`.
    pub(super) boot: PathBuf,
    /// Each holds `RELEASE/`, some with a `vmlinuz` inside.
    pub(super) modules: Vec<PathBuf>,
}

impl Default for Installed {
    fn default() -> Self {
        Self { boot: "/boot".into(), modules: vec!["/usr/lib/modules".into(), "/lib/modules".into()] }
    }
}

impl Installed {
    /// The installed kernels that can be read, the best first: a flavour made for virtual machines,
    /// then the newest.
    pub(super) fn kernels(&self) -> Vec<Kernel> {
        let mut found: Vec<(String, Kernel)> = Vec::new();
        for entry in self.modules.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten() {
            let Ok(release) = entry.file_name().into_string() else { continue };
            let modules = entry.path();
            // Some distributions keep the kernel with its modules. Ubuntu's is readable by root only.
            let places = [self.boot.join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
            let readable = places.into_iter().find(|path| std::fs::File::open(path).is_ok());
            // With merged directories every kernel is seen twice.
            if let Some(image) = readable
                && !found.iter().any(|(known, _)| *known == release)
            {
                let source = Source::File { path: image.clone() };
                found.push((release, Kernel { image, modules, source }));
            }
        }
        found.sort_by(|(a, _), (b, _)| better_first(a, b));
        found.into_iter().map(|(_, kernel)| kernel).collect()
    }

    /// Stamps of the directories: they change when a kernel comes or goes.
    pub(super) fn stamps(&self) -> impl Iterator<Item = Stamp> {
        std::iter::once(&self.boot).chain(&self.modules).map(|dir| Stamp::of(dir))
    }
}

/// Sorts kernel releases, or names with releases in them: virtual machine flavours first, then newest.
pub(super) fn better_first(a: &str, b: &str) -> Ordering {
    let virtual_flavour = |release: &str| release.contains("-cloud-") || release.ends_with("-virtual");
    virtual_flavour(b).cmp(&virtual_flavour(a)).then_with(|| compare_versions(b, a)).then_with(|| a.cmp(b))
}

/// Compares as people do: `6.1.0-9` is older than `6.1.0-10`.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b))
}

/// The kernel in `files`, whose paths the caller named.
pub(super) fn named(kernel: &Path, modules: &Path) -> Kernel {
    Kernel {
        image: kernel.to_owned(),
        modules: modules.to_owned(),
        source: Source::File { path: kernel.to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cloud_flavour_and_the_newest_come_first() {
        let mut releases = ["6.1.0-9-amd64", "6.1.0-10-amd64", "5.10.0-1-cloud-amd64", "6.1.0-2-cloud-amd64"];
        releases.sort_by(|a, b| better_first(a, b));
        assert_eq!(
            releases,
            ["6.1.0-2-cloud-amd64", "5.10.0-1-cloud-amd64", "6.1.0-10-amd64", "6.1.0-9-amd64"]
        );
    }

    #[test]
    fn installed_kernels_need_an_image_and_modules() {
        let dir = tempfile::tempdir().unwrap();
        let installed = Installed {
            boot: dir.path().join("boot"),
            modules: vec![dir.path().join("usr/lib/modules"), dir.path().join("lib/modules")],
        };
        assert!(installed.kernels().is_empty(), "nothing is there");
        for release in ["6.1.0-1-amd64", "6.2.0", "no-image"] {
            std::fs::create_dir_all(dir.path().join("usr/lib/modules").join(release)).unwrap();
        }
        std::os::unix::fs::symlink("usr/lib", dir.path().join("lib")).unwrap();
        std::fs::create_dir(&installed.boot).unwrap();
        std::fs::write(installed.boot.join("vmlinuz-6.1.0-1-amd64"), "").unwrap();
        std::fs::write(installed.boot.join("vmlinuz-no-modules"), "").unwrap();
        std::fs::write(dir.path().join("usr/lib/modules/6.2.0/vmlinuz"), "").unwrap();
        let found: Vec<PathBuf> = installed.kernels().into_iter().map(|kernel| kernel.image).collect();
        assert_eq!(
            found,
            [dir.path().join("usr/lib/modules/6.2.0/vmlinuz"), installed.boot.join("vmlinuz-6.1.0-1-amd64")]
        );
    }
}
