//! Where things are on this host: folders, and the programs a sandbox needs.
//!
//! The only reader of the environment.
//!
//! | variable | what it sets | default |
//! |---|---|---|
//! | `FIRN_RUNTIME_DIR` | sockets and records of running sandboxes | `/run/firn`, `$XDG_RUNTIME_DIR/firn`, `/tmp/firn-UID` |
//! | `FIRN_STATE_DIR` | what outlives a daemon: records, logs of commands, its own log | `/var/lib/firn`, `$XDG_STATE_HOME/firn`, `~/.local/state/firn` |
//! | `FIRN_HOST` | `unix:///PATH`, the daemon's socket: one that is named is not started | `firn.sock` among the sockets |
//! | `FIRN_NO_AUTOSTART` | anything but 0: start no daemon | |
//! | `FIRN_CONFIG` | the configuration file of the daemon | `/etc/firn/config.toml`, `$XDG_CONFIG_HOME/firn/config.toml`, `~/.config/firn/config.toml` |
//! | `FIRN_LOG` | what the daemon logs, as `info` or `firn::sandbox=debug` | `info` |
//! | `FIRN_CACHE_DIR` | kernels and guest images | `/var/cache/firn`, `$XDG_CACHE_HOME/firn`, `~/.cache/firn` |
//! | `FIRN_NIX` | Nix, for environments | `nix` on `PATH` |
//! | `FIRN_FLAKE`, `NIXOSANDBOX_FLAKE_ROOT` | the flake with the catalog and the environments that come with firn | none: packages are the host's |
//! | `NIX_SANDBOX_DIR` | artifacts that `--env NAME` knows, one level deep | `~/.config/nix-sandbox-mcp/sandboxes` |
//! | `NIX_SANDBOX_ENVS` | references of flakes with one artifact each, with commas between them | none |
//! | `FIRN_AGENT` | the agent put into guests | `firn-agent` beside `firn`, or on `PATH` |
//! | `FIRN_BWRAP`, `FIRN_VIRTIOFSD`, `FIRN_QEMU`, `FIRN_VHOST_DEVICE_VSOCK`, `FIRN_CLOUD_HYPERVISOR` | that program | looked up on `PATH` and where distributions keep it |
//!
//! nix-sandbox-mcp's `SESSION_IDLE_TIMEOUT` and `SESSION_MAX_LIFETIME`, in seconds, are for sessions that are
//! made by whoever has them.
//!
//! Its `PROJECT_DIR` and `PROJECT_MOUNT` are the folder that code of MCP clients sees, and where.
//!
//! nixo's variables mean the same here, where they mean something and ours are not set:
//!
//! | variable | what it sets |
//! |---|---|
//! | `NIXOSANDBOX_DATA_DIR` | as `FIRN_STATE_DIR` |
//! | `NIXOSANDBOX_BWRAP_PATH` | as `FIRN_BWRAP`: no other is looked for |
//! | `NIXOSANDBOX_FLAKE_ROOT`, `NIXOSANDBOX_NO_DOCKER` | nothing: there is no flake to build from, and never a Docker |

mod file;

use crate::env::{PROJECT, Sources};
pub(crate) use file::PoolSize;
use file::{FileError, Settings};
use nix::unistd::Uid;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    /// What outlives a daemon: records, logs of commands, its own log.
    pub(crate) state_dir: PathBuf,
    /// The daemon's socket.
    pub(crate) socket: PathBuf,
    /// Whether a daemon may be started when none listens there.
    pub(crate) autostart: Autostart,
    /// The configuration file, be it there or not. Known to the daemon only.
    pub(crate) file: Option<PathBuf>,
    /// What it says.
    pub(crate) settings: Settings,
    /// Where environments come from.
    pub(crate) sources: Sources,
    /// How long a session may be idle that is made here.
    pub(crate) session_idle_timeout: Option<Duration>,
    /// How old it may become.
    pub(crate) session_lifetime: Option<Duration>,
    /// The folder that code of MCP clients sees.
    pub(crate) project_dir: Option<PathBuf>,
    /// Where they see it.
    pub(crate) project_mount: PathBuf,
    /// The token of who is let in by the MCP server over HTTP.
    pub(crate) mcp_token: Option<Secret>,
    /// Those that variables name.
    programs: Vec<(Program, &'static str, PathBuf)>,
}

/// A text that is not shown with what it is part of.
#[derive(Clone)]
pub(crate) struct Secret(pub(crate) String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret")
    }
}

/// What the daemon is told by whoever started it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Supervision {
    /// Where systemd wants to be told that it is ready (`sd_notify`(3)).
    pub(crate) notify: Option<OsString>,
    /// How many sockets it was given (`sd_listen_fds`(3)).
    pub(crate) sockets: usize,
    /// What it is to log.
    pub(crate) log: Option<String>,
    /// Where a test has it killed, see [`crate::sandbox::failpoint`].
    pub(crate) failpoint: Option<String>,
}

impl Supervision {
    /// Reads the environment.
    pub(crate) fn read() -> Supervision {
        let number = |name| variable(name)?.to_str()?.parse::<usize>().ok();
        // They are for the process with this number and for none that has inherited the variables.
        let ours = number("LISTEN_PID") == usize::try_from(std::process::id()).ok();
        Supervision {
            notify: variable("NOTIFY_SOCKET"),
            sockets: number("LISTEN_FDS").filter(|_| ours).unwrap_or(0),
            log: variable("FIRN_LOG").and_then(|filter| filter.into_string().ok()),
            failpoint: variable("FIRN_FAILPOINT").and_then(|point| point.into_string().ok()),
        }
    }
}

/// Whether a command starts the daemon that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Autostart {
    /// It does.
    Allowed,
    /// Somebody else is to start it, or has said where it is.
    Forbidden,
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
    /// Nix, which builds environments.
    Nix,
}

impl Program {
    const ALL: [Program; 7] = [
        Program::Bwrap,
        Program::Virtiofsd,
        Program::Qemu,
        Program::VhostDeviceVsock,
        Program::CloudHypervisor,
        Program::Agent,
        Program::Nix,
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
            Program::Nix => "nix",
        }
    }

    /// The variables that name it, ours first.
    fn variables(self) -> &'static [&'static str] {
        match self {
            Program::Bwrap => &["FIRN_BWRAP", "NIXOSANDBOX_BWRAP_PATH"],
            Program::Virtiofsd => &["FIRN_VIRTIOFSD"],
            Program::Qemu => &["FIRN_QEMU"],
            Program::VhostDeviceVsock => &["FIRN_VHOST_DEVICE_VSOCK"],
            Program::CloudHypervisor => &["FIRN_CLOUD_HYPERVISOR"],
            Program::Agent => &["FIRN_AGENT"],
            Program::Nix => &["FIRN_NIX"],
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
    #[error("{variable} names {}, which is not there", path.display())]
    NotThere {
        /// The variable.
        variable: &'static str,
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
    /// Not the address of a socket.
    #[error("FIRN_HOST must be unix:///PATH, not {0:?}")]
    Host(OsString),
    /// The configuration file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The configuration file that was named is not there.
    #[error("FIRN_CONFIG names {}, which is not there", .0.display())]
    NoFile(PathBuf),
    /// Nothing says where the caller's files are.
    #[error("neither HOME nor {0} is set")]
    Homeless(&'static str),
}

/// A number of seconds. What is none is as good as nothing, as nix-sandbox-mcp has it.
fn seconds(name: &str) -> Option<Duration> {
    let seconds = variable(name)?.to_str()?.parse().ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

#[expect(clippy::disallowed_methods, reason = "the one place where the environment is read")]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Whether a variable that has one of two meanings has the first. What is unset or empty is no.
fn is_wanted(value: Option<&OsStr>) -> bool {
    value.is_some_and(|value| value != "0")
}

fn folder(name: &'static str) -> Result<Option<PathBuf>, ConfigError> {
    match variable(name).map(PathBuf::from) {
        Some(path) if path.is_relative() => Err(ConfigError::Relative { variable: name, path }),
        path => Ok(path),
    }
}

/// Where the configuration file is, when nobody says.
fn usual_file() -> Result<Option<PathBuf>, ConfigError> {
    if Uid::effective().is_root() {
        return Ok(Some("/etc/firn/config.toml".into()));
    }
    let folder = match folder("XDG_CONFIG_HOME")? {
        Some(dir) => Some(dir),
        None => folder("HOME")?.map(|home| home.join(".config")),
    };
    Ok(folder.map(|dir| dir.join("firn/config.toml")))
}

/// The path in `unix:///PATH`.
fn socket(address: OsString) -> Result<PathBuf, ConfigError> {
    match address.as_bytes().strip_prefix(b"unix://") {
        Some(path) if path.starts_with(b"/") => Ok(PathBuf::from(OsStr::from_bytes(path))),
        _ => Err(ConfigError::Host(address)),
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
        let named = match folder("FIRN_STATE_DIR")? {
            Some(dir) => Some(dir),
            None => folder("NIXOSANDBOX_DATA_DIR")?,
        };
        let state_dir = match named {
            Some(dir) => dir,
            None if root => "/var/lib/firn".into(),
            None => match (folder("XDG_STATE_HOME")?, &home) {
                (Some(dir), _) => dir.join("firn"),
                (None, Some(home)) => home.join(".local/state/firn"),
                (None, None) => return Err(ConfigError::Homeless("FIRN_STATE_DIR")),
            },
        };
        let named = variable("FIRN_HOST").map(socket).transpose()?;
        let forbidden = named.is_some() || is_wanted(variable("FIRN_NO_AUTOSTART").as_deref());
        let autostart = if forbidden { Autostart::Forbidden } else { Autostart::Allowed };
        let socket = named.unwrap_or_else(|| runtime_dir.join("firn.sock"));
        let mut search: Vec<PathBuf> = variable("PATH")
            .map(|path| std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect())
            .unwrap_or_default();
        search.extend(home.iter().map(|home| home.join(".local/bin")));
        search.extend(LIBEXEC.iter().map(PathBuf::from));
        let programs = Program::ALL
            .into_iter()
            .filter_map(|program| {
                let named = |name: &&'static str| Some((*name, PathBuf::from(variable(name)?)));
                program.variables().iter().find_map(named).map(|(name, path)| (program, name, path))
            })
            .collect();
        let text = |name| variable(name).and_then(|value| value.into_string().ok());
        let sandboxes = match folder("NIX_SANDBOX_DIR")? {
            Some(dir) => Some(dir),
            None => home.as_ref().map(|home| home.join(".config/nix-sandbox-mcp/sandboxes")),
        };
        let flake = text("FIRN_FLAKE").or_else(|| text("NIXOSANDBOX_FLAKE_ROOT"));
        let sources = Sources::new(flake, sandboxes, text("NIX_SANDBOX_ENVS"));
        let term = variable("TERM").unwrap_or_else(|| "xterm-256color".into());
        Ok(Config {
            runtime_dir,
            cache_dir,
            search,
            term,
            state_dir,
            socket,
            autostart,
            file: None,
            settings: Settings::default(),
            sources,
            session_idle_timeout: seconds("SESSION_IDLE_TIMEOUT"),
            session_lifetime: seconds("SESSION_MAX_LIFETIME"),
            mcp_token: text("FIRN_MCP_TOKEN").map(Secret),
            // Many have variables of these names for something else: what is of no use is as good as nothing.
            project_dir: variable("PROJECT_DIR").and_then(|dir| std::path::absolute(dir).ok()),
            project_mount: variable("PROJECT_MOUNT")
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
                .unwrap_or_else(|| PROJECT.into()),
            programs,
        })
    }

    /// Reads the environment and the configuration file: what the daemon needs, and only it.
    pub(crate) fn of_daemon() -> Result<Config, ConfigError> {
        let config = Config::read()?;
        let (file, settings) = match folder("FIRN_CONFIG")? {
            Some(named) => match Settings::read(&named)? {
                Some(settings) => (Some(named), settings),
                None => return Err(ConfigError::NoFile(named)),
            },
            None => match usual_file()? {
                Some(path) => (Some(path.clone()), Settings::read(&path)?.unwrap_or_default()),
                None => (None, Settings::default()),
            },
        };
        Ok(Config { file, settings, ..config })
    }

    /// The folders programs are looked for in, those of programs that were named by variables
    /// first: a list like `PATH`.
    pub(crate) fn search_path(&self) -> OsString {
        let named = self.programs.iter().filter_map(|(_, _, path)| path.parent());
        let folders = named.chain(self.search.iter().map(PathBuf::as_path));
        // A folder with a colon in its name cannot be in such a list, and is left out.
        std::env::join_paths(folders.filter(|folder| !folder.as_os_str().as_bytes().contains(&b':')))
            .unwrap_or_default()
    }

    /// The caller's own value of a variable, to be passed on by name.
    pub(crate) fn callers(name: &OsStr) -> Option<OsString> {
        #[expect(clippy::disallowed_methods, reason = "the one place where the environment is read")]
        std::env::var_os(name)
    }

    /// Where `program` is.
    pub(crate) fn program(&self, program: Program) -> Result<PathBuf, ConfigError> {
        if let Some((_, variable, path)) = self.programs.iter().find(|(named, _, _)| *named == program) {
            return std::path::absolute(path)
                .ok()
                .filter(|path| path.exists())
                .ok_or_else(|| ConfigError::NotThere { variable, path: path.clone() });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_yes_unless_it_is_zero() {
        for (value, wanted) in [(None, false), (Some("0"), false), (Some("1"), true), (Some("yes"), true)] {
            assert_eq!(is_wanted(value.map(OsStr::new)), wanted, "{value:?}");
        }
    }
}
