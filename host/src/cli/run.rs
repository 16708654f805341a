//! `firn run`: a command in a sandbox of its own.

mod events;
mod session;
mod signals;
mod stdio;

use super::exit::Failed;
use super::output::Output;
use crate::causes::in_full;
use crate::config::Config;
use crate::env::{Environment, PROJECT};
use crate::sandbox::spec::{Degraded, Grade, SpecError, VmmKind};
use crate::sandbox::{Size, Spec};
use crate::sys::limits::Cpus;
use crate::view::{Share, WORKSPACE};
use events::{Events, Outcome};
use firn_protocol::{Access, Text, Variable};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::time::Duration;

/// The memory of a sandbox that nobody gave a size.
const USUAL_MEMORY: Size = Size(1 << 30);

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
    firn run -t -- bash                             a shell on a terminal\n  \
    echo 'print(1)' | firn run -- python3           stdin is passed through\n  \
    firn run --json -- make | jq .payload           events, one JSON object a line")]
pub(super) struct Run {
    /// How the command is isolated: a jail has the host's kernel and takes milliseconds, a vm has
    /// its own.
    #[arg(short, long, value_name = "GRADE", default_value = "vm")]
    isolation: Grade,

    /// The programs of the sandbox: `host`, those of this host, or a folder with metadata.json and
    /// bin/run, which runs the code on stdin.
    #[arg(long = "env", value_name = "ENV", default_value = "host")]
    environment: String,

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
    #[arg(long, value_name = "DURATION", value_parser = duration)]
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

/// `30s`, `1h30m`, or seconds.
fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    let parsed = match text.parse::<u32>() {
        Ok(seconds) => Duration::from_secs(u64::from(seconds)),
        Err(_not_a_number) => humantime::parse_duration(text)?,
    };
    // Nothing can be done in no time, and the wish for it is a mistake.
    if parsed.is_zero() { Err(humantime::DurationError::Empty) } else { Ok(parsed) }
}

impl Run {
    pub(super) fn run(&self, output: &mut Output) -> Result<u8, Failed> {
        let config = Config::read()?;
        let spec = self.spec()?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failed::Runtime)?;
        let mut events = self.json.then(Events::default);
        let result = runtime.block_on(session::run(self, &config, &spec, output, &mut events));
        if let (Some(events), Err(failed)) = (&mut events, &result) {
            output.stdout(&events.finish(&Outcome::failed(failed.code(), in_full(failed))))?;
        }
        // A read of stdin may be under way in a thread, and nobody will end it.
        runtime.shutdown_background();
        result
    }

    fn spec(&self) -> Result<Spec, SpecError> {
        let environment = Environment::find(std::ffi::OsStr::new(&self.environment))?;
        let memory = self.memory.unwrap_or(match &environment {
            Environment::Host => USUAL_MEMORY,
            Environment::Artifact(artifact) => Size(artifact.memory),
        });
        let mut shares = Vec::new();
        if let Some(workspace) = &self.workspace {
            let target = match &environment {
                Environment::Host => WORKSPACE,
                Environment::Artifact(_) => PROJECT,
            };
            let (path, access) = crate::view::parse_workspace(workspace);
            shares.push(Share::workspace(path, access, target)?);
        }
        for mount in &self.mounts {
            let (host, target, access) = crate::view::parse_mount(mount)?;
            shares.push(Share::mount(host, target, access)?);
        }
        let usual_timeout = match &environment {
            Environment::Host => None,
            Environment::Artifact(artifact) => Some(artifact.timeout),
        };
        let spec = Spec {
            grade: self.isolation,
            degraded: if self.allow_degraded { Degraded::Allowed } else { Degraded::Refused },
            environment,
            cpus: self.cpus,
            memory,
            disk: self.disk.unwrap_or(Size(memory.0 / 2)),
            processes: self.pids,
            timeout: self.timeout.or(usual_timeout),
            output: self.max_output,
            shares,
            user: self.user.clone(),
            vmm: self.vmm,
        };
        self.check_environment(&spec)?;
        spec.check()
    }

    /// A wrapper takes code, not a command, and makes its surroundings itself.
    fn check_environment(&self, spec: &Spec) -> Result<(), SpecError> {
        let Environment::Artifact(artifact) = &spec.environment else {
            return if self.command.is_empty() { Err(SpecError::NoCommand) } else { Ok(()) };
        };
        if !self.command.is_empty() {
            return Err(SpecError::CommandOfArtifact(artifact.name.clone()));
        }
        let writable = spec.shares.iter().any(|share| share.access == Access::ReadWrite);
        for (given, option, instead) in [
            (self.tty, "--tty", ""),
            (self.cwd.is_some(), "--cwd", ""),
            (self.user.is_some(), "--user", ""),
            (self.disk.is_some() && spec.grade == Grade::Jail, "--disk", ""),
            (!self.mounts.is_empty(), "--mount", ": it takes a project, as -w PATH:ro"),
            (writable, "a writable --workspace", ": it takes a project to read, as -w PATH:ro"),
        ] {
            if given {
                return Err(SpecError::OwnJail { option, environment: artifact.name.clone(), instead });
            }
        }
        Ok(())
    }

    /// The variables of the command: the terminal's type, then what was asked for.
    fn variables(&self, config: &Config) -> Vec<Variable> {
        let term = self.tty.then(|| Variable { name: "TERM".into(), value: Text::from(config.term.clone()) });
        let asked = self.variables.iter().filter_map(|text| {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_people_write_them() {
        assert_eq!(duration("90").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        for wrong in ["", "0", "0s", "-1", "soon"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
