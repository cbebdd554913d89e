//! The system calls that no process of a sandbox may make.
//!
//! A deny list in four stacked programs (the library takes one answer per program): refused with `EPERM`, refused with
//! `ENOSYS` so that callers fall back, ended at once on a foreign architecture, and the x32 numbers. What a capability
//! would be needed for is mostly listed all the same: the filter holds where a kernel forgets to ask.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use crate::missing::Missing;

const FIX: &str = "use a kernel with CONFIG_SECCOMP_FILTER on x86_64 or aarch64";

/// Refused whatever their arguments.
const DENIED: [c_long; 71] = [
    // Mounts, roots and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    SYS_STATMOUNT,
    SYS_LISTMOUNT,
    SYS_OPEN_TREE_ATTR,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Kernel interfaces with a history.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_io_destroy,
    libc::SYS_io_cancel,
    libc::SYS_io_getevents,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_vmsplice,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // The machine.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    // Memory policy of the machine.
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // Message queues outlive their maker; nothing here needs them.
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    libc::SYS_memfd_secret,
    libc::SYS_ioprio_set,
    libc::SYS_remap_file_pages,
];

/// Refused on x86_64 only, where they exist.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: [c_long; 7] = [
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS__sysctl,
    libc::SYS_sysfs,
    libc::SYS_uselib,
    libc::SYS_ustat,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: [c_long; 0] = [];

// The same on every architecture; newer than the table of the libc crate.
const SYS_STATMOUNT: c_long = 457;
const SYS_LISTMOUNT: c_long = 458;
const SYS_OPEN_TREE_ATTR: c_long = 467;

const NAMESPACE_FLAGS: [i32; 8] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    0x80, // CLONE_NEWTIME
];

/// Compiles the programs; done once, in the zygote.
pub(super) fn compile() -> Result<Vec<BpfProgram>, Missing> {
    let missing = |error: &dyn std::fmt::Display| Missing::new("seccomp", error, FIX);
    let arch: TargetArch = ARCH
        .try_into()
        .map_err(|error: seccompiler::BackendError| missing(&error))?;
    let refuse = |errno: i32| SeccompAction::Errno(errno.unsigned_abs());
    let program =
        |rules: BTreeMap<c_long, Vec<SeccompRule>>, errno: i32| -> Result<BpfProgram, Missing> {
            SeccompFilter::new(rules, SeccompAction::Allow, refuse(errno), arch)
                .and_then(TryInto::try_into)
                .map_err(|error| missing(&error))
        };
    let denied = denied().map_err(|error| missing(&error))?;
    // clone3 takes its flags by pointer, which a filter cannot read; every C library falls back to clone.
    let absent = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let mut programs = vec![
        program(denied, libc::EPERM)?,
        program(absent, libc::ENOSYS)?,
    ];
    if ARCH == "x86_64" {
        programs.push(without_x32());
    }
    Ok(programs)
}

/// Installs the programs; irrevocable.
pub(super) fn apply(programs: &[BpfProgram]) -> Result<(), Missing> {
    for program in programs {
        seccompiler::apply_filter(program).map_err(|error| Missing::new("seccomp", error, FIX))?;
    }
    Ok(())
}

fn denied() -> Result<BTreeMap<c_long, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = DENIED
        .into_iter()
        .chain(DENIED_HERE)
        .map(|number| (number, Vec::new()))
        .collect();
    let when = |argument: u8, op: SeccompCmpOp, value: u64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)
    };
    let is_none_of = |argument: u8, values: &[u64]| {
        let conditions: Result<Vec<_>, _> = values
            .iter()
            .map(|v| when(argument, SeccompCmpOp::Ne, *v))
            .collect();
        SeccompRule::new(conditions?)
    };

    let namespaces: Result<Vec<_>, _> = NAMESPACE_FLAGS
        .iter()
        .map(|flag| {
            let flag = u64::from(flag.unsigned_abs());
            SeccompRule::new(vec![when(0, SeccompCmpOp::MaskedEq(flag), flag)?])
        })
        .collect();
    rules.insert(libc::SYS_clone, namespaces?);

    // Sockets: TCP and UDP over IPv4 and IPv6. No unix, netlink, packet, vsock, AF_ALG; no raw, SCTP or MPTCP.
    let number = |value: i32| u64::from(value.unsigned_abs());
    let mut sockets = vec![
        is_none_of(0, &[number(libc::AF_INET), number(libc::AF_INET6)])?,
        is_none_of(
            2,
            &[0, number(libc::IPPROTO_TCP), number(libc::IPPROTO_UDP)],
        )?,
    ];
    // Every kind but stream (1) and datagram (2); the flags beside the kind do not matter.
    for kind in [0].into_iter().chain(3..16) {
        sockets.push(SeccompRule::new(vec![when(
            1,
            SeccompCmpOp::MaskedEq(0xf),
            kind,
        )?])?);
    }
    rules.insert(libc::SYS_socket, sockets);
    // A connected pair reaches nobody that was not given one end.
    rules.insert(
        libc::SYS_socketpair,
        vec![is_none_of(0, &[number(libc::AF_UNIX)])?],
    );

    // Putting characters into a terminal's input. The kernel reads 32 bits of the request, so do we.
    let commands: Result<Vec<_>, _> = [libc::TIOCSTI, libc::TIOCLINUX, libc::TIOCSETD]
        .into_iter()
        .map(|command| SeccompRule::new(vec![when(1, SeccompCmpOp::Eq, command)?]))
        .collect();
    rules.insert(libc::SYS_ioctl, commands?);

    // The ordinary personality, with or without UNAME26, and asking for it.
    rules.insert(
        libc::SYS_personality,
        vec![is_none_of(0, &[0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff])?],
    );
    Ok(rules)
}

/// x32 calls have the architecture of x86_64 and numbers from 0x4000_0000: they would pass a list of numbers unseen.
fn without_x32() -> BpfProgram {
    const LOAD_NUMBER: u16 = 0x20;
    const JUMP_IF_GREATER_OR_EQUAL: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    let refuse = 0x0005_0000 | libc::ENOSYS.unsigned_abs();
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        instruction(LOAD_NUMBER, 0, 0, 0),
        instruction(JUMP_IF_GREATER_OR_EQUAL, 0, 1, 0x4000_0000),
        instruction(RETURN, 0, 0, refuse),
        instruction(RETURN, 0, 0, ALLOW),
    ]
}
