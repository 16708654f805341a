//! `firn doctor`: what this host has for sandboxes.
//!
//! Only the rendering: what is looked at is decided in [`crate::preflight`], and the caller prints
//! to its stdout and exits with [`exit_code`].

use super::exit::Failed;
use crate::config::{Config, Program};
use crate::preflight::{Backend, Caller, Host, Kernel, Report, Status};
use crate::sandbox::place;
use crate::sys::cgroup::Hierarchies;
use crate::sys::facts::host_facts;
use crate::sys::identity::Identity;
use crate::vm::image::Images;
use nix::unistd::{Uid, User};
use std::io::{self, Write};
use std::path::Path;

/// Check what this host has for sandboxes, and say what mends what it lacks
///
/// Exits with 0 only if a VM can be started.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Print a JSON array of checks: name, status (ok, warning, missing), found, meaning, remedy
    #[arg(long)]
    pub(crate) json: bool,
}

/// Looks at this host.
pub(super) fn examine(config: &Config) -> Result<Report, Failed> {
    // The measurements are kept beside the records.
    place::prepare(&config.runtime_dir)?;
    let facts = host_facts(&config.runtime_dir);
    let path = config.search_path();
    let uid = Uid::effective();
    let name = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    let caller = match Identity::least(0) {
        Identity::Stranger { id, .. } => Caller::Root { helper_id: id },
        Identity::Caller => Caller::User(&name),
    };
    let agent = config.program(Program::Agent).unwrap_or_else(|_missing| Program::Agent.file_name().into());
    let kernel = match Images::new(&config.cache_dir).kernel_at_hand() {
        Some((release, path)) => Kernel::Installed { release, path },
        None if config.search.iter().any(|dir| dir.join("apt-get").exists()) => {
            Kernel::Fetchable { package: "linux-image-cloud-amd64".to_owned() }
        }
        None => Kernel::Absent,
    };
    let cgroups = Hierarchies::find();
    let host = Host {
        path: &path,
        root: Path::new("/"),
        kvm: &facts.kvm,
        kernel,
        cgroups: &cgroups,
        agent: &agent,
        caller,
    };
    Ok(host.inspect())
}

/// How a status is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marks {
    /// A coloured sign, on a terminal.
    Signs,
    /// A word, elsewhere.
    Words,
}

impl Marks {
    /// All of one width on the screen.
    fn of(self, status: Status) -> &'static str {
        match (self, status) {
            (Marks::Signs, Status::Ok) => "\x1b[32m✓\x1b[0m",
            (Marks::Signs, Status::Warning) => "\x1b[33m!\x1b[0m",
            (Marks::Signs, Status::Missing) => "\x1b[31m✗\x1b[0m",
            (Marks::Words, Status::Ok) => "ok     ",
            (Marks::Words, Status::Warning) => "warning",
            (Marks::Words, Status::Missing) => "missing",
        }
    }

    fn width(self) -> usize {
        match self {
            Marks::Signs => 1,
            Marks::Words => 7,
        }
    }
}

/// Writes the report as the user asked for it.
pub(crate) fn write(args: &DoctorArgs, report: &Report, marks: Marks, out: &mut dyn Write) -> io::Result<()> {
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &report.checks)?;
        return writeln!(out);
    }
    let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let indent = " ".repeat(marks.width() + width + 4);
    for check in &report.checks {
        // What a program said about itself may hold anything.
        let found: String = check.found.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        writeln!(out, "{}  {:width$}  {found}", marks.of(check.status), check.name)?;
        writeln!(out, "{indent}{}", check.meaning)?;
        if let Some(remedy) = &check.remedy {
            writeln!(out, "{indent}to mend it: {remedy}")?;
        }
    }
    writeln!(out)?;
    if report.verdict.jail_possible {
        writeln!(out, "Jails can be started here.")?;
    }
    let on = match report.verdict.vmm {
        Some(Backend::CloudHypervisor) => "on cloud-hypervisor, with KVM",
        Some(Backend::QemuKvm) => "on QEMU, with KVM",
        Some(Backend::QemuTcg) => "on QEMU, in software",
        None => "",
    };
    if report.verdict.vm_possible {
        return writeln!(out, "VMs can be started here, {on}.");
    }
    let missing: Vec<&str> = report
        .checks
        .iter()
        // That there is no jail is a verdict too.
        .filter(|check| check.status == Status::Missing && check.name != "jail")
        .map(|check| check.name)
        .collect();
    writeln!(out, "No VM can be started here. Missing: {}.", missing.join(", "))
}

/// 0 if a VM can be started, else 1.
pub(crate) fn exit_code(report: &Report) -> u8 {
    u8::from(!report.verdict.vm_possible)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::{Check, Verdict};

    fn report(worst: Status) -> Report {
        let check = |name, status, remedy: Option<&str>| Check {
            name,
            status,
            found: "1.2, /usr/bin/it".into(),
            meaning: "does things".into(),
            remedy: remedy.map(str::to_owned),
        };
        Report {
            checks: vec![
                check("kvm", Status::Ok, None),
                check("longer-name", Status::Warning, None),
                check("qemu", worst, Some("apt-get install it")),
            ],
            verdict: Verdict {
                vm_possible: worst != Status::Missing,
                vmm: Some(Backend::QemuTcg),
                jail_possible: true,
            },
        }
    }

    fn written(json: bool, report: &Report, marks: Marks) -> String {
        let mut out = Vec::new();
        write(&DoctorArgs { json }, report, marks, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_is_aligned_and_ends_with_the_verdict() {
        insta::assert_snapshot!(written(false, &report(Status::Warning), Marks::Words), @r"
        ok       kvm          1.2, /usr/bin/it
                              does things
        warning  longer-name  1.2, /usr/bin/it
                              does things
        warning  qemu         1.2, /usr/bin/it
                              does things
                              to mend it: apt-get install it

        Jails can be started here.
        VMs can be started here, on QEMU, in software.
        ");
        let without = written(false, &report(Status::Missing), Marks::Words);
        assert!(without.ends_with("\nNo VM can be started here. Missing: qemu.\n"), "{without}");
    }

    #[test]
    fn signs_and_colours_are_for_terminals_only() {
        assert!(written(false, &report(Status::Missing), Marks::Signs).contains('✗'));
        assert!(written(false, &report(Status::Missing), Marks::Words).is_ascii());
    }

    #[test]
    fn json_is_an_array_of_checks() {
        insta::assert_snapshot!(written(true, &report(Status::Missing), Marks::Signs), @r#"
        [
          {
            "name": "kvm",
            "status": "ok",
            "found": "1.2, /usr/bin/it",
            "meaning": "does things"
          },
          {
            "name": "longer-name",
            "status": "warning",
            "found": "1.2, /usr/bin/it",
            "meaning": "does things"
          },
          {
            "name": "qemu",
            "status": "missing",
            "found": "1.2, /usr/bin/it",
            "meaning": "does things",
            "remedy": "apt-get install it"
          }
        ]
        "#);
    }

    #[test]
    fn what_programs_say_cannot_steer_the_terminal() {
        let mut report = report(Status::Ok);
        report.checks[0].found = "\x1b]0;title\x07\nforged".into();
        assert!(written(false, &report, Marks::Words).contains("?]0;title??forged"));
    }

    #[test]
    fn only_a_host_that_can_start_a_vm_exits_with_0() {
        assert_eq!(exit_code(&report(Status::Warning)), 0);
        assert_eq!(exit_code(&report(Status::Missing)), 1);
    }
}
