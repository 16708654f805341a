//! Writes the initial ramdisk of the lean guest: the agent as `/init`, kernel modules, and the few
//! directories the agent mounts things on.
//!
//! The format is cpio "newc" (`Documentation/driver-api/early-userspace/buffer-format.rst`). It is
//! not compressed: a larger ramdisk costs nothing measurable at boot, decompressing does. Equal input
//! gives equal bytes, so an image can be named by its content: owners and times are zero.

use super::modules::Module;

/// Where the modules are in the guest, and in which order to load them: one file name per line.
const ORDER_FILE: &str = "modules/order";

/// Directories the agent mounts on.
const DIRECTORIES: [&str; 6] = ["dev", "modules", "newroot", "proc", "run", "sys"];

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFCHR: u32 = 0o020_000;

/// Builds the archive.
pub(super) fn build(agent: &[u8], modules: &[Module]) -> Vec<u8> {
    let size = agent.len() + modules.iter().map(|module| module.content.len() + 256).sum::<usize>();
    let mut archive = Archive { out: Vec::with_capacity(size + 4096), inode: 0 };
    for name in DIRECTORIES {
        archive.add(&Entry { name, mode: S_IFDIR | 0o755, device: (0, 0), content: &[] });
    }
    // The kernel opens it for PID 1 before anything could mount a devtmpfs.
    archive.add(&Entry { name: "dev/console", mode: S_IFCHR | 0o600, device: (5, 1), content: &[] });
    archive.add(&Entry { name: "init", mode: S_IFREG | 0o755, device: (0, 0), content: agent });

    let order: String = modules.iter().map(|module| file_name(module) + "\n").collect();
    archive.add(&Entry {
        name: ORDER_FILE,
        mode: S_IFREG | 0o644,
        device: (0, 0),
        content: order.as_bytes(),
    });
    let mut sorted: Vec<&Module> = modules.iter().collect();
    sorted.sort_by_key(|module| &module.name);
    for module in sorted {
        let name = format!("modules/{}", file_name(module));
        archive.add(&Entry { name: &name, mode: S_IFREG | 0o644, device: (0, 0), content: &module.content });
    }
    archive.finish()
}

fn file_name(module: &Module) -> String {
    format!("{}.ko", module.name)
}

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    device: (u32, u32),
    content: &'a [u8],
}

struct Archive {
    out: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn add(&mut self, entry: &Entry<'_>) {
        self.inode += 1;
        self.write(entry, self.inode);
    }

    fn finish(mut self) -> Vec<u8> {
        self.write(&Entry { name: "TRAILER!!!", mode: 0, device: (0, 0), content: &[] }, 0);
        self.out
    }

    fn write(&mut self, entry: &Entry<'_>, inode: u32) {
        let links = if entry.mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
        // Every content has a cap far below 4 GiB (MAX_AGENT, MAX_MODULE), so the width is enough.
        let (content, name) = (entry.content.len() as u32, entry.name.len() as u32 + 1);
        let (major, minor) = entry.device;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
        // namesize, check
        let fields = [inode, entry.mode, 0, 0, links, 0, content, 0, 0, major, minor, name, 0];
        self.out.extend_from_slice(b"070701");
        for field in fields {
            self.out.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.out.extend_from_slice(entry.name.as_bytes());
        self.out.push(0);
        self.pad();
        self.out.extend_from_slice(entry.content);
        self.pad();
    }

    fn pad(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::index::Stamp;
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn module(name: &str, content: &[u8]) -> Module {
        Module {
            name: name.into(),
            stamp: Stamp::of("/x".as_ref()),
            built_for: None,
            content: content.to_vec(),
        }
    }

    fn modules() -> Vec<Module> {
        vec![module("virtio_ring", b"ring"), module("virtio", b"longer content")]
    }

    fn cpio(arguments: &[&str], dir: &std::path::Path, archive: &[u8]) -> String {
        let mut child = Command::new("cpio")
            .args(arguments)
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(archive).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn cpio_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let archive = build(b"agent", &modules());
        insta::assert_snapshot!(cpio(&["-t", "--quiet"], dir.path(), &archive));
        let verbose = cpio(&["-tv", "--quiet", "-n"], dir.path(), &archive);
        assert!(
            verbose.lines().any(|line| line.starts_with("crw-------") && line.contains("5,   1")),
            "{verbose}"
        );
        assert!(
            verbose.lines().any(|line| line.starts_with("-rwxr-xr-x") && line.ends_with("init")),
            "{verbose}"
        );

        // Making the device node takes root, the rest does not.
        cpio(&["-id", "--quiet", "-f", "dev/console"], dir.path(), &archive);
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("init"), "agent");
        assert_eq!(read("modules/order"), "virtio_ring.ko\nvirtio.ko\n");
        assert_eq!(read("modules/virtio.ko"), "longer content");
    }

    #[test]
    fn equal_input_gives_equal_bytes() {
        assert_eq!(build(b"agent", &modules()), build(b"agent", &modules()));
        assert_ne!(build(b"agent", &modules()), build(b"other", &modules()));
    }

    proptest! {
        /// Headers and contents start at multiples of four, whatever the lengths are.
        #[test]
        fn every_entry_can_be_walked(lengths in proptest::collection::vec(0_usize..40, 0..6), agent in 0_usize..40) {
            let modules: Vec<Module> =
                lengths.iter().enumerate().map(|(i, n)| module(&"m".repeat(i + 1), &vec![7; *n])).collect();
            let archive = build(&vec![1; agent], &modules);
            let hex = |at: usize| usize::from_str_radix(std::str::from_utf8(&archive[at..at + 8]).unwrap(), 16).unwrap();
            let (mut at, mut names) = (0, Vec::new());
            loop {
                prop_assert_eq!(&archive[at..at + 6], b"070701");
                let (size, name) = (hex(at + 54), hex(at + 94));
                names.push(String::from_utf8(archive[at + 110..at + 109 + name].to_vec()).unwrap());
                if names.last().unwrap() == "TRAILER!!!" { break; }
                at = (at + 110 + name).next_multiple_of(4) + size.next_multiple_of(4);
            }
            prop_assert_eq!(names.len(), DIRECTORIES.len() + 3 + modules.len() + 1);
        }
    }
}
