//! QEMU's monitor, QMP, through the `qapi` crate, whose types are generated from QEMU's schema.

use super::super::VmmError;
use super::arguments::FS_QUEUE;
use crate::spec::protection::Accelerator;
use crate::sys::socket;
use futures::StreamExt as _;
use qapi::futures::{QapiService, QmpStreamTokio};
use qapi::qmp::{self, QmpCommand};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, WriteHalf};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// How much QEMU may say on a connection, in bytes. It says little; a QEMU that the guest
/// has taken over could say anything.
const MOST: u64 = 1 << 20;

/// How long an answer may take. QEMU starts slowly on a loaded host.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to the monitor. QEMU serves one at a time, so dropping it closes it.
pub(super) struct Monitor {
    service: QapiService<QmpStreamTokio<WriteHalf<UnixStream>>>,
    reason: watch::Receiver<Option<String>>,
    reader: AbortHandle,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn silent(source: std::io::Error) -> VmmError {
    VmmError::Silent { vmm: "qemu", request: "qmp_capabilities", source: Some(source) }
}

impl Monitor {
    /// Starts a conversation and asks what runs the guest. QEMU need not be up.
    pub(super) async fn open(socket: &Path) -> Result<(Monitor, Accelerator), VmmError> {
        let asking = async {
            let (read, write) = tokio::io::split(socket::connect(socket).await.map_err(silent)?);
            let negotiation = QmpStreamTokio::open_split(read.take(MOST), write).await.map_err(silent)?;
            let (service, mut events) = negotiation.negotiate().await.map_err(silent)?.into_parts();
            let (tell, reason) = watch::channel(None);
            let reading = tokio::spawn(async move {
                while let Some(Ok(event)) = events.next().await {
                    if let qmp::Event::SHUTDOWN { data, .. } = event {
                        tell.send_replace(Some(format!("{:?}", data.reason).replace('_', "-")));
                    }
                }
            });
            let monitor = Monitor { service, reason, reader: reading.abort_handle() };
            let kvm = monitor.execute("query-kvm", qmp::query_kvm {}).await?;
            Ok((monitor, if kvm.enabled { Accelerator::Kvm } else { Accelerator::Software }))
        };
        let late = |_elapsed| VmmError::Silent { vmm: "qemu", request: "qmp_capabilities", source: None };
        tokio::time::timeout(PATIENCE, asking).await.map_err(late)?
    }

    /// Stops the guest's processors.
    pub(super) async fn stop(&self) -> Result<(), VmmError> {
        self.execute("stop", qmp::stop {}).await.map(drop)
    }

    /// Lets them go on.
    pub(super) async fn go_on(&self) -> Result<(), VmmError> {
        self.execute("cont", qmp::cont {}).await.map(drop)
    }

    /// Adds the vhost-user export that listens at `socket` (a path of QEMU's), at a free port.
    pub(super) async fn add_export(
        &self,
        id: &str,
        tag: &str,
        socket: String,
        port: String,
    ) -> Result<(), VmmError> {
        let address = qmp::UnixSocketAddress { path: socket, abstract_: None, tight: None };
        let connected = qmp::ChardevSocket {
            addr: qmp::SocketAddressLegacy::unix(address.into()),
            server: Some(false),
            base: qmp::ChardevCommon { logappend: None, logfile: None },
            nodelay: None,
            reconnect: None,
            telnet: None,
            tls_authz: None,
            tls_creds: None,
            tn3270: None,
            wait: None,
            websocket: None,
        };
        let backend = qmp::ChardevBackend::socket(connected.into());
        self.execute("chardev-add", qmp::chardev_add { id: id.to_owned(), backend }).await?;
        let arguments = [("chardev", id), ("tag", tag)].map(|(name, value)| (name.to_owned(), value.into()));
        let queue = [("queue-size".to_owned(), FS_QUEUE.into())];
        let device = qmp::device_add {
            driver: "vhost-user-fs-pci".to_owned(),
            bus: Some(port),
            id: Some(id.to_owned()),
            arguments: arguments.into_iter().chain(queue).collect(),
        };
        self.execute("device_add", device).await.map(drop)
    }

    async fn execute<C: QmpCommand + 'static>(
        &self,
        request: &'static str,
        command: C,
    ) -> Result<C::Ok, VmmError> {
        let refused =
            |error: qapi::ExecuteError| VmmError::Refused { vmm: "qemu", request, reason: error.to_string() };
        match tokio::time::timeout(PATIENCE, self.service.execute(command)).await {
            Ok(answer) => answer.map_err(refused),
            Err(_elapsed) => Err(VmmError::Silent { vmm: "qemu", request, source: None }),
        }
    }

    /// Why the guest shut down, in QEMU's words, once QEMU has ended.
    pub(super) async fn shutdown_reason(&self) -> String {
        // The event was written before QEMU ended, and may still be on its way to us.
        let mut reason = self.reason.clone();
        let told = tokio::time::timeout(Duration::from_millis(200), reason.wait_for(Option::is_some)).await;
        match told {
            Ok(Ok(reason)) => reason.clone().unwrap_or_default(),
            _ => "no reason given".to_owned(),
        }
    }
}
