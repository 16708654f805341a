//! The lean guest image: a distribution's kernel and an initramfs with the agent as PID 1.
//!
//! [`Images`] owns the images in the cache. `ensure` gives the image for a kernel and an agent and
//! builds it when there is none; it is called when a VM is brought up and by `firn image build`. It
//! blocks (it reads, decompresses and may download), so asynchronous callers give it a thread.
//!
//! ```text
//!   Request ── index: nothing changed? ──────────────────────────────▶ Image   (well under 1 ms)
//!      │ no
//!      └─▶ lock ─▶ kernel (installed │ cached │ package) ─▶ vmlinux, modules ─┐
//!                  agent ────────────────────────────────▶ initramfs ─────────┴▶ Image
//! ```
//!
//! An image is a directory named after its content (kernel file, modules, agent, format); it never
//! changes, and older ones stay until they are removed. Nothing about a sandbox is in it, and nothing
//! about one VMM. NixOS guests are built elsewhere and only share the [manifest](GuestManifest).

mod build;
mod bzimage;
mod cache;
mod compression;
mod elf;
mod index;
mod initramfs;
mod kernel;
mod manifest;
mod modules;
mod package;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use build::{Agent, Parts};
use cache::Cache;
use index::{Index, Stamp};
use kernel::{Installed, LoadedKernel};

pub(crate) use cache::CacheError;
pub(crate) use kernel::{KernelError, KernelSource};
pub(crate) use manifest::{GuestKind, GuestManifest, MANIFEST_FILE, ManifestError, Source, StoreLayout};
pub(crate) use package::PackageError;

/// What an image is to be made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The kernel.
    pub(crate) kernel: KernelSource,
    /// The agent's program: a static x86-64 ELF file of this release of firn.
    pub(crate) agent: PathBuf,
}

/// An image that can be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    /// The directory's name.
    pub(crate) id: String,
    /// Where the files are.
    pub(crate) dir: PathBuf,
    /// What it is.
    pub(crate) manifest: GuestManifest,
}

/// An image in a list; it may be damaged.
#[derive(Debug)]
pub(crate) struct Listed {
    /// The directory's name.
    pub(crate) id: String,
    /// What its files take, in bytes.
    pub(crate) size: u64,
    /// What it is, or why it cannot be used.
    pub(crate) manifest: Result<GuestManifest, ManifestError>,
}

/// What is being done, for those who wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Another process builds.
    Waiting,
    /// A kernel was found that does not serve; the search goes on.
    Skipped {
        /// Why, in full.
        reason: String,
    },
    /// A kernel is downloaded.
    Downloading {
        /// The package.
        package: String,
        /// Its version.
        version: String,
    },
    /// The package is unpacked.
    Unpacking {
        /// The package.
        package: String,
    },
    /// A kernel is taken out of its wrapping.
    Extracting {
        /// The file.
        kernel: PathBuf,
    },
    /// The image is written.
    Writing {
        /// Its name.
        id: String,
    },
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// The agent cannot be read.
    #[error("cannot read the agent {}", path.display())]
    ReadAgent {
        /// The agent.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The agent is not a program for the guest.
    #[error("the agent {} is not an x86-64 ELF program: build it with `make build`", path.display())]
    AgentNotElf {
        /// The agent.
        path: PathBuf,
    },
    /// The agent needs libraries, which the guest does not have.
    #[error(
        "the agent {} is dynamically linked, the guest has no libraries: build a static one with `make build`",
        path.display()
    )]
    AgentDynamic {
        /// The agent.
        path: PathBuf,
    },
    /// The kernel does not serve.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// There is no kernel.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// An image is damaged.
    #[error("the image {id} cannot be used: build it again with `firn image build`")]
    Damaged {
        /// The image.
        id: String,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// There is no image of that name.
    #[error("there is no image {wanted}: see `firn image list`")]
    NotFound {
        /// What was asked for.
        wanted: String,
    },
    /// There is no image at all.
    #[error("there is no image yet: run `firn image build`")]
    NoImages,
    /// Several images begin with it.
    #[error("{wanted} may be any of {}", ids.join(", "))]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// The images.
        ids: Vec<String>,
    },
}

/// The images of one cache directory.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    cache: Cache,
    installed: Installed,
}

impl Images {
    /// The images in `cache_dir`, which need not exist yet.
    pub(crate) fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self { cache: Cache::new(cache_dir.into()), installed: Installed::default() }
    }

    /// The image for `request`: the one that is there when nothing has changed, else a new one.
    pub(crate) fn ensure(
        &self,
        request: &Request,
        progress: &mut dyn FnMut(Step),
    ) -> Result<Image, ImageError> {
        if let Some(image) = self.warm(request) {
            return Ok(image);
        }
        let locked = self.cache.lock(|| progress(Step::Waiting))?;
        // Somebody else may have built it while we waited.
        if let Some(image) = self.warm(request) {
            return Ok(image);
        }
        let agent = Agent::read(&request.agent)?;
        let (kernel, searched) = self.find_kernel(&locked, &request.kernel, Reuse::Cached, progress)?;
        Parts { agent, kernel, searched }.build(&locked, request, progress)
    }

    /// The kernel that the next image would be made of, by its release or package, and its file, as
    /// far as that can be said without downloading or reading one.
    pub(crate) fn kernel_at_hand(&self) -> Option<(String, PathBuf)> {
        let mut candidates = self.installed.kernels();
        candidates.extend(package::cached(&self.cache).unwrap_or_default());
        let kernel = candidates.into_iter().next()?;
        let name = match kernel.source {
            Source::Package { name, version } => format!("{name} {version}"),
            Source::File { .. } => {
                kernel.modules.file_name().unwrap_or_default().to_string_lossy().into_owned()
            }
        };
        Some((name, kernel.image))
    }

    /// Like [`ensure`](Self::ensure), but fetches the newest kernel package and builds anew.
    pub(crate) fn rebuild(
        &self,
        request: &Request,
        progress: &mut dyn FnMut(Step),
    ) -> Result<Image, ImageError> {
        let locked = self.cache.lock(|| progress(Step::Waiting))?;
        let agent = Agent::read(&request.agent)?;
        let (kernel, searched) = self.find_kernel(&locked, &request.kernel, Reuse::Nothing, progress)?;
        Parts { agent, kernel, searched }.build(&locked, request, progress)
    }

    /// All images, damaged ones too; the newest first.
    pub(crate) fn list(&self) -> Result<Vec<Listed>, ImageError> {
        let mut listed: Vec<Listed> = Vec::new();
        for dir in cache::list_finished(&self.cache.images())? {
            let id = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let files = cache::list(&dir)?;
            let size = files.iter().filter_map(|file| file.metadata().ok()).map(|found| found.len()).sum();
            listed.push(Listed { id, size, manifest: GuestManifest::load(&dir) });
        }
        listed.sort_by_key(|image| std::cmp::Reverse(image.manifest.as_ref().ok().map(|it| it.built_at)));
        Ok(listed)
    }

    /// The image called `wanted`: its id, the beginning of its id, or the name in its manifest (of
    /// several the newest). The newest of all when nothing is wanted.
    pub(crate) fn inspect(&self, wanted: Option<&str>) -> Result<Image, ImageError> {
        let listed = self.choose(wanted)?;
        let dir = self.cache.images().join(&listed.id);
        match listed.manifest {
            Ok(manifest) => Ok(Image { id: listed.id, dir, manifest }),
            Err(source) => Err(ImageError::Damaged { id: listed.id, source }),
        }
    }

    /// Removes the image that [`inspect`](Self::inspect) would show, damaged or not, and returns its
    /// id. A VM that runs from it is not disturbed.
    pub(crate) fn remove(&self, wanted: &str) -> Result<String, ImageError> {
        let locked = self.cache.lock(|| ())?;
        let listed = self.choose(Some(wanted))?;
        locked.remove(&self.cache.images().join(&listed.id))?;
        Index::load(&self.cache.index()).save(&locked)?;
        Ok(listed.id)
    }

    fn choose(&self, wanted: Option<&str>) -> Result<Listed, ImageError> {
        let mut all = self.list()?;
        let Some(wanted) = wanted else {
            return all.into_iter().next().ok_or(ImageError::NoImages);
        };
        let named = |image: &Listed| image.manifest.as_ref().is_ok_and(|manifest| manifest.name == wanted);
        let exact = all.iter().position(|image| image.id == wanted).or_else(|| all.iter().position(named));
        if let Some(position) = exact {
            return Ok(all.swap_remove(position));
        }
        all.retain(|image| !wanted.is_empty() && image.id.starts_with(wanted));
        if all.len() > 1 {
            let ids = all.into_iter().map(|image| image.id).collect();
            return Err(ImageError::Ambiguous { wanted: wanted.to_owned(), ids });
        }
        all.pop().ok_or_else(|| ImageError::NotFound { wanted: wanted.to_owned() })
    }

    fn warm(&self, request: &Request) -> Option<Image> {
        let index = Index::load(&self.cache.index());
        let id = index.find(request)?.to_owned();
        let dir = self.cache.images().join(&id);
        let manifest = GuestManifest::load(&dir).ok()?;
        Some(Image { id, dir, manifest })
    }

    /// Reads the first kernel that serves. Also gives stamps of the places that were searched: when
    /// one changes, the choice may be another.
    fn find_kernel(
        &self,
        locked: &cache::Locked<'_>,
        source: &KernelSource,
        reuse: Reuse,
        progress: &mut dyn FnMut(Step),
    ) -> Result<(LoadedKernel, Vec<Stamp>), ImageError> {
        if let KernelSource::Files { kernel, modules } = source {
            progress(Step::Extracting { kernel: kernel.clone() });
            return Ok((kernel::named(kernel, modules).read()?, Vec::new()));
        }
        let mut searched: Vec<Stamp> = self.installed.stamps().collect();
        let mut candidates = self.installed.kernels();
        if reuse == Reuse::Cached {
            candidates.extend(package::cached(&self.cache)?);
        }
        for candidate in candidates {
            progress(Step::Extracting { kernel: candidate.image.clone() });
            match candidate.read() {
                Ok(kernel) => {
                    searched.push(Stamp::of(&self.cache.kernels()));
                    return Ok((kernel, searched));
                }
                Err(error) => progress(Step::Skipped { reason: chain(&error) }),
            }
        }
        let fetched = package::fetch(locked, progress)?;
        progress(Step::Extracting { kernel: fetched.image.clone() });
        let kernel = fetched.read()?;
        searched.push(Stamp::of(&self.cache.kernels()));
        Ok((kernel, searched))
    }
}

/// Whether a kernel that was fetched before is good enough.
#[derive(PartialEq, Eq, Clone, Copy)]
enum Reuse {
    Cached,
    Nothing,
}

/// An error with everything that caused it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests;
