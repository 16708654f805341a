//! A view as a vm sees it: trees exported by `virtiofsd`, each confined to its own tree.
//!
//! There are at most two: the read-only base, whose contents the guest may cache for ever, and the
//! caller's folders, which the host may change at any time. Both run under bubblewrap without a
//! capability; the namespace they run in holds nothing but the tree, so neither a bug in virtiofsd
//! nor a link in a share leads anywhere else.

use super::View;
use crate::env::STORE;
use crate::sys::bubblewrap::Bubblewrap;
use crate::sys::identity::{self, Identity};
use crate::sys::process::{Helper, ProcessError, ProcessId, Role, Station};
use crate::sys::socket;
use firn_protocol::{Access, Mount, MountSource, Text};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// The virtiofs tag of the read-only tree, and the socket of whatever is exported in its place.
pub(crate) const BASE_TAG: &str = "base";

/// The virtiofs tag of the caller's folders, and the socket.
pub(crate) const SHARES_TAG: &str = "shares";

/// Where an export's tree is in its namespace.
const TREE: &str = "/view";

/// The programs an export needs, and its place in the sandbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exporter<'a> {
    /// `bwrap`.
    pub(crate) bwrap: &'a Path,
    /// `virtiofsd`.
    pub(crate) virtiofsd: &'a Path,
    /// Who exports the base, and connects to the sockets.
    pub(crate) identity: Identity,
    /// Where they are started.
    pub(crate) station: Station<'a>,
    /// The sandbox's folder for sockets.
    pub(crate) sockets: &'a Path,
}

/// A running export.
#[derive(Debug)]
pub(crate) struct Export {
    /// Its virtiofs tag, which whoever connects it to a guest has to know.
    pub(crate) tag: String,
    /// The name of the vhost-user socket the VMM connects to. It listens.
    pub(crate) socket: &'static str,
    /// The `virtiofsd` behind it.
    pub(crate) helper: Helper,
}

/// An export could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    /// The socket could not be made.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file of the view could not be prepared.
    #[error("cannot prepare the files of the view")]
    Prepare(#[source] io::Error),
    /// `virtiofsd` did not start.
    #[error(transparent)]
    Start(#[from] ProcessError),
}

impl Exporter<'_> {
    /// Exports the read-only tree of `view`. In the guest everything in it belongs to root.
    pub(crate) fn base(&self, view: &View) -> Result<Export, ExportError> {
        self.read_only(view, BASE_TAG, Path::new(TREE))
    }

    /// Exports what the read-only tree of `view` has of the store, as the store. In place of the tree.
    pub(crate) fn store(&self, view: &View, tag: &str) -> Result<Export, ExportError> {
        self.read_only(view, tag, &super::below(Path::new(TREE), Path::new(STORE)))
    }

    fn read_only(&self, view: &View, tag: &str, top: &Path) -> Result<Export, ExportError> {
        let mut namespace = Bubblewrap::new(self.bwrap, self.identity);
        namespace.in_folder(self.sockets);
        view.build(&mut namespace, Path::new(TREE)).map_err(ExportError::Prepare)?;
        let flags = ["--readonly", "--cache=always"].map(OsString::from);
        let ids = ["uid", "gid"].map(|id| format!("--translate-{id}=squash-host:0:0:4294967295").into());
        let what = What { tag, socket: BASE_TAG, top };
        self.start(&what, namespace, flags.into_iter().chain(ids).collect())
    }

    /// Exports the caller's folders, if there are any. In the guest what is the caller's belongs to
    /// `user`; whoever writes in the guest, it becomes the caller's on the host.
    pub(crate) fn shares(&self, view: &View, user: u32) -> Result<Option<Export>, ExportError> {
        if view.shares.is_empty() {
            return Ok(None);
        }
        let identity = Identity::Caller;
        let mut namespace = Bubblewrap::new(self.bwrap, identity);
        for (index, share) in view.shares.iter().enumerate() {
            let path = Path::new(TREE).join(index.to_string());
            match share.access {
                Access::ReadOnly => namespace.read_only(&share.host, &path),
                Access::ReadWrite => namespace.read_write(&share.host, &path),
            }
            // What is shown over a part of it is an export of its own, which the guest's root can take
            // away to see what is below. So it is there too.
            for (over, below) in view.shares.iter().filter_map(|over| Some((over, over.part_of(share)?))) {
                match over.access {
                    Access::ReadOnly => namespace.read_only(&over.host, &path.join(below)),
                    Access::ReadWrite => namespace.read_write(&over.host, &path.join(below)),
                }
            }
        }
        let (uid, gid) = identity.inside().unwrap_or_else(identity::caller);
        let ids = [("uid", uid), ("gid", gid)].into_iter().flat_map(|(id, ours)| {
            [
                format!("--translate-{id}=squash-guest:0:{ours}:4294967295").into(),
                format!("--translate-{id}=host:{ours}:{user}:1").into(),
            ]
        });
        let flags = std::iter::once(OsString::from("--cache=auto")).chain(ids).collect();
        let what = What { tag: SHARES_TAG, socket: SHARES_TAG, top: Path::new(TREE) };
        self.start(&what, namespace, flags).map(Some)
    }

    fn start(
        &self,
        what: &What<'_>,
        mut namespace: Bubblewrap,
        flags: Vec<OsString>,
    ) -> Result<Export, ExportError> {
        // The socket listens before virtiofsd runs, so the VMM can be started at the same time and
        // nobody has to wait for a path to appear.
        let socket = self.sockets.join(what.socket);
        let listen = |source| ExportError::Listen { path: socket.clone(), source };
        let listener = socket::listen(&socket, self.identity).map_err(listen)?;
        namespace.in_folder(self.sockets);
        let fd = namespace.pass(listener.into());
        let mut args: Vec<OsString> = vec![
            format!("--fd={fd}").into(),
            OsString::from_iter(["--shared-dir=".as_ref(), what.top.as_os_str()]),
        ];
        args.extend(
            // No sandbox of its own: it is in one. Submounts are not announced because the guest
            // could not mount over them.
            ["--sandbox=none", "--no-announce-submounts", "--inode-file-handles=never", "--log-level=warn"]
                .map(OsString::from),
        );
        args.extend(flags);
        let helper = namespace.command(role(what.socket), self.virtiofsd, &args)?.start(self.station)?;
        Ok(Export { tag: what.tag.to_owned(), socket: what.socket, helper })
    }
}

/// What of a namespace is exported, and how.
struct What<'a> {
    tag: &'a str,
    socket: &'static str,
    /// The folder that is the export's root.
    top: &'a Path,
}

fn role(socket: &'static str) -> Role {
    Role { id: socket, name: "virtiofsd" }
}

impl Export {
    /// Takes over the one with this socket, which a guest has. `None`: it has ended.
    pub(crate) fn adopt(socket: &str, id: ProcessId, folder: &Path) -> Result<Option<Export>, ProcessError> {
        let socket = if socket == SHARES_TAG { SHARES_TAG } else { BASE_TAG };
        let helper = Helper::adopt(role(socket), id, folder)?;
        Ok(helper.map(|helper| Export { tag: socket.to_owned(), socket, helper }))
    }
}

/// What the guest is told to mount for `view`'s shares.
pub(crate) fn mounts(view: &View) -> Vec<Mount> {
    view.shares
        .iter()
        .enumerate()
        .map(|(index, share)| Mount {
            source: MountSource::Virtiofs { tag: SHARES_TAG.to_owned(), path: Text::from(index.to_string()) },
            target: Text::from(share.target.as_os_str()),
            access: share.access,
        })
        .collect()
}
