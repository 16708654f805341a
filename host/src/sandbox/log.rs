//! The output of detached commands, kept on disk: the last of it, however much there is.
//!
//! ```text
//!   STATE/logs/ID/COMMAND-BASE.log    output from byte BASE on, stdout and stderr as they came
//! ```
//!
//! Bytes are counted from the start of the command, so whoever reads knows what it has missed, and a
//! daemon that takes a sandbox over knows from where the agent has to go on.

use super::SandboxId;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// How long a log may become before its first half is dropped, in bytes.
const LONGEST: u64 = 16 << 20;

/// How much is read at once, in bytes.
pub(crate) const MOST_READ: usize = 256 << 10;

/// The logs of one sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Logs {
    dir: PathBuf,
}

/// The log of one command, being written.
#[derive(Debug)]
pub(crate) struct Log {
    dir: PathBuf,
    command: u64,
    base: u64,
    file: File,
    length: u64,
    /// What came after that and could not be written.
    lost: u64,
}

impl Logs {
    /// Those of a sandbox, in the folder of all of them.
    pub(crate) fn of(dir: &Path, id: SandboxId) -> Logs {
        Logs { dir: dir.join(id.to_string()) }
    }

    /// The log of `command`, to be gone on with.
    pub(crate) fn write(&self, command: u64) -> io::Result<Log> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let base = self.base(command).unwrap_or(0);
        let file = open(&self.dir, command, base)?;
        let length = file.metadata()?.len();
        Ok(Log { dir: self.dir.clone(), command, base, file, length, lost: 0 })
    }

    /// Where the log of `command` begins, if there is one. Two can be there when a daemon was killed while
    /// it dropped the first half: the later one is whole.
    fn base(&self, command: u64) -> Option<u64> {
        let entries = fs::read_dir(&self.dir).ok()?.flatten();
        entries
            .filter_map(|entry| {
                let name = entry.file_name();
                let (number, base) = name.to_str()?.strip_suffix(".log")?.split_once('-')?;
                (number.parse() == Ok(command)).then(|| base.parse().ok())?
            })
            .max()
    }

    /// Some of what `command` wrote from byte `from` on, and where that begins: later, if that is not kept
    /// any more. None: it has no log.
    pub(crate) fn read(&self, command: u64, from: u64) -> io::Result<Option<(u64, Vec<u8>)>> {
        let Some(base) = self.base(command) else { return Ok(None) };
        let mut file = match File::open(path(&self.dir, command, base)) {
            Ok(file) => file,
            // Its first half is being dropped: the next one that is asked for is there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some((from, Vec::new()))),
            Err(error) => return Err(error),
        };
        let from = from.max(base);
        file.seek(SeekFrom::Start(from - base))?;
        let mut bytes = Vec::new();
        file.take(MOST_READ as u64).read_to_end(&mut bytes)?;
        Ok(Some((from, bytes)))
    }

    /// Removes them.
    pub(crate) fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %self.dir.display(), %error, "cannot remove logs");
        }
    }
}

fn path(dir: &Path, command: u64, base: u64) -> PathBuf {
    dir.join(format!("{command}-{base}.log"))
}

fn open(dir: &Path, command: u64, base: u64) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path(dir, command, base))
}

impl Log {
    /// The number of the byte that comes next.
    pub(crate) fn end(&self) -> u64 {
        // The base of a hostile guest's command is any number.
        self.base.saturating_add(self.length).saturating_add(self.lost)
    }

    /// Adds what came. What could not be written counts: numbers stay true. Then the log begins anew with
    /// what comes next.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let after = self.end().saturating_add(bytes.len() as u64);
        let written = self.write(bytes);
        self.lost = after.saturating_sub(self.base.saturating_add(self.length));
        written?;
        if self.length > LONGEST { self.drop_half() } else { Ok(()) }
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if self.lost > 0 {
            self.begin_anew(self.end())?;
        }
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.length += count as u64;
                    bytes = &bytes[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What came is not kept, as far as byte `end`: numbers stay true.
    pub(crate) fn skip(&mut self, end: u64) -> io::Result<()> {
        if end <= self.end() {
            return Ok(());
        }
        let begun = self.begin_anew(end);
        self.lost = end.saturating_sub(self.base.saturating_add(self.length));
        begun
    }

    fn begin_anew(&mut self, base: u64) -> io::Result<()> {
        let file = open(&self.dir, self.command, base)?;
        self.replace(base, file, 0);
        Ok(())
    }

    fn drop_half(&mut self) -> io::Result<()> {
        let base = self.end() - LONGEST / 2;
        let mut kept = File::open(path(&self.dir, self.command, self.base))?;
        kept.seek(SeekFrom::Start(base - self.base))?;
        // Under its name only when it is whole: who finds two believes the later one.
        let unfinished = self.dir.join(format!("{}.new", self.command));
        let mut new = File::create(&unfinished)?;
        let length = io::copy(&mut kept, &mut new)?;
        fs::rename(&unfinished, path(&self.dir, self.command, base))?;
        let file = open(&self.dir, self.command, base)?;
        self.replace(base, file, length);
        Ok(())
    }

    fn replace(&mut self, base: u64, file: File, length: u64) {
        // Whoever reads it goes on with the other.
        let _ = fs::remove_file(path(&self.dir, self.command, self.base));
        (self.base, self.file, self.length, self.lost) = (base, file, length, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(logs: &Logs, command: u64, mut from: u64) -> (u64, Vec<u8>) {
        let (first, mut bytes) = logs.read(command, from).unwrap().unwrap();
        loop {
            from = first + bytes.len() as u64;
            let (_, more) = logs.read(command, from).unwrap().unwrap();
            if more.is_empty() {
                return (first, bytes);
            }
            bytes.extend(more);
        }
    }

    #[test]
    fn a_log_goes_on_where_another_daemon_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::of(dir.path(), SandboxId::from_number(1));
        assert!(logs.read(1, 0).unwrap().is_none());
        logs.write(1).unwrap().append(b"one ").unwrap();
        let mut log = logs.write(1).unwrap();
        assert_eq!(log.end(), 4);
        log.append(b"two").unwrap();
        logs.write(11).unwrap().append(b"other").unwrap();
        assert_eq!(all(&logs, 1, 0), (0, b"one two".to_vec()));
        assert_eq!(all(&logs, 1, 4), (4, b"two".to_vec()));
        log.skip(100).unwrap();
        log.append(b"later").unwrap();
        assert_eq!(all(&logs, 1, 2), (100, b"later".to_vec()));
        logs.remove();
        assert!(logs.read(1, 0).unwrap().is_none());
    }

    /// Files may not become longer than that, while `work` is done: as on a disk that is full then.
    fn with_longest_file(length: u64, work: impl FnOnce()) {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        use nix::sys::signal::{SigSet, Signal};
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGXFSZ);
        signals.thread_block().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, length, hard).unwrap();
        work();
        setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();
    }

    #[test]
    fn what_could_not_be_written_counts() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::of(dir.path(), SandboxId::from_number(1));
        let mut log = logs.write(1).unwrap();
        log.append(b"whole ").unwrap();
        with_longest_file(10, || {
            log.append(b"partly").unwrap_err();
            assert_eq!(all(&logs, 1, 0), (0, b"whole part".to_vec()));
        });
        assert_eq!(log.end(), 12);
        // Another daemon asks for what is missing.
        assert_eq!(logs.write(1).unwrap().end(), 10);
        log.append(b"later").unwrap();
        assert_eq!(all(&logs, 1, 0), (12, b"later".to_vec()));
        with_longest_file(0, || {
            log.append(b"none").unwrap_err();
            log.append(b"nor this").unwrap_err();
        });
        log.skip(40).unwrap();
        log.append(b"at 40").unwrap();
        assert_eq!(all(&logs, 1, 0), (40, b"at 40".to_vec()));
        log.skip(u64::MAX).unwrap();
        log.append(b"far").unwrap();
        assert_eq!(log.end(), u64::MAX);
    }

    #[test]
    fn of_endless_output_the_last_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::of(dir.path(), SandboxId::from_number(1));
        let mut log = logs.write(1).unwrap();
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..40 {
            log.append(&chunk).unwrap();
        }
        log.append(b"end").unwrap();
        let (first, bytes) = all(&logs, 1, 0);
        assert_eq!(first + bytes.len() as u64, 40 * (1 << 20) + 3);
        assert!(bytes.len() as u64 <= LONGEST + 3 && bytes.len() as u64 >= LONGEST / 2);
        assert!(bytes.ends_with(b"xend"));
        assert_eq!(fs::read_dir(dir.path().join("00000001")).unwrap().count(), 1);
        assert_eq!(logs.write(1).unwrap().end(), first + bytes.len() as u64);
    }
}
