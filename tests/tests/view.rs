//! What a sandbox sees of the host, and what it can change there.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::{Bystander, Grade, Host, both_grades, jail_only, vm_only};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

both_grades!(nothing_private_of_the_host_is_there);
fn nothing_private_of_the_host_is_there(grade: Grade) {
    let host = Host::of(grade);
    fs::write(host.work().join("secret"), "x").unwrap();
    let work = host.work();
    let script = format!(
        "for path in /etc/shadow /home/[!s]* /home/*/.[!.]* /root/.[a-z]* /root/* /var/lib/dpkg /var/log/* /run/firn {} /boot /host; do \
             if [ -e \"$path\" ]; then echo \"there: $path\"; fi; \
         done; \
         find / -xdev -type s 2>/dev/null; \
         cat /proc/1/environ | tr '\\0' '\\n'; \
         tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '; cat /etc/hostname; hostname",
        work.display()
    );
    let done = host.run(&["--", "sh", "-c", &script]).finish().expect(0);
    let lines: Vec<&str> = done.text().lines().collect();
    // The only network device is loopback; the name is the sandbox's.
    assert_eq!(lines[0], "lo", "{lines:?}");
    assert!(lines[1].starts_with("firn-"), "{lines:?}");
    assert_eq!(lines[1], lines[2]);
    assert_eq!(lines.len(), 3);
}

both_grades!(the_hosts_processes_are_unseen);
fn the_hosts_processes_are_unseen(grade: Grade) {
    let host = Host::of(grade);
    let bystander = Bystander::start("firn-test-bystander");
    let line = fs::read_to_string(format!("/proc/{}/cmdline", bystander.pid())).unwrap();
    assert!(line.contains("firn-test-bystander"), "{line}");
    let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; cat $p/comm; done; : our-own-mark";
    let done = host.run(&["--", "sh", "-c", script]).finish().expect(0);
    for theirs in ["qemu", "cargo", "nextest", "firn-test-bystander"] {
        assert!(!done.text().contains(theirs), "{theirs}: {}", done.text());
    }
    assert!(done.text().contains("our-own-mark"), "{}", done.text());
}

both_grades!(writes_work_and_vanish);
fn writes_work_and_vanish(grade: Grade) {
    let host = Host::of(grade);
    let mark = host.work().file_name().unwrap().to_str().unwrap().to_owned() + "-firn-was-here";
    let folders = "/ /etc /tmp /home /root /run /opt /srv /var /var/lib /var/tmp /mnt /workspace /dev/shm";
    let script = format!(
        "for dir in {folders}; do mkdir $dir/{mark} && echo new > $dir/{mark}/file && \
             cat $dir/{mark}/file || echo \"not in $dir\"; done; \
         echo more >> /etc/passwd && tail -n1 /etc/passwd"
    );
    let done = host.run(&["--", "sh", "-c", &script]).finish().expect(0);
    assert_eq!(done.text(), "new\n".repeat(folders.split(' ').count()) + "more\n", "{}", done.stderr);
    for folder in folders.split(' ') {
        assert!(!Path::new(folder).join(&mark).exists(), "in {folder} of the host");
    }
    assert!(!fs::read_to_string("/etc/passwd").unwrap().contains("more\n"));
}

// A guest has an overlay over everything; a jail shows the host's own folder of programs.
vm_only!(programs_can_be_changed_and_are_not);
fn programs_can_be_changed_and_are_not() {
    let host = Host::new();
    let marker = "/usr/bin/firn-was-here";
    let script = format!(
        "echo '#!/bin/sh' > {marker} && echo echo new >> {marker} && chmod +x {marker} && firn-was-here && \
         mkdir /etc/new && mv /etc/services /etc/new/ && rm -r /etc/alternatives && \
         rm /usr/bin/env && chown 12:34 /usr/bin/wc && stat -c %u:%g /usr/bin/wc"
    );
    let done = host.run(&["--", "sh", "-c", &script]).finish().expect(0);
    assert_eq!(done.text(), "new\n12:34\n");
    assert!(!Path::new(marker).exists());
    for path in ["/usr/bin/env", "/etc/services", "/etc/alternatives"] {
        assert!(Path::new(path).exists(), "{path}");
    }
    assert_eq!(fs::metadata("/usr/bin/wc").unwrap().uid(), 0);
}

jail_only!(programs_cannot_be_changed);
fn programs_cannot_be_changed() {
    let host = Host::of(Grade::Jail);
    let before = fs::metadata("/usr/bin/env").unwrap();
    let changes = [
        "touch new",
        "rm env",
        "chmod 700 env",
        "touch -d 2001-01-01 env",
        "mv env vne",
        "mkdir folder",
        "ln env hard",
        "ln -s env soft",
        "truncate -s 0 env",
        "rm -r .",
    ];
    // The control: the same in a folder of its own.
    let script = |folder: &str| {
        let each = changes.map(|change| {
            format!("[ -d {folder}/own ] && {{ rm -rf {folder}/own; mkdir {folder}/own; cp /usr/bin/env {folder}/own; }}; \
                     cd {folder}/own 2>/dev/null || cd {folder}; {change} 2>/dev/null && echo \"{change}\"")
        });
        each.join("; ") + "; true"
    };
    // `rm` never removes the folder it is in.
    let possible = changes[..9].join("\n") + "\n";
    let own = format!("mkdir -p /tmp/own; {}", script("/tmp"));
    assert_eq!(host.sh(&[], &own).finish().expect(0).text(), possible);
    for folder in ["/usr/bin", "/bin"] {
        for user in ["root", "sandbox"] {
            let done = host.sh(&["--user", user], &script(folder)).finish().expect(0);
            assert_eq!(done.text(), "", "in {folder} as {user}");
        }
    }
    let after = fs::metadata("/usr/bin/env").unwrap();
    let facts = |of: &fs::Metadata| (of.mode(), of.uid(), of.len(), of.mtime(), of.nlink());
    assert_eq!(facts(&before), facts(&after));
    // Root here owns nothing but what it made.
    let script = "touch /tmp/file; chown 12:34 /tmp/file 2>/dev/null || echo kept; stat -c %u /tmp/file";
    assert_eq!(host.sh(&[], script).finish().expect(0).text(), "kept\n0\n");
}

both_grades!(a_workspace_is_the_callers_folder);
fn a_workspace_is_the_callers_folder(grade: Grade) {
    let host = Host::of(grade);
    let work = host.work();
    fs::create_dir(work.join("sub")).unwrap();
    fs::write(work.join("input"), "from the host").unwrap();
    let script = "cat input; echo out > sub/output; mkdir made; ln -s input link; echo more >> input; \
                  stat -c %U input sub; mv sub/output made/";
    let done = host.run(&["-w", ".", "--", "sh", "-c", script]).finish().expect(0);
    assert_eq!(done.text(), "from the hostroot\nroot\n");
    let made = work.join("made/output");
    assert_eq!(fs::read_to_string(&made).unwrap(), "out\n");
    assert_eq!(fs::read_to_string(work.join("input")).unwrap(), "from the hostmore\n");
    assert_eq!(fs::read_link(work.join("link")).unwrap().to_str(), Some("input"));
    // Written by root in the guest, it belongs to whoever started firn.
    assert_eq!(fs::metadata(&made).unwrap().uid(), nix::unistd::geteuid().as_raw());
}

both_grades!(a_workspace_belongs_to_the_user_of_the_command);
fn a_workspace_belongs_to_the_user_of_the_command(grade: Grade) {
    let host = Host::of(grade);
    let script = "id -u; stat -c %u . ; echo mine > file; stat -c %u file";
    let done = host.run(&["-w", ".", "--user", "sandbox", "--", "sh", "-c", script]).finish().expect(0);
    assert_eq!(done.text(), "1000\n1000\n1000\n");
    let file = host.work().join("file");
    assert_eq!(fs::metadata(file).unwrap().uid(), nix::unistd::geteuid().as_raw());
}

both_grades!(a_normal_user_can_do_all_of_it);
fn a_normal_user_can_do_all_of_it(grade: Grade) {
    let host = Host::of_a_normal_user(grade);
    // As a normal user would have it: the programs where everybody can read them.
    let script = "id -u; echo out > file; stat -c %u file; cat /proc/self/cgroup > /dev/null";
    let done = host.run(&["-w", ".", "--", "sh", "-c", script]).finish().expect(0);
    assert_eq!(done.text(), "0\n0\n");
    let owner = fs::metadata(host.work().join("file")).unwrap().uid();
    assert_eq!(owner, fs::metadata(host.work()).unwrap().uid());
    let _ = host.firn(&["doctor"]).finish().expect(0);
}

both_grades!(a_read_only_workspace_cannot_be_written);
fn a_read_only_workspace_cannot_be_written(grade: Grade) {
    let host = Host::of(grade);
    fs::write(host.work().join("input"), "x").unwrap();
    // Root in the guest may undo its own mount options; the host's side stays read-only.
    let script = "cat input; touch new; rm input; mount -o remount,rw /workspace; echo y > input; chmod 777 input; true";
    let done = host.run(&["-w", ".:ro", "--", "sh", "-c", script]).finish().expect(0);
    assert_eq!(done.text(), "x");
    assert!(done.stderr.contains("Read-only file system"), "{}", done.stderr);
    assert_eq!(fs::read_to_string(host.work().join("input")).unwrap(), "x");
    assert_eq!(fs::read_dir(host.work()).unwrap().count(), 1);
}

both_grades!(mounts_show_folders_and_files);
fn mounts_show_folders_and_files(grade: Grade) {
    let host = Host::of(grade);
    let (data, file) = (host.work().join("data"), host.work().join("a file"));
    fs::create_dir(&data).unwrap();
    fs::write(data.join("x"), "1").unwrap();
    fs::write(&file, "2").unwrap();
    let (data, file) = (data.display(), file.display());
    let done = host
        .run(&[
            "--mount",
            &format!("{data}:/data"),
            "--mount",
            &format!("{data}:/deep/er/data:rw"),
            "--mount",
            &format!("{file}:/etc/one"),
            "--",
            "sh",
            "-c",
            "cat /data/x /etc/one; echo new > /deep/er/data/y; echo no > /data/z",
        ])
        .finish();
    assert_eq!(done.code, 2, "{}", done.stderr);
    assert_eq!(done.text(), "12");
    assert_eq!(fs::read_to_string(host.work().join("data/y")).unwrap(), "new\n");
    assert!(!host.work().join("data/z").exists());
}

both_grades!(a_link_in_a_share_does_not_lead_out_of_it);
fn a_link_in_a_share_does_not_lead_out_of_it(grade: Grade) {
    let host = Host::of(grade);
    let outside = host.work().join("outside");
    let share = host.work().join("share");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&share).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(outside.join("secret"), share.join("absolute")).unwrap();
    symlink("../outside/secret", share.join("relative")).unwrap();
    symlink("../outside", share.join("folder")).unwrap();
    symlink("/etc/shadow", share.join("shadow")).unwrap();
    let script = "for f in absolute relative folder/secret shadow ../outside/secret; do cat $f; done; \
                  ln -s ../../outside/secret made; cat made; true";
    let done = host.run(&["-w", share.to_str().unwrap(), "--", "sh", "-c", script]).finish().expect(0);
    assert_eq!(done.text(), "");
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
}

both_grades!(the_disk_has_the_size_that_was_asked_for);
fn the_disk_has_the_size_that_was_asked_for(grade: Grade) {
    let host = Host::of(grade);
    let script = "df -k --output=size / | tail -n1; head -c 100000000 /dev/zero > /big; echo $?; rm /big; echo again > /small && cat /small";
    let done = host.run(&["--disk", "64M", "--", "sh", "-c", script]).finish().expect(0);
    let lines: Vec<&str> = done.text().lines().map(str::trim).collect();
    assert_eq!(lines, ["65536", "1", "again"]);
    assert!(done.stderr.contains("No space left on device"), "{}", done.stderr);
}

both_grades!(certificates_can_be_read_by_every_user);
fn certificates_can_be_read_by_every_user(grade: Grade) {
    let host = Host::of(grade);
    let here = fs::read_dir("/etc/ssl/certs").unwrap().count();
    let script = "ls -A /etc/ssl/certs | wc -l; find /etc -maxdepth 2 -type d ! -readable | head";
    let done = host.run(&["--user", "sandbox", "--", "sh", "-c", script]).finish().expect(0);
    assert_eq!(done.text(), format!("{here}\n"));
}
