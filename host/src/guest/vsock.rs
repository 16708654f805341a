//! Connections through the host end of vsock, a Unix socket.
//!
//! To reach a port in the guest the host connects, writes `CONNECT <port>\n`, and reads
//! `OK <port>\n`; a refusal is a plain close. A guest that dials the host is connected to
//! `<socket>_<port>`. (`docs/vsock.md` of cloud-hypervisor and Firecracker; vhost-device-vsock does
//! the same.)

use std::io;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// The longest answer: `OK `, a 32-bit number, and a newline.
const LONGEST_ANSWER: usize = 14;

/// Where the host listens for what the guest dials at `port`.
pub(crate) fn listening_path(socket: &Path, port: u32) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

/// Connects to `port` in the guest.
pub(crate) async fn connect(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = crate::sys::socket::connect(socket).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    // Byte by byte: what follows the newline is the agent's.
    let mut answer = Vec::with_capacity(LONGEST_ANSWER);
    while answer.last() != Some(&b'\n') {
        if answer.len() == LONGEST_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer to CONNECT is too long"));
        }
        match stream.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    format!("nothing listens on port {port}"),
                ));
            }
            Err(error) => return Err(error),
        }
    }
    if answer.starts_with(b"OK ") {
        Ok(stream)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the answer to CONNECT is not OK"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    async fn answered(answer: &'static [u8]) -> io::Result<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 13];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"CONNECT 1024\n");
            stream.write_all(answer).await.unwrap();
        };
        let client = async {
            let mut rest = Vec::new();
            connect(&path, 1024).await?.read_to_end(&mut rest).await?;
            Ok(rest)
        };
        tokio::join!(server, client).1
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_not_eaten() {
        assert_eq!(answered(b"OK 1073741824\nhello").await.unwrap(), b"hello");
    }

    #[tokio::test]
    async fn refusals_and_nonsense_are_errors() {
        assert_eq!(answered(b"").await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(answered(b"NO\n").await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let endless = b"OK 11111111111111111111111111111111111";
        assert_eq!(answered(endless).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
