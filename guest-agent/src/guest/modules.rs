//! Kernel modules from the initramfs.
//!
//! `/modules/order` names one `.ko` file per line, dependencies first. They are loaded in two parts,
//! so that the host hears of the guest while the second part is still being loaded: up to and
//! including the vsock transport, then the rest.

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;

const FOLDER: &str = "/modules";

/// The module that makes vsock work.
const TRANSPORT: &str = "vmw_vsock_virtio_transport.ko";

/// What is still to be loaded: nothing, unless [`Modules::read`] finds some.
#[derive(Default)]
pub(super) struct Modules {
    waiting: VecDeque<String>,
    has_pci: bool,
    trouble: Option<String>,
}

impl Modules {
    /// Reads the order. After `/sys` is mounted.
    pub(super) fn read() -> Modules {
        let order = Path::new(FOLDER).join("order");
        // Without the file there are none: a kernel may have everything built in.
        let (text, trouble) = match std::fs::read_to_string(&order) {
            Ok(text) => (text, None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (String::new(), None),
            Err(error) => (String::new(), Some(format!("read {}: {error}", order.display()))),
        };
        let waiting = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from);
        let has_pci =
            std::fs::read_dir("/sys/bus/pci/devices").is_ok_and(|mut devices| devices.next().is_some());
        Modules { waiting: waiting.collect(), has_pci, trouble }
    }

    /// Loads up to the vsock transport. Gives what went wrong.
    pub(super) fn load_transport(&mut self) -> Vec<String> {
        let count = self.waiting.iter().position(|name| name == TRANSPORT).map_or(0, |index| index + 1);
        let mut troubles: Vec<_> = self.trouble.take().into_iter().collect();
        troubles.extend(self.load(count));
        troubles
    }

    /// Loads the others. Gives what went wrong.
    pub(super) fn load_rest(&mut self) -> Vec<String> {
        self.load(self.waiting.len())
    }

    fn load(&mut self, count: usize) -> Vec<String> {
        let has_pci = self.has_pci;
        self.waiting
            .drain(..count)
            // On a machine without PCI each would only cost time: some milliseconds in an emulated CPU.
            .filter(|name| has_pci || !name.starts_with("virtio_pci"))
            .filter_map(|name| load(&name).err().map(|error| format!("load {name}: {error}")))
            .collect()
    }
}

fn load(name: &str) -> std::io::Result<()> {
    let file = File::open(Path::new(FOLDER).join(name))?;
    match finit_module(file, c"", ModuleInitFlags::empty()) {
        // Built in, or already loaded.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
