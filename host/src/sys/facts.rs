//! What was measured of this host, kept until it boots again.

use super::kvm::{KvmState, Provider, kvm_state};
use super::tsc::{TscError, measure_tsc_khz};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

/// What was measured.
#[derive(Debug)]
pub(crate) struct HostFacts {
    /// Whether KVM can run a guest.
    pub(crate) kvm: KvmState,
    /// The rate of the time stamp counter in kHz, for a guest that cannot calibrate it itself.
    pub(crate) tsc_khz: Result<u32, TscError>,
}

/// The file in the cache folder.
const KEPT: &str = "host.json";

/// A measurement as it is stored. Valid for this boot, this user and this provider only.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    uid: u32,
    provider: Provider,
    /// Absent unless KVM ran the loop: everything else may be mended at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loop_time_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tsc_khz: Option<u32>,
}

impl Kept {
    fn nothing() -> Kept {
        Kept {
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
            uid: nix::unistd::geteuid().as_raw(),
            provider: Provider::of_this_host(),
            loop_time_us: None,
            tsc_khz: None,
        }
    }

    /// What `dir` holds for this boot. A file that others could have written is not read.
    fn load(dir: &Path) -> Kept {
        let mut kept = Kept::nothing();
        if let Some(stored) = Kept::read(&dir.join(KEPT), kept.uid)
            && !kept.boot_id.is_empty()
            && (&stored.boot_id, stored.uid, stored.provider) == (&kept.boot_id, kept.uid, kept.provider)
        {
            kept = stored;
        }
        kept
    }

    fn read(path: &Path, uid: u32) -> Option<Kept> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(path)
            .ok()?;
        let about = file.metadata().ok()?;
        if !about.is_file() || about.uid() != uid || about.mode() & 0o022 != 0 {
            return None;
        }
        let mut text = Vec::new();
        file.take(4096).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn store(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join(format!(".{KEPT}.{}", std::process::id()));
        let written = (|| {
            let _ = fs::remove_file(&new);
            let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            fs::rename(&new, dir.join(KEPT))
        })();
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }
}

/// Measures, or takes what was measured since the host booted from `dir`, an existing folder of
/// ours.
pub(crate) fn host_facts(dir: &Path) -> HostFacts {
    let mut kept = Kept::load(dir);
    let (kvm_before, tsc_before) = (kept.loop_time_us, kept.tsc_khz);
    let kvm = kvm_state(kept.loop_time_us.map(Duration::from_micros), kept.provider);
    kept.loop_time_us = match &kvm {
        KvmState::Usable { loop_time } | KvmState::TooSlow { loop_time, .. } => {
            u64::try_from(loop_time.as_micros()).ok()
        }
        KvmState::NotPermitted | KvmState::Absent | KvmState::Failed { .. } => kvm_before,
    };
    let tsc_khz = kept.tsc_khz.map_or_else(measure_tsc_khz, Ok);
    kept.tsc_khz = tsc_khz.as_ref().ok().copied();
    if (kept.loop_time_us, kept.tsc_khz) != (kvm_before, tsc_before) {
        // What cannot be kept is measured again next time.
        let _ = kept.store(dir);
    }
    HostFacts { kvm, tsc_khz }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn measurements_are_kept_for_this_boot() {
        let dir = tempfile::tempdir().unwrap();
        let first = host_facts(dir.path());
        let kept = Kept::load(dir.path());
        assert_eq!(kept.tsc_khz, first.tsc_khz.ok());
        // What is kept is believed: nothing is measured again.
        Kept { tsc_khz: Some(4242), ..kept }.store(dir.path()).unwrap();
        assert_eq!(host_facts(dir.path()).tsc_khz.unwrap(), 4242);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_file_of_another_boot_user_or_provider_or_that_others_can_write_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(KEPT);
        let here = || Kept { loop_time_us: Some(1), tsc_khz: Some(2), ..Kept::nothing() };
        let other = match here().provider {
            Provider::Hardware => Provider::Pvm,
            Provider::Pvm => Provider::Hardware,
        };
        for stale in [
            Kept { boot_id: "another".into(), ..here() },
            Kept { uid: here().uid + 1, ..here() },
            Kept { provider: other, ..here() },
        ] {
            stale.store(dir.path()).unwrap();
            assert_eq!(Kept::load(dir.path()), Kept::nothing());
        }
        here().store(dir.path()).unwrap();
        assert_eq!(Kept::load(dir.path()), here());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
        assert_eq!(Kept::load(dir.path()), Kept::nothing());
        fs::remove_file(&path).unwrap();
        fs::write(dir.path().join("elsewhere"), serde_json::to_vec(&here()).unwrap()).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert_eq!(Kept::load(dir.path()), Kept::nothing());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "{").unwrap();
        assert_eq!(Kept::load(dir.path()), Kept::nothing());
    }
}
