//! What cloud-hypervisor is told to build, in the words of its API, and whether it did.
//!
//! cloud-hypervisor ignores fields it does not know and answers that all is well, so every
//! configuration is read back and compared before anything runs ([`not_applied`]). Names and
//! values are those of the OpenAPI file of v53, of which a copy is in `tests/contract`.

use super::super::{GUEST_CID, Machine, SOCKETS, VSOCK};
use serde::Serialize;
use serde_json::Value;

/// What this VMM's guests need on their command line besides what every guest does: its serial
/// port as console, and the clock that stays right when the host pauses the guest.
const CMDLINE: &str = "console=ttyS0 clocksource=kvm-clock";

/// The size of the queue of a virtiofs device: the default of cloud-hypervisor.
const FS_QUEUE: u16 = 1024;

/// The files of the machine as cloud-hypervisor sees them.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) kernel: String,
    pub(super) initrd: String,
    /// The socket that the console will be at.
    pub(super) console: String,
}

/// The body of `vm.create`: schema `VmConfig`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct VmConfig {
    cpus: Cpus,
    memory: Memory,
    payload: Payload,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fs: Vec<Fs>,
    serial: Console,
    console: Console,
    vsock: Vsock,
}

/// Schema `CpusConfig`.
#[derive(Clone, Debug, Serialize)]
struct Cpus {
    boot_vcpus: u32,
    max_vcpus: u32,
    /// No hypervisor inside the guest: less of the host's KVM is exposed to it.
    nested: bool,
}

/// Schema `MemoryConfig`.
#[derive(Clone, Debug, Serialize)]
struct Memory {
    /// Bytes.
    size: u64,
    /// virtiofsd reads and writes the guest's memory.
    shared: bool,
}

/// Schema `PayloadConfig`.
#[derive(Clone, Debug, Serialize)]
struct Payload {
    kernel: String,
    initramfs: String,
    cmdline: String,
}

/// Schema `FsConfig`, and the body of `vm.add-fs`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Fs {
    tag: String,
    socket: String,
    num_queues: usize,
    queue_size: u16,
}

impl Fs {
    /// An export, by its tag and the name of its socket in the folder of sockets.
    pub(super) fn new(tag: &str, socket: &str) -> Fs {
        Fs { tag: tag.to_owned(), socket: format!("{SOCKETS}/{socket}"), num_queues: 1, queue_size: FS_QUEUE }
    }
}

/// Schemas `SerialConfig` and `ConsoleConfig`.
#[derive(Clone, Debug, Serialize)]
struct Console {
    mode: ConsoleMode,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
enum ConsoleMode {
    Off,
    /// It keeps the last of what is written for who connects, and holds nobody up.
    Socket,
}

/// Schema `VsockConfig`.
#[derive(Clone, Debug, Serialize)]
struct Vsock {
    cid: u32,
    socket: String,
}

impl VmConfig {
    /// The machine, from files as cloud-hypervisor sees them.
    pub(super) fn new(machine: &Machine, files: Files) -> VmConfig {
        let fs = machine.exports.iter().map(|(tag, socket)| Fs::new(tag, socket));
        VmConfig {
            cpus: Cpus { boot_vcpus: machine.vcpus, max_vcpus: machine.vcpus, nested: false },
            memory: Memory { size: machine.memory, shared: true },
            payload: Payload {
                kernel: files.kernel,
                initramfs: files.initrd,
                cmdline: format!("{} {CMDLINE}", machine.cmdline).trim_start().to_owned(),
            },
            fs: fs.collect(),
            serial: Console { mode: ConsoleMode::Socket, socket: Some(files.console) },
            console: Console { mode: ConsoleMode::Off, socket: None },
            vsock: Vsock { cid: GUEST_CID, socket: format!("{SOCKETS}/{VSOCK}") },
        }
    }
}

/// The paths of what was asked for and is missing or different in what was applied. What was
/// applied may have more: defaults.
pub(super) fn not_applied(asked: &Value, applied: &Value) -> Vec<String> {
    let mut paths = Vec::new();
    compare(asked, applied, "", &mut paths);
    paths
}

fn compare(asked: &Value, applied: &Value, path: &str, paths: &mut Vec<String>) {
    match (asked, applied) {
        (Value::Object(asked), Value::Object(applied)) => {
            for (key, value) in asked {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(value, applied.get(key).unwrap_or(&Value::Null), &path, paths);
            }
        }
        (Value::Array(asked), Value::Array(applied)) if asked.len() == applied.len() => {
            for (index, (asked, applied)) in asked.iter().zip(applied).enumerate() {
                compare(asked, applied, &format!("{path}[{index}]"), paths);
            }
        }
        (asked, applied) if asked == applied => {}
        _ => paths.push(path.to_owned()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// A machine that uses every field we have.
    pub(in super::super) fn machine() -> Machine {
        Machine {
            kernel: "/unseen/vmlinux".into(),
            initrd: "/unseen/initrd".into(),
            cmdline: "quiet panic=-1".to_owned(),
            vcpus: 2,
            memory: 512 << 20,
            exports: vec![("base".into(), "base".into()), ("shares".into(), "shares".into())],
            spare_exports: 0,
        }
    }

    pub(in super::super) fn files() -> Files {
        Files {
            kernel: "/proc/self/fd/7".into(),
            initrd: "/proc/self/fd/8".into(),
            console: "/proc/self/fd/9".into(),
        }
    }

    #[test]
    fn the_request() {
        insta::assert_json_snapshot!(VmConfig::new(&machine(), files()));
    }

    #[test]
    fn a_machine_without_exports_has_no_fs() {
        let machine = Machine { exports: Vec::new(), cmdline: String::new(), ..machine() };
        let config = serde_json::to_value(VmConfig::new(&machine, files())).unwrap();
        assert_eq!(config.get("fs"), None);
        assert_eq!(config["payload"]["cmdline"], CMDLINE);
    }

    #[test]
    fn defaults_may_be_added_but_nothing_may_be_lost() {
        let asked =
            json!({"cpus": {"boot_vcpus": 2}, "memory": {"size": 5, "shared": true}, "fs": [{"tag": "a"}]});
        let applied = json!({
            "cpus": {"boot_vcpus": 2, "nested": true},
            "memory": {"size": 5, "shared": false},
            "fs": [{"tag": "b", "id": "_fs0"}],
        });
        assert_eq!(not_applied(&asked, &applied), ["fs[0].tag", "memory.shared"]);
        assert_eq!(not_applied(&asked, &json!({})), ["cpus", "fs", "memory"]);
        assert_eq!(not_applied(&json!({"fs": [1]}), &json!({"fs": [1, 2]})), ["fs"]);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            "[a-z]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z]{1,3}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_value_is_what_was_asked_by_itself(value in value()) {
            prop_assert_eq!(not_applied(&value, &value), Vec::<String>::new());
        }
    }
}
