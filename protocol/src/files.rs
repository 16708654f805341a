//! Files of the sandbox: looked at, copied in and out, removed.
//!
//! Each of these requests is served with the rights of a user of the sandbox and in a process of its
//! own, which [`Input::Cancel`] and the end of the connection end. Paths are absolute, as the sandbox sees
//! them. Contents are raw: what is read comes as [`Kind::Stdout`] before the reply, what is written goes as
//! [`Kind::Stdin`] against credit until [`Kind::StdinEnd`].
//!
//! What the agent says of files is the guest's word, and an archive it sends is a guest's bytes. The host
//! must check, and whoever unpacks an archive on the host:
//!
//! * how much comes: a file may be of any length, and an archive without an end;
//! * that no name is absolute or has `..`, that no name leads through a symbolic link, one unpacked before
//!   included, and that no hard link leads to what was not unpacked with it;
//! * that there are only files, folders and symbolic links; modes without set-id bits;
//! * that numbers, the sizes in an archive's headers among them, are not believed before the bytes are there;
//! * names in lists: without a slash, neither `.` nor `..`, and fit to be shown.
//!
//! [`Input::Cancel`]: crate::Input::Cancel
//! [`Kind::Stdout`]: crate::Kind::Stdout
//! [`Kind::Stdin`]: crate::Kind::Stdin
//! [`Kind::StdinEnd`]: crate::Kind::StdinEnd

use crate::Text;
use serde::{Deserialize, Serialize};

#[cfg(feature = "schema")]
use schemars::JsonSchema;

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct FileTarget {
    /// Where it is.
    pub path: Text,
    /// Whose rights are used, as in [`crate::Exec::user`]. Absent: the agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// A part of a file's content is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct FileRead {
    /// Which file. Symbolic links are followed.
    #[serde(flatten)]
    pub target: FileTarget,
    /// From which byte on.
    #[serde(default)]
    pub offset: u64,
    /// How many bytes at most. Absent: to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
}

/// Something is to be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct FileRemove {
    /// What. A symbolic link is removed itself.
    #[serde(flatten)]
    pub target: FileTarget,
    /// Whether a folder may hold something, which is then removed too.
    #[serde(default)]
    pub recursive: bool,
}

/// An archive is to be unpacked: a tar stream with files, folders and links. Nothing outside the folder is
/// written to, whatever the archive or the folder holds. What a file or a link replaces is removed first; a
/// folder is added to. Modes are kept without set-id and sticky bits, and times; owners are not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct ArchiveWrite {
    /// The folder to unpack into. It is there, and may be reached through symbolic links.
    #[serde(flatten)]
    pub folder: FileTarget,
    /// What the first part of each name in the archive becomes. Absent: it stays what it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Text>,
}

/// What kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// An ordinary file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, a socket, a FIFO.
    Other,
}

/// A file as it is itself: a symbolic link is not followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct FileInfo {
    /// What kind of file.
    pub kind: FileKind,
    /// The permission bits, 0 to 0o7777.
    pub mode: u32,
    /// Its length, in bytes.
    pub size: u64,
    /// The number of its owner.
    pub user: u32,
    /// The number of its group.
    pub group: u32,
    /// When it was modified, in seconds since 1970-01-01T00:00:00Z.
    pub modified_s: i64,
    /// Where a symbolic link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Text>,
}

/// A file in a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct FileEntry {
    /// Its name in the folder.
    pub name: Text,
    /// What it is.
    pub info: FileInfo,
}

/// What is in a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct FileList {
    /// By name, at most [`crate::MAX_FILES`].
    pub entries: Vec<FileEntry>,
    /// Whether there are more.
    pub truncated: bool,
}

/// What was packed or unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct ArchiveSummary {
    /// Ordinary files, hard links among them.
    pub files: u64,
    /// Folders.
    pub folders: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes in files.
    pub bytes: u64,
    /// Devices, sockets and FIFOs, which are left out.
    pub left_out: u64,
}
