//! The first stage of a guest with systemd as PID 1, as NixOS's initial ramdisk is one: modules, the store,
//! then systemd in its place. Static: `make build-tests` builds it.
#![allow(clippy::unwrap_used, reason = "a panic ends the guest and the test, as any failure here should")]

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// Where NixOS has the host's store, and its tag: of one that is shared there is a folder.
const STORE: &str = "/nix/store";
const TAG: &str = "store";

fn main() {
    for name in std::fs::read_to_string("/modules/order").unwrap().lines() {
        // One that is not for this machine fails, as it may.
        if let Ok(module) = File::open(format!("/modules/{name}")) {
            let _ = finit_module(module, c"", ModuleInitFlags::empty());
        }
    }
    if Path::new(STORE).exists() {
        mount(Some(TAG), STORE, Some("virtiofs"), MsFlags::empty(), None::<&str>).unwrap();
    }
    panic!("{}", Command::new("/usr/lib/systemd/systemd").env_clear().exec());
}
