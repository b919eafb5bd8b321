//! The switch ends at any moment, in order or not, and is started again: guests go on over the rings
//! that they have, and no buffer comes back twice or never.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fakeguest::frames::mac;
use fakeguest::{Frame, Guest, Layout, Role, SetupOrder};

use crate::support::over_both_formats;
use crate::support::switch::Switch;

const PATIENCE: Duration = Duration::from_secs(60);
const RING: u16 = 256;
/// Frames under way at a time: the receiver's ring has room for more, of three buffers each.
const WINDOW: u64 = 80;
/// Different frames. So long ones that the switch is copying most of the time.
const FRAMES: u64 = 512;
const LONGEST: u64 = 9000;
/// A frame that was delivered but not completed at its sender when the switch was killed is sent
/// again. Of each killing, a burst at most.
const BURST: u64 = 64;

over_both_formats! {
    a_switch_that_is_killed_at_any_moment_loses_no_buffer
    a_switch_that_ends_in_order_loses_and_repeats_nothing
}

/// A guest that sends numbered frames, and one that receives them.
struct Traffic {
    frames: Vec<Frame>,
    from: Guest,
    to: Guest,
    sent: u64,
    received: u64,
    repeated: u64,
}

impl Traffic {
    /// Sends and receives until `ended`, and then what is there. Each frame must be the next one, or
    /// one of the last ones again.
    fn pump(&mut self, ended: impl Fn() -> bool) {
        // Chains of two slots and of one take turns: a packed ring's device marks both.
        let layouts = [Layout::header_apart(), Layout::whole()];
        loop {
            let over = ended();
            if !over && self.sent - self.received < WINDOW {
                let first = (self.sent % FRAMES) as usize;
                let room = (WINDOW - (self.sent - self.received)) as usize;
                let frames = &self.frames[first..self.frames.len().min(first + room)];
                let layout = &layouts[(self.sent / 7 % 2) as usize];
                self.sent += self.from.send_all(0, frames, layout) as u64;
            }
            let mut got = false;
            while let Some(frame) = self.to.queue(0).rx.recv() {
                self.check(&frame.bytes);
                got = true;
            }
            if over && !got {
                return;
            }
        }
    }

    fn check(&mut self, bytes: &[u8]) {
        let frame = |number: u64| &self.frames[(number % FRAMES) as usize];
        if bytes == frame(self.received).bytes {
            self.received += 1;
            return;
        }
        let again = (1..=self.received.min(2 * BURST)).map(|back| self.received - back);
        let known = again.into_iter().any(|number| bytes == frame(number).bytes);
        assert!(known, "neither frame {} nor one before it", self.received);
        self.repeated += 1;
    }

    /// All frames that were sent have arrived, and all transmit buffers are back.
    fn settle(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.received < self.sent {
            let sent = self.sent;
            assert!(Instant::now() < deadline, "{} of {sent} frames arrived", self.received);
            self.pump(|| true);
        }
        assert!(self.from.flush(0, PATIENCE), "the switch keeps transmit buffers");
        self.pump(|| true);
    }
}

/// The switch and its traffic.
struct Bench {
    switch: Switch,
    traffic: Traffic,
}

impl Bench {
    /// `sender_listens`: which of the two has the listening end of its socket.
    fn new(format: u64, order: SetupOrder, sender_listens: bool) -> Bench {
        let (listening, dialled) = if sender_listens { ("to", "from") } else { ("from", "to") };
        let switch = Switch::builder().port(listening).dialled_port(dialled).start();
        let guest = |port: &str| {
            let role = if port == dialled { Role::Listen } else { Role::Connect };
            let guest = Guest::builder(switch.socket(port)).with(format).role(role);
            guest.order(order).ring_size(RING).attach().expect("a guest")
        };
        let (to, from) = (guest("to"), guest("from"));
        let frames = (0..FRAMES).map(frame).collect();
        let traffic = Traffic { frames, from, to, sent: 0, received: 0, repeated: 0 };
        Bench { switch, traffic }
    }

    /// Ends the switch by this signal while frames are under way, and starts it again. The receiver
    /// comes first: without it, frames would be dropped.
    fn restart(&mut self, signal: &str, round: u64) {
        let Bench { switch, traffic } = self;
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(moment(round));
                switch.end(signal);
                ended.store(true, Ordering::Release);
            });
            traffic.pump(|| ended.load(Ordering::Acquire));
        });
        switch.start_again();
        traffic.to.reconnect().expect("attached again");
        traffic.from.reconnect().expect("attached again");
    }

    /// Every receive buffer is of use: as many frames as there are buffers, and not one more.
    fn assert_all_buffers(&mut self) {
        let Bench { switch, traffic } = self;
        let before = switch.statistics();
        let small = Frame::pattern(mac(2), mac(1), 60, 0);
        for _ in 0..=RING {
            traffic.from.send(0, &small, &Layout::whole());
        }
        assert!(traffic.from.flush(0, PATIENCE));
        let now = switch.statistics();
        let grown = |counter| now.port("to", counter) - before.port("to", counter);
        assert_eq!((grown("egress_frames"), grown("drop_rx_ring_full")), (u64::from(RING), 1));
        for _ in 0..RING {
            let got = traffic.to.recv(0, PATIENCE).expect("a frame");
            assert_eq!(got.bytes, small.bytes);
        }
    }
}

/// Kinds of frontends that the guests have, and whether the sender's listens.
fn frontends(format: u64) -> Vec<(SetupOrder, bool)> {
    let mut all = vec![(SetupOrder::Qemu, false), (SetupOrder::Qemu, true)];
    // Cloud Hypervisor has no packed rings. It says that it is where its guest is, not where we were.
    if format == 0 {
        all.push((SetupOrder::CloudHypervisor, false));
    }
    all
}

fn frame(number: u64) -> Frame {
    let len = 60 + (number * 997 % (LONGEST - 60)) as usize;
    Frame::pattern(mac(2), mac(1), len, number as u32)
}

/// A time that differs from round to round, up to some milliseconds.
fn moment(round: u64) -> Duration {
    Duration::from_micros(1000 + round.wrapping_mul(2_654_435_761) % 4000)
}

fn a_switch_that_is_killed_at_any_moment_loses_no_buffer(format: u64) {
    const KILLS: u64 = 30;
    for (order, sender_listens) in frontends(format) {
        let mut bench = Bench::new(format, order, sender_listens);
        bench.traffic.to.queue(0).rx.accept_empty();
        (0..KILLS).for_each(|round| bench.restart("KILL", round));
        bench.traffic.settle();
        let empty = bench.traffic.to.queue(0).rx.empty();
        let Traffic { sent, repeated, .. } = bench.traffic;
        println!("{KILLS} times killed: {sent} frames, {repeated} twice, {empty} empty buffers");
        assert!(sent > KILLS * WINDOW && repeated <= KILLS * BURST);
        // Those of a burst that was being shown. A split ring shows it by one store.
        assert!(empty <= if format == 0 { 0 } else { KILLS * BURST });
        bench.assert_all_buffers();
        bench.switch.stop();
    }
}

fn a_switch_that_ends_in_order_loses_and_repeats_nothing(format: u64) {
    const ENDS: u64 = 5;
    for (order, sender_listens) in frontends(format) {
        let mut bench = Bench::new(format, order, sender_listens);
        (0..ENDS).for_each(|round| bench.restart("TERM", round));
        bench.traffic.settle();
        assert!(bench.traffic.sent > ENDS * WINDOW);
        assert_eq!(bench.traffic.repeated, 0);
        bench.assert_all_buffers();
        bench.switch.stop();
    }
}
