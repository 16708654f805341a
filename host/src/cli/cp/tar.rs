//! The tar format, as far as files are copied with it: headers of POSIX ustar, and what GNU and pax
//! add for long names and large files.
//!
//! What is read comes from a sandbox. Nothing is allocated because of a number in it, but for names
//! up to [`LONGEST_NAME`]; what the format can say and a copy has no use for is passed over
//! (`Kind::Special`) or refused. Names are bytes, and are not checked here: see `unpack`.
//!
//! Sources: pax(1) of POSIX.1-2017, "ustar Interchange Format" and "pax Header Block"; "Basic Tar Format"
//! of GNU tar's manual.

use std::io::{self, Read, Write};

/// The unit of the format.
const BLOCK: usize = 512;

/// How many bytes are written at once: what follows the end is no more (GNU tar's `--blocking-factor`).
const RECORD: u64 = 20 * BLOCK as u64;

/// The longest name, and the longest target of a link: what a path can have on Linux (`PATH_MAX`).
pub(super) const LONGEST_NAME: usize = 4096;

/// The longest header of pax: two names, and some numbers.
const LONGEST_EXTENSION: u64 = 64 * 1024;

/// What a name of the header itself holds.
const SHORT_NAME: usize = 100;

/// The largest number in eleven octal digits.
const LARGEST_OCTAL: u64 = 0o777_7777_7777;

/// A thing in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its path, as it stands there.
    pub(super) name: Vec<u8>,
    /// What it is.
    pub(super) kind: Kind,
    /// Its permission bits, as they stand there.
    pub(super) mode: u32,
    /// When it was changed, in seconds since 1970.
    pub(super) modified: i64,
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
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

/// Reads an archive, entry by entry.
#[derive(Debug)]
pub(super) struct Reader<R> {
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
    pub(super) fn new(from: R) -> Reader<R> {
        Reader { from, left: 0, padding: 0, over: false }
    }

    /// The next entry, or None at the end. Of a file that was not read to its end the rest is passed
    /// over.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, TarError> {
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

/// Writes an archive, entry by entry.
#[derive(Debug)]
pub(super) struct Writer<W> {
    to: W,
}

impl<W: Write> Writer<W> {
    /// To `to`.
    pub(super) fn new(to: W) -> Writer<W> {
        Writer { to }
    }

    /// Writes an entry that has no content: a folder or a link.
    pub(super) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.begin(entry)
    }

    /// Writes a file of exactly `size` bytes: when `content` has become shorter meanwhile, the rest is
    /// zeros.
    pub(super) fn file(&mut self, entry: &Entry, size: u64, content: impl Read) -> io::Result<()> {
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
    pub(super) fn finish(mut self) -> io::Result<W> {
        zeros(&mut self.to, 2 * BLOCK as u64)?;
        self.to.flush()?;
        Ok(self.to)
    }
}

fn header(name: &[u8], kind: u8, size: u64, target: &[u8], mode: u32, time: u64) -> [u8; BLOCK] {
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

/// The sum of all bytes, those of the sum itself counted as spaces.
fn checksum(header: &[u8; BLOCK]) -> u64 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    sum(&header[..148]) + 8 * u64::from(b' ') + sum(&header[156..])
}

/// What is missing of a whole block.
fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

fn zeros(to: &mut impl Write, count: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(count), to).map(drop)
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::{Command, Stdio};

    fn entry(name: &[u8], kind: Kind) -> Entry {
        Entry { name: name.to_vec(), kind, mode: 0o644, modified: 1_700_000_000 }
    }

    fn read(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
        let mut reader = Reader::new(archive);
        let mut found = Vec::new();
        while let Some(entry) = reader.next()? {
            let mut content = Vec::new();
            reader.read_to_end(&mut content)?;
            found.push((entry, content));
        }
        Ok(found)
    }

    fn written(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for (entry, content) in entries {
            match &entry.kind {
                Kind::File { size } => writer.file(entry, *size, content.as_slice()).unwrap(),
                _ => writer.entry(entry).unwrap(),
            }
        }
        writer.finish().unwrap()
    }

    fn names() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(1_u8.., 1..300).prop_filter("a folder's", |name| !name.ends_with(b"/"))
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            files in proptest::collection::vec((names(), proptest::collection::vec(any::<u8>(), 0..1500)), 0..6),
            links in proptest::collection::vec((names(), names()), 0..6),
        ) {
            let mut entries: Vec<(Entry, Vec<u8>)> = files
                .into_iter()
                .map(|(name, content)| (entry(&name, Kind::File { size: content.len() as u64 }), content))
                .collect();
            entries.extend(links.into_iter().map(|(name, target)| (entry(&name, Kind::Symlink { target }), Vec::new())));
            prop_assert_eq!(read(&written(&entries)).unwrap(), entries);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            repair in any::<bool>(),
            kind in proptest::sample::select(b"01235LKxgS7".to_vec()),
        ) {
            if repair && bytes.len() >= BLOCK {
                let mut first = [0; BLOCK];
                first.copy_from_slice(&bytes[..BLOCK]);
                first[156] = kind;
                first[124..136].copy_from_slice(b"00000001000\0");
                let sum = checksum(&first);
                first[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                bytes[..BLOCK].copy_from_slice(&first);
            }
            let _ = read(&bytes);
        }
    }

    /// Sizes, names and links as another implementation writes and reads them.
    #[test]
    fn gnu_tar_understands_it_and_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let long = "long".repeat(40);
        std::fs::create_dir_all(dir.path().join("in").join(&long)).unwrap();
        std::fs::write(dir.path().join("in").join(&long).join("f"), "content").unwrap();
        std::os::unix::fs::symlink(&long, dir.path().join("in/link")).unwrap();
        for format in ["gnu", "posix", "ustar", "v7"] {
            let tar = Command::new("tar")
                .args(["--create", "--format", format, "--sort=name", "--directory"])
                .arg(dir.path())
                .arg(if format == "v7" { "in/link" } else { "in" })
                .stderr(Stdio::null())
                .output()
                .unwrap();
            let found = read(&tar.stdout).unwrap();
            if format == "posix" || format == "gnu" {
                assert!(tar.status.success());
                assert_eq!(found.len(), 4, "{format}");
                let mut names: Vec<&[u8]> = found.iter().map(|(entry, _)| entry.name.as_slice()).collect();
                names.sort_unstable();
                let (folder, file) = (format!("in/{long}/"), format!("in/{long}/f"));
                assert_eq!(names, [&b"in/"[..], b"in/link", folder.as_bytes(), file.as_bytes()]);
                let (file, content) = found.iter().find(|(entry, _)| entry.name.ends_with(b"/f")).unwrap();
                assert_eq!((&file.kind, content.as_slice()), (&Kind::File { size: 7 }, &b"content"[..]));
                let (link, _) = found.iter().find(|(entry, _)| entry.name == b"in/link").unwrap();
                assert_eq!(link.kind, Kind::Symlink { target: long.clone().into() }, "{format}");
            }
        }
        let name = format!("out/{}", "n".repeat(200));
        let ours = written(&[
            (entry(b"out", Kind::Folder), Vec::new()),
            (entry(name.as_bytes(), Kind::File { size: 600 }), vec![7; 600]),
        ]);
        std::fs::write(dir.path().join("ours.tar"), ours).unwrap();
        let done = Command::new("tar").arg("-xf").arg("ours.tar").current_dir(dir.path()).status().unwrap();
        assert!(done.success());
        assert_eq!(std::fs::read(dir.path().join(name)).unwrap(), vec![7; 600]);
    }

    #[test]
    fn a_file_that_shrinks_is_filled_up_and_one_that_grows_is_cut() {
        let mut writer = Writer::new(Vec::new());
        writer.file(&entry(b"short", Kind::File { size: 700 }), 700, &[1; 3][..]).unwrap();
        writer.file(&entry(b"long", Kind::File { size: 2 }), 2, &[1; 3][..]).unwrap();
        let found = read(&writer.finish().unwrap()).unwrap();
        assert_eq!(found[0].1, [vec![1; 3], vec![0; 697]].concat());
        assert_eq!(found[1].1, [1, 1]);
    }

    #[test]
    fn sizes_beyond_octal_digits_survive() {
        let block = header(b"huge", b'0', 1 << 40, b"", 0o600, 0);
        let mut reader = Reader::new(&block[..]);
        assert_eq!(reader.next().unwrap().unwrap().kind, Kind::File { size: 1 << 40 });
        assert!(matches!(reader.next(), Err(TarError::Io(_))), "it is not there");
    }

    #[test]
    fn names_and_extensions_have_an_end() {
        for (kind, size) in [(b'L', 1 << 40), (b'K', LONGEST_NAME as u64 + 2), (b'x', LONGEST_EXTENSION + 1)]
        {
            let block = header(b"x", kind, size, b"", 0, 0);
            assert!(matches!(Reader::new(&block[..]).next(), Err(TarError::LongName)));
        }
    }

    #[test]
    fn a_length_of_pax_that_points_nowhere_is_refused() {
        for record in ["3 a=b\n", "0 path=x\n", "99 path=x\n", "path=x\n", "18446744073709551615 a=b\n"] {
            let mut archive = header(b"x", b'x', record.len() as u64, b"", 0, 0).to_vec();
            archive.extend(record.as_bytes());
            archive.resize(2 * BLOCK, 0);
            assert!(matches!(read(&archive), Err(TarError::Pax)), "{record}");
        }
    }
}
