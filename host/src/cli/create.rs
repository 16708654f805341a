//! `firn create`: a sandbox that stays.

pub(super) mod source;

use super::duration;
use super::exit::Failed;
use super::output::Output;
use crate::api::client::Client;
use crate::api::types::{CreateRequest, Isolation, MountRequest, Vmm, Workspace};
use crate::config::Config;
use crate::env::Store;
use crate::spec::Size;
use crate::spec::protection::milliseconds;
use crate::spec::{Grade, SpecError, VmmKind};
use crate::sys::limits::Cpus;
use crate::view::{parse_mount, parse_workspace};
use firn_protocol::Text;
use source::{Source, SourceError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Make a sandbox that stays, and print its id
///
/// It has the host's programs unless --env, --with, --profile or --spec says otherwise. Commands are run
/// in it with `firn exec`, and see what earlier ones wrote. It stays until it is destroyed, until its
/// lease runs out, or until the host is switched off.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    firn create                                     a microVM with this host's programs\n  \
    firn create -i jail --name build -w .           a jail, with this folder at /workspace\n  \
    firn create --with git,python3 --json           only if these are there; all facts as JSON\n  \
    firn create --owner ci --lease 10m              gone when nobody renews it: firn lease renew ci\n  \
    firn create --idle-timeout 30m --lifetime 8h    stopped when idle, or at that age\n  \
    firn exec $(firn create -i jail) -- make        make one, and run a command in it")]
pub(super) struct Create {
    /// The programs of the sandbox: `host`, those of this host; `python`, `shell` or `node`, or another name
    /// that `firn env list` knows; a folder with metadata.json, or with a guest's manifest.json; or a flake's
    /// output, as .#NAME [default: host].
    #[arg(long = "env", value_name = "ENV")]
    environment: Option<String>,

    /// These packages of the catalog; where FIRN_FLAKE names none, this host's programs, if these packages are
    /// among them.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    with: Option<Vec<String>>,

    /// What a profile of nixo's has: strict, offline-review, build-install or debug-network.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,

    /// What a specification of nixo's has, a JSON file.
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,

    /// How much of the Nix store an environment from Nix shows, read-only: its closure, or all that this host
    /// has [default: closure].
    #[arg(long, value_name = "closure|host")]
    store: Option<Store>,

    /// How it is isolated: a jail has the host's kernel and takes milliseconds, a vm has its own.
    #[arg(short, long, value_name = "GRADE", default_value = "vm")]
    isolation: Grade,

    /// The network: off [default: off].
    #[arg(long, value_name = "off|full|allow=…")]
    network: Option<String>,

    /// Show this folder at /workspace, writable unless it ends in :ro. What is written there
    /// belongs to you.
    #[arg(short, long, value_name = "PATH[:ro|:rw]")]
    workspace: Option<String>,

    /// Show a folder or file at a path of the sandbox, read-only unless it ends in :rw.
    #[arg(long = "mount", value_name = "HOST:GUEST[:ro|:rw]")]
    mounts: Vec<String>,

    /// Its name, to be used instead of its id.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// The agent that it is for, as claude:opus-4-6.
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,

    /// Words about it.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,

    /// Who it belongs to: a word by which sandboxes are listed and their leases renewed.
    #[arg(long, value_name = "OWNER")]
    owner: Option<String>,

    /// Print the sandbox that this owner made with this key, if it is still there, and make none.
    #[arg(long, value_name = "KEY", requires = "owner")]
    idempotency_key: Option<String>,

    /// Destroy it when its lease was not renewed for so long.
    #[arg(long, value_name = "DURATION", requires = "owner", value_parser = duration::parse_some)]
    lease: Option<Duration>,

    /// Stop it when nothing was asked of it for so long.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_some)]
    idle_timeout: Option<Duration>,

    /// Stop it when it is so old.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_some)]
    lifetime: Option<Duration>,

    /// Memory: a number with K, M or G [default: 1G, or what the environment says].
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,

    /// How much can be written to its own files; it is part of the memory [default: half of it].
    #[arg(long, value_name = "SIZE")]
    disk: Option<Size>,

    /// Processors; in a jail also a part of one, as 0.5 [default: all in a jail, 2 in a vm, 1 in an
    /// emulated one].
    #[arg(long, value_name = "N")]
    cpus: Option<Cpus>,

    /// Processes and threads [default: 2048].
    #[arg(long, value_name = "N")]
    pids: Option<u64>,

    /// Who its commands are, when nobody says: root, sandbox, UID or UID:GID [default: root].
    #[arg(long, value_name = "USER")]
    user: Option<String>,

    /// The virtual machine monitor [default: cloud-hypervisor where KVM works, else qemu].
    #[arg(long, value_name = "VMM")]
    vmm: Option<VmmKind>,

    /// Make do with less where this host cannot give what is asked for. `firn status` says what was
    /// given.
    #[arg(long)]
    allow_degraded: bool,

    /// Print the sandbox as JSON.
    #[arg(long)]
    json: bool,
}

/// A sandbox that cannot be asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    /// What its programs come from makes no sense.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Neither of what there is.
    #[error("--network must be 'off' or 'full', got '{0}'")]
    Network(String),
    /// Not yet.
    #[error("--network {0} is not there yet: sandboxes have no network, as with --network off")]
    NoNetwork(String),
    /// A path that is none.
    #[error("cannot make {path:?} absolute")]
    Path {
        /// As it was given.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Create {
    pub(super) async fn run(
        &self,
        client: &Client,
        config: &Config,
        output: &mut Output,
    ) -> Result<u8, Failed> {
        let source = self.source().map_err(CreateError::from)?;
        // What cannot be had is said before anything is built.
        check_network(self.network.as_deref().or(source.network.as_deref()))?;
        let request = self.request(source.resolve(config, output).map_err(CreateError::from)?)?;
        let sandbox = client.create(&request, &mut |phase| output.doing(phase)).await;
        output.clear();
        let sandbox = sandbox?;
        if self.json {
            output.json(&sandbox)?;
        } else {
            output.stdout(format!("{}\n", sandbox.session_id).as_bytes())?;
        }
        Ok(0)
    }

    fn request(&self, source: Source) -> Result<CreateRequest, Failed> {
        check_network(self.network.as_deref().or(source.network.as_deref()))?;
        let workspace = self.workspace.as_deref().map(|text| {
            let (path, access) = parse_workspace(text);
            Ok::<_, CreateError>(Workspace { host: absolute(path)?, access })
        });
        let mut mounts = Vec::new();
        for text in &self.mounts {
            let (host, target, access) = parse_mount(text).map_err(SpecError::from)?;
            let target = Text::from(target.as_os_str().to_owned());
            mounts.push(MountRequest { host: absolute(host)?, target, access });
        }
        Ok(CreateRequest {
            name: self.name.clone(),
            description: self.description.clone(),
            agent: self.agent.clone(),
            owner: self.owner.clone(),
            idempotency_key: self.idempotency_key.clone(),
            lease_ms: self.lease.map(milliseconds),
            idle_timeout_ms: self.idle_timeout.map(milliseconds),
            lifetime_ms: self.lifetime.map(milliseconds),
            isolation: Some(Isolation::from(self.isolation)),
            allow_degraded: self.allow_degraded,
            environment: source.environment.map(Text::from),
            store: self.store.map(Into::into),
            with: source.packages,
            profile: source.profile,
            cpus: self.cpus.map(|cpus| cpus.to_string()),
            memory_bytes: self.memory.map(|size| size.0),
            disk_bytes: self.disk.map(|size| size.0),
            processes: self.pids,
            network: Some("off".to_owned()),
            workspace: workspace.transpose()?,
            mounts,
            user: self.user.clone(),
            vmm: self.vmm.map(|vmm| match vmm {
                VmmKind::CloudHypervisor => Vmm::CloudHypervisor,
                VmmKind::Qemu => Vmm::Qemu,
            }),
        })
    }

    /// What its programs come from.
    fn source(&self) -> Result<Source, SourceError> {
        let Create { environment, with, profile, spec, .. } = self;
        // Before a file is read for nothing.
        if environment.is_some() && (with.is_some() || profile.is_some() || spec.is_some()) {
            return Err(SourceError::Several);
        }
        let listed = Source::listed(with.as_deref(), profile.as_deref(), spec.as_deref())?;
        Ok(listed.unwrap_or_else(|| match environment.as_deref() {
            None | Some("host") => Source::default(),
            Some(name) => Source::environment(name),
        }))
    }
}

/// Says no to a network that cannot be had: nobody gets less than they believe to have.
pub(super) fn check_network(network: Option<&str>) -> Result<(), CreateError> {
    match network {
        None | Some("off") => Ok(()),
        Some(network) if network == "full" || network.starts_with("allow=") => {
            Err(CreateError::NoNetwork(network.to_owned()))
        }
        Some(other) => Err(CreateError::Network(other.to_owned())),
    }
}

/// The daemon is somewhere else.
pub(super) fn absolute(path: &Path) -> Result<Text, CreateError> {
    let absolute =
        std::path::absolute(path).map_err(|source| CreateError::Path { path: path.to_owned(), source })?;
    Ok(Text::from(absolute.into_os_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causes::in_full;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        create: Create,
    }

    fn request(words: &[&str]) -> Result<CreateRequest, String> {
        let words = std::iter::once("create").chain(words.iter().copied());
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        let source = cli.create.source().map_err(|error| in_full(&error))?;
        cli.create.request(source).map_err(|error| in_full(&error))
    }

    fn refused(words: &[&str]) -> String {
        request(words).unwrap_err()
    }

    #[test]
    fn no_source_is_the_hosts_own_tools() {
        let request = request(&[]).unwrap();
        assert_eq!((request.environment, request.with, request.profile), (None, vec![], None));
        assert_eq!(request.isolation, Some(Isolation::Vm));
        assert_eq!(super::tests::request(&["--env", "host"]).unwrap().environment, None);
    }

    #[test]
    fn there_is_one_source_at_most() {
        for words in [
            &["--with", "bash", "--profile", "strict"][..],
            &["--env", "host", "--spec", "x"],
            &["--profile", "strict", "--spec", "x"],
        ] {
            assert_eq!(refused(words), "specify only one of --env, --profile, --spec, or --with");
        }
    }

    #[test]
    fn a_network_is_never_silently_off() {
        assert!(request(&["--network", "off"]).is_ok());
        assert_eq!(refused(&["--network", "some"]), "--network must be 'off' or 'full', got 'some'");
        for network in ["full", "allow=example.org"] {
            assert!(refused(&["--network", network]).contains("is not there yet"), "{network}");
        }
        assert!(refused(&["--profile", "build-install"]).contains("--network full is not there yet"));
        assert!(request(&["--profile", "build-install", "--network", "off"]).is_ok());
    }

    #[test]
    fn packages_and_profiles_become_requirements() {
        let custom = request(&["--with", "bash,git"]).unwrap();
        assert_eq!(custom.with, ["bash", "git"]);
        assert_eq!(custom.profile, None);
        let strict = request(&["--profile", "strict"]).unwrap();
        assert_eq!(strict.with, ["coreutils", "bash"]);
        assert_eq!(strict.profile.as_deref(), Some("strict"));
        assert_eq!(
            refused(&["--profile", "../strict"]),
            "unknown profile '../strict'. Available: build-install, offline-review, strict, debug-network"
        );
        assert_eq!(refused(&["--with", ""]), "--with requires at least one package name");
        assert!(refused(&["--with", "a;b"]).contains("\"a;b\" is no package name"));
    }

    #[test]
    fn paths_are_absolute_before_the_daemon_sees_them() {
        let here = std::env::current_dir().unwrap();
        let request = request(&["-w", ".:ro", "--mount", "x:/y"]).unwrap();
        assert_eq!(request.workspace.unwrap().host.as_path(), here);
        assert_eq!(request.mounts[0].host.as_path(), here.join("x"));
        assert_eq!(request.mounts[0].target.as_path(), Path::new("/y"));
        assert!(refused(&["--mount", "x"]).contains("is not HOST:GUEST"));
    }

    #[test]
    fn all_options_are_in_the_request() {
        let words = "-i jail --name n --agent a --description d --owner o --idempotency-key k --lease 10m \
                     --idle-timeout 5s --lifetime 1h --memory 512M --disk 64M --cpus 0.5 --pids 9 \
                     --user sandbox --vmm qemu --allow-degraded --network off";
        let words: Vec<&str> = words.split_whitespace().collect();
        insta::assert_json_snapshot!(request(&words).unwrap());
        assert!(refused(&["--lease", "10m"]).contains("--owner"));
        assert!(refused(&["--lease", "0", "--owner", "o"]).contains("--lease"));
    }
}
