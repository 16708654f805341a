use super::*;
use crate::sys::cgroup::{Controller, Hierarchies, Hierarchy, Version};
use std::ffi::OsString;
use std::time::Duration;

const QEMU_SAYS: &str = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)";

/// A made-up host: a root with programs in `bin` that say what they are told to.
struct Fake {
    root: tempfile::TempDir,
    path: OsString,
    kvm: KvmState,
    kernel: Kernel,
    cgroups: Hierarchies,
    caller: Caller<'static>,
}

impl Fake {
    /// A host that lacks nothing for a VM in software.
    fn new() -> Fake {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("bin").into_os_string();
        let kernel = Kernel::Fetchable { package: "linux-image-cloud-amd64".into() };
        let fake = Fake {
            root,
            path,
            kvm: KvmState::Absent,
            kernel,
            cgroups: groups(&[Controller::Memory, Controller::Pids, Controller::Cpu]),
            caller: Caller::User("ada"),
        };
        fake.says("bin/qemu-system-x86_64", QEMU_SAYS);
        fake.says("bin/virtiofsd", "virtiofsd 1.14.0");
        fake.says("bin/vhost-device-vsock", "vhost-device-vsock 0.3.0");
        fake.says("bin/bwrap", "bubblewrap 0.8.0");
        fake.agent(&[1, 0x6474_e551]);
        fake
    }

    fn write(&self, path: &str, text: &str) {
        let file = self.root.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    fn script(&self, path: &str, body: &str) {
        self.write(path, &format!("#!/bin/sh\n{body}\n"));
        fs::set_permissions(self.root.path().join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn says(&self, path: &str, line: &str) {
        self.script(path, &format!("echo '{line}'"));
    }

    /// An ELF file whose segments have these types.
    fn agent(&self, segments: &[u32]) {
        let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1];
        elf.resize(64, 0);
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = segments.len() as u8;
        for kind in segments {
            elf.extend(kind.to_le_bytes());
            elf.resize(elf.len() + 52, 0);
        }
        fs::write(self.root.path().join("firn-agent"), elf).unwrap();
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.root.path().join(path)).unwrap();
    }

    fn inspect(&self) -> Report {
        Host {
            path: &self.path,
            root: self.root.path(),
            kvm: &self.kvm,
            kernel: self.kernel.clone(),
            cgroups: &self.cgroups,
            agent: &self.root.path().join("firn-agent"),
            caller: self.caller,
        }
        .inspect()
    }
}

/// Version 2, where groups can limit this.
fn groups(controllers: &[Controller]) -> Hierarchies {
    Hierarchies::of(vec![Hierarchy {
        parent: "/sys/fs/cgroup".into(),
        version: Version::Two,
        controllers: controllers.to_vec(),
    }])
}

fn check<'a>(report: &'a Report, name: &str) -> &'a Check {
    report.checks.iter().find(|check| check.name == name).unwrap()
}

fn status(report: &Report, name: &str) -> Status {
    check(report, name).status
}

const USABLE: KvmState = KvmState::Usable { loop_time: Duration::from_micros(20) };

#[test]
fn a_host_without_kvm_starts_vms_in_software() {
    let report = Fake::new().inspect();
    assert_eq!(
        report.verdict,
        Verdict { vm_possible: true, vmm: Some(Backend::QemuTcg), jail_possible: true },
        "{report:#?}"
    );
    let warnings: Vec<_> =
        report.checks.iter().filter(|check| check.status != Status::Ok).map(|check| check.name).collect();
    assert_eq!(warnings, ["kvm", "nix"]);
    assert_eq!(check(&report, "qemu").found.split(',').next(), Some("7.2.22"));
}

#[test]
fn cloud_hypervisor_is_used_exactly_where_kvm_works() {
    let mut host = Fake::new();
    host.says("bin/cloud-hypervisor", "cloud-hypervisor v53.0");
    assert_eq!(host.inspect().verdict.vmm, Some(Backend::QemuTcg));
    host.kvm = USABLE;
    assert_eq!(host.inspect().verdict.vmm, Some(Backend::CloudHypervisor));
    host.remove("bin/qemu-system-x86_64");
    host.remove("bin/vhost-device-vsock");
    assert!(host.inspect().verdict.vm_possible, "QEMU and its helper are not needed then");
    host.kvm = KvmState::TooSlow { loop_time: Duration::from_millis(57), provider: Provider::Pvm };
    let report = host.inspect();
    assert_eq!(report.verdict, Verdict { vm_possible: false, vmm: None, jail_possible: true });
    assert!(check(&report, "kvm").found.contains("kvm_pvm"));
    assert_eq!(
        check(&report, "qemu").remedy.as_deref(),
        Some("sudo apt-get install --no-install-recommends qemu-system-x86")
    );
}

#[test]
fn qemu_uses_kvm_that_works_when_it_is_alone() {
    let mut host = Fake::new();
    host.kvm = USABLE;
    let report = host.inspect();
    assert_eq!(
        report.verdict,
        Verdict { vm_possible: true, vmm: Some(Backend::QemuKvm), jail_possible: true }
    );
    assert_eq!(status(&report, "cloud-hypervisor"), Status::Warning);
}

#[test]
fn each_thing_a_vm_needs_is_missed() {
    for (path, name) in [
        ("bin/qemu-system-x86_64", "qemu"),
        ("bin/virtiofsd", "virtiofsd"),
        ("bin/vhost-device-vsock", "vhost-device-vsock"),
        ("bin/bwrap", "bubblewrap"),
        ("firn-agent", "firn-agent"),
    ] {
        let host = Fake::new();
        host.remove(path);
        let report = host.inspect();
        assert_eq!(status(&report, name), Status::Missing, "{name}");
        assert!(!report.verdict.vm_possible, "{name}");
    }
    let mut host = Fake::new();
    host.kernel = Kernel::Absent;
    assert!(!host.inspect().verdict.vm_possible);
}

#[test]
fn the_virtiofsd_of_old_qemu_is_told_from_the_rust_one() {
    let mut host = Fake::new();
    let folders = ["bin", "usr/libexec"].map(|folder| host.root.path().join(folder));
    host.path = std::env::join_paths(folders).unwrap();
    host.says("bin/virtiofsd", "virtiofsd version 7.2.22 (Debian 1:7.2)");
    let report = host.inspect();
    assert_eq!(status(&report, "virtiofsd"), Status::Missing);
    assert!(check(&report, "virtiofsd").found.starts_with("virtiofsd version 7.2.22"));
    host.says("usr/libexec/virtiofsd", "virtiofsd backend 1.10.0");
    let report = host.inspect();
    assert_eq!(status(&report, "virtiofsd"), Status::Ok);
    assert!(check(&report, "virtiofsd").found.ends_with("usr/libexec/virtiofsd"));
    host.says("usr/libexec/virtiofsd", "virtiofsd 1.9.9");
    assert_eq!(status(&host.inspect(), "virtiofsd"), Status::Missing);
}

#[test]
fn whoever_may_not_open_kvm_is_told_how_to() {
    let mut host = Fake::new();
    host.kvm = KvmState::NotPermitted;
    let report = host.inspect();
    assert!(check(&report, "kvm").remedy.as_deref().unwrap().starts_with("sudo usermod -aG kvm ada"));
    host.kvm = KvmState::Absent;
    host.write("proc/cpuinfo", "flags\t\t: fpu svm sse\n");
    assert_eq!(check(&host.inspect(), "kvm").remedy.as_deref(), Some("sudo modprobe kvm_amd"));
    host.write("proc/cpuinfo", "flags\t\t: fpu vmx sse\n");
    assert_eq!(check(&host.inspect(), "kvm").remedy.as_deref(), Some("sudo modprobe kvm_intel"));
    host.write("proc/cpuinfo", "flags\t\t: fpu sse\n");
    assert_eq!(check(&host.inspect(), "kvm").remedy, None);
}

#[test]
fn whatever_forbids_user_namespaces_is_named_with_its_remedy() {
    let host_where = |said: &str| {
        let host = Fake::new();
        host.script(
            "bin/bwrap",
            &format!("[ \"$1\" = --version ] && echo 'bubblewrap 0.8.0' && exit\necho '{said}' >&2; exit 1"),
        );
        host
    };
    let denied = "bwrap: No permissions to create new namespace";
    let full = "bwrap: Creating new namespace failed: nesting depth or /proc/sys/user/max_*_namespaces exceeded (ENOSPC)";
    let no_map = "bwrap: setting up uid map: Permission denied";
    for (file, value, said, remedy) in [
        (
            "kernel/unprivileged_userns_clone",
            "0",
            denied,
            "sudo sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        ("user/max_user_namespaces", "0", full, "sudo sysctl -w user.max_user_namespaces=15000"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", no_map, "| sudo tee /etc/apparmor.d/bwrap"),
    ] {
        let host = host_where(said);
        host.write(&format!("proc/sys/{file}"), &format!("{value}\n"));
        let report = host.inspect();
        let found = check(&report, "user-namespaces");
        assert_eq!(found.status, Status::Missing);
        assert!(found.remedy.as_ref().is_some_and(|it| it.contains(remedy)), "{found:?}");
        assert_eq!(status(&report, "bubblewrap"), Status::Ok);
        assert_eq!(check(&report, "jail").found, "cannot be started, see user-namespaces");
        assert!(!report.verdict.jail_possible && !report.verdict.vm_possible);
    }
    let report = host_where("bwrap: something new").inspect();
    assert_eq!(check(&report, "user-namespaces").found, "bwrap: something new");
}

#[test]
fn a_setuid_bubblewrap_works_and_is_warned_of() {
    let host = Fake::new();
    let bwrap = host.root.path().join("bin/bwrap");
    fs::set_permissions(&bwrap, fs::Permissions::from_mode(0o4755)).unwrap();
    let report = host.inspect();
    let found = check(&report, "user-namespaces");
    assert_eq!(found.status, Status::Warning);
    assert_eq!(found.remedy, Some(format!("sudo chmod u-s {}", bwrap.display())));
    assert!(report.verdict.jail_possible);
}

#[test]
fn a_jail_needs_less_than_a_vm() {
    let host = Fake::new();
    host.remove("bin/virtiofsd");
    let report = host.inspect();
    assert!(report.verdict.jail_possible && !report.verdict.vm_possible);
    assert_eq!(status(&report, "jail"), Status::Ok);
    host.remove("bin/bwrap");
    let report = host.inspect();
    assert_eq!(check(&report, "jail").found, "cannot be started, see bubblewrap, user-namespaces");
}

#[test]
fn what_enforces_each_limit_is_said() {
    let mut host = Fake::new();
    let report = host.inspect();
    assert_eq!(status(&report, "limits"), Status::Ok);
    assert_eq!(
        check(&report, "limits").found,
        "memory: cgroup v2, processes: cgroup v2, processors: cgroup v2"
    );
    host.cgroups = groups(&[Controller::Memory, Controller::Pids]);
    let report = host.inspect();
    assert_eq!(status(&report, "limits"), Status::Warning);
    assert_eq!(check(&report, "limits").meaning, "processor time cannot be limited");
    host.cgroups = Hierarchies::default();
    let report = host.inspect();
    assert_eq!(
        check(&report, "limits").found,
        "memory: setrlimit, processes: setrlimit, processors: nothing"
    );
    assert!(report.verdict.jail_possible);
}

#[test]
fn a_setting_that_forbids_nothing_in_effect_is_not_blamed() {
    let host = Fake::new();
    host.write("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n");
    assert_eq!(status(&host.inspect(), "user-namespaces"), Status::Ok);
}

#[test]
fn control_groups_are_no_condition() {
    let mut host = Fake::new();
    host.cgroups = Hierarchies::default();
    let report = host.inspect();
    assert_eq!(status(&report, "cgroups"), Status::Warning);
    assert!(report.verdict.vm_possible);
}

#[test]
fn an_agent_that_guests_cannot_run_is_refused() {
    let host = Fake::new();
    host.agent(&[6, 3, 1]);
    let report = host.inspect();
    assert!(check(&report, "firn-agent").found.ends_with("needs a dynamic linker, which guests do not have"));
    host.write("firn-agent", "#!/bin/sh\n");
    assert!(check(&host.inspect(), "firn-agent").found.ends_with("is not a program"));
    for cut in 0..130 {
        host.agent(&[1, 3]);
        let whole = fs::read(host.root.path().join("firn-agent")).unwrap();
        assert_ne!(linkage_of(&whole[..cut]), Some(Linkage::Static), "cut at {cut}");
    }
}

#[test]
fn this_machine_can_be_inspected() {
    let path = OsStr::new("/usr/local/bin:/usr/bin:/bin");
    let agent = Path::new("/bin/true");
    let host = Host {
        path,
        root: Path::new("/"),
        kvm: &USABLE,
        kernel: Kernel::Absent,
        cgroups: &Hierarchies::default(),
        agent,
        caller: Caller::User("ada"),
    };
    let report = host.inspect();
    assert_eq!(report.checks.len(), 13);
    assert!(!report.verdict.vm_possible);
}
