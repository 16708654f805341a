//! The floor of a cold run: the least that starts the same VM.
//!
//! The command lines are those of a running sandbox, read from `/proc` and from what bubblewrap is
//! started with, so they cannot grow apart from what firn does. What is left out:
//!
//! ```text
//!   virtiofsd   nothing: the same namespace, tree and flags
//!   VMM         its namespace, its system call filter, its control group, its monitor,
//!               its vsock device and the process behind it
//!   guest       the agent: its init loads fewer modules, mounts base and overlay, runs `true`
//! ```

use crate::initramfs;
use crate::process::Process;
use crate::sandbox::Sandbox;
use crate::stand_in::{READ_FROM, Start, in_memory};
use firn_tests::binaries;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::Uid;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What its init says when the command is over.
const DONE: &str = "the floor's command: exit status: 0";

/// An argument of virtiofsd's command line.
enum Argument {
    Word(String),
    /// The number of a descriptor with this text to read.
    Text(String),
    /// virtiofsd's socket.
    Socket,
}

/// Everything that is needed to start it.
pub(crate) struct Floor {
    dir: TempDir,
    virtiofsd: Vec<Argument>,
    vmm: Vec<String>,
    pub(crate) name: &'static str,
    /// The guest's memory, in words.
    pub(crate) machine: String,
}

/// Ends when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Floor {
    /// Learns from a running sandbox, and from how another's tree was exported.
    pub(crate) fn of(sandbox: &mut Sandbox, base: &Start) -> Floor {
        let dir = tempfile::Builder::new().prefix("firn-floor-").tempdir_in("/tmp").expect("makes a folder");
        let processes = sandbox.processes();
        let virtiofsd = virtiofsd(base);
        let (name, vmm, machine) =
            if let Some(it) = processes.iter().find(|it| it.name().starts_with("qemu-system")) {
                let (args, machine) = qemu(it, dir.path());
                ("qemu", args, machine)
            } else {
                let it = processes.iter().find(|it| it.name() == "cloud-hypervisor").expect("finds the VMM");
                let api = sandbox.socket().with_file_name("api");
                let (args, machine) = cloud_hypervisor(it, &api, dir.path());
                ("cloud-hypervisor", args, machine)
            };
        Floor { dir, virtiofsd, vmm, name, machine }
    }

    /// Runs it once, start to finish.
    pub(crate) fn run(&self) -> Duration {
        let console = self.dir.path().join("console");
        let socket = self.dir.path().join("base");
        let _ = fs::remove_file(&socket);
        let _ = fs::remove_file(&console);

        let since = Instant::now();
        let mut inherited = vec![OwnedFd::from(UnixListener::bind(&socket).expect("listens"))];
        let listener = inherited[0].as_raw_fd();
        let mut words = Vec::new();
        for argument in &self.virtiofsd {
            words.push(match argument {
                Argument::Word(word) => word.clone(),
                Argument::Socket => format!("--fd={listener}"),
                Argument::Text(text) => {
                    let fd = in_memory(text.as_bytes());
                    inherited.push(fd);
                    inherited[inherited.len() - 1].as_raw_fd().to_string()
                }
            });
        }
        for fd in &inherited {
            // There is one thread, so nobody else forks before they are closed.
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).expect("passes a descriptor on");
        }
        let complaints = File::create(self.dir.path().join("virtiofsd")).expect("makes a file");
        let virtiofsd = Running(start(&words, Stdio::null(), complaints.into()));
        drop(inherited);
        let output = File::create(&console).expect("makes the console");
        let mut vmm = Running(start(&self.vmm, output.into(), Stdio::inherit()));
        let status = vmm.0.wait().expect("waits for the VMM");
        drop(virtiofsd);
        let taken = since.elapsed();

        let mut said = fs::read(&console).expect("reads the console");
        for more in ["serial", "virtiofsd"] {
            said.extend(fs::read(self.dir.path().join(more)).unwrap_or_default());
        }
        let said = String::from_utf8_lossy(&said);
        assert!(status.success() && said.contains(DONE), "the floor failed ({status}); it said:\n{said}");
        taken
    }
}

fn start(words: &[String], stdout: Stdio, stderr: Stdio) -> Child {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env_clear().stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    command.spawn().unwrap_or_else(|error| panic!("{}: {error}", words[0]))
}

/// The command line of the read-only tree, to be started by ourselves.
fn virtiofsd(base: &Start) -> Vec<Argument> {
    let word = |word: &str| Argument::Word(word.to_owned());
    let mut arguments = vec![word("bwrap")];
    if Uid::effective().is_root() {
        // firn's own runs as a stranger. Called 0 inside, virtiofsd would try to use root's rights.
        arguments.extend(["--uid", "1000", "--gid", "1000"].map(word));
    }
    let mut args = base.args.iter().map(String::as_str);
    while let Some(arg) = args.next() {
        // The system call filters are of firn's making, as far as a bare script goes.
        if arg == "--add-seccomp-fd" {
            args.next();
            continue;
        }
        arguments.push(word(arg));
        if READ_FROM.contains(&arg) {
            let fd = args.next().expect("a descriptor");
            let (_, contents) = base.files.iter().find(|(name, _)| name == fd).expect("was handed over");
            arguments.push(Argument::Text(String::from_utf8(contents.clone()).expect("a text")));
        }
    }
    arguments.push(word("--"));
    arguments.extend(
        base.command.iter().map(|arg| if arg.starts_with("--fd=") { Argument::Socket } else { word(arg) }),
    );
    arguments
}

/// Copies the kernel and makes the initramfs.
fn payload(vmm: &Process, kernel: &str, initrd: &str, bus: &str, dir: &Path) -> (PathBuf, PathBuf) {
    let file = |path: &str| match path.strip_prefix("/proc/self/fd/") {
        Some(number) => vmm.fd(number),
        None => path.into(),
    };
    let copies = (dir.join("kernel"), dir.join("initrd"));
    fs::copy(file(kernel), &copies.0).expect("copies the kernel");
    let archive = fs::read(file(initrd)).expect("reads the initramfs");
    let init = fs::read(binaries().join("guest-floor")).expect("guest-floor is built by `make bench`");
    fs::write(&copies.1, initramfs::floor(&archive, &init, bus)).expect("writes the initramfs");
    copies
}

fn qemu(vmm: &Process, dir: &Path) -> (Vec<String>, String) {
    let mut args = vec![vmm.argv[0].clone()];
    let mut words = vmm.argv.iter().skip(1).map(String::as_str).peekable();
    let value = |flag: &str| {
        let at = vmm.argv.iter().position(|word| word == flag).expect("QEMU has this option");
        vmm.argv[at + 1].as_str()
    };
    let (kernel, initrd) = payload(vmm, value("-kernel"), value("-initrd"), "virtio_mmio", dir);
    while let Some(flag) = words.next() {
        let Some(value) = words.next_if(|word| !word.starts_with('-')) else {
            args.push(flag.to_owned());
            continue;
        };
        let value = match flag {
            "-sandbox" | "-mon" => continue,
            "-chardev" | "-device" if value.contains("vsock") || value.contains("id=monitor") => continue,
            "-kernel" => kernel.display().to_string(),
            "-initrd" => initrd.display().to_string(),
            // firn listens to it on a socket that it hands over.
            "-chardev" if value.contains("id=console") => "stdio,id=console,signal=off".to_owned(),
            "-chardev" => match value.split_once(",path=") {
                Some((chardev, _)) => format!("{chardev},path={}", dir.join("base").display()),
                None => value.to_owned(),
            },
            _ => value.to_owned(),
        };
        args.extend([flag.to_owned(), value]);
    }
    let machine = format!("{} vCPU, {} memory, accelerator {}", value("-smp"), value("-m"), value("-accel"));
    (args, machine)
}

/// cloud-hypervisor is told over its API what QEMU is told by arguments; it says what it was told.
fn cloud_hypervisor(vmm: &Process, api: &Path, dir: &Path) -> (Vec<String>, String) {
    let info = vm_info(api);
    let config = &info["config"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let payload_of = &config["payload"];
    let (kernel, initrd) =
        payload(vmm, &text(&payload_of["kernel"]), &text(&payload_of["initramfs"]), "virtio_pci", dir);
    let (cpus, memory) = (&config["cpus"]["boot_vcpus"], &config["memory"]["size"]);
    let fs = &config["fs"][0];
    let args = [
        vmm.argv[0].clone(),
        "--kernel".to_owned(),
        kernel.display().to_string(),
        "--initramfs".to_owned(),
        initrd.display().to_string(),
        "--cmdline".to_owned(),
        text(&payload_of["cmdline"]),
        "--cpus".to_owned(),
        format!("boot={cpus},max={cpus},nested=off"),
        "--memory".to_owned(),
        format!("size={memory},shared=on"),
        "--fs".to_owned(),
        format!(
            "tag=base,socket={},num_queues={},queue_size={}",
            dir.join("base").display(),
            fs["num_queues"],
            fs["queue_size"]
        ),
        "--serial".to_owned(),
        format!("file={}", dir.join("serial").display()),
        "--console".to_owned(),
        "off".to_owned(),
        "--seccomp".to_owned(),
        "false".to_owned(),
    ];
    (args.to_vec(), format!("{cpus} vCPU, {memory}B memory, accelerator kvm"))
}

fn vm_info(api: &Path) -> Value {
    let mut stream = UnixStream::connect(api).expect("connects to cloud-hypervisor");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("sets a time limit");
    let request = "GET /api/v1/vm.info HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("asks cloud-hypervisor");
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let body = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|at| &answer[at + 4..]);
        // The connection stays open: the body has come when it is whole.
        if let Some(info) = body.and_then(|body| serde_json::from_slice(body).ok()) {
            return info;
        }
        let read = stream.read(&mut chunk).expect("cloud-hypervisor answers");
        assert_ne!(read, 0, "cloud-hypervisor says {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&chunk[..read]);
    }
}
