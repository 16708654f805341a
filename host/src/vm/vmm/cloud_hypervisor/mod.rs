//! cloud-hypervisor: the VMM wherever KVM really works. Written against v53.
//!
//! ```text
//!   firn ── REST (UNIX `api.sock`) ─▶ cloud-hypervisor ── vhost-user ── virtiofsd (the exports)
//!    ├───── UNIX `vsock`, `console` ─▶    │
//!    └───── FIFO: events ◀────────────────┘
//! ```
//!
//! It is started empty, told the machine over its API, asked what it made of it, and told to boot.
//! From then on it is only watched: events say how the guest ended, the process that it ended.
//! All it needs of the host's files comes by descriptor, so its namespace has none.

mod client;
mod config;
mod events;

#[cfg(test)]
mod contract;

use super::KVM;
use super::{Confinement, Machine, Remains, SOCKETS, Vmm, VmmError, role};
use crate::spec::protection::Accelerator;
use crate::sys::bubblewrap::Bubblewrap;
use crate::sys::identity::Identity;
use crate::sys::process::{Helper, ProcessError, ProcessId, Role};
use crate::sys::socket;
use crate::sys::tail::{Tail, make_fifo, open_fifo};
use async_trait::async_trait;
use client::{ApiError, Client, State};
use config::{Files, Fs, VmConfig, not_applied};
use events::Life;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::watch;

const ROLE: Role = role("cloud-hypervisor");
const NAME: &str = ROLE.name;

/// The API's socket, in the folder that it does not see.
const API: &str = "api.sock";

/// The FIFO of events, in the same.
const EVENTS: &str = "vmm.events";

/// The console's socket in the folder of sockets.
const CONSOLE: &str = "console";

/// How long cloud-hypervisor may take to exit after the guest was turned off, or to be gone after
/// it was killed.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// How long the last of what a process wrote may take to reach us after it ended.
const LAST_WORDS_PATIENCE: Duration = Duration::from_millis(500);

/// A running cloud-hypervisor.
#[derive(Debug)]
pub(crate) struct CloudHypervisor {
    helper: Helper,
    client: Client,
    /// What the guest wrote to its serial port, once it has one. What cloud-hypervisor itself says is the
    /// helper's.
    console: Option<Tail>,
    /// What events told; its sender is gone when the process is.
    life: watch::Receiver<Life>,
}

impl CloudHypervisor {
    /// Starts it and boots the guest. Returns when the guest's processors run.
    ///
    /// The sockets of [`Machine::exports`] have to listen already, and to go on: with one that
    /// nobody serves, cloud-hypervisor blocks for a minute and answers nothing, so the caller
    /// should be ready to drop this when an export ends.
    pub(crate) async fn start(
        program: &Path,
        machine: &Machine,
        confinement: Confinement<'_>,
    ) -> Result<CloudHypervisor, VmmError> {
        for (_tag, socket) in &machine.exports {
            let path = confinement.sockets.join(socket);
            std::fs::metadata(&path).map_err(|source| VmmError::Open { path, source })?;
        }
        let mut namespace = Bubblewrap::new(confinement.bwrap, confinement.identity);
        namespace.device(Path::new(KVM));
        namespace.in_folder(confinement.sockets);
        namespace.read_write(confinement.sockets, Path::new(SOCKETS));

        // It inherits a socket that listens, so nobody waits for a path to appear: the first
        // connection is accepted as soon as it is up, and refused when it is not coming up.
        let folder = confinement.station.folder;
        let api = folder.join(API);
        let listener = socket::listen(&api, Identity::Caller).map_err(unopened(&api))?;
        let events = folder.join(EVENTS);
        let events_end = namespace.pass(make_fifo(&events).map_err(unopened(&events))?);
        let life = follow_events(folder, Life::Before)?;
        let files = Files {
            kernel: inherit(&mut namespace, &machine.kernel)?,
            initrd: inherit(&mut namespace, &machine.initrd)?,
            console: format!("{SOCKETS}/{CONSOLE}"),
        };
        let config = VmConfig::new(machine, files);
        let args: Vec<OsString> = [
            "--api-socket".to_owned(),
            format!("fd={}", namespace.pass(listener.into())),
            "--event-monitor".to_owned(),
            format!("fd={events_end}"),
            "--seccomp".to_owned(),
            "true".to_owned(),
        ]
        .map(OsString::from)
        .to_vec();

        let helper = namespace.command(ROLE, program, &args)?.start(confinement.station)?;
        let mut starting = CloudHypervisor { helper, client: Client::new(&api), console: None, life };
        match starting.bring_up(&config, &confinement.sockets.join(CONSOLE)).await {
            Ok(()) => Ok(starting),
            Err(error) => {
                starting.destroy().await;
                Err(error)
            }
        }
    }

    /// Takes over what runs. `None`: it has ended.
    pub(crate) async fn adopt(
        process: ProcessId,
        folder: &Path,
        sockets: &Path,
    ) -> Result<Option<CloudHypervisor>, VmmError> {
        let Some(helper) = Helper::adopt(ROLE, process, folder)? else { return Ok(None) };
        let console = follow_console(&sockets.join(CONSOLE)).await?;
        let life = follow_events(folder, Life::Running)?;
        let client = Client::new(&folder.join(API));
        Ok(Some(CloudHypervisor { helper, client, console: Some(console), life }))
    }

    async fn bring_up(&mut self, config: &VmConfig, console: &Path) -> Result<(), VmmError> {
        let result = tokio::select! {
            result = boot(&self.client, config, console) => result,
            _ = self.helper.ended() => return Err(self.failed().await),
        };
        let error = match result {
            Ok(console) => {
                self.console = Some(console);
                return Ok(());
            }
            Err(error) => error,
        };
        // When one of its threads panics it still answers, with an error that says nothing, and
        // then ends: its own words say more.
        match tokio::time::timeout(LAST_WORDS_PATIENCE, self.helper.ended()).await {
            Ok(_ended) => Err(self.failed().await),
            Err(_still_runs) => Err(error),
        }
    }

    /// Waits until events have told all they had, after the process ended.
    async fn last_words(&mut self) {
        let told = async { while self.life.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(LAST_WORDS_PATIENCE, told).await;
    }

    /// Why it ended, when the guest is not the reason.
    async fn failed(&mut self) -> VmmError {
        self.last_words().await;
        self.helper.failed().await.into()
    }
}

/// Tells an empty cloud-hypervisor what to be. Gives the guest's console.
async fn boot(client: &Client, config: &VmConfig, console: &Path) -> Result<Tail, VmmError> {
    let version = client.ping().await?.version;
    client.create(config).await?;
    let info = client.info().await?;
    let asked = serde_json::to_value(config).unwrap_or_default();
    let lost = not_applied(&asked, &info.config);
    if info.state != State::Created || !lost.is_empty() {
        return Err(VmmError::Refused {
            vmm: NAME,
            request: client::CREATE.name,
            reason: format!(
                "version {version} reports state {:?} and did not apply: {}",
                info.state,
                lost.join(", ")
            ),
        });
    }
    // It listens since it was created, and serves once it is booted.
    let console = follow_console(console).await?;
    client.boot().await?;
    Ok(console)
}

impl From<ApiError> for VmmError {
    fn from(error: ApiError) -> VmmError {
        let silent = |request, source| VmmError::Silent { vmm: NAME, request, source: Some(source) };
        let refused = |request, reason| VmmError::Refused { vmm: NAME, request, reason };
        match error {
            ApiError::Connect { call, source } => silent(call, source),
            ApiError::Broken { call, source } => silent(call, io::Error::other(source)),
            ApiError::Late { call, within } => {
                let waited = format!("waited {} s", within.as_secs());
                silent(call, io::Error::new(io::ErrorKind::TimedOut, waited))
            }
            ApiError::Refused { call, status, chain } => {
                refused(call, format!("{} ({status})", chain.join(": ")))
            }
            ApiError::TooLarge { call } => refused(call, "with too long an answer".to_owned()),
            ApiError::Unreadable { call, source } => refused(call, format!("unreadable answer, {source}")),
        }
    }
}

#[async_trait]
impl Vmm for CloudHypervisor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn accelerator(&self) -> Accelerator {
        Accelerator::Kvm
    }

    async fn ended(&mut self) -> VmmError {
        let told = tokio::select! {
            biased;
            Ok(()) = over(&mut self.life) => true,
            _ = self.helper.ended() => false,
        };
        if !told {
            self.last_words().await;
        }
        let life = *self.life.borrow();
        let how = match life {
            // It would run the guest a second time.
            Life::Reset | Life::Panicked => {
                self.helper.kill().await;
                if life == Life::Reset { "reset" } else { "panicked" }
            }
            Life::Off => {
                // This also happens to a guest whose VMM fails: it exits with 0 all the same, and
                // only what it complains of tells the difference.
                let _ = tokio::time::timeout(EXIT_PATIENCE, self.helper.ended()).await;
                self.last_words().await;
                let output = self.helper.output();
                if complains(&output) {
                    let status = "it gave the guest up".to_owned();
                    return ProcessError::Ended { name: NAME, status, output }.into();
                }
                "powered off"
            }
            Life::Before | Life::Running => return self.failed().await,
        };
        VmmError::GuestEnded { how: how.to_owned(), console: self.console() }
    }

    async fn attach(&mut self, tag: &str, socket: &str) -> Result<(), VmmError> {
        Ok(self.client.add_fs(&Fs::new(tag, socket)).await?)
    }

    async fn pause(&mut self) -> Result<(), VmmError> {
        Ok(self.client.pause().await?)
    }

    async fn resume(&mut self) -> Result<(), VmmError> {
        Ok(self.client.resume().await?)
    }

    fn remains(&self) -> Remains {
        Remains::CloudHypervisor { process: self.helper.id() }
    }

    fn release(self: Box<Self>) {
        self.helper.release();
    }

    async fn destroy(&mut self) {
        self.helper.kill().await;
    }

    fn console(&self) -> String {
        self.console.as_ref().map(Tail::text).unwrap_or_default()
    }
}

/// Waits until the guest has ended; fails when nothing more will be heard of it.
async fn over(life: &mut watch::Receiver<Life>) -> Result<(), watch::error::RecvError> {
    life.wait_for(|life| life.is_over()).await.map(drop)
}

/// Whether cloud-hypervisor logged an error or one of its threads panicked.
fn complains(output: &str) -> bool {
    output.contains("> ERROR:") || output.contains(" panicked at ")
}

/// Hands a file to the process by descriptor: no path of the host has to exist in its namespace.
/// It is opened again from there, so the process's identity has to be allowed to read it.
fn inherit(namespace: &mut Bubblewrap, path: &Path) -> Result<String, VmmError> {
    let file = File::open(path).map_err(|source| VmmError::Open { path: path.to_owned(), source })?;
    Ok(descriptor_path(namespace.pass(OwnedFd::from(file))))
}

fn follow_events(folder: &Path, before: Life) -> Result<watch::Receiver<Life>, VmmError> {
    let path = folder.join(EVENTS);
    let opened = open_fifo(&path).and_then(pipe::Receiver::from_owned_fd);
    Ok(events::follow(opened.map_err(unopened(&path))?, before))
}

async fn follow_console(path: &Path) -> Result<Tail, VmmError> {
    let connected = async { Tail::follow(socket::connect(path).await?.into_std()?.into()) };
    connected.await.map_err(unopened(path))
}

fn unopened(path: &Path) -> impl FnOnce(io::Error) -> VmmError {
    move |source| VmmError::Open { path: path.to_owned(), source }
}

/// A descriptor that is open in the process, by name.
fn descriptor_path(fd: i32) -> String {
    format!("/proc/self/fd/{fd}")
}

#[cfg(test)]
mod tests;
