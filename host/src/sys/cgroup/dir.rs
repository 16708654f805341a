//! A group's folder in one hierarchy: made, read, emptied and removed through its files.

use super::hierarchy::Controller;
use super::scope;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// The group's folder in one hierarchy.
#[derive(Debug, Default)]
pub(super) struct Dir {
    pub(super) path: PathBuf,
    /// The controllers that have to be handed down to it.
    pub(super) enable: Vec<Controller>,
    pub(super) settings: Vec<Setting>,
}

/// A line for a file of a group.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) file: &'static str,
    pub(super) value: String,
    /// Whether some kernels do not have the file.
    pub(super) optional: bool,
}

impl Dir {
    /// Makes it, with its limits.
    pub(super) fn create(&self) -> io::Result<()> {
        fs::create_dir(&self.path)?;
        if let Some(parent) = self.path.parent().filter(|_| !self.enable.is_empty()) {
            hand_down(parent, &self.enable)?;
        }
        for Setting { file, value, optional } in &self.settings {
            match write(&self.path.join(file), value) {
                Err(error) if *optional && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io::Error::new(error.kind(), format!("{file}={value}: {error}"))),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Kills what is in it.
    pub(super) fn kill(&self) {
        if write(&self.path.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        // Version 1, and kernels before 5.14. What is forked while the list is read would not be on
        // it: nothing can be forked any more where this can be said, and everywhere the caller
        // repeats until the group is empty.
        let _ = write(&self.path.join("pids.max"), "0");
        for pid in self.processes() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// Those in it that we can name.
    pub(super) fn processes(&self) -> Vec<i32> {
        // Processes of other pid namespaces are listed as 0, which to kill(2) is our own group.
        fs::read_to_string(self.path.join("cgroup.procs"))
            .map(|list| list.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect())
            .unwrap_or_default()
    }

    /// Removes it if nothing is in it.
    pub(super) fn remove(&self) -> io::Result<()> {
        if scope::is_scope(&self.path) {
            // Its manager removes it as soon as nothing is in it, and would believe that it still
            // runs if we did.
            return match self.counter("cgroup.events", "populated") {
                Some(1..) => Err(io::ErrorKind::ResourceBusy.into()),
                Some(0) | None => Ok(()),
            };
        }
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// A number from a file of `NAME NUMBER` lines.
    pub(super) fn counter(&self, file: &str, name: &str) -> Option<u64> {
        counter(&fs::read_to_string(self.path.join(file)).ok()?, name)
    }
}

/// A number from `NAME NUMBER` lines.
pub(super) fn counter(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

/// Writes into a file that is there.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// Lets the groups below `dir` have these controllers.
fn hand_down(dir: &Path, controllers: &[Controller]) -> io::Result<()> {
    let file = dir.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file)?;
    for controller in controllers.iter().map(|controller| controller.name()) {
        if !enabled.split_whitespace().any(|name| name == controller) {
            write(&file, &format!("+{controller}"))
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))?;
        }
    }
    Ok(())
}
