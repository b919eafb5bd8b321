//! Where frames go: learning, flooding, limits, and what never crosses.

use fakeguest::frames::mac;
use fakeguest::{Frame, Guest};

use crate::support::lan::{PATIENCE, arrived, attach, bytes_arrived, send};
use crate::support::switch::{Statistics, Switch};
use crate::support::wait_for;

/// No guest received the frame.
const NOBODY: [usize; 0] = [];
const BROADCAST: [u8; 6] = [0xff; 6];

/// A switch with ports `a`, `b` and `c`, and their guests.
fn three() -> (Switch, [Guest; 3]) {
    let switch = Switch::builder().port("a").port("b").port("c").start();
    let guests = ["a", "b", "c"].map(|port| attach(&switch, port));
    (switch, guests)
}

/// A frame of 60 bytes, told from others by `seed`.
fn frame(destination: [u8; 6], source: [u8; 6], seed: u32) -> Frame {
    Frame::pattern(destination, source, 60, seed)
}

/// Sends one frame and returns which of the guests received it; each must be unchanged.
fn receivers(guests: &mut [Guest], from: usize, frame: &Frame) -> Vec<usize> {
    send(&mut guests[from], std::slice::from_ref(frame));
    let mut receivers = Vec::new();
    for (number, guest) in guests.iter_mut().enumerate() {
        for received in arrived(guest) {
            assert_eq!(received.bytes, frame.bytes);
            assert_eq!(received.header[..10], [0; 10], "a frame without offloads");
            receivers.push(number);
        }
    }
    receivers
}

/// The statistics, which must balance, at the end of a test.
fn finish(mut switch: Switch) -> Statistics {
    let statistics = switch.statistics();
    statistics.assert_balanced();
    switch.stop();
    statistics
}

#[test]
fn unknown_destinations_flood_and_learned_ones_do_not() {
    // Nobody is attached to the fourth port: it is passed over.
    let switch = Switch::builder().port("a").port("b").port("c").port("nobody").start();
    let mut guests = ["a", "b", "c"].map(|port| attach(&switch, port));
    let (a, b) = (mac(1), mac(2));
    assert_eq!(receivers(&mut guests, 0, &frame(b, a, 1)), [1, 2], "b is unknown");
    assert_eq!(receivers(&mut guests, 1, &frame(a, b, 2)), [0], "a was learned");
    assert_eq!(receivers(&mut guests, 0, &frame(b, a, 3)), [1], "b was learned");
    assert_eq!(receivers(&mut guests, 2, &frame(b, mac(3), 4)), [1]);
    let statistics = finish(switch);
    assert_eq!(statistics.port("a", "flooded_frames"), 1);
    assert_eq!(statistics.port("a", "flooded_copies"), 2);
    assert_eq!(statistics.port("b", "ingress_frames"), 1);
    assert_eq!(statistics.port("b", "egress_frames"), 3);
    assert_eq!(statistics.port("b", "egress_bytes"), 180);
    assert_eq!(statistics.port("nobody", "egress_frames"), 0);
    assert_eq!(statistics.dropped(), 0);
}

#[test]
fn groups_reach_all_others_however_often_they_are_heard() {
    let (switch, mut guests) = three();
    let groups = [
        BROADCAST,
        [0x01, 0, 0x5e, 0, 0, 0xfb],
        [0x33, 0x33, 0, 0, 0, 1],
        // Spanning tree crosses, so that the bridges around see their loops.
        [0x01, 0x80, 0xc2, 0, 0, 0],
        [0x01, 0x80, 0xc2, 0, 0, 0x10],
    ];
    for (seed, group) in groups.into_iter().cycle().take(15).enumerate() {
        let from = seed % 3;
        let others: Vec<usize> = (0..3).filter(|guest| *guest != from).collect();
        let frame = frame(group, mac(from as u8 + 1), seed as u32);
        assert_eq!(receivers(&mut guests, from, &frame), others, "{group:02x?}");
    }
    let statistics = finish(switch);
    for port in ["a", "b", "c"] {
        assert_eq!(statistics.port(port, "flooded_frames"), 5);
        assert_eq!(statistics.port(port, "flooded_copies"), 10);
    }
}

#[test]
fn a_group_address_as_source_teaches_nothing() {
    let (switch, mut guests) = three();
    for source in [BROADCAST, [0x01, 0, 0x5e, 0, 0, 0xfb], [0; 6]] {
        receivers(&mut guests, 0, &frame(mac(9), source, 1));
        assert_eq!(receivers(&mut guests, 1, &frame(source, mac(2), 2)), [0, 2]);
    }
    finish(switch);
}

#[test]
fn a_station_that_moves_is_followed() {
    let (switch, mut guests) = three();
    let station = mac(9);
    for turn in 0..6 {
        let at = turn % 2;
        receivers(&mut guests, at, &frame(BROADCAST, station, 1));
        assert_eq!(receivers(&mut guests, 2, &frame(station, mac(3), 2)), [at], "turn {turn}");
    }
    finish(switch);
}

#[test]
fn frames_for_stations_behind_their_own_port_are_dropped() {
    let (switch, mut guests) = three();
    // Two stations behind a, as of nested guests.
    receivers(&mut guests, 0, &frame(BROADCAST, mac(11), 1));
    receivers(&mut guests, 0, &frame(BROADCAST, mac(12), 2));
    for (destination, source) in [(12, 11), (11, 12), (11, 11)] {
        let frame = frame(mac(destination), mac(source), 3);
        assert_eq!(receivers(&mut guests, 0, &frame), NOBODY);
    }
    let statistics = finish(switch);
    assert_eq!(statistics.port("a", "drop_no_destination"), 3);
    assert_eq!(statistics.dropped(), 3);
}

#[test]
fn reserved_group_addresses_do_not_cross() {
    let (switch, mut guests) = three();
    for last in 1..=0xf {
        let frame = frame([0x01, 0x80, 0xc2, 0, 0, last], mac(1), last.into());
        assert_eq!(receivers(&mut guests, 0, &frame), NOBODY, "01-80-C2-00-00-{last:02X}");
    }
    // They come from a station all the same.
    assert_eq!(receivers(&mut guests, 1, &frame(mac(1), mac(2), 1)), [0]);
    let statistics = finish(switch);
    assert_eq!(statistics.port("a", "drop_reserved_address"), 15);
    assert_eq!(statistics.dropped(), 15);
}

#[test]
fn a_guest_alone_reaches_nobody() {
    let switch = Switch::builder().port("a").port("b").start();
    let mut a = attach(&switch, "a");
    send(&mut a, &[frame(mac(2), mac(1), 1), frame(BROADCAST, mac(1), 2)]);
    assert_eq!(bytes_arrived(&mut a).len(), 0);
    let statistics = finish(switch);
    assert_eq!(statistics.port("a", "drop_no_destination"), 2);
    assert_eq!(statistics.port("a", "flooded_frames"), 0);
}

/// Locally administered addresses that nobody has.
fn invented(number: u32) -> [u8; 6] {
    let [_, high, middle, low] = number.to_be_bytes();
    [6, 0x1e, 0, high, middle, low]
}

#[test]
fn a_guest_that_invents_addresses_harms_only_itself() {
    const INVENTED: u32 = 5000;
    const LIMIT: u32 = 1024; // the default of a port
    let switch = Switch::builder().port("a").port("b").port("c").port("d").start();
    let mut guests = ["a", "b", "c"].map(|port| attach(&switch, port));
    for from in 0..3 {
        receivers(&mut guests, from, &frame(BROADCAST, mac(from as u8 + 1), 1));
    }
    // To a station behind its own port: learned from, and then dropped.
    let frames: Vec<Frame> =
        (0..INVENTED).map(|number| frame(mac(1), invented(number), number)).collect();
    send(&mut guests[0], &frames);
    assert_eq!(receivers(&mut guests, 1, &frame(mac(3), mac(2), 1)), [2], "c is still known");
    assert_eq!(receivers(&mut guests, 2, &frame(mac(2), mac(3), 1)), [1], "b is still known");
    // Of the invented ones the first were learned, up to the limit; a's own address is one more.
    let mut at_c = 0;
    for number in 0..INVENTED {
        let receivers = receivers(&mut guests, 1, &frame(invented(number), mac(2), number));
        assert_eq!(receivers[0], 0, "a gets what is for its addresses");
        at_c += receivers.len() as u32 - 1;
    }
    assert_eq!(at_c, INVENTED - (LIMIT - 1), "flooded, because unknown");
    // Who comes later has room.
    let mut late = attach(&switch, "d");
    send(&mut late, &[frame(BROADCAST, mac(4), 1)]);
    for guest in &mut guests {
        assert_eq!(bytes_arrived(guest).len(), 1);
    }
    assert_eq!(receivers(&mut guests, 1, &frame(mac(4), mac(2), 1)), NOBODY);
    assert_eq!(bytes_arrived(&mut late).len(), 1);
    let statistics = finish(switch);
    assert_eq!(statistics.port("a", "drop_no_destination"), u64::from(INVENTED));
}

#[test]
fn the_limit_of_a_port_is_as_configured() {
    let settings = "[mac-table]\nper-port = 2\n";
    let switch = Switch::builder().settings(settings).port("a").port("b").port("c").start();
    let mut guests = ["a", "b", "c"].map(|port| attach(&switch, port));
    for station in 11..=13 {
        receivers(&mut guests, 0, &frame(BROADCAST, mac(station), 1));
    }
    for (station, reach) in [(11, &[0][..]), (12, &[0]), (13, &[0, 2])] {
        assert_eq!(receivers(&mut guests, 1, &frame(mac(station), mac(2), 2)), reach);
    }
    finish(switch);
}

#[test]
fn addresses_are_forgotten_after_the_configured_time() {
    let settings = "[mac-table]\nageing-seconds = 1\n";
    let switch = Switch::builder().settings(settings).port("a").port("b").port("c").start();
    let mut guests = ["a", "b", "c"].map(|port| attach(&switch, port));
    // Again and again, should this thread be stopped for a second between the two.
    wait_for("learned address", PATIENCE, || {
        receivers(&mut guests, 0, &frame(BROADCAST, mac(1), 1));
        (receivers(&mut guests, 1, &frame(mac(1), mac(2), 2)) == [0]).then_some(())
    });
    wait_for("flooded frame", PATIENCE, || {
        let receivers = receivers(&mut guests, 1, &frame(mac(1), mac(2), 3));
        (receivers == [0, 2]).then_some(())
    });
    finish(switch);
}

#[test]
fn addresses_are_forgotten_when_their_guest_leaves() {
    let (switch, [a, b, c]) = three();
    let mut guests = vec![b, c, a];
    receivers(&mut guests, 2, &frame(BROADCAST, mac(1), 1));
    assert_eq!(receivers(&mut guests, 0, &frame(mac(1), mac(2), 2)), [2]);
    // Sudden death. Until the switch has noticed, frames for it go to its memory as before.
    drop(guests.pop());
    wait_for("flooded frame", PATIENCE, || {
        let receivers = receivers(&mut guests, 0, &frame(mac(1), mac(2), 3));
        (receivers == [1]).then_some(())
    });
    // Another guest on the same socket, with another address.
    guests.push(attach(&switch, "a"));
    receivers(&mut guests, 2, &frame(BROADCAST, mac(7), 4));
    assert_eq!(receivers(&mut guests, 0, &frame(mac(7), mac(2), 5)), [2]);
    assert_eq!(receivers(&mut guests, 0, &frame(mac(1), mac(2), 6)), [1, 2], "unknown for good");
    finish(switch);
}

#[test]
fn tagged_frames_pass_untouched() {
    let (switch, mut guests) = three();
    receivers(&mut guests, 1, &frame(BROADCAST, mac(2), 1));
    let c_vlan: &[u8] = &[0x81, 0x00, 0x60, 0x07];
    let s_vlan: &[u8] = &[0x88, 0xa8, 0x0f, 0xff, 0x81, 0x00, 0x00, 0x00];
    let two: &[u8] = &[0x81, 0x00, 0x00, 0x01, 0x81, 0x00, 0x00, 0x02];
    for tags in [c_vlan, s_vlan, two] {
        for len in [60, 64, 1514, 9014] {
            let mut tagged = Frame::pattern(mac(2), mac(1), len, 5);
            tagged.bytes.splice(12..12, tags.iter().copied());
            assert_eq!(receivers(&mut guests, 0, &tagged), [1], "{tags:02x?} {len}");
        }
    }
    // One table for all VLANs: what a tagged frame taught counts for the others.
    assert_eq!(receivers(&mut guests, 2, &frame(mac(1), mac(3), 6)), [0]);
    finish(switch);
}
