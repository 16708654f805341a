//! Vsock: the way to the host.

use crate::listen::Doorkeeper;
use firn_protocol::{AGENT_PORT, READY_PORT};
use std::io;
use std::time::Duration;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

/// How long to try to reach the host before the guest gives up.
const DIAL_PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait before the next try, and how long one may take.
const DIAL_PAUSE: Duration = Duration::from_millis(5);
const DIAL_TRY: Duration = Duration::from_secs(2);

/// Dials the host, which shows it that the guest is ready, and serves that connection like any other.
/// Whether it worked.
pub(super) async fn dial_host(doorkeeper: &Doorkeeper) -> bool {
    let dial = async {
        loop {
            let address = VsockAddr::new(VMADDR_CID_HOST, READY_PORT);
            if let Ok(Ok(stream)) = tokio::time::timeout(DIAL_TRY, VsockStream::connect(address)).await {
                return stream;
            }
            tokio::time::sleep(DIAL_PAUSE).await;
        }
    };
    match tokio::time::timeout(DIAL_PATIENCE, dial).await {
        Ok(stream) => {
            doorkeeper.admit(stream);
            true
        }
        Err(_elapsed) => false,
    }
}

/// Listens for the host. Inside the runtime.
pub(super) fn listen() -> io::Result<VsockListener> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, AGENT_PORT))
}

/// Accepts connections of the host, for ever.
pub(super) async fn accept(listener: &VsockListener, doorkeeper: &Doorkeeper) {
    loop {
        match listener.accept().await {
            // Any process in the guest could connect over the loopback transport; it is not the host.
            Ok((stream, from)) if from.cid() == VMADDR_CID_HOST => doorkeeper.admit(stream),
            Ok(_) => {}
            Err(_) => tokio::time::sleep(DIAL_PAUSE).await,
        }
    }
}
