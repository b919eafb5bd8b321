//! What a thread's filter of system calls costs: the calls of a worker, and one whose arguments are
//! checked, in threads with and without one, taking turns. Needs root, to be given up.
#![allow(clippy::expect_used, clippy::indexing_slicing)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use ringswitch::sys::poller::{Events, Poller, Trigger};
use ringswitch::sys::sandbox::{Plan, Sandbox, Thread, enter};
use vmm_sys_util::eventfd::EventFd;

const CALLS: u32 = 200_000;
const ROUNDS: usize = 9;

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the event is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Nanoseconds a call of an eventfd write, an epoll_wait that finds nothing, and F_GETFL.
fn measure() -> [f64; 3] {
    let event = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
    let silent = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
    let poller = Poller::new().expect("an epoll instance");
    poller.add(borrow(&silent), 1, Trigger::Edge).expect("a place in it");
    let mut events = Events::with_capacity(4);
    let each = |call: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..CALLS).for_each(|_| call());
        start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
    };
    let write = each(&mut || event.write(1).expect("room in the counter"));
    let wait = each(&mut || {
        poller.wait(&mut events, Some(Duration::ZERO)).expect("no error");
    });
    let fd = event.as_raw_fd();
    // SAFETY: asks for the flags of an open descriptor.
    let flags = each(&mut || assert!(unsafe { libc::fcntl(fd, libc::F_GETFL) } >= 0));
    [write, wait, flags]
}

fn in_thread(sandbox: Option<Sandbox>) -> [f64; 3] {
    let thread = std::thread::spawn(move || {
        if let Some(sandbox) = sandbox {
            // The longest list of all, with what is made here in it.
            sandbox.confine(Thread::Main);
        }
        measure()
    });
    thread.join().expect("no panic")
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn main() {
    let sandbox = enter(&Plan::default()).expect("the sandbox");
    let rounds: Vec<_> =
        (0..ROUNDS).map(|_| (in_thread(None), in_thread(Some(sandbox.clone())))).collect();
    println!("{:<28} {:>12} {:>12}", "ns a call, medians", "no filter", "filter");
    for (row, name) in
        ["eventfd write", "epoll_wait, nothing", "fcntl, argument checked"].iter().enumerate()
    {
        let without = median(rounds.iter().map(|(none, _)| none[row]));
        let with = median(rounds.iter().map(|(_, some)| some[row]));
        println!("{name:<28} {without:>12.1} {with:>12.1}");
    }
}
