//! Reading an archive.

use super::{BLOCK, Entry, Kind, LONGEST_NAME, SHORT_NAME, TarError, checksum, padding};
use std::io::{self, Read};

/// How many bytes are written at once: what follows the end is no more (GNU tar's `--blocking-factor`).
const RECORD: u64 = 20 * BLOCK as u64;

/// The longest header of pax: two names, and some numbers.
pub(super) const LONGEST_EXTENSION: u64 = 64 * 1024;

/// Reads an archive, entry by entry.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    from: R,
    /// What is still unread of the last file.
    left: u64,
    /// What is still unread after that, to the next header.
    padding: u64,
    over: bool,
}

/// What stands before a header about it.
#[derive(Debug, Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    modified: Option<i64>,
}

impl<R: Read> Reader<R> {
    /// Of what `from` gives.
    pub(crate) fn new(from: R) -> Reader<R> {
        Reader { from, left: 0, padding: 0, over: false }
    }

    /// The next entry, or None at the end. Of a file that was not read to its end the rest is passed
    /// over.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut known = Extensions::default();
        while let Some(header) = self.header()? {
            let size = number(&header[124..136], "a size")?;
            match header[156] {
                b'L' => known.name = Some(self.long_name(size)?),
                b'K' => known.target = Some(self.long_name(size)?),
                b'x' => self.pax(size, &mut known)?,
                // What would hold for all that follows: there is nothing in it that a copy needs.
                b'g' => self.pass_over(size)?,
                kind => {
                    let size = known.size.unwrap_or(size);
                    return self.entry(&header, kind, size, known).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        kind: u8,
        size: u64,
        known: Extensions,
    ) -> Result<Entry, TarError> {
        let name = match known.name {
            Some(name) => name,
            None => short_name(header),
        };
        let target = |known: Option<Vec<u8>>| known.unwrap_or_else(|| text(&header[157..257]).to_vec());
        // Before POSIX a folder was a file whose name ends so.
        let folder = name.ends_with(b"/");
        let (kind, content) = match kind {
            b'0' | b'\0' | b'7' if !folder => (Kind::File { size }, size),
            b'0' | b'\0' | b'7' | b'5' => (Kind::Folder, 0),
            b'1' => (Kind::HardLink { target: target(known.target) }, 0),
            b'2' => (Kind::Symlink { target: target(known.target) }, 0),
            b'3' | b'4' | b'6' => (Kind::Special, 0),
            b'S' => return Err(TarError::Unsupported("a sparse file")),
            b'M' => return Err(TarError::Unsupported("a part of a file")),
            _ => return Err(TarError::Unsupported("something of an unknown kind")),
        };
        (self.left, self.padding) = (content, padding(content));
        Ok(Entry {
            name,
            kind,
            mode: u32::try_from(number(&header[100..108], "a mode")? & 0o7777).unwrap_or_default(),
            modified: match known.modified {
                Some(seconds) => seconds,
                None => i64::try_from(number(&header[136..148], "a time")?).unwrap_or_default(),
            },
        })
    }

    /// The next header. None: an empty one, or nothing any more.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let rest = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        skip(&mut self.from, rest)?;
        let mut header = [0; BLOCK];
        if self.over || !fill(&mut self.from, &mut header)? {
            return Ok(None);
        }
        if header.iter().all(|byte| *byte == 0) {
            // A second one follows, and then what fills the last record; no more is waited for.
            self.over = true;
            io::copy(&mut self.from.by_ref().take(RECORD), &mut io::sink())?;
            return Ok(None);
        }
        if number(&header[148..156], "a checksum")? != checksum(&header) {
            return Err(TarError::Checksum);
        }
        Ok(Some(header))
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        // With the NUL at its end.
        if size > LONGEST_NAME as u64 + 1 {
            return Err(TarError::LongName);
        }
        Ok(text(&self.extension(size)?).to_vec())
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.from.read_exact(&mut bytes)?;
        skip(&mut self.from, padding(size))?;
        Ok(bytes)
    }

    fn pass_over(&mut self, size: u64) -> Result<(), TarError> {
        Ok(skip(&mut self.from, size.saturating_add(padding(size)))?)
    }

    /// Records of the form `LENGTH KEY=VALUE\n`, whose length counts all of it.
    fn pax(&mut self, size: u64, known: &mut Extensions) -> Result<(), TarError> {
        if size > LONGEST_EXTENSION {
            return Err(TarError::LongName);
        }
        let bytes = self.extension(size)?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let space = rest.iter().position(|byte| *byte == b' ').ok_or(TarError::Pax)?;
            let length: usize = ascii(&rest[..space]).ok_or(TarError::Pax)?;
            let record = rest.get(space + 1..length).ok_or(TarError::Pax)?;
            rest = &rest[length..];
            let record = record.strip_suffix(b"\n").ok_or(TarError::Pax)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(TarError::Pax)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => known.name = Some(short_enough(value)?),
                b"linkpath" => known.target = Some(short_enough(value)?),
                b"size" => known.size = Some(ascii(value).ok_or(TarError::Pax)?),
                b"mtime" => known.modified = ascii(value.split(|byte| *byte == b'.').next().unwrap_or(value)),
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(TarError::Unsupported("a sparse file"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The content of the file that was returned last.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.from.read(&mut into[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Reads past `count` bytes.
fn skip(from: &mut impl Read, count: u64) -> io::Result<()> {
    let passed = io::copy(&mut from.by_ref().take(count), &mut io::sink())?;
    if passed == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Fills all of `block`. False: there was nothing any more.
fn fill(from: &mut impl Read, block: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < block.len() {
        match from.read(&mut block[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

/// The header's name. POSIX has a part for what stands before it; GNU has other things there.
fn short_name(header: &[u8; BLOCK]) -> Vec<u8> {
    let (name, prefix) = (text(&header[..SHORT_NAME]), text(&header[345..500]));
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() {
        return [prefix, b"/", name].concat();
    }
    name.to_vec()
}

fn short_enough(name: &[u8]) -> Result<Vec<u8>, TarError> {
    if name.len() > LONGEST_NAME { Err(TarError::LongName) } else { Ok(name.to_vec()) }
}

fn ascii<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Octal digits, or in binary when the first bit is set.
fn number(field: &[u8], what: &'static str) -> Result<u64, TarError> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len().saturating_sub(8));
        // Negative, or beyond any file.
        if high.iter().skip(1).any(|byte| *byte != 0) || high.first().is_some_and(|byte| *byte != 0x80) {
            return Err(TarError::Number(what));
        }
        // A field of eight bytes has its mark in the number itself.
        return Ok(low.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte)) & (u64::MAX >> 1));
    }
    let digits = field.iter().copied().skip_while(|byte| *byte == b' ');
    let digits: Vec<u8> = digits.take_while(|byte| !matches!(byte, b' ' | 0)).collect();
    if digits.is_empty() {
        return Ok(0);
    }
    let digits = std::str::from_utf8(&digits).map_err(|_no_text| TarError::Number(what))?;
    u64::from_str_radix(digits, 8).map_err(|_no_number| TarError::Number(what))
}
