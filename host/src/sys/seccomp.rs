//! The system calls that no helper of a sandbox needs.
//!
//! A helper talks to the guest, so it is the first thing a hostile guest takes over; what it can
//! then ask of the host's kernel is what stands between it and the host. virtiofsd, QEMU and
//! cloud-hypervisor bring filters of their own that allow little; this one is under them, and is
//! the only one of the vsock device. It denies what container runtimes deny by default (the list of
//! Docker's and Podman's profile): changing the system, looking into other processes, new
//! namespaces, and interfaces with a history.
//!
//! Compiled by `seccompiler`, which rust-vmm keeps for Firecracker and cloud-hypervisor.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use std::collections::BTreeMap;

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
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
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

/// The filters as `bwrap --add-seccomp-fd` takes them: arrays of `struct sock_filter`.
pub(crate) fn filters() -> Result<Vec<Vec<u8>>, seccompiler::BackendError> {
    let mut denied: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    for call in [libc::SYS_clone, libc::SYS_unshare] {
        let rules: Result<Vec<SeccompRule>, _> = NAMESPACES.iter().map(|flag| with_flag(*flag)).collect();
        denied.insert(call, rules?);
    }
    // The flags of clone3 are in memory, where no filter can look. The C library falls back to
    // clone when there is no such call.
    let absent = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
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

fn with_flag(flag: libc::c_int) -> Result<SeccompRule, seccompiler::BackendError> {
    let flag = u64::from(flag.cast_unsigned());
    let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag)?;
    SeccompRule::new(vec![condition])
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
        let filters = filters().unwrap();
        assert_eq!(filters.len(), 2);
        for filter in filters {
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
            for filter in filters().unwrap() {
                seccompiler::apply_filter(&program(&filter)).unwrap();
            }
            assert_eq!(errno(libc::SYS_getpid), 0);
            assert_eq!(errno(libc::SYS_bpf), libc::EPERM);
            assert_eq!(errno(libc::SYS_clone3), libc::ENOSYS);
            // A kernel without the x32 ABI would say ENOSYS.
            assert_eq!(errno(X32 | libc::SYS_bpf), libc::EPERM);
            assert_eq!(errno(X32 | libc::SYS_getpid), libc::EPERM);
        })
        .join()
        .unwrap();
    }
}
