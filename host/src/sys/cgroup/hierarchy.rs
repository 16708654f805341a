//! Where control groups can be made on this host, and what they can limit.
//!
//! A host has one hierarchy of version 2, several of version 1 with a controller or two each, or
//! both side by side. A controller is in one of them only.

use super::scope::Manager;
use super::{Cgroup, Dir, Setting};
use crate::sys::limits::{CPU_PERIOD, Limits, Mechanism, Mechanisms};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For how long what was found is taken to be so.
const MOMENT: Duration = Duration::from_secs(10);

/// The version of a hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// One hierarchy for each controller.
    One,
    /// One for all.
    Two,
}

/// A controller that is used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Controller {
    /// Memory.
    Memory,
    /// Processes and threads.
    Pids,
    /// Processor time.
    Cpu,
    /// Whether processes run at all. Every group of version 2 can say, without a controller.
    Freezer,
}

impl Controller {
    /// Those that limit.
    const LIMITING: [Controller; 3] = [Controller::Memory, Controller::Pids, Controller::Cpu];

    /// The kernel's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Pids => "pids",
            Controller::Cpu => "cpu",
            Controller::Freezer => "freezer",
        }
    }

    /// Those named in a list.
    fn among(names: &str, separator: char) -> Vec<Controller> {
        let listed =
            |controller: &Controller| names.split(separator).any(|name| name.trim_end() == controller.name());
        Controller::LIMITING.into_iter().chain([Controller::Freezer]).filter(listed).collect()
    }

    /// What is written into a new group's files, in this order.
    fn settings(self, version: Version, limits: &Limits) -> Vec<Setting> {
        let needed = |file, value: Option<u64>| {
            value.map(|value| Setting { file, value: value.to_string(), optional: false })
        };
        let optional = |file, value: u64| Setting { file, value: value.to_string(), optional: true };
        // The files of version 2 are in Documentation/admin-guide/cgroup-v2.rst, those of version 1
        // in cgroup-v1/memory.rst, cgroup-v1/pids.rst and scheduler/sched-bwc.rst.
        match (self, version) {
            (Controller::Memory, Version::Two) => needed("memory.max", limits.memory)
                .into_iter()
                // Not there where the kernel does not account for swap.
                .flat_map(|most| [most, optional("memory.swap.max", 0)])
                .collect(),
            (Controller::Memory, Version::One) => limits
                .memory
                .into_iter()
                // In this order: the second, memory and swap together, may not be less than the
                // first. It is not there where the kernel does not account for swap.
                .flat_map(|bytes| {
                    let most = needed("memory.limit_in_bytes", Some(bytes));
                    most.into_iter().chain([optional("memory.memsw.limit_in_bytes", bytes)])
                })
                .collect(),
            (Controller::Pids, _) => needed("pids.max", limits.processes).into_iter().collect(),
            (Controller::Cpu, Version::Two) => limits
                .cpus
                .map(|cpus| Setting {
                    file: "cpu.max",
                    value: format!("{} {CPU_PERIOD}", cpus.quota()),
                    optional: false,
                })
                .into_iter()
                .collect(),
            (Controller::Cpu, Version::One) => needed("cpu.cfs_period_us", limits.cpus.map(|_| CPU_PERIOD))
                .into_iter()
                .chain(needed("cpu.cfs_quota_us", limits.cpus.map(|cpus| cpus.quota())))
                .collect(),
            (Controller::Freezer, _) => Vec::new(),
        }
    }
}

/// A place where groups can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// The group that sandboxes' groups are made in.
    pub(crate) parent: PathBuf,
    /// Its version.
    pub(crate) version: Version,
    /// What groups in it can limit.
    pub(crate) controllers: Vec<Controller>,
}

impl Hierarchy {
    fn limits(&self) -> bool {
        self.controllers.iter().any(|controller| *controller != Controller::Freezer)
    }

    fn freezes(&self) -> bool {
        self.version == Version::Two || self.controllers.contains(&Controller::Freezer)
    }
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    all: Vec<Hierarchy>,
    /// Who makes groups that limit for a user who can make none that do.
    manager: Option<Manager>,
}

impl Hierarchies {
    /// Those that this process may make groups in. Looks without touching: `doctor` asks too.
    pub(crate) fn find() -> Hierarchies {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let root = nix::unistd::Uid::effective().is_root();
        let mut all = candidates(&mounts, &own, root);
        all.retain(|hierarchy| usable(&hierarchy.parent));
        for hierarchy in &mut all {
            if hierarchy.version == Version::Two {
                hierarchy.controllers = available(&hierarchy.parent);
            }
        }
        let can_limit = all.iter().any(Hierarchy::limits);
        let manager = if root || can_limit { None } else { mount(&mounts).and_then(Manager::find) };
        Hierarchies { all, manager }
    }

    /// The same, as they were a moment ago: to look takes longer than to make a group.
    pub(crate) fn recent() -> Hierarchies {
        static FOUND: Mutex<Option<(Instant, Hierarchies)>> = Mutex::new(None);
        let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        match &*found {
            Some((when, hierarchies)) if when.elapsed() < MOMENT => hierarchies.clone(),
            _ => {
                let hierarchies = Hierarchies::find();
                *found = Some((Instant::now(), hierarchies.clone()));
                hierarchies
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn of(all: Vec<Hierarchy>) -> Hierarchies {
        Hierarchies { all, manager: None }
    }

    /// The same without scopes, for sandboxes of more than one helper: only one process can be started
    /// in a scope.
    pub(crate) fn without_scopes(self) -> Hierarchies {
        Hierarchies { manager: None, ..self }
    }

    fn with(&self, controller: Controller) -> Option<&Hierarchy> {
        self.all.iter().find(|hierarchy| hierarchy.controllers.contains(&controller))
    }

    /// The hierarchy whose groups say best which processes belong together. Version 1's `pids`
    /// before version 2: where both are there, joining its groups is a thousand times faster (see
    /// [`super::Entry`]), and a group of it that may have no more processes is as easily killed.
    fn holder(&self) -> Option<&Hierarchy> {
        let first = self.all.iter().find(|hierarchy| {
            hierarchy.version == Version::One && hierarchy.controllers.contains(&Controller::Pids)
        });
        first.or_else(|| self.all.iter().find(|hierarchy| hierarchy.version == Version::Two))
    }

    /// Whether a sandbox can have a group at all, and in which folder.
    pub(crate) fn parent(&self) -> Option<&Path> {
        self.holder().map(|hierarchy| hierarchy.parent.as_path())
    }

    /// What holds sandboxes to each limit.
    pub(crate) fn mechanisms(&self) -> Mechanisms {
        let managed = |controller| {
            self.manager.as_ref().is_some_and(|manager| manager.controllers.contains(&controller))
        };
        let of = |controller, otherwise| match self.with(controller).map(|hierarchy| hierarchy.version) {
            Some(Version::One) => Mechanism::CgroupV1,
            Some(Version::Two) => Mechanism::CgroupV2,
            None if managed(controller) => Mechanism::SystemdScope,
            None => otherwise,
        };
        let without = Mechanisms::WITHOUT_GROUPS;
        Mechanisms {
            memory: of(Controller::Memory, without.memory),
            processes: of(Controller::Pids, without.processes),
            cpus: of(Controller::Cpu, without.cpus),
        }
    }

    /// The group called `name` that holds its processes to `limits`, as far as groups can here, and that
    /// can be frozen. In no more hierarchies than are needed for that: each costs each process that joins.
    pub(crate) fn group(&self, name: &str, limits: &Limits) -> Cgroup {
        if let Some(manager) = self.manager.as_ref().filter(|_| *limits != Limits::default()) {
            return Cgroup::managed(manager.scope(name, limits));
        }
        let mut dirs: Vec<Dir> = Vec::new();
        // The holder first: it is the one that is shown.
        if let Some(hierarchy) = self.holder() {
            dirs.push(Dir { path: hierarchy.parent.join(name), ..Dir::default() });
        }
        for controller in Controller::LIMITING {
            let Some(hierarchy) = self.with(controller) else { continue };
            let settings = controller.settings(hierarchy.version, limits);
            if settings.is_empty() {
                continue;
            }
            let path = hierarchy.parent.join(name);
            let index = dirs.iter().position(|dir| dir.path == path).unwrap_or_else(|| {
                dirs.push(Dir { path, ..Dir::default() });
                dirs.len() - 1
            });
            dirs[index].settings.extend(settings);
            if hierarchy.version == Version::Two {
                dirs[index].enable.push(controller);
            }
        }
        // Version 2, which comes first, before the freezer of version 1: joining it costs nothing, and
        // what is frozen in it can still be killed.
        if let Some(freezer) = self.all.iter().find(|hierarchy| hierarchy.freezes()) {
            let path = freezer.parent.join(name);
            if !dirs.iter().any(|dir| dir.path == path) {
                dirs.push(Dir { path, ..Dir::default() });
            }
        }
        Cgroup { dirs, ..Cgroup::default() }
    }
}

/// Groups below the root of each hierarchy for root; below our own group for everybody else, who
/// can write there if that part of the tree was delegated to them. Version 2 first; its controllers
/// are not in these texts.
fn candidates(mounts: &str, own: &str, root: bool) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        let (Some(_), Some(point), Some(kind), Some(options)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (version, controllers) = match kind {
            "cgroup2" => (Version::Two, Vec::new()),
            "cgroup" => (Version::One, Controller::among(options, ',')),
            _ => continue,
        };
        // Mounted a second time, or of no use.
        if (version == Version::One && controllers.is_empty())
            || found.iter().any(|other| other.version == version && other.controllers == controllers)
        {
            continue;
        }
        let parent = if root {
            PathBuf::from(point)
        } else {
            let ours = own.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (names, path) = rest.split_once(':')?;
                let matches = match version {
                    Version::Two => names.is_empty(),
                    Version::One => !names.is_empty() && Controller::among(names, ',') == controllers,
                };
                matches.then(|| path.trim_start_matches('/'))
            });
            let Some(ours) = ours else { continue };
            Path::new(point).join(ours)
        };
        found.push(Hierarchy { parent, version, controllers });
    }
    found.sort_by_key(|hierarchy| hierarchy.version == Version::One);
    found
}

/// Where version 2 is mounted.
fn mount(mounts: &str) -> Option<&Path> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| Path::new(point))
    })
}

fn usable(parent: &Path) -> bool {
    nix::unistd::access(parent, nix::unistd::AccessFlags::W_OK).is_ok()
}

/// The controllers that the group at `dir` has itself.
pub(super) fn controllers(dir: &Path) -> Vec<Controller> {
    let names = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    Controller::among(&names, ' ')
}

/// The controllers that groups in `parent` have, or can be given.
fn available(parent: &Path) -> Vec<Controller> {
    let read = |file: &str| fs::read_to_string(parent.join(file)).unwrap_or_default();
    let writable =
        |file: &str| nix::unistd::access(&parent.join(file), nix::unistd::AccessFlags::W_OK).is_ok();
    let enabled = read("cgroup.subtree_control");
    // "No internal processes" (cgroup-v2.rst): a group hands controllers down only if no process
    // is in it itself. The root, which alone has no `cgroup.type`, is free of that rule.
    let can_enable = writable("cgroup.subtree_control")
        && (!parent.join("cgroup.type").exists() || read("cgroup.procs").is_empty());
    let offered = if can_enable { read("cgroup.controllers") } else { enabled };
    Controller::among(&offered, ' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "tmpfs /c tmpfs rw 0 0\n\
                          cgroup /c/cpu cgroup rw,cpu,cpuacct 0 0\n\
                          cgroup /c/memory cgroup rw,relatime,memory 0 0\n\
                          cgroup /c/pids cgroup rw,pids 0 0\n\
                          cgroup /c/systemd cgroup rw,name=systemd 0 0\n\
                          cgroup2 /c/unified cgroup2 rw 0 0\n";

    fn limits() -> Limits {
        Limits { memory: Some(64 << 20), processes: Some(8), cpus: "1.5".parse().ok() }
    }

    fn paths(cgroup: &Cgroup) -> Vec<&str> {
        cgroup.dirs.iter().map(|dir| dir.path.to_str().unwrap()).collect()
    }

    fn written(cgroup: &Cgroup) -> Vec<(&str, &str)> {
        let settings = cgroup.dirs.iter().flat_map(|dir| &dir.settings);
        settings.map(|setting| (setting.file, setting.value.as_str())).collect()
    }

    #[test]
    fn hierarchies_are_found_with_what_they_control() {
        let found = candidates(HYBRID, "", true);
        let controllers: Vec<_> =
            found.iter().map(|hierarchy| (hierarchy.version, hierarchy.controllers.clone())).collect();
        assert_eq!(
            controllers,
            [
                (Version::Two, vec![]),
                (Version::One, vec![Controller::Cpu]),
                (Version::One, vec![Controller::Memory]),
                (Version::One, vec![Controller::Pids]),
            ]
        );
    }

    #[test]
    fn a_normal_user_has_what_is_below_its_own_group() {
        let own = "3:pids:/a\n2:cpu,cpuacct:/d\n1:name=systemd:/c\n0::/b\n";
        let found = candidates(HYBRID, own, false);
        let parents: Vec<_> = found.iter().map(|hierarchy| hierarchy.parent.to_str().unwrap()).collect();
        assert_eq!(parents, ["/c/unified/b", "/c/cpu/d", "/c/pids/a"]);
    }

    #[test]
    fn a_group_is_in_no_more_hierarchies_than_are_needed() {
        let hybrid = Hierarchies::of(candidates(HYBRID, "", true));
        assert_eq!(paths(&hybrid.group("x", &Limits::default())), ["/c/pids/x", "/c/unified/x"]);
        let memory = Limits { memory: Some(1), ..Limits::default() };
        assert_eq!(paths(&hybrid.group("x", &memory)), ["/c/pids/x", "/c/memory/x", "/c/unified/x"]);
        let all = hybrid.group("x", &limits());
        assert_eq!(paths(&all), ["/c/pids/x", "/c/memory/x", "/c/cpu/x", "/c/unified/x"]);
        assert_eq!(
            written(&all),
            [
                ("pids.max", "8"),
                ("memory.limit_in_bytes", "67108864"),
                ("memory.memsw.limit_in_bytes", "67108864"),
                ("cpu.cfs_period_us", "100000"),
                ("cpu.cfs_quota_us", "150000"),
            ]
        );
        let v1 = Mechanism::CgroupV1;
        assert_eq!(mount(HYBRID), Some(Path::new("/c/unified")));
        assert_eq!(hybrid.mechanisms(), Mechanisms { memory: v1, processes: v1, cpus: v1 });
    }

    #[test]
    fn what_freezes_is_joined_too() {
        let first =
            HYBRID.replace("cgroup2 /c/unified cgroup2", "cgroup /c/freezer cgroup rw,freezer,cgroup");
        let first = Hierarchies::of(candidates(&first, "", true));
        assert_eq!(paths(&first.group("x", &Limits::default())), ["/c/pids/x", "/c/freezer/x"]);
        let freezer =
            Hierarchy { parent: "/f".into(), version: Version::One, controllers: vec![Controller::Freezer] };
        assert!(freezer.freezes() && !freezer.limits());
    }

    #[test]
    fn version_2_is_one_folder() {
        let controllers = vec![Controller::Memory, Controller::Pids, Controller::Cpu];
        let parent = "/sys/fs/cgroup".into();
        let pure = Hierarchies::of(vec![Hierarchy {
            parent,
            version: Version::Two,
            controllers: controllers.clone(),
        }]);
        let group = pure.group("x", &limits());
        assert_eq!(paths(&group), ["/sys/fs/cgroup/x"]);
        assert_eq!(group.dirs[0].enable, controllers);
        assert_eq!(
            written(&group),
            [
                ("memory.max", "67108864"),
                ("memory.swap.max", "0"),
                ("pids.max", "8"),
                ("cpu.max", "150000 100000")
            ]
        );
        let unlimited = pure.group("x", &Limits::default());
        assert_eq!(paths(&unlimited), ["/sys/fs/cgroup/x"]);
        assert!(unlimited.dirs[0].enable.is_empty() && written(&unlimited).is_empty());
    }

    #[test]
    fn without_hierarchies_processes_limit_themselves() {
        let none = Hierarchies::default();
        assert_eq!(none.mechanisms(), Mechanisms::WITHOUT_GROUPS);
        assert_eq!(none.parent(), None);
        assert!(none.group("x", &limits()).dirs.is_empty());
    }

    #[test]
    fn no_scope_holds_more_than_one_helper() {
        let managed = Hierarchies { all: Vec::new(), manager: Some(Manager::example()) };
        assert!(managed.group("x", &limits()).scope.is_some());
        assert_eq!(managed.mechanisms().memory, Mechanism::SystemdScope);
        let unmanaged = managed.without_scopes();
        assert!(unmanaged.group("x", &limits()).dirs.is_empty());
        assert_eq!(unmanaged.mechanisms(), Mechanisms::WITHOUT_GROUPS);
    }

    #[test]
    fn controllers_are_handed_down_by_the_root_and_by_groups_without_processes() {
        let base = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(base.path().join(file), text).unwrap();
        write("cgroup.controllers", "cpuset cpu io memory hugetlb pids\n");
        write("cgroup.subtree_control", "memory pids\n");
        write("cgroup.procs", "1\n");
        let all = [Controller::Memory, Controller::Pids, Controller::Cpu];
        assert_eq!(available(base.path()), all, "the root");
        write("cgroup.type", "domain\n");
        assert_eq!(available(base.path()), all[..2], "a group with a process");
        write("cgroup.procs", "");
        assert_eq!(available(base.path()), all, "one without");
        assert_eq!(available(Path::new("/nowhere")), []);
    }
}
