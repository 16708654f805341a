//! The `firn` binary.

/// musl's own allocator asks the kernel for memory, and gives it back, with nearly every allocation.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> std::process::ExitCode {
    firn::cli::main()
}
