//! A command that can be started: the checked form of [`firn_protocol::Exec`].
//!
//! Made in the agent from the request alone. What depends on the sandbox's files (who a user is,
//! where their home is) is added by [`Command::resolve`], which runs in the supervisor: a file
//! that blocks its reader then blocks one command and not the agent.

use super::accounts::{self, Accounts, Identity, Unknown};
use super::report::{Stage, StartFailure};
use firn_protocol::{Exec, NotStarted, NotStartedReason, Text};
use nix::errno::Errno;
use nix::sys::resource::Resource;
use nix::unistd::geteuid;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// Where programs are in a distribution that follows the Filesystem Hierarchy Standard.
pub(crate) const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A request that makes sense by itself.
pub(crate) struct Command {
    argv: Vec<CString>,
    env: BTreeMap<OsString, OsString>,
    cwd: CString,
    user: Option<String>,
    limits: Vec<(Resource, u64)>,
}

/// A command with all that `execve` needs.
pub(crate) struct Resolved {
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) cwd: CString,
    /// Where the program may be, in the order to be tried.
    pub(crate) candidates: Vec<CString>,
    /// Whom to become. `None`: nobody else.
    pub(crate) identity: Option<Identity>,
    /// Whether the groups may be left as they are when they cannot be set.
    pub(crate) own_identity: bool,
    /// What it may use at most, besides what limits the agent.
    pub(crate) limits: Vec<(Resource, u64)>,
}

fn invalid(message: String) -> NotStarted {
    NotStarted { reason: NotStartedReason::InvalidArgument, message }
}

fn terminated(text: &Text, what: impl FnOnce() -> String) -> Result<CString, NotStarted> {
    CString::new(text.as_bytes()).map_err(|nul| {
        let position = nul.nul_position();
        invalid(format!("{} holds a NUL at byte {position}", what()))
    })
}

impl Command {
    /// Checks a request.
    pub(crate) fn new(exec: &Exec) -> Result<Command, NotStarted> {
        if exec.argv.is_empty() {
            return Err(invalid("the argument vector is empty".into()));
        }
        if exec.argv[0].as_bytes().is_empty() {
            return Err(NotStarted {
                reason: NotStartedReason::NotFound,
                message: "the program's name is empty".into(),
            });
        }
        let argv = exec
            .argv
            .iter()
            .enumerate()
            .map(|(index, argument)| terminated(argument, || format!("argument {index}")))
            .collect::<Result<Vec<_>, _>>()?;
        let mut env = BTreeMap::new();
        for variable in &exec.env {
            let name = variable.name.as_bytes();
            if name.is_empty() || name.contains(&b'=') || name.contains(&0) {
                return Err(invalid(format!("{:?} is no name for a variable", variable.name.as_os_str())));
            }
            if variable.value.as_bytes().contains(&0) {
                return Err(invalid(format!("the variable {:?} holds a NUL", variable.name.as_os_str())));
            }
            env.insert(variable.name.clone().into_os_string(), variable.value.clone().into_os_string());
        }
        let cwd = match &exec.cwd {
            None => c"/".to_owned(),
            Some(cwd) if cwd.as_path().is_absolute() => terminated(cwd, || "the working directory".into())?,
            Some(cwd) => {
                return Err(NotStarted {
                    reason: NotStartedReason::BadWorkingDirectory,
                    message: format!("the working directory {:?} is not absolute", cwd.as_os_str()),
                });
            }
        };
        let limits = exec.resource_limits.iter().map(|limit| (resource(limit.resource), limit.value));
        Ok(Command { argv, env, cwd, user: exec.user.clone(), limits: limits.collect() })
    }

    /// Completes the command from the sandbox's files. Programs are looked for in `path` when the command
    /// has none of its own.
    pub(crate) fn resolve(self, path: &OsStr) -> Result<Resolved, StartFailure> {
        let accounts = Accounts::read(self.user.is_some());
        let identity = match &self.user {
            None => None,
            Some(user) => Some(accounts.identity(user).map_err(|unknown| StartFailure {
                stage: match unknown {
                    Unknown::User => Stage::User,
                    Unknown::Group => Stage::Group,
                },
                errno: Errno::ENOENT as i32,
            })?),
        };
        let uid = identity.as_ref().map_or_else(|| geteuid().as_raw(), |identity| identity.uid);
        let account = accounts.account(uid);
        let mut env = self.env;
        for (name, value) in [
            ("PATH", path.as_bytes().to_vec()),
            ("HOME", account.home),
            ("USER", account.name.clone()),
            ("LOGNAME", account.name),
            ("SHELL", account.shell),
            ("LANG", b"C.UTF-8".to_vec()),
        ] {
            env.entry(name.into()).or_insert_with(|| OsString::from_vec(value));
        }
        let path = env.get(OsStr::new("PATH")).map(|path| path.as_bytes()).unwrap_or_default();
        let candidates = candidates(&self.argv[0], path);
        let env = env.into_iter().filter_map(|(name, value)| {
            let mut variable = name.into_vec();
            variable.push(b'=');
            variable.extend_from_slice(value.as_bytes());
            // Checked for NUL above; those of the files are, line by line.
            CString::new(variable).ok()
        });
        Ok(Resolved {
            env: env.collect(),
            argv: self.argv,
            cwd: self.cwd,
            candidates,
            own_identity: identity.as_ref().is_some_and(accounts::is_own),
            identity,
            limits: self.limits,
        })
    }
}

fn resource(resource: firn_protocol::Resource) -> Resource {
    use firn_protocol::Resource as Asked;
    match resource {
        Asked::Data => Resource::RLIMIT_DATA,
        Asked::Processes => Resource::RLIMIT_NPROC,
        Asked::FileSize => Resource::RLIMIT_FSIZE,
        Asked::OpenFiles => Resource::RLIMIT_NOFILE,
        Asked::Cpu => Resource::RLIMIT_CPU,
        Asked::Core => Resource::RLIMIT_CORE,
    }
}

/// The files `execvp(3)` would try. An empty element of the path is the working directory.
fn candidates(program: &CStr, path: &[u8]) -> Vec<CString> {
    let program = program.to_bytes();
    let file = |bytes: Vec<u8>| CString::new(bytes).ok();
    if program.contains(&b'/') {
        return file(program.to_vec()).into_iter().collect();
    }
    path.split(|byte| *byte == b':')
        .filter_map(|folder| {
            let mut bytes = if folder.is_empty() { b".".to_vec() } else { folder.to_vec() };
            bytes.push(b'/');
            bytes.extend_from_slice(program);
            file(bytes)
        })
        .collect()
}

/// Puts a failed start into the protocol's words.
pub(crate) fn not_started(failure: StartFailure) -> NotStarted {
    use NotStartedReason as Reason;
    let errno = Errno::from_raw(failure.errno);
    let reason = match (failure.stage, errno) {
        (_, Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE) => Reason::NoResources,
        (Stage::User | Stage::Group, _) => Reason::UnknownUser,
        (Stage::Directory, _) => Reason::BadWorkingDirectory,
        (Stage::Interpreter, _) => Reason::NotFound,
        (Stage::Program, Errno::ENOENT | Errno::ENOTDIR) => Reason::NotFound,
        (Stage::Program, Errno::E2BIG) => Reason::InvalidArgument,
        (
            Stage::Program,
            Errno::EACCES
            | Errno::EPERM
            | Errno::ENOEXEC
            | Errno::EISDIR
            | Errno::ELIBBAD
            | Errno::EINVAL
            | Errno::ETXTBSY
            | Errno::ELOOP
            | Errno::ENAMETOOLONG,
        ) => Reason::NotExecutable,
        _ => Reason::Other,
    };
    let what = match failure.stage {
        Stage::User => return NotStarted { reason, message: "no such user in the sandbox".into() },
        Stage::Group => return NotStarted { reason, message: "no such group in the sandbox".into() },
        Stage::Process => "cannot make a process",
        Stage::Terminal => "cannot set up a terminal",
        Stage::Stdio => "cannot set up stdin, stdout and stderr",
        Stage::Identity => "cannot become the user",
        Stage::Directory => "cannot enter the working directory",
        Stage::Limits => "cannot limit resources",
        Stage::Program => "cannot execute",
        Stage::Interpreter => "the file is there, but its interpreter or loader is not",
    };
    NotStarted { reason, message: format!("{what}: {}", errno.desc()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_searched_as_execvp_does() {
        let names = |path: &str| {
            candidates(c"ls", path.as_bytes())
                .into_iter()
                .map(|name| name.into_string().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(names("/a:/b"), ["/a/ls", "/b/ls"]);
        assert_eq!(names(":/b:"), ["./ls", "/b/ls", "./ls"]);
        assert_eq!(candidates(c"./ls", b"/a"), [c"./ls".to_owned()]);
    }
}
