//! Users and groups as the sandbox itself names them.
//!
//! Reads `/etc/passwd` and `/etc/group`; no NSS, which a static program does not have and a
//! sandbox does not need. Both files belong to the sandbox and may hold anything, so lines that
//! make no sense are passed over, and only ordinary files of a sensible size are read.

use crate::sys;
use nix::errno::Errno;
use nix::unistd::{getegid, geteuid};
use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

/// The most of a file that is read, in bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Whom a command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The whole list for `setgroups(2)`.
    pub(crate) groups: Vec<u32>,
}

impl Identity {
    /// Makes this process one of theirs.
    pub(crate) fn assume(&self, own: bool) -> Result<(), Errno> {
        match sys::set_groups(&self.groups) {
            // A user namespace may forbid it, and then there is nothing to give up either.
            Err(Errno::EPERM) if own => {}
            result => result?,
        }
        sys::set_gid(self.gid)?;
        sys::set_uid(self.uid)
    }
}

/// What the environment says of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: Vec<u8>,
    pub(crate) home: Vec<u8>,
    pub(crate) shell: Vec<u8>,
}

/// Where an ordinary user's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    pub(crate) path: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The numbers of ordinary users, as Debian and systemd assign them.
const ORDINARY: std::ops::RangeInclusive<u32> = 1000..=60_000;

/// Which half of a `USER[:GROUP]` is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    User,
    Group,
}

struct User<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
    shell: &'a [u8],
}

struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

/// The two files, as they were at one moment.
#[derive(Default)]
pub(crate) struct Accounts {
    passwd: Vec<u8>,
    group: Vec<u8>,
}

impl Accounts {
    /// Reads the sandbox's files. A missing or strange one is an empty one. The group file is
    /// left out unless it is asked for: most commands run as the agent's own user.
    pub(crate) fn read(groups: bool) -> Accounts {
        Accounts { passwd: read("/etc/passwd"), group: if groups { read("/etc/group") } else { Vec::new() } }
    }

    fn users(&self) -> impl Iterator<Item = User<'_>> {
        lines(&self.passwd).filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b':');
            let name = fields.next()?;
            let _password = fields.next()?;
            let uid = number(fields.next()?)?;
            let gid = number(fields.next()?)?;
            let _comment = fields.next()?;
            Some(User { name, uid, gid, home: fields.next()?, shell: fields.next().unwrap_or_default() })
        })
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        lines(&self.group).filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b':');
            let name = fields.next()?;
            let _password = fields.next()?;
            Some(Group { name, gid: number(fields.next()?)?, members: fields.next().unwrap_or_default() })
        })
    }

    /// Resolves `NAME`, `UID`, `NAME:GROUP` or `UID:GID`. A number need not be in the files; its
    /// group is then the one of the same number. With a group named there are no others.
    pub(crate) fn identity(&self, user: &str) -> Result<Identity, Unknown> {
        let (user, group) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (user, None),
        };
        let known = self.users().find(|known| known.name == user.as_bytes());
        let (uid, known) = match (known, number(user.as_bytes())) {
            (Some(known), _) => (known.uid, Some(known)),
            (None, Some(uid)) => (uid, self.users().find(|known| known.uid == uid)),
            (None, None) => return Err(Unknown::User),
        };
        if let Some(group) = group {
            let gid = self
                .groups()
                .find(|known| known.name == group.as_bytes())
                .map(|known| known.gid)
                .or_else(|| number(group.as_bytes()))
                .ok_or(Unknown::Group)?;
            return Ok(Identity { uid, gid, groups: vec![gid] });
        }
        let Some(known) = known else {
            return Ok(Identity { uid, gid: uid, groups: vec![uid] });
        };
        let mut groups = vec![known.gid];
        for group in self.groups() {
            let member = group.members.split(|byte| *byte == b',').any(|member| member == known.name);
            if member && !groups.contains(&group.gid) {
                groups.push(group.gid);
            }
        }
        Ok(Identity { uid, gid: known.gid, groups })
    }

    /// The homes of ordinary users, as far as they are where homes are: right below `/home`.
    pub(crate) fn homes(&self) -> impl Iterator<Item = Home> {
        self.users().filter(|user| ORDINARY.contains(&user.uid)).filter_map(|user| {
            let name = user.home.strip_prefix(b"/home/")?;
            let is_name = !name.is_empty() && !name.contains(&b'/') && name != b"." && name != b"..";
            let path = PathBuf::from(OsStr::from_bytes(user.home));
            is_name.then_some(Home { path, uid: user.uid, gid: user.gid })
        })
    }

    /// What the environment should say of a user.
    pub(crate) fn account(&self, uid: u32) -> Account {
        let root = uid == 0;
        match self.users().find(|known| known.uid == uid) {
            Some(known) => Account {
                name: known.name.to_vec(),
                home: if known.home.is_empty() { b"/".to_vec() } else { known.home.to_vec() },
                shell: if known.shell.is_empty() { b"/bin/sh".to_vec() } else { known.shell.to_vec() },
            },
            None => Account {
                name: if root { b"root".to_vec() } else { uid.to_string().into_bytes() },
                home: if root { b"/root".to_vec() } else { b"/".to_vec() },
                shell: b"/bin/sh".to_vec(),
            },
        }
    }
}

/// Whether a process that becomes this one stays what it is.
pub(crate) fn is_own(identity: &Identity) -> bool {
    identity.uid == geteuid().as_raw() && identity.gid == getegid().as_raw()
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n').filter(|line| !line.contains(&0))
}

/// A user or group number. Never the one that means "unchanged" to `setresuid(2)`: a command would
/// keep the agent's own rights.
fn number(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok().filter(|number| *number != u32::MAX)
}

fn read(path: &str) -> Vec<u8> {
    let mut text = Vec::new();
    // Not blocking, because the sandbox may have put a FIFO there.
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    if let Ok(file) = opened
        && let Ok(metadata) = file.metadata()
        && metadata.is_file()
    {
        // Room for all of it and the end: two reads rather than one for each doubling.
        text.reserve(usize::try_from(metadata.len().min(MAX_FILE)).unwrap_or(0) + 1);
        if file.take(MAX_FILE).read_to_end(&mut text).is_err() {
            text.clear();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: b"root:x:0:0:root:/root:/bin/bash\nbroken\nann:x:1000:100::/home/ann:\nbad:x:-1:0::/:\n\
                      max:x:4294967295:0::/:\n"
                .to_vec(),
            group: b"root:x:0:\nusers:x:100:\nwheel:x:10:ann,bob\nbanner:x:11:annabel\n".to_vec(),
        }
    }

    #[test]
    fn names_and_numbers_resolve() {
        let accounts = accounts();
        let ann = Identity { uid: 1000, gid: 100, groups: vec![100, 10] };
        assert_eq!(accounts.identity("ann"), Ok(ann.clone()));
        assert_eq!(accounts.identity("1000"), Ok(ann));
        assert_eq!(accounts.identity("ann:wheel"), Ok(Identity { uid: 1000, gid: 10, groups: vec![10] }));
        assert_eq!(accounts.identity("7:8"), Ok(Identity { uid: 7, gid: 8, groups: vec![8] }));
        assert_eq!(accounts.identity("7"), Ok(Identity { uid: 7, gid: 7, groups: vec![7] }));
    }

    #[test]
    fn homes_are_those_of_ordinary_users_below_home() {
        let homes = |line: &str| {
            let accounts = Accounts { passwd: line.as_bytes().to_vec(), group: Vec::new() };
            accounts.homes().collect::<Vec<_>>()
        };
        let ann = Home { path: "/home/ann".into(), uid: 1000, gid: 100 };
        assert_eq!(homes("root:x:0:0::/home/root:\nann:x:1000:100::/home/ann:/bin/sh\n"), [ann]);
        for home in ["", "/", "/home", "/home/", "/home/.", "/home/..", "/home/a/b", "/home/../etc", "/srv/a"]
        {
            assert_eq!(homes(&format!("a:x:1000:100::{home}:\n")), [], "{home}");
        }
        assert_eq!(homes("nobody:x:65534:65534::/home/nobody:\n"), []);
    }

    #[test]
    fn what_is_not_there_is_unknown() {
        let accounts = accounts();
        for user in ["", "nobody", "bad", "+1", "-1", "4294967295", "max", "4294967296", "1 "] {
            assert_eq!(accounts.identity(user), Err(Unknown::User), "{user}");
        }
        for user in ["ann:", "ann:none", "ann:4294967295", "ann:10:10"] {
            assert_eq!(accounts.identity(user), Err(Unknown::Group), "{user}");
        }
    }

    #[test]
    fn accounts_have_a_home_and_a_shell_whatever_the_file_says() {
        let root = Accounts::default().account(0);
        assert_eq!((root.name.as_slice(), root.home.as_slice()), (&b"root"[..], &b"/root"[..]));
        let stranger = accounts().account(7);
        assert_eq!((stranger.name.as_slice(), stranger.home.as_slice()), (&b"7"[..], &b"/"[..]));
        assert_eq!(accounts().account(1000).shell, b"/bin/sh");
    }
}
