//! The books under load: of each port, what came is what went or was dropped, looked at by whoever
//! wants to while frames move, and to the frame when they stand still; and who is too slow is named.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fakeguest::frames::{Flow, Frame, mac};
use fakeguest::{Guest, Layout};
use serde_json::Value;

use super::support::http::get_json;
use super::support::switch::Switch;
use super::support::{Raise, wait_for};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(120);
const WORKERS: u64 = 2;
/// Frames of a burst.
const BURST: u64 = 64;
const PORTS: [&str; 4] = ["a", "b", "quick", "slow"];
/// A frame of a burst that a worker has under way goes to all other ports at most.
const UNDER_WAY: u64 = WORKERS * BURST * (PORTS.len() as u64 - 1);
/// Looks between which frames moved, at least.
const LOOKS: usize = 100;
/// Frames that the slow guest loses meanwhile, at least.
const LOST: u64 = 20_000;

/// Reasons that are counted where a frame came from.
const INGRESS: [&str; 5] =
    ["bad_chain", "bad_length", "bad_vnet_header", "no_destination", "reserved_address"];

/// Two sums that are the same when nothing is under way, each of counters that only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sides {
    begun: u64,
    ended: u64,
}

/// What the switch said at one time: the sides of each port.
#[derive(Debug, PartialEq, Eq)]
struct Look {
    /// Frames that came from it, and what became of them.
    from: BTreeMap<String, Sides>,
    /// Frames that were sent to it, and what became of them.
    to: BTreeMap<String, Sides>,
}

fn count(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_default()
}

/// Drops of a port or a queue, of those that are counted where frames come from or leave.
fn drops(value: &Value, ingress: bool) -> u64 {
    let drops = value["drops"].as_object().expect("reasons");
    let drops = drops.iter().filter(|(name, _)| INGRESS.contains(&name.as_str()) == ingress);
    drops.map(|(_, count)| count.as_u64().expect("a count")).sum()
}

fn ports(switch: &Switch) -> Vec<Value> {
    get_json(&switch.api_socket(), "/v1/ports").as_array().expect("a list").clone()
}

impl Look {
    fn at(switch: &Switch) -> Look {
        let flows = get_json(&switch.api_socket(), "/v1/flows");
        let flows = flows.as_array().expect("a list");
        let flowed = |side: &str, name: &Value| -> u64 {
            let these = flows.iter().filter(|flow| flow[side] == *name);
            these.map(|flow| count(flow, "frames") + count(flow, "dropped")).sum()
        };
        let (mut from, mut to) = (BTreeMap::new(), BTreeMap::new());
        for port in ports(switch) {
            let counters = &port["counters"];
            let name = port["name"].as_str().expect("a name").to_owned();
            let begun = count(counters, "ingress_frames") + count(counters, "flooded_copies");
            let gone = flowed("from", &port["name"]);
            let ended = count(counters, "flooded_frames") + drops(&port, true) + gone;
            from.insert(name.clone(), Sides { begun, ended });
            let begun = flowed("to", &port["name"]);
            let ended = count(counters, "egress_frames") + drops(&port, false);
            to.insert(name, Sides { begun, ended });
        }
        Look { from, to }
    }

    fn sides(&self) -> impl Iterator<Item = (&String, &Sides)> {
        self.from.iter().chain(&self.to)
    }

    /// What had begun has ended by a later look, and what had ended had begun, but for what the
    /// workers have under way.
    fn holds_until(&self, later: &Look) {
        for ((port, now), (_, then)) in self.sides().zip(later.sides()) {
            assert!(now.begun <= then.ended + UNDER_WAY, "{port}: {self:?}, later {later:?}");
            assert!(now.ended <= then.begun + UNDER_WAY, "{port}: {self:?}, later {later:?}");
        }
    }

    fn is_settled(&self) -> bool {
        self.sides().all(|(_, sides)| sides.begun == sides.ended)
    }
}

/// Sends to the others in turn at full speed until `over`. Returns how many frames.
fn send(mut guest: Guest, number: u8, over: &AtomicBool) -> (Guest, u64) {
    let to = |to: u8, port: u16| Flow { ports: (port, 7), ..Flow::v4(number, to) }.udp(&[7; 40]);
    let mut frames: Vec<_> = (0..8).flat_map(|port| [to(3, port), to(4, port)]).collect();
    // To all, and to itself.
    frames.push(Frame::pattern([0xff; 6], mac(number), 80, 1));
    frames.push(Frame::pattern(mac(number), mac(number), 90, 2));
    guest.queue(0).tx.load(&frames, &Layout::whole()).expect("loaded");
    let mut sent = 0;
    while !over.load(Ordering::Relaxed) {
        sent += guest.send_burst(0, usize::MAX) as u64;
        guest.recv_burst(0, 64);
    }
    assert!(guest.flush(0, PATIENCE), "frames are left");
    (guest, sent)
}

/// Takes frames as fast as it can until `over`, and then what is left.
fn take_all(mut guest: Guest, over: &AtomicBool) -> Guest {
    while !over.load(Ordering::Relaxed) {
        guest.recv_burst(0, 64);
    }
    guest
}

/// Takes one frame in a millisecond until `over`.
fn take_few(mut guest: Guest, over: &AtomicBool) -> Guest {
    while !over.load(Ordering::Relaxed) {
        guest.recv_burst(0, 1);
        guest.recv_burst(1, 1);
        thread::sleep(Duration::from_millis(1));
    }
    guest
}

/// Looks, as long as `more` says so, at a switch under load.
fn watch(switch: &Switch, mut more: impl FnMut(usize) -> bool) {
    let (mut last, mut moved) = (Look::at(switch), 0);
    let begin = Instant::now();
    while more(moved) {
        assert!(begin.elapsed() < PATIENCE, "no such load: {last:?}");
        let now = Look::at(switch);
        last.holds_until(&now);
        moved += usize::from(now != last);
        last = now;
    }
}

fn of<'a>(ports: &'a [Value], name: &str) -> &'a Value {
    ports.iter().find(|port| port["name"] == name).expect("a port")
}

/// What is counted by queue is what is counted by port.
fn queues_add_up(ports: &[Value]) {
    for port in ports {
        let queues = port["egress_queues"].as_array().expect("queues");
        let frames: u64 = queues.iter().map(|queue| count(queue, "frames")).sum();
        let dropped: u64 = queues.iter().map(|queue| drops(queue, false)).sum();
        assert_eq!(frames, count(&port["counters"], "egress_frames"), "{port}");
        assert_eq!(dropped, drops(port, false), "{port}");
    }
}

#[test]
fn what_comes_goes_or_is_dropped_under_load_and_the_slow_guest_is_named() {
    let builder = PORTS.iter().fold(Switch::builder().api(), |builder, port| builder.port(port));
    let builder = builder.args(&["--workers", &WORKERS.to_string()]);
    let switch = builder.start();
    let guest = |port: &str, pairs: usize| {
        let guest = Guest::builder(switch.socket(port)).tx_slot(2048).ring_size(128);
        guest.queue_pairs(pairs).attach().expect("a guest")
    };
    let [a, b] = ["a", "b"].map(|port| guest(port, 1));
    let (mut quick, mut slow) = (guest("quick", 1), guest("slow", 2));
    for (guest, number) in [(&mut quick, 3), (&mut slow, 4)] {
        guest.send(0, &Frame::pattern([0xff; 6], mac(number), 60, 0), &Layout::whole());
        assert!(guest.flush(0, PATIENCE));
    }
    let flags = [const { AtomicBool::new(false) }; 3];
    let [no_more, no_takers, no_few] = flags.each_ref();
    let full = || {
        let ports = ports(&switch);
        let queues = of(&ports, "slow")["egress_queues"].as_array().expect("queues").clone();
        [0, 1].map(|queue: usize| count(&queues[queue]["drops"], "rx_ring_full"))
    };
    let (sent, _guests) = thread::scope(|scope| {
        let raise = [no_more, no_takers, no_few].map(Raise);
        let senders = [(a, 1), (b, 2)]
            .map(|(guest, number)| scope.spawn(move || send(guest, number, no_more)));
        let takers =
            [scope.spawn(|| take_all(quick, no_takers)), scope.spawn(|| take_few(slow, no_few))];
        watch(&switch, |moved| moved < LOOKS || full().iter().any(|full| *full < LOST));
        // From here on it takes nothing at all.
        no_few.store(true, Ordering::Relaxed);
        let before = full();
        let on =
            |full: [u64; 2]| full.iter().zip(before).any(|(now, then)| *now < then + 4 * BURST);
        watch(&switch, |_| on(full()));
        no_more.store(true, Ordering::Relaxed);
        let (senders, sent): (Vec<_>, Vec<_>) =
            senders.map(|sender| sender.join().expect("a sender")).into_iter().unzip();
        no_takers.store(true, Ordering::Relaxed);
        let takers = takers.map(|taker| taker.join().expect("a taker"));
        drop(raise);
        (sent, (senders, takers))
    });

    wait_for("a switch that stands still", PATIENCE, || {
        Look::at(&switch).is_settled().then_some(())
    });
    let ports = ports(&switch);
    queues_add_up(&ports);
    for (name, sent) in ["a", "b"].into_iter().zip(sent) {
        assert_eq!(count(&of(&ports, name)["counters"], "ingress_frames"), sent, "{name}");
    }
    for queue in of(&ports, "slow")["egress_queues"].as_array().expect("queues") {
        assert_eq!(
            (count(&queue["ring"], "entries"), queue["ring"]["buffers"].as_u64()),
            (128, Some(0))
        );
    }

    let said = switch.client(&["show", "drops"]).output().expect("run");
    let said = String::from_utf8(said.stdout).expect("text");
    let line =
        said.lines().find(|line| line.starts_with("slow is too slow: its receive ring was full"));
    let line = line.unwrap_or_else(|| panic!("{said}"));
    for queue in 0..2 {
        assert!(line.contains(&format!("queue {queue} has no buffers")), "{line}");
    }
    assert!(
        said.ends_with("Give it larger rings, more queue pairs, or more CPU time.\n"),
        "{said}"
    );
    switch.stop();
}
