//! Hostile and broken frontends. Whatever they send: the guests on other ports notice nothing,
//! nothing of them stays in the switch, and the next guest finds their port in order.

mod holding_up;
mod memory;
mod messages;

use std::io::ErrorKind;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fakeguest::frames::{Frame, mac};
use fakeguest::memory::Region;
use fakeguest::protocol::{Acks, Connection, NEED_REPLY, VERSION};
use fakeguest::{Guest, Layout};

use crate::support::proc::{Holdings, holdings, holds_again};
use crate::support::switch::Switch;
use crate::support::wait_for;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Frames of each exchange.
const COUNT: u64 = 20;

/// Two neighbours whose traffic must go on, and a port `v` under attack.
struct Bench {
    switch: Switch,
    a: Guest,
    b: Guest,
    before: Holdings,
    seed: u32,
}

impl Bench {
    fn new() -> Bench {
        Bench::with_args(&[])
    }

    fn with_args(args: &[&str]) -> Bench {
        let mut switch = Switch::builder().port("a").port("b").port("v").args(args).start();
        switch.process().output_with("ready", 0, PATIENCE);
        let guest = |port: &str| Guest::builder(switch.socket(port)).attach().expect("a guest");
        let (a, b) = (guest("a"), guest("b"));
        let before = holdings(switch.process().pid());
        let mut bench = Bench { switch, a, b, before, seed: 0 };
        bench.neighbours();
        bench
    }

    /// A connection to `v` that has said nothing yet.
    fn stranger(&self) -> Connection {
        let stream = UnixStream::connect(self.switch.socket("v")).expect("a listener");
        Connection::new(stream, Acks::Some).expect("a connection")
    }

    /// A guest on `v`, its rings running.
    fn guest(&self) -> Guest {
        let guest = Guest::builder(self.switch.socket("v")).ring_size(64).tx_slot(4096);
        guest.attach().expect("a guest")
    }

    /// The neighbours' traffic goes on, unharmed.
    #[track_caller]
    fn neighbours(&mut self) {
        self.seed += 1;
        transfer((&mut self.a, 1), (&mut self.b, 2), self.seed);
        transfer((&mut self.b, 2), (&mut self.a, 1), self.seed);
    }

    /// The same, again and again, while a flood goes on: between two times `sent` must have grown by
    /// more than `least`.
    #[track_caller]
    fn neighbours_beside(&mut self, sent: &AtomicU64, least: u64) {
        let mut before = 0;
        for _ in 0..20 {
            self.neighbours();
            let more = || Some(sent.load(Ordering::Relaxed)).filter(|now| *now > before + least);
            before = wait_for("more of the flood", PATIENCE, more);
        }
    }

    /// The same, among announcements of somebody else's.
    fn neighbours_beside_announcements(&mut self) {
        for guest in [&mut self.a, &mut self.b] {
            while guest.recv(0, Duration::ZERO).is_some() {}
        }
        self.seed += 1;
        let frame = Frame::pattern(mac(2), mac(1), 60, self.seed);
        self.a.send(0, &frame, &Layout::whole());
        let got =
            std::iter::from_fn(|| self.b.recv(0, PATIENCE)).find(|got| *got.bytes == frame.bytes);
        assert!(got.is_some());
    }

    /// After an attack, the attacker gone: no trace, and a good guest can use the port.
    #[track_caller]
    fn recovers(&mut self) {
        self.neighbours();
        holds_again(self.switch.process().pid(), self.before);
        let mut good = self.guest();
        self.seed += 1;
        transfer((&mut good, 3), (&mut self.a, 1), self.seed);
        transfer((&mut self.a, 1), (&mut good, 3), self.seed);
    }

    /// All that the neighbours sent was delivered; the switch ends in order, without a panic.
    fn end(mut self) {
        let now = self.switch.statistics();
        for port in ["a", "b"] {
            for reason in ["rx_ring_full", "rx_ring_busy", "link_down", "bad_chain"] {
                assert_eq!(now.port(port, &format!("drop_{reason}")), 0, "{port}: {reason}");
            }
        }
        self.switch.stop();
    }
}

/// Sends frames; all arrive, in order, with their bytes.
#[track_caller]
fn transfer(from: (&mut Guest, u8), to: (&mut Guest, u8), seed: u32) {
    let frames: Vec<_> = (0..COUNT)
        .map(|n| Frame::pattern(mac(to.1), mac(from.1), 60 + n as usize, seed << 8 | n as u32))
        .collect();
    for frame in &frames {
        from.0.send(0, frame, &Layout::whole());
    }
    for frame in &frames {
        let got = to.0.recv(0, PATIENCE).expect("a frame");
        assert_eq!(got.bytes, frame.bytes);
    }
    assert!(from.0.flush(0, PATIENCE));
}

/// Region `n` of one page, which is no neighbour of another.
fn page(n: u64) -> Region {
    let (guest_addr, user_addr) = ((1 << 40) + n * 8192, (1 << 50) + n * 8192);
    Region { guest_addr, size: 4096, user_addr, file_offset: 0 }
}

/// A header with these fields.
fn header(code: u32, flags: u32, size: u32) -> Vec<u8> {
    [code, flags, size].map(u32::to_le_bytes).concat()
}

/// A message with this body.
fn message(code: u32, body: &[u8]) -> Vec<u8> {
    [header(code, VERSION, body.len() as u32), body.to_vec()].concat()
}

fn state(index: u32, value: u32) -> Vec<u8> {
    [index, value].map(u32::to_le_bytes).concat()
}

/// How a message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Acknowledged with an error; the connection goes on, in step.
    Refused,
    /// The connection is closed.
    Closed,
}

/// Sends a message that wants an acknowledgement to the guest's backend; tells how it ended.
fn attack(guest: &Guest, code: u32, body: &[u8], fds: &[RawFd]) -> End {
    let connection = guest.connection();
    connection.raw(code, VERSION | NEED_REPLY, body, fds).expect("sent");
    match connection.reply(code) {
        Ok(reply) => {
            assert_eq!(reply.len(), 8, "an acknowledgement");
            assert_ne!(reply, [0; 8], "message {code} was accepted");
            if guest.sync().is_ok() {
                return End::Refused;
            }
        }
        Err(error) => assert_ne!(error.kind(), ErrorKind::InvalidData, "{error}"),
    }
    assert!(connection.closed_within(PATIENCE));
    End::Closed
}
