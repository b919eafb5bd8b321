//! The session by itself.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::mem::RegionSpec;
use crate::ring::{Queues, RingAddress};
use crate::vhost_user::journal::Journal;
use crate::vhost_user::session::Session;

use super::frontend::*;

/// What makes a ring run.
#[derive(Debug, Clone, Copy)]
enum Step {
    Features,
    Memory,
    Num,
    Address,
    Kick,
    Enable,
}

use Step::*;

impl Step {
    fn take(self, session: &mut Session) {
        match self {
            Features => session.set_features(VERSION_1 | PROTOCOL),
            Memory => {
                let file = tempfile::tempfile().unwrap();
                file.set_len(SIZE).unwrap();
                let (guest_addr, size, user_addr, mmap_offset) = (GUEST, SIZE, USER, 0);
                session.set_memory(vec![RegionSpec {
                    guest_addr,
                    size,
                    user_addr,
                    mmap_offset,
                    file,
                }])
            }
            Num => session.set_num(0, 256),
            Address => session.set_address(
                0,
                RingAddress {
                    desc: USER,
                    avail: USER + 0x1000,
                    used: USER + 0x2000,
                    log_guest_addr: None,
                },
            ),
            Kick => session.set_kick(0, None),
            Enable => session.set_enabled(0, 1),
        }
        .unwrap();
    }
}

/// Calls `visit` with every order of `steps`.
fn orders(steps: &mut Vec<Step>, fixed: usize, visit: &mut impl FnMut(&[Step])) {
    if fixed == steps.len() {
        return visit(steps);
    }
    for next in fixed..steps.len() {
        steps.swap(fixed, next);
        orders(steps, fixed + 1, visit);
        steps.swap(fixed, next);
    }
}

fn session(queues: &Arc<Queues>) -> Session {
    let journal = Arc::new(Journal::new("test"));
    let alarm = Arc::default();
    Session::new(Arc::clone(queues), Arc::new(Recorder::default()), journal, None, alarm)
}

#[test]
fn a_ring_runs_once_it_has_all_in_any_order() {
    let queues = Arc::new(Queues::new(1));
    let mut count = 0;
    orders(&mut vec![Features, Memory, Num, Address, Kick, Enable], 0, &mut |order| {
        count += 1;
        let mut session = session(&queues);
        let running = || queues.lock_all().iter().map(|r| r.is_running()).collect::<Vec<_>>();
        for step in order {
            // Features are 0 until they are set: a ring may run with none.
            let rest = order.iter().skip_while(|s| !std::ptr::eq(*s, step));
            if rest.clone().any(|s| !matches!(s, Features)) {
                assert_eq!(running(), [false, false], "{order:?} before {step:?}");
            }
            step.take(&mut session);
        }
        assert_eq!(running(), [true, false], "{order:?}");
        drop(session);
        assert_eq!(running(), [false, false]);
    });
    assert_eq!(count, 720);
}

#[test]
fn replaced_descriptors_are_closed() {
    let queues = Arc::new(Queues::new(1));
    let mut session = session(&queues);
    let event = EventFd::new(0).unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    let file = || -> File {
        near.send_with_fd(&b"x"[..], event.as_raw_fd()).unwrap();
        far.recv_with_fd(&mut [0]).unwrap().1.unwrap()
    };
    for _ in 0..10 {
        session.set_kick(0, Some(file())).unwrap();
        session.set_call(0, Some(file())).unwrap();
        session.set_err(1, Some(file())).unwrap();
        assert!(session.set_call(2, Some(file())).is_err());
        assert_eq!(duplicates(&event), 4);
    }
    session.set_call(0, None).unwrap();
    session.stop(0).unwrap();
    assert_eq!(duplicates(&event), 2);
    drop(session);
    assert_eq!(duplicates(&event), 1);
}
