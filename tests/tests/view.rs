//! What a sandbox sees of the host, and what it can change there.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::Host;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

#[test]
fn nothing_private_of_the_host_is_there() {
    let host = Host::new();
    fs::write(host.work().join("secret"), "x").unwrap();
    let work = host.work();
    let script = format!(
        "for path in /etc/shadow /home/* /root/.[a-z]* /root/* /var/lib/dpkg /var/log/* /run/firn {} /boot /host; do \
             if [ -e \"$path\" ]; then echo \"there: $path\"; fi; \
         done; \
         find / -xdev -type s 2>/dev/null; \
         cat /proc/1/environ | tr '\\0' '\\n'; \
         ls /sys/class/net; cat /etc/hostname; hostname",
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

#[test]
fn the_hosts_processes_are_unseen() {
    let host = Host::new();
    let done =
        host.run(&["--", "sh", "-c", "for p in /proc/[0-9]*; do cat $p/comm; done"]).finish().expect(0);
    assert!(!done.text().contains("qemu"), "{}", done.text());
    assert!(!done.text().contains("cargo"), "{}", done.text());
}

#[test]
fn writes_anywhere_work_and_vanish() {
    let host = Host::new();
    let marker = "/usr/bin/firn-was-here";
    let script = format!(
        "echo '#!/bin/sh' > {marker} && echo echo new >> {marker} && chmod +x {marker} && firn-was-here && \
         rm /usr/bin/env && mkdir /etc/new && mv /etc/services /etc/new/ && chown 12:34 /usr/bin/wc && \
         touch /tmp/a /var/lib/b /root/c && ls -d /workspace"
    );
    let done = host.run(&["--", "sh", "-c", &script]).finish().expect(0);
    assert_eq!(done.text(), "new\n/workspace\n");
    assert!(!std::path::Path::new(marker).exists());
    assert!(std::path::Path::new("/usr/bin/env").exists());
}

#[test]
fn a_workspace_is_the_callers_folder() {
    let host = Host::new();
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

#[test]
fn a_workspace_belongs_to_the_user_of_the_command() {
    let host = Host::new();
    let script = "id -u; stat -c %u . ; echo mine > file; stat -c %u file";
    let done = host.run(&["-w", ".", "--user", "sandbox", "--", "sh", "-c", script]).finish().expect(0);
    assert_eq!(done.text(), "1000\n1000\n1000\n");
    let file = host.work().join("file");
    assert_eq!(fs::metadata(file).unwrap().uid(), nix::unistd::geteuid().as_raw());
}

#[test]
fn a_normal_user_can_do_all_of_it() {
    let host = Host::of_a_normal_user();
    // As a normal user would have it: the programs where everybody can read them.
    let script = "id -u; echo out > file; stat -c %u file; cat /proc/self/cgroup > /dev/null";
    let done = host.run(&["-w", ".", "--", "sh", "-c", script]).finish().expect(0);
    assert_eq!(done.text(), "0\n0\n");
    let owner = fs::metadata(host.work().join("file")).unwrap().uid();
    assert_eq!(owner, fs::metadata(host.work()).unwrap().uid());
    let _ = host.firn(&["doctor"]).finish().expect(0);
}

#[test]
fn a_read_only_workspace_cannot_be_written() {
    let host = Host::new();
    fs::write(host.work().join("input"), "x").unwrap();
    // Root in the guest may undo its own mount options; the host's side stays read-only.
    let script = "cat input; touch new; rm input; mount -o remount,rw /workspace; echo y > input; chmod 777 input; true";
    let done = host.run(&["-w", ".:ro", "--", "sh", "-c", script]).finish().expect(0);
    assert_eq!(done.text(), "x");
    assert!(done.stderr.contains("Read-only file system"), "{}", done.stderr);
    assert_eq!(fs::read_to_string(host.work().join("input")).unwrap(), "x");
    assert_eq!(fs::read_dir(host.work()).unwrap().count(), 1);
}

#[test]
fn mounts_show_folders_and_files() {
    let host = Host::new();
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

#[test]
fn a_link_in_a_share_does_not_lead_out_of_it() {
    let host = Host::new();
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

#[test]
fn the_disk_has_the_size_that_was_asked_for() {
    let host = Host::new();
    let script = "df -k --output=size / | tail -n1; head -c 100000000 /dev/zero > /big; echo $?; rm /big; echo again > /small && cat /small";
    let done = host.run(&["--disk", "64M", "--", "sh", "-c", script]).finish().expect(0);
    let lines: Vec<&str> = done.text().lines().map(str::trim).collect();
    assert_eq!(lines, ["65536", "1", "again"]);
    assert!(done.stderr.contains("No space left on device"), "{}", done.stderr);
}
