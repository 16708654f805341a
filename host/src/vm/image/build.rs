//! Puts an image together from a kernel and an agent, and names it after its content.
//!
//! Called by [`Images`](super::Images) under the cache's lock, with everything read and checked.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::cache::{self, Locked};
use super::elf::Elf;
use super::index::{Index, Stamp};
use super::initramfs;
use super::kernel::LoadedKernel;
use super::manifest::{
    AgentInfo, GuestKind, GuestManifest, KernelFormat, MANIFEST_FILE, MANIFEST_VERSION, Source, StoreLayout,
};
use super::{Image, ImageError, Request, Step};

/// Part of an image's name: changes when the same input gives another image.
const FORMAT: u32 = 1;

/// Letters of an image's name: 48 bits, many more than anybody has images.
const ID_LENGTH: usize = 12;

pub(super) const KERNEL_FILE: &str = "vmlinux";
pub(super) const INITRD_FILE: &str = "initramfs.cpio";

/// What every VMM passes. A guest that panics is over: it must not sit there (`panic=-1` resets at
/// once). `init_on_alloc=1` keeps old memory from leaking between programs, and under QEMU's software
/// emulation it is a matter of correctness: without it a page filled by virtio-fs may still run the
/// code it held before.
const CMDLINE: &str = "quiet panic=-1 init_on_alloc=1";

/// The kernel, the initramfs beside its unpacked copy, and a shell fit in it.
const MEMORY_MIB: u32 = 128;

/// The largest agent that is believed.
const MAX_AGENT: u64 = 256 << 20;

/// The agent, checked and in memory.
pub(super) struct Agent {
    /// The file, before it was read.
    stamp: Stamp,
    content: Vec<u8>,
}

/// Everything an image is made of.
pub(super) struct Parts {
    /// PID 1.
    pub(super) agent: Agent,
    /// The kernel and its modules.
    pub(super) kernel: LoadedKernel,
    /// The places that were searched for the kernel: when one changes, the choice may be another.
    pub(super) searched: Vec<Stamp>,
}

impl Parts {
    /// Writes the image, unless it is there and whole, and remembers that `request` gave it.
    pub(super) fn build(
        &self,
        locked: &Locked<'_>,
        request: &Request,
        progress: &mut dyn FnMut(Step),
    ) -> Result<Image, ImageError> {
        let Self { agent, kernel, searched } = self;
        let manifest = describe(agent, kernel);
        let id = identify(&manifest, kernel);
        let dir = locked.cache().images().join(&id);
        let initramfs = initramfs::build(&agent.content, &kernel.modules);
        let files = [(KERNEL_FILE, kernel.vmlinux.as_slice()), (INITRD_FILE, initramfs.as_slice())];
        let whole = |manifest: &GuestManifest| {
            identify(manifest, kernel) == id
                && files
                    .iter()
                    .all(|(name, content)| std::fs::read(dir.join(name)).is_ok_and(|it| it == *content))
        };
        let manifest = match GuestManifest::load(&dir) {
            // The same content again, from files with other times.
            Ok(existing) if whole(&existing) => existing,
            _ => {
                progress(Step::Writing { id: id.clone() });
                let partial = locked.partial(&locked.cache().images())?;
                for (name, content) in files {
                    cache::write_file(&partial.path().join(name), content)?;
                }
                cache::write_file(&partial.path().join(MANIFEST_FILE), &to_json(&manifest))?;
                locked.publish(partial.path(), &dir)?;
                manifest
            }
        };

        let mut stamps = searched.clone();
        stamps.push(agent.stamp.clone());
        stamps.push(kernel.stamp.clone());
        stamps.extend(kernel.modules.iter().map(|module| module.stamp.clone()));
        stamps.extend([KERNEL_FILE, INITRD_FILE, MANIFEST_FILE].map(|name| Stamp::of(&dir.join(name))));
        let mut index = Index::load(&locked.cache().index());
        index.record(request, &id, stamps);
        index.save(locked)?;
        Ok(Image { id, dir, manifest })
    }
}

impl Agent {
    /// Reads the program at `path`.
    pub(super) fn read(path: &Path) -> Result<Self, ImageError> {
        let failed = |source| ImageError::ReadAgent { path: path.to_owned(), source };
        let stamp = Stamp::of(path);
        if std::fs::metadata(path).map_err(failed)?.len() > MAX_AGENT {
            return Err(ImageError::AgentNotElf { path: path.to_owned() });
        }
        let content = std::fs::read(path).map_err(failed)?;
        match Elf::parse(&content) {
            None => Err(ImageError::AgentNotElf { path: path.to_owned() }),
            Some(elf) if elf.has_interpreter() => Err(ImageError::AgentDynamic { path: path.to_owned() }),
            Some(_) => Ok(Self { stamp, content }),
        }
    }
}

fn describe(agent: &Agent, kernel: &LoadedKernel) -> GuestManifest {
    GuestManifest {
        manifest_version: MANIFEST_VERSION,
        name: "lean".to_owned(),
        kind: GuestKind::Lean,
        kernel: KERNEL_FILE.into(),
        kernel_format: KernelFormat::Elf,
        kernel_release: kernel.release.clone(),
        initrd: INITRD_FILE.into(),
        cmdline: CMDLINE.to_owned(),
        memory_mib: MEMORY_MIB,
        vcpus: 1,
        store: StoreLayout::None,
        agent: AgentInfo {
            // Host and agent are released together; a stranger is refused at the handshake.
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: firn_protocol::PROTOCOL_VERSION,
            sha256: sha256_hex(&agent.content),
        },
        modules: kernel.modules.iter().map(|module| module.name.clone()).collect(),
        source: kernel.source.clone(),
        built_at: now(),
    }
}

/// In whole seconds, as the manifest writes it.
fn now() -> SystemTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// The name for an image with this manifest and this kernel.
fn identify(manifest: &GuestManifest, kernel: &LoadedKernel) -> String {
    let mut hash = Sha256::new();
    hash.update(FORMAT.to_le_bytes());
    hash.update(&kernel.sha256);
    for module in &kernel.modules {
        hash.update(sha256_hex(&module.content));
    }
    // Neither when it was built nor where the files were makes it another image.
    let source = Source::File { path: PathBuf::new() };
    hash.update(to_json(&GuestManifest { built_at: SystemTime::UNIX_EPOCH, source, ..manifest.clone() }));
    let mut id = hex(&hash.finalize());
    id.truncate(ID_LENGTH);
    id
}

fn to_json(manifest: &GuestManifest) -> Vec<u8> {
    // Fails for a path that is not UTF-8 only; an empty manifest is then a damaged image, not a panic.
    let mut text = serde_json::to_vec_pretty(manifest).unwrap_or_default();
    text.push(b'\n');
    text
}

/// The SHA-256 of `data` in hexadecimal.
pub(super) fn sha256_hex(data: &[u8]) -> String {
    hex(&Sha256::digest(data))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
