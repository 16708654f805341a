//! What this host's processor can do for a guest: whether KVM really runs one, and how fast the
//! time stamp counter ticks.
//!
//! Both are measured, because looking is not enough: some hosts offer a `/dev/kvm` that opens,
//! makes machines and runs tiny guests, yet emulates every instruction, so that an ordinary kernel
//! never gets through its boot. What tells them apart is speed.
//!
//! ```text
//!   host_facts(dir) ── kept for this boot? ── yes ──▶ HostFacts
//!                            │ no
//!                            ▼
//!        probe thread: VM + vCPU in long mode, 20,000 × (dec, jnz), hlt; best of 3
//!        this thread:  waits 2 s, then kicks the vCPU with a signal until it stops
//! ```
//!
//! Called once by a command that is about to choose a VMM. Blocks for up to 0.3 s (2.5 s where KVM
//! hangs): from async code, on a blocking thread. Does not choose anything and does not say what
//! to do about a KVM that cannot be used.
#![allow(unsafe_code, reason = "guest memory, a vCPU and rdtsc have no safe interface")]

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::ffi::c_void;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::num::NonZeroUsize;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::thread::JoinHandleExt as _;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// The loop takes well under 1 ms on KVM and over 50 ms where every instruction is emulated.
pub(crate) const LOOP_LIMIT: Duration = Duration::from_millis(5);

/// Iterations of the loop: long enough to tell, short enough to wait for where it is emulated.
const ITERATIONS: u32 = 20_000;

/// Runs of the loop. The first pays for the guest's page faults; a busy host may disturb one more.
const RUNS: usize = 3;

/// When the whole probe is given up.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a vCPU is kicked before its thread is left alone.
const KICKING: Duration = Duration::from_millis(500);

/// Whether KVM can run a guest.
#[derive(Debug)]
pub(crate) enum KvmState {
    /// Yes.
    Usable {
        /// What the loop took, at best.
        loop_time: Duration,
    },
    /// It opens, but emulates: a guest kernel would not get through its boot.
    TooSlow {
        /// What the loop took, at best.
        loop_time: Duration,
        /// Who provides it.
        provider: Provider,
    },
    /// It is there and we may not open it.
    NotPermitted,
    /// There is none.
    Absent,
    /// It is there, opens, and fails.
    Failed {
        /// What was done: a few words.
        step: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// Who provides `/dev/kvm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Provider {
    /// The processor's virtualization extensions.
    Hardware,
    /// The `kvm_pvm` module, which works without them.
    Pvm,
}

impl Provider {
    fn of_this_host() -> Provider {
        let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
        if loaded("kvm_pvm") && !loaded("kvm_intel") && !loaded("kvm_amd") {
            Provider::Pvm
        } else {
            Provider::Hardware
        }
    }
}

/// Why the time stamp counter's rate is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TscError {
    /// The system's clock could not be read.
    #[error("cannot read the raw monotonic clock")]
    Clock(#[source] io::Error),
    /// Two measurements differ, or are not a rate any processor has.
    #[error("the time stamp counter does not tick evenly ({first_khz} and {second_khz} kHz)")]
    Uneven {
        /// The best measurement, in kHz.
        first_khz: u64,
        /// The next best, in kHz.
        second_khz: u64,
    },
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct HostFacts {
    /// Whether KVM can run a guest.
    pub(crate) kvm: KvmState,
    /// The rate of the time stamp counter in kHz, for a guest that cannot calibrate it itself.
    pub(crate) tsc_khz: Result<u32, TscError>,
}

// ---- Kept measurements ------------------------------------------------------------------------

/// The file in the cache folder.
const KEPT: &str = "host.json";

/// A measurement as it is stored. Valid for this boot, this user and this provider only.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    uid: u32,
    provider: Provider,
    /// Absent unless KVM ran the loop: everything else may be mended at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loop_time_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tsc_khz: Option<u32>,
}

impl Kept {
    fn nothing() -> Kept {
        Kept {
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
            uid: nix::unistd::geteuid().as_raw(),
            provider: Provider::of_this_host(),
            loop_time_us: None,
            tsc_khz: None,
        }
    }

    /// What `dir` holds for this boot. A file that others could have written is not read.
    fn load(dir: &Path) -> Kept {
        let mut kept = Kept::nothing();
        if let Some(stored) = Kept::read(&dir.join(KEPT), kept.uid)
            && !kept.boot_id.is_empty()
            && (&stored.boot_id, stored.uid, stored.provider) == (&kept.boot_id, kept.uid, kept.provider)
        {
            kept = stored;
        }
        kept
    }

    fn read(path: &Path, uid: u32) -> Option<Kept> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(path)
            .ok()?;
        let about = file.metadata().ok()?;
        if !about.is_file() || about.uid() != uid || about.mode() & 0o022 != 0 {
            return None;
        }
        let mut text = Vec::new();
        file.take(4096).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn store(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join(format!(".{KEPT}.{}", std::process::id()));
        let written = (|| {
            let _ = fs::remove_file(&new);
            let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            fs::rename(&new, dir.join(KEPT))
        })();
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }
}

/// Measures, or takes what was measured since the host booted from `dir`, an existing folder of
/// ours.
pub(crate) fn host_facts(dir: &Path) -> HostFacts {
    let mut kept = Kept::load(dir);
    let (kvm_before, tsc_before) = (kept.loop_time_us, kept.tsc_khz);
    let kvm = match (Kvm::new(), kept.loop_time_us) {
        // Opening is part of the answer each time: permissions change.
        (Ok(_), Some(us)) => judge(Duration::from_micros(us), kept.provider),
        (Ok(_), None) => measure_kvm(),
        (Err(error), _) => not_opened(error),
    };
    kept.loop_time_us = match &kvm {
        KvmState::Usable { loop_time } | KvmState::TooSlow { loop_time, .. } => {
            u64::try_from(loop_time.as_micros()).ok()
        }
        KvmState::NotPermitted | KvmState::Absent | KvmState::Failed { .. } => kvm_before,
    };
    let tsc_khz = kept.tsc_khz.map_or_else(measure_tsc_khz, Ok);
    kept.tsc_khz = tsc_khz.as_ref().ok().copied();
    if (kept.loop_time_us, kept.tsc_khz) != (kvm_before, tsc_before) {
        // What cannot be kept is measured again next time.
        let _ = kept.store(dir);
    }
    HostFacts { kvm, tsc_khz }
}

// ---- KVM ----------------------------------------------------------------------------------------

fn judge(loop_time: Duration, provider: Provider) -> KvmState {
    if loop_time <= LOOP_LIMIT {
        KvmState::Usable { loop_time }
    } else {
        KvmState::TooSlow { loop_time, provider }
    }
}

fn not_opened(error: kvm_ioctls::Error) -> KvmState {
    match error.errno() {
        // ENODEV and ENXIO: the device node is there and no module behind it.
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmState::Absent,
        libc::EACCES | libc::EPERM => KvmState::NotPermitted,
        errno => KvmState::Failed { step: "open", source: io::Error::from_raw_os_error(errno) },
    }
}

/// Measures now, in bounded time, whether KVM can run a guest.
pub(crate) fn measure_kvm() -> KvmState {
    if let Err(source) = allow_kicking() {
        return KvmState::Failed { step: "install a signal handler", source };
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (tell, told) = mpsc::channel();
    let spawned = std::thread::Builder::new().name("kvm-probe".into()).spawn({
        let stop = Arc::clone(&stop);
        move || {
            // Nobody listens any more when the probe was given up.
            let _ = tell.send(probe(&stop));
        }
    });
    let thread = match spawned {
        Ok(thread) => thread,
        Err(source) => return KvmState::Failed { step: "start a thread", source },
    };
    let mut answer = told.recv_timeout(PATIENCE);
    let give_up = Instant::now() + KICKING;
    while answer.is_err() && !thread.is_finished() && Instant::now() < give_up {
        // More than once: a signal that arrives just before the vCPU is entered does not stop it.
        stop.store(true, Ordering::Release);
        // SAFETY: the handle has not been joined, so the thread's id is valid, running or not.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
        answer = told.recv_timeout(Duration::from_millis(10));
    }
    match answer {
        Ok(Ok(loop_time)) => judge(loop_time, Provider::of_this_host()),
        Ok(Err(ProbeError::Open(error))) => not_opened(error),
        Ok(Err(ProbeError::Step { step, source })) => KvmState::Failed { step, source },
        Err(_) => KvmState::Failed { step: "run", source: io::ErrorKind::TimedOut.into() },
    }
}

/// A signal nothing else uses, without a meaning to lose.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

/// Lets the signal interrupt a system call instead of ending the process.
fn allow_kicking() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    let action: libc::sigaction = action.into();
    // SAFETY: the handler does nothing, so it may run at any moment; the action is complete.
    match unsafe { libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[derive(Debug)]
enum ProbeError {
    Open(kvm_ioctls::Error),
    Step { step: &'static str, source: io::Error },
}

fn at(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> ProbeError {
    move |error| ProbeError::Step { step, source: io::Error::from_raw_os_error(error.errno()) }
}

/// Guest memory: one large page, so that the guest's page tables need one entry a level.
struct GuestMemory(NonNull<c_void>);

impl GuestMemory {
    const SIZE: usize = 2 * 1024 * 1024;

    fn new() -> Result<GuestMemory, ProbeError> {
        let size = NonZeroUsize::new(Self::SIZE).unwrap_or(NonZeroUsize::MIN);
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new private mapping at an address of the kernel's choice replaces nothing.
        unsafe { mmap_anonymous(None, size, access, MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE) }
            .map(GuestMemory)
            .map_err(|errno| ProbeError::Step { step: "map guest memory", source: errno.into() })
    }

    fn write(&self, address: usize, bytes: &[u8]) {
        assert!(address + bytes.len() <= Self::SIZE, "the probe's guest fits into its memory");
        // SAFETY: the range was just checked to lie in the mapping, which lives as long as self; no
        // reference into it exists, and the vCPU does not run meanwhile.
        unsafe {
            let to = self.0.as_ptr().cast::<u8>().add(address);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, has this size, and the VM that used it is gone: `Probe` drops
        // its vCPU and VM first.
        let _ = unsafe { munmap(self.0, Self::SIZE) };
    }
}

/// A machine of one vCPU. The order of the fields is the order in which they are dropped.
struct Probe {
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: GuestMemory,
}

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const CODE: u64 = 0x4000;

/// `mov ecx, ITERATIONS; again: dec ecx; jnz again; hlt`
fn code() -> Vec<u8> {
    let mut code = vec![0xb9];
    code.extend(ITERATIONS.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc, 0xf4]);
    code
}

fn probe(stop: &AtomicBool) -> Result<Duration, ProbeError> {
    let mut probe = Probe::new()?;
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        best = best.min(probe.run(stop)?);
    }
    Ok(best)
}

impl Probe {
    fn new() -> Result<Probe, ProbeError> {
        let kvm = Kvm::new().map_err(ProbeError::Open)?;
        let vm = kvm.create_vm().map_err(at("create a machine"))?;
        let memory = GuestMemory::new()?;
        // Present and writable; the last one a 2 MiB page at address 0.
        memory.write(PML4 as usize, &(PDPT | 0b11).to_le_bytes());
        memory.write(PDPT as usize, &(PD | 0b11).to_le_bytes());
        memory.write(PD as usize, &(0x80_u64 | 0b11).to_le_bytes());
        memory.write(CODE as usize, &code());
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: GuestMemory::SIZE as u64,
            userspace_addr: memory.0.as_ptr() as u64,
        };
        // SAFETY: the region is a mapping of that size, which `Probe` keeps until the VM is gone.
        unsafe { vm.set_user_memory_region(region) }.map_err(at("give it memory"))?;
        let vcpu = vm.create_vcpu(0).map_err(at("create a vCPU"))?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(at("read the CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(at("set the CPUID"))?;

        let mut sregs = vcpu.get_sregs().map_err(at("read the registers"))?;
        let flat = kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector: 1 << 3,
            type_: 11, // code, executed, readable, accessed
            present: 1,
            s: 1,
            l: 1,
            g: 1,
            ..Default::default()
        };
        let data = kvm_segment { type_: 3, selector: 2 << 3, l: 0, db: 1, ..flat };
        sregs.cs = flat;
        (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
        sregs.cr3 = PML4;
        sregs.cr4 |= 1 << 5; // PAE
        sregs.cr0 |= 1 << 31 | 1; // PG, PE
        sregs.efer |= 1 << 10 | 1 << 8; // LMA, LME
        vcpu.set_sregs(&sregs).map_err(at("enter long mode"))?;
        Ok(Probe { vcpu, _vm: vm, _memory: memory })
    }

    fn run(&mut self, stop: &AtomicBool) -> Result<Duration, ProbeError> {
        let mut regs = self.vcpu.get_regs().map_err(at("read the registers"))?;
        regs.rip = CODE;
        regs.rflags = 2; // the bit that is always set
        self.vcpu.set_regs(&regs).map_err(at("set the registers"))?;
        let begin = Instant::now();
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::Hlt) => return Ok(begin.elapsed()),
                Ok(other) => {
                    let source = io::Error::other(format!("unexpected exit {other:?}"));
                    return Err(ProbeError::Step { step: "run", source });
                }
                Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {
                    if stop.load(Ordering::Acquire) {
                        return Err(ProbeError::Step { step: "run", source: io::ErrorKind::TimedOut.into() });
                    }
                }
                Err(error) => return Err(at("run")(error)),
            }
        }
    }
}

// ---- The time stamp counter ---------------------------------------------------------------------

/// Rates that a processor may have, in kHz.
const PLAUSIBLE_KHZ: std::ops::RangeInclusive<u64> = 100_000..=10_000_000;

/// The counter and the clock, read together.
struct Tick {
    tsc: u64,
    ns: u64,
    /// How far apart the two readings may be.
    slack_ns: u64,
}

fn raw_ns() -> Result<u64, TscError> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).map_err(|errno| TscError::Clock(errno.into()))?;
    Ok(u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX))
}

/// The tightest of a few readings: whoever is interrupted in between reads the two far apart.
fn tick() -> Result<Tick, TscError> {
    let mut best: Option<Tick> = None;
    for _ in 0..8 {
        let before = raw_ns()?;
        // SAFETY: every x86-64 processor has the instruction, and Linux lets user space use it unless
        // the process asked otherwise (PR_SET_TSC), which we do not.
        let tsc = unsafe { core::arch::x86_64::_rdtsc() };
        let after = raw_ns()?;
        let slack_ns = after - before;
        if best.as_ref().is_none_or(|best| slack_ns < best.slack_ns) {
            best = Some(Tick { tsc, ns: before + slack_ns / 2, slack_ns });
        }
    }
    best.ok_or(TscError::Uneven { first_khz: 0, second_khz: 0 })
}

/// Measures how many times the time stamp counter ticks in a millisecond, over ~30 ms.
pub(crate) fn measure_tsc_khz() -> Result<u32, TscError> {
    let mut found = Vec::new();
    let mut begin = tick()?;
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(10));
        let end = tick()?;
        let (ticks, ns) = (end.tsc.saturating_sub(begin.tsc), (end.ns - begin.ns).max(1));
        let khz = u64::try_from(u128::from(ticks) * 1_000_000 / u128::from(ns)).unwrap_or(u64::MAX);
        found.push((begin.slack_ns + end.slack_ns, khz));
        begin = end;
    }
    found.sort_unstable();
    plausible(found[0].1, found[1].1)
}

/// `first`, if `second` agrees to 0.1 %. The kernel itself accepts 1 % from its quick calibration.
fn plausible(first_khz: u64, second_khz: u64) -> Result<u32, TscError> {
    let uneven = || TscError::Uneven { first_khz, second_khz };
    if !PLAUSIBLE_KHZ.contains(&first_khz) || first_khz.abs_diff(second_khz) > first_khz / 1000 {
        return Err(uneven());
    }
    u32::try_from(first_khz).ok().ok_or_else(uneven)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_probe_ends_in_bounded_time_and_agrees_with_the_device() {
        let begin = Instant::now();
        let state = measure_kvm();
        assert!(begin.elapsed() < PATIENCE + KICKING + Duration::from_secs(1), "{state:?}");
        let exists = Path::new("/dev/kvm").exists();
        match state {
            KvmState::Usable { loop_time } => assert!(exists && loop_time <= LOOP_LIMIT),
            KvmState::TooSlow { loop_time, .. } => assert!(exists && loop_time > LOOP_LIMIT),
            KvmState::NotPermitted | KvmState::Failed { .. } => assert!(exists),
            KvmState::Absent => assert!(File::open("/dev/kvm").is_err()),
        }
    }

    #[test]
    fn a_vcpu_that_never_halts_is_stopped() {
        if !matches!(measure_kvm(), KvmState::Usable { .. } | KvmState::TooSlow { .. }) {
            return;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut probe = Probe::new()?;
                probe._memory.write(CODE as usize, &[0xeb, 0xfe]); // jmp to itself
                probe.run(&stop)
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        stop.store(true, Ordering::Release);
        let begin = Instant::now();
        while !thread.is_finished() {
            assert!(begin.elapsed() < KICKING, "the vCPU does not react to signals");
            // SAFETY: the handle has not been joined.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
            std::thread::sleep(Duration::from_millis(5));
        }
        let Err(ProbeError::Step { source, .. }) = thread.join().unwrap() else { panic!("it halted") };
        assert_eq!(source.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn the_limit_divides_usable_from_too_slow() {
        assert!(matches!(judge(LOOP_LIMIT, Provider::Pvm), KvmState::Usable { .. }));
        let above = LOOP_LIMIT + Duration::from_micros(1);
        assert!(matches!(
            judge(above, Provider::Pvm),
            KvmState::TooSlow { provider: Provider::Pvm, loop_time } if loop_time == above
        ));
    }

    #[test]
    fn the_counter_rate_is_measured_the_same_twice() {
        let (first, second) = (measure_tsc_khz().unwrap(), measure_tsc_khz().unwrap());
        assert!(first.abs_diff(second) <= first / 500, "{first} and {second}");
    }

    #[test]
    fn rates_that_differ_or_that_no_processor_has_are_refused() {
        assert_eq!(plausible(2_000_000, 2_001_999).unwrap(), 2_000_000);
        for (first, second) in [(2_000_000, 2_002_001), (99_999, 99_999), (10_000_001, 10_000_001), (0, 0)] {
            assert!(plausible(first, second).is_err(), "{first} {second}");
        }
    }

    #[test]
    fn measurements_are_kept_for_this_boot() {
        let dir = tempfile::tempdir().unwrap();
        let first = host_facts(dir.path());
        let kept = Kept::load(dir.path());
        assert_eq!(kept.tsc_khz, first.tsc_khz.ok());
        let begin = Instant::now();
        let _again = host_facts(dir.path());
        if kept.loop_time_us.is_some() && kept.tsc_khz.is_some() {
            assert!(begin.elapsed() < Duration::from_millis(25), "it was measured again");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_file_of_another_boot_user_or_provider_or_that_others_can_write_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(KEPT);
        let here = || Kept { loop_time_us: Some(1), tsc_khz: Some(2), ..Kept::nothing() };
        let other = match here().provider {
            Provider::Hardware => Provider::Pvm,
            Provider::Pvm => Provider::Hardware,
        };
        for stale in [
            Kept { boot_id: "another".into(), ..here() },
            Kept { uid: here().uid + 1, ..here() },
            Kept { provider: other, ..here() },
        ] {
            stale.store(dir.path()).unwrap();
            assert_eq!(Kept::load(dir.path()), Kept::nothing());
        }
        here().store(dir.path()).unwrap();
        assert_eq!(Kept::load(dir.path()), here());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
        assert_eq!(Kept::load(dir.path()), Kept::nothing());
        fs::remove_file(&path).unwrap();
        fs::write(dir.path().join("elsewhere"), serde_json::to_vec(&here()).unwrap()).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert_eq!(Kept::load(dir.path()), Kept::nothing());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "{").unwrap();
        assert_eq!(Kept::load(dir.path()), Kept::nothing());
    }
}
