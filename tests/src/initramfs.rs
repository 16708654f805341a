//! An initial ramdisk of programs of this host: what Linux unpacks on top of another one.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// File types of the format (cpio(5), "New ASCII Format"), as `st_mode` has them.
const FOLDER: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_000;

/// What is to be unpacked. Folders above what is added are added too.
#[derive(Debug, Default)]
pub struct Initramfs {
    bytes: Vec<u8>,
    names: BTreeSet<PathBuf>,
}

impl Initramfs {
    /// Adds an empty folder.
    pub fn folder(&mut self, path: impl AsRef<Path>) {
        self.put(path.as_ref(), FOLDER, &[]);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: impl AsRef<Path>, target: &str) {
        self.put(path.as_ref(), LINK, target.as_bytes());
    }

    /// Adds a file.
    pub fn file(&mut self, path: impl AsRef<Path>, mode: u32, content: &[u8]) {
        self.put(path.as_ref(), FILE | mode, content);
    }

    /// Adds a file of the host's at the same path, be it a link there or not.
    pub fn copy(&mut self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        let mode = fs::metadata(path).unwrap().permissions().mode() & 0o777;
        self.file(merged(path), mode, &fs::read(path).unwrap());
    }

    /// Adds a program of the host's and the libraries that it is linked with.
    pub fn program(&mut self, path: impl AsRef<Path>) {
        self.copy(&path);
        let ldd = Command::new("ldd").arg(path.as_ref()).output().unwrap();
        // Of each line the path: `NAME => PATH (ADDRESS)` or `PATH (ADDRESS)`.
        for line in String::from_utf8(ldd.stdout).unwrap().lines() {
            if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
                self.copy(library);
            }
        }
    }

    /// The archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn put(&mut self, path: &Path, mode: u32, content: &[u8]) {
        for above in path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
            if above.components().count() > 1 && self.names.insert(above.to_owned()) {
                self.entry(name(above), FOLDER, &[]);
            }
        }
        if self.names.insert(path.to_owned()) {
            self.entry(name(path), mode, content);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        // Each file has one link, and so needs no number of its own.
        let (size, length) = (u32::try_from(content.len()).unwrap(), u32::try_from(name.len() + 1).unwrap());
        let fields = [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0];
        let header: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        self.bytes.extend_from_slice(format!("070701{header}{name}\0").as_bytes());
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// `/lib` and the like are links into `/usr`, here as on a merged system.
fn merged(path: &Path) -> PathBuf {
    let top = ["/bin", "/sbin", "/lib", "/lib64"].iter().any(|top| path.starts_with(top));
    if top { Path::new("/usr").join(path.strip_prefix("/").unwrap()) } else { path.to_owned() }
}

fn name(path: &Path) -> &str {
    path.strip_prefix("/").unwrap().to_str().unwrap()
}
