//! Files of sessions as resources: those that runs have left in `$FIRN_ARTIFACTS`, which are listed, and any other,
//! by its address.
//!
//! ```text
//!   firn://SESSION/PATH      the file /PATH in the sandbox of SESSION; what is not plain is percent-encoded
//! ```
//!
//! Paths and names are the sandbox's word. They are only ever used in it.

use super::session::Principal;
use crate::api::client::{Chunks, ClientError};
use crate::api::percent;
use crate::tar::{Kind, Reader, TarError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use firn_protocol::{Artifacts, MAX_ARTIFACT_RUNS, MAX_ARTIFACTS, Text};
use rmcp::model::{Resource, ResourceContents, ResourceTemplate};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How an address begins.
const SCHEME: &str = "firn://";

/// The largest file that is read, in bytes. It is sent as one message.
const MOST: usize = 16 << 20;

/// Room for what an archive has beside the file.
const MOST_AROUND: usize = 1 << 20;

/// How many files are listed of one session: those that the agent keeps.
const MOST_LISTED: usize = MAX_ARTIFACTS * MAX_ARTIFACT_RUNS / 16;

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// Not an address.
    #[error("{0:?} is no address of a file: firn://SESSION/PATH")]
    Address(String),
    /// The daemon does not give it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It is something else.
    #[error("it is not a file")]
    NotAFile,
    /// A message has no room for it.
    #[error("it is larger than {MOST} bytes: `firn cp` copies it")]
    TooLarge,
    /// What came is no archive.
    #[error("the sandbox sent no archive")]
    Archive(#[from] TarError),
}

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// The session, as its client calls it.
    pub(super) session: String,
    /// Its path in the sandbox.
    pub(super) path: Text,
}

impl Address {
    /// Reads an address.
    pub(super) fn parse(uri: &str) -> Result<Address, FileError> {
        let wrong = || FileError::Address(uri.to_owned());
        let (session, path) =
            uri.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
        let session = percent::decode(session).and_then(|name| String::from_utf8(name).ok());
        let session = session.filter(|session| !session.is_empty()).ok_or_else(wrong)?;
        let mut whole = vec![b'/'];
        whole.extend(percent::decode(path).ok_or_else(wrong)?);
        Ok(Address { session, path: Text::from(OsString::from_vec(whole)) })
    }

    fn uri(&self) -> String {
        let mut uri = SCHEME.to_owned();
        percent::encode(self.session.as_bytes(), &mut uri);
        for part in
            self.path.as_os_str().as_bytes().split(|byte| *byte == b'/').filter(|part| !part.is_empty())
        {
            uri.push('/');
            percent::encode(part, &mut uri);
        }
        uri
    }
}

/// How any file of a session is addressed.
pub(super) fn template() -> ResourceTemplate {
    ResourceTemplate::new(format!("{SCHEME}{{session}}/{{+path}}"), "file of a session")
}

/// Of how many sessions files are listed: those in which runs have left some last.
const MOST_SESSIONS: usize = 256;

/// The files that runs have left.
#[derive(Debug, Default)]
pub(super) struct Left(Mutex<VecDeque<OfSession>>);

/// Those of one session.
#[derive(Debug)]
struct OfSession {
    principal: Principal,
    session: String,
    files: Vec<Resource>,
}

impl Left {
    /// Adds those of a run, and gives them.
    pub(super) fn add(&self, principal: &Principal, session: &str, artifacts: &Artifacts) -> Vec<Resource> {
        let new: Vec<Resource> = artifacts
            .files
            .iter()
            .map(|file| {
                let path = artifacts.folder.as_path().join(file.name.as_os_str());
                let address = Address { session: session.to_owned(), path: Text::from(path) };
                let name = file.name.as_os_str().to_string_lossy().into_owned();
                Resource::new(address.uri(), name)
                    .with_mime_type(file.media_type.clone())
                    .with_size(file.size)
            })
            .collect();
        let mut left = self.left();
        let is_this = |known: &OfSession| known.principal == *principal && known.session == session;
        let known = left.iter().position(is_this).and_then(|at| left.remove(at));
        let mut files = known.map(|known| known.files).unwrap_or_default();
        files.extend(new.iter().cloned());
        // The agent has removed the oldest too.
        files.drain(..files.len().saturating_sub(MOST_LISTED));
        left.push_back(OfSession { principal: principal.clone(), session: session.to_owned(), files });
        if left.len() > MOST_SESSIONS {
            left.pop_front();
        }
        new
    }

    /// Those of a client's sessions, as long as `lives` says that there is such a session.
    pub(super) fn list(&self, principal: &Principal, lives: impl Fn(&str) -> bool) -> Vec<Resource> {
        let mut left = self.left();
        left.retain(|known| known.principal != *principal || lives(&known.session));
        let theirs = left.iter().filter(|known| known.principal == *principal);
        let mut files: Vec<Resource> = theirs.flat_map(|known| known.files.iter().cloned()).collect();
        files.sort_by(|a, b| a.uri.cmp(&b.uri));
        files
    }

    fn left(&self) -> MutexGuard<'_, VecDeque<OfSession>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file that is all of an archive.
pub(super) async fn read(mut archive: Chunks) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = archive.next().await? {
        if bytes.len() + chunk.len() > MOST + MOST_AROUND {
            return Err(FileError::TooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    only_file(&bytes)
}

fn only_file(archive: &[u8]) -> Result<Vec<u8>, FileError> {
    let mut reader = Reader::new(archive);
    let entry = reader.next()?.ok_or(FileError::NotAFile)?;
    let Kind::File { size } = entry.kind else { return Err(FileError::NotAFile) };
    if size > MOST as u64 {
        return Err(FileError::TooLarge);
    }
    let mut content = Vec::new();
    reader.read_to_end(&mut content).map_err(TarError::from)?;
    Ok(content)
}

/// The content of the file at `uri`: as text, if it is some.
pub(super) fn contents(uri: &str, media_type: Option<String>, content: Vec<u8>) -> ResourceContents {
    match String::from_utf8(content) {
        Ok(text) => ResourceContents::text(text, uri)
            .with_mime_type(media_type.unwrap_or_else(|| "text/plain".to_owned())),
        Err(error) => ResourceContents::blob(STANDARD.encode(error.as_bytes()), uri)
            .with_mime_type(media_type.unwrap_or_else(|| "application/octet-stream".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{Entry, Writer};
    use firn_protocol::Artifact;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_path_of_any_session_has_an_address(
            session in ".+", path in proptest::collection::vec("[^/\0]+", 1..4),
        ) {
            let path = Text::from(OsString::from(format!("/{}", path.join("/"))));
            let address = Address { session, path };
            prop_assert_eq!(Address::parse(&address.uri()).unwrap(), address);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for wrong in [
            "",
            "file:///etc/passwd",
            "firn://",
            "firn://session",
            "firn:///path",
            "firn://%zz/x",
            "firn://%ff/x",
        ] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_are_listed_as_long_as_their_session_lives() {
        let left = Left::default();
        let file = Artifact { name: "a b.png".into(), media_type: "image/png".into(), size: 3 };
        let artifacts = Artifacts { folder: "/tmp/left".into(), files: vec![file], truncated: false };
        let alice = Principal::named("alice");
        let new = left.add(&alice, "s", &artifacts);
        assert_eq!(new[0].uri, "firn://s/tmp/left/a%20b.png");
        assert_eq!(left.list(&alice, |_| true), new);
        assert!(left.list(&Principal::default(), |_| true).is_empty());
        assert!(left.list(&alice, |_| false).is_empty());
        assert!(left.list(&alice, |_| true).is_empty());
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        let left = Left::default();
        let artifacts = |number: usize| {
            let file = Artifact { name: "f".into(), media_type: "text/plain".into(), size: 1 };
            Artifacts { folder: format!("/{number}").into(), files: vec![file], truncated: false }
        };
        let nobody = Principal::default();
        for number in 0..MOST_LISTED + 5 {
            left.add(&nobody, "same", &artifacts(number));
        }
        assert_eq!(left.list(&nobody, |_| true).len(), MOST_LISTED);
        for number in 0..MOST_SESSIONS {
            left.add(&nobody, &number.to_string(), &artifacts(0));
        }
        let listed = left.list(&nobody, |_| true);
        assert_eq!(listed.len(), MOST_SESSIONS);
        assert!(listed.iter().all(|file| !file.uri.starts_with("firn://same/")));
    }

    #[test]
    fn an_archive_has_the_file_or_something_else() {
        let archive = |kind: Kind, content: &[u8]| {
            let mut writer = Writer::new(Vec::new());
            let entry = Entry { name: b"x".to_vec(), kind, mode: 0o644, modified: 0 };
            match &entry.kind {
                Kind::File { size } => writer.file(&entry, *size, content).unwrap(),
                _ => writer.entry(&entry).unwrap(),
            }
            writer.finish().unwrap()
        };
        assert_eq!(only_file(&archive(Kind::File { size: 3 }, b"abc")).unwrap(), b"abc");
        assert!(matches!(only_file(&archive(Kind::Folder, b"")), Err(FileError::NotAFile)));
        assert!(matches!(only_file(&[0; 10_240]), Err(FileError::NotAFile)));
        assert!(matches!(only_file(b"nonsense"), Err(FileError::Archive(_))));
    }
}
