//! Real Linux guests in QEMU, nothing simulated: their kernels judge every frame.
//!
//! Booting takes seconds under emulation, so each test boots once and looks at several things.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::machines::{Lan, Station, machines};
use crate::support::proc::cpu_time;
use crate::support::switch::Statistics;
use crate::support::wait_for;

/// How long frames may take to come by each queue.
const PATIENCE: Duration = Duration::from_secs(120);

const A: Station = Station::Guest(0);
const B: Station = Station::Guest(1);
const C: Station = Station::Guest(2);
const D: Station = Station::Guest(3);
use Station::Host;

/// Size of the file in MiB, which RINGSWITCH_TEST_FILE_MIB changes.
const FILE_MIB: u64 = 64;
/// Size of another in MiB, for what is tried besides.
const SMALL_MIB: u64 = 8;
/// How long idle guests are watched.
const IDLE: Duration = Duration::from_secs(6);

fn file_mib() -> u64 {
    let wanted = std::env::var("RINGSWITCH_TEST_FILE_MIB");
    wanted.map_or(FILE_MIB, |mib| mib.parse().expect("RINGSWITCH_TEST_FILE_MIB is a number"))
}

/// The file and the small one at a station, with their digests.
struct Files {
    large: String,
    small: String,
    mib: u64,
}

impl Files {
    fn make(lan: &mut Lan, at: Station, mib: u64) -> Files {
        lan.serve_files(at);
        let large = lan.make_file(at, "large", mib);
        let small = lan.make_file(at, "small", SMALL_MIB);
        Files { large, small, mib }
    }

    /// Sends the large one over IPv4 and the small one over IPv6.
    fn send(&self, lan: &mut Lan, from: Station, to: Station, what: &str) {
        let arrived = lan.fetch(to, &from.ip4(), "large", self.mib);
        assert_eq!(arrived, self.large, "{what}: changed on the way over IPv4");
        let arrived = lan.fetch(to, &format!("[{}]", from.ip6()), "small", SMALL_MIB);
        assert_eq!(arrived, self.small, "{what}: changed on the way over IPv6");
    }
}

/// Asserts that the frames that came from a port between two moments were as large as the
/// sender's offloads make them, so that switching them has really changed what the switch gets.
fn assert_frame_size(before: &Statistics, after: &Statistics, from: Station, large: u64, on: bool) {
    let grown = |counter| after.port(&from.port(), counter) - before.port(&from.port(), counter);
    let average = grown("ingress_bytes") / grown("ingress_frames");
    assert_eq!(average > large, on, "{from:?} sent {average} bytes per frame, offloads on: {on}");
}

#[test]
fn files_arrive_whole_with_any_offloads_and_mtu() {
    let _alone = machines();
    let mib = file_mib();
    // Room for a file, which is half of what a tmpfs may take, the small one and the system.
    let memory = (mib + mib / 4 + 256).to_string();
    let options: &[&str] = &["--memory", &memory];
    let mut lan = Lan::new(&[options, options]);
    lan.ping(A, B);
    lan.ping(B, A);
    lan.ping(A, Host);
    lan.ping(Host, B);
    assert_idle_costs_nothing(&mut lan);

    let from_guest = Files::make(&mut lan, A, mib);
    let from_host = Files::make(&mut lan, Host, mib);
    for mtu in [1500, 9000] {
        lan.set_mtu(mtu);
        for sender in [true, false] {
            for receiver in [true, false] {
                for (files, from, to) in
                    [(&from_guest, A, B), (&from_guest, A, Host), (&from_host, Host, B)]
                {
                    let what =
                        format!("{from:?} to {to:?}, offloads {sender} {receiver}, MTU {mtu}");
                    lan.set_offloads(from, sender);
                    lan.set_offloads(to, receiver);
                    let before = lan.switch.statistics();
                    files.send(&mut lan, from, to, &what);
                    let after = lan.switch.statistics();
                    assert_frame_size(&before, &after, from, u64::from(mtu) + 14, sender);
                    lan.assert_no_bad_frames(&what);
                }
            }
        }
        lan.ping(A, B);
    }
    let statistics = lan.balanced_statistics();
    for station in [A, B] {
        let port = station.port();
        // Every guest takes every offload: nothing was ever cut up or summed in the switch.
        assert_eq!(statistics.port(&port, "segmented_frames"), 0);
        assert_eq!(statistics.port(&port, "checksummed_frames"), 0);
        let (copied, delivered) = ("copied_bytes", "egress_bytes");
        assert_eq!(statistics.port(&port, copied), statistics.port(&port, delivered));
    }
    println!("{statistics:#?}");
    lan.stop();
}

/// Two guests that do nothing hardly wake the switch.
fn assert_idle_costs_nothing(lan: &mut Lan) {
    let pid = lan.switch.process().pid();
    let (before, cpu, start) = (lan.switch.statistics(), cpu_time(pid), Instant::now());
    thread::sleep(IDLE);
    let (cpu, span) = (cpu_time(pid) - cpu, start.elapsed());
    let after = lan.switch.statistics();
    let grown = |counter| after.workers["0"][counter] - before.workers["0"][counter];
    let (wakes, looks, frames) = (grown("sleeps"), grown("looks"), grown("frames"));
    println!("idle for {span:?}: {cpu:?} of CPU, {wakes} wake-ups, {looks} looks, {frames} frames");
    // Once a second to see that all is well, and a few times for each frame that comes by: guests
    // ask for routers and groups now and then. Looking once would be every 20 us when it polled.
    let limit = 2 * span.as_secs() + 2 + 4 * frames;
    assert!(wakes <= limit, "{wakes} wake-ups in {span:?} with {frames} frames");
    assert!(looks <= limit + 100, "{looks} looks in {span:?} with {frames} frames");
    assert!(frames < 100, "{frames} frames of idle guests");
}

/// QEMU offers the guest nothing that the switch might have to do without.
const BARE: &str = "csum=off,guest_csum=off,gso=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,\
                    guest_ufo=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off,\
                    mrg_rxbuf=off,event_idx=off,indirect_desc=off";

#[test]
fn guests_without_features_get_what_they_can_take() {
    let _alone = machines();
    let mut lan = Lan::new(&[
        &[],
        &["--device", BARE],
        // Receive buffers of 64 KiB in chains of pages.
        &["--device", "mrg_rxbuf=off,event_idx=off"],
        // Open checksums but no large frames.
        &["--device", "guest_tso4=off,guest_tso6=off,guest_ecn=off,indirect_desc=off"],
    ]);
    let all = [A, B, C, D, Host];
    for (index, &from) in all.iter().enumerate() {
        all[index + 1..].iter().for_each(|&to| lan.ping(from, to));
    }
    let files: Vec<_> =
        all.iter().map(|station| Files::make(&mut lan, *station, SMALL_MIB)).collect();
    for (files, &from) in files.iter().zip(&all) {
        for &to in all.iter().filter(|to| **to != from) {
            let what = format!("{from:?} to {to:?}");
            files.send(&mut lan, from, to, &what);
            if let Station::Guest(_) = to {
                send_datagrams(&mut lan, from, to);
            }
            lan.assert_no_bad_frames(&what);
        }
    }
    let statistics = lan.balanced_statistics();
    println!("{statistics:#?}");
    let converted = |station: Station, counter| statistics.port(&station.port(), counter) > 0;
    for (station, segments, sums) in [(A, false, false), (B, true, true), (D, true, false)] {
        assert_eq!(converted(station, "segmented_frames"), segments, "{station:?}");
        assert_eq!(converted(station, "checksummed_frames"), sums, "{station:?}");
    }
    assert!(!converted(C, "segmented_frames") && !converted(C, "checksummed_frames"));
    assert!(!converted(Host, "segmented_frames") && !converted(Host, "checksummed_frames"));
    lan.stop();
}

#[test]
fn guests_with_packed_and_split_rings_understand_each_other() {
    let _alone = machines();
    let mut lan = Lan::new(&[
        &["--device", "packed=on"],
        &[],
        &["--device", "packed=on,event_idx=off,indirect_desc=off,mrg_rxbuf=off"],
    ]);
    for (station, packed) in [(A, "1"), (B, "0"), (C, "1")] {
        // Bit 34 of what the driver accepted.
        let bit = lan.run(station, "cut -c 35 /sys/class/net/eth0/device/features");
        assert_eq!(bit.trim(), packed, "{station:?}");
    }
    let all = [A, B, C];
    let files: Vec<_> =
        all.iter().map(|station| Files::make(&mut lan, *station, SMALL_MIB)).collect();
    for (files, &from) in files.iter().zip(&all) {
        for &to in all.iter().filter(|to| **to != from) {
            let what = format!("{from:?} to {to:?}");
            lan.ping(from, to);
            files.send(&mut lan, from, to, &what);
            lan.run(from, &format!("iperf3 -c {} -n 32M", to.ip4()));
            send_datagrams(&mut lan, from, to);
            lan.assert_no_bad_frames(&what);
        }
    }
    lan.balanced_statistics();
    lan.stop();
}

/// Sends datagrams, whose checksums stay open; some must be received, however busy the machine is.
fn send_datagrams(lan: &mut Lan, from: Station, to: Station) {
    let received = |lan: &mut Lan| -> u64 {
        let text = lan.run(to, "grep Udp: /proc/net/snmp");
        let values = text.lines().nth(1).and_then(|line| line.split_whitespace().nth(1));
        values.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no count: {text}"))
    };
    let before = received(lan);
    let iperf3 = format!("iperf3 -u -c {} -n 1M -b 50M -l 1000", to.ip4());
    match from {
        Host => lan.host.run(&iperf3),
        Station::Guest(_) => lan.run(from, &iperf3),
    };
    let count = received(lan) - before;
    assert!(count >= 50, "{from:?} to {to:?}: {count} of 1000 datagrams received");
}

#[test]
fn queue_pairs_come_and_go_under_traffic() {
    let _alone = machines();
    let mut lan = Lan::new(&[&["--queues", "4", "--cpus", "2"], &["--queues", "2"]]);
    // Many connections: the switch chooses the queue of each by its addresses and ports.
    lan.start_stream(A, B, 16);
    for (pairs_of_a, pairs_of_b) in [(4, 2), (1, 1), (2, 2), (4, 1), (3, 2), (4, 2)] {
        set_queue_pairs(&mut lan, A, pairs_of_a);
        set_queue_pairs(&mut lan, B, pairs_of_b);
        let before = received_by_queue(&mut lan, B);
        assert_eq!(before.len(), pairs_of_b);
        lan.wait_received(B, 8 << 20);
        // Connections that lost frames to the change come back one by one, and a loaded host has few
        // of them send at a time.
        wait_for("frames by each queue", PATIENCE, || {
            let after = received_by_queue(&mut lan, B);
            before.iter().zip(&after).all(|(before, after)| after > before).then_some(())
        });
        lan.assert_streaming(A);
    }
    lan.end_stream(A);
    lan.ping(A, B);
    lan.ping(B, A);
    lan.assert_no_bad_frames("changing queue pairs");
    lan.balanced_statistics();
    lan.stop();
}

fn set_queue_pairs(lan: &mut Lan, at: Station, pairs: usize) {
    lan.run(at, &format!("ethtool -L eth0 combined {pairs}"));
    let now = lan.run(at, "ethtool -l eth0 | grep Combined | tail -n 1");
    assert_eq!(now.split_whitespace().collect::<Vec<_>>(), ["Combined:", &pairs.to_string()]);
}

/// Packets that each receive queue in use has taken so far.
fn received_by_queue(lan: &mut Lan, at: Station) -> Vec<u64> {
    let text = lan.run(at, "ethtool -S eth0 | grep 'rx_queue_._packets'");
    text.lines()
        .map(|line| line.rsplit_once(": ").and_then(|(_, count)| count.parse().ok()))
        .collect::<Option<Vec<u64>>>()
        .unwrap_or_else(|| panic!("no counts: {text}"))
}
