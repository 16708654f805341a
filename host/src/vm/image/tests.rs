//! Images built from synthetic kernels: what is found again, what is built anew, what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use super::build::{INITRD_FILE, KERNEL_FILE};
use super::bzimage::tests::bzimage;
use super::compression::Compression;
use super::manifest::MANIFEST_FILE;
use super::*;

const RELEASE: &str = "6.1.0-1-test";

/// A host with a kernel, an agent and an empty cache.
struct Host {
    dir: tempfile::TempDir,
    images: Images,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let installed = Installed { boot: path("boot"), modules: vec![path("usr/lib/modules")] };
        let images = Images { installed, ..Images::new(path("cache")) };
        let host = Self { images, dir };
        fs::create_dir(host.path("boot")).unwrap();
        host.agent("one");
        host.install(RELEASE);
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn agent(&self, content: &str) {
        fs::write(self.path("agent"), elf::tests::static_program(content.as_bytes())).unwrap();
    }

    fn install(&self, release: &str) {
        let image = bzimage(Compression::Lz4Legacy, &elf::tests::kernel(), release);
        fs::write(self.path("boot").join(format!("vmlinuz-{release}")), image).unwrap();
        modules::tests::fake_tree(&self.path("usr/lib/modules").join(release));
    }

    fn request(&self) -> Request {
        Request { kernel: KernelSource::Auto, agent: self.path("agent") }
    }

    /// The image, and whether it had to be written.
    fn ensure(&self) -> (Image, bool) {
        let mut written = false;
        let image = self
            .images
            .ensure(&self.request(), &mut |step| written |= matches!(step, Step::Writing { .. }))
            .unwrap();
        (image, written)
    }

    fn refused(&self, request: &Request) -> String {
        chain(&self.images.ensure(request, &mut |_| ()).unwrap_err())
    }
}

fn hidden(dir: &Path) -> Vec<PathBuf> {
    cache::list(dir).unwrap().into_iter().filter(|path| path.to_string_lossy().contains(".partial")).collect()
}

#[test]
fn an_image_holds_the_kernel_and_the_agent() {
    let host = Host::new();
    let (image, written) = host.ensure();
    assert!(written);
    assert_eq!(image.manifest.kernel_release, RELEASE);
    assert_eq!(image.manifest.source, Source::File { path: host.path("boot/vmlinuz-6.1.0-1-test") });
    assert_eq!(image.manifest.modules.len(), 12);
    assert!(fs::read(image.dir.join("vmlinux")).unwrap() == elf::tests::kernel());
    let initramfs = fs::read(image.dir.join("initramfs.cpio")).unwrap();
    let agent = fs::read(host.path("agent")).unwrap();
    assert!(initramfs.windows(agent.len()).any(|window| window == agent));
    assert!(hidden(&host.images.cache.images()).is_empty());
}

#[test]
fn everybody_can_read_an_image() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::new();
    let (image, _) = host.ensure();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&image.dir), 0o755);
    for name in [KERNEL_FILE, INITRD_FILE, MANIFEST_FILE] {
        assert_eq!(mode(&image.dir.join(name)), 0o644);
    }
}

#[test]
fn nothing_changed_is_found_without_reading_what_it_is_made_of() {
    let host = Host::new();
    let (first, _) = host.ensure();
    for _ in 0..3 {
        let (again, written) = host.ensure();
        assert!(!written && again.id == first.id);
    }
}

#[test]
fn a_new_agent_is_another_image() {
    let host = Host::new();
    let (first, _) = host.ensure();
    host.agent("two");
    let (second, written) = host.ensure();
    assert!(written && first.id != second.id);
    assert!(first.dir.exists(), "older images stay");
    assert_eq!(host.images.list().unwrap().len(), 2);
    host.agent("one");
    let (back, written) = host.ensure();
    assert!(!written && back.id == first.id, "the same content is the same image");
}

#[test]
fn a_changed_module_is_another_image() {
    let host = Host::new();
    let (first, _) = host.ensure();
    let module = elf::tests::module(&["license=other", "depends=", "vermagic=6.1.0-1-test SMP"]);
    fs::write(host.path("usr/lib/modules/6.1.0-1-test/kernel/drivers/vsock.ko"), module).unwrap();
    let (second, written) = host.ensure();
    assert!(written && first.id != second.id);
}

#[test]
fn a_kernel_that_comes_is_considered() {
    let host = Host::new();
    host.ensure();
    let release = "6.1.0-2-test";
    host.install(release);
    // The fake modules all say RELEASE: the newer one has modules for another release, so the older one is kept.
    let mut skipped = Vec::new();
    let image = host.images.ensure(&host.request(), &mut |step| {
        if let Step::Skipped { reason } = step {
            skipped.push(reason);
        }
    });
    assert_eq!(image.unwrap().manifest.kernel_release, RELEASE);
    assert_eq!(skipped.len(), 1);
    assert!(skipped[0].contains("is 6.1.0-2-test, but its module virtio is for 6.1.0-1-test"), "{skipped:?}");
}

#[test]
fn damage_is_repaired() {
    let host = Host::new();
    let (image, _) = host.ensure();
    let damages: [fn(&Path); 4] = [
        |dir| fs::remove_file(dir.join(KERNEL_FILE)).unwrap(),
        |dir| fs::write(dir.join(INITRD_FILE), "short").unwrap(),
        |dir| fs::write(dir.join(MANIFEST_FILE), "{").unwrap(),
        |dir| fs::remove_dir_all(dir).unwrap(),
    ];
    for damage in damages {
        damage(&image.dir);
        let (again, written) = host.ensure();
        assert!(written && again.id == image.id);
        assert!(!host.ensure().1, "repaired");
    }
    fs::write(host.images.cache.index(), "{").unwrap();
    assert!(!host.ensure().1, "an index can be lost");
}

#[test]
fn damage_is_shown() {
    let host = Host::new();
    let (image, _) = host.ensure();
    fs::remove_file(image.dir.join(KERNEL_FILE)).unwrap();
    assert!(host.images.list().unwrap()[0].manifest.is_err());
    let error = host.images.inspect(None).unwrap_err();
    assert!(matches!(error, ImageError::Damaged { .. }), "{error:?}");
    assert_eq!(host.images.remove(&image.id).unwrap(), image.id);
    assert!(host.images.list().unwrap().is_empty());
}

#[test]
fn images_are_found_by_id_prefix_and_name() {
    let host = Host::new();
    assert!(matches!(host.images.inspect(None), Err(ImageError::NoImages)));
    let (image, _) = host.ensure();
    for wanted in [None, Some("lean"), Some(&image.id[..4]), Some(image.id.as_str())] {
        assert_eq!(host.images.inspect(wanted).unwrap().id, image.id);
    }
    for wanted in ["", "..", "zzz"] {
        assert!(matches!(host.images.inspect(Some(wanted)), Err(ImageError::NotFound { .. })), "{wanted:?}");
    }
}

#[test]
fn an_agent_that_cannot_run_there_is_refused() {
    let host = Host::new();
    let request = host.request();
    fs::write(host.path("agent"), elf::tests::dynamic_program()).unwrap();
    assert!(host.refused(&request).contains("is dynamically linked"));
    fs::write(host.path("agent"), "#!/bin/sh").unwrap();
    assert!(host.refused(&request).contains("make build"));
    fs::remove_file(host.path("agent")).unwrap();
    assert!(host.refused(&request).contains("cannot read the agent"));
}

#[test]
fn named_files_are_used_or_refused() {
    let host = Host::new();
    let kernel = host.path("boot/vmlinuz-6.1.0-1-test");
    let files = |kernel: &Path, modules: &str| Request {
        kernel: KernelSource::Files { kernel: kernel.to_owned(), modules: host.path(modules) },
        agent: host.path("agent"),
    };
    let named = host.images.ensure(&files(&kernel, "usr/lib/modules/6.1.0-1-test"), &mut |_| ()).unwrap();
    assert_eq!(named.id, host.ensure().0.id, "the same content");
    assert!(host.refused(&files(&kernel, "nowhere")).contains("modules.builtin"));
    let agent = host.path("agent");
    let refusal = host.refused(&files(&agent, "usr/lib/modules/6.1.0-1-test"));
    assert!(refusal.contains("no entry point"), "{refusal}");
}

#[test]
fn rebuilding_what_is_there_changes_nothing() {
    let host = Host::new();
    let (image, _) = host.ensure();
    let again = host.images.rebuild(&host.request(), &mut |_| ()).unwrap();
    assert_eq!(again.manifest, image.manifest);
}

#[test]
fn builders_do_not_disturb_each_other() {
    let host = Host::new();
    let ids: Vec<String> = std::thread::scope(|scope| {
        let builders: Vec<_> = (0..4).map(|_| scope.spawn(|| host.ensure())).collect();
        builders.into_iter().map(|builder| builder.join().unwrap().0.id).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(host.images.list().unwrap().len(), 1);
}
