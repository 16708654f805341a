//! What firn says when something it needs is not there.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]
#![allow(clippy::print_stderr, reason = "a test that shows nothing on this host says so")]

use firn_tests::{Grade, Host, binaries, both_grades, jail_only, vm_only};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

both_grades!(programs_that_are_missing_are_named_with_what_to_do);
fn programs_that_are_missing_are_named_with_what_to_do(grade: Grade) {
    let host = Host::of(grade);
    let of_all = ["FIRN_BWRAP", "FIRN_AGENT"];
    let (options, of_one): (&[&str], &[&str]) = match grade {
        Grade::Jail => (&[], &[]),
        Grade::Vm => (&["--vmm", "qemu"], &["FIRN_VIRTIOFSD", "FIRN_QEMU", "FIRN_VHOST_DEVICE_VSOCK"]),
    };
    let args = [options, &["--", "true"]].concat();
    for variable in of_all.iter().chain(of_one) {
        let done = host.run(&args).env(variable, "/no/such/program").finish().expect(125);
        assert!(
            done.stderr.contains(variable) && done.stderr.contains("/no/such/program"),
            "{}",
            done.stderr
        );
        // They are the daemon's, which has read them when it was started.
        host.stop_daemon();
    }
}

both_grades!(a_failure_is_a_result_for_programs_too);
fn a_failure_is_a_result_for_programs_too(grade: Grade) {
    let host = Host::of(grade);
    let done = host.run(&["--json", "--", "true"]).env("FIRN_BWRAP", "/no/such/bwrap").finish().expect(125);
    let event: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&event["type"], &event["sequence"]), (&"result".into(), &1.into()));
    assert_eq!(event["payload"]["exitCode"], 125);
    assert!(event["payload"]["error"].as_str().unwrap().contains("/no/such/bwrap"));
}

// A jail needs nothing of a vm.
jail_only!(what_only_a_vm_needs_may_be_missing);
fn what_only_a_vm_needs_may_be_missing() {
    let host = Host::of(Grade::Jail);
    let mut run = host.run(&["--", "echo", "there"]);
    for variable in ["FIRN_VIRTIOFSD", "FIRN_QEMU", "FIRN_VHOST_DEVICE_VSOCK", "FIRN_CLOUD_HYPERVISOR"] {
        run = run.env(variable, "/no/such/program");
    }
    assert_eq!(run.finish().expect(0).text(), "there\n");
}

jail_only!(a_bubblewrap_that_does_not_work_is_told_with_its_own_words);
fn a_bubblewrap_that_does_not_work_is_told_with_its_own_words() {
    let host = Host::of(Grade::Jail);
    let broken = host.work().join("broken");
    fs::write(&broken, "#!/bin/sh\necho broken to pieces >&2\nexit 3\n").unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    let done = host.run(&["--", "true"]).env("FIRN_BWRAP", &broken).finish().expect(125);
    assert!(done.stderr.contains("broken to pieces"), "{}", done.stderr);
}

// They are helpers of a vm only.
vm_only!(helpers_that_do_not_work_are_told_with_their_own_words);
fn helpers_that_do_not_work_are_told_with_their_own_words() {
    let host = Host::new();
    for variable in ["FIRN_VIRTIOFSD", "FIRN_QEMU", "FIRN_VHOST_DEVICE_VSOCK"] {
        let broken = host.work().join("broken");
        fs::write(&broken, "#!/bin/sh\necho broken to pieces >&2\nexit 3\n").unwrap();
        fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(host.work(), fs::Permissions::from_mode(0o755)).unwrap();
        let done = host.run(&["--vmm", "qemu", "--", "true"]).env(variable, &broken).finish().expect(125);
        assert!(done.stderr.contains("broken to pieces"), "{variable}: {}", done.stderr);
    }
}

#[test]
fn an_agent_that_is_not_static_is_refused() {
    let host = Host::with_empty_cache();
    let done = host.run(&["--", "true"]).env("FIRN_AGENT", "/bin/ls").finish().expect(125);
    assert!(done.stderr.contains("static"), "{}", done.stderr);
}

#[test]
fn a_kernel_that_is_none_is_refused() {
    let host = Host::with_empty_cache();
    let args = ["image", "build", "--kernel", "/bin/ls", "--modules", "/usr/lib"];
    let done = host.firn(&args).finish().expect(125);
    assert!(done.stderr.contains("/bin/ls"), "{}", done.stderr);
    host.firn(&["image", "build", "--kernel", "/no/such", "--modules", "/usr/lib"]).finish().expect(125);
}

vm_only!(cloud_hypervisor_runs_a_command_or_is_refused_by_name);
fn cloud_hypervisor_runs_a_command_or_is_refused_by_name() {
    let host = Host::new();
    let doctor = host.firn(&["doctor", "--json"]).finish();
    let checks: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let check = |name: &str| checks.as_array().unwrap().iter().find(|check| check["name"] == name).unwrap();
    let done = host.run(&["--vmm", "cloud-hypervisor", "--", "echo", "there"]).finish();
    if check("kvm")["status"] != "ok" {
        eprintln!("skipped: no KVM for cloud-hypervisor");
        assert!(done.stderr.contains("needs KVM"), "{}", done.stderr);
        let _ = done.expect(125);
    } else if check("cloud-hypervisor")["found"] == "not found" {
        eprintln!("skipped: no cloud-hypervisor");
        assert!(done.stderr.contains("cloud-hypervisor is not installed"), "{}", done.stderr);
        let _ = done.expect(125);
    } else {
        assert_eq!(done.expect(0).text(), "there\n");
    }
}

both_grades!(relative_and_unreadable_paths);
fn relative_and_unreadable_paths(grade: Grade) {
    let host = Host::of(grade);
    let done = host.run(&["-w", "no/such/folder", "--", "true"]).finish().expect(2);
    assert!(done.stderr.contains("no/such/folder"), "{}", done.stderr);
    fs::create_dir(host.work().join("sub")).unwrap();
    fs::write(host.work().join("sub/x"), "here").unwrap();
    let done = host.run(&["-w", "sub", "--", "cat", "x"]).finish().expect(0);
    assert_eq!(done.text(), "here");
}

both_grades!(a_runtime_folder_of_somebody_else_is_refused);
fn a_runtime_folder_of_somebody_else_is_refused(grade: Grade) {
    let host = Host::of(grade);
    let open = host.work().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let done = host.run(&["--", "true"]).env("FIRN_RUNTIME_DIR", &open).finish().expect(125);
    assert!(done.stderr.contains("not ours alone"), "{}", done.stderr);
    let done = host.run(&["--", "true"]).env("FIRN_RUNTIME_DIR", "relative").finish().expect(125);
    assert!(done.stderr.contains("absolute"), "{}", done.stderr);
}

#[test]
fn images_can_be_listed_inspected_and_rebuilt() {
    let host = Host::new();
    host.firn(&["image", "build"]).finish().expect(0);
    let list = host.firn(&["image", "list", "--json"]).finish().expect(0);
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    let id = list[0]["id"].as_str().unwrap().to_owned();
    let shown = host.firn(&["image", "inspect", &id, "--json"]).finish().expect(0);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["manifest"]["name"], "lean");
    assert_eq!(shown["manifest"]["manifest_version"], 1);
    let agent = fs::metadata(binaries().join("firn-agent")).unwrap().len();
    assert!(agent <= 4_000_000, "the agent has {agent} bytes");
    host.firn(&["image", "inspect", "no-such-image"]).finish().expect(125);
}

// A jail is what is left when there can be no vm.
vm_only!(a_jail_is_given_for_a_vm_only_when_that_was_allowed);
fn a_jail_is_given_for_a_vm_only_when_that_was_allowed() {
    let host = Host::of(Grade::Vm);
    let args = ["--json", "--vmm", "qemu", "--", "echo", "here"];
    let done = host.run(&args).env("FIRN_QEMU", "/no/such/qemu").finish().expect(125);
    assert!(!done.text().contains("\"here\""), "{}", done.text());
    let args = ["--allow-degraded", "--json", "--vmm", "qemu", "--", "echo", "here"];
    let done = host.run(&args).env("FIRN_QEMU", "/no/such/qemu").finish().expect(0);
    assert!(done.stderr.contains("this is a jail (degraded isolation)"), "{}", done.stderr);
    let result: serde_json::Value = serde_json::from_str(done.text().lines().last().unwrap()).unwrap();
    let isolation = &result["payload"]["isolation"];
    assert_eq!(isolation["requested"], "vm");
    assert_eq!(isolation["effective"], "jail");
    assert_eq!(isolation["degraded"], true);
    assert!(isolation["reason"].as_str().unwrap().contains("/no/such/qemu"), "{isolation}");
}
