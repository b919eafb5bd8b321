//! Which system calls a thread may make: seccomp filters, one for each kind of thread.
//!
//! A filter is a list of what is allowed. It names what this program and the C library need; where
//! a call can do harm besides what it is needed for, its arguments are checked, too.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::{Plan, Thread};
use crate::sys::{netdev, tap};

/// What `pthread_create` passes to clone(2): all is shared with the creator, and nothing but a
/// thread comes of it.
const THREAD: libc::c_int = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;
/// Bits of a protection that are neither reading nor writing: above all, execution.
const NOT_READ_WRITE: u64 = !((libc::PROT_READ | libc::PROT_WRITE) as u64);

/// Flags of open(2) for more than reading what is there.
const WRITING: u64 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u64;

/// What every thread does: memory, locks, time, log lines, its end. SIGBUS is handled in any
/// thread, see [`super::super::fault`].
const ANY: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];

/// Sleeping until there is something to do.
const SLEEP: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
];

/// Waiting for another process's part of an upgrade.
const WAIT: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
];

/// Reading and writing TAPs.
const WORKER: &[libc::c_long] = &[libc::SYS_read, libc::SYS_writev];

/// Serving a frontend: messages, descriptors, memory.
const PORT: &[libc::c_long] = &[
    libc::SYS_dup,
    libc::SYS_epoll_ctl,
    libc::SYS_eventfd2,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_newfstatat,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_statx,
];

/// A port that listens: connections, and the end of its socket file.
const SERVER: &[libc::c_long] = &[
    libc::SYS_accept4,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

/// Meeting a process that takes over, sending it descriptors, and waking the main thread.
const UPGRADE: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_geteuid,
    libc::SYS_getsockopt,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
];

/// Serving HTTP: an event loop of its own, connections, bytes.
const API: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_eventfd2,
    libc::SYS_getsockopt,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_writev,
];

/// The main thread: signals, and whatever it takes to open ports and start threads. It will do so
/// while the switch runs.
const MAIN: &[libc::c_long] = &[
    libc::SYS_bind,
    libc::SYS_capget,
    libc::SYS_capset,
    // Refused further up, in a way that makes the C library fall back to clone.
    libc::SYS_clone3,
    libc::SYS_connect,
    libc::SYS_epoll_create1,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_listen,
    libc::SYS_prlimit64,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_set_robust_list,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(not(target_arch = "x86_64"))]
    libc::SYS_renameat,
];

/// A filter's program, as the kernel takes it.
#[derive(Debug)]
pub(super) struct Program(Vec<libc::sock_filter>);

impl Program {
    /// The filter of a `kind` of thread. What isn't allowed is refused by a SIGSYS, or passes and is
    /// logged by the kernel if the plan says so.
    pub fn new(kind: Thread, plan: &Plan<'_>) -> Result<Self, seccompiler::BackendError> {
        let refuse = if plan.log_only { SeccompAction::Log } else { SeccompAction::Trap };
        let arch = std::env::consts::ARCH.try_into()?;
        let rules = allowed(kind, plan)?.rules;
        let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)?;
        let program = BpfProgram::try_from(filter)?;
        Ok(Self(without_clone3().into_iter().chain(program.into_iter().map(raw)).collect()))
    }

    /// Puts the filter in force for this thread, which must have set no_new_privs.
    ///
    /// The kernel's switch against Speculative Store Bypass is left as it is: before Linux 5.16 a
    /// filter turns it on by default, and each load behind a store waits. It guards a thread
    /// against code within its own process; there is none here that isn't ours.
    pub fn apply(&self) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.0.len()).map_err(io::Error::other)?,
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: `program` names a list of instructions with its length; the kernel copies it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                &raw const program,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Whether the kernel has filters that can refuse a call by a signal.
pub(super) fn is_supported() -> bool {
    let action = libc::SECCOMP_RET_TRAP;
    // SAFETY: the kernel reads one u32.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action)
    };
    result == 0
}

fn raw(from: seccompiler::sock_filter) -> libc::sock_filter {
    libc::sock_filter { code: from.code, jt: from.jt, jf: from.jf, k: from.k }
}

/// Answers clone3(2) with ENOSYS: its flags lie in memory, where no filter can see them. The C
/// library then uses clone(2). It has all signals blocked there, so no SIGSYS must come of it.
fn without_clone3() -> [libc::sock_filter; 3] {
    let step = |code: u32, jf, k| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    [
        // The call's number is the first word of `struct seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, libc::SYS_clone3 as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ]
}

/// What is allowed, by number; a call with several rules needs to satisfy one.
struct Allowed {
    rules: BTreeMap<i64, Vec<SeccompRule>>,
}

/// What an argument must be.
enum Is {
    /// This number; the argument is an int.
    Int(libc::c_int),
    /// An ioctl request.
    Request(libc::c_ulong),
    /// Without any of these bits.
    Without(u64),
}

impl Allowed {
    fn any(&mut self, calls: &[libc::c_long]) {
        for call in calls {
            self.rules.insert(*call, Vec::new());
        }
    }

    /// Allows `call` where its argument of this number is as demanded, among other cases.
    fn case(
        &mut self,
        call: libc::c_long,
        argument: u8,
        is: Is,
    ) -> Result<(), seccompiler::BackendError> {
        use SeccompCmpArgLen::{Dword, Qword};
        let (length, operation, value) = match is {
            Is::Int(value) => (Dword, SeccompCmpOp::Eq, value as u64),
            Is::Request(value) => (Dword, SeccompCmpOp::Eq, value),
            Is::Without(bits) => (Qword, SeccompCmpOp::MaskedEq(bits), 0),
        };
        let condition = SeccompCondition::new(argument, length, operation, value)?;
        self.rules.entry(call).or_default().push(SeccompRule::new(vec![condition])?);
        Ok(())
    }

    fn cases(
        &mut self,
        call: libc::c_long,
        argument: u8,
        values: &[libc::c_int],
    ) -> Result<(), seccompiler::BackendError> {
        values.iter().try_for_each(|value| self.case(call, argument, Is::Int(*value)))
    }
}

fn allowed(kind: Thread, plan: &Plan<'_>) -> Result<Allowed, seccompiler::BackendError> {
    let mut list = Allowed { rules: BTreeMap::new() };
    list.any(ANY);
    list.case(libc::SYS_mmap, 2, Is::Without(NOT_READ_WRITE))?;
    list.case(libc::SYS_mprotect, 2, Is::Without(NOT_READ_WRITE))?;
    list.cases(libc::SYS_prctl, 0, &[libc::PR_GET_NAME])?;
    // To give up a signal that is nobody's, and to abort.
    list.cases(libc::SYS_rt_sigaction, 0, &[libc::SIGBUS, libc::SIGABRT])?;
    list.cases(libc::SYS_tgkill, 0, &[std::process::id() as libc::c_int])?;
    match kind {
        // At its end it closes the socket of the watchdog; debug builds ask whether it is open.
        Thread::Sweeper => list.cases(libc::SYS_fcntl, 1, &[libc::F_GETFD])?,
        Thread::Worker => {
            list.any(SLEEP);
            list.any(WORKER);
        }
        Thread::Server => {
            port(&mut list)?;
            list.any(SERVER);
        }
        Thread::Client => {
            port(&mut list)?;
            list.any(&[libc::SYS_connect]);
            list.cases(libc::SYS_socket, 0, &[libc::AF_UNIX])?;
        }
        Thread::Upgrade => {
            list.any(SLEEP);
            list.any(WAIT);
            list.any(UPGRADE);
            descriptors(&mut list)?;
        }
        Thread::Api => {
            list.any(SLEEP);
            list.any(API);
            descriptors(&mut list)?;
        }
        Thread::Main => main(&mut list, plan)?,
    }
    Ok(list)
}

/// Settings of descriptors and sockets, and their duplicates.
fn descriptors(list: &mut Allowed) -> Result<(), seccompiler::BackendError> {
    let flags = [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];
    list.cases(libc::SYS_fcntl, 1, &flags)?;
    list.case(libc::SYS_ioctl, 1, Is::Request(libc::FIONBIO))?;
    list.cases(libc::SYS_setsockopt, 2, &[libc::SO_RCVTIMEO, libc::SO_SNDTIMEO])
}

fn port(list: &mut Allowed) -> Result<(), seccompiler::BackendError> {
    list.any(SLEEP);
    list.any(WAIT);
    list.any(PORT);
    descriptors(list)?;
    list.cases(libc::SYS_socketpair, 0, &[libc::AF_UNIX])
}

/// All that the threads do which it starts, and more.
fn main(list: &mut Allowed, plan: &Plan<'_>) -> Result<(), seccompiler::BackendError> {
    port(list)?;
    list.any(SERVER);
    list.any(WORKER);
    list.any(UPGRADE);
    list.any(API);
    list.any(MAIN);
    list.cases(libc::SYS_clone, 0, &[THREAD])?;
    list.cases(libc::SYS_prctl, 0, &[libc::PR_SET_NAME])?;
    list.cases(libc::SYS_seccomp, 0, &[libc::SECCOMP_SET_MODE_FILTER as libc::c_int])?;
    list.cases(libc::SYS_socket, 0, &[libc::AF_UNIX])?;
    if plan.file.is_some() && !plan.taps {
        list.case(libc::SYS_openat, 2, Is::Without(WRITING))?;
    }
    if plan.taps {
        list.any(&[libc::SYS_openat]);
        for request in tap::REQUESTS.iter().chain(&netdev::REQUESTS) {
            list.case(libc::SYS_ioctl, 1, Is::Request(*request))?;
        }
    }
    Ok(())
}
