//! A sandbox's place on the host: its folder and its control group.
//!
//! ```text
//!   RUNTIME/sandboxes/ID/            what belongs to its helpers and to the daemon
//!   RUNTIME/sandboxes/ID/sockets/    the sockets of its helpers, where it has such
//! ```
//!
//! Both are in the records before they are made, and so is each process that is started in it. Dropping
//! a place removes it, unless it is let go: a daemon that ends leaves its sandboxes where they are.

use super::records::{Records, RecordsError, Resource};
use super::{SandboxId, failpoint};
use crate::sys::cgroup::{Cgroup, Hierarchies};
use crate::sys::identity::Identity;
use crate::sys::limits::{Limits, Mechanisms};
use crate::sys::process::{self, ProcessId};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long killed processes may take to be gone. A guest's memory is given back page by page.
const PATIENCE: Duration = Duration::from_secs(20);

/// The longest path of a socket (`unix`(7)).
const LONGEST_SOCKET: usize = 107;

/// A place that cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    /// A file or a folder.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The folder belongs to somebody else, who could put anything into it.
    #[error("{} is not ours alone: remove it, or set FIRN_RUNTIME_DIR", .0.display())]
    NotOurs(PathBuf),
    /// Socket paths are short (`unix(7)`).
    #[error("{} is too long a path for sockets: set FIRN_RUNTIME_DIR to a shorter one", .0.display())]
    TooLong(PathBuf),
    /// The control group could not be made.
    #[error("cannot make the control group {}", path.display())]
    Cgroup {
        /// Its folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It could not be written down, so nothing was made.
    #[error(transparent)]
    Records(#[from] RecordsError),
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PlaceError {
    move |source| PlaceError::File { action, path: path.to_owned(), source }
}

/// How many processes firn starts for a sandbox, which start all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Helpers {
    /// bubblewrap, for a jail.
    One,
    /// The VMM and what serves it.
    Several,
}

/// Where a sandbox may make its place.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// Which sandbox.
    pub(crate) id: SandboxId,
    /// The folder of all of them.
    pub(crate) dir: PathBuf,
    /// Where all of it is written down first.
    pub(crate) records: Arc<Records>,
    /// Whether its record goes with it.
    pub(crate) ephemeral: bool,
}

/// What another daemon needs to take a place over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Remains {
    cgroup: Vec<PathBuf>,
    mechanisms: Mechanisms,
    device: Option<PathBuf>,
}

/// Makes the folder of all places below `runtime_dir`, or finds that it cannot be used.
pub(crate) fn prepare(runtime_dir: &Path) -> Result<PathBuf, PlaceError> {
    let dir = runtime_dir.join("sandboxes");
    let longest = dir.join("00000000/sockets/vsock_4294967295");
    if longest.as_os_str().len() > LONGEST_SOCKET {
        return Err(PlaceError::TooLong(runtime_dir.to_owned()));
    }
    // Root's helpers run as strangers and must be able to pass through, not to look around.
    let mode = folder_mode();
    for dir in [runtime_dir, &dir] {
        fs::DirBuilder::new().recursive(true).mode(mode).create(dir).map_err(failed("make", dir))?;
        let found = fs::symlink_metadata(dir).map_err(failed("look at", dir))?;
        let ours = found.is_dir() && found.uid() == Uid::effective().as_raw() && found.mode() & 0o022 == 0;
        if !ours {
            return Err(PlaceError::NotOurs(dir.to_owned()));
        }
    }
    Ok(dir)
}

fn folder_mode() -> u32 {
    if Uid::effective().is_root() { 0o711 } else { 0o700 }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Place {
    site: Site,
    dir: PathBuf,
    cgroup: Arc<Cgroup>,
    mechanisms: Mechanisms,
    identity: Identity,
    device: Option<PathBuf>,
    /// Whether it goes when this goes.
    ours: bool,
}

impl Site {
    /// Makes the place: its folder, then its control group, which holds it to `limits` as far as groups
    /// can: [`Place::mechanisms`] says how far. Its helpers will be able to open `device`.
    pub(crate) fn claim(
        self,
        device: Option<&Path>,
        limits: &Limits,
        helpers: Helpers,
    ) -> Result<Place, PlaceError> {
        let dir = self.dir.join(self.id.to_string());
        let hierarchies = match helpers {
            Helpers::One => Hierarchies::recent(),
            Helpers::Several => Hierarchies::recent().without_scopes(),
        };
        let mechanisms = hierarchies.mechanisms();
        let cgroup = hierarchies.group(&format!("firn-{}", self.id), limits);
        let folder = Resource::Folder { path: dir.clone() };
        self.records.add(self.id, &[folder, Resource::Cgroup { paths: cgroup.paths() }])?;
        failpoint::reached("place-recorded");
        fs::DirBuilder::new().mode(folder_mode()).create(&dir).map_err(failed("make", &dir))?;
        failpoint::reached("folder-made");
        // From here on dropping the place undoes what was done.
        let place = Place {
            identity: identity(self.id, device),
            site: self,
            dir,
            cgroup: Arc::new(cgroup),
            mechanisms,
            device: device.map(Path::to_owned),
            ours: true,
        };
        place.cgroup.create().map_err(|source| PlaceError::Cgroup {
            path: place.cgroup.path().unwrap_or(Path::new("")).to_owned(),
            source,
        })?;
        failpoint::reached("cgroup-made");
        Ok(place)
    }

    /// Takes over the place that another daemon made.
    pub(crate) fn adopt(self, remains: Remains) -> Place {
        let dir = self.dir.join(self.id.to_string());
        let Remains { cgroup, mechanisms, device } = remains;
        Place {
            identity: identity(self.id, device.as_deref()),
            dir,
            site: self,
            cgroup: Arc::new(Cgroup::at(cgroup)),
            mechanisms,
            device,
            ours: true,
        }
    }

    /// Ends and removes all that is written down of a sandbox whose daemon was killed while it came up,
    /// or went down: processes, then the control group, then the folder.
    pub(crate) fn unwind(&self) -> Result<(), PlaceError> {
        let mut resources = self.records.resources(self.id)?;
        // What was started last depends on what was started before it.
        resources.reverse();
        for resource in &resources {
            if let Resource::Process { id, .. } = resource {
                process::end(*id);
            }
        }
        for resource in &resources {
            if let Resource::Cgroup { paths } = resource {
                remove_cgroup(&Cgroup::at(paths.clone()))?;
            }
        }
        for resource in &resources {
            if let Resource::Folder { path } = resource {
                // Not wherever a record leads: it is a folder of ours by its place and its name.
                if *path == self.dir.join(self.id.to_string()) {
                    gone(fs::remove_dir_all(path)).map_err(failed("remove", path))?;
                }
            }
        }
        self.records.clear(self.id)?;
        Ok(())
    }
}

fn identity(id: SandboxId, device: Option<&Path>) -> Identity {
    let least = Identity::least(id.number());
    device.map_or(least, |device| least.with_device(device))
}

fn remove_cgroup(cgroup: &Cgroup) -> Result<(), PlaceError> {
    let path = cgroup.path().unwrap_or(Path::new("")).to_owned();
    cgroup.destroy(PATIENCE).map_err(failed("remove the control group", &path))?;
    cgroup.dismiss();
    Ok(())
}

impl Place {
    /// Whose it is.
    pub(crate) fn id(&self) -> SandboxId {
        self.site.id
    }

    /// Who its helpers are.
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// The group of its processes.
    pub(crate) fn cgroup(&self) -> &Arc<Cgroup> {
        &self.cgroup
    }

    /// What holds it to each limit, if it has that limit.
    pub(crate) fn mechanisms(&self) -> Mechanisms {
        self.mechanisms
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.dir
    }

    /// What another daemon needs to take it over.
    pub(crate) fn remains(&self) -> Remains {
        Remains { cgroup: self.cgroup.paths(), mechanisms: self.mechanisms, device: self.device.clone() }
    }

    /// Writes down a process that is about to run in it.
    pub(crate) fn record(&self, name: &str, id: ProcessId) -> io::Result<()> {
        let process = Resource::Process { name: name.to_owned(), id };
        self.site.records.add(self.site.id, &[process]).map_err(io::Error::other)?;
        failpoint::reached("process-recorded");
        Ok(())
    }

    /// The folder of its sockets.
    pub(crate) fn sockets(&self) -> PathBuf {
        self.dir.join("sockets")
    }

    /// Makes that folder, for its helpers to make them in.
    pub(crate) fn make_sockets(&self) -> Result<PathBuf, PlaceError> {
        let sockets = self.sockets();
        fs::DirBuilder::new().mode(0o700).create(&sockets).map_err(failed("make", &sockets))?;
        self.identity.own(&sockets).map_err(failed("give away", &sockets))?;
        Ok(sockets)
    }

    /// Removes its folder, whoever has what in it open.
    pub(crate) fn remove_folder(&self) -> Result<(), PlaceError> {
        gone(fs::remove_dir_all(&self.dir)).map_err(failed("remove", &self.dir))
    }

    /// Whether its control group was empty, and is removed by now.
    pub(crate) fn is_vacant(&self) -> bool {
        self.cgroup.remove().is_ok()
    }

    /// Leaves it as it is, for another daemon.
    pub(crate) fn release(mut self) {
        self.ours = false;
    }

    fn remove(&self) -> Result<(), PlaceError> {
        remove_cgroup(&self.cgroup)?;
        self.remove_folder()?;
        if !self.site.ephemeral {
            self.site.records.clear(self.site.id)?;
        }
        Ok(())
    }
}

/// What is not there need not be removed.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = self.remove()
        {
            // It stays written down, and the next daemon tries again.
            tracing::error!(sandbox = %self.site.id, error = crate::causes::in_full(&error), "cannot remove the sandbox's place");
        }
    }
}
