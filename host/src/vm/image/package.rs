//! Gets a kernel from the distribution (Debian, Ubuntu) without installing it.
//!
//! The package is downloaded by `apt-get`, which checks it against the signed package lists, and
//! unpacked by `dpkg-deb`; the kernel and the modules the guest needs are kept in the cache, the rest
//! (about 100 MB) is not. It works as an ordinary user. Nothing is written outside the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use super::Step;
use super::cache::{self, Cache, CacheError, Locked};
use super::kernel::{Kernel, better_first};
use super::manifest::Source;
use super::modules::{ModuleError, ModuleTree, WANTED};

/// Packages that depend on the newest kernel; the first that is known is taken.
const META_PACKAGES: [&str; 3] = ["linux-image-cloud-amd64", "linux-image-virtual", "linux-image-amd64"];

/// Beside the image itself, where a distribution has the modules (or the kernel) in packages of their own.
const PARTS: [&str; 2] = ["linux-modules-", "linux-binary-"];

/// How much of a failed program's messages is kept.
const STDERR_TAIL: usize = 600;

/// Why a kernel cannot be had from the distribution.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackageError {
    /// The host has no apt.
    #[error(
        "this host has no apt to fetch a kernel with: build the image with --kernel and --modules, or install a kernel"
    )]
    NoApt,
    /// The package lists are empty, or the distribution is another one.
    #[error("apt knows no kernel package ({}): run: apt-get update", META_PACKAGES.join(", "))]
    Unknown,
    /// The package that should depend on a kernel does not.
    #[error("the package {package} names no kernel package")]
    NoKernel {
        /// The package.
        package: String,
    },
    /// A program cannot be started.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A program failed.
    #[error("{command} failed ({status}): {stderr}")]
    Failed {
        /// What was run.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        stderr: String,
    },
    /// The unpacked package holds no kernel.
    #[error("the package {package} holds no kernel with modules")]
    NoKernelInside {
        /// The package.
        package: String,
    },
    /// The modules in the package are not what the guest needs.
    #[error("cannot use the modules of the package {package}")]
    Modules {
        /// The package.
        package: String,
        /// Why.
        #[source]
        source: ModuleError,
    },
    /// A file of the unpacked package cannot be kept.
    #[error("cannot keep {}", path.display())]
    Keep {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// What apt says about a package.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    name: String,
    version: String,
    /// The first alternative of each dependency, without its version.
    depends: Vec<String>,
}

/// The kernels that were fetched before, the best first.
pub(super) fn cached(cache: &Cache) -> Result<Vec<Kernel>, CacheError> {
    let mut dirs = cache::list_finished(&cache.kernels())?;
    dirs.sort_by(|a, b| better_first(&a.to_string_lossy(), &b.to_string_lossy()));
    Ok(dirs.iter().filter_map(|dir| kept(dir)).collect())
}

/// Downloads the newest kernel package there is and keeps what the guest needs of it.
pub(super) fn fetch(locked: &Locked<'_>, progress: &mut dyn FnMut(Step)) -> Result<Kernel, PackageError> {
    let kernel = newest()?;
    progress(Step::Downloading { package: kernel.name.clone(), version: kernel.version.clone() });
    let kernels = locked.cache().kernels();
    let partial = locked.partial(&kernels)?;
    let (unpacked, keep) = (partial.path().join("unpacked"), partial.path().join("keep"));
    for dir in [&unpacked, &keep] {
        cache::create_dir(dir)?;
    }

    let parts = kernel.depends.iter().filter(|name| PARTS.iter().any(|part| name.starts_with(part)));
    let mut download = Command::new("apt-get");
    // As root apt would become _apt, which cannot write here. Signatures are checked all the same.
    download.args(["-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2", "download"]);
    download.arg(format!("{}={}", kernel.name, kernel.version)).args(parts).current_dir(partial.path());
    run(&mut download)?;

    progress(Step::Unpacking { package: kernel.name.clone() });
    for archive in
        cache::list(partial.path())?.iter().filter(|path| path.extension().is_some_and(|e| e == "deb"))
    {
        run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&unpacked))?;
    }
    select(&kernel.name, &unpacked, &keep)?;

    let target = kernels.join(format!("{}_{}", kernel.name, kernel.version));
    locked.publish(&keep, &target)?;
    kept(&target).ok_or(PackageError::NoKernelInside { package: kernel.name })
}

/// The kernel in a directory that [`select`] filled, named `PACKAGE_VERSION`.
fn kept(dir: &Path) -> Option<Kernel> {
    let (name, version) = dir.file_name()?.to_str()?.rsplit_once('_')?;
    let image = dir.join("vmlinuz");
    image.is_file().then(|| Kernel {
        image,
        modules: dir.join("modules"),
        source: Source::Package { name: name.to_owned(), version: version.to_owned() },
    })
}

/// Copies the kernel and the modules the guest needs from `unpacked` to `keep`.
fn select(package: &str, unpacked: &Path, keep: &Path) -> Result<(), PackageError> {
    let missing = || PackageError::NoKernelInside { package: package.to_owned() };
    let unusable = |source| PackageError::Modules { package: package.to_owned(), source };
    let boot = cache::list(&unpacked.join("boot"))?;
    let named = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("vmlinuz-").map(str::to_owned);
    let (image, release) = boot.iter().find_map(|path| Some((path, named(path)?))).ok_or_else(missing)?;
    let modules = ["usr/lib/modules", "lib/modules"].map(|dir| unpacked.join(dir).join(&release));
    let modules = modules.iter().find(|dir| dir.is_dir()).ok_or_else(missing)?;
    let wanted = ModuleTree::open(modules).and_then(|tree| tree.load(WANTED)).map_err(unusable)?;

    let copy = |from: &Path, to: &Path| -> Result<(), PackageError> {
        let content =
            fs::read(from).map_err(|source| PackageError::Keep { path: from.to_owned(), source })?;
        Ok(cache::write_file(to, &content)?)
    };
    let target = keep.join("modules/kernel");
    cache::create_dir(&target)?;
    copy(&modules.join("modules.builtin"), &keep.join("modules/modules.builtin"))?;
    for module in wanted {
        cache::write_file(&target.join(format!("{}.ko", module.name)), &module.content)?;
    }
    copy(image, &keep.join("vmlinuz"))
}

/// The newest kernel package that can be downloaded.
fn newest() -> Result<Record, PackageError> {
    for meta in META_PACKAGES {
        let Some(meta) = show(meta)? else { continue };
        let image = meta.depends.iter().find(|name| name.starts_with("linux-image-"));
        let image = image.ok_or(PackageError::NoKernel { package: meta.name })?;
        return show(image)?.ok_or_else(|| PackageError::NoKernel { package: image.clone() });
    }
    Err(PackageError::Unknown)
}

/// What apt knows about `package`, or `None` when it knows nothing.
fn show(package: &str) -> Result<Option<Record>, PackageError> {
    match run(Command::new("apt-cache").args(["show", "--no-all-versions", package])) {
        Ok(text) => Ok(Record::parse(&text)),
        // apt-cache has no other way to say that there is no such package.
        Err(PackageError::Failed { status, .. }) if status.code() == Some(100) => Ok(None),
        Err(PackageError::Spawn { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Err(PackageError::NoApt)
        }
        Err(error) => Err(error),
    }
}

impl Record {
    /// Parses the first record of `apt-cache show`: `Field: value` lines (deb822).
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut lines = text.lines().take_while(|line| !line.is_empty());
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let depends = field("Depends").unwrap_or_default().split(',');
        let depends = depends.filter_map(|one| one.split(['|', '(', ':']).next()?.split_whitespace().next());
        Some(Self {
            name: field("Package")?.to_owned(),
            version: field("Version")?.to_owned(),
            depends: depends.map(str::to_owned).collect(),
        })
    }
}

/// Runs a program to its end and returns what it printed.
fn run(command: &mut Command) -> Result<String, PackageError> {
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output().map_err(|source| {
        PackageError::Spawn { program: command.get_program().to_string_lossy().into_owned(), source }
    })?;
    if !output.status.success() {
        let program = command.get_program().to_string_lossy().into_owned();
        let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned());
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<char> = said.trim().chars().collect();
        return Err(PackageError::Failed {
            command: std::iter::once(program).chain(arguments).collect::<Vec<_>>().join(" "),
            status: output.status,
            stderr: said[said.len().saturating_sub(STDERR_TAIL)..].iter().collect(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::modules::tests::fake_tree;
    use super::*;

    #[test]
    fn a_record_is_read() {
        let text = "Package: linux-image-virtual\nVersion: 6.8.0.31.31\nDescription: x\n more: text\n\
                    Depends: linux-image-6.8.0-31-generic (= 6.8), linux-base:any | other, x86\n\n\
                    Package: second\nVersion: 1\n";
        let record = Record::parse(text).unwrap();
        assert_eq!(record.name, "linux-image-virtual");
        assert_eq!(record.version, "6.8.0.31.31");
        assert_eq!(record.depends, ["linux-image-6.8.0-31-generic", "linux-base", "x86"]);
        assert_eq!(Record::parse("N: nothing\n"), None);
    }

    #[test]
    fn what_the_guest_needs_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().join("cache"));
        let unpacked = dir.path().join("unpacked");
        let modules = unpacked.join("usr/lib/modules/6.1.0-1-test");
        fs::create_dir_all(unpacked.join("boot")).unwrap();
        fs::write(unpacked.join("boot/System.map-6.1.0-1-test"), "map").unwrap();
        fs::write(unpacked.join("boot/vmlinuz-6.1.0-1-test"), "kernel").unwrap();
        fake_tree(&modules);
        fs::write(modules.join("kernel/drivers/sound.ko"), "large").unwrap();

        let keep = cache.kernels().join("linux-image-6.1.0-1-test_1:6.1.1-1");
        cache::create_dir(&keep).unwrap();
        select("linux-image", &unpacked, &keep).unwrap();
        assert!(!keep.join("modules/kernel/sound.ko").exists());
        let [kernel] = cached(&cache).unwrap().try_into().unwrap();
        assert_eq!(
            kernel.source,
            Source::Package { name: "linux-image-6.1.0-1-test".into(), version: "1:6.1.1-1".into() }
        );
        let again = ModuleTree::open(&kernel.modules).unwrap().load(WANTED).unwrap();
        assert_eq!(again.len(), 12);
    }

    #[test]
    fn a_failure_carries_what_the_program_said() {
        let error = run(Command::new("sh").args(["-c", "echo nothing here >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().ends_with("failed (exit status: 3): nothing here"), "{error}");
    }
}
