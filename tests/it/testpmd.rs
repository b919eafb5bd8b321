//! DPDK's virtio-user driver in `dpdk-testpmd`, two ports of it through one switch: millions of
//! frames from a driver that nobody here wrote, each of which is received or counted as a drop.

use std::time::Duration;

use crate::support::switch::{Statistics, Switch};
use crate::support::testpmd::{Port, PortCounters, Testpmd};
use crate::support::wait_for;

const PORTS: [&str; 2] = ["vm0", "vm1"];
const MACS: [&str; 2] = ["02:00:00:00:00:10", "02:00:00:00:00:11"];
const PATIENCE: Duration = Duration::from_secs(60);
/// Frame lengths in bytes, without FCS.
const SIZES: [usize; 7] = [64, 65, 128, 512, 1518, 4096, 9000];
/// A segment of a frame in buffers of DPDK's usual size.
const SEGMENT: usize = 2000;
/// Arguments for buffers that hold the largest frame whole.
const LARGE_BUFFERS: &[&str] = &["--mbuf-size=10240", "--max-pkt-len=9600"];
/// Arguments for frames over several buffers of the usual size.
const CHAINED_BUFFERS: &[&str] = &["--enable-scatter", "--max-pkt-len=9600"];

/// Two ports of one testpmd on one switch.
struct Bench {
    testpmd: Testpmd,
    switch: Switch,
    /// The switch's counters when those of testpmd were cleared.
    start: Statistics,
}

impl Bench {
    fn new(devargs: &str, arguments: &[&str]) -> Bench {
        let switch = Switch::builder().port(PORTS[0]).port(PORTS[1]).start();
        let sockets = PORTS.map(|port| switch.socket(port));
        let port = |index: usize| Port { socket: &sockets[index], mac: MACS[index], devargs };
        let peers = [format!("--eth-peer=0,{}", MACS[1]), format!("--eth-peer=1,{}", MACS[0])];
        let mut all: Vec<&str> = peers.iter().map(String::as_str).collect();
        all.extend(arguments);
        let mut testpmd = Testpmd::start(&[port(0), port(1)], &all);
        testpmd.wait_links_up(2);
        Bench { testpmd, switch, start: Statistics::default() }
    }

    /// Sets how long frames are, in segments of at most `segment` bytes, and starts counting.
    fn frames_of(&mut self, size: usize, segment: usize) {
        let segments = size.div_ceil(segment);
        let lengths: Vec<String> =
            (0..segments).map(|index| segment.min(size - index * segment).to_string()).collect();
        let answer = self.testpmd.ask(&format!("set txpkts {}", lengths.join(",")));
        assert!(!answer.contains("rror"), "{answer}");
        self.testpmd.ask("clear port stats all");
        self.start = self.switch.statistics();
    }

    /// Receives what is left, until every frame that was sent has arrived or is counted.
    fn settle(&mut self) -> Sums {
        self.testpmd.ask("set fwd rxonly");
        self.testpmd.ask("start");
        let mut last = None;
        let sums = wait_for("end of all frames", PATIENCE, || {
            let sums = self.sums();
            // Nothing has changed for a while, whether or not it adds up.
            let settled = last.as_ref() == Some(&sums);
            let even = sums.driver.iter().map(|port| port.tx_packets).sum::<u64>()
                == sums.driver.iter().map(|port| port.rx_packets).sum::<u64>() + sums.drops();
            last = Some(sums.clone());
            (even && settled).then_some(sums)
        });
        self.testpmd.ask("stop");
        sums
    }

    fn sums(&mut self) -> Sums {
        let driver = [self.testpmd.counters(0), self.testpmd.counters(1)];
        let now = self.switch.statistics_when(|now| now.unaccounted() == 0);
        let switch = PORTS.map(|port| {
            let counter = |name: &str| now.port(port, name) - self.start.port(port, name);
            let names = now.ports[port].keys().filter(|name| name.starts_with("drop_"));
            Seen {
                ingress: (counter("ingress_frames"), counter("ingress_bytes")),
                egress: (counter("egress_frames"), counter("egress_bytes")),
                drops: names.map(|name| (name.clone(), counter(name))).collect(),
            }
        });
        Sums { driver, switch }
    }
}

/// What the switch has counted at a port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    /// Frames and bytes.
    ingress: (u64, u64),
    egress: (u64, u64),
    drops: Vec<(String, u64)>,
}

/// What both sides have counted since the bench's start.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sums {
    driver: [PortCounters; 2],
    switch: [Seen; 2],
}

impl Sums {
    fn drops(&self) -> u64 {
        let drops = self.switch.iter().flat_map(|seen| &seen.drops);
        drops.map(|(_, count)| count).sum()
    }

    /// Asserts that driver and switch agree on each direction, to the frame and to the byte, and
    /// that frames were dropped for no reason but `reason`, at the port they were for.
    fn assert_exact(&self, size: usize, reason: &str) {
        for (from, to) in [(0, 1), (1, 0)] {
            let (sender, receiver) = (&self.driver[from], &self.driver[to]);
            let (ingress, egress) = (self.switch[from].ingress, &self.switch[to]);
            assert_eq!((sender.tx_packets, sender.tx_bytes), ingress, "{from}: {self:?}");
            assert_eq!((receiver.rx_packets, receiver.rx_bytes), egress.egress, "{to}: {self:?}");
            let dropped: u64 = egress.drops.iter().map(|(_, count)| count).sum();
            assert_eq!(sender.tx_packets, receiver.rx_packets + dropped, "{self:?}");
            assert_eq!(sender.tx_bytes, sender.tx_packets * size as u64, "{self:?}");
            assert_eq!(receiver.rx_bytes, receiver.rx_packets * size as u64, "{self:?}");
            let known = |(name, count): &(String, u64)| name == reason || *count == 0;
            assert!(egress.drops.iter().all(known), "not only {reason}: {self:?}");
        }
    }
}

/// Sends frames of all sizes, both ways at once, through ports with these devargs.
fn frames_of_all_sizes_add_up(devargs: &str, arguments: &[&str], segment: usize) {
    let mut bench = Bench::new(devargs, arguments);
    for size in SIZES {
        bench.frames_of(size, segment);
        bench.testpmd.ask("set fwd rxonly");
        // A few bursts that fit in the rings, then more than they hold.
        for bursts in [1, 1, 1, 1, 100] {
            bench.testpmd.ask(&format!("start tx_first {bursts}"));
            bench.testpmd.ask("stop");
        }
        let sums = bench.settle();
        sums.assert_exact(size, "drop_rx_ring_full");
        assert!(sums.driver.iter().all(|port| port.rx_packets >= 32), "{size}: {sums:?}");
    }
    bench.switch.stop();
}

#[test]
fn mergeable_buffers() {
    frames_of_all_sizes_add_up("mrg_rxbuf=1,in_order=0", CHAINED_BUFFERS, SEGMENT);
}

#[test]
fn one_large_buffer_per_frame() {
    frames_of_all_sizes_add_up("mrg_rxbuf=0,in_order=0", LARGE_BUFFERS, usize::MAX);
}

#[test]
fn in_order_mergeable() {
    frames_of_all_sizes_add_up("in_order=1", CHAINED_BUFFERS, SEGMENT);
}

#[test]
fn in_order_one_large_buffer_per_frame() {
    frames_of_all_sizes_add_up("mrg_rxbuf=0,in_order=1", LARGE_BUFFERS, usize::MAX);
}

#[test]
fn vectorized() {
    frames_of_all_sizes_add_up("mrg_rxbuf=0,in_order=0,vectorized=1", LARGE_BUFFERS, usize::MAX);
}

#[test]
fn packed_mergeable_buffers() {
    frames_of_all_sizes_add_up("packed_vq=1,mrg_rxbuf=1,in_order=0", CHAINED_BUFFERS, SEGMENT);
}

#[test]
fn packed_one_large_buffer_per_frame() {
    let devargs = "packed_vq=1,mrg_rxbuf=0,in_order=0";
    frames_of_all_sizes_add_up(devargs, LARGE_BUFFERS, usize::MAX);
}

#[test]
fn packed_in_order_mergeable() {
    frames_of_all_sizes_add_up("packed_vq=1,in_order=1", CHAINED_BUFFERS, SEGMENT);
}

#[test]
fn packed_vectorized() {
    // The driver takes its vector path only if frames are in order and buffers aren't merged.
    let devargs = "packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1";
    frames_of_all_sizes_add_up(devargs, LARGE_BUFFERS, usize::MAX);
}

#[test]
fn packed_rings_of_a_size_that_is_no_power_of_two() {
    let devargs = "packed_vq=1,mrg_rxbuf=1,in_order=0,queue_size=300";
    frames_of_all_sizes_add_up(devargs, CHAINED_BUFFERS, SEGMENT);
}

#[test]
fn two_queue_pairs() {
    let arguments = ["--rxq=2", "--txq=2", "--txonly-multi-flow"];
    let arguments: Vec<&str> = arguments.iter().chain(CHAINED_BUFFERS).copied().collect();
    frames_of_all_sizes_add_up("queues=2", &arguments, SEGMENT);
}

#[test]
fn frames_that_circle_between_two_ports_add_up() {
    let mut bench = Bench::new("mrg_rxbuf=1", &[]);
    for size in [64, 1518] {
        bench.frames_of(size, SEGMENT);
        bench.testpmd.ask("set fwd io");
        bench.testpmd.ask("start tx_first 2");
        wait_for("many frames", PATIENCE, || {
            (bench.testpmd.counters(0).rx_packets >= 200_000).then_some(())
        });
        bench.testpmd.ask("stop");
        let sums = bench.settle();
        sums.assert_exact(size, "drop_rx_ring_full");
    }
    bench.switch.stop();
}

#[test]
fn a_receiver_that_reads_nothing_costs_counted_drops_only() {
    let mut bench = Bench::new("mrg_rxbuf=1", &[]);
    for size in [64, 1518] {
        bench.frames_of(size, SEGMENT);
        // Both send and neither receives: the rings fill up.
        bench.testpmd.ask("set fwd txonly");
        bench.testpmd.ask("start");
        bench.switch.statistics_when(|now| {
            PORTS.iter().all(|port| {
                let dropped = now.port(port, "drop_rx_ring_full");
                dropped >= bench.start.port(port, "drop_rx_ring_full") + 10_000
            })
        });
        bench.testpmd.ask("stop");
        let sums = bench.settle();
        sums.assert_exact(size, "drop_rx_ring_full");
        assert!(sums.driver.iter().all(|port| port.rx_packets > 0), "{sums:?}");
    }
    bench.switch.stop();
}
