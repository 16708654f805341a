//! `firn image`: list, build, look at and remove guest images.
//!
//! Works on the cache directly, without the daemon: an image is files, and building one may take as
//! long as a download. Nothing is printed here; the caller gives a writer and is told of each step.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::vm::image::{
    GuestManifest, Image, ImageError, Images, KernelSource, Listed, Request, Source, Step,
};

/// The guest images of virtual machines.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the images in the cache
    #[command(after_help = "Examples:\n  firn image list\n  firn image list --json | jq -r '.[].id'")]
    List {
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Build the image, unless it is there and nothing has changed
    ///
    /// Without --kernel an installed kernel is used or, on Debian and Ubuntu, the distribution's kernel
    /// package is downloaded into the cache; it is not installed, and root is not needed.
    #[command(after_help = "Examples:\n  firn image build\n  firn image build --force\n  \
                            firn image build --kernel ./bzImage --modules ./lib/modules/6.12.0")]
    Build {
        /// A bzImage or vmlinux
        #[arg(long, value_name = "PATH", requires = "modules")]
        kernel: Option<PathBuf>,
        /// The kernel's modules, a directory like /lib/modules/RELEASE
        #[arg(long, value_name = "DIR", requires = "kernel")]
        modules: Option<PathBuf>,
        /// The guest agent, a static program (default: the one installed beside firn)
        #[arg(long, value_name = "PATH")]
        agent: Option<PathBuf>,
        /// Build anew, with the newest kernel package
        #[arg(long)]
        force: bool,
    },
    /// Show one image
    #[command(after_help = "Examples:\n  firn image inspect\n  firn image inspect 3f9a\n  \
                            firn image inspect lean --json | jq .manifest.kernel_release")]
    Inspect {
        /// An image's id, the beginning of one, or a name (default: the newest image)
        id: Option<String>,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove images; running VMs are not disturbed
    #[command(after_help = "Examples:\n  firn image remove 3f9a")]
    Remove {
        /// Ids, or beginnings of them
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

/// Why `firn image` failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageCommandError {
    /// The images could not do it.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The answer could not be written.
    #[error("cannot write the output")]
    Write(#[from] io::Error),
    /// The answer is not JSON: a path that is not UTF-8.
    #[error("cannot write the output as JSON")]
    Json(#[from] serde_json::Error),
}

/// An image in the JSON of `list`: a manifest, or what is wrong.
#[derive(Serialize)]
struct ListedJson<'a> {
    id: &'a str,
    size_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<&'a GuestManifest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// An image in the JSON of `inspect`.
#[derive(Serialize)]
struct ImageJson<'a> {
    id: &'a str,
    dir: &'a Path,
    manifest: &'a GuestManifest,
}

/// Runs `firn image`. `default_agent` is taken where no agent is named.
pub(crate) fn run(
    args: &ImageArgs,
    images: &Images,
    default_agent: &Path,
    out: &mut dyn Write,
    progress: &mut dyn FnMut(Step),
) -> Result<(), ImageCommandError> {
    match &args.verb {
        Verb::List { json } => {
            let listed = images.list()?;
            if *json { list_json(&listed, out) } else { Ok(list_table(&listed, out)?) }
        }
        Verb::Build { kernel, modules, agent, force } => {
            let kernel = match (kernel, modules) {
                (Some(kernel), Some(modules)) => {
                    KernelSource::Files { kernel: kernel.clone(), modules: modules.clone() }
                }
                _ => KernelSource::Auto,
            };
            let agent = agent.as_deref().unwrap_or(default_agent).to_owned();
            let request = Request { kernel, agent };
            let image = if *force {
                images.rebuild(&request, progress)?
            } else {
                images.ensure(&request, progress)?
            };
            writeln!(out, "{}", image.id)?;
            Ok(())
        }
        Verb::Inspect { id, json } => {
            let image = images.inspect(id.as_deref())?;
            if *json {
                let shown = ImageJson { id: &image.id, dir: &image.dir, manifest: &image.manifest };
                write_json(&shown, out)
            } else {
                Ok(inspect_text(&image, out)?)
            }
        }
        Verb::Remove { ids } => {
            for id in ids {
                writeln!(out, "{}", images.remove(id)?)?;
            }
            Ok(())
        }
    }
}

fn list_json(listed: &[Listed], out: &mut dyn Write) -> Result<(), ImageCommandError> {
    let shown: Vec<ListedJson<'_>> = listed
        .iter()
        .map(|image| ListedJson {
            id: &image.id,
            size_bytes: image.size,
            manifest: image.manifest.as_ref().ok(),
            error: image.manifest.as_ref().err().map(ToString::to_string),
        })
        .collect();
    write_json(&shown, out)
}

fn list_table(listed: &[Listed], out: &mut dyn Write) -> io::Result<()> {
    if listed.is_empty() {
        return writeln!(out, "no images; build one with: firn image build");
    }
    writeln!(out, "{:<12}  {:<6}  {:<26}  {:>9}  BUILT", "ID", "NAME", "KERNEL", "SIZE")?;
    for image in listed {
        let size = mebibytes(image.size);
        match &image.manifest {
            Ok(manifest) => {
                let built = humantime::format_rfc3339_seconds(manifest.built_at);
                let (name, kernel) = (&manifest.name, &manifest.kernel_release);
                writeln!(out, "{:<12}  {name:<6}  {kernel:<26}  {size:>9}  {built}", image.id)?;
            }
            Err(error) => {
                writeln!(out, "{:<12}  {:<6}  {:<26}  {size:>9}  {error}", image.id, "-", "damaged")?
            }
        }
    }
    Ok(())
}

fn inspect_text(image: &Image, out: &mut dyn Write) -> io::Result<()> {
    let manifest = &image.manifest;
    let source = match &manifest.source {
        Source::Package { name, version } => format!("package {name} {version}"),
        Source::File { path } => path.display().to_string(),
    };
    let agent = &manifest.agent;
    let rows = [
        ("id", image.id.clone()),
        ("name", manifest.name.clone()),
        ("directory", image.dir.display().to_string()),
        ("kernel", format!("{} (from {source})", manifest.kernel_release)),
        ("command line", manifest.cmdline.clone()),
        ("agent", format!("{}, protocol {}, sha256 {}", agent.version, agent.protocol, agent.sha256)),
        ("memory", format!("at least {} MiB", manifest.memory_mib)),
        ("vcpus", manifest.vcpus.to_string()),
        ("modules", manifest.modules.join(" ")),
        ("built", humantime::format_rfc3339_seconds(manifest.built_at).to_string()),
    ];
    for (name, value) in rows {
        writeln!(out, "{:<14}{value}", format!("{name}:"))?;
    }
    Ok(())
}

fn write_json(value: &impl Serialize, out: &mut dyn Write) -> Result<(), ImageCommandError> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    Ok(writeln!(out)?)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    /// A stand-in for the whole command line.
    #[derive(Debug, Parser)]
    #[command(name = "firn-image")]
    struct Cli {
        #[command(flatten)]
        image: ImageArgs,
    }

    fn images(dir: &tempfile::TempDir) -> Images {
        Images::new(dir.path())
    }

    fn firn_image(images: &Images, line: &str) -> Result<String, String> {
        let words = std::iter::once("firn-image").chain(line.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        let mut out = Vec::new();
        run(&cli.image, images, Path::new("/nowhere/firn-agent"), &mut out, &mut |_| ())
            .map_err(|error| error.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    /// Puts an image into the cache as a builder would leave it.
    fn put(dir: &tempfile::TempDir, id: &str, manifest: &str) {
        let image = dir.path().join("images").join(id);
        std::fs::create_dir_all(&image).unwrap();
        std::fs::write(image.join("vmlinux"), vec![0; 3 << 20]).unwrap();
        std::fs::write(image.join("initramfs.cpio"), "i").unwrap();
        std::fs::write(image.join("manifest.json"), manifest).unwrap();
    }

    const MANIFEST: &str = r#"{"manifest_version": 1, "name": "lean", "kind": "lean", "kernel": "vmlinux",
        "kernel_format": "elf", "kernel_release": "6.1.0-1-cloud-amd64", "initrd": "initramfs.cpio",
        "cmdline": "quiet", "memory_mib": 128, "vcpus": 1, "store": {"kind": "none"},
        "agent": {"version": "0.1.0", "protocol": 1, "sha256": "00"}, "modules": ["virtio", "vsock"],
        "source": {"kind": "package", "name": "linux-image", "version": "6.1.1-1"},
        "built_at": "2024-01-02T03:04:05Z"}"#;

    #[test]
    fn an_empty_cache_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            firn_image(&images(&dir), "list").unwrap(),
            "no images; build one with: firn image build\n"
        );
        assert_eq!(firn_image(&images(&dir), "list --json").unwrap(), "[]\n");
        assert!(firn_image(&images(&dir), "inspect").unwrap_err().contains("firn image build"));
    }

    #[test]
    fn images_are_shown() {
        let dir = tempfile::tempdir().unwrap();
        put(&dir, "0123456789ab", MANIFEST);
        put(&dir, "9a9876543210", "{");
        let hide = |text: String| text.replace(&*dir.path().to_string_lossy(), "CACHE");
        insta::assert_snapshot!("list", hide(firn_image(&images(&dir), "list").unwrap()));
        insta::assert_snapshot!("list_json", hide(firn_image(&images(&dir), "list --json").unwrap()));
        insta::assert_snapshot!("inspect", hide(firn_image(&images(&dir), "inspect 0123").unwrap()));
        insta::assert_snapshot!(
            "inspect_json",
            hide(firn_image(&images(&dir), "inspect lean --json").unwrap())
        );
    }

    #[test]
    fn removing_takes_any_unique_beginning() {
        let dir = tempfile::tempdir().unwrap();
        put(&dir, "0123456789ab", MANIFEST);
        put(&dir, "0199999999ab", MANIFEST);
        assert!(firn_image(&images(&dir), "remove 01").unwrap_err().contains("0199999999ab"));
        assert_eq!(firn_image(&images(&dir), "remove 012").unwrap(), "0123456789ab\n");
        assert!(!dir.path().join("images/0123456789ab").exists());
    }

    #[test]
    fn a_kernel_comes_with_its_modules() {
        let dir = tempfile::tempdir().unwrap();
        assert!(firn_image(&images(&dir), "build --kernel /k").unwrap_err().contains("--modules"));
        let error = firn_image(&images(&dir), "build --kernel /k --modules /m").unwrap_err();
        assert!(error.contains("/nowhere/firn-agent"), "{error}");
    }

    #[test]
    fn help_is_what_it_was() {
        use clap::CommandFactory;
        let mut command = Cli::command().term_width(100);
        for verb in ["list", "build", "inspect", "remove"] {
            let verb_command = command.find_subcommand_mut(verb).unwrap();
            let help = verb_command.clone().term_width(100).render_long_help().to_string();
            insta::assert_snapshot!(format!("help_{verb}"), help);
        }
    }
}
