//! The users and groups that exist in a sandbox. The host's own are nobody's business there.

use std::path::Path;

/// A user of every sandbox, with a group of the same name and number.
struct Account {
    name: &'static str,
    id: u32,
    about: &'static str,
    home: &'static str,
    shell: &'static str,
}

const ACCOUNTS: [Account; 3] = [
    Account { name: "root", id: 0, about: "root", home: "/root", shell: "/bin/bash" },
    Account { name: "sandbox", id: 1000, about: "sandbox user", home: "/home/sandbox", shell: "/bin/bash" },
    Account { name: "nobody", id: 65534, about: "nobody", home: "/nonexistent", shell: "/usr/sbin/nologin" },
];

/// Groups without a user, as Debian numbers them: device nodes belong to `tty` and `disk`, and
/// programs look for the names.
const GROUPS: [(&str, u32); 4] = [("tty", 5), ("disk", 6), ("staff", 50), ("users", 100)];

/// `passwd`(5).
pub(super) fn passwd() -> String {
    ACCOUNTS
        .iter()
        .map(|Account { name, id, about, home, shell }| {
            format!("{name}:x:{id}:{id}:{about}:{home}:{shell}\n")
        })
        .collect()
}

/// `group`(5).
pub(super) fn group() -> String {
    let of_users = ACCOUNTS.iter().map(|account| {
        // Debian's group 65534 has a name of its own.
        (if account.name == "nobody" { "nogroup" } else { account.name }, account.id)
    });
    of_users.chain(GROUPS).map(|(name, id)| format!("{name}:x:{id}:\n")).collect()
}

/// The numbers of a user and their group as `--user` takes them (`NAME`, `UID`, either with
/// `:GROUP`), when they can be known on the host. A user that only the guest knows is not known here.
pub(crate) fn ids(user: &str) -> Option<(u32, u32)> {
    let (name, group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let named =
        |wanted: &str| ACCOUNTS.iter().find(|account| account.name == wanted).map(|account| account.id);
    let uid = named(name).or_else(|| name.parse().ok())?;
    let gid = match group {
        Some(group) => named(group)
            .or_else(|| GROUPS.iter().find(|(name, _)| *name == group).map(|(_, id)| *id))
            .or_else(|| group.parse().ok())?,
        None => uid,
    };
    Some((uid, gid))
}

/// The home of a user.
pub(crate) fn home(uid: u32) -> &'static Path {
    let known = ACCOUNTS.iter().find(|account| account.id == uid);
    Path::new(known.map_or("/", |account| account.home))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_known_by_name_and_number() {
        assert_eq!(ids("root"), Some((0, 0)));
        assert_eq!(ids("sandbox"), Some((1000, 1000)));
        assert_eq!(ids("sandbox:users"), Some((1000, 100)));
        assert_eq!(ids("7:8"), Some((7, 8)));
        assert_eq!(ids("7"), Some((7, 7)));
        assert_eq!(ids("alice"), None);
        assert_eq!(ids("sandbox:alices"), None);
    }

    #[test]
    fn every_user_has_a_group() {
        assert_eq!(passwd().lines().count(), ACCOUNTS.len());
        assert!(group().contains("nogroup:x:65534:"));
    }
}
