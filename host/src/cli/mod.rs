//! The command line: one file per verb, all printing in `output`, every error in `exit`.

mod exit;
mod image;
mod output;
mod run;

use crate::config::{Config, Program};
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
        firn doctor                               what this host can do, and what is missing"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Run>),
    Image(image::ImageArgs),
    Doctor(doctor::DoctorArgs),
    Completions(Completions),
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
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // clap prints help on stdout and mistakes on stderr, in the terminal's width and colours.
        Err(error) => {
            let code = if error.use_stderr() { exit::USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let mut output = Output::standard();
    match dispatch(cli.command, &mut output) {
        Ok(code) => ExitCode::from(code),
        Err(failed) => {
            output.failure(&failed);
            ExitCode::from(failed.code())
        }
    }
}

fn dispatch(command: Command, output: &mut Output) -> Result<u8, Failed> {
    match command {
        Command::Run(run) => run.run(output),
        Command::Image(args) => {
            let config = Config::read()?;
            let images = Images::new(&config.cache_dir);
            let mut out = Vec::new();
            // Only `build` needs one, and says so when it has none.
            let agent = config.program(Program::Agent).unwrap_or_else(|_missing| "firn-agent".into());
            let done = image::run(&args, &images, &agent, &mut out, &mut |step| {
                output.doing(&image::describe(&step))
            });
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
