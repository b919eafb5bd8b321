//! The orders in which real frontends speak.

use std::os::fd::AsRawFd;

use crate::ring::LinkState;

use super::frontend::*;

fn link(features: u64, receive_pairs: u64) -> Told {
    Told::Link(LinkState { connected: true, features, receive_pairs })
}

#[test]
fn qemu_from_the_early_enable_to_migration() {
    let port = Port::server();
    let mut qemu = port.connect();
    let features = VERSION_1 | PROTOCOL | 0x3;
    // Each queue pair negotiates on its own.
    for first in [0, 2] {
        assert_ne!(qemu.get(1) & PROTOCOL, 0);
        let protocol = qemu.get(15);
        qemu.set(16, protocol);
        assert_eq!(qemu.get(17), 4, "the number of rings");
        assert_eq!(qemu.get(36), 509);
        qemu.send(3, &[]);
        qemu.get(1);
        for ring in [first, first + 1] {
            qemu.descriptor(13, ring);
            qemu.descriptor(14, ring);
        }
    }
    // Before SET_FEATURES, once without and once with NEED_REPLY.
    qemu.enable(0, 1);
    assert_eq!(qemu.ack(18, &pair(1, 1), &[]), 0);
    assert_eq!(port.running(), [false; 4]);

    let fd = qemu.memory.as_raw_fd();
    for first in [0, 2] {
        qemu.set(2, features);
        let region = single((GUEST, SIZE, USER, 0));
        assert_eq!(qemu.ack(37, &region, &[fd]), 0, "the same region for each pair");
        qemu.start(first);
        qemu.start(first + 1);
    }
    qemu.sync();
    assert_eq!(port.running(), [true, true, false, true], "a transmit ring is drained");
    let told = port.told.take();
    assert_eq!(told[0], link(0, 0), "connected");
    assert!(told.contains(&link(features, 1)));
    let watched = told.iter().position(|t| *t == Told::Kick(1, true)).unwrap();
    let changed = told.iter().position(|t| *t == Told::Changed(1)).unwrap();
    assert!(watched < changed, "a kick is watched before its ring runs");

    // ethtool -L combined 2, then 1.
    (0..4).for_each(|ring| qemu.enable(ring, 1));
    qemu.sync();
    assert_eq!(port.running(), [true; 4]);
    port.told.await_told(&link(features, 3));
    (2..4).for_each(|ring| qemu.enable(ring, 0));
    qemu.sync();
    assert_eq!(port.running(), [true, true, false, true], "a transmit ring is drained");
    port.told.await_told(&link(features, 1));

    // stop and cont: memory is not sent again.
    for ring in 0..4 {
        assert_eq!(qemu.stop(ring), 0);
        port.told.await_told(&Told::Kick(ring as usize, false));
    }
    assert_eq!(port.running(), [false; 4]);
    qemu.set(2, features);
    (0..2).for_each(|ring| qemu.start(ring));
    qemu.sync();
    assert_eq!(port.running(), [true, true, false, false]);

    // Migration: the log, LOG_ALL, addresses of running rings.
    let log = tempfile::tempfile().unwrap();
    log.set_len(4096).unwrap();
    let base = [4096u64.to_ne_bytes(), 0u64.to_ne_bytes()].concat();
    qemu.send_with(6, 1, &base, &[log.as_raw_fd()]);
    assert_eq!(qemu.reply(6), base);
    qemu.set(2, features | LOG_ALL);
    for ring in [0, 1] {
        assert_eq!(qemu.ack(9, &address(ring, 1), &[]), 0);
    }
    assert_eq!(port.running(), [true, true, false, false]);
    qemu.set(2, features);
    qemu.sync();
    assert_eq!(port.running(), [true, true, false, false]);

    port.told.take();
    drop(qemu);
    port.told.await_end();
    assert_eq!(port.running(), [false; 4]);
    port.assert_serves();
}

#[test]
fn cloud_hypervisor_has_everything_acknowledged() {
    let port = Port::server();
    let mut vmm = port.connect();
    vmm.send(3, &[]);
    vmm.get(1);
    let protocol = vmm.get(15);
    vmm.set(16, protocol);
    assert!(vmm.get(17) >= 4);
    let features = (VERSION_1 | PROTOCOL).to_ne_bytes();
    assert_eq!(vmm.ack(2, &features, &[]), 0);
    let fds = [vmm.memory.as_raw_fd()];
    assert_eq!(vmm.ack(5, &table(&[(GUEST, SIZE, USER, 0)]), &fds), 0);
    for ring in 0..4u32 {
        assert_eq!(vmm.ack(8, &pair(ring, 256), &[]), 0);
        assert_eq!(vmm.ack(9, &address(ring, 0), &[]), 0);
        assert_eq!(vmm.ack(10, &pair(ring, 0), &[]), 0);
        let index = u64::from(ring).to_ne_bytes();
        assert_eq!(vmm.ack(13, &index, &[vmm.call.as_raw_fd()]), 0);
        assert_eq!(vmm.ack(12, &index, &[vmm.kick.as_raw_fd()]), 0);
    }
    assert_eq!(port.running(), [false; 4]);
    for ring in 0..4 {
        assert_eq!(vmm.ack(18, &pair(ring, 1), &[]), 0);
    }
    assert_eq!(port.running(), [true; 4]);
    // Pause.
    for ring in 0..4 {
        assert_eq!(vmm.ack(18, &pair(ring, 0), &[]), 0);
    }
    assert_eq!(port.running(), [false; 4]);
}

#[test]
fn without_protocol_features_rings_are_born_enabled() {
    let port = Port::server();
    let mut frontend = port.connect();
    frontend.set(2, VERSION_1);
    frontend.share_memory();
    frontend.start(0);
    frontend.sync();
    assert_eq!(port.running(), [true, false, false, false]);
    port.told.await_told(&link(VERSION_1, 1));
}

#[test]
fn a_call_descriptor_is_signalled_once_on_a_running_ring() {
    let port = Port::server();
    let mut frontend = port.connect();
    frontend.negotiate(VERSION_1 | PROTOCOL);
    frontend.share_memory();
    frontend.enable(0, 1);
    frontend.send(8, &pair(0, 256));
    frontend.send(9, &address(0, 0));
    frontend.descriptor(13, 0);
    frontend.sync();
    assert!(frontend.call.read().is_err(), "the ring does not run yet");
    frontend.descriptor(12, 0);
    frontend.descriptor(13, 0);
    frontend.sync();
    assert_eq!(frontend.call.read().unwrap(), 2, "for the ring's start and for the descriptor");
}

#[test]
fn only_a_receive_ring_runs_without_a_kick_descriptor() {
    let port = Port::server();
    let mut frontend = port.connect();
    frontend.negotiate(VERSION_1 | PROTOCOL);
    frontend.share_memory();
    frontend.start(0);
    frontend.enable(0, 1);
    frontend.stop(0);
    frontend.set(12, 0x100);
    frontend.sync();
    assert_eq!(port.running(), [true, false, false, false]);
    assert_eq!(port.told.take().last(), Some(&Told::Changed(0)));
    // Nobody would see what such a transmit ring holds.
    assert_ne!(frontend.ack(12, &0x101u64.to_ne_bytes(), &[]), 0);
}

#[test]
fn mtu_status_and_rarp_are_served() {
    let port = Port::server();
    let mut frontend = port.connect();
    frontend.negotiate(VERSION_1 | PROTOCOL);
    frontend.share_memory();
    frontend.start(0);
    frontend.enable(0, 1);
    for (mtu, expected) in [(67u64, 1), (68, 0), (1500, 0), (9000, 0), (9001, 1), (1 << 40, 1)] {
        assert_eq!(frontend.ack(20, &mtu.to_ne_bytes(), &[]), expected, "MTU {mtu}");
    }
    assert_eq!(frontend.get(40), 0);
    frontend.set(39, 0xf);
    assert_eq!(frontend.get(40), 0xf);
    assert_eq!(frontend.ack(39, &256u64.to_ne_bytes(), &[]), 1);
    assert_eq!(frontend.get(40), 0xf);
    assert_eq!(port.running(), [true, false, false, false]);
    frontend.set(39, 0);
    frontend.send(19, &[0x52, 0x54, 0, 1, 2, 3, 0, 0]);
    assert_eq!(frontend.get(40), 0);
    port.told.await_told(&Told::Announce([0x52, 0x54, 0, 1, 2, 3]));
    assert_eq!(port.running(), [false; 4], "a reset driver's rings are left alone");
}

#[test]
fn reset_device_keeps_memory() {
    let port = Port::server();
    let mut frontend = port.connect();
    frontend.negotiate(VERSION_1 | PROTOCOL);
    frontend.share_memory();
    frontend.start(0);
    frontend.enable(0, 1);
    assert_eq!(frontend.ack(34, &[], &[]), 0);
    assert_eq!(port.running(), [false; 4]);
    frontend.set(2, VERSION_1 | PROTOCOL);
    frontend.start(0);
    frontend.sync();
    assert_eq!(port.running(), [false; 4], "disabled by the reset");
    frontend.enable(0, 1);
    frontend.sync();
    assert_eq!(port.running(), [true, false, false, false]);
    assert_eq!(frontend.ack(4, &[], &[]), 0, "RESET_OWNER disables");
    assert_eq!(port.running(), [false; 4]);
}

#[test]
fn regions_come_and_go_and_may_be_repeated() {
    let port = Port::server();
    let mut frontend = port.connect();
    frontend.negotiate(VERSION_1 | PROTOCOL);
    let fd = frontend.memory.as_raw_fd();
    let half = SIZE / 2;
    let (low, high) = ((GUEST, half, USER, 0), (GUEST + half, half, USER + half, half));
    for _ in 0..2 {
        assert_eq!(frontend.ack(37, &single(low), &[fd]), 0);
        assert_eq!(frontend.ack(37, &single(high), &[fd]), 0);
    }
    frontend.start(0);
    frontend.enable(0, 1);
    for fds in [&[][..], &[fd][..]] {
        assert_eq!(frontend.ack(38, &single(high), fds), 0);
    }
    assert_eq!(port.running(), [true, false, false, false], "its memory is still there");
    let beyond = (GUEST + half, half, USER + half, half + 4096);
    assert_eq!(frontend.ack(37, &single(beyond), &[fd]), 1, "the file is too short");
    let overlap = (GUEST + 4096, 4096, USER + SIZE, 0);
    assert_eq!(frontend.ack(37, &single(overlap), &[fd]), 1);
    assert_eq!(port.running(), [true, false, false, false], "refused messages change nothing");
    assert_eq!(frontend.ack(38, &single(low), &[]), 0);
    assert_eq!(port.running(), [false; 4], "no memory, no ring");
    assert_eq!(frontend.ack(37, &single(low), &[fd]), 0);
    assert_eq!(port.running(), [true, false, false, false]);
}
