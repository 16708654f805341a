//! Control groups for those who may make none: scopes of the user's own service manager.
//!
//! On a host of version 2 a normal user's session is in a group of root's, and only the user's
//! systemd has a part of the tree to itself. It makes a group there for whoever asks, a *transient
//! scope*, with limits, and removes it when it is empty. `systemd-run --scope` asks, and then
//! becomes the program it was given: same process, same descriptors.
//!
//! The path of the group is known before it is there, so it can be recorded like any other.

use super::hierarchy::{Controller, controllers};
use crate::sys::limits::Limits;
use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Where distributions have `systemd-run`: the last is NixOS's.
const SYSTEMD_RUN: [&str; 3] =
    ["/usr/bin/systemd-run", "/bin/systemd-run", "/run/current-system/sw/bin/systemd-run"];

/// The slice for applications of a user (systemd.special(7)): the default since systemd 249.
const SLICE: &str = "app.slice";

/// A service manager that makes scopes for this user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manager {
    systemd_run: PathBuf,
    /// The variable that tells `systemd-run` where the manager is.
    runtime_dir: PathBuf,
    /// The folder of its group.
    group: PathBuf,
    /// What it can limit.
    pub(super) controllers: Vec<Controller>,
}

impl Manager {
    /// That of this user, if one runs. `mount` is where version 2 is mounted.
    pub(super) fn find(mount: &Path) -> Option<Manager> {
        // It asks the system's manager to move the process, and without one waits in vain.
        if std::fs::read_to_string("/proc/1/comm").ok()?.trim_end() != "systemd" {
            return None;
        }
        let runtime_dir = PathBuf::from(format!("/run/user/{}", nix::unistd::Uid::effective()));
        let systemd_run = SYSTEMD_RUN.iter().map(PathBuf::from).find(|path| path.exists())?;
        // Whoever listens here is the manager, in the group `init.scope` just below its own.
        let socket = UnixStream::connect(runtime_dir.join("systemd/private")).ok()?;
        let peer = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials).ok()?;
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", peer.pid())).ok()?;
        let group = mount.join(own_group(&groups)?);
        let controllers = controllers(&group);
        (!controllers.is_empty()).then_some(Manager { systemd_run, runtime_dir, group, controllers })
    }

    /// The scope called `name`, with these limits.
    pub(super) fn scope(&self, name: &str, limits: &Limits) -> Scope {
        let unit = format!("{name}.scope");
        let path = self.group.join(SLICE).join(&unit);
        let mut args: Vec<OsString> =
            ["--user", "--scope", "--quiet", "--collect", "--slice", SLICE, "--unit"]
                .into_iter()
                .map(OsString::from)
                .collect();
        args.push(unit.into());
        // With it, that a process was killed for lack of memory does not make systemd stop all
        // others (`OOMPolicy` in systemd.scope(5), which cannot be set itself before systemd 253).
        let mut properties = vec!["Delegate=yes".to_owned()];
        for controller in &self.controllers {
            properties.extend(
                match controller {
                    Controller::Memory => limits
                        .memory
                        .map(|bytes| vec![format!("MemoryMax={bytes}"), "MemorySwapMax=0".to_owned()]),
                    Controller::Pids => limits.processes.map(|most| vec![format!("TasksMax={most}")]),
                    Controller::Cpu => limits.cpus.map(|cpus| {
                        let (percent, tenths) = cpus.percent();
                        vec![format!("CPUQuota={percent}.{tenths}%")]
                    }),
                    Controller::Freezer => None,
                }
                .unwrap_or_default(),
            );
        }
        args.extend(properties.iter().flat_map(|property| ["-p".into(), property.into()]));
        args.push("--".into());
        Scope { path, program: self.systemd_run.clone(), args, runtime_dir: self.runtime_dir.clone() }
    }
}

#[cfg(test)]
impl Manager {
    /// One that can limit everything.
    pub(super) fn example() -> Manager {
        Manager {
            systemd_run: "/usr/bin/systemd-run".into(),
            runtime_dir: "/run/user/7".into(),
            group: "/c/user@7.service".into(),
            controllers: vec![Controller::Memory, Controller::Pids, Controller::Cpu],
        }
    }
}

/// The manager's group, without the leading slash, from `/proc/PID/cgroup` of the manager.
fn own_group(groups: &str) -> Option<PathBuf> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let path = Path::new(path);
    path.ends_with("init.scope").then(|| path.parent().map(Path::to_owned))?
}

/// Whether the group in this folder was made by a service manager.
pub(super) fn is_scope(group: &Path) -> bool {
    group.extension().is_some_and(|extension| extension == "scope")
}

/// Has the service manager remove a scope that it believes to run although nothing is in it: its first
/// process was killed before the manager had seen it. Of no use is no failure, and harms nobody.
pub(super) fn dismiss(group: &Path) {
    let Some(unit) = group.file_name() else { return };
    let runtime_dir = format!("/run/user/{}", nix::unistd::Uid::effective());
    let mut command = std::process::Command::new("systemctl");
    command.args(["--user", "stop"]).arg(unit).env_clear().env("XDG_RUNTIME_DIR", runtime_dir);
    command.env("PATH", "/usr/bin:/bin:/run/current-system/sw/bin");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _ = command.status();
}

/// A scope to be: one process is started in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scope {
    /// The folder of its group.
    pub(super) path: PathBuf,
    program: PathBuf,
    args: Vec<OsString>,
    runtime_dir: PathBuf,
}

/// What is executed instead of a program, to start it in a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrapped {
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<OsString>,
    /// A variable it needs.
    pub(crate) variable: Option<(&'static str, PathBuf)>,
}

impl Scope {
    /// The command that starts `program` in this scope.
    pub(super) fn wrap(&self, program: PathBuf, args: Vec<OsString>) -> Wrapped {
        let all = self.args.iter().cloned().chain([program.into()]).chain(args).collect();
        Wrapped {
            program: self.program.clone(),
            args: all,
            variable: Some(("XDG_RUNTIME_DIR", self.runtime_dir.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_is_found_above_its_own_scope() {
        let real = "0::/user.slice/user-1000.slice/user@1000.service/init.scope\n";
        let group = Some(PathBuf::from("user.slice/user-1000.slice/user@1000.service"));
        assert_eq!(own_group(real), group);
        assert_eq!(own_group("1:name=systemd:/x\n"), None);
        assert_eq!(own_group("0::/user.slice/other.service\n"), None);
    }

    #[test]
    fn limits_are_properties_of_the_unit() {
        let manager = Manager::example();
        let limits = Limits { memory: Some(1 << 20), processes: Some(9), cpus: "1.255".parse().ok() };
        let scope = manager.scope("firn-0badcafe", &limits);
        assert_eq!(scope.path, Path::new("/c/user@7.service/app.slice/firn-0badcafe.scope"));
        let wrapped = scope.wrap("/usr/bin/bwrap".into(), vec!["--dev".into()]);
        assert_eq!(wrapped.program, Path::new("/usr/bin/systemd-run"));
        assert_eq!(wrapped.variable, Some(("XDG_RUNTIME_DIR", "/run/user/7".into())));
        assert_eq!(
            wrapped.args.join(" ".as_ref()),
            "--user --scope --quiet --collect --slice app.slice --unit firn-0badcafe.scope -p Delegate=yes \
             -p MemoryMax=1048576 -p MemorySwapMax=0 -p TasksMax=9 -p CPUQuota=125.5% -- /usr/bin/bwrap --dev"
        );
        let without = Manager { controllers: vec![Controller::Pids], ..manager };
        let wrapped = without.scope("x", &limits).wrap("/bin/true".into(), Vec::new());
        assert!(!wrapped.args.contains(&"MemorySwapMax=0".into()));
    }
}
