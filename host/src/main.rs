//! The `firn` binary.

fn main() -> std::process::ExitCode {
    firn::cli::main()
}
