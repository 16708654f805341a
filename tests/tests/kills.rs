//! Whatever a sandbox is made of is killed at random moments. `make soak` has 300 of them, `make test` a
//! sample.
//!
//! In each round something is under way: a sandbox is made, used or ended, or nothing is. Then one process is
//! killed: the daemon, or any helper of a sandbox or of what waits in the pool, or both. What was not killed
//! and was not being ended must be there after it and take commands; in the end nothing at all may be left.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]
#![allow(clippy::print_stderr, reason = "what was killed is shown when a test fails")]

use firn_tests::{Chance, Daemon, Grade, Host, Process, collect, descendants};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// How many sandboxes there are before something is killed.
const LEAST: usize = 3;
const MOST: usize = 5;

/// How many of them are vms, at most.
const MOST_VMS: usize = 2;

/// Sandboxes by their ids: what they are made of, and what they do.
type Known = BTreeMap<String, (Grade, String)>;

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Daemon,
    Bubblewrap,
    /// Of a jail, and the copies of it that look after commands.
    Agent,
    Vmm,
    Virtiofsd,
    VsockDevice,
}

impl Kind {
    fn of(process: &Process) -> Option<Kind> {
        let program = process.line.split(' ').next()?;
        match program.rsplit('/').next()? {
            "bwrap" => Some(Kind::Bubblewrap),
            "virtiofsd" => Some(Kind::Virtiofsd),
            "vhost-device-vsock" => Some(Kind::VsockDevice),
            "cloud-hypervisor" => Some(Kind::Vmm),
            name if name.starts_with("qemu-system") => Some(Kind::Vmm),
            _ if program.starts_with("/proc/self/fd/") => Some(Kind::Agent),
            _ => None,
        }
    }
}

/// What is under way when something is killed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Deed {
    Nothing,
    Create(Grade),
    Exec(String, Grade),
    Destroy(String, Grade),
}

impl Deed {
    fn words(&self) -> Vec<&str> {
        match self {
            Deed::Nothing => vec!["list"],
            Deed::Create(grade) => vec!["create", "--isolation", grade.name()],
            Deed::Exec(id, _) => vec!["exec", id, "--", "sh", "-c", "echo begun; sleep 0.2"],
            Deed::Destroy(id, _) => vec!["destroy", id],
        }
    }

    /// About as long as it takes, so that it is met at each of its steps, and after it.
    fn length(&self) -> Duration {
        Duration::from_millis(match self {
            Deed::Nothing => 20,
            Deed::Create(Grade::Jail) => 150,
            Deed::Create(Grade::Vm) => 4000,
            Deed::Exec(..) => 400,
            Deed::Destroy(_, Grade::Jail) => 100,
            Deed::Destroy(_, Grade::Vm) => 500,
        })
    }
}

/// What there is on the host that firn could forget to remove, beside processes and control groups.
#[derive(Debug)]
struct Remainder {
    mounts: BTreeSet<String>,
    files: BTreeSet<PathBuf>,
    /// Sockets with a name among these files, also those whose file is gone.
    sockets: usize,
    /// Of the daemon, by what they lead to.
    descriptors: BTreeMap<String, usize>,
    ours: usize,
}

impl Remainder {
    fn of(host: &Host, daemon: &Daemon) -> Remainder {
        let mut files = BTreeSet::new();
        let mut folders = vec![host.runtime(), host.state()];
        // What was done in a sandbox stays written down when it is gone.
        let audit = host.state().join("audit");
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                if entry.path() == audit {
                    continue;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(entry.path());
                }
                files.insert(entry.path());
            }
        }
        let runtime = host.runtime();
        let sockets = fs::read_to_string("/proc/net/unix").unwrap();
        let mut descriptors = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().flatten() {
            // The one that reads may be gone meanwhile.
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            // Sockets and pipes have a number.
            let kind = target.to_str().unwrap().split(":[").next().unwrap().to_owned();
            *descriptors.entry(kind).or_default() += 1;
        }
        Remainder {
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap().lines().map(str::to_owned).collect(),
            files,
            sockets: sockets.lines().filter(|line| line.contains(runtime.to_str().unwrap())).count(),
            descriptors,
            ours: fs::read_dir("/proc/self/fd").unwrap().count(),
        }
    }
}

impl Remainder {
    /// Whether the daemon talks to nobody: the last connection is closed a moment after the last answer.
    fn is_quiet(&self) -> bool {
        self.sockets == 1
    }
}

/// A host on which things are killed.
struct Scene {
    /// First, because it goes first.
    daemon: Option<Daemon>,
    host: Host,
    chance: Chance,
    /// One sandbox in so many is a vm.
    vms: u64,
    /// All that were ever seen.
    seen: BTreeSet<PathBuf>,
    killed: BTreeMap<Kind, u32>,
}

impl Scene {
    fn new(vms: u64) -> Scene {
        let host = Host::of(Grade::Jail);
        let daemon = Some(host.daemon(None));
        let (seen, killed) = (BTreeSet::new(), BTreeMap::new());
        Scene { daemon, host, chance: Chance::new(), vms, seen, killed }
    }

    fn list(&mut self) -> Known {
        let listed = self.host.firn(&["list", "--all", "--json"]).finish().expect(0).json();
        let known: Known = listed.as_array().unwrap().iter().map(described).collect();
        self.seen.extend(known.keys().map(PathBuf::from));
        known
    }

    /// What is there when nobody talks to the daemon.
    fn quiet_remainder(&self) -> Remainder {
        let remainder = || Remainder::of(&self.host, self.daemon.as_ref().unwrap());
        self.host.wait_until("nobody talks to the daemon", || remainder().is_quiet());
        remainder()
    }

    /// The grade of the next sandbox.
    fn grade(&mut self, known: &Known) -> Grade {
        let vms = known.values().filter(|(grade, _)| *grade == Grade::Vm).count();
        if vms < MOST_VMS && self.chance.one_in(self.vms) { Grade::Vm } else { Grade::Jail }
    }

    fn create(&self, grade: Grade) -> String {
        let created = self.host.firn(&["create", "--isolation", grade.name()]).finish().expect(0);
        created.text().trim_end().to_owned()
    }

    /// All sandboxes: enough of them to be used and ended, however many were killed.
    fn replenished(&mut self) -> Known {
        loop {
            let known = self.list();
            if known.len() >= LEAST {
                return known;
            }
            let grade = self.grade(&known);
            let _ = self.create(grade);
        }
    }

    /// What is done next.
    fn deed(&mut self, known: &Known) -> Deed {
        let all: Vec<(&String, Grade)> = known.iter().map(|(id, (grade, _))| (id, *grade)).collect();
        let (id, grade) = *self.chance.of(&all).unwrap();
        match self.chance.below(8) {
            0..=2 if known.len() < MOST => Deed::Create(self.grade(known)),
            0..=4 => Deed::Destroy(id.clone(), grade),
            5..=6 => Deed::Exec(id.clone(), grade),
            _ => Deed::Nothing,
        }
    }

    /// Kills something, and the daemon with or without it.
    fn kill(&mut self) -> (Kind, u32) {
        let mut victims: BTreeMap<Kind, Vec<u32>> = BTreeMap::new();
        for process in descendants() {
            if let Some(kind) = Kind::of(&process) {
                victims.entry(kind).or_default().push(process.pid);
            }
        }
        victims.insert(Kind::Daemon, vec![self.daemon.as_ref().unwrap().pid()]);
        let kinds: Vec<Kind> = victims.keys().copied().collect();
        let kind = *self.chance.of(&kinds).unwrap();
        let pid = *self.chance.of(&victims[&kind]).unwrap();
        if kind != Kind::Daemon {
            // It may have ended meanwhile; its number is kept for us, who inherit it.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        // Sometimes nobody is there to see it.
        if kind == Kind::Daemon || self.chance.one_in(4) {
            self.daemon.take().unwrap().kill();
        }
        *self.killed.entry(kind).or_default() += 1;
        (kind, pid)
    }

    /// One round, see the module.
    fn round(&mut self, number: u32) {
        let before = self.replenished();
        let deed = self.deed(&before);
        let doing = self.host.firn(&deed.words()).env("FIRN_NO_AUTOSTART", "1").spawn();
        let moment = self.chance.time(deed.length());
        std::thread::sleep(moment);
        let (kind, pid) = self.kill();
        let told = format!("round {number}: {kind:?} {pid} after {} ms of {deed:?}", moment.as_millis());
        eprintln!("{told}{}", if self.daemon.is_none() { ", no daemon" } else { "" });
        self.seen.extend(self.host.sandboxes().iter().map(|folder| folder.file_name().unwrap().into()));
        // However it ended, it ended.
        let _ = collect(doing);
        if self.daemon.is_none() {
            self.daemon = Some(self.host.daemon(None));
        }

        let after = self.list();
        let mut lost: Vec<&String> = before.keys().filter(|id| !after.contains_key(*id)).collect();
        let mut dead = Vec::new();
        for (id, (_, state)) in &after {
            if state == "running" && self.takes_commands(id) {
                continue;
            }
            let host = &self.host;
            host.wait_until(&format!("{id} is over, {told}"), || {
                ["failed", "stopped"].contains(&host.status(id)["state"].as_str().unwrap())
            });
            dead.push(id.clone());
            if before.contains_key(id) {
                lost.push(id);
            }
        }
        if let Deed::Destroy(id, _) = &deed {
            lost.retain(|lost| *lost != id);
        }
        let allowed = usize::from(kind != Kind::Daemon);
        assert!(lost.len() <= allowed, "{told}: {lost:?} are lost of {before:?}, left are {after:?}");
        for id in dead {
            let _ = self.host.firn(&["destroy", &id]).finish().expect(0);
        }
    }

    fn takes_commands(&self, id: &str) -> bool {
        let done = self.host.firn(&["exec", id, "--", "echo", "ok"]).finish();
        if done.code != 0 {
            eprintln!("{id}: {}", done.stderr);
        }
        done.code == 0 && done.text() == "ok\n"
    }

    /// Has the next daemon read another configuration file.
    fn reconfigure(&mut self, file: &[u8]) {
        fs::write(self.host.config(), file).unwrap();
        self.daemon.take().unwrap().kill();
        self.daemon = Some(self.host.daemon(None));
    }

    /// Ends what is there, and checks that all of it is gone.
    fn end(mut self, before: &Remainder) {
        for id in self.list().into_keys() {
            let _ = self.host.firn(&["destroy", &id]).finish().expect(0);
        }
        assert!(self.list().is_empty());
        self.host.wait_until("nothing lives", || self.host.living().is_empty());
        let seen: Vec<PathBuf> = self.seen.iter().cloned().collect();
        assert_eq!(self.host.cgroups(&seen), Vec::<PathBuf>::new());
        let after = self.quiet_remainder();
        assert_eq!(after.mounts, before.mounts);
        assert_eq!(after.files, before.files);
        assert_eq!(after.descriptors, before.descriptors);
        assert_eq!(after.ours, before.ours);
        eprintln!("killed: {:?}", self.killed);
    }
}

fn described(sandbox: &Value) -> (String, (Grade, String)) {
    let text = |name: &str| sandbox[name].as_str().unwrap().to_owned();
    let grade = if text("isolation") == "jail" { Grade::Jail } else { Grade::Vm };
    (text("sessionId"), (grade, text("state")))
}

/// One vm in so many sandboxes, and a pool as the configuration file has it.
fn random_kills_of_anything(times: u32, vms: u64, pool: &str) {
    let mut scene = Scene::new(vms);
    // What is kept from the first on is not left behind by the last.
    for grade in [Grade::Jail, Grade::Vm] {
        let id = scene.create(grade);
        assert!(scene.takes_commands(&id));
        let _ = scene.host.firn(&["destroy", &id]).finish().expect(0);
    }
    let _ = scene.list();
    scene.daemon.take().unwrap().kill();
    scene.daemon = Some(scene.host.daemon(None));
    assert!(scene.list().is_empty());
    let usual = fs::read(scene.host.config()).unwrap();
    let before = scene.quiet_remainder();
    assert!(before.files.contains(&scene.host.runtime().join("firn.sock")));
    scene.reconfigure(format!("[pool]\n{pool}\ncode = 0\n").as_bytes());
    let _ = scene.create(Grade::Vm);
    for number in 1..=times {
        scene.round(number);
    }
    // What waits in the pool is not taken over by who wants none.
    scene.reconfigure(&usual);
    scene.end(&before);
}

#[test]
fn a_few_random_kills_of_anything_leave_what_is_not_killed() {
    random_kills_of_anything(20, 8, "vm = 0\njail = 1");
}

#[test]
#[ignore = "takes minutes: make soak"]
fn soak_random_kills_of_anything_leave_what_is_not_killed() {
    random_kills_of_anything(300, 3, "vm = 1\njail = 1");
}
