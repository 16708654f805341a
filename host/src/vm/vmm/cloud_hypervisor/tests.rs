//! How the end of a guest is told from the end of its VMM, with a shell that plays the VMM: the
//! real one needs a host with KVM.

use super::*;
use crate::sys::cgroup::Cgroup;
use crate::sys::process::{HelperCommand, Pids, Reports, Station};
use std::ops::{Deref, DerefMut};

/// With its folder.
struct Acting(CloudHypervisor, #[expect(dead_code, reason = "it is removed with this")] tempfile::TempDir);

impl Deref for Acting {
    type Target = CloudHypervisor;

    fn deref(&self) -> &CloudHypervisor {
        &self.0
    }
}

impl DerefMut for Acting {
    fn deref_mut(&mut self) -> &mut CloudHypervisor {
        &mut self.0
    }
}

/// Runs `script`, in which `event` writes one and `$console` is a file.
fn acting(script: &str) -> Acting {
    let dir = tempfile::tempdir().unwrap();
    let console = dir.path().join("console");
    let fds = vec![make_fifo(&dir.path().join(EVENTS)).unwrap(), make_fifo(&console).unwrap()];
    let path = |end: &OwnedFd| descriptor_path(std::os::fd::AsRawFd::as_raw_fd(end));
    let prelude = format!(
        "event() {{ echo \"{{\\\"source\\\": \\\"vm\\\", \\\"event\\\": \\\"$1\\\"}}\" > {}; }}; console={}; ",
        path(&fds[0]),
        path(&fds[1])
    );
    let life = follow_events(dir.path(), Life::Before).unwrap();
    let console = Tail::follow(open_fifo(&console).unwrap()).unwrap();
    // As bubblewrap says it.
    let status = dir.path().join("vmm.status");
    let prelude =
        format!("trap 'echo \"{{ \\\"exit-code\\\": $? }}\" > {}' EXIT; {prelude}", status.display());
    let helper = HelperCommand {
        role: ROLE,
        program: "/bin/sh".into(),
        args: vec!["-c".into(), (prelude + script).into()],
        variables: Vec::new(),
        identity: Identity::Caller,
        fds,
        third: None,
        staged: Vec::new(),
        folder: "/".into(),
        pids: Pids::best(),
        reports: Reports::Nothing,
    };
    let station = Station { cgroup: &Cgroup::none(), folder: dir.path(), record: &|_, _| Ok(()) };
    let helper = helper.start(station).unwrap();
    let client = Client::new(Path::new("/nowhere"));
    Acting(CloudHypervisor { helper, client, console: Some(console), life }, dir)
}

async fn end_of(script: &str) -> VmmError {
    let mut vmm = acting(script);
    tokio::time::timeout(Duration::from_secs(20), vmm.ended()).await.unwrap()
}

#[tokio::test]
async fn power_off() {
    match end_of("event booted; echo the last words > $console; event shutdown; event deleted").await {
        VmmError::GuestEnded { how, console } => {
            assert_eq!((how.as_str(), console.as_str()), ("powered off", "the last words\n"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_reset_ends_the_vmm_before_the_guest_boots_again() {
    let mut vmm = acting("event booted; event rebooting; event shutdown; sleep 60; event booted");
    let end = tokio::time::timeout(Duration::from_secs(20), vmm.ended()).await.unwrap();
    assert!(matches!(&end, VmmError::GuestEnded { how, .. } if how == "reset"), "{end:?}");
    assert_eq!(vmm.helper.processes(), Vec::<u32>::new());
}

#[tokio::test]
async fn a_vmm_that_fails_is_no_guest_that_powered_off() {
    let script = "event booted; echo 'cloud-hypervisor: 1.5s: <vcpu0> ERROR:vmm/src/cpu.rs:1460 -- oh' >&2; \
                  event shutdown; exit 0";
    let end = end_of(script).await;
    assert!(end.to_string().ends_with("cpu.rs:1460 -- oh"), "{end}");
    assert!(matches!(end, VmmError::Process(ProcessError::Ended { .. })));
}

#[tokio::test]
async fn a_crash_is_reported_with_its_words() {
    for script in ["event booted; echo oh no >&2; exit 101", "echo oh no >&2; kill -9 $$"] {
        let end = end_of(script).await;
        assert!(end.to_string().contains("oh no"), "{end}");
        assert!(matches!(end, VmmError::Process(ProcessError::Ended { .. })));
    }
}

#[tokio::test]
async fn waiting_may_be_given_up_and_taken_up_again() {
    let mut vmm = acting("event booted; sleep 0.3; event shutdown");
    for _ in 0..3 {
        let early = tokio::time::timeout(Duration::from_millis(20), vmm.ended()).await;
        assert!(early.is_err(), "{early:?}");
    }
    for _ in 0..2 {
        let end = tokio::time::timeout(Duration::from_secs(20), vmm.ended()).await.unwrap();
        assert!(matches!(end, VmmError::GuestEnded { .. }), "{end:?}");
    }
    vmm.destroy().await;
}

#[tokio::test]
async fn destroying_leaves_no_process() {
    // As bubblewrap does, the shell waits for its child.
    let mut vmm = acting("event booted; sleep 60 & wait");
    while vmm.helper.processes().len() < 2 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let processes = vmm.helper.processes();
    vmm.destroy().await;
    vmm.destroy().await;
    assert_eq!(vmm.helper.processes(), Vec::<u32>::new());
    let outlived = |process: &u32| match std::fs::read_to_string(format!("/proc/{process}/stat")) {
        // A zombie that nobody has collected yet is gone as far as we can see to it.
        Ok(stat) => !stat.contains(") Z "),
        Err(_gone) => false,
    };
    assert!(!processes.iter().any(outlived));
}
