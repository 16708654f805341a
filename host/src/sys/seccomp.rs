//! The system calls that nothing in a sandbox's processes needs.
//!
//! A helper of a vm talks to the guest, so it is the first thing a hostile guest takes over, and in a
//! jail hostile code runs at once; what it can then ask of the host's kernel is what stands between it
//! and the host. This denies what container runtimes deny by default (the list of Docker's and
//! Podman's profile): changing the system, new namespaces and mounts, interfaces with a history, and
//! for helpers looking into other processes, which in a jail are only its own and debuggers need.
//! Besides, as systemd's `RestrictSUIDSGID=` does it, making files set-id: what is written into a
//! shared folder belongs to the caller, and a set-id file of the caller's is a way to the caller's
//! rights for anybody who can run it. And vsock, which is not divided by network namespaces
//! everywhere. virtiofsd, QEMU and cloud-hypervisor bring filters of their own that allow little;
//! this one is under them.
//!
//! Compiled by `seccompiler`, which rust-vmm keeps for Firecracker and cloud-hypervisor.

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Denied with `EPERM`, whatever the arguments.
const DENIED: &[libc::c_long] = &[
    // The system's state.
    libc::SYS_acct,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    // Mounts.
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_umount2,
    // Files by handle: past every path.
    libc::SYS_open_by_handle_at,
    // Other processes.
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_setns,
    // Interfaces with a history.
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_fanotify_init,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_perf_event_open,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
];

/// Denied to helpers besides. In a jail they reach the jail's own processes, and of these not the
/// agent.
const DENIED_TO_HELPERS: &[libc::c_long] =
    &[libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_ptrace];

/// Set-user-id and set-group-id, of which no file may be made to have any.
const SET_ID: &[u32] = &[libc::S_ISUID, libc::S_ISGID];

/// Calls that take permission bits, and in which argument.
const MODES: &[(libc::c_long, u8)] = &[
    (libc::SYS_chmod, 1),
    (libc::SYS_fchmod, 1),
    (libc::SYS_fchmodat, 2),
    (SYS_FCHMODAT2, 2),
    (libc::SYS_creat, 1),
    (libc::SYS_mknod, 1),
    (libc::SYS_mknodat, 2),
];

/// fchmodat2 of Linux 6.6 (asm/unistd_64.h).
const SYS_FCHMODAT2: libc::c_long = 452;

/// Calls that take them only when they make a file: the arguments with flags and with bits.
const OPENS: &[(libc::c_long, u8, u8)] = &[(libc::SYS_open, 1, 2), (libc::SYS_openat, 2, 3)];

/// What makes a file: `__O_TMPFILE` is `O_TMPFILE` without the `O_DIRECTORY` that goes with it.
const MAKES_FILE: &[libc::c_int] = &[libc::O_CREAT, libc::O_TMPFILE & !libc::O_DIRECTORY];

/// `TIOCSTI` and `TIOCLINUX` (asm-generic/ioctls.h), ways to type on a terminal in somebody else's
/// place. In the `libc` crate their type depends on the C library.
const TYPING: &[u64] = &[0x5412, 0x541c];

/// Whom a filter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Confined {
    /// A helper of a vm.
    Helper,
    /// A jail.
    Jail,
}

/// Denied to `clone` and `unshare`. (virtiofsd's threads unshare their working directories, which
/// is none of these.)
const NAMESPACES: &[libc::c_int] = &[
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// Refuses the system calls of the x32 ABI, before anything else. They are the same calls under
/// other numbers and the same architecture, so a list of what is denied would let them all pass.
/// Kernels that have them are rare, and libraries that use them rarer. (linux/filter.h;
/// `__X32_SYSCALL_BIT` of asm/unistd.h)
const NO_X32: [sock_filter; 3] = [
    // The number: the first field of struct seccomp_data.
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
    instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, 0x4000_0000),
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned()),
];

const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

/// The filters as `bwrap --add-seccomp-fd` takes them: arrays of `struct sock_filter`. They are compiled
/// once.
pub(crate) fn filters(confined: Confined) -> Result<&'static [Vec<u8>], BackendError> {
    static OF_HELPERS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    static OF_JAILS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let compiled = match confined {
        Confined::Helper => &OF_HELPERS,
        Confined::Jail => &OF_JAILS,
    };
    if let Some(filters) = compiled.get() {
        return Ok(filters);
    }
    let filters = compile(confined)?;
    Ok(compiled.get_or_init(|| filters))
}

fn compile(confined: Confined) -> Result<Vec<Vec<u8>>, BackendError> {
    let mut denied: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    if confined == Confined::Helper {
        denied.extend(DENIED_TO_HELPERS.iter().map(|call| (*call, Vec::new())));
    }
    for call in [libc::SYS_clone, libc::SYS_unshare] {
        let rules = NAMESPACES.iter().map(|flag| rule([has(0, flag.cast_unsigned())]));
        denied.insert(call, rules.collect::<Result<_, _>>()?);
    }
    for (call, bits) in MODES {
        let rules = SET_ID.iter().map(|id| rule([has(*bits, *id)]));
        denied.insert(*call, rules.collect::<Result<_, _>>()?);
    }
    for (call, flags, bits) in OPENS {
        let both =
            MAKES_FILE.iter().flat_map(|flag| SET_ID.iter().map(move |id| (flag.cast_unsigned(), *id)));
        let rules = both.map(|(flag, id)| rule([has(*flags, flag), has(*bits, id)]));
        denied.insert(*call, rules.collect::<Result<_, _>>()?);
    }
    let typing = TYPING.iter().map(|request| rule([is(1, *request)]));
    denied.insert(libc::SYS_ioctl, typing.collect::<Result<_, _>>()?);
    let vsock = u64::try_from(libc::AF_VSOCK).unwrap_or_default();
    denied.insert(libc::SYS_socket, vec![rule([is(0, vsock)])?]);
    // The arguments of these are in memory, where no filter can look. Without clone3 the C library
    // uses clone, and who knows openat2 knows that older kernels lack it.
    let absent = [libc::SYS_clone3, libc::SYS_openat2].map(|call| (call, Vec::new())).into();
    [(denied, libc::EPERM), (absent, libc::ENOSYS)]
        .into_iter()
        .map(|(rules, errno)| {
            let answer = SeccompAction::Errno(errno.cast_unsigned());
            SeccompFilter::new(rules, SeccompAction::Allow, answer, TargetArch::x86_64)
                .and_then(BpfProgram::try_from)
                .map(|program| bytes(NO_X32.iter().chain(&program)))
        })
        .collect()
}

/// All of these conditions.
fn rule<const N: usize>(
    conditions: [Result<SeccompCondition, BackendError>; N],
) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)
}

/// An argument that has this bit. The kernel takes these arguments as 32 bits wide, whatever is above.
fn has(argument: u8, bit: u32) -> Result<SeccompCondition, BackendError> {
    let bit = u64::from(bit);
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bit), bit)
}

/// An argument that is this, in 32 bits.
fn is(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn bytes<'a>(program: impl Iterator<Item = &'a sock_filter>) -> Vec<u8> {
    program
        .flat_map(|filter| {
            let [a, b] = filter.code.to_ne_bytes();
            let [c, d, e, f] = filter.k.to_ne_bytes();
            [a, b, filter.jt, filter.jf, c, d, e, f]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_whole_programs_within_the_kernels_limit() {
        for filter in [Confined::Helper, Confined::Jail].map(|who| filters(who).unwrap()).concat() {
            assert_eq!(filter.len() % 8, 0);
            // BPF_MAXINSNS of linux/bpf_common.h.
            assert!(filter.len() / 8 <= 4096);
        }
    }

    #[test]
    #[allow(unsafe_code, reason = "system calls under numbers that have no wrapper")]
    fn denied_calls_are_denied_under_all_their_numbers() {
        const X32: libc::c_long = 0x4000_0000;
        let program = |bytes: &[u8]| -> BpfProgram {
            bytes
                .chunks(8)
                .map(|filter| sock_filter {
                    code: u16::from_ne_bytes([filter[0], filter[1]]),
                    jt: filter[2],
                    jf: filter[3],
                    k: u32::from_ne_bytes([filter[4], filter[5], filter[6], filter[7]]),
                })
                .collect()
        };
        let errno = |call: libc::c_long| {
            // SAFETY: every argument is 0, which none of the calls below makes anything of.
            let result = unsafe { libc::syscall(call, 0, 0, 0, 0, 0, 0) };
            if result < 0 { nix::errno::Errno::last_raw() } else { 0 }
        };
        // A filter is its thread's and ends with it.
        std::thread::spawn(move || {
            for filter in filters(Confined::Helper).unwrap() {
                seccompiler::apply_filter(&program(filter)).unwrap();
            }
            assert_eq!(errno(libc::SYS_getpid), 0);
            assert_eq!(errno(libc::SYS_bpf), libc::EPERM);
            assert_eq!(errno(libc::SYS_clone3), libc::ENOSYS);
            assert_eq!(errno(libc::SYS_openat2), libc::ENOSYS);
            // Whatever is in the half of an argument that the kernel does not look at.
            let with = |call: libc::c_long, arguments: [u64; 4]| {
                let [a, b, c, d] = arguments;
                // SAFETY: the paths are null, which the calls refuse.
                let result = unsafe { libc::syscall(call, a, b, c, d) };
                if result < 0 { nix::errno::Errno::last_raw() } else { 0 }
            };
            let above = 1_u64 << 40;
            assert_eq!(with(libc::SYS_chmod, [0, 0o4755 | above, 0, 0]), libc::EPERM);
            assert_eq!(with(libc::SYS_chmod, [0, 0o2755, 0, 0]), libc::EPERM);
            assert_eq!(with(libc::SYS_chmod, [0, 0o755, 0, 0]), libc::EFAULT);
            let create = u64::try_from(libc::O_CREAT).unwrap();
            assert_eq!(with(libc::SYS_openat, [0, 0, create, 0o4755]), libc::EPERM);
            // Without O_CREAT the bits are whatever was in the register.
            assert_eq!(with(libc::SYS_openat, [0, 0, 0, 0o4755]), libc::EFAULT);
            assert_eq!(with(libc::SYS_ioctl, [u64::MAX, TYPING[0] | above, 0, 0]), libc::EPERM);
            let vsock = u64::try_from(libc::AF_VSOCK).unwrap();
            assert_eq!(with(libc::SYS_socket, [vsock, 1, 0, 0]), libc::EPERM);
            // A kernel without the x32 ABI would say ENOSYS.
            assert_eq!(errno(X32 | libc::SYS_bpf), libc::EPERM);
            assert_eq!(errno(X32 | libc::SYS_getpid), libc::EPERM);
        })
        .join()
        .unwrap();
    }
}
