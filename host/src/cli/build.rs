//! `firn build`: has Nix build an environment.

use super::create::source::Source;
use super::exit::Failed;
use super::output::Output;
use crate::config::Config;
use crate::env::resolver::{Again, ResolveError, Resolver};
use crate::env::{FlakeRef, Record};
use serde::Serialize;
use std::path::PathBuf;

/// Build an environment with Nix, and print its path
///
/// Nix is asked in any case, so what has changed is built anew. What is built is kept from garbage collection
/// and known by its name: `firn run --env NAME`. The flake is evaluated on this host: pure, without the
/// settings that it asks for, and without building anything in order to go on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    firn build .#data                       an output of the flake in this folder\n  \
    firn build github:owner/repo#data       of one that is elsewhere\n  \
    firn build --with git,jq                packages of the catalog\n  \
    firn build --profile strict --json      {\"rootfsPath\": …}")]
pub(super) struct Build {
    /// An output of a flake [default: the one in this folder].
    #[arg(value_name = "FLAKEREF", conflicts_with_all = ["with", "profile", "spec"])]
    flake: Option<String>,

    /// These packages of the catalog.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    with: Option<Vec<String>>,

    /// What a profile of nixo's has: strict, offline-review, build-install or debug-network.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,

    /// What a specification of nixo's has, a JSON file.
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What nixo prints, and the name.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    rootfs_path: &'a PathBuf,
    name: &'a str,
}

impl Build {
    pub(super) fn run(&self, config: &Config, output: &mut Output) -> Result<u8, Failed> {
        let Record { path, name, .. } = &self.build(config, output)?;
        if self.json {
            output.json(&Answer { rootfs_path: path, name })?;
        } else {
            output.stdout(format!("{}\n", path.display()).as_bytes())?;
        }
        Ok(0)
    }

    fn build(&self, config: &Config, output: &mut Output) -> Result<Record, Failed> {
        let Build { with, profile, spec, .. } = self;
        if let Some(source) = Source::listed(with.as_deref(), profile.as_deref(), spec.as_deref())? {
            return Ok(source.build(config, Again::Yes, output)?);
        }
        let here = std::env::current_dir().map_err(ResolveError::Here)?;
        let flake = FlakeRef::new(self.flake.as_deref().unwrap_or("."), &here);
        let record = Resolver::new(config)?.flake(&flake, Again::Yes, &mut |told| output.told(&told));
        output.clear();
        Ok(record?)
    }
}
