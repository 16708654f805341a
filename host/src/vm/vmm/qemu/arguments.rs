//! QEMU's command line.
//!
//! The machine is `microvm`: no firmware to speak of, no PCI, virtio over MMIO, announced by ACPI
//! tables because Debian's kernels find such devices in no other way. Only one that is to get devices
//! while it runs has a PCI bus, with a port for each of them: MMIO has no way to say that one has come.

use super::{Acceleration, GUEST_CID, Machine, SOCKETS, VSOCK_DEVICE};
use std::ffi::OsString;

/// Processor features that software emulation does slowly or wrongly:
/// - `la57`: a fifth level of page tables, walked for nothing;
/// - `erms`, `fsrm`: string instructions announced as fast, which are emulated byte by byte;
/// - `cx16`: Linux 6.12 panics at boot in one of ten starts with it.
const SOFTWARE_CPU: &str = "max,la57=off,erms=off,fsrm=off,cx16=off";

/// The size of the queue of a virtiofs device, that of cloud-hypervisor.
pub(super) const FS_QUEUE: u16 = 1024;

/// What makes Linux look for devices that come to a port, and keep room for them: no firmware has done
/// either.
const HOTPLUG: &str = "pcie_ports=native pci=realloc,hpmmiosize=2M,hpmmioprefsize=2M";

/// The port of the export that is added as number `index`.
pub(super) fn port(index: u8) -> String {
    format!("port{index}")
}

/// The chardev and the device of an export.
pub(super) fn export_id(tag: &str) -> String {
    format!("export-{tag}")
}

/// What the command line is made from.
pub(super) struct Arguments<'a> {
    pub(super) machine: &'a Machine,
    pub(super) acceleration: Acceleration,
    /// Paths of kernel and initrd as QEMU sees them.
    pub(super) kernel: String,
    pub(super) initrd: String,
    /// The descriptors of the listening sockets of the monitor and of the console.
    pub(super) monitor: i32,
    pub(super) console: i32,
}

impl Arguments<'_> {
    pub(super) fn render(&self) -> Vec<OsString> {
        let Machine { cmdline, vcpus, memory, exports, spare_exports, .. } = self.machine;
        let mut args = Vec::new();
        let mut add = |flag: &str, value: String| args.extend([OsString::from(flag), OsString::from(value)]);

        // A clock that can be read at boot costs nothing; without one the kernel waits two seconds.
        let pci = if *spare_exports > 0 { ",pcie=on" } else { "" };
        add("-machine", format!("microvm,acpi=on,pit=off,pic=off,rtc=on,memory-backend=ram{pci}"));
        match self.acceleration {
            Acceleration::Kvm => {
                add("-accel", "kvm".to_owned());
                add("-cpu", "host".to_owned());
            }
            Acceleration::Software { .. } => {
                add("-accel", "tcg,thread=multi".to_owned());
                add("-cpu", SOFTWARE_CPU.to_owned());
            }
        }
        add("-smp", vcpus.to_string());
        // Sizes in bytes: `B` is the default of neither option.
        add("-m", format!("{memory}B"));
        // Shared, because the processes behind vhost-user read and write it.
        add("-object", format!("memory-backend-memfd,id=ram,size={memory}B,share=on"));
        add("-kernel", self.kernel.clone());
        add("-initrd", self.initrd.clone());
        add("-append", self.kernel_command_line(cmdline));

        for (tag, socket) in exports {
            add("-chardev", format!("socket,id={socket},path={SOCKETS}/{socket}"));
            add("-device", format!("vhost-user-fs-device,chardev={socket},tag={tag},queue-size={FS_QUEUE}"));
        }
        for index in 0..*spare_exports {
            let port = port(index);
            add("-device", format!("pcie-root-port,id={port},chassis={index},slot={index}"));
        }
        add("-chardev", format!("socket,id=vsock,path={SOCKETS}/{VSOCK_DEVICE}"));
        add("-device", "vhost-user-vsock-device,chardev=vsock".to_owned());
        debug_assert_eq!(GUEST_CID, 3, "vhost-device-vsock was told the same number");

        // Whoever comes later finds them as whoever was first.
        let listening = |id, fd| format!("socket,id={id},fd={fd},server=on,wait=off");
        add("-chardev", listening("monitor", self.monitor));
        add("-mon", "chardev=monitor,mode=control".to_owned());
        // A socket that nobody is connected to takes everything. A pipe that nobody reads would hold the
        // guest up as soon as it is full.
        add("-chardev", listening("console", self.console));
        add("-serial", "chardev:console".to_owned());
        add("-display", "none".to_owned());
        // QEMU's own system call filter, on top of the namespace it runs in.
        add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned());
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            args.push(flag.into());
        }
        args
    }

    fn kernel_command_line(&self, common: &str) -> String {
        // `no_timer_check` and the given frequency keep the kernel from measuring time against
        // interrupts that come late on a busy host. `norandmaps`: QEMU's translation of code is
        // found again only at the address it was made for, so a program that is loaded somewhere
        // else each time is translated each time: starting one takes four times as long.
        let own = match self.acceleration {
            Acceleration::Kvm => "console=ttyS0".to_owned(),
            Acceleration::Software { tsc_khz } => {
                format!("console=ttyS0 tsc_early_khz={tsc_khz} tsc=reliable no_timer_check norandmaps")
            }
        };
        let hotplug = if self.machine.spare_exports > 0 { format!(" {HOTPLUG}") } else { String::new() };
        format!("{common} {own}{hotplug}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(acceleration: Acceleration, spare_exports: u8) -> String {
        let machine = Machine {
            kernel: "/unseen/vmlinux".into(),
            initrd: "/unseen/initrd".into(),
            cmdline: "quiet".to_owned(),
            vcpus: 2,
            memory: 512 << 20,
            exports: vec![("base".to_owned(), "base".to_owned())],
            spare_exports,
        };
        let arguments = Arguments {
            machine: &machine,
            acceleration,
            kernel: "/proc/self/fd/7".to_owned(),
            initrd: "/proc/self/fd/8".to_owned(),
            monitor: 9,
            console: 10,
        };
        arguments
            .render()
            .iter()
            .map(|arg| arg.to_str().unwrap())
            .map(|arg| if arg.starts_with('-') { format!("\n{arg}") } else { format!(" {arg}") })
            .collect()
    }

    #[test]
    fn the_command_line_in_software() {
        insta::assert_snapshot!(render(Acceleration::Software { tsc_khz: 2_300_000 }, 0));
    }

    #[test]
    fn the_command_line_with_kvm() {
        insta::assert_snapshot!(render(Acceleration::Kvm, 0));
    }

    #[test]
    fn the_command_line_of_a_guest_that_gets_exports_later() {
        insta::assert_snapshot!(render(Acceleration::Kvm, 2));
    }
}
