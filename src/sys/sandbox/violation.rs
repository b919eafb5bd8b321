//! What happens when a thread asks for a system call that its filter doesn't allow.
//!
//! The kernel doesn't make the call and sends SIGSYS instead. The handler here names the call and
//! the thread on standard error. Then, for a call that only somebody makes who has taken the
//! process over, it ends the process; any other fails with EPERM, and its caller goes on.
//!
//! It runs within a signal handler: no lock, no allocation, nothing but `write(2)`, `prctl(2)` and
//! `_exit(2)`.

use std::fmt::{self, Write};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::names;

/// How the process ends then: what a shell shows for a process that died of SIGSYS.
const STATUS: libc::c_int = 128 + libc::SIGSYS;
/// Calls that were named already, a bit for each number: the log is to stay readable.
static SAID: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

/// Calls of a program that isn't ours any more: they start programs, make memory executable, change
/// the process's rights or its view of the machine, look into others or into the kernel. No path of
/// this program and its libraries leads there; to fail such a call would leave time to try another.
const DEADLY: &[libc::c_long] = &[
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_capset,
    libc::SYS_chroot,
    libc::SYS_clone,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    // With PROT_EXEC; all else is allowed.
    libc::SYS_mmap,
    libc::SYS_mprotect,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_pkey_mprotect,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_request_key,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setns,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_setuid,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
];

/// `siginfo_t` of a SIGSYS, which the libc crate has no access to.
#[repr(C)]
struct SigSys {
    signo: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    _padding: libc::c_int,
    _address: *mut libc::c_void,
    call: libc::c_int,
    _architecture: libc::c_uint,
}

/// Installs the handler, for all threads.
pub(super) fn install() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid value of this plain C struct.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigsys as *const () as usize;
    // Without SA_ONSTACK: see `fault`.
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the action is valid, and its handler only does what a handler may.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_sigsys(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo to a handler with SA_SIGINFO, and that of a SIGSYS
    // is laid out so.
    let number = unsafe { (*info.cast::<SigSys>()).call };
    // SAFETY: errno is this thread's.
    let errno = unsafe { *libc::__errno_location() };
    let deadly = DEADLY.contains(&number.into());
    if deadly || is_first(number) {
        tell(number, deadly);
    }
    if deadly {
        // SAFETY: ends the process, whatever its threads do.
        unsafe { libc::_exit(STATUS) };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    // SAFETY: the kernel hands a valid context to a handler with SA_SIGINFO, and it is this
    // thread's alone.
    fail(unsafe { &mut *context.cast() });
}

/// Whether this call wasn't named yet.
fn is_first(number: libc::c_int) -> bool {
    let Ok(number) = u32::try_from(number) else { return true };
    let (word, bit) = (number / u64::BITS, 1 << (number % u64::BITS));
    SAID.get(word as usize).is_none_or(|said| said.fetch_or(bit, Ordering::Relaxed) & bit == 0)
}

/// Makes the interrupted call return EPERM.
fn fail(context: &mut libc::ucontext_t) {
    let answer = -i64::from(libc::EPERM);
    #[cfg(target_arch = "x86_64")]
    if let Some(register) = context.uc_mcontext.gregs.get_mut(libc::REG_RAX as usize) {
        *register = answer;
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(register) = context.uc_mcontext.regs.first_mut() {
        *register = answer as u64;
    }
}

fn tell(number: libc::c_int, deadly: bool) {
    // 15 bytes and a zero.
    let mut name = [0u8; 16];
    // SAFETY: the kernel writes at most 16 bytes.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let thread = name.get(..length).and_then(|name| std::str::from_utf8(name).ok());
    let thread = thread.unwrap_or("?");
    let call = names::of(number.into()).unwrap_or("unnamed");
    let end = if deadly {
        "this program never makes that call, somebody else may be in control of it; ending it"
    } else {
        "the call failed, the thread goes on; further ones of that name are not reported"
    };
    let mut line = Line { bytes: [0; 256], length: 0 };
    // What doesn't fit is cut off.
    let _ = writeln!(
        line,
        "ringswitch: sandbox: refused system call {call} ({number}) of thread {thread}: {end}"
    );
    let said = line.bytes.get(..line.length).unwrap_or_default();
    // SAFETY: `said` is valid for its length. If nobody reads, nothing can be told.
    unsafe { libc::write(libc::STDERR_FILENO, said.as_ptr().cast(), said.len()) };
}

/// A line of text on the stack.
struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.length..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(text.bytes()) {
            *to = from;
            self.length += 1;
        }
        Ok(())
    }
}
