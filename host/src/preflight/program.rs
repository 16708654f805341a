//! Programs of the host: where they are and which version they say they are.
//!
//! Nothing started here outlives the call: a program that does not answer is killed.

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take to say its version.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much of its answer is read, in bytes.
const ANSWER: u64 = 16 * 1024;

/// The executables called `name` in the folders of `path`, a list like `PATH`, in order. Relative
/// folders are not searched: what they hold depends on where the caller happens to be.
pub(crate) fn all(path: &OsStr, name: &str) -> impl Iterator<Item = PathBuf> {
    std::env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .map(move |dir| dir.join(name))
        .filter(|file| is_executable(file))
        .collect::<Vec<_>>()
        .into_iter()
}

/// The first of them.
pub(crate) fn find(path: &OsStr, name: &str) -> Option<PathBuf> {
    all(path, name).next()
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}

/// What a program said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `program`, with `path` as its only variable, and waits for it. As `id`, where given: only
/// root can. `None` when it could not be started or did not end in time.
pub(crate) fn ask(path: &OsStr, program: &Path, args: &[&str], id: Option<u32>) -> Option<Answer> {
    let mut command = Command::new(program);
    command.args(args).env_clear().env("PATH", path).current_dir("/");
    // A group of its own, so that what it started can be killed with it.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    if let Some(id) = id {
        command.uid(id).gid(id);
    }
    let mut child = command.spawn().ok()?;
    let stdout = read(child.stdout.take()?);
    let stderr = read(child.stderr.take()?);
    let deadline = Instant::now() + PATIENCE;
    let pid = Pid::from_raw(i32::try_from(child.id()).ok()?);
    // Seen, but not reaped: until then the number of the process, and so of its group, is taken.
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let in_time = loop {
        match waitid(Id::Pid(pid), flags) {
            Ok(WaitStatus::StillAlive) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(WaitStatus::StillAlive) | Err(_) => break false,
            Ok(_) => break true,
        }
    };
    // Also after it ended by itself: a child it left behind would hold the pipes open.
    let _ = killpg(pid, Signal::SIGKILL);
    let status = child.wait().ok().filter(|_| in_time);
    let (stdout, stderr) = (stdout.join().ok()?, stderr.join().ok()?);
    Some(Answer { status: status?, stdout, stderr })
}

fn read(pipe: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is what there is.
        let _ = pipe.take(ANSWER).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A version: its numbers, most significant first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) Vec<u32>);

impl Version {
    /// The version that `text` begins with, with or without a `v` before it.
    fn at_start(text: &str) -> Option<Version> {
        let text = text.trim_start();
        let text = text.strip_prefix('v').unwrap_or(text);
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let numbers: Result<Vec<u32>, _> =
            text[..end].trim_end_matches('.').split('.').map(str::parse).collect();
        numbers.ok().map(Version)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, number) in self.0.iter().enumerate() {
            write!(f, "{}{number}", if i == 0 { "" } else { "." })?;
        }
        Ok(())
    }
}

/// A program of the right kind and version, or what there is instead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// What was looked for.
    Good {
        /// What it says it is.
        version: Version,
        /// Where it is.
        path: PathBuf,
    },
    /// Only another one: what it says, and where it is.
    Unfit(String),
    /// Nothing of that name.
    Absent,
}

impl Found {
    pub(crate) fn usable(&self) -> bool {
        matches!(self, Found::Good { .. })
    }

    /// For people.
    pub(crate) fn shown(&self) -> String {
        match self {
            Found::Good { version, path } => format!("{version}, {}", path.display()),
            Found::Unfit(what) => what.clone(),
            Found::Absent => "not found".into(),
        }
    }
}

/// The first program called `name` that answers `--version` with one of `titles` and then a version
/// of `least` or later. Names alone do not tell programs apart.
pub(crate) fn fit(path: &OsStr, name: &str, titles: &[&str], least: &[u32]) -> Found {
    let mut unfit = None;
    for file in all(path, name) {
        let answer = ask(path, &file, &["--version"], None).filter(|answer| answer.status.success());
        let stdout = answer.map(|answer| answer.stdout).unwrap_or_default();
        let said = stdout.lines().next().unwrap_or("does not say its version");
        let version = titles.iter().find_map(|title| Version::at_start(said.strip_prefix(title)?));
        match version {
            Some(version) if version.0.as_slice() >= least => return Found::Good { version, path: file },
            _ => _ = unfit.get_or_insert_with(|| format!("{said}, {}", file.display())),
        }
    }
    unfit.map_or(Found::Absent, Found::Unfit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    #[test]
    fn versions_are_read_where_they_belong_and_ordered_by_number() {
        let of = Version::at_start;
        assert_eq!(of(" 7.2.22 (Debian 1:7.2+dfsg)"), Some(Version(vec![7, 2, 22])));
        assert_eq!(of(" v53.0-12-gabc"), Some(Version(vec![53, 0])));
        assert_eq!(of(" version 7.2"), None);
        assert_eq!(of(""), None);
        assert!(of("1.9.0") < of("1.10"));
        assert_eq!(of("1.10").unwrap().to_string(), "1.10");
    }

    #[test]
    fn a_program_that_hangs_or_floods_or_leaves_children_behind_ends() {
        let path = OsStr::new("/usr/bin:/bin");
        let sh = find(path, "sh").unwrap();
        let begin = Instant::now();
        let left = ask(path, &sh, &["-c", "sleep 60 & echo there"], None).unwrap();
        assert_eq!((left.status.success(), left.stdout.as_str()), (true, "there\n"));
        let flood = ask(path, &sh, &["-c", "yes"], None);
        assert!(flood.is_none_or(|answer| answer.stdout.len() as u64 <= ANSWER));
        assert!(ask(path, &sh, &["-c", "sleep 60"], None).is_none());
        assert!(ask(path, Path::new("/nowhere"), &[], None).is_none());
        // None of those that sleep was waited for.
        assert!(begin.elapsed() < Duration::from_secs(50));
    }

    #[test]
    fn relative_folders_and_files_that_cannot_be_executed_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tool"), "").unwrap();
        let path = OsString::from(format!(".:bin:{}", dir.path().display()));
        assert_eq!(find(&path, "tool"), None);
        std::fs::set_permissions(dir.path().join("tool"), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(&path, "tool"), Some(dir.path().join("tool")));
    }
}
