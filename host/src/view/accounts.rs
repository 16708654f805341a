//! The users and groups that exist in a sandbox. The host's own are nobody's business there.

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

/// The number of a user as `--user` takes it (`NAME`, `UID`, either with `:GROUP`), when it can be
/// known on the host. A user that only the guest knows is not known here.
pub(crate) fn guest_uid(user: &str) -> Option<u32> {
    let name = user.split_once(':').map_or(user, |(name, _)| name);
    let known = ACCOUNTS.iter().find(|account| account.name == name).map(|account| account.id);
    known.or_else(|| name.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_known_by_name_and_number() {
        assert_eq!(guest_uid("sandbox"), Some(1000));
        assert_eq!(guest_uid("sandbox:users"), Some(1000));
        assert_eq!(guest_uid("7:7"), Some(7));
        assert_eq!(guest_uid("alice"), None);
    }

    #[test]
    fn every_user_has_a_group() {
        assert_eq!(passwd().lines().count(), ACCOUNTS.len());
        assert!(group().contains("nogroup:x:65534:"));
    }
}
