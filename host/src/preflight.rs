//! What this host has for sandboxes, what it lacks, and what mends it.
//!
//! A [`Report`] is made from a [`Host`]: every place that is looked at is named there, so that a
//! test can make up a host. Nothing is changed and nothing is kept; programs are started to say
//! their version, and one bubblewrap to see whether namespaces are really to be had. Blocks for
//! some 0.1 s (longer where programs hang, 5 s each at most). Called by `firn doctor`, and by a
//! launch that failed and wants to say why.
//!
//! ```text
//!   Host ──▶ Check, Check, … ──▶ Verdict
//!              │ Missing: without it no VM starts
//!              │ Warning: one starts, with less
//!              └ Ok
//! ```

mod namespaces;
mod program;

use crate::sys::cgroup::Hierarchies;
use crate::sys::kvm::{KvmState, Provider};
use crate::sys::limits::{Mechanism, Mechanisms};
use namespaces::{Obstacle, Switches, obstacle};
use program::Found;
use serde::Serialize;
use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The oldest virtiofsd with the options used here. The C program of the same name that came with
/// QEMU until 7.2 is another one, and cannot share a tree like ours.
const VIRTIOFSD: [u32; 2] = [1, 10];

/// The oldest QEMU whose microvm machine is known to boot our guests.
const QEMU: [u32; 2] = [7, 2];

/// What is inspected, and what the caller knows already.
#[derive(Debug)]
pub(crate) struct Host<'a> {
    /// Where programs are looked for, a list like `PATH`.
    pub(crate) path: &'a OsStr,
    /// The root of the file system: `/`, except in tests.
    pub(crate) root: &'a Path,
    /// Whether KVM can run a guest, as measured.
    pub(crate) kvm: &'a KvmState,
    /// Where a guest's kernel would come from.
    pub(crate) kernel: Kernel,
    /// Where control groups can be made.
    pub(crate) cgroups: &'a Hierarchies,
    /// Where firn-agent is expected.
    pub(crate) agent: &'a Path,
    /// Who asks.
    pub(crate) caller: Caller<'a>,
}

/// Who asks, and so who would start sandboxes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Caller<'a> {
    /// Root, whose helper processes run under this user and group id.
    Root {
        /// An id that owns nothing.
        helper_id: u32,
    },
    /// A normal user of this name.
    User(&'a str),
}

/// Where a guest's kernel would come from.
#[derive(Clone, Debug)]
pub(crate) enum Kernel {
    /// It is here.
    Installed {
        /// Its release: `6.1.0-40-cloud-amd64`.
        release: String,
        /// The file.
        path: PathBuf,
    },
    /// The distribution has it as a package, which is unpacked on first use.
    Fetchable {
        /// The package.
        package: String,
    },
    /// There is none.
    Absent,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// As it should be.
    Ok,
    /// A VM starts, with less: slower, less confined, without some feature.
    Warning,
    /// Without it no VM starts.
    Missing,
}

/// One thing a sandbox needs or can use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What was looked for. Stable: programs may look for it.
    pub(crate) name: &'static str,
    /// How it came out.
    pub(crate) status: Status,
    /// What is there: version and path, or what was seen instead.
    pub(crate) found: String,
    /// What that means for sandboxes: one sentence.
    pub(crate) meaning: String,
    /// A shell command that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
}

/// What a VM would run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Backend {
    /// cloud-hypervisor, with KVM.
    CloudHypervisor,
    /// QEMU with KVM.
    QemuKvm,
    /// QEMU in software.
    QemuTcg,
}

/// Whether a VM can be started, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Verdict {
    /// Nothing that a VM needs is missing.
    pub(crate) vm_possible: bool,
    /// What it would run on. May be known although something else is missing.
    pub(crate) vmm: Option<Backend>,
    /// Nothing that a jail needs is missing.
    pub(crate) jail_possible: bool,
}

/// What a jail needs, by the names of the checks.
const JAIL_NEEDS: [&str; 3] = ["bubblewrap", "user-namespaces", "firn-agent"];

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// In the order of a start.
    pub(crate) checks: Vec<Check>,
    /// What follows.
    pub(crate) verdict: Verdict,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>, meaning: impl Into<String>) -> Check {
        Check { name, status: Status::Ok, found: found.into(), meaning: meaning.into(), remedy: None }
    }

    fn lacks(
        name: &'static str,
        status: Status,
        found: impl Into<String>,
        meaning: impl Into<String>,
        remedy: impl Into<Option<String>>,
    ) -> Check {
        Check { name, status, found: found.into(), meaning: meaning.into(), remedy: remedy.into() }
    }
}

impl Found {
    /// The check of a program that no VM starts without.
    fn needed(&self, name: &'static str, meaning: &str, without: &str, remedy: String) -> Check {
        if self.usable() {
            Check::ok(name, self.shown(), meaning)
        } else {
            Check::lacks(name, Status::Missing, self.shown(), without, remedy)
        }
    }
}

impl Host<'_> {
    /// Looks at everything.
    pub(crate) fn inspect(&self) -> Report {
        let ch = program::fit(self.path, "cloud-hypervisor", &["cloud-hypervisor"], &[]);
        let qemu = program::fit(self.path, "qemu-system-x86_64", &["QEMU emulator version"], &QEMU);
        let kvm_usable = matches!(self.kvm, KvmState::Usable { .. });
        let vmm = match (kvm_usable, ch.usable(), qemu.usable()) {
            (true, true, _) => Some(Backend::CloudHypervisor),
            (true, false, true) => Some(Backend::QemuKvm),
            (false, _, true) => Some(Backend::QemuTcg),
            (_, _, false) => None,
        };
        let mut checks = vec![
            self.kvm(),
            cloud_hypervisor(&ch, kvm_usable),
            self.qemu(&qemu, vmm),
            self.virtiofsd(),
            self.vsock(vmm),
            self.bubblewrap(),
            self.user_namespaces(),
            self.cgroups(),
            self.limits(),
            self.kernel(),
            self.agent(),
            self.nix(),
        ];
        let vm_possible = vmm.is_some() && checks.iter().all(|check| check.status != Status::Missing);
        let jail = jail(&checks);
        let jail_possible = jail.status == Status::Ok;
        checks.push(jail);
        Report { checks, verdict: Verdict { vm_possible, vmm, jail_possible } }
    }

    /// `command`, as somebody who is not root types it.
    fn as_root(&self, command: &str) -> String {
        match self.caller {
            Caller::Root { .. } => command.to_owned(),
            Caller::User(_) => format!("sudo {command}"),
        }
    }

    fn apt(&self, package: &str) -> String {
        self.as_root(&format!("apt-get install --no-install-recommends {package}"))
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn setting(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at(path)).ok().map(|text| text.trim().to_owned())
    }

    fn kvm(&self) -> Check {
        let software = "VMs run in software, slower, and QEMU in software is no strong boundary";
        let lacks = |found: String, remedy: Option<String>| {
            Check::lacks("kvm", Status::Warning, found, software, remedy)
        };
        match self.kvm {
            KvmState::Usable { loop_time } => Check::ok(
                "kvm",
                format!("usable ({loop_time:.1?} for the test loop)"),
                "VMs run at full speed",
            ),
            KvmState::TooSlow { loop_time, provider } => {
                let why = match provider {
                    Provider::Pvm => "kvm_pvm emulates",
                    Provider::Hardware => "it emulates",
                };
                lacks(format!("/dev/kvm opens, but {why} ({loop_time:.1?} for the test loop)"), None)
            }
            KvmState::NotPermitted => {
                // Whoever is root and may not open it is in a container that forbids it.
                let remedy = match self.caller {
                    Caller::User(user) => Some(format!("sudo usermod -aG kvm {user}  # then log in again")),
                    Caller::Root { .. } => None,
                };
                lacks("/dev/kvm may not be opened".into(), remedy)
            }
            KvmState::Absent => {
                let flags = self.setting("proc/cpuinfo").unwrap_or_default();
                let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
                let module =
                    ["vmx", "svm"].into_iter().zip(["kvm_intel", "kvm_amd"]).find(|(flag, _)| has(flag));
                match module {
                    Some((_, module)) => lacks(
                        "no /dev/kvm, though the processor can".into(),
                        Some(self.as_root(&format!("modprobe {module}"))),
                    ),
                    None => lacks("no /dev/kvm, and the processor offers no virtualization".into(), None),
                }
            }
            KvmState::Failed { step, source } => lacks(format!("/dev/kvm fails: {step}: {source}"), None),
        }
    }

    fn qemu(&self, qemu: &Found, vmm: Option<Backend>) -> Check {
        let remedy = self.apt("qemu-system-x86");
        if vmm == Some(Backend::CloudHypervisor) && !qemu.usable() {
            return Check::ok("qemu", qemu.shown(), "not needed: cloud-hypervisor runs the VMs");
        }
        let meaning = match vmm {
            Some(Backend::QemuKvm) => "runs the VMs, with KVM",
            Some(Backend::QemuTcg) => "runs the VMs, in software",
            Some(Backend::CloudHypervisor) | None => "can run the VMs too",
        };
        qemu.needed("qemu", meaning, "nothing can run a VM here", remedy)
    }

    fn virtiofsd(&self) -> Check {
        // QEMU's answers "virtiofsd version 7.2.22": a higher number, and another program.
        let found = program::fit(self.path, "virtiofsd", &["virtiofsd", "virtiofsd backend"], &VIRTIOFSD);
        found.needed(
            "virtiofsd",
            "shows host folders to VMs",
            "VMs cannot be shown any file of the host",
            "cargo install --locked virtiofsd".into(),
        )
    }

    fn vsock(&self, vmm: Option<Backend>) -> Check {
        let name = "vhost-device-vsock";
        let found = program::fit(self.path, name, &[name], &[]);
        if vmm == Some(Backend::CloudHypervisor) && !found.usable() {
            return Check::ok(name, found.shown(), "not needed: cloud-hypervisor has its own");
        }
        found.needed(
            name,
            "carries what firn and a QEMU guest say",
            "firn could not talk to a QEMU guest",
            "cargo install --locked vhost-device-vsock".into(),
        )
    }

    fn bubblewrap(&self) -> Check {
        program::fit(self.path, "bwrap", &["bubblewrap"], &[]).needed(
            "bubblewrap",
            "confines every helper process of a sandbox",
            "helper processes cannot be confined, so none is started",
            self.apt("bubblewrap"),
        )
    }

    fn user_namespaces(&self) -> Check {
        const NAME: &str = "user-namespaces";
        const WITHOUT: &str = "helper processes cannot be confined, so none is started";
        let Some(bwrap) = program::find(self.path, "bwrap") else {
            return Check::lacks(NAME, Status::Missing, "not tried: no bubblewrap", WITHOUT, None);
        };
        let id = match self.caller {
            Caller::Root { helper_id } => Some(helper_id),
            Caller::User(_) => None,
        };
        // As helpers and jails are started.
        let args = [
            "--unshare-all",
            "--unshare-user",
            "--ro-bind",
            "/",
            "/",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "true",
        ];
        let answer = program::ask(self.path, &bwrap, &args, id);
        if answer.as_ref().is_some_and(|answer| answer.status.success()) {
            return match bwrap.metadata() {
                Ok(about) if about.permissions().mode() & 0o4000 != 0 => Check::lacks(
                    NAME,
                    Status::Warning,
                    format!("{} is setuid", bwrap.display()),
                    "helper processes are confined, but whoever finds a flaw in bubblewrap is root",
                    Some(self.as_root(&format!("chmod u-s {}", bwrap.display()))),
                ),
                _ => {
                    Check::ok(NAME, "bubblewrap can make them without root", "helper processes are confined")
                }
            };
        }
        let stderr = answer.map(|answer| answer.stderr).unwrap_or_default();
        let obstacle = obstacle(&stderr, Switches::read(self.root));
        let remedy = obstacle.remedy(&bwrap, &self.as_root(""));
        Check::lacks(NAME, Status::Missing, obstacle.found(), WITHOUT, remedy)
    }

    fn cgroups(&self) -> Check {
        const NAME: &str = "cgroups";
        if let Some(parent) = self.cgroups.parent() {
            let found = format!("can be made in {}", parent.display());
            return Check::ok(NAME, found, "each sandbox has a group of its own, and is ended as one");
        }
        if self.cgroups.mechanisms().memory == Mechanism::SystemdScope {
            let found = "made by your service manager, for jails";
            let meaning =
                "a jail has a group of its own; the processes of a VM are held together by their namespaces";
            return Check::ok(NAME, found, meaning);
        }
        // What would help is said with the limits.
        let meaning = "sandboxes are held together by their process namespaces alone";
        Check::lacks(NAME, Status::Warning, "none can be made", meaning, None)
    }

    fn limits(&self) -> Check {
        const NAME: &str = "limits";
        let Mechanisms { memory, processes, cpus } = self.cgroups.mechanisms();
        let found = format!("memory: {memory}, processes: {processes}, processors: {cpus}");
        if [memory, processes, cpus].into_iter().all(Mechanism::is_group) {
            return Check::ok(NAME, found, "all processes of a sandbox together are held to its limits");
        }
        let mut meaning = Vec::new();
        if memory == Mechanism::Rlimit {
            meaning.push("memory is limited for each process of a sandbox by itself");
        }
        if processes == Mechanism::Rlimit {
            meaning.push("processes are limited for each user of a sandbox, root excepted");
        }
        if cpus == Mechanism::None {
            meaning.push("processor time cannot be limited");
        }
        let systemd = self.at("run/systemd/system").exists();
        let remedy = match self.caller {
            // It runs, and was not given all controllers: until systemd 252 not that of processors.
            Caller::User(_) if memory == Mechanism::SystemdScope => Some(
                "sudo mkdir -p /etc/systemd/system/user@.service.d && \
                 printf '[Service]\\nDelegate=cpu memory pids\\n' | \
                 sudo tee /etc/systemd/system/user@.service.d/delegate.conf && \
                 sudo systemctl daemon-reload  # then restart the host"
                    .to_owned(),
            ),
            Caller::User(user) if systemd => Some(format!(
                "sudo loginctl enable-linger {user}  # a service manager of your own makes them"
            )),
            Caller::User(_) | Caller::Root { .. } => None,
        };
        Check::lacks(NAME, Status::Warning, found, meaning.join("; "), remedy)
    }

    fn kernel(&self) -> Check {
        const NAME: &str = "guest-kernel";
        match &self.kernel {
            Kernel::Installed { release, path } => {
                Check::ok(NAME, format!("{release}, {}", path.display()), "boots in a VM")
            }
            Kernel::Fetchable { package } => Check::ok(
                NAME,
                format!("package {package}"),
                "is fetched on first use into firn's cache, without being installed",
            ),
            Kernel::Absent => Check::lacks(
                NAME,
                Status::Missing,
                "neither installed nor to be had as a package",
                "there is nothing to boot in a VM",
                self.as_root("apt-get update"),
            ),
        }
    }

    fn agent(&self) -> Check {
        const NAME: &str = "firn-agent";
        let missing = |found: String| {
            let meaning = "nothing would run commands in a sandbox: install firn again";
            Check::lacks(NAME, Status::Missing, found, meaning, None)
        };
        let shown = self.agent.display();
        match linkage(self.agent) {
            Ok(Linkage::Static) => Check::ok(NAME, shown.to_string(), "runs commands in a sandbox"),
            Ok(Linkage::Dynamic) => {
                missing(format!("{shown} needs a dynamic linker, which guests do not have"))
            }
            Ok(Linkage::NotElf) => missing(format!("{shown} is not a program")),
            Err(error) => missing(format!("{shown}: {error}")),
        }
    }

    fn nix(&self) -> Check {
        match program::fit(self.path, "nix", &["nix (Nix)"], &[]) {
            found @ Found::Good { .. } => Check::ok("nix", found.shown(), "builds environments"),
            found => Check::lacks(
                "nix",
                Status::Warning,
                found.shown(),
                "optional: environments cannot be built here, the host's own tools are used",
                None,
            ),
        }
    }
}

/// Whether a jail can be started, from the checks of what it needs.
fn jail(checks: &[Check]) -> Check {
    let missing: Vec<&str> = checks
        .iter()
        .filter(|check| JAIL_NEEDS.contains(&check.name) && check.status == Status::Missing)
        .map(|check| check.name)
        .collect();
    if missing.is_empty() {
        return Check::ok("jail", "can be started", "runs commands in milliseconds, on this host's kernel");
    }
    let found = format!("cannot be started, see {}", missing.join(", "));
    Check::lacks("jail", Status::Missing, found, "no command can be run in a jail", None)
}

/// Why a bubblewrap that said this when it failed could not make a sandbox, and what mends it, if it
/// is one of the known reasons.
pub(crate) fn advice(stderr: &str, bwrap: &Path) -> Option<String> {
    let obstacle = match obstacle(stderr, Switches::read(Path::new("/"))) {
        Obstacle::Other(_) => return None,
        known => known,
    };
    let sudo = if nix::unistd::Uid::effective().is_root() { "" } else { "sudo " };
    let found = obstacle.found();
    Some(match obstacle.remedy(bwrap, sudo) {
        Some(remedy) => format!("{found}\nto mend it: {remedy}"),
        None => found,
    })
}

fn cloud_hypervisor(ch: &Found, kvm_usable: bool) -> Check {
    const NAME: &str = "cloud-hypervisor";
    match (ch.usable(), kvm_usable) {
        (true, true) => Check::ok(NAME, ch.shown(), "runs the VMs"),
        (true, false) => Check::ok(NAME, ch.shown(), "not used: it needs KVM"),
        (false, false) => Check::ok(NAME, ch.shown(), "not needed: it could not run here without KVM"),
        (false, true) => Check::lacks(
            NAME,
            Status::Warning,
            ch.shown(),
            "QEMU runs the VMs instead: they start a little later and use more memory",
            None,
        ),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Linkage {
    Static,
    Dynamic,
    NotElf,
}

/// Whether a program brings all it needs: a 64-bit little-endian ELF file without a `PT_INTERP`
/// segment (elf(5)).
fn linkage(file: &Path) -> std::io::Result<Linkage> {
    let mut head = Vec::new();
    // The program headers follow the ELF header at once in every file a linker makes.
    fs::File::open(file)?.take(16 * 1024).read_to_end(&mut head)?;
    Ok(linkage_of(&head).unwrap_or(Linkage::NotElf))
}

fn linkage_of(head: &[u8]) -> Option<Linkage> {
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| Some(u16::from_le_bytes(head.get(at..at.checked_add(2)?)?.try_into().ok()?));
    if head.get(..6)? != [0x7f, b'E', b'L', b'F', 2, 1] {
        return None;
    }
    let offset = usize::try_from(u64::from_le_bytes(head.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    for number in 0..count {
        let at = offset.checked_add(number * size)?;
        let kind = u32::from_le_bytes(head.get(at..at.checked_add(4)?)?.try_into().ok()?);
        if kind == PT_INTERP {
            return Some(Linkage::Dynamic);
        }
    }
    Some(Linkage::Static)
}

#[cfg(test)]
mod tests;
