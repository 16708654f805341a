//! The kernel modules of a guest: which are wanted, where they are, and in which order they load.
//!
//! A module names what it needs itself, in its `.modinfo` section (`depends=`, written by the
//! kernel's build). `modules.dep` is not read: `depmod` writes it when a kernel package is
//! *installed*, and a package that was only unpacked has none.
//!
//! Called while an image is built. It does not load anything: the agent does, in the order given.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::compression::{Compression, DecompressError};
use super::elf::Elf;
use super::index::Stamp;

/// What the lean guest needs, in the order in which it is needed; what these depend on comes before
/// each of them.
pub(super) const WANTED: &[Wanted] = &[
    // The buses: microvm has virtio-mmio, every other machine PCI.
    Wanted::required("virtio_mmio"),
    Wanted::required("virtio_pci"),
    // The agent dials the host as soon as this is there, before the rest is loaded.
    Wanted::required("vmw_vsock_virtio_transport"),
    // The view, and what can be written over it.
    Wanted::required("virtiofs"),
    Wanted::required("overlay"),
    // Network `full`.
    Wanted::required("virtio_net"),
    // A disk instead of a tmpfs for what is written, and its filesystem.
    Wanted::required("virtio_blk"),
    Wanted::required("ext4"),
    // The processor gives randomness too, so a kernel without this one will do.
    Wanted::optional("virtio_rng"),
];

/// The largest module that is believed; the largest real ones are below 10 MiB.
const MAX_MODULE: usize = 64 << 20;

/// A module the guest asks for.
pub(super) struct Wanted {
    name: &'static str,
    need: Need,
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Need {
    Required,
    Optional,
}

impl Wanted {
    const fn required(name: &'static str) -> Self {
        Self { name, need: Need::Required }
    }

    const fn optional(name: &'static str) -> Self {
        Self { name, need: Need::Optional }
    }
}

/// A module, ready for the initramfs.
#[derive(Debug)]
pub(super) struct Module {
    /// The name with underscores, as `lsmod` shows it.
    pub(super) name: String,
    /// The file it came from, before it was read.
    pub(super) stamp: Stamp,
    /// The kernel release it was built for, when it says so.
    pub(super) built_for: Option<String>,
    /// The ELF file, decompressed.
    pub(super) content: Vec<u8>,
}

/// Why the modules of a kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    /// The directory of modules cannot be listed.
    #[error("cannot list the kernel modules in {}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A module cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The module, or `modules.builtin`.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A module cannot be decompressed.
    #[error("cannot decompress {}", path.display())]
    Decompress {
        /// The module.
        path: PathBuf,
        /// Why.
        #[source]
        source: DecompressError,
    },
    /// A file is not a module.
    #[error("{} is not a kernel module", path.display())]
    NotAModule {
        /// The file.
        path: PathBuf,
    },
    /// The kernel does not have something the guest needs.
    #[error("the kernel of {} has no module {name}", dir.display())]
    Missing {
        /// The directory of the kernel's modules.
        dir: PathBuf,
        /// The module.
        name: String,
    },
}

/// The modules of one kernel: `/lib/modules/RELEASE`.
#[derive(Debug)]
pub(super) struct ModuleTree {
    dir: PathBuf,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl ModuleTree {
    /// Lists the modules below `dir`, a directory that holds `kernel/` and `modules.builtin`.
    pub(super) fn open(dir: &Path) -> Result<Self, ModuleError> {
        let builtin_path = dir.join("modules.builtin");
        let builtin = match std::fs::read_to_string(&builtin_path) {
            Ok(text) => text.lines().filter_map(|line| module_name(Path::new(line))).collect(),
            Err(source) => return Err(ModuleError::Read { path: builtin_path, source }),
        };
        let mut files = BTreeMap::new();
        // Only what the kernel's build made: `updates/` and `extra/` hold the host's own drivers.
        list(&dir.join("kernel"), &mut files)?;
        Ok(Self { dir: dir.to_owned(), files, builtin })
    }

    /// Reads the wanted modules and everything they depend on, each once, dependencies first. What is
    /// built into the kernel is left out.
    pub(super) fn load(&self, wanted: &[Wanted]) -> Result<Vec<Module>, ModuleError> {
        let mut loading = Loading { tree: self, seen: BTreeSet::new(), loaded: Vec::new() };
        for Wanted { name, need } in wanted {
            if *need == Need::Required || self.files.contains_key(*name) {
                loading.add(name)?;
            }
        }
        Ok(loading.loaded)
    }
}

struct Loading<'a> {
    tree: &'a ModuleTree,
    seen: BTreeSet<String>,
    loaded: Vec<Module>,
}

impl Loading<'_> {
    fn add(&mut self, name: &str) -> Result<(), ModuleError> {
        // Marked before its dependencies are visited, so that a cycle ends.
        if self.tree.builtin.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.tree.files.get(name) else {
            return Err(ModuleError::Missing { dir: self.tree.dir.clone(), name: name.to_owned() });
        };
        let stamp = Stamp::of(path);
        let content = read(path)?;
        let info = Elf::parse(&content).and_then(|elf| elf.section(".modinfo"));
        let Some(info) = info else {
            return Err(ModuleError::NotAModule { path: path.clone() });
        };
        let built_for = values(info, "vermagic=").next();
        let built_for = built_for.and_then(|magic| magic.split(' ').next()).map(str::to_owned);
        let names = values(info, "depends=").flat_map(|names| names.split(','));
        for dependency in names.filter(|name| !name.is_empty()) {
            self.add(&dependency.replace('-', "_"))?;
        }
        self.loaded.push(Module { name: name.to_owned(), stamp, built_for, content });
        Ok(())
    }
}

/// What stands behind `key` in a `.modinfo` section, whose entries end in a zero byte.
fn values<'a>(info: &'a [u8], key: &'static str) -> impl Iterator<Item = &'a str> {
    info.split(|byte| *byte == 0).filter_map(move |line| std::str::from_utf8(line).ok()?.strip_prefix(key))
}

/// `virtio_rng` for `kernel/…/virtio-rng.ko.xz`: the kernel writes the same name both ways.
fn module_name(path: &Path) -> Option<String> {
    let (name, extension) = path.file_name()?.to_str()?.split_once(".ko")?;
    matches!(extension, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

fn list(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), ModuleError> {
    let failed = |source| ModuleError::List { path: dir.to_owned(), source };
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            list(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, ModuleError> {
    let content =
        std::fs::read(path).map_err(|source| ModuleError::Read { path: path.to_owned(), source })?;
    match Compression::detect(&content) {
        None => Ok(content),
        Some(format) => format
            .decompress(&content, MAX_MODULE)
            .map_err(|source| ModuleError::Decompress { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::compression::tests::compress;
    use super::super::elf::tests::module;
    use super::*;

    /// Writes a directory of modules: what [`WANTED`] needs, packed in every way there is.
    pub(in super::super) fn fake_tree(dir: &Path) {
        let kernel = dir.join("kernel/drivers");
        std::fs::create_dir_all(&kernel).unwrap();
        std::fs::write(dir.join("modules.builtin"), "kernel/fs/ext4/ext4.ko\nkernel/fs/fuse/fuse.ko\n")
            .unwrap();
        let plain = |name: &str, depends: &str| {
            let content = module(&[
                "license=GPL",
                &format!("depends={depends}"),
                "vermagic=6.1.0-1-test SMP mod_unload",
            ]);
            (name.to_owned(), content)
        };
        for (index, (name, content)) in [
            plain("virtio", ""),
            plain("virtio_ring", "virtio"),
            plain("virtio_mmio", "virtio_ring,virtio"),
            plain("virtio_pci", "virtio_ring,virtio"),
            plain("vsock", ""),
            plain("vmw_vsock_virtio_transport", "virtio,virtio_ring,vsock"),
            plain("virtiofs", "fuse,virtio,virtio_ring"),
            plain("overlay", ""),
            plain("failover", ""),
            plain("virtio_net", "virtio,failover"),
            plain("virtio_blk", "virtio"),
            plain("virtio-rng", "virtio"),
        ]
        .into_iter()
        .enumerate()
        {
            let (suffix, content) = match index % 4 {
                0 => ("", content),
                1 => (".xz", compress(Compression::Xz, &content)),
                2 => (".zst", compress(Compression::Zstd, &content)),
                _ => (".gz", compress(Compression::Gzip, &content)),
            };
            std::fs::write(kernel.join(format!("{name}.ko{suffix}")), content).unwrap();
        }
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let dir = tempfile::tempdir().unwrap();
        fake_tree(dir.path());
        let modules = ModuleTree::open(dir.path()).unwrap().load(WANTED).unwrap();
        assert_eq!(
            names(&modules),
            [
                "virtio",
                "virtio_ring",
                "virtio_mmio",
                "virtio_pci",
                "vsock",
                "vmw_vsock_virtio_transport",
                "virtiofs",
                "overlay",
                "failover",
                "virtio_net",
                "virtio_blk",
                "virtio_rng",
            ]
        );
        assert!(modules.iter().all(|module| module.content.starts_with(b"\x7fELF")), "all decompressed");
    }

    #[test]
    fn a_missing_module_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fake_tree(dir.path());
        std::fs::remove_file(dir.path().join("kernel/drivers/vsock.ko")).unwrap();
        let error = ModuleTree::open(dir.path()).unwrap().load(WANTED).unwrap_err();
        assert!(matches!(error, ModuleError::Missing { ref name, .. } if name == "vsock"), "{error:?}");
    }

    #[test]
    fn an_optional_module_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        fake_tree(dir.path());
        std::fs::remove_file(dir.path().join("kernel/drivers/virtio-rng.ko.gz")).unwrap();
        let modules = ModuleTree::open(dir.path()).unwrap().load(WANTED).unwrap();
        assert!(!names(&modules).contains(&"virtio_rng"));
    }

    #[test]
    fn a_cycle_ends() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("kernel")).unwrap();
        std::fs::write(dir.path().join("modules.builtin"), "").unwrap();
        std::fs::write(dir.path().join("kernel/a.ko"), module(&["depends=b"])).unwrap();
        std::fs::write(dir.path().join("kernel/b.ko"), module(&["depends=a"])).unwrap();
        let modules = ModuleTree::open(dir.path()).unwrap().load(&[Wanted::required("a")]).unwrap();
        assert_eq!(names(&modules), ["b", "a"]);
    }

    #[test]
    fn what_is_not_a_module_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fake_tree(dir.path());
        std::fs::write(dir.path().join("kernel/drivers/vsock.ko"), "text").unwrap();
        let error = ModuleTree::open(dir.path()).unwrap().load(WANTED).unwrap_err();
        assert!(matches!(error, ModuleError::NotAModule { .. }), "{error:?}");
    }
}
