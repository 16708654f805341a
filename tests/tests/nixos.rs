//! A guest with an init of its own, described as a NixOS guest is: systemd as PID 1, the agent a service, by the
//! unit that NixOS guests have. There is no nixpkgs here, so its programs are this host's.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

use firn_protocol::{PROTOCOL_VERSION, Reply, Request};
use firn_tests::{Host, Initramfs, Peer, binaries, vm_only};
use std::fs;
use std::path::{Path, PathBuf};

const SYSTEMD: &str = "/usr/lib/systemd/systemd";

/// What systemd needs to power off in good order.
const TO_POWER_OFF: [&str; 5] =
    ["poweroff.target", "shutdown.target", "umount.target", "final.target", "systemd-poweroff.service"];

/// The agent's unit, where it is installed.
const UNIT: &str = include_str!("../../packaging/systemd/guest/firn-agent.service");
const AGENT: &str = "/usr/local/bin/firn-agent";

/// A guest image, and an entry of the store that it is shown, if this host has a store.
struct Image {
    folder: PathBuf,
    store_path: Option<PathBuf>,
}

impl Image {
    fn environment(&self) -> &str {
        self.folder.to_str().unwrap()
    }
}

/// There is no journal to pass on what the agent says. How it ended is systemd's to say (systemd.exec(5)).
const CONSOLE: &str = "[Service]\nStandardError=tty\nTTYPath=/dev/console\n\
                       ExecStopPost=/bin/sh -c 'echo \"the agent $$EXIT_CODE $$EXIT_STATUS\" >/dev/console'\n";

fn json(text: Vec<u8>) -> serde_json::Value {
    serde_json::from_slice(&text).unwrap()
}

/// Makes the image. None: this host has no systemd, as the test then says.
fn image(host: &Host) -> Option<Image> {
    if !Path::new(SYSTEMD).exists() {
        eprintln!("skipped: this host has no systemd to put into a guest (apt-get install systemd)");
        return None;
    }
    let _ = host.firn(&["image", "build"]).finish().expect(0);
    let lean = host.firn(&["image", "inspect", "--json"]).finish().expect(0).json();
    let lean_folder = PathBuf::from(lean["dir"].as_str().unwrap());
    let folder = host.work().join("image");
    fs::create_dir(&folder).unwrap();
    let store_path = store_paths().next();
    // The modules are those of the lean image; all else comes on top of it.
    let mut initrd = fs::read(lean_folder.join(lean["manifest"]["initrd"].as_str().unwrap())).unwrap();
    initrd.extend(with_systemd(store_path.is_some()).finish());
    fs::write(folder.join("initrd"), initrd).unwrap();
    let mut manifest = lean["manifest"].clone();
    manifest["name"] = "with-systemd".into();
    manifest["kind"] = "nixos".into();
    // An absolute path has to lead into the image or into the store.
    manifest["kernel"] = folder.join("vmlinux").to_str().unwrap().into();
    fs::hard_link(lean_folder.join("vmlinux"), folder.join("vmlinux"))
        .or_else(|_| fs::copy(lean_folder.join("vmlinux"), folder.join("vmlinux")).map(drop))
        .unwrap();
    manifest["initrd"] = "initrd".into();
    manifest["memory_mib"] = 512.into();
    assert_eq!(manifest["agent"]["protocol"], PROTOCOL_VERSION);
    if let Some(path) = &store_path {
        manifest["store"] = serde_json::json!({ "kind": "virtiofs", "tag": "store", "closure": "closure" });
        fs::write(folder.join("closure"), format!("{}\n", path.display())).unwrap();
    } else {
        eprintln!("not tested: a store, since this host has none (./setup.sh nix)");
    }
    fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    Some(Image { folder, store_path })
}

/// What this host has in its store, if it has one.
fn store_paths() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/nix/store").into_iter().flatten().flatten();
    let hidden = |path: &Path| path.file_name().unwrap().as_encoded_bytes().starts_with(b".");
    entries.map(|entry| entry.path()).filter(move |path| path.is_dir() && !path.is_symlink() && !hidden(path))
}

fn with_systemd(has_store: bool) -> Initramfs {
    let mut initramfs = Initramfs::default();
    for (link, target) in
        [("/bin", "usr/bin"), ("/sbin", "usr/sbin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64")]
    {
        initramfs.link(link, target);
    }
    initramfs.file("/init", 0o755, &fs::read(binaries().join("stage-one")).unwrap());
    initramfs.file(AGENT, 0o755, &fs::read(binaries().join("firn-agent")).unwrap());
    for program in [SYSTEMD, "/usr/lib/systemd/systemd-shutdown"] {
        initramfs.program(program);
    }
    for program in ["sh", "cat", "touch", "umount"] {
        initramfs.program(Path::new("/usr/bin").join(program));
    }
    for unit in TO_POWER_OFF {
        initramfs.copy(Path::new("/usr/lib/systemd/system").join(unit));
    }
    initramfs.file("/etc/systemd/system/firn-agent.service", 0o644, UNIT.as_bytes());
    initramfs.file("/etc/systemd/system/firn-agent.service.d/console.conf", 0o644, CONSOLE.as_bytes());
    initramfs.file(
        "/etc/systemd/system/default.target",
        0o644,
        b"[Unit]\nDefaultDependencies=no\nWants=firn-agent.service\n",
    );
    initramfs.file("/etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    initramfs.file("/etc/group", 0o644, b"root:x:0:\n");
    initramfs.file("/etc/machine-id", 0o444, b"0123456789abcdef0123456789abcdef\n");
    for folder in ["/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/workspace"] {
        initramfs.folder(folder);
    }
    if has_store {
        initramfs.folder("/nix/store");
    }
    initramfs
}

vm_only!(a_guest_with_systemd_is_a_sandbox);
fn a_guest_with_systemd_is_a_sandbox() {
    let host = Host::new();
    let Some(image) = image(&host) else { return };
    let project = host.work().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("question"), "6*7\n").unwrap();
    let daemon = host.daemon(None);
    let id = host.create(&["--env", image.environment(), "-w", project.to_str().unwrap(), "--pids", "77"]);

    let said = |script: &str| host.exec(&id, script).finish().expect(0).text().trim_end().to_owned();
    assert_eq!(said("cat /proc/1/comm"), "systemd");
    assert_eq!(said("cat /proc/sys/kernel/hostname"), format!("firn-{id}"));
    assert_eq!(
        said("echo $PATH"),
        "/run/wrappers/bin:/run/current-system/sw/bin:/usr/local/sbin:\
                                    /usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    );
    // Commands have a control group of their own in the agent's, with the limit that was asked for.
    let group = "/system.slice/firn-agent.service/commands";
    assert_eq!(said("cat /proc/self/cgroup"), format!("0::{group}"));
    assert_eq!(said(&format!("cat /sys/fs/cgroup{group}/pids.max")), "77");
    // The agent is spared when memory runs out; a command is the first to go.
    assert_eq!(said("cat /proc/self/oom_score_adj"), "1000");
    assert_eq!(said("cat question; echo 42 > answer; echo $((6*7))"), "6*7\n42");
    if let Some(path) = &image.store_path {
        let path = path.display();
        assert_eq!(said(&format!("test -d {path} && echo /nix/store/*")), path.to_string());
        let refused = host.exec(&id, &format!("touch {path}/new /nix/store/new")).finish();
        assert!(refused.code != 0 && refused.stderr.contains("Read-only file system"), "{}", refused.stderr);
    }
    let status = host.status(&id);
    let protection = &status["protection"];
    assert_eq!(protection["isolation"]["image"], "with-systemd", "{status}");
    assert!(protection["limits"]["disk"].get("effective").is_none(), "{status}");

    // A daemon that takes it over finds it as it was.
    assert_eq!(said("echo kept > /tmp/file"), "");
    daemon.kill();
    let _next = host.daemon(None);
    assert_eq!(said("cat /tmp/file; echo later >> answer"), "kept");
    host.firn(&["destroy", &id]).finish().expect(0);
    assert_eq!(fs::read_to_string(project.join("answer")).unwrap(), "42\nlater\n");
}

vm_only!(a_guest_with_systemd_powers_off_in_good_order);
fn a_guest_with_systemd_powers_off_in_good_order() {
    let host = Host::new();
    let Some(image) = image(&host) else { return };
    let project = host.work().join("project");
    fs::create_dir(&project).unwrap();
    let mut options = vec!["--env", image.environment(), "-w", project.to_str().unwrap()];
    // All of the store, if there is one and that is asked for.
    options.extend(image.store_path.iter().flat_map(|_| ["--store", "host"]));
    let id = host.create(&options);
    let there: String =
        store_paths().take(20).map(|path| format!("test -d {} && ", path.display())).collect();
    host.exec(&id, &format!("{there} true")).finish().expect(0);
    let detached = "echo written > file; : > marker; while :; do read _ </dev/zero; done";
    host.firn(&["exec", "--detach", &id, "--", "sh", "-c", detached]).finish().expect(0);
    host.wait_until("it has written", || project.join("marker").exists());
    let [sandbox] = &host.sandboxes()[..] else { panic!("{:?}", host.sandboxes()) };
    let mut agent = Peer::vsock(&sandbox.join("sockets/vsock")).unwrap();
    assert_eq!(agent.ask(&Request::Shutdown), Reply::ShuttingDown);
    // It is PID 1 that ends the guest, with all its services: the host sees that it is gone.
    host.wait_until("the guest is off", || host.status(&id)["state"] == "failed");
    let status = host.status(&id).to_string();
    assert!(status.contains("the guest ended by itself (guest-shutdown)"), "{status}");
    assert!(status.contains("the agent exited 0"), "{status}");
    assert_eq!(fs::read_to_string(project.join("file")).unwrap(), "written\n");
}

vm_only!(what_a_guest_image_cannot_be_given_is_refused);
fn what_a_guest_image_cannot_be_given_is_refused() {
    let host = Host::new();
    let Some(image) = image(&host) else { return };
    for (options, part) in [
        (&["--isolation", "jail"][..], "for --isolation vm"),
        (&["--disk", "10M"], "--disk cannot be given to the guest with-systemd"),
        (&["--memory", "256M"], "a vm with this guest image has 512 MiB"),
    ] {
        let done = host.run(&[&["--env", image.environment()], options, &["--", "true"]].concat()).finish();
        assert!(done.code == 2 && done.stderr.contains(part), "{options:?}: {}", done.stderr);
    }
    let mut manifest = fs::read(image.folder.join("manifest.json")).map(json).unwrap();
    manifest["store"] = serde_json::json!({ "kind": "none" });
    fs::write(image.folder.join("manifest.json"), manifest.to_string()).unwrap();
    let store = host.run(&["--env", image.environment(), "--store", "host", "--", "true"]).finish().expect(2);
    assert!(store.stderr.contains("mounts nothing of this host's store"), "{}", store.stderr);
    let none = host.run(&["--env", image.environment()]).finish().expect(2);
    assert!(none.stderr.contains("no CMD"), "{}", none.stderr);
    fs::write(image.folder.join("manifest.json"), "{}").unwrap();
    let damaged = host.run(&["--env", image.environment(), "--", "true"]).finish().expect(2);
    assert!(damaged.stderr.contains("is not a guest manifest"), "{}", damaged.stderr);
}
