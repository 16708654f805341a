//! The command line: one file per verb, all printing in `output`, every error in `exit`.

mod attach;
mod build;
mod catalog;
mod cp;
mod create;
mod daemon;
mod destroy;
mod duration;
mod env;
mod events;
mod exec;
mod exit;
mod image;
mod lease;
mod list;
mod logs;
mod manage;
mod mcp;
mod output;
mod pause;
mod prune;
mod ps;
mod rename;
mod run;
mod session;
mod stats;
mod status;
mod stop;
mod table;
mod update;
mod version;

use crate::api::client::Client;
use crate::api::phase::describe_step;
use crate::config::{Autostart, Config, Program};
use crate::vm::image::Images;
use clap::{Parser, Subcommand};
use doctor::Marks;
use exit::Failed;
use output::Output;
use std::io::IsTerminal as _;
use std::process::ExitCode;

/// Runs untrusted code and coding agents in disposable sandboxes.
#[derive(Debug, Parser)]
#[command(
    name = "firn",
    version,
    about,
    disable_help_subcommand = true,
    after_help = "Examples:\n  \
        firn run -- python3 -c 'print(6*7)'       run a command in a fresh microVM\n  \
        firn run -i jail -- python3 -c 'print(1)' the same in a jail: milliseconds\n  \
        firn run -w . -- make test                with this folder at /workspace\n  \
        firn run -t -- bash                       a shell to look around in\n  \
        firn daemon status                        what runs sandboxes in the background\n  \
        firn doctor                               what this host can do, and what is missing"
)]
struct Cli {
    /// Start no daemon when none is there. So does FIRN_NO_AUTOSTART=1.
    #[arg(long, global = true)]
    no_autostart: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Run>),
    Exec(Box<exec::Exec>),
    Enter(exec::Enter),
    Attach(attach::Attach),
    Session(session::Sessions),
    Repl(session::Repl),
    #[command(flatten)]
    Manage(manage::Verb),
    Mcp(Box<mcp::Mcp>),
    Daemon(daemon::Daemon),
    Build(build::Build),
    Catalog(catalog::Catalog),
    Env(env::Env),
    Image(image::ImageArgs),
    Doctor(doctor::DoctorArgs),
    Completions(Completions),
}

/// The same with the verbs that are used most, and nothing else: to put all verbs together takes longer
/// than to ask the daemon.
#[derive(Debug, Parser)]
#[command(name = "firn", disable_help_subcommand = true)]
struct Brief {
    #[arg(long, global = true)]
    no_autostart: bool,

    #[command(subcommand)]
    command: BriefCommand,
}

#[derive(Debug, Subcommand)]
enum BriefCommand {
    Run(Box<run::Run>),
    Exec(Box<exec::Exec>),
}

impl Cli {
    /// What the process was started with.
    fn read() -> Result<Cli, clap::Error> {
        let verb = std::env::args_os().nth(1);
        if verb.is_some_and(|verb| verb == "run" || verb == "exec")
            && let Ok(Brief { no_autostart, command }) = Brief::try_parse()
        {
            let command = match command {
                BriefCommand::Run(run) => Command::Run(run),
                BriefCommand::Exec(exec) => Command::Exec(exec),
            };
            return Ok(Cli { no_autostart, command });
        }
        // It is also what explains mistakes, and itself.
        Cli::try_parse()
    }
}

/// Print a completion script for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  firn completions bash > /etc/bash_completion.d/firn")]
struct Completions {
    /// The shell.
    shell: clap_complete::Shell,
}

mod doctor;

/// Runs the command the process was started with.
pub fn main() -> ExitCode {
    // Folders are made with the permissions they need: root's helpers pass through some as strangers.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let cli = match Cli::read() {
        Ok(cli) => cli,
        // clap prints help on stdout and mistakes on stderr, in the terminal's width and colours.
        Err(error) => {
            let code = if error.use_stderr() { exit::USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let mut output = Output::standard();
    let runs_none = match &cli.command {
        Command::Manage(_) | Command::Repl(_) | Command::Build(_) | Command::Catalog(_) | Command::Env(_) => {
            true
        }
        Command::Session(sessions) => !sessions.runs_code(),
        Command::Mcp(mcp) => mcp.is_about_clients(),
        _ => false,
    };
    match dispatch(cli, &mut output) {
        Ok(code) => ExitCode::from(code),
        Err(failed) => {
            output.failure(&failed);
            ExitCode::from(if runs_none { failed.plain_code() } else { failed.code() })
        }
    }
}

/// Does what takes a daemon: `work` is given the way to it.
fn ask<T>(config: Config, work: impl AsyncFnOnce(&Client) -> Result<T, Failed>) -> Result<T, Failed> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failed::Runtime)?;
    let client = Client::new(config);
    let done = runtime.block_on(work(&client));
    // A read of stdin may be under way in a thread, and nobody will end it.
    runtime.shutdown_background();
    done
}

/// The configuration of a verb that asks a daemon.
fn configure(no_autostart: bool) -> Result<Config, Failed> {
    let mut config = Config::read()?;
    if no_autostart {
        config.autostart = Autostart::Forbidden;
    }
    Ok(config)
}

fn dispatch(Cli { command, no_autostart }: Cli, output: &mut Output) -> Result<u8, Failed> {
    match command {
        Command::Run(run) => run.run(configure(no_autostart)?, output),
        Command::Exec(exec) => exec.run(configure(no_autostart)?, output),
        Command::Enter(enter) => enter.run(configure(no_autostart)?, output),
        Command::Attach(attach) => attach.run(configure(no_autostart)?, output),
        Command::Session(sessions) => sessions.run(configure(no_autostart)?, output),
        Command::Repl(repl) => repl.run(configure(no_autostart)?, output),
        Command::Mcp(mcp) => mcp.run(configure(no_autostart)?, output),
        Command::Daemon(daemon) => daemon.run(configure(no_autostart)?, output),
        Command::Manage(verb) => verb.run(configure(no_autostart)?, output),
        Command::Build(build) => build.run(&Config::read()?, output),
        Command::Catalog(catalog) => catalog.run(&Config::read()?, output),
        Command::Env(env) => env.run(configure(no_autostart)?, output),
        Command::Image(args) => {
            let config = Config::read()?;
            let images = Images::new(&config.cache_dir);
            let mut out = Vec::new();
            // Only `build` needs one, and says so when it has none.
            let agent = config.program(Program::Agent).unwrap_or_else(|_missing| "firn-agent".into());
            let done =
                image::run(&args, &images, &agent, &mut out, &mut |step| output.doing(&describe_step(&step)));
            output.clear();
            output.stdout(&out)?;
            done?;
            Ok(0)
        }
        Command::Doctor(args) => {
            let config = Config::read()?;
            let report = doctor::examine(&config)?;
            let marks = if std::io::stdout().is_terminal() { Marks::Signs } else { Marks::Words };
            let mut out = Vec::new();
            doctor::write(&args, &report, marks, &mut out).map_err(Failed::Stdout)?;
            output.stdout(&out)?;
            Ok(doctor::exit_code(&report))
        }
        Command::Completions(Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(
                shell,
                &mut <Cli as clap::CommandFactory>::command(),
                "firn",
                &mut script,
            );
            output.stdout(&script)?;
            Ok(0)
        }
    }
}
