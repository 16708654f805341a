//! The tar format, as far as files are copied with it: headers of POSIX ustar, and what GNU and pax
//! add for long names and large files.
//!
//! What is read comes from a sandbox. Nothing is allocated because of a number in it, but for names
//! up to [`LONGEST_NAME`]; what the format can say and a copy has no use for is passed over
//! (`Kind::Special`) or refused. Names are bytes, and are not checked here: see `cli::cp`.
//!
//! Sources: pax(1) of POSIX.1-2017, "ustar Interchange Format" and "pax Header Block"; "Basic Tar Format"
//! of GNU tar's manual.

mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use reader::Reader;
pub(crate) use writer::Writer;

use std::io;

/// The unit of the format.
const BLOCK: usize = 512;

/// The longest name, and the longest target of a link: what a path can have on Linux (`PATH_MAX`).
pub(crate) const LONGEST_NAME: usize = 4096;

/// What a name of the header itself holds.
const SHORT_NAME: usize = 100;

/// A thing in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its path, as it stands there.
    pub(crate) name: Vec<u8>,
    /// What it is.
    pub(crate) kind: Kind,
    /// Its permission bits, as they stand there.
    pub(crate) mode: u32,
    /// When it was changed, in seconds since 1970.
    pub(crate) modified: i64,
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file, whose content follows.
    File {
        /// How long that is.
        size: u64,
    },
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink {
        /// Where it leads.
        target: Vec<u8>,
    },
    /// Another name of a file that came before.
    HardLink {
        /// That file's.
        target: Vec<u8>,
    },
    /// A device or a pipe.
    Special,
}

/// What is read is no archive that could be copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    /// The stream failed.
    #[error("the stream of files broke off")]
    Io(#[from] io::Error),
    /// Not a header.
    #[error("the stream is no tar archive: a header's checksum is wrong")]
    Checksum,
    /// A number is not one.
    #[error("the tar archive is damaged: {0} is no number")]
    Number(&'static str),
    /// Longer than a path may be.
    #[error("the tar archive holds a name longer than {LONGEST_NAME} bytes")]
    LongName,
    /// Something that changes what content means.
    #[error("the tar archive holds {0}, which cannot be copied")]
    Unsupported(&'static str),
    /// An extension that is not one.
    #[error("the tar archive is damaged: a pax header does not fit")]
    Pax,
}

/// The sum of all bytes, those of the sum itself counted as spaces.
fn checksum(header: &[u8; BLOCK]) -> u64 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    sum(&header[..148]) + 8 * u64::from(b' ') + sum(&header[156..])
}

/// What is missing of a whole block.
fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}
