//! Why bubblewrap cannot make the namespaces of a sandbox, and what lets it.
//!
//! The kernel answers only "no". Which of the several switches that hosts have is to blame follows
//! from what bubblewrap was doing, from what it says of the answer, and from how the switches stand.

use std::fs;
use std::path::Path;

/// How the host's switches stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Switches {
    /// AppArmor takes the rights in a new user namespace away, except from programs whose profile
    /// says `userns` (Ubuntu since 23.10).
    pub(crate) apparmor_restricts: bool,
    /// Debian's own switch, until Debian 10, and that of hardened kernels: only root may make them.
    pub(crate) only_root: bool,
    /// There may be none at all.
    pub(crate) none_allowed: bool,
}

impl Switches {
    /// Those of the host whose root is `root`.
    pub(crate) fn read(root: &Path) -> Switches {
        let is = |path: &str, value: &str| {
            fs::read_to_string(root.join("proc/sys").join(path)).is_ok_and(|text| text.trim() == value)
        };
        Switches {
            apparmor_restricts: is("kernel/apparmor_restrict_unprivileged_userns", "1"),
            only_root: is("kernel/unprivileged_userns_clone", "0"),
            none_allowed: is("user/max_user_namespaces", "0"),
        }
    }
}

/// What stands in bubblewrap's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// AppArmor's restriction.
    AppArmor,
    /// Debian's switch.
    OnlyRoot,
    /// `user.max_user_namespaces` is 0.
    NoneAllowed,
    /// So many are there already, or so deep in each other, that there may be no more.
    TooMany,
    /// Something forbids them that shows in no setting: the system call filter of a container, as
    /// Docker's.
    Filtered,
    /// A container that hides parts of `/proc` lets nobody mount another.
    MaskedProc,
    /// The kernel was built without them.
    NotInKernel,
    /// Something else: the last that bubblewrap said.
    Other(String),
}

/// What stood in the way of a bubblewrap that failed and said this on its stderr.
pub(crate) fn obstacle(stderr: &str, switches: Switches) -> Obstacle {
    // The messages are in bubblewrap.c and network.c, unchanged from 0.4 to 0.11 but for the advice
    // that some of them end with.
    let says = |text: &str| stderr.contains(text);
    let denied = says("Permission denied") || says("Operation not permitted");
    let not_made = says("No permissions to creat");
    if says("namespaces exceeded (ENOSPC)") {
        if switches.none_allowed { Obstacle::NoneAllowed } else { Obstacle::TooMany }
    } else if says("kernel does not support user namespaces") {
        Obstacle::NotInKernel
    } else if not_made && switches.only_root {
        Obstacle::OnlyRoot
    } else if switches.apparmor_restricts && (not_made || denied) {
        // A namespace is made, and then nothing is allowed in it: the first to be missed is the
        // right to map ids, or to bring the loopback device up, as the profile happens to be.
        Obstacle::AppArmor
    } else if not_made {
        Obstacle::Filtered
    } else if says("Can't mount proc") && denied {
        Obstacle::MaskedProc
    } else {
        Obstacle::Other(stderr.lines().last().unwrap_or("bwrap failed").to_owned())
    }
}

impl Obstacle {
    /// What it is.
    pub(crate) fn found(&self) -> String {
        match self {
            Obstacle::AppArmor => {
                "AppArmor takes all rights from user namespaces of programs it does not know \
                 (kernel.apparmor_restrict_unprivileged_userns = 1)"
            }
            Obstacle::OnlyRoot => "only root may make them (kernel.unprivileged_userns_clone = 0)",
            Obstacle::NoneAllowed => "none may be made (user.max_user_namespaces = 0)",
            Obstacle::TooMany => "no more may be made, or none inside others this deep",
            Obstacle::Filtered => "they are forbidden from outside, as containers do by default",
            Obstacle::MaskedProc => "parts of /proc are hidden, as in containers, so no other can be mounted",
            Obstacle::NotInKernel => "the kernel has none",
            Obstacle::Other(said) => said,
        }
        .to_owned()
    }

    /// A shell command that removes it, where one does. `bwrap` is the program that is run, and
    /// `sudo` what a command of root's begins with: nothing for root.
    pub(crate) fn remedy(&self, bwrap: &Path, sudo: &str) -> Option<String> {
        match self {
            Obstacle::AppArmor => Some(apparmor_profile(bwrap, sudo)),
            Obstacle::OnlyRoot => Some(format!("{sudo}sysctl -w kernel.unprivileged_userns_clone=1")),
            Obstacle::NoneAllowed => Some(format!("{sudo}sysctl -w user.max_user_namespaces=15000")),
            Obstacle::Filtered => Some(
                "docker run --security-opt seccomp=unconfined …  # if this is such a container".to_owned(),
            ),
            Obstacle::MaskedProc => Some(
                "docker run --security-opt systempaths=unconfined …  # if this is such a container"
                    .to_owned(),
            ),
            Obstacle::TooMany | Obstacle::NotInKernel | Obstacle::Other(_) => None,
        }
    }
}

/// Lets bubblewrap alone make user namespaces: a profile that restricts nothing, and so is no
/// confinement, but names the program (apparmor.d(5), "Unprivileged user namespace restrictions" of
/// AppArmor 4). Whatever is run by bubblewrap can do the same. The other way is
/// `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, for all programs.
fn apparmor_profile(bwrap: &Path, sudo: &str) -> String {
    format!(
        "printf '%s\\n' 'abi <abi/4.0>,' 'include <tunables/global>' \
         'profile bwrap {} flags=(unconfined) {{' '  userns,' '  include if exists <local/bwrap>' '}}' \
         | {sudo}tee /etc/apparmor.d/bwrap >/dev/null && {sudo}apparmor_parser -r /etc/apparmor.d/bwrap",
        bwrap.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Switches = Switches { apparmor_restricts: false, only_root: false, none_allowed: false };
    const APPARMOR: Switches = Switches { apparmor_restricts: true, ..NONE };

    /// As Debian's bubblewrap 0.8 says it, and as the original does.
    const NOT_MADE: [&str; 2] = [
        "bwrap: No permissions to create new namespace, likely because the kernel does not allow \
         non-privileged user namespaces. See <https://deb.li/bubblewrap> or \
         <file:///usr/share/doc/bubblewrap/README.Debian.gz>.\n",
        "bwrap: No permissions to creating new namespace, likely because the kernel does not allow \
         non-privileged user namespaces. On e.g. debian this can be enabled with \
         'sysctl kernel.unprivileged_userns_clone=1'.\n",
    ];

    #[test]
    fn apparmor_is_recognised_wherever_it_strikes() {
        for said in [
            "bwrap: setting up uid map: Permission denied\n",
            "bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted\n",
            NOT_MADE[0],
        ] {
            assert_eq!(obstacle(said, APPARMOR), Obstacle::AppArmor, "{said}");
            assert_ne!(obstacle(said, NONE), Obstacle::AppArmor, "{said}");
        }
        let other = "bwrap: Can't find source path /x: No such file or directory";
        assert_eq!(obstacle(other, APPARMOR), Obstacle::Other(other.to_owned()));
    }

    #[test]
    fn a_switch_is_blamed_for_what_it_does() {
        for said in NOT_MADE {
            assert_eq!(obstacle(said, Switches { only_root: true, ..APPARMOR }), Obstacle::OnlyRoot);
            assert_eq!(obstacle(said, NONE), Obstacle::Filtered);
        }
        let no_space = "bwrap: Creating new namespace failed: nesting depth or \
                        /proc/sys/user/max_*_namespaces exceeded (ENOSPC)\n";
        assert_eq!(obstacle(no_space, Switches { none_allowed: true, ..NONE }), Obstacle::NoneAllowed);
        assert_eq!(obstacle(no_space, APPARMOR), Obstacle::TooMany);
        let old = "bwrap: Creating new namespace failed, likely because the kernel does not support user \
                   namespaces.  bwrap must be installed setuid on such systems.\n";
        assert_eq!(obstacle(old, NONE), Obstacle::NotInKernel);
        let proc = "bwrap: Can't mount proc on /newroot/proc: Operation not permitted\n";
        assert_eq!(obstacle(proc, NONE), Obstacle::MaskedProc);
    }

    #[test]
    fn the_last_that_was_said_is_passed_on() {
        let said = "bwrap: first\nbwrap: execvp true: No such file or directory\n";
        let last = "bwrap: execvp true: No such file or directory".to_owned();
        assert_eq!(obstacle(said, NONE), Obstacle::Other(last));
        assert_eq!(obstacle("", NONE).found(), "bwrap failed");
    }

    #[test]
    fn the_profile_is_what_apparmor_reads() {
        let remedy = Obstacle::AppArmor.remedy(Path::new("/usr/bin/bwrap"), "sudo ").unwrap();
        let (print, install) = remedy.split_once(" | ").unwrap();
        let printed = std::process::Command::new("sh").args(["-c", print]).output().unwrap();
        assert_eq!(
            String::from_utf8(printed.stdout).unwrap(),
            "abi <abi/4.0>,\ninclude <tunables/global>\n\
             profile bwrap /usr/bin/bwrap flags=(unconfined) {\n  userns,\n  include if exists <local/bwrap>\n}\n"
        );
        assert_eq!(
            install,
            "sudo tee /etc/apparmor.d/bwrap >/dev/null && sudo apparmor_parser -r /etc/apparmor.d/bwrap"
        );
    }
}
