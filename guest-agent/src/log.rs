//! What the agent says to nobody in particular: errors, to the kernel's log in a lean guest, to
//! stderr elsewhere. Never more than that: a quiet boot stays quiet.

use std::fmt::Display;
use std::fs::File;
use std::io::Write as _;
use std::sync::OnceLock;

static KERNEL: OnceLock<File> = OnceLock::new();

/// Sends errors to the kernel's log from now on.
pub(crate) fn use_kernel_log() {
    if let Ok(kernel) = File::options().write(true).open("/dev/kmsg") {
        let _ = KERNEL.set(kernel);
    }
}

/// Says an error. A log that cannot be written is no reason to fail.
pub(crate) fn error(what: impl Display) {
    let _ = match KERNEL.get() {
        // Level 3 is the kernel's "error", which reaches the console of a quiet boot.
        Some(kernel) => {
            let mut kernel = kernel;
            kernel.write_all(format!("<3>firn-agent: {what}").as_bytes())
        }
        None => std::io::stderr().write_all(format!("firn-agent: {what}\n").as_bytes()),
    };
}

/// An error with all its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
