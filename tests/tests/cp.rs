//! `firn cp`: files arrive as they are, where they should, and nowhere else.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::{Grade, Host, both_grades, jail_only};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

/// `firn cp` in the host's working folder.
fn cp(host: &Host, from: &str, to: &str) {
    let done = host.firn(&["cp", from, to]).finish().expect(0);
    assert_eq!((done.text(), done.complaints().as_str()), ("", ""));
}

/// A name that is neither text nor one line.
fn odd_name() -> &'static OsStr {
    OsStr::from_bytes(b"odd\nname \xff")
}

fn bytes() -> Vec<u8> {
    (0..300_000_u32).map(|number| ((number * 31) >> 3) as u8).collect()
}

/// A folder with one of each kind.
fn make_folder(folder: &Path) {
    fs::create_dir_all(folder.join("deep/er")).unwrap();
    fs::create_dir(folder.join("hollow")).unwrap();
    fs::write(folder.join("binary"), bytes()).unwrap();
    fs::write(folder.join("empty"), "").unwrap();
    fs::write(folder.join("deep/er/run"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(folder.join("deep/er/run"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.join("deep").join(odd_name()), "odd").unwrap();
    fs::write(folder.join("n".repeat(200)), "long").unwrap();
    symlink("deep/er/run", folder.join("link")).unwrap();
    symlink("/no/where", folder.join("dangling")).unwrap();
}

fn assert_folder(folder: &Path) {
    assert_eq!(fs::read(folder.join("binary")).unwrap(), bytes());
    assert_eq!(fs::read(folder.join("empty")).unwrap(), b"");
    assert_eq!(fs::read(folder.join("deep").join(odd_name())).unwrap(), b"odd");
    assert_eq!(fs::read(folder.join("n".repeat(200))).unwrap(), b"long");
    assert_eq!(fs::read_link(folder.join("link")).unwrap(), Path::new("deep/er/run"));
    assert_eq!(fs::read_link(folder.join("dangling")).unwrap(), Path::new("/no/where"));
    assert_eq!(fs::metadata(folder.join("deep/er/run")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(folder.join("binary")).unwrap().permissions().mode() & 0o7777, 0o644);
    assert!(folder.join("hollow").is_dir());
}

both_grades!(a_folder_goes_in_and_comes_out_as_it_was);
fn a_folder_goes_in_and_comes_out_as_it_was(grade: Grade) {
    let host = Host::of(grade);
    let id = host.create(&[]);
    let work = host.work();
    make_folder(&work.join("tree"));
    cp(&host, "tree", &format!("{id}:/tmp"));
    let script = "cd /tmp/tree && ./link && wc -c < binary && ls deep | wc -l && readlink dangling && id -u && \
                  stat -c %u:%a binary deep/er/run";
    let done = host.exec(&id, script).finish().expect(0);
    assert_eq!(done.text(), "ran\n300000\n3\n/no/where\n0\n0:644\n0:755\n");
    cp(&host, &format!("{id}:/tmp/tree"), "back");
    assert_folder(&work.join("back"));
    assert_eq!(host.exec(&id, "cmp /tmp/tree/binary - < /tmp/tree/binary").finish().expect(0).text(), "");
}

jail_only!(copies_go_where_docker_puts_them);
fn copies_go_where_docker_puts_them() {
    let host = Host::of(Grade::Jail);
    let id = host.create(&["--name", "box"]);
    let work = host.work();
    fs::write(work.join("file"), "f").unwrap();
    fs::create_dir_all(work.join("folder/sub")).unwrap();
    fs::write(work.join("folder/x"), "x").unwrap();
    let _ = host
        .exec(&id, "mkdir /tmp/there; ln -s /tmp/there /tmp/link; echo old > /tmp/old")
        .finish()
        .expect(0);
    let exists = |path: &str| host.exec(&id, &format!("test -e {path}")).finish().code == 0;
    for (from, to, made) in [
        ("file", "box:/tmp/new", "/tmp/new"),
        ("file", "box:tmp/there", "/tmp/there/file"),
        ("file", "box:/tmp/link/", "/tmp/there/file"),
        ("file", "box:/tmp/old", "/tmp/old"),
        ("folder", "box:/tmp/there", "/tmp/there/folder/x"),
        ("folder", "box:/tmp/as", "/tmp/as/x"),
        ("folder", "box:/tmp/link", "/tmp/there/folder/sub"),
        ("folder/.", "box:/tmp/there", "/tmp/there/x"),
        ("folder/.", "box:/tmp/fresh", "/tmp/fresh/x"),
    ] {
        cp(&host, from, to);
        assert!(exists(made), "{from} to {to}");
    }
    assert_eq!(host.exec(&id, "cat /tmp/old").finish().expect(0).text(), "f");
    for (from, to, made) in [
        ("box:/tmp/old", "copy", "copy"),
        ("box:/tmp/old", "folder", "folder/old"),
        ("box:/tmp/old", "copy", "copy"),
        ("box:/tmp/as", "out", "out/x"),
        ("box:/tmp/as", "out", "out/as/x"),
        ("box:/tmp/as/.", "folder", "folder/x"),
        ("box:/tmp/link/.", "through", "through/file"),
        ("box:/tmp/link/", "slash", "slash/file"),
        ("box:/etc/hostname", ".", "hostname"),
    ] {
        cp(&host, from, to);
        assert!(work.join(made).is_file(), "{from} to {to}");
    }
    for (from, to, said) in [
        ("file", "box:/tmp/none/", "there is no such folder"),
        ("folder", "box:/tmp/old", "there is a file"),
        ("file", "box:/no/such/x", "/no/such"),
        ("no-such", "box:/tmp", "no-such"),
        ("box:/no/such", "x", "\"/no/such\""),
        ("box:/tmp/as", "file", "cannot replace"),
        ("box:/tmp/old", "none/", "none"),
        ("nobox:/tmp", "x", "session 'nobox' not found"),
        ("file", "nobox:/tmp", "session 'nobox' not found"),
    ] {
        let refused = host.firn(&["cp", from, to]).finish().expect(1);
        assert!(refused.stderr.contains(said), "{from} to {to}: {}", refused.stderr);
    }
    for (from, to) in [("file", "other"), ("box:/a", "box:/b"), ("-", "-"), ("-", "file")] {
        let _ = host.firn(&["cp", from, to]).finish().expect(2);
    }
    assert_eq!(fs::read_to_string(work.join("file")).unwrap(), "f");
}

both_grades!(archives_go_through_pipes);
fn archives_go_through_pipes(grade: Grade) {
    let host = Host::of(grade);
    let id = host.create(&[]);
    let made = host.exec(&id, "mkdir -p /tmp/a/b && printf content > /tmp/a/b/c && tar -C /tmp -cf - a");
    let archive = made.finish().expect(0).stdout;
    let _ = host.exec(&id, "rm -r /tmp/a").finish().expect(0);
    let _ = host.firn(&["cp", "-", &format!("{id}:/tmp")]).stdin(archive).finish().expect(0);
    assert_eq!(host.exec(&id, "cat /tmp/a/b/c").finish().expect(0).text(), "content");
    let back = host.firn(&["cp", &format!("{id}:/tmp/a"), "-"]).finish().expect(0).stdout;
    fs::write(host.work().join("back.tar"), back).unwrap();
    let listed =
        std::process::Command::new("tar").arg("-tf").arg(host.work().join("back.tar")).output().unwrap();
    assert_eq!(String::from_utf8(listed.stdout).unwrap(), "a/\na/b/\na/b/c\n");
    // What has no place in an archive, or in a sandbox, is not there, and firn says so.
    let _ = host.exec(&id, "mkfifo /tmp/a/pipe /tmp/a/b/pipe").finish().expect(0);
    let said = "firn: left out by the sandbox, as neither files, folders nor links: ";
    for to in ["-", "out"] {
        let done = host.firn(&["cp", &format!("{id}:/tmp/a"), to]).finish().expect(0);
        assert_eq!(done.complaints(), format!("{said}2\n"), "{to}");
    }
    let _ = std::process::Command::new("mkfifo").arg(host.work().join("pipe")).status().unwrap();
    let tar = std::process::Command::new("tar").args(["-C"]).arg(host.work()).args(["-c", "pipe"]).output();
    let done = host.firn(&["cp", "-", &format!("{id}:/tmp")]).stdin(tar.unwrap().stdout).finish().expect(0);
    assert_eq!(done.complaints(), format!("{said}1\n"));
    // What is no archive is refused, and the sandbox goes on.
    let _ = host.firn(&["cp", "-", &format!("{id}:/tmp")]).stdin(vec![b'x'; 5000]).finish().expect(1);
    let _ = host.exec(&id, "true").finish().expect(0);
}

both_grades!(what_a_sandbox_says_stays_where_it_belongs);
fn what_a_sandbox_says_stays_where_it_belongs(grade: Grade) {
    let host = Host::of(grade);
    let id = host.create(&[]);
    let work = host.work();
    fs::create_dir(work.join("out")).unwrap();
    fs::write(work.join("secret"), "secret").unwrap();
    // In a jail no file gets a set-id bit in the first place.
    let bits = if grade == Grade::Vm { "6777" } else { "777" };
    // The sandbox can name the host's folder, if it is told.
    let script = format!(
        "mkdir -p /tmp/t/d && ln -s {0} /tmp/t/escape && ln -s ../../secret /tmp/t/up && mkfifo /tmp/t/pipe && \
         printf new > /tmp/t/d/f && chmod {1} /tmp/t/d/f && printf x > \"/tmp/t/$(printf '\\033[31m')\"",
        work.display(),
        bits
    );
    let _ = host.exec(&id, &script).finish().expect(0);
    cp(&host, &format!("{id}:/tmp/t/d"), "out/escape");
    let _ = host.firn(&["cp", &format!("{id}:/tmp/t"), "out"]).finish().expect(0);
    let out = work.join("out/t");
    // Links are copied and nothing went through them.
    assert_eq!(fs::read_link(out.join("escape")).unwrap(), work);
    assert_eq!(fs::read_to_string(work.join("secret")).unwrap(), "secret");
    assert!(!out.join("pipe").exists());
    let mode = fs::metadata(out.join("d/f")).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o755, "no set-id bits, and others cannot write");
    // A folder takes no link's place, and a second copy goes through none.
    let _ = host
        .exec(&id, "rm /tmp/t/escape; mkdir /tmp/t/escape; echo new > /tmp/t/escape/secret")
        .finish()
        .expect(0);
    let refused = host.firn(&["cp", &format!("{id}:/tmp/t"), "out"]).finish().expect(1);
    assert!(refused.stderr.contains("cannot replace"), "{}", refused.stderr);
    assert_eq!(fs::read_to_string(work.join("secret")).unwrap(), "secret");
}

jail_only!(what_breaks_off_leaves_nothing_half_done);
fn what_breaks_off_leaves_nothing_half_done() {
    let host = Host::of(Grade::Jail);
    let id = host.create(&["--memory", "512M"]);
    fs::write(host.work().join("big"), "old").unwrap();
    let _ = host.exec(&id, "head -c 200000000 /dev/zero > /tmp/big").finish().expect(0);
    let mut child = host.firn(&["cp", &format!("{id}:/tmp/big"), "big"]).spawn();
    host.wait_until("it is under way", || {
        fs::read_dir(host.work()).unwrap().count() > 1 || child.try_wait().unwrap().is_some()
    });
    let _ = nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap()),
        nix::sys::signal::Signal::SIGINT,
    );
    let done = firn_tests::collect(child);
    let names: Vec<_> = fs::read_dir(host.work()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["big"]);
    let length = fs::metadata(host.work().join("big")).unwrap().len();
    assert!(
        (done.code == 130 && length == 3) || (done.code == 0 && length == 200_000_000),
        "{done:?} {length}"
    );
}
