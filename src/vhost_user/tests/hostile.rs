//! Frontends that break the rules.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::frontend::*;

#[test]
fn a_refusal_that_is_acknowledged_ends_nothing() {
    let port = Port::server();
    let mut frontend = port.connect();
    frontend.negotiate(VERSION_1 | PROTOCOL);
    let fd = frontend.memory.as_raw_fd();
    let (_pipe, writer) = std::io::pipe().unwrap();
    let wrong_table = table(&[(GUEST, SIZE + 1, USER, 0)]);
    let mut nowhere = address(0, 0);
    nowhere[8..16].copy_from_slice(&0x10u64.to_ne_bytes());
    let cases: &[(u32, &[u8], &[i32])] = &[
        (8, &pair(0, 3), &[]),
        (8, &pair(0, 65536), &[]),
        (8, &pair(4, 256), &[]),
        (8, &pair(u32::MAX, 256), &[]),
        (10, &pair(0, 65536), &[]),
        (18, &pair(0, 2), &[]),
        (18, &pair(1 << 31, 1), &[]),
        (5, &wrong_table, &[fd]),
        (12, &4u64.to_ne_bytes(), &[frontend.kick.as_raw_fd()]),
        (13, &0u64.to_ne_bytes(), &[writer.as_raw_fd()]),
        (12, &0u64.to_ne_bytes(), &[fd]),
        (20, &0u64.to_ne_bytes(), &[]),
    ];
    for (request, payload, fds) in cases {
        assert_eq!(frontend.ack(*request, payload, fds), 1, "request {request} {payload:?}");
    }
    frontend.share_memory();
    frontend.start(0);
    frontend.enable(0, 1);
    frontend.sync();
    assert_eq!(port.running(), [true, false, false, false]);
    assert_eq!(frontend.ack(9, &nowhere, &[]), 1, "a running ring can't move out of memory");
    assert_eq!(port.running(), [false; 4]);
    assert_eq!(frontend.ack(9, &address(0, 0), &[]), 0);
    assert_eq!(port.running(), [true, false, false, false]);
}

#[test]
fn a_refusal_that_is_not_acknowledged_ends_the_connection() {
    let port = Port::server();
    // Without REPLY_ACK, without NEED_REPLY, and a message that is answered with data.
    let mut silent = port.connect();
    silent.send_with(8, NEED, &pair(0, 3), &[]);
    silent.assert_closed();
    let mut unasked = port.connect();
    unasked.negotiate(VERSION_1 | PROTOCOL);
    unasked.send(8, &pair(0, 3));
    unasked.assert_closed();
    let mut data = port.connect();
    data.negotiate(VERSION_1 | PROTOCOL);
    data.send_with(11, NEED, &pair(9, 0), &[]);
    data.assert_closed();
    // Features that were not offered, acknowledged and then closed: the crate has taken them.
    let mut greedy = port.connect();
    greedy.negotiate(VERSION_1 | PROTOCOL);
    assert_eq!(greedy.ack(2, &(VERSION_1 | 1 << 33).to_ne_bytes(), &[]), 1);
    greedy.assert_closed();
    port.assert_serves();
}

#[test]
fn intercepted_messages_need_their_feature() {
    let port = Port::server();
    for (request, payload) in [(19, [1; 8].as_slice()), (20, &[1; 8]), (39, &[1; 8]), (40, &[])] {
        let mut frontend = port.connect();
        frontend.send(request, payload);
        frontend.assert_closed();
    }
    port.assert_serves();
}

#[test]
fn headers_that_do_not_hold_together_end_the_connection() {
    let port = Port::server();
    let bad: &[Vec<u8>] = &[
        message(0, 1, &[]),
        message(99, 1, &[]),
        message(24, 1, &[0; 16]),
        message(1, 0, &[]),
        message(1, 2, &[]),
        message(1, 5, &[]),
        message(1, 0x11, &[]),
        message(1, 1, &[0; 8]),
        message(2, 1, &[0; 4]),
        message(18, 1, &[0; 12]),
        message(5, 1, &[0; 8]),
        message(5, 1, &[0; 40]),
        [1u32.to_ne_bytes(), 1u32.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat(),
        vec![0xff; 64],
        vec![0; 64],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    for bytes in bad {
        let mut frontend = port.connect();
        frontend.raw(bytes);
        frontend.assert_closed();
    }
    port.assert_serves();
}

#[test]
fn surplus_descriptors_end_the_connection_and_are_closed() {
    let port = Port::server();
    let cases: &[(u32, Vec<u8>, usize)] = &[
        (1, vec![], 1),
        (1, vec![], 200),
        (2, vec![0; 8], 1),
        (18, pair(0, 1), 1),
        (40, vec![], 3),
        (12, 0u64.to_ne_bytes().to_vec(), 2),
        (12, 0u64.to_ne_bytes().to_vec(), 0),
        (12, 0x100u64.to_ne_bytes().to_vec(), 1),
        (5, table(&[(GUEST, SIZE, USER, 0)]), 2),
        (5, table(&[(GUEST, SIZE, USER, 0); 32]), 33),
        (5, table(&[(GUEST, SIZE, USER, 0); 32]), 253),
        (37, single((GUEST, SIZE, USER, 0)), 33),
        (38, single((GUEST, SIZE, USER, 0)), 2),
    ];
    for (request, payload, count) in cases {
        let mut frontend = port.connect();
        let kick = frontend.kick.try_clone().unwrap();
        drop(std::mem::replace(
            &mut frontend.kick,
            vmm_sys_util::eventfd::EventFd::new(0).unwrap(),
        ));
        frontend.send_with(*request, 1, payload, &vec![kick.as_raw_fd(); *count]);
        frontend.assert_closed();
        port.told.await_end();
        assert_eq!(duplicates(&kick), 1, "request {request} with {count} descriptors");
    }
    port.assert_serves();
}

#[test]
fn a_message_in_pieces_is_waited_for() {
    let port = Port::server();
    let mut slow = port.connect();
    for byte in message(1, 1, &[]) {
        slow.raw(&[byte]);
        std::thread::yield_now();
    }
    assert_ne!(slow.reply_u64(1), 0);
    slow.negotiate(VERSION_1 | PROTOCOL);
    slow.share_memory();
    slow.start(0);
    slow.sync();
    assert!(!port.running()[0], "it isn't enabled");
    // Header and payload apart, and two messages at once.
    let enable = message(18, 1, &pair(0, 1));
    slow.raw(&enable[..12]);
    // Somebody else is turned away while the message is incomplete.
    port.connect().assert_closed();
    slow.raw(&enable[12..17]);
    port.connect().assert_closed();
    slow.raw(&[&enable[17..], &message(1, 1, &[]), &message(15, 1, &[])].concat());
    slow.reply(1);
    slow.reply(15);
    assert!(port.running()[0]);
    // Gone in the middle.
    slow.raw(&enable[..19]);
    drop(slow);
    port.told.await_end();
    port.assert_serves();
}

#[test]
fn descriptors_in_the_middle_of_a_message_end_the_connection() {
    use vmm_sys_util::sock_ctrl_msg::ScmSocket;
    let port = Port::server();
    for (first, request, payload) in [(6, 1, vec![]), (14, 2, vec![0; 8]), (12, 18, pair(0, 0))] {
        let mut frontend = port.connect();
        let bytes = message(request, 1, &payload);
        let event = frontend.call.try_clone().unwrap();
        frontend.raw(&bytes[..first.min(bytes.len() - 1)]);
        frontend
            .stream
            .send_with_fds(&[&bytes[first.min(bytes.len() - 1)..]], &[event.as_raw_fd()])
            .unwrap();
        frontend.assert_closed();
        port.told.await_end();
        assert_eq!(duplicates(&event), 1);
    }
    port.assert_serves();
}

#[test]
fn a_frontend_that_reads_nothing_does_not_hinder_the_end() {
    let mut port = Port::server();
    let frontend = port.connect();
    frontend.stream.set_nonblocking(true).unwrap();
    let question = message(1, 1, &[]);
    let mut sent = 0u64;
    // Until both directions are full.
    let full = std::time::Instant::now() + std::time::Duration::from_millis(500);
    while std::time::Instant::now() < full {
        match (&frontend.stream).write(&question) {
            Ok(12) => sent += 1,
            _ => std::thread::yield_now(),
        }
    }
    assert!(sent > 100);
    port.endpoint.take().unwrap().stop();
    port.told.await_end();
}

#[test]
fn a_frontend_that_stops_in_the_middle_does_not_hinder_the_end() {
    let mut port = Port::server();
    let mut frontend = port.connect();
    frontend.sync();
    frontend.raw(&message(2, 1, &[0; 8])[..15]);
    port.endpoint.take().unwrap().stop();
    port.told.await_end();
    assert_eq!(frontend.stream.read(&mut [0; 1]).unwrap_or(0), 0);
    assert!(UnixStream::connect(&port.path).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever comes: the port serves the next frontend.
    #[test]
    fn any_bytes(
        messages in prop::collection::vec(
            (0u32..48, prop::collection::vec(any::<u8>(), 0..48), 0usize..3), 0..8
        ),
        junk in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        use vmm_sys_util::sock_ctrl_msg::ScmSocket;
        let port = Port::server();
        let frontend = port.connect();
        let fd = frontend.memory.as_raw_fd();
        for (request, payload, fds) in messages {
            let bytes = message(request, 1, &payload);
            // It may be closed already.
            let _ = frontend.stream.send_with_fds(&[bytes.as_slice()], &vec![fd; fds]);
        }
        let _ = (&frontend.stream).write(&junk);
        drop(frontend);
        port.told.await_end();
        port.assert_serves();
    }
}
