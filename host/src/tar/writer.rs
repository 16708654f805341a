//! Writing an archive.

use super::{BLOCK, Entry, Kind, SHORT_NAME, checksum, padding};
use std::io::{self, Read, Write};

/// The largest number in eleven octal digits.
const LARGEST_OCTAL: u64 = 0o777_7777_7777;

/// Writes an archive, entry by entry.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    to: W,
}

impl<W: Write> Writer<W> {
    /// To `to`.
    pub(crate) fn new(to: W) -> Writer<W> {
        Writer { to }
    }

    /// Writes an entry that has no content: a folder or a link.
    pub(crate) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.begin(entry)
    }

    /// Writes a file of exactly `size` bytes: when `content` has become shorter meanwhile, the rest is
    /// zeros.
    pub(crate) fn file(&mut self, entry: &Entry, size: u64, content: impl Read) -> io::Result<()> {
        self.begin(entry)?;
        let copied = io::copy(&mut content.take(size), &mut self.to)?;
        zeros(&mut self.to, size - copied + padding(size))
    }

    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        let (kind, size, target): (u8, u64, &[u8]) = match &entry.kind {
            Kind::File { size } => (b'0', *size, b""),
            Kind::Folder => (b'5', 0, b""),
            Kind::Symlink { target } => (b'2', 0, target),
            Kind::HardLink { target } => (b'1', 0, target),
            Kind::Special => (b'6', 0, b""),
        };
        let mut name = entry.name.clone();
        if kind == b'5' && !name.ends_with(b"/") {
            name.push(b'/');
        }
        self.long_name(b'L', &name)?;
        self.long_name(b'K', target)?;
        let time = u64::try_from(entry.modified).unwrap_or_default();
        self.to.write_all(&header(&name, kind, size, target, entry.mode, time))
    }

    /// A name that the header has no room for stands before it, as GNU's tar does it: any bytes can.
    fn long_name(&mut self, kind: u8, name: &[u8]) -> io::Result<()> {
        if name.len() <= SHORT_NAME {
            return Ok(());
        }
        let size = name.len() as u64 + 1;
        self.to.write_all(&header(b"././@LongLink", kind, size, b"", 0o644, 0))?;
        self.to.write_all(name)?;
        zeros(&mut self.to, 1 + padding(size))
    }

    /// Writes the end.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        zeros(&mut self.to, 2 * BLOCK as u64)?;
        self.to.flush()?;
        Ok(self.to)
    }
}

/// The block before the content of an entry.
pub(super) fn header(name: &[u8], kind: u8, size: u64, target: &[u8], mode: u32, time: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name[..name.len().min(SHORT_NAME)]);
    put(100, format!("{:07o}\0", mode & 0o7777).as_bytes());
    // Whose it is, is decided where it is unpacked.
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size <= LARGEST_OCTAL {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        // In binary, with the first bit set.
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, format!("{:011o}\0", time.min(LARGEST_OCTAL)).as_bytes());
    put(156, &[kind]);
    put(157, &target[..target.len().min(SHORT_NAME)]);
    put(257, b"ustar  \0");
    let sum = checksum(&header);
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn zeros(to: &mut impl Write, count: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(count), to).map(drop)
}
