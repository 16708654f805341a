//! Whether KVM really runs a guest on this host.
//!
//! It is measured, because looking is not enough: some hosts offer a `/dev/kvm` that opens,
//! makes machines and runs tiny guests, yet emulates every instruction, so that an ordinary kernel
//! never gets through its boot. What tells them apart is speed.
//!
//! ```text
//!        probe thread: VM + vCPU in long mode, 20,000 × (dec, jnz), hlt; best of 3
//!        this thread:  waits 2 s, then kicks the vCPU with a signal until it stops
//! ```
//!
//! Called once by a command that is about to choose a VMM. Blocks for up to 0.3 s (2.5 s where KVM
//! hangs): from async code, on a blocking thread. Does not choose anything and does not say what
//! to do about a KVM that cannot be used.
#![allow(unsafe_code, reason = "guest memory and a vCPU have no safe interface")]

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet};
use serde::{Deserialize, Serialize};
use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::thread::JoinHandleExt as _;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// The loop takes well under 1 ms on KVM and over 10 ms where every instruction is emulated.
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
    pub(super) fn of_this_host() -> Provider {
        let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
        if loaded("kvm_pvm") && !loaded("kvm_intel") && !loaded("kvm_amd") {
            Provider::Pvm
        } else {
            Provider::Hardware
        }
    }
}

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

/// Whether KVM can run a guest, measured unless it is known what the loop took. Opening is part of
/// the answer each time: permissions change.
pub(super) fn kvm_state(loop_time: Option<Duration>, provider: Provider) -> KvmState {
    match (Kvm::new(), loop_time) {
        (Ok(_), Some(loop_time)) => judge(loop_time, provider),
        (Ok(_), None) => measure_kvm(),
        (Err(error), _) => not_opened(error),
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
        unsafe { libc::pthread_kill(thread.as_pthread_t() as libc::pthread_t, kick_signal()) };
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

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
            unsafe { libc::pthread_kill(thread.as_pthread_t() as libc::pthread_t, kick_signal()) };
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
}
