//! One control group for all processes of a sandbox.
//!
//! It is what "all processes of a sandbox" means to the kernel: killing the group kills them all,
//! however they have multiplied, and an empty group proves that none is left. It is also what
//! holds them to their limits, together. Where no group can be made, a sandbox has none: its pid
//! namespaces alone hold it together, and its processes limit themselves.
//!
//! A group is one folder in version 2. In version 1 it is a folder in each hierarchy that is
//! needed: `pids` always, to kill by, one for each limit, and one to freeze by. A user who may make none that limit
//! asks the user's service manager for one: a scope.

mod counters;
mod dir;
mod entry;
mod freezer;
mod hierarchy;
mod scope;
#[cfg(test)]
mod tests;
mod usage;

pub(crate) use entry::Entry;
pub(crate) use freezer::PauseError;
pub(crate) use hierarchy::Hierarchies;
#[cfg(test)]
pub(crate) use hierarchy::{Controller, Hierarchy, Version};
pub(crate) use scope::Wrapped;
pub(crate) use usage::Usage;

use crate::sys::limits::{CPU_PERIOD, Events, Limits};
use counters::Counters;
use dir::{Dir, Setting, counter, write};
use scope::Scope;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A sandbox's group, or the absence of one.
#[derive(Debug, Default)]
pub(crate) struct Cgroup {
    dirs: Vec<Dir>,
    /// Who makes the folder, where we cannot.
    scope: Option<Scope>,
    /// Once they were asked for.
    counters: OnceLock<Counters>,
}

/// A limit that no folder has a file for is none.
fn required(done: Option<()>, what: &str) -> io::Result<()> {
    done.ok_or_else(|| {
        let error = format!("the control group was made without a limit on {what}");
        io::Error::new(io::ErrorKind::Unsupported, error)
    })
}

impl Cgroup {
    /// No group.
    #[cfg(test)]
    pub(crate) fn none() -> Cgroup {
        Cgroup::default()
    }

    /// The group in these folders, whether they are there or not.
    pub(crate) fn at(paths: Vec<PathBuf>) -> Cgroup {
        let dirs = paths.into_iter().map(|path| Dir { path, ..Dir::default() }).collect();
        Cgroup { dirs, ..Cgroup::default() }
    }

    fn managed(scope: Scope) -> Cgroup {
        let dirs = vec![Dir { path: scope.path.clone(), ..Dir::default() }];
        Cgroup { dirs, scope: Some(scope), ..Cgroup::default() }
    }

    /// Makes the group and sets its limits. A scope is made by the first process that is started in
    /// it.
    pub(crate) fn create(&self) -> io::Result<()> {
        if self.scope.is_some() {
            return Ok(());
        }
        self.dirs.iter().try_for_each(Dir::create)
    }

    /// Its folder: the first of them, where it has several.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.dirs.first().map(|dir| dir.path.as_path())
    }

    /// All of its folders.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.dirs.iter().map(|dir| dir.path.clone()).collect()
    }

    /// What to execute so that `program` runs in this group: another program before it, where
    /// [`Cgroup::entry`] leads nowhere because the group is a scope. Only one process can be started
    /// in a scope; all that it starts are in it too.
    pub(crate) fn wrap(&self, program: PathBuf, args: Vec<OsString>) -> Wrapped {
        match &self.scope {
            Some(scope) => scope.wrap(program, args),
            None => Wrapped { program, args, variable: None },
        }
    }

    /// What a new process needs to be in the group.
    pub(crate) fn entry(&self) -> io::Result<Entry> {
        let mut entry = Entry::default();
        if self.scope.is_some() {
            return Ok(entry);
        }
        for dir in &self.dirs {
            entry.add(&dir.path)?;
        }
        Ok(entry)
    }

    /// Has an existing group hold to these limits from now on; what is `None` stays as it is. With version 1
    /// only what it was limited in when it was made. Memory below what is in use is an error with version 1,
    /// and may cost processes their lives with version 2.
    pub(crate) fn limit(&self, limits: &Limits) -> io::Result<()> {
        if let Some(bytes) = limits.memory {
            required(self.limit_memory(&bytes.to_string())?, "memory")?;
        }
        if let Some(most) = limits.processes {
            required(self.set("pids.max", &most.to_string())?, "processes")?;
        }
        if let Some(cpus) = limits.cpus {
            let quota = cpus.quota();
            let done = match self.set("cpu.max", &format!("{quota} {CPU_PERIOD}"))? {
                Some(()) => Some(()),
                None => self.set("cpu.cfs_quota_us", &quota.to_string())?,
            };
            required(done, "processor time")?;
        }
        Ok(())
    }

    fn limit_memory(&self, bytes: &str) -> io::Result<Option<()>> {
        if let Some(()) = self.set("memory.max", bytes)? {
            return Ok(Some(()));
        }
        // Memory and swap together may never be less than memory: which goes first depends.
        let (most, both) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
        let first = self.set(most, bytes);
        self.set(both, bytes)?;
        if first.is_err() { self.set(most, bytes) } else { first }
    }

    /// Writes into the file of this name in the folder that has it, if one has.
    fn set(&self, file: &str, value: &str) -> io::Result<Option<()>> {
        for dir in &self.dirs {
            match write(&dir.path.join(file), value) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io::Error::new(error.kind(), format!("{file}={value}: {error}"))),
                Ok(()) => return Ok(Some(())),
            }
        }
        Ok(None)
    }

    /// What it has counted since it was made. To be asked when it is there.
    pub(crate) fn events(&self) -> Events {
        self.counters.get_or_init(|| Counters::open(&self.dirs)).read()
    }

    /// After [`Cgroup::destroy`] of a group whose owner was killed: has others forget it too.
    pub(crate) fn dismiss(&self) {
        for dir in self.dirs.iter().filter(|dir| scope::is_scope(&dir.path) && dir.path.exists()) {
            scope::dismiss(&dir.path);
        }
    }

    /// Removes it, if nothing is in it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        // One after the other, whatever becomes of each.
        let failures: Vec<io::Error> = self.dirs.iter().filter_map(|dir| dir.remove().err()).collect();
        failures.into_iter().next().map_or(Ok(()), Err)
    }

    /// Kills every process in the group and removes it. Waits at most `patience`.
    pub(crate) fn destroy(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_micros(200);
        loop {
            let Err(error) = self.remove() else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(error);
            }
            self.dirs.iter().for_each(Dir::kill);
            // What is frozen with version 1 dies when it thaws.
            self.melt();
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}
