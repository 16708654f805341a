//! `firn env`: the environments that are known here, and those that were built.

use super::ask;
use super::build::Build;
use super::exit::Failed;
use super::output::Output;
use super::table::Table;
use crate::config::Config;
use crate::env::resolver::{Known, Resolver};
use crate::env::{Environment, EnvironmentError, HOST, Interpreter};
use serde::Serialize;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

/// The environments of sandboxes.
#[derive(Debug, clap::Args)]
pub(super) struct Env {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the environments that have a name here
    #[command(after_help = "Examples:\n  firn env list\n  firn env list --json | jq -r '.[].name'")]
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one: what it runs, its limits, and the store paths that a sandbox sees
    #[command(after_help = "Examples:\n  firn env inspect python\n  firn env inspect ./result --json")]
    Inspect {
        /// A name, a folder, or a flake's output.
        #[arg(value_name = "ENV")]
        environment: OsString,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Build one with Nix: the same as `firn build`
    #[command(after_help = "Examples:\n  firn env build .#data")]
    Build(Build),
    /// Let go of what was built and is not used: Nix may delete it then
    ///
    /// What a name stands for is kept, and what a sandbox that is not destroyed was made with.
    #[command(
        after_help = "Examples:\n  firn env gc\n  firn env gc data              and of what `data` stands for"
    )]
    Gc {
        /// Names to forget first.
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Why environments cannot be listed or let go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvCommandError {
    /// The host's own programs are no folder.
    #[error("these are this host's own programs: there is nothing to inspect")]
    Host,
    /// Nothing is known by this name.
    #[error("nothing that was built is called {0:?}")]
    Unknown(String),
    /// The roots cannot be read or removed.
    #[error("cannot let go of what was built")]
    Collect(#[source] io::Error),
    /// The folder is no environment.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    name: String,
    /// None: it is not built yet, or the host's own.
    path: Option<PathBuf>,
    /// A reference to a flake, a folder, or `host`.
    origin: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Inspected {
    name: String,
    path: PathBuf,
    interpreter: Option<Interpreter>,
    timeout_seconds: Option<u64>,
    memory_bytes: u64,
    closure: Option<Vec<PathBuf>>,
}

impl Env {
    pub(super) fn run(&self, config: Config, output: &mut Output) -> Result<u8, Failed> {
        match &self.verb {
            Verb::List { json } => list(&config, *json, output),
            Verb::Inspect { environment, json } => inspect(&config, environment, *json, output),
            Verb::Build(build) => build.run(&config, output),
            Verb::Gc { names } => collect(config, names, output),
        }
    }
}

fn list(config: &Config, json: bool, output: &mut Output) -> Result<u8, Failed> {
    let known = Resolver::new(config)?.known(&mut |told| output.told(&told));
    output.clear();
    // The last of a name wins. The host's own interpreters are what a name means that nobody else has.
    let own = Interpreter::ALL.into_iter().filter(|interpreter| interpreter.is_there());
    let mut listed: Vec<Listed> = own
        .map(|own| Listed { name: own.environment().to_owned(), path: None, origin: HOST.to_owned() })
        .collect();
    for Known { name, folder, origin } in known {
        listed.retain(|earlier| earlier.name != name);
        listed.push(Listed { name, path: folder, origin });
    }
    listed.sort_by(|one, other| one.name.cmp(&other.name));
    if json {
        output.json(&listed)?;
        return Ok(0);
    }
    let mut table = Table::new(&[("NAME", 16), ("PATH", 4), ("FROM", 4)]);
    for Listed { name, path, origin } in &listed {
        let path = match path {
            Some(path) => path.display().to_string(),
            None if origin == HOST => "this host's own".to_owned(),
            None => "not built".to_owned(),
        };
        table.row([name, &path, origin]);
    }
    output.stdout(table.render().as_bytes())?;
    Ok(0)
}

fn inspect(config: &Config, environment: &OsString, json: bool, output: &mut Output) -> Result<u8, Failed> {
    let folder = Resolver::new(config)?.find(environment, &mut |told| output.told(&told));
    output.clear();
    let folder = folder?.ok_or(EnvCommandError::Host)?;
    let inspected = match Environment::find(folder.as_os_str()).map_err(EnvCommandError::from)? {
        Environment::Host | Environment::Code(_) => return Err(EnvCommandError::Host.into()),
        Environment::Artifact(artifact) => Inspected {
            name: artifact.name,
            path: artifact.folder,
            interpreter: None,
            timeout_seconds: Some(artifact.timeout.as_secs()),
            memory_bytes: artifact.memory,
            closure: None,
        },
        Environment::Closure(closure) => Inspected {
            name: closure.metadata.name,
            path: closure.folder,
            interpreter: Some(closure.metadata.interpreter),
            timeout_seconds: Some(closure.metadata.timeout.as_secs()),
            memory_bytes: closure.metadata.memory,
            closure: Some(closure.paths),
        },
        Environment::Guest(guest) => Inspected {
            name: guest.name().to_owned(),
            path: guest.image.dir.clone(),
            interpreter: None,
            timeout_seconds: None,
            memory_bytes: guest.least_memory(),
            closure: Some(guest.store.map_or_else(Vec::new, |store| store.paths)),
        },
    };
    if json {
        output.json(&inspected)?;
        return Ok(0);
    }
    let mut text = format!(
        "name         {}\npath         {}\nmemory       {} MiB\n",
        inspected.name,
        inspected.path.display(),
        inspected.memory_bytes >> 20,
    );
    if let Some(seconds) = inspected.timeout_seconds {
        text.push_str(&format!("timeout      {seconds} s\n"));
    }
    match (inspected.interpreter, inspected.closure) {
        (interpreter, Some(paths)) => {
            match interpreter {
                Some(interpreter) => text.push_str(&format!("interpreter  {}\n", interpreter.program())),
                None => text.push_str("vm           a guest with a kernel and an init of its own\n"),
            }
            text.push_str(&format!("closure      {} paths\n", paths.len()));
            paths.iter().for_each(|path| text.push_str(&format!("  {}\n", path.display())));
        }
        _ => text.push_str("jail         its own wrapper, bin/run\n"),
    }
    output.stdout(super::output::printable(&text).as_bytes())?;
    Ok(0)
}

fn collect(config: Config, names: &[String], output: &mut Output) -> Result<u8, Failed> {
    let built = Resolver::new(&config)?.built().clone();
    for name in names {
        if !built.forget(name).map_err(EnvCommandError::Collect)? {
            return Err(EnvCommandError::Unknown(name.clone()).into());
        }
    }
    let sandboxes = ask(config, async |client| Ok(client.list(None).await?))?;
    let used: Vec<PathBuf> = sandboxes.into_iter().map(|sandbox| sandbox.rootfs_path.into()).collect();
    let gone = built.collect(&used).map_err(EnvCommandError::Collect)?;
    let text: String = gone.iter().map(|path| format!("{}\n", path.display())).collect();
    output.stdout(text.as_bytes())?;
    Ok(0)
}
