//! `firn run`: a command in a sandbox of its own.

pub(super) mod events;
pub(super) mod keys;
pub(super) mod session;
mod signals;
mod stdio;

use super::ask;
use super::create::check_network;
use super::create::source::Source;
use super::duration;
use super::exit::Failed;
use super::output::Output;
use crate::api::types::{CreateRequest, ExecRequest, MountRequest, RunRequest, Vmm, Workspace};
use crate::config::Config;
use crate::env::{self, Environment, Store};
use crate::spec::Size;
use crate::spec::protection::milliseconds;
use crate::spec::{Grade, SpecError, VmmKind};
use crate::sys::limits::Cpus;
use crate::sys::terminal;
use crate::view::{ShareError, parse_mount, parse_workspace};
use events::Events;
use firn_protocol::{Stdin, TerminalSize, Text, Variable};
use keys::Keys;
use session::Terms;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use stdio::stdin_is_null;

/// Run a command in a fresh sandbox and throw the sandbox away.
///
/// The command sees the host's programs, can write files of its own and change nothing outside, and
/// has no network. Its exit code is firn's: 124 when --timeout ran out, 125 when firn itself failed,
/// 126 or 127 when the command could not be started, 128+n when signal n ended it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    firn run -- python3 -c 'print(6*7)'             in a microVM\n  \
    firn run -i jail -- python3 -c 'print(6*7)'     in milliseconds, on this host's kernel\n  \
    firn run --memory 512M --pids 64 --cpus 1 -- make\n  \
    firn run -w . --timeout 10m -- make test        this folder at /workspace, writable\n  \
    firn run -w .:ro -- grep -r TODO .              the same, read-only\n  \
    firn run --mount ~/data:/data -- ls /data       another folder, read-only\n  \
    firn run --env .#data -- python3 train.py       with the programs that a flake names\n\
    firn run -t -- bash                             a shell on a terminal\n  \
    firn run --detach -- make test                  goes on by itself: `firn logs -f ID`, `firn attach ID`\n  \
    echo 'print(1)' | firn run -- python3           stdin is passed through\n  \
    echo 'print(1)' | firn run --env python         code, in a language\n  \
    firn run --json -- make | jq .payload           events, one JSON object a line")]
pub(super) struct Run {
    /// How the command is isolated: a jail has the host's kernel and takes milliseconds, a vm has
    /// its own.
    #[arg(short, long, value_name = "GRADE", default_value = "vm")]
    isolation: Grade,

    /// The programs of the sandbox: `host`, those of this host; `python`, `shell` or `node`, or another name
    /// that `firn env list` knows; a folder with metadata.json, or with a guest's manifest.json; or a flake's
    /// output, as .#NAME. Without a CMD it runs the code on stdin.
    #[arg(long = "env", value_name = "ENV", default_value = env::HOST)]
    environment: OsString,

    /// These packages of the catalog; where FIRN_FLAKE names none, this host's programs, if these packages are
    /// among them.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', conflicts_with = "environment")]
    with: Option<Vec<String>>,

    /// What a profile of nixo's has: strict, offline-review, build-install or debug-network.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["environment", "with"])]
    profile: Option<String>,

    /// What a specification of nixo's has, a JSON file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["environment", "with", "profile"])]
    spec: Option<PathBuf>,

    /// How much of the Nix store an environment from Nix shows, read-only: its closure, or all that this host
    /// has [default: closure].
    #[arg(long, value_name = "closure|host")]
    store: Option<Store>,

    /// Processors; in a jail also a part of one, as 0.5 [default: all in a jail, 2 in a vm, 1 in an
    /// emulated one].
    #[arg(long, value_name = "N")]
    cpus: Option<Cpus>,

    /// Memory: a number with K, M or G [default: 1G, or what the environment says].
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,

    /// How much can be written to the sandbox's own files; it is part of the memory [default: half
    /// of it].
    #[arg(long, value_name = "SIZE")]
    disk: Option<Size>,

    /// Processes and threads.
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pids: u64,

    /// Kill the command after this time: 30s, 10m, 1h30m; a bare number is seconds [default: never,
    /// or what the environment says].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_some)]
    timeout: Option<Duration>,

    /// Pass on at most this much of stdout and stderr together, and drop the rest.
    #[arg(long, value_name = "SIZE")]
    max_output: Option<Size>,

    /// Show this folder at /workspace, writable unless it ends in :ro. What is written there
    /// belongs to you.
    #[arg(short, long, value_name = "PATH[:ro|:rw]")]
    workspace: Option<String>,

    /// Show a folder or file at a path of the sandbox, read-only unless it ends in :rw.
    #[arg(long = "mount", value_name = "HOST:GUEST[:ro|:rw]")]
    mounts: Vec<String>,

    /// Set a variable, or pass one of yours on.
    #[arg(short = 'e', long = "setenv", value_name = "K[=V]")]
    variables: Vec<OsString>,

    /// Where the command starts [default: /workspace].
    #[arg(long, value_name = "DIR")]
    cwd: Option<OsString>,

    /// Who runs it, in the sandbox: root, sandbox, UID or UID:GID [default: root].
    #[arg(long, value_name = "USER")]
    user: Option<String>,

    /// Give the command a terminal.
    #[arg(short, long)]
    tty: bool,

    /// What to call the sandbox, for other commands of firn's.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Print the sandbox's id and leave: the sandbox ends with its command, and its log is kept.
    #[arg(short, long, conflicts_with = "json")]
    detach: bool,

    /// Make do with less where this host cannot give what is asked for: a jail where it can have no
    /// vm, a limit that nothing enforces. The result says what was given.
    #[arg(long)]
    allow_degraded: bool,

    /// The virtual machine monitor [default: cloud-hypervisor where KVM works, else qemu].
    #[arg(long, value_name = "VMM")]
    vmm: Option<VmmKind>,

    /// Print events as JSON, one a line: lifecycle, stdout, stderr, result.
    #[arg(long, conflicts_with = "tty")]
    json: bool,

    /// Say on stderr what is done and how long it takes.
    #[arg(short, long)]
    verbose: bool,

    /// The command and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Run {
    pub(super) fn run(&self, config: Config, output: &mut Output) -> Result<u8, Failed> {
        session::report(self.json, output, |output, events| self.conduct(config, output, events))
    }

    fn conduct(
        &self,
        config: Config,
        output: &mut Output,
        events: &mut Option<Events>,
    ) -> Result<u8, Failed> {
        let source = self.source(&config, output)?;
        let request = RunRequest { sandbox: self.sandbox(source)?, command: self.command(&config) };
        self.check_environment(&request)?;
        let terms = Terms {
            name: self.command.first().map(OsString::as_os_str),
            tty: self.tty,
            own_sandbox: true,
            code: false,
            keys: Keys::Ignored,
            timeout: self.timeout,
            output: self.max_output,
            verbose: self.verbose,
        };
        let concluded =
            ask(config, async |client| session::conduct(client.run(&request), &terms, output, events).await)?;
        if let (Some(sandbox), Some(_)) = (&concluded.sandbox, concluded.detached) {
            output.stdout(format!("{}\n", sandbox.session_id).as_bytes())?;
        }
        Ok(concluded.code)
    }

    /// What its programs come from.
    fn source(&self, config: &Config, output: &mut Output) -> Result<Source, Failed> {
        let Run { with, profile, spec, .. } = self;
        let listed = Source::listed(with.as_deref(), profile.as_deref(), spec.as_deref())?;
        let source = listed.unwrap_or_else(|| Source::environment(&self.environment));
        // What cannot be had is said before anything is built.
        check_network(source.network.as_deref())?;
        Ok(source.resolve(config, output)?)
    }

    fn sandbox(&self, source: Source) -> Result<CreateRequest, SpecError> {
        let workspace = match &self.workspace {
            None => None,
            Some(text) => {
                let (path, access) = parse_workspace(text);
                Some(Workspace { host: absolute(path)?, access })
            }
        };
        let mount = |text: &String| {
            let (host, target, access) = parse_mount(text)?;
            Ok(MountRequest { host: absolute(host)?, target: target.as_os_str().into(), access })
        };
        Ok(CreateRequest {
            name: self.name.clone(),
            isolation: Some(self.isolation.into()),
            allow_degraded: self.allow_degraded,
            environment: source.environment.map(Text::from),
            store: self.store.map(Into::into),
            with: source.packages,
            profile: source.profile,
            cpus: self.cpus.map(|cpus| cpus.to_string()),
            memory_bytes: self.memory.map(|memory| memory.0),
            disk_bytes: self.disk.map(|disk| disk.0),
            processes: Some(self.pids),
            workspace,
            mounts: self.mounts.iter().map(mount).collect::<Result<_, ShareError>>()?,
            user: self.user.clone(),
            vmm: self.vmm.map(|vmm| match vmm {
                VmmKind::CloudHypervisor => Vmm::CloudHypervisor,
                VmmKind::Qemu => Vmm::Qemu,
            }),
            ..CreateRequest::default()
        })
    }

    fn command(&self, config: &Config) -> ExecRequest {
        ExecRequest {
            argv: self.command.iter().cloned().map(Text::from).collect(),
            cwd: self.cwd.clone().map(Text::from),
            env: variables(&self.variables, self.tty, config),
            user: None,
            terminal: self.tty.then(terminal_size),
            stdin: stdin(self.tty, self.detach),
            timeout_ms: self.timeout.map(at_least_a_millisecond),
            max_output_bytes: self.max_output.map(|size| size.0),
            detach: self.detach,
        }
    }

    /// A wrapper takes code, not a command, and makes its surroundings itself.
    fn check_environment(&self, request: &RunRequest) -> Result<(), SpecError> {
        let Some(name) = &request.sandbox.environment else {
            return if self.command.is_empty() { Err(SpecError::NoCommand) } else { Ok(()) };
        };
        let artifact = match Environment::find(name.as_os_str())? {
            Environment::Host | Environment::Guest(_) if self.command.is_empty() => {
                return Err(SpecError::NoCommand);
            }
            Environment::Host | Environment::Code(_) | Environment::Closure(_) | Environment::Guest(_) => {
                return Ok(());
            }
            Environment::Artifact(artifact) => artifact,
        };
        if !self.command.is_empty() {
            return Err(SpecError::CommandOfArtifact(artifact.name));
        }
        for (given, option) in [(self.tty, "--tty"), (self.cwd.is_some(), "--cwd")] {
            if given {
                return Err(SpecError::OwnJail { option, environment: artifact.name, instead: "" });
            }
        }
        Ok(())
    }
}

/// A path as the daemon can use it: it has a working directory of its own.
fn absolute(path: &Path) -> Result<Text, ShareError> {
    match std::path::absolute(path) {
        Ok(path) => Ok(path.into_os_string().into()),
        Err(source) => Err(ShareError::Host { path: path.to_owned(), source }),
    }
}

/// What stdin is to the command. A terminal is told of its end by a character.
pub(super) fn stdin(tty: bool, detach: bool) -> Stdin {
    if detach || (stdin_is_null() && !tty) { Stdin::Null } else { Stdin::Stream }
}

/// The size of our terminal, or the usual one.
pub(super) fn terminal_size() -> TerminalSize {
    let (rows, columns) = terminal::size().unwrap_or((24, 80));
    TerminalSize { rows, columns }
}

/// A time that is not none.
pub(super) fn at_least_a_millisecond(time: Duration) -> u64 {
    milliseconds(time).max(1)
}

/// The variables of a command: the terminal's type, then what was asked for.
pub(super) fn variables(asked: &[OsString], tty: bool, config: &Config) -> Vec<Variable> {
    let term = tty.then(|| Variable { name: "TERM".into(), value: Text::from(config.term.clone()) });
    let asked = asked.iter().filter_map(|text| {
        let bytes = text.as_bytes();
        let split = bytes.iter().position(|byte| *byte == b'=');
        let (name, value) = match split {
            Some(at) => {
                (OsString::from_vec(bytes[..at].to_vec()), OsString::from_vec(bytes[at + 1..].to_vec()))
            }
            None => (text.clone(), Config::callers(text)?),
        };
        Some(Variable { name: Text::from(name), value: Text::from(value) })
    });
    term.into_iter().chain(asked).collect()
}
