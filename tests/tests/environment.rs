//! Environments in nix-sandbox-mcp's layout: `firn run --env DIR`, code on stdin.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::{Firn, Grade, Host, binaries, both_grades, jail_only};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The text that jail.nix writes for a wrapper, but for where it finds programs: variables that must be
/// set, a passwd file kept at home, the project as a bind, and code from stdin.
const WRAPPER: &str = r#"#!/bin/bash
set -euo pipefail
RUNTIME_ARGS=()
mkdir -p ~/.local/share/jail.nix
printf 'me:x:%s:%s::/:/bin/sh\n' "$(id -u)" "$(id -g)" > ~/.local/share/jail.nix/passwd
if [ -n "${PROJECT_DIR:-}" ] && [ -d "$PROJECT_DIR" ]; then
    RUNTIME_ARGS+=(--ro-bind "$PROJECT_DIR" "${PROJECT_MOUNT:-/project}")
fi
exec bwrap --unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup \
    --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib --symlink usr/lib64 /lib64 \
    --proc /proc --dev /dev --tmpfs /tmp --tmpfs /workspace \
    --ro-bind ~/.local/share/jail.nix/passwd /etc/passwd \
    --clearenv --setenv LANG "$LANG" --setenv TERM "$TERM" --setenv HOME /workspace --setenv PATH /usr/bin \
    --new-session --die-with-parent "${RUNTIME_ARGS[@]}" -- \
    bash -c 'cd /workspace; code="$(cat)"; exec python3 -c "$code"'
"#;

/// A wrapper for sessions: its jail has an agent, which serves the socket that is descriptor 3, and a variable
/// that tells it from others.
const SESSION_WRAPPER: &str = r#"#!/bin/bash
set -euo pipefail
RUNTIME_ARGS=()
if [ -n "${PROJECT_DIR:-}" ]; then RUNTIME_ARGS+=(--ro-bind "$PROJECT_DIR" "$PROJECT_MOUNT"); fi
echo kept-at-home >~/left
exec bwrap --unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup \
    --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib --symlink usr/lib64 /lib64 \
    --proc /proc --dev /dev --tmpfs /tmp --tmpfs /workspace --ro-bind "${0%/*}/firn-agent" /agent \
    --dir /only-here --symlink /usr/bin/env /only-here/of-the-wrapper \
    --clearenv --setenv LANG "$LANG" --setenv TERM "$TERM" --setenv PATH /usr/bin:/only-here \
    --new-session --die-with-parent "${RUNTIME_ARGS[@]}" -- /agent --listen-fd 3
"#;

/// An artifact on the host that anybody can read.
fn artifact(host: &Host, metadata: &str) -> PathBuf {
    let folder = host.work().join("artifact");
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::write(folder.join("metadata.json"), metadata).unwrap();
    program(&folder.join("bin/run"), WRAPPER);
    fs::set_permissions(host.work(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// One with a wrapper for sessions.
fn artifact_with_sessions(host: &Host, metadata: &str) -> PathBuf {
    let folder = artifact(host, metadata);
    program(&folder.join("bin/session-run"), SESSION_WRAPPER);
    fs::copy(binaries().join("firn-agent"), folder.join("bin/firn-agent")).unwrap();
    folder
}

fn program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn python(host: &Host, folder: &Path, more: &[&str], code: &str) -> Firn {
    let mut args = vec!["--env", folder.to_str().unwrap()];
    args.extend_from_slice(more);
    host.run(&args).stdin(code)
}

const METADATA: &str = r#"{"name":"py","interpreter_type":"python","timeout_seconds":60,"memory_mb":512}"#;

both_grades!(code_on_stdin_runs_in_the_wrappers_jail);
fn code_on_stdin_runs_in_the_wrappers_jail(grade: Grade) {
    let host = Host::of(grade);
    let folder = artifact(&host, METADATA);
    let code = "import os, sys; print(1 + 1, os.getcwd(), len(open('/etc/passwd').readlines()))\n\
                print('err', file=sys.stderr); sys.exit(5)";
    let done = python(&host, &folder, &[], code).finish().expect(5);
    assert_eq!(done.text(), "2 /workspace 1\n");
    assert!(done.stderr.contains("err"), "{}", done.stderr);
    let empty = python(&host, &folder, &[], "").finish().expect(0);
    assert_eq!(empty.text(), "");
}

both_grades!(a_project_is_shown_read_only);
fn a_project_is_shown_read_only(grade: Grade) {
    let host = Host::of(grade);
    let folder = artifact(&host, METADATA);
    let project = host.work().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("file"), "of the host").unwrap();
    let code = "print(open('/project/file').read())\nopen('/project/new', 'w')";
    let share = format!("{}:ro", project.display());
    let done = python(&host, &folder, &["-w", &share], code).finish().expect(1);
    assert_eq!(done.text(), "of the host\n");
    assert!(done.stderr.contains("Read-only file system"), "{}", done.stderr);
    let refused = python(&host, &folder, &["-w", project.to_str().unwrap()], code).finish().expect(2);
    assert!(refused.stderr.contains("-w PATH:ro"), "{}", refused.stderr);
}

both_grades!(what_the_metadata_says_are_limits);
fn what_the_metadata_says_are_limits(grade: Grade) {
    let host = Host::of(grade);
    let metadata = r#"{"name":"py","interpreter_type":"python","timeout_seconds":3}"#;
    let folder = artifact(&host, metadata);
    let done = python(&host, &folder, &[], "while True: pass").finish().expect(124);
    assert!(done.stderr.contains("killed: timeout 3s"), "{}", done.stderr);
    let longer = python(&host, &folder, &["--timeout", "100s"], "print('in time')").finish().expect(0);
    assert_eq!(longer.text(), "in time\n");
}

jail_only!(the_memory_of_the_metadata_is_enforced);
// A guest's is its RAM, of which the kernel takes a part: other tests look at that.
fn the_memory_of_the_metadata_is_enforced() {
    let host = Host::of(Grade::Jail);
    let metadata = r#"{"name":"py","interpreter_type":"python","memory_mb":64}"#;
    let folder = artifact(&host, metadata);
    let done = python(&host, &folder, &[], "x = bytearray(300_000_000)").finish();
    let told = done.stderr.contains("memory limit 64 MiB") || done.stderr.contains("MemoryError");
    assert!(done.code != 0 && told, "{}: {}", done.code, done.stderr);
}

both_grades!(what_a_wrapper_leaves_running_ends_with_it);
fn what_a_wrapper_leaves_running_ends_with_it(grade: Grade) {
    let host = Host::of(grade);
    let folder = artifact(&host, METADATA);
    let run = folder.join("bin/run");
    fs::write(&run, "#!/bin/bash\nsetsid sleep 4711 &\n(trap '' TERM HUP; exec sleep 4712) &\ncat\n")
        .unwrap();
    let done = python(&host, &folder, &[], "said").finish().expect(0);
    assert_eq!(done.text(), "said");
    // The host checks, when it goes, that nothing is left.
}

jail_only!(what_the_environment_decides_is_not_claimed);
// Around a wrapper in a vm firn's own protection is in force.
fn what_the_environment_decides_is_not_claimed() {
    let host = Host::of(Grade::Jail);
    let folder = artifact(&host, METADATA);
    let done = python(&host, &folder, &["--json"], "print(1)").finish().expect(0);
    let result: serde_json::Value = serde_json::from_str(done.text().lines().last().unwrap()).unwrap();
    let payload = &result["payload"];
    assert_eq!(payload["isolation"]["effective"], "jail");
    assert_eq!(payload["network"]["effective"], "the environment's");
    assert!(payload["limits"]["disk"].get("effective").is_none(), "{payload}");
    let disk = python(&host, &folder, &["--disk", "10M"], "print(1)").finish().expect(2);
    assert!(disk.stderr.contains("--disk"), "{}", disk.stderr);
}

jail_only!(sessions_are_in_the_jail_of_their_wrapper);
// In a vm there is none: see below.
fn sessions_are_in_the_jail_of_their_wrapper() {
    let host = Host::of(Grade::Jail);
    let folder = artifact_with_sessions(&host, METADATA);
    let project = host.work().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("file"), "of the host").unwrap();
    let share = format!("{}:ro", project.display());
    let create = ["session", "create", "-i", "jail", "--env", folder.to_str().unwrap(), "-w", &share];
    host.firn(&[&create[..], &["--name", "s"]].concat()).finish().expect(0);
    let run = |code: &str| host.firn(&["session", "run", "--session", "s", code]).finish();
    run("x = 41").expect(0);
    assert_eq!(run("x + 1").expect(0).text(), "42\n");
    assert_eq!(run("print(open('/project/file').read())").expect(0).text(), "of the host\n");
    // Its own programs, in a jail that has no more than the wrapper shows.
    assert_eq!(
        run("import os, shutil; shutil.which('of-the-wrapper')").expect(0).text(),
        "'/only-here/of-the-wrapper'\n"
    );
    assert_eq!(run("os.path.exists('/etc/passwd'), os.getcwd()").expect(0).text(), "(False, '/workspace')\n");
    let listed = host.firn(&["session", "list", "--json"]).finish().expect(0).json();
    assert_eq!((&listed[0]["environment"], &listed[0]["language"]), (&"py".into(), &"python".into()));
    // Another of the same name, and one of another.
    let other = host.work().join("other");
    fs::create_dir_all(other.join("bin")).unwrap();
    program(&other.join("bin/run"), WRAPPER);
    for (name, told) in [("py", other.to_str().unwrap()), ("data", "not 'data'")] {
        fs::write(other.join("metadata.json"), METADATA.replace("py\"", &format!("{name}\""))).unwrap();
        let env = ["--env", other.to_str().unwrap(), "--session", "s", "x"];
        let refused = host.firn(&[&["session", "run"][..], &env].concat()).finish().expect(125);
        let bound = "Session 's' is bound to environment '";
        assert!(refused.stderr.contains(bound) && refused.stderr.contains(told), "{}", refused.stderr);
    }
    let env = ["session", "run", "--env", folder.to_str().unwrap(), "--session", "s", "x"];
    assert_eq!(host.firn(&env).finish().expect(0).text(), "41\n");
    host.firn(&["session", "close", "s"]).finish().expect(0);
    let once = ["session", "run", "-i", "jail", "--env", folder.to_str().unwrap(), "6 * 7"];
    assert_eq!(host.firn(&once).finish().expect(0).text(), "42\n");
    host.assert_clean();
}

jail_only!(the_timeout_of_the_metadata_is_that_of_each_run_of_a_session);
fn the_timeout_of_the_metadata_is_that_of_each_run_of_a_session() {
    let host = Host::of(Grade::Jail);
    let folder = artifact_with_sessions(&host, &METADATA.replace("60", "2"));
    let create = ["session", "create", "-i", "jail", "--env", folder.to_str().unwrap(), "--name", "s"];
    host.firn(&create).finish().expect(0);
    let run = |code: &str| host.firn(&["session", "run", "--session", "s", code]).finish();
    run("x = 1\nwhile True: pass").expect(124);
    assert_eq!(run("x").expect(0).text(), "1\n");
    host.firn(&["session", "close", "s"]).finish().expect(0);
}

both_grades!(sessions_that_cannot_be_had_are_explained);
fn sessions_that_cannot_be_had_are_explained(grade: Grade) {
    let host = Host::of(grade);
    let folder = artifact(&host, METADATA);
    let refused = |environment: &str, told: &str| {
        let create = ["session", "create", "-i", grade.name(), "--env", environment, "--name", "s"];
        let done = host.firn(&create).finish();
        assert!(done.code != 0 && done.stderr.contains(told), "{environment}: {}", done.stderr);
    };
    let path = folder.to_str().unwrap();
    refused("host", "Environment 'host' does not support sessions");
    refused(path, "Environment 'py' does not support sessions");
    refused("no-such", "there is no environment");
    // One that speaks another protocol, as nix-sandbox-mcp's does, or none.
    program(&folder.join("bin/session-run"), "#!/bin/sh\necho 'no agent here' >&2\nexit 3\n");
    match grade {
        Grade::Jail => refused(path, "no agent here"),
        Grade::Vm => refused(path, "--isolation jail"),
    }
    host.assert_clean();
}

both_grades!(what_is_no_environment_is_explained);
fn what_is_no_environment_is_explained(grade: Grade) {
    let host = Host::of(grade);
    let folder = artifact(&host, METADATA);
    let path = folder.to_str().unwrap();
    for (args, part) in [
        (&["--env", "no-such", "--", "true"][..], "`host`, `python`, `shell`, `node`"),
        (&["--env", "/usr", "--", "true"], "metadata.json"),
        (&["--env", path, "--", "true"], "stdin"),
        (&["--env", path, "--user", "sandbox"], "--user"),
        (&["--env", path, "-t"], "--tty"),
        (&["--env", "host"], "CMD"),
    ] {
        let done = host.run(args).finish().expect(2);
        assert!(done.stderr.contains(part), "{args:?}: {}", done.stderr);
    }
}

#[test]
fn the_hosts_interpreters_are_listed_unless_something_else_has_their_name() {
    let host = Host::new();
    let list = |dropped: &Path| {
        let listed = host.firn(&["env", "list", "--json"]).env("NIX_SANDBOX_DIR", dropped).finish().expect(0);
        let listed = listed.json().as_array().unwrap().clone();
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        listed.iter().map(|known| (text(&known["name"]).unwrap(), text(&known["path"]))).collect::<Vec<_>>()
    };
    let own = |name: &str| (name.to_owned(), None);
    assert_eq!(list(Path::new("/no/such")), ["node", "python", "shell"].map(own));
    let folder = artifact(&host, &METADATA.replace("py\"", "python\""));
    let dropped = folder.parent().unwrap();
    let found = ("python".to_owned(), Some(folder.canonicalize().unwrap().to_str().unwrap().to_owned()));
    assert_eq!(list(dropped), [own("node"), found, own("shell")]);
    let text = host.firn(&["env", "list"]).finish().expect(0);
    assert!(
        text.text().lines().any(|line| line.starts_with("python") && line.contains("this host")),
        "{}",
        text.text()
    );
}
