//! The command line.

#[expect(dead_code, reason = "wired up with the command line")]
mod image;

/// Runs the command the process was started with.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
