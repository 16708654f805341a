//! Where things are on this host: folders, and the programs a sandbox needs.
//!
//! The only reader of the environment.
//!
//! | variable | what it sets | default |
//! |---|---|---|
//! | `FIRN_RUNTIME_DIR` | sockets and records of running sandboxes | `/run/firn`, `$XDG_RUNTIME_DIR/firn`, `/tmp/firn-UID` |
//! | `FIRN_CACHE_DIR` | kernels and guest images | `/var/cache/firn`, `$XDG_CACHE_HOME/firn`, `~/.cache/firn` |
//! | `FIRN_AGENT` | the agent put into guests | `firn-agent` beside `firn`, or on `PATH` |
//! | `FIRN_BWRAP`, `FIRN_VIRTIOFSD`, `FIRN_QEMU`, `FIRN_VHOST_DEVICE_VSOCK`, `FIRN_CLOUD_HYPERVISOR` | that program | looked up on `PATH` and where distributions keep it |

use nix::unistd::Uid;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Where distributions keep programs that are not meant for people's `PATH`.
const LIBEXEC: &[&str] = &[
    "/usr/local/bin",
    "/usr/bin",
    "/usr/libexec",
    "/usr/lib/qemu",
    "/usr/lib/virtiofsd",
    "/usr/lib",
    "/usr/sbin",
];

/// The validated configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Sockets and records of running sandboxes.
    pub(crate) runtime_dir: PathBuf,
    /// Kernels and guest images.
    pub(crate) cache_dir: PathBuf,
    /// `PATH`, and where else programs may be.
    pub(crate) search: Vec<PathBuf>,
    /// The caller's terminal type, for commands on a terminal.
    pub(crate) term: OsString,
    programs: Vec<(Program, PathBuf)>,
}

/// A program a sandbox needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// bubblewrap.
    Bwrap,
    /// The Rust virtiofsd.
    Virtiofsd,
    /// QEMU for x86-64.
    Qemu,
    /// The vsock device for QEMU.
    VhostDeviceVsock,
    /// cloud-hypervisor.
    CloudHypervisor,
    /// Our agent.
    Agent,
}

impl Program {
    const ALL: [Program; 6] = [
        Program::Bwrap,
        Program::Virtiofsd,
        Program::Qemu,
        Program::VhostDeviceVsock,
        Program::CloudHypervisor,
        Program::Agent,
    ];

    /// The name of its file.
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Program::Bwrap => "bwrap",
            Program::Virtiofsd => "virtiofsd",
            Program::Qemu => "qemu-system-x86_64",
            Program::VhostDeviceVsock => "vhost-device-vsock",
            Program::CloudHypervisor => "cloud-hypervisor",
            Program::Agent => "firn-agent",
        }
    }

    fn variable(self) -> &'static str {
        match self {
            Program::Bwrap => "FIRN_BWRAP",
            Program::Virtiofsd => "FIRN_VIRTIOFSD",
            Program::Qemu => "FIRN_QEMU",
            Program::VhostDeviceVsock => "FIRN_VHOST_DEVICE_VSOCK",
            Program::CloudHypervisor => "FIRN_CLOUD_HYPERVISOR",
            Program::Agent => "FIRN_AGENT",
        }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A program is not installed.
    #[error("{} is not installed", .0.file_name())]
    Missing(Program),
    /// A variable names a program that is not there.
    #[error("{} names {}, which is not there", program.variable(), path.display())]
    NotThere {
        /// The program.
        program: Program,
        /// Where it should be.
        path: PathBuf,
    },
    /// A folder must be named by its whole path.
    #[error("{variable} must be an absolute path, not {}", path.display())]
    Relative {
        /// The variable.
        variable: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// Nothing says where the caller's files are.
    #[error("neither HOME nor {0} is set")]
    Homeless(&'static str),
}

#[expect(clippy::disallowed_methods, reason = "the one place where the environment is read")]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn folder(name: &'static str) -> Result<Option<PathBuf>, ConfigError> {
    match variable(name).map(PathBuf::from) {
        Some(path) if path.is_relative() => Err(ConfigError::Relative { variable: name, path }),
        path => Ok(path),
    }
}

impl Config {
    /// Reads the environment.
    pub(crate) fn read() -> Result<Config, ConfigError> {
        let root = Uid::effective().is_root();
        let home = folder("HOME")?;
        let runtime_dir = match folder("FIRN_RUNTIME_DIR")? {
            Some(dir) => dir,
            None if root => "/run/firn".into(),
            None => match folder("XDG_RUNTIME_DIR")? {
                Some(dir) => dir.join("firn"),
                None => format!("/tmp/firn-{}", Uid::effective()).into(),
            },
        };
        let cache_dir = match folder("FIRN_CACHE_DIR")? {
            Some(dir) => dir,
            None if root => "/var/cache/firn".into(),
            None => match (folder("XDG_CACHE_HOME")?, &home) {
                (Some(dir), _) => dir.join("firn"),
                (None, Some(home)) => home.join(".cache/firn"),
                (None, None) => return Err(ConfigError::Homeless("FIRN_CACHE_DIR")),
            },
        };
        let mut search: Vec<PathBuf> = variable("PATH")
            .map(|path| std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect())
            .unwrap_or_default();
        search.extend(home.iter().map(|home| home.join(".local/bin")));
        search.extend(LIBEXEC.iter().map(PathBuf::from));
        let programs = Program::ALL
            .into_iter()
            .filter_map(|program| variable(program.variable()).map(|path| (program, path.into())))
            .collect();
        let term = variable("TERM").unwrap_or_else(|| "xterm-256color".into());
        Ok(Config { runtime_dir, cache_dir, search, term, programs })
    }

    /// The folders programs are looked for in, those of programs that were named by variables
    /// first: a list like `PATH`.
    pub(crate) fn search_path(&self) -> OsString {
        let named = self.programs.iter().filter_map(|(_, path)| path.parent());
        let folders = named.chain(self.search.iter().map(PathBuf::as_path));
        // A folder with a colon in its name cannot be in such a list, and is left out.
        std::env::join_paths(folders.filter(|folder| !folder.as_os_str().as_bytes().contains(&b':')))
            .unwrap_or_default()
    }

    /// The caller's own value of a variable, to be passed on by name.
    pub(crate) fn callers(name: &std::ffi::OsStr) -> Option<OsString> {
        #[expect(clippy::disallowed_methods, reason = "the one place where the environment is read")]
        std::env::var_os(name)
    }

    /// Where `program` is.
    pub(crate) fn program(&self, program: Program) -> Result<PathBuf, ConfigError> {
        if let Some((_, path)) = self.programs.iter().find(|(named, _)| *named == program) {
            return std::path::absolute(path)
                .ok()
                .filter(|path| path.exists())
                .ok_or_else(|| ConfigError::NotThere { program, path: path.clone() });
        }
        let own = (program == Program::Agent).then(beside_us).flatten();
        own.iter()
            .chain(&self.search)
            .map(|dir| dir.join(program.file_name()))
            .find(|path| executable(path))
            .ok_or(ConfigError::Missing(program))
    }
}

fn beside_us() -> Option<PathBuf> {
    std::env::current_exe().ok()?.parent().map(Path::to_owned)
}

fn executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}
