//! What each kind of thread can't do any more, tried for real: in a child process, the product's
//! own sandbox is entered, a thread confined, and the forbidden call made.

use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::sys::socket::{Listener, connect};
use crate::sys::tap::{Tap, TapOptions};

/// Set in the process that enters sandboxes: what it tells names the directory of sockets.
const CHILD: &str = "RINGSWITCH_TEST_SANDBOX_CHILD";

/// How a process of its own ended that tried something, and what it said.
#[derive(Debug)]
struct Outcome {
    /// 0, or the error of the call.
    status: libc::c_int,
    said: String,
}

/// The exit code of a panic, which is no error of a call.
const PANIC: libc::c_int = 255;

/// Tries something in a process of its own, which enters the sandbox before. Only where there is no
/// other thread that may hold a lock.
fn try_in(plan: &Plan<'_>, thread: Thread, attempt: impl FnOnce() -> io::Result<()>) -> Outcome {
    let (mut reader, writer) = std::io::pipe().unwrap();
    // SAFETY: the child makes the attempt and ends, without unwinding into the test.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{}", io::Error::last_os_error());
    if child == 0 {
        let work = std::panic::AssertUnwindSafe(|| {
            // SAFETY: both are open.
            assert!(unsafe { libc::dup2(writer.as_raw_fd(), 2) } == 2);
            enter(plan).unwrap().confine(thread);
            attempt().map_or_else(|error| error.raw_os_error().unwrap_or(PANIC), |()| 0)
        });
        let status = std::panic::catch_unwind(work).unwrap_or(PANIC);
        // SAFETY: ends this process.
        unsafe { libc::_exit(status) };
    }
    drop(writer);
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    let mut status = 0;
    // SAFETY: waits for the child that was just made.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    let status = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -status };
    Outcome { status, said }
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A system call with these arguments; the others are 0.
fn call<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> io::Result<()> {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: the arguments are those of a call that is refused or harmless; pointers in them are
    // to static strings or null.
    done(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

fn at(text: &'static CStr) -> usize {
    text.as_ptr() as usize
}

/// An anonymous page with this protection.
fn page(protection: libc::c_int) -> io::Result<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping of its own.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(page as usize) }
}

const RW: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const RX: libc::c_int = libc::PROT_READ | libc::PROT_EXEC;

/// The calls that no thread makes, and how they are called in the log.
type Attempt = (&'static str, fn() -> io::Result<()>);

const DEADLY: &[Attempt] = &[
    ("execve", || call(libc::SYS_execve, [at(c"/bin/true"), 0, 0])),
    ("execveat", || call(libc::SYS_execveat, [0, at(c"/bin/true"), 0, 0, 0])),
    ("clone", || call(libc::SYS_clone, [libc::SIGCHLD as usize])),
    ("mmap", || page(RX).map(drop)),
    ("mprotect", || call(libc::SYS_mprotect, [page(RW)?, 4096, RX as usize])),
    ("pkey_mprotect", || call(libc::SYS_pkey_mprotect, [page(RW)?, 4096, RX as usize, usize::MAX])),
    ("ptrace", || call(libc::SYS_ptrace, [libc::PTRACE_TRACEME as usize])),
    ("process_vm_readv", || call(libc::SYS_process_vm_readv, [1])),
    ("setresuid", || call(libc::SYS_setresuid, [0, 0, 0])),
    ("unshare", || call(libc::SYS_unshare, [libc::CLONE_NEWUSER as usize])),
    ("mount", || call(libc::SYS_mount, [at(c"none"), at(c"/mnt"), at(c"tmpfs"), 0, 0])),
    ("chroot", || call(libc::SYS_chroot, [at(c"/")])),
    ("bpf", || call(libc::SYS_bpf, [0, 0, 0])),
    ("io_uring_setup", || call(libc::SYS_io_uring_setup, [1, 0])),
    ("userfaultfd", || call(libc::SYS_userfaultfd, [0])),
    ("perf_event_open", || call(libc::SYS_perf_event_open, [0, 0, 0, 0, 0])),
    ("init_module", || call(libc::SYS_init_module, [0, 0, 0])),
    ("keyctl", || call(libc::SYS_keyctl, [0, 0])),
    ("personality", || call(libc::SYS_personality, [0x0040_0000])),
];

/// Calls that fail.
const REFUSED: &[Attempt] = &[
    ("socket", || call(libc::SYS_socket, [libc::AF_INET as usize, libc::SOCK_STREAM as usize, 0])),
    ("socket", || call(libc::SYS_socket, [libc::AF_NETLINK as usize, libc::SOCK_RAW as usize, 0])),
    ("socket", || call(libc::SYS_socket, [libc::AF_PACKET as usize, libc::SOCK_RAW as usize, 0])),
    ("kill", || call(libc::SYS_kill, [1, 0])),
    ("tgkill", || call(libc::SYS_tgkill, [1, 1, 0])),
    ("prctl", || call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 1])),
    ("rt_sigaction", || call(libc::SYS_rt_sigaction, [libc::SIGSYS as usize, 0, 0, 8])),
    ("ioctl", || call(libc::SYS_ioctl, [0, libc::TIOCSTI as usize, 0])),
    ("memfd_create", || call(libc::SYS_memfd_create, [at(c"x"), 0])),
    ("linkat", || call(libc::SYS_linkat, [0, at(c"/a"), 0, at(c"/b"), 0])),
    ("renameat2", || call(libc::SYS_renameat2, [0, at(c"/a"), 0, at(c"/b"), 0])),
    ("readlinkat", || call(libc::SYS_readlinkat, [0, at(c"/proc/self/exe"), 0, 0])),
    ("getdents64", || call(libc::SYS_getdents64, [0, 0, 0])),
    ("shmget", || call(libc::SYS_shmget, [0, 4096, 0o1600])),
    ("landlock_create_ruleset", || call(libc::SYS_landlock_create_ruleset, [0, 0, 1])),
    // Even if its own are for reading only.
    ("fcntl", || call(libc::SYS_fcntl, [0, libc::F_SETOWN as usize, 1])),
];

/// Calls that some threads need and these don't.
fn refused_to(thread: Thread) -> Vec<Attempt> {
    let open: Attempt =
        ("openat", || call(libc::SYS_openat, [0, at(c"/etc/passwd"), libc::O_RDONLY as usize]));
    let unix: Attempt =
        ("socket", || call(libc::SYS_socket, [libc::AF_UNIX as usize, libc::SOCK_STREAM as usize]));
    let connect: Attempt = ("connect", || call(libc::SYS_connect, [0, 0, 0]));
    let accept: Attempt = ("accept4", || call(libc::SYS_accept4, [0, 0, 0, 0]));
    let unlink: Attempt = ("unlinkat", || call(libc::SYS_unlinkat, [0, at(c"/none"), 0]));
    let bind: Attempt = ("bind", || call(libc::SYS_bind, [0, 0, 0]));
    let receive: Attempt = ("recvmsg", || call(libc::SYS_recvmsg, [0, 0, 0]));
    let interest: Attempt = ("epoll_ctl", || call(libc::SYS_epoll_ctl, [0, 0, 0]));
    let read: Attempt = ("read", || call(libc::SYS_read, [0, 0, 0]));
    let capabilities: Attempt = ("capget", || call(libc::SYS_capget, [0, 0]));
    let more = match thread {
        Thread::Main => return Vec::new(),
        Thread::Worker => vec![unix, connect, accept, unlink, receive, interest],
        Thread::Server => vec![unix, connect],
        Thread::Client => vec![accept, unlink],
        Thread::Upgrade => vec![unix, connect, unlink],
        Thread::Api => vec![unix, connect, unlink, receive],
        Thread::Sweeper => vec![unix, connect, accept, unlink, receive, interest, read],
    };
    [vec![open, bind, capabilities], more].concat()
}

fn check_deadly(plan: &Plan<'_>) {
    let names =
        Thread::ALL.iter().flat_map(|thread| DEADLY.iter().map(move |attempt| (*thread, attempt)));
    for (thread, (name, attempt)) in names {
        let outcome = try_in(plan, thread, attempt);
        assert_eq!(outcome.status, 159, "{thread:?} {name}: {outcome:?}");
        assert!(outcome.said.contains(&format!("system call {name} (")), "{thread:?}: {outcome:?}");
        assert!(outcome.said.contains("ending it"), "{thread:?} {name}: {outcome:?}");
    }
    for thread in Thread::ALL.into_iter().filter(|thread| *thread != Thread::Main) {
        let outcome = try_in(plan, thread, || privilege::drop_all().map_err(io::Error::from));
        assert_eq!(outcome.status, 159, "{thread:?} changes its capabilities: {outcome:?}");
    }
}

fn check_refused(plan: &Plan<'_>) {
    for thread in Thread::ALL {
        for (name, attempt) in REFUSED.iter().copied().chain(refused_to(thread)) {
            // Twice: it fails each time, and is told once.
            let outcome = try_in(plan, thread, || {
                assert_eq!(attempt().unwrap_err().raw_os_error(), Some(libc::EPERM));
                attempt()
            });
            assert_eq!(outcome.status, libc::EPERM, "{thread:?} {name}: {outcome:?}");
            let told = outcome.said.matches(&format!("refused system call {name} (")).count();
            assert_eq!(told, 1, "{thread:?} {name}: {outcome:?}");
        }
    }
}

/// The main thread may open files as far as its filter goes: it opens TAPs. Landlock and its user
/// leave it nothing else.
fn check_files(plan: &Plan<'_>, directory: &Path) {
    let other = tempfile::tempdir().unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(other.path(), everybody).unwrap();
    let foreign = other.path().join("file");
    File::create(&foreign).unwrap();
    let inside = directory.join("file");
    File::create(&inside).unwrap();
    let denied = |what: &str, attempt: &dyn Fn() -> io::Result<()>| {
        let outcome = try_in(plan, Thread::Main, attempt);
        assert_eq!(outcome.status, libc::EACCES, "{what}: {outcome:?}");
    };
    denied("read a file of everybody's", &|| File::open("/etc/passwd").map(drop));
    denied("read a file beside the sockets", &|| File::open(&inside).map(drop));
    denied("make a file beside the sockets", &|| File::create(directory.join("new")).map(drop));
    denied("remove a file elsewhere", &|| std::fs::remove_file(&foreign));
    denied("make a socket elsewhere", &|| {
        std::os::unix::net::UnixListener::bind(other.path().join("s")).map(drop)
    });
    denied("open a device", &|| File::open("/dev/null").map(drop));
    assert!(foreign.exists() && inside.exists());
}

/// What is needed still works.
fn check_needed(plan: &Plan<'_>, directory: &Path) {
    let outcome = try_in(plan, Thread::Main, || {
        let path = directory.join("new.sock");
        let listener = Listener::bind(&path, None, Some(0o600)).unwrap();
        let _client = connect(&path).unwrap();
        assert!(listener.accept().unwrap().is_some());
        drop(listener);
        assert!(!path.exists());
        let options = TapOptions { queues: 2, mtu: Some(1400), bridge: None };
        let tap = Tap::open("rs-sandbox", &options).unwrap();
        assert_eq!((tap.mtu(), tap.queues().len()), (1400, 2));
        let held = rustix::thread::capabilities(None).unwrap();
        assert!(held.effective.is_empty(), "it is in force only while it is needed");
        // A port's thread, started by a confined thread, and more than the first allocations.
        let worker = std::thread::Builder::new().name("late".into()).spawn(|| {
            Sandbox::none().confine(Thread::Sweeper);
            let blocks: Vec<_> = (0..64).map(|n| vec![n; 100_000]).collect();
            blocks.iter().map(Vec::len).sum::<usize>()
        });
        assert_eq!(worker.unwrap().join().unwrap(), 6_400_000);
        Ok(())
    });
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert!(!outcome.said.contains("refused"), "{outcome:?}");
}

/// Runs in a process of its own only; elsewhere it passes at once.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(CHILD).map(PathBuf::from) else {
        return;
    };
    // TAP devices in a network namespace of its own.
    // SAFETY: takes no memory.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
    let plan = Plan {
        user: Some("65534:65534"),
        directories: vec![&directory],
        taps: true,
        ..Plan::default()
    };
    check_deadly(&plan);
    check_refused(&plan);
    check_files(&plan, &directory);
    check_needed(&plan, &directory);
    check_without_taps(&Plan { taps: false, ..plan.clone() });
    check_reread(&Plan { taps: false, ..plan.clone() });
    check_log_only(&Plan { log_only: true, ..plan });
    std::fs::write(directory.join("checked"), "").unwrap();
}

fn check_without_taps(plan: &Plan<'_>) {
    let outcome = try_in(plan, Thread::Main, || File::open("/dev/net/tun").map(drop));
    assert_eq!(outcome.status, libc::EPERM, "{outcome:?}");
    let outcome = try_in(plan, Thread::Main, || {
        let held = rustix::thread::capabilities(None).unwrap();
        assert!(held.permitted.is_empty() && held.effective.is_empty(), "{held:?}");
        Ok(())
    });
    assert_eq!(outcome.status, 0, "{outcome:?}");
}

/// The configuration may be read again, also when another file took its place; no more than that.
fn check_reread(plan: &Plan<'_>) {
    let own = tempfile::tempdir().unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(own.path(), everybody).unwrap();
    let file = own.path().join("config");
    std::fs::write(&file, "text").unwrap();
    let plan = Plan { file: Some(&file), ..plan.clone() };
    let outcome = try_in(&plan, Thread::Main, || {
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "text");
        assert!(File::open("/etc/passwd").is_err());
        File::create(&file).map(drop)
    });
    assert_eq!(outcome.status, libc::EPERM, "{outcome:?}");
    let outcome = try_in(&plan, Thread::Api, || File::open(&file).map(drop));
    assert_eq!(outcome.status, libc::EPERM, "{outcome:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "text");
}

/// What would be refused passes, and root is gone all the same.
fn check_log_only(plan: &Plan<'_>) {
    let outcome = try_in(plan, Thread::Worker, || {
        File::open("/etc/passwd").unwrap();
        assert_eq!(privilege::user_id(), 65534);
        File::open("/etc/shadow").map(drop)
    });
    assert_eq!(outcome.status, libc::EACCES, "{outcome:?}");
}

#[test]
fn what_a_thread_does_not_need_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(directory.path(), Some(65534), None).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sys::sandbox::tests::child", "--test-threads=1", "--nocapture"])
        .env(CHILD, directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(directory.path().join("checked").exists(), "{said}");
}

#[test]
fn an_account_is_found_or_named() {
    let error = account(Some("no-such-user")).unwrap_err();
    assert!(matches!(error, SandboxError::NoAccount(_)), "{error}");
    assert!(error.to_string().contains("no-such-user"), "{error}");
    let default = account(None).unwrap().unwrap();
    assert_ne!(default.uid, 0, "root runs as somebody else");
}

#[test]
fn what_the_kernel_lacks_is_an_error_only_if_it_must_be_there() {
    let strict = Plan { strict: true, ..Plan::default() };
    let error = lacking(&strict, "Landlock").unwrap_err();
    assert!(error.to_string().contains("Landlock"), "{error}");
    lacking(&Plan::default(), "Landlock").unwrap();
}
