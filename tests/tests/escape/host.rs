//! What a command can learn of the host, its users and its caller.

use firn_tests::{Grade, Host, both_grades, jail_only};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

/// Where a sandbox has files of its own.
const WRITABLE: &str = "/etc /home /root /tmp /var /run /opt /srv /mnt /workspace";

both_grades!(no_private_file_is_there_by_path_or_by_content);
fn no_private_file_is_there_by_path_or_by_content(grade: Grade) {
    let host = Host::of(grade);
    // Nobody else's, and not in the script as such.
    let secret = format!("secret-{}-of-the-host", std::process::id());
    let share = host.work().join("share");
    fs::create_dir(&share).unwrap();
    let mut paths = Vec::new();
    for name in [".ssh/id_ed25519", ".bash_history", ".netrc", ".config/token", ".aws/credentials"] {
        let path = host.home().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &secret).unwrap();
        // As if the caller had been careless.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        paths.push(path.to_str().unwrap().to_owned());
    }
    fs::write(host.work().join("beside"), &secret).unwrap();
    paths.push(host.work().join("beside").to_str().unwrap().to_owned());
    paths.extend(
        ["/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/root/.bashrc", "/etc/machine-id"].map(String::from),
    );
    paths.retain(|path| fs::metadata(path).is_ok());
    assert!(paths.len() > 6, "{paths:?}");

    fs::write(share.join("given"), &secret).unwrap();
    let (start, end) = secret.split_at(10);
    let script = format!(
        "grep -rlF \"{start}\"'{end}' {WRITABLE} 2>/dev/null; \
         for path in {}; do test -e $path && echo \"there: $path\"; done; \
         ls -A /home /root /var/log /var/lib /var/cache /srv /opt /mnt; true",
        paths.join(" ")
    );
    let done = host.sh(&["-w", share.to_str().unwrap()], &script).finish().expect(0);
    let (found, listing) = done.text().split_once("/home:").unwrap();
    // What was given is found that way, and nothing else.
    assert_eq!(found, "/workspace/given\n");
    let names: Vec<&str> = listing.lines().filter(|line| !line.is_empty() && !line.ends_with(':')).collect();
    assert!(names.iter().all(|name| *name == "sandbox"), "{names:?}");
}

both_grades!(users_and_names_are_made_up);
fn users_and_names_are_made_up(grade: Grade) {
    let host = Host::of(grade);
    let users = fs::read_to_string("/etc/passwd").unwrap();
    assert!(users.lines().any(|line| line.starts_with("daemon:")), "a host without users shows nothing");
    let script = "cut -d: -f1 /etc/passwd; echo; cut -d: -f1 /etc/group; echo; \
                  cat /etc/hostname; hostname; uname -n; cat /proc/sys/kernel/hostname; \
                  getent hosts localhost | head -n1; cat /etc/hosts";
    let done = host.sh(&[], script).finish().expect(0);
    let parts: Vec<&str> = done.text().split("\n\n").collect();
    assert_eq!(parts[0].lines().collect::<Vec<_>>(), ["root", "sandbox", "nobody"]);
    assert!(!parts[1].contains("daemon") && parts[1].contains("nogroup"), "{}", parts[1]);
    let names: Vec<&str> = parts[2].lines().collect();
    assert!(names[0].starts_with("firn-"), "{names:?}");
    assert!(names[..4].iter().all(|name| *name == names[0]), "{names:?}");
    assert!(names[4].contains("localhost"), "{names:?}");
    let of_host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(!names.contains(&of_host.trim()), "{names:?}");
}

both_grades!(no_identity_of_the_host_is_shown);
fn no_identity_of_the_host_is_shown(grade: Grade) {
    let host = Host::of(grade);
    for path in ["/proc/sys/kernel/random/boot_id", "/proc/cmdline"] {
        let ours = fs::read_to_string(path).unwrap();
        assert!(ours.len() > 10, "{path}: {ours}");
        let done = host.sh(&[], &format!("cat {path} || true")).finish().expect(0);
        assert_ne!(done.text(), ours, "{path}");
        if grade == Grade::Jail && path == "/proc/cmdline" {
            assert_eq!(done.text(), "");
        }
    }
    let script = "cat /etc/machine-id /var/lib/dbus/machine-id /sys/class/dmi/id/* /sys/class/net/e*/address \
                  /sys/block/*/size 2>/dev/null; true";
    if grade == Grade::Jail {
        assert_eq!(host.sh(&[], script).finish().expect(0).text(), "");
    }
}

both_grades!(nothing_of_the_callers_environment_is_passed_on);
fn nothing_of_the_callers_environment_is_passed_on(grade: Grade) {
    let host = Host::of(grade);
    let script =
        "cat /proc/1/environ /proc/$PPID/environ 2>/dev/null | tr '\\0' '\\n'; echo --; env; echo --; pwd";
    let secret = |options: &[&str]| {
        let done =
            host.sh(options, script).env("GITHUB_TOKEN", "a-token").env("LC_ALL", "tlh").finish().expect(0);
        let parts: Vec<String> = done.text().split("--\n").map(str::to_owned).collect();
        assert_eq!(parts[0], "", "in the environment of the agent");
        (parts[1].clone(), parts[2].clone())
    };
    let (shown, folder) = secret(&[]);
    let names: Vec<&str> =
        shown.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    let known = ["USER", "HOME", "LOGNAME", "PATH", "LANG", "SHELL", "PWD", "SHLVL", "_", "OLDPWD"];
    assert!(names.iter().all(|name| known.contains(name)), "{names:?}");
    assert!(!shown.contains("tlh"), "{shown}");
    assert_eq!(folder, "/workspace\n");
    assert!(secret(&["-e", "GITHUB_TOKEN"]).0.contains("GITHUB_TOKEN=a-token"));
}

both_grades!(what_programs_rely_on_is_there);
fn what_programs_rely_on_is_there(grade: Grade) {
    let host = Host::of(grade);
    let script = "printf '#!/usr/bin/env sh\\necho by env\\n' > /tmp/script; chmod +x /tmp/script; /tmp/script; \
                  test -x /bin/sh && test -x /usr/bin/env && echo there; \
                  for dir in $(echo $PATH | tr : ' '); do case $dir in /*) ;; *) echo \"odd: $dir\" ;; esac; done; \
                  command -v sh; echo text > /dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; \
                  echo x | tee /dev/stderr 2>&1 >/dev/null | cat; cat <(echo substituted) 2>/dev/null; \
                  test -w \"$HOME\" && test -w /tmp && test -w . && test -w /dev/shm && echo writable";
    let done = host.run(&["--", "bash", "-c", script]).finish().expect(0);
    assert_eq!(done.text(), "by env\nthere\n/usr/bin/sh\n3\n3\nx\nsubstituted\nwritable\n");
    let done = host.run(&["--user", "sandbox", "--", "bash", "-c", script]).finish().expect(0);
    assert_eq!(done.text(), "by env\nthere\n/usr/bin/sh\n3\n3\nx\nsubstituted\nwritable\n");
}

// In a guest these are of the guest's own kernel.
jail_only!(what_proc_tells_of_the_host_is_masked);
fn what_proc_tells_of_the_host_is_masked() {
    let host = Host::of(Grade::Jail);
    let done = host
        .sh(
            &[],
            "for file in kcore keys timer_list sched_debug kmsg kallsyms latency_stats key-users \
                 slabinfo vmallocinfo scsi/scsi; do \
                 if [ -s /proc/$file ] || head -c1 /proc/$file 2>/dev/null | grep -q .; then echo $file; fi; \
             done; dmesg 2>/dev/null | head -n1; \
             true",
        )
        .finish()
        .expect(0);
    // `kallsyms` without addresses is no secret.
    let shown: Vec<&str> = done.text().lines().filter(|line| *line != "kallsyms").collect();
    assert_eq!(shown, Vec::<&str>::new());
}
