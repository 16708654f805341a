//! QEMU's monitor, QMP, through the `qapi` crate, whose types are generated from QEMU's schema.

use super::super::{Accelerator, VmmError};
use futures::StreamExt as _;
use qapi::futures::{QapiService, QmpStreamTokio};
use qapi::qmp;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as BlockingStream;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, WriteHalf};
use tokio::net::UnixStream;
use tokio::sync::watch;

/// How much QEMU may say in the life of a sandbox, in bytes. It says little; a QEMU that the guest
/// has taken over could say anything.
const MOST: u64 = 1 << 20;

/// How long an answer may take. QEMU starts slowly on a loaded host.
const PATIENCE: Duration = Duration::from_secs(30);

/// Our end of the monitor.
#[derive(Debug)]
pub(super) struct Monitor {
    stream: Option<UnixStream>,
    service: Option<Service>,
    reason: watch::Receiver<Option<String>>,
    tell: watch::Sender<Option<String>>,
}

struct Service(
    #[expect(dead_code, reason = "dropping it closes the monitor")]
    QapiService<QmpStreamTokio<WriteHalf<UnixStream>>>,
);

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Service")
    }
}

fn silent(source: std::io::Error) -> VmmError {
    VmmError::Silent { vmm: "qemu", request: "qmp_capabilities", source: Some(source) }
}

impl Monitor {
    /// Both ends of a new monitor: ours, and the one QEMU inherits.
    pub(super) fn pair() -> Result<(Monitor, OwnedFd), VmmError> {
        let (ours, qemus) = BlockingStream::pair().map_err(silent)?;
        ours.set_nonblocking(true).map_err(silent)?;
        let stream = UnixStream::from_std(ours).map_err(silent)?;
        let (tell, reason) = watch::channel(None);
        Ok((Monitor { stream: Some(stream), service: None, reason, tell }, qemus.into()))
    }

    /// Starts the conversation and asks what runs the guest. Once.
    pub(super) async fn negotiate(&mut self) -> Result<Accelerator, VmmError> {
        let no_answer = || VmmError::Silent { vmm: "qemu", request: "query-kvm", source: None };
        let Some(stream) = self.stream.take() else { return Err(no_answer()) };
        let (read, write) = tokio::io::split(stream);
        let asking = async {
            let negotiation = QmpStreamTokio::open_split(read.take(MOST), write).await.map_err(silent)?;
            let (service, mut events) = negotiation.negotiate().await.map_err(silent)?.into_parts();
            let tell = self.tell.clone();
            tokio::spawn(async move {
                while let Some(Ok(event)) = events.next().await {
                    if let qmp::Event::SHUTDOWN { data, .. } = event {
                        tell.send_replace(Some(format!("{:?}", data.reason).replace('_', "-")));
                    }
                }
            });
            let kvm = service.execute(qmp::query_kvm {}).await.map_err(|error| VmmError::Refused {
                vmm: "qemu",
                request: "query-kvm",
                reason: error.to_string(),
            })?;
            self.service = Some(Service(service));
            Ok(if kvm.enabled { Accelerator::Kvm } else { Accelerator::Software })
        };
        tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_elapsed| Err(no_answer()))
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
