//! One control group for all processes of a sandbox.
//!
//! It is what "all processes of a sandbox" means to the kernel: killing the group kills them all
//! at once, however they have multiplied, and an empty group proves that none is left. Version 2
//! is used where it is mounted (also beside version 1), else version 1's `pids` hierarchy. Where
//! none can be written to, a sandbox has no group, and its pid namespaces alone hold it together.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where groups can be made on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// The folder that holds one group for each sandbox.
    pub(crate) parent: PathBuf,
    /// Its version: 1 or 2.
    pub(crate) version: u8,
}

impl Hierarchy {
    /// The best hierarchy that this process may make groups in.
    pub(crate) fn find() -> Option<Hierarchy> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        candidates(&mounts, &own).into_iter().find(|hierarchy| usable(&hierarchy.parent))
    }
}

/// Groups below the root of each hierarchy for root; below our own group for everybody else, who
/// can write there if that part of the tree was delegated to them.
fn candidates(mounts: &str, own: &str) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        let (Some(_), Some(point), Some(kind), Some(options)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let version = match kind {
            "cgroup2" => 2,
            "cgroup" if options.split(',').any(|option| option == "pids") => 1,
            _ => continue,
        };
        let parent = if nix::unistd::Uid::effective().is_root() {
            PathBuf::from(point)
        } else {
            let ours = own.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                let matches = match version {
                    2 => controllers.is_empty(),
                    _ => controllers.split(',').any(|controller| controller == "pids"),
                };
                matches.then(|| path.trim_start_matches('/'))
            });
            Path::new(point).join(ours.unwrap_or_default())
        };
        found.push(Hierarchy { parent: parent.join("firn"), version });
    }
    found.sort_by_key(|hierarchy| std::cmp::Reverse(hierarchy.version));
    found
}

/// Looks without touching: `doctor` asks too.
fn usable(parent: &Path) -> bool {
    let nearest = if parent.exists() { Some(parent) } else { parent.parent() };
    nearest.is_some_and(|dir| nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK).is_ok())
}

/// A sandbox's group, or the absence of one.
#[derive(Debug, Default)]
pub(crate) struct Cgroup {
    dir: Option<PathBuf>,
}

impl Cgroup {
    /// No group.
    pub(crate) fn none() -> Cgroup {
        Cgroup::default()
    }

    /// The group at `dir`, whether it is there or not.
    pub(crate) fn at(dir: PathBuf) -> Cgroup {
        Cgroup { dir: Some(dir) }
    }

    /// Makes the group, and the folder above it when this is the first.
    pub(crate) fn create(&self) -> io::Result<()> {
        match &self.dir {
            // The last of another process's groups may take the folder above away between our two
            // steps, so once is not enough; that this happens many times in a row is not possible.
            Some(dir) => {
                let mut made = fs::create_dir_all(dir);
                for _ in 0..16 {
                    if made.is_ok() {
                        break;
                    }
                    made = fs::create_dir_all(dir);
                }
                made
            }
            None => Ok(()),
        }
    }

    /// Its folder.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// What a new process needs to join the group.
    pub(crate) fn entry(&self) -> io::Result<Entry> {
        let file = match &self.dir {
            Some(dir) => {
                let file = OpenOptions::new().write(true).open(dir.join("cgroup.procs"))?;
                Some(OwnedFd::from(file))
            }
            None => None,
        };
        Ok(Entry { file })
    }

    /// The processes in the group, as the kernel lists them.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let Some(dir) = &self.dir else { return Vec::new() };
        fs::read_to_string(dir.join("cgroup.procs"))
            .map(|list| list.lines().filter_map(|line| line.parse().ok()).collect())
            .unwrap_or_default()
    }

    /// Kills every process in the group and removes it. Waits at most `patience`.
    pub(crate) fn destroy(&self, patience: Duration) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_micros(200);
        loop {
            match fs::remove_dir(dir) {
                Ok(()) => {
                    // The last one takes the folder above with it; it is not empty for others.
                    let _ = dir.parent().map(fs::remove_dir);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => self.kill(dir),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    fn kill(&self, dir: &Path) {
        let killed = OpenOptions::new()
            .write(true)
            .open(dir.join("cgroup.kill"))
            .and_then(|mut file| file.write_all(b"1"));
        if killed.is_err() {
            // Kernels before 5.14, and version 1. New processes appear between reading and
            // killing, so the caller repeats until the group is empty.
            for pid in self.processes() {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
    }
}

/// A way into a group that can be used between fork and exec.
#[derive(Debug)]
pub(crate) struct Entry {
    file: Option<OwnedFd>,
}

impl Entry {
    /// Moves the calling process into the group. Async-signal-safe.
    #[allow(unsafe_code, reason = "write(2) between fork and exec")]
    pub(crate) fn join(&self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let fd: RawFd = file.as_raw_fd();
        // SAFETY: the descriptor is open and the buffer is one constant byte; "0" is the writer.
        let written = unsafe { libc::write(fd, c"0".as_ptr().cast(), 1) };
        if written == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_is_preferred_and_other_controllers_are_not_taken() {
        let mounts = "cgroup /c/memory cgroup rw,memory 0 0\n\
                      cgroup /c/pids cgroup rw,pids 0 0\n\
                      cgroup2 /c/unified cgroup2 rw 0 0\n";
        let found = candidates(mounts, "3:pids:/a\n0::/b\n");
        let versions: Vec<u8> = found.iter().map(|hierarchy| hierarchy.version).collect();
        assert_eq!(versions, [2, 1]);
        assert!(found.iter().all(|hierarchy| hierarchy.parent.ends_with("firn")));
    }
}
