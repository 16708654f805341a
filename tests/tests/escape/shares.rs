//! Ways out through the folders that the caller shares.

use firn_tests::{Grade, Host, both_grades, jail_only, vm_only};
use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// All that can be said of a tree: of each entry mode, owner, time, links, and its contents as a number.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, (u32, u32, i64, u64, u64)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let facts = fs::symlink_metadata(&path).unwrap();
            let contents = match fs::read_link(&path) {
                Ok(target) => target.into_os_string().into_encoded_bytes(),
                Err(_no_link) if facts.is_file() => fs::read(&path).unwrap(),
                Err(_no_link) => Vec::new(),
            };
            if facts.is_dir() {
                folders.push(path.clone());
            }
            let mut hasher = DefaultHasher::new();
            contents.hash(&mut hasher);
            let facts = (facts.mode(), facts.uid(), facts.mtime_nsec(), facts.nlink(), hasher.finish());
            found.insert(path, facts);
        }
    }
    found
}

/// A folder with something in it.
fn folder(host: &Host, name: &str) -> PathBuf {
    let dir = host.work().join(name);
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("file"), "contents").unwrap();
    fs::write(dir.join("sub/inner"), "inner").unwrap();
    symlink("file", dir.join("link")).unwrap();
    dir
}

jail_only!(what_is_firns_own_is_not_shared);
fn what_is_firns_own_is_not_shared() {
    let host = Host::of(Grade::Jail);
    let daemon = host.daemon(None);
    let above = host.state().parent().unwrap().to_owned();
    symlink(host.state(), host.work().join("link")).unwrap();
    let mount = |path: &Path| format!("{}:/data:ro", path.display());
    let (all, state, logs, runtime) =
        (mount(&above), mount(&host.state()), mount(&host.state().join("logs")), mount(&host.runtime()));
    for options in [
        ["-w", above.to_str().unwrap()],
        ["-w", "link"],
        ["--mount", &all],
        ["--mount", &state],
        ["--mount", &logs],
        ["--mount", &runtime],
    ] {
        let done = host.sh(&options, "true").finish().expect(2);
        let said = done.complaints();
        assert!(said.contains("firn's own") && said.contains("FIRN_STATE_DIR"), "{said}");
    }
    let _ = host.sh(&["-w", "."], "true").finish().expect(0);
    daemon.stop();
}

/// Ways to change a folder that is the current one. `$OUT` can be written.
const CHANGES: &[&str] = &[
    "touch new",
    "touch file",
    "touch -d 2001-01-01 file",
    "mkdir dir",
    "rm file",
    "rm link",
    "rm -r sub",
    "rmdir sub",
    "chmod 777 file",
    "chmod 777 .",
    "chown 1:1 file",
    "truncate -s 0 file",
    "dd if=/dev/zero of=file bs=1 count=1 conv=notrunc",
    "mv file other",
    "mv sub/inner inner",
    "mv file $OUT/stolen",
    "ln file hard",
    "ln file $OUT/hard",
    "ln -s x soft",
    "mkfifo pipe",
    "mknod null c 1 3",
    "cp /bin/true sub/true",
    "sed -i s/c/d/ file",
    "python3 -c \"import os; os.setxattr('file', 'user.x', b'1')\"",
    "python3 -c \"import os; os.open('.', os.O_TMPFILE | os.O_WRONLY)\"",
    "python3 -c \"import mmap, os; mmap.mmap(os.open('file', os.O_RDWR), 4)\"",
    "sh -c 'echo x >> link'",
    "sh -c 'echo x >> /proc/self/cwd/file'",
];

both_grades!(what_is_shared_read_only_cannot_be_changed);
fn what_is_shared_read_only_cannot_be_changed(grade: Grade) {
    let host = Host::of(grade);
    let changes: Vec<String> = CHANGES
        .iter()
        .map(|change| {
            format!(
                "({change}) >/dev/null 2>&1 && echo \"changed: {}\"",
                change.replace('"', "'").replace('$', "")
            )
        })
        .collect();
    let script = format!("export OUT=/tmp/out; mkdir -p $OUT; cat file; echo; {}; true", changes.join("; "));
    // The control: most of it works where it may. A new folder for each, so that none is in another's way.
    let ours = folder(&host, "ours");
    let each: Vec<String> = changes
        .iter()
        .map(|change| format!("rm -rf /tmp/c; cp -a /workspace /tmp/c; cd /tmp/c; {change}"))
        .collect();
    let writable = format!("export OUT=/tmp/out; mkdir -p $OUT; {}; true", each.join("; "));
    let done = host.sh(&["-w", ours.to_str().unwrap()], &writable).finish().expect(0);
    let worked = done.text().lines().count();
    assert!(worked > CHANGES.len() - 6, "only {worked} of these changes are possible: {}", done.text());

    for (name, user) in [("theirs", "root"), ("others", "sandbox")] {
        let theirs = folder(&host, name);
        let path = theirs.to_str().unwrap();
        let before = snapshot(&theirs);
        let facts = fs::metadata(&theirs).unwrap();
        let mount = format!("{path}:/data");
        for options in [
            &["--user", user, "-w", &format!("{path}:ro")][..],
            &["--user", user, "--mount", &mount, "--cwd", "/data"],
            // The same files at a place where they may be changed are another share of them.
            &["--user", user, "--mount", &mount, "--cwd", "/data/sub/.."],
        ] {
            let done = host.sh(options, &script).finish().expect(0);
            assert_eq!(done.text(), "contents\n", "{options:?}");
            assert_eq!(snapshot(&theirs), before, "{options:?}");
            let now = fs::metadata(&theirs).unwrap();
            assert_eq!((facts.mode(), facts.mtime(), facts.uid()), (now.mode(), now.mtime(), now.uid()));
        }
    }
}

both_grades!(what_is_read_only_stays_so_beside_and_below_what_is_writable);
fn what_is_read_only_stays_so_beside_and_below_what_is_writable(grade: Grade) {
    let host = Host::of(grade);
    let work = folder(&host, "work");
    let protected = work.join("sub");
    let before = snapshot(&protected);
    let nested = format!("{}:/workspace/sub", protected.display());
    // Root in a guest may take mounts away, and finds below what the workspace holds.
    let script = "echo mine > written; cat sub/inner; \
        (echo x > sub/inner; touch sub/new; rm -rf sub/inner; mv sub elsewhere; umount sub; umount -l /workspace/sub; \
         mount -o remount,rw /workspace/sub; echo x > sub/inner; touch sub/new; ln sub/inner hard && echo x > hard; \
         mount --bind /workspace /mnt && echo x > /mnt/sub/inner) 2>/dev/null; true";
    let done = host.sh(&["-w", work.to_str().unwrap(), "--mount", &nested], script).finish().expect(0);
    assert_eq!(done.text(), "\ninner".trim_start());
    assert_eq!(fs::read_to_string(work.join("written")).unwrap(), "mine\n");
    assert_eq!(snapshot(&protected), before);
}

/// Whether a command can talk to a service of the host that listens in a shared folder.
fn socket_in_a_share(grade: Grade, options: &str) -> bool {
    let host = Host::of(grade);
    let path = host.work().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    // A control for both.
    drop(std::os::unix::net::UnixStream::connect(&path).unwrap());
    listener.accept().unwrap();
    listener.set_nonblocking(true).unwrap();
    let script = "import socket; print(socket.socket(socket.AF_UNIX).connect_ex('socket'))";
    let done = host.python(&["-w", options], script, &[]).finish().expect(0);
    let reached = listener.accept().is_ok();
    assert_eq!(reached, done.text() == "0\n", "{}", done.text());
    reached
}

// The grades differ here. A guest has a kernel of its own, to which the file is just a file.
vm_only!(a_socket_in_a_shared_folder_is_of_no_use);
fn a_socket_in_a_shared_folder_is_of_no_use() {
    assert!(!socket_in_a_share(Grade::Vm, "."));
    assert!(!socket_in_a_share(Grade::Vm, ".:ro"));
}

// A jail's kernel is the host's: whoever shares a folder shares what listens in it, read-only or not.
// Nothing in Linux can tell this connect(2) from others by its path. Should that change, this test
// says so.
jail_only!(a_socket_in_a_shared_folder_is_shared_too);
fn a_socket_in_a_shared_folder_is_shared_too() {
    assert!(socket_in_a_share(Grade::Jail, "."));
    assert!(socket_in_a_share(Grade::Jail, ".:ro"));
}

both_grades!(links_lead_nowhere_out_of_a_share);
fn links_lead_nowhere_out_of_a_share(grade: Grade) {
    let host = Host::of(grade);
    let share = folder(&host, "share");
    let outside = folder(&host, "outside");
    fs::write(outside.join("secret"), "a secret").unwrap();
    let out = outside.to_str().unwrap();
    for (name, target) in [
        ("absolute", format!("{out}/secret")),
        ("relative", "../outside/secret".to_owned()),
        ("folder", out.to_owned()),
        ("up", "..".to_owned()),
        ("far-up", "../../../../../../../../..".to_owned() + out + "/secret"),
        ("chain", "absolute".to_owned()),
        ("chain2", "sub/../chain".to_owned()),
        ("by-proc", format!("/proc/1/root{out}/secret")),
        ("by-self", format!("/proc/self/root{out}/secret")),
        ("by-cwd", "/proc/self/cwd/../outside/secret".to_owned()),
        ("loop", "loop".to_owned()),
        ("dangling", format!("{out}/made-through-a-link")),
        ("dangling-relative", "../outside/made-through-a-link".to_owned()),
    ] {
        symlink(target, share.join(name)).unwrap();
    }
    let before = snapshot(&outside);
    assert_eq!(fs::read_to_string(share.join("chain2")).unwrap(), "a secret");
    let script = "\
        for link in absolute relative folder/secret up/outside/secret far-up chain chain2 by-proc by-self by-cwd loop \
            dangling ../outside/secret sub/../../outside/secret /workspace/../outside/secret; do \
            cat $link 2>/dev/null && echo \"read: $link\"; \
        done; \
        for link in absolute relative folder/new up/outside/new dangling dangling-relative; do \
            echo x 2>/dev/null > $link; \
        done; \
        rm -rf folder/* up/outside; chmod 777 absolute relative folder; chown 12 folder absolute; \
        cd sub && cd -P .. && cd -P .. && pwd -P; cd /workspace/up && pwd -P; cat ../workspace/file";
    let done = host.sh(&["-w", share.to_str().unwrap()], script).finish().expect(0);
    assert_eq!(done.text(), "/\n/\ncontents");
    assert_eq!(snapshot(&outside), before);
}

both_grades!(links_that_a_command_makes_change_nothing_they_point_to);
fn links_that_a_command_makes_change_nothing_they_point_to(grade: Grade) {
    let host = Host::of(grade);
    let share = folder(&host, "share");
    let outside = folder(&host, "outside");
    let before = snapshot(&outside);
    let out = outside.to_str().unwrap();
    let script = format!(
        "ln -s {out}/file made && ln -s ../outside up && ln -s / root && ln -s {out} sub/deep && \
         rm file && ln -s {out}/file file && echo x 2>/dev/null > file; \
         echo x 2>/dev/null > up/file; mkdir moved && mv moved sub && mv sub elsewhere && echo made"
    );
    for user in ["root", "sandbox"] {
        let _ = fs::remove_dir_all(&share);
        let share = folder(&host, "share");
        let done = host.sh(&["-w", share.to_str().unwrap(), "--user", user], &script).finish().expect(0);
        assert_eq!(done.text(), "made\n", "{}", done.stderr);
        assert_eq!(snapshot(&outside), before);
        assert_eq!(fs::read_link(share.join("root")).unwrap(), Path::new("/"));
        // Again with what the first has left, which is the folder's owner's to clean up.
        let done = host
            .sh(
                &["-w", share.to_str().unwrap(), "--user", user],
                "cat made up/file file 2>&1 | grep -c 'No such'",
            )
            .finish();
        assert_eq!(done.expect(0).text(), "3\n");
        assert_eq!(snapshot(&outside), before);
    }
}

both_grades!(a_share_may_be_named_through_a_link);
fn a_share_may_be_named_through_a_link(grade: Grade) {
    let host = Host::of(grade);
    let share = folder(&host, "real");
    symlink(&share, host.work().join("by-link")).unwrap();
    let data = format!("{}:/data", host.work().join("by-link/sub").display());
    let done = host
        .sh(&["-w", "by-link", "--mount", &data], "cat file /data/inner; echo new > made; pwd -P")
        .finish()
        .expect(0);
    assert_eq!(done.text(), "contentsinner/workspace\n");
    assert_eq!(fs::read_to_string(share.join("made")).unwrap(), "new\n");
}

/// A copy of a program of the host that is root's and runs as root, whoever starts it.
fn setuid_program(at: &Path) {
    fs::copy("/usr/bin/id", at).unwrap();
    fs::set_permissions(at, fs::Permissions::from_mode(0o4755)).unwrap();
}

both_grades!(a_setuid_program_of_the_host_gives_nothing);
fn a_setuid_program_of_the_host_gives_nothing(grade: Grade) {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: only root can make a program that runs as root");
    }
    let host = Host::of(grade);
    let share = folder(&host, "share");
    setuid_program(&share.join("id"));
    fs::set_permissions(host.work(), fs::Permissions::from_mode(0o755)).unwrap();
    use std::os::unix::process::CommandExt as _;
    let outside = Command::new(share.join("id")).uid(54_242).gid(54_242).output().unwrap();
    assert!(String::from_utf8_lossy(&outside.stdout).contains("euid=0(root)"), "{outside:?}");

    let script = "./id -u; /data/id -u; cp id /tmp/id; chmod 4755 /tmp/id; /tmp/id -u; \
                  grep -E '^Cap(Prm|Eff)' /proc/self/status | tr -d '\\t0'";
    let mount = format!("{}:/data", share.display());
    for options in [&["--user", "sandbox"][..], &["--user", "12345:12345"]] {
        let options = [options, &["-w", share.to_str().unwrap(), "--mount", &mount]].concat();
        let done = host.sh(&options, script).finish().expect(0);
        let user = if options[1] == "sandbox" { "1000" } else { "12345" };
        assert_eq!(
            done.text(),
            format!("{}CapPrm:\nCapEff:\n", format!("{user}\n").repeat(3)),
            "{options:?}"
        );
    }
}

both_grades!(a_command_cannot_leave_a_program_that_runs_as_its_owner);
fn a_command_cannot_leave_a_program_that_runs_as_its_owner(grade: Grade) {
    let host = Host::of(grade);
    let share = folder(&host, "share");
    let script = "cp /usr/bin/id made; chmod 4755 made; cp /usr/bin/id group; chmod 2755 group; \
                  chmod 4755 file; chmod g+s sub; mkdir dir; chmod 6777 dir; \
                  install -m 4755 /usr/bin/id installed; \
                  python3 -c \"import os; os.close(os.open('opened', os.O_CREAT | os.O_WRONLY, 0o4755)); \
                              os.mkfifo('fifo', 0o4755); os.chmod('fifo', 0o4755)\"; true";
    let dangerous = |user: &str| {
        let _ = host.sh(&["-w", share.to_str().unwrap(), "--user", user], script).finish().expect(0);
        let made = snapshot(&share);
        // They are made; only the bit may be refused.
        for name in ["made", "group", "dir"] {
            assert!(made.contains_key(&share.join(name)), "{name}: {made:?}");
        }
        let mut found = Vec::new();
        for (path, (mode, uid, ..)) in made {
            // On a folder the bit only says whose group new files get.
            if mode & 0o6000 != 0 && mode & libc::S_IFMT == libc::S_IFREG {
                found.push(format!("{}: mode {mode:o} of user {uid}", path.display()));
            }
        }
        for name in ["made", "group", "installed", "opened", "fifo"] {
            let _ = fs::remove_file(share.join(name));
        }
        found
    };
    for user in ["root", "sandbox"] {
        assert_eq!(dangerous(user), Vec::<String>::new(), "as {user}");
    }
}

both_grades!(a_command_cannot_leave_devices_or_capabilities);
fn a_command_cannot_leave_devices_or_capabilities(grade: Grade) {
    let host = Host::of(grade);
    let share = folder(&host, "share");
    // A file of root's with CAP_SETUID and CAP_SYS_ADMIN, as setcap(8) writes it.
    let script = r"
import os, struct
os.mknod('fifo', 0o010644)
for name, kind, device in (('memory', 0o020666, os.makedev(1, 1)), ('disk', 0o060666, os.makedev(254, 0))):
    try:
        os.mknod(name, kind, device)
        print('made', name)
    except OSError:
        pass
capabilities = struct.pack('<IIIII', 0x02000001, 0x200080, 0, 0, 0)
for name, value in (('security.capability', capabilities), ('trusted.overlay.opaque', b'y'), ('security.ima', b'x')):
    try:
        os.setxattr('file', name, value)
    except OSError:
        pass
";
    let done = host.python(&["-w", share.to_str().unwrap()], script, &[]).finish().expect(0);
    assert_eq!(done.text(), "");
    assert!(share.join("fifo").exists());
    for path in snapshot(&share).keys() {
        let kind = fs::symlink_metadata(path).unwrap().mode() & libc::S_IFMT;
        assert!(![libc::S_IFCHR, libc::S_IFBLK].contains(&kind), "{} is a device", path.display());
    }
    let script = "import os, sys; print(os.listxattr(sys.argv[1]))";
    let listed =
        Command::new("/usr/bin/python3").args(["-c", script]).arg(share.join("file")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "[]\n");
}

both_grades!(a_folder_that_is_moved_meanwhile_is_not_a_way_up);
fn a_folder_that_is_moved_meanwhile_is_not_a_way_up(grade: Grade) {
    let host = Host::of(grade);
    let share = folder(&host, "share");
    fs::create_dir(share.join("sub/deep")).unwrap();
    fs::write(host.work().join("secret"), "a secret").unwrap();
    // Whoever stands in a folder that leaves a bind mount has no root above: `..` leads on and on.
    let script = "cd sub/deep && echo there > /workspace/there && while [ ! -e /workspace/moved ]; do sleep 0.05; done; \
                  cat ../../secret ../../../secret ../../../../secret ../secret 2>/dev/null; cat ../../work/secret 2>/dev/null; \
                  ls ../../etc/shadow ../../../etc/shadow ../../../../etc/shadow ../../../../../etc/shadow 2>/dev/null; echo over";
    let child = host.sh(&["-w", share.to_str().unwrap()], script).spawn();
    host.wait_until("the command is in the folder", || share.join("there").exists());
    fs::rename(share.join("sub/deep"), host.work().join("deep")).unwrap();
    assert!(host.work().join("deep/../secret").exists());
    fs::write(share.join("moved"), "").unwrap();
    assert_eq!(firn_tests::collect(child).expect(0).text(), "over\n");
}

both_grades!(a_normal_users_sandbox_has_no_more_than_that_user);
fn a_normal_users_sandbox_has_no_more_than_that_user(grade: Grade) {
    let host = Host::of_a_normal_user(grade);
    let work = host.work();
    let user = fs::metadata(&work).unwrap().uid();
    let closed = work.join("closed");
    fs::write(&closed, "of another user").unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o600)).unwrap();
    if nix::unistd::geteuid().is_root() {
        assert_ne!(user, 0);
    } else {
        return eprintln!("skipped: another user's file takes root to make");
    }
    let script =
        "cat closed; echo x > closed; chmod 666 closed; chown 0:0 closed; echo mine > mine; id -u; cat mine";
    for (name, number) in [("root", "0"), ("sandbox", "1000")] {
        let done = host.sh(&["-w", ".", "--user", name], script).finish().expect(0);
        assert_eq!(done.text(), format!("{number}\nmine\n"), "{}", done.stderr);
        assert_eq!(fs::read_to_string(&closed).unwrap(), "of another user");
        let facts = fs::metadata(&closed).unwrap();
        assert_eq!((facts.uid(), facts.mode() & 0o777), (0, 0o600));
        assert_eq!(fs::metadata(work.join("mine")).unwrap().uid(), user);
        fs::remove_file(work.join("mine")).unwrap();
    }
}
