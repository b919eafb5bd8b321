//! A verified stream between two guests that nobody disturbs, while others do what they like.
//!
//! A round sends a burst each way, waits until its buffers are back and looks into the receive ring:
//! the switch gives buffers back when it has delivered, so what isn't there then was dropped. Which
//! frames those are is known one by one; how many, the switch must have counted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fakeguest::frames::mac;
use fakeguest::{Guest, Layout};

use super::books::{Books, Route, Tally};
use super::dice::Dice;
use super::support::switch::Switch;
use super::words::{Checker, Flow, Shape};

/// How long the switch may take to take a burst.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Frames of a burst each way.
const BURST: usize = 32;
/// Room for what the others send to all.
const RING: u16 = 1024;

/// One end of a stream.
struct End {
    port: String,
    station: u8,
    guest: Guest,
    flow: Flow,
    checker: Checker,
    tally: Tally,
    /// Frames that are due from the other end in this round: none of another size has come.
    sent: u64,
    arrived: u64,
}

/// Two guests and what they sent each other.
pub struct Stream {
    ends: [End; 2],
    dice: Dice,
    known: bool,
}

impl Stream {
    /// Guests on two ports, whose stations have these numbers, with rings as `features` say.
    pub fn attach(switch: &Switch, stations: [u8; 2], features: u64, seed: u64) -> Stream {
        let end = |station: u8| {
            let port = port_of(station);
            let guest = Guest::builder(switch.socket(&port)).ring_size(RING).tx_slot(10_000);
            let guest = guest.with(features).attach().expect("an undisturbed guest");
            let (flow, checker) = (Flow::new(station, 0, 0), Checker::default());
            let tally = Tally::default();
            End { port, station, guest, flow, checker, tally, sent: 0, arrived: 0 }
        };
        let dice = Dice::new(seed, stations[0].into());
        let mut stream = Stream { ends: stations.map(end), dice, known: false };
        stream.round();
        stream
    }

    /// The switch was killed: what others sent to all may come again.
    pub fn orphaned(&mut self) {
        self.drain();
        self.ends.iter_mut().for_each(|end| end.checker.forget());
    }

    /// Attaches both to a switch that was started again, with rings as they are.
    pub fn reconnect(&mut self) {
        for end in &mut self.ends {
            // What the killed switch had begun in a packed ring comes back empty.
            end.guest.queue(0).rx.accept_empty();
            end.guest.reconnect().expect("a switch that is back");
        }
        self.known = false;
        self.round();
    }

    /// Sends and receives until `ended`; tells how many rounds there were.
    pub fn run(&mut self, ended: &AtomicBool) -> u64 {
        let mut rounds = 0;
        while !ended.load(Ordering::Relaxed) {
            self.round();
            rounds += 1;
        }
        rounds
    }

    fn round(&mut self) {
        for [from, to] in [[0, 1], [1, 0]] {
            let destination = mac(self.ends[to].station);
            self.ends[from].send(destination, &mut self.dice);
        }
        for end in &mut self.ends {
            assert!(end.guest.flush(0, PATIENCE), "{}: frames are not taken", end.port);
            end.tally.used += BURST as u64;
            end.sent += BURST as u64;
        }
        let stations = [self.ends[1].station, self.ends[0].station];
        for (end, other) in self.ends.iter_mut().zip(stations) {
            end.receive(other);
        }
    }

    /// Takes what has come for nobody in particular.
    pub fn drain(&mut self) {
        let stations = [self.ends[1].station, self.ends[0].station];
        for (end, other) in self.ends.iter_mut().zip(stations) {
            end.receive(other);
        }
    }

    /// Enters what was sent and received since the last time that it was cleared.
    pub fn enter(&self, books: &mut Books) {
        for [from, to] in [[0, 1], [1, 0]] {
            let [from, to] = [&self.ends[from], &self.ends[to]];
            books.ports.insert(from.port.clone(), from.tally.clone());
            books.routes.push(Route {
                from: from.port.clone(),
                to: to.port.clone(),
                sent: from.sent,
                lost: from.sent - to.arrived,
                known: self.known,
            });
        }
    }

    /// Begins new tallies. From now on both are known.
    pub fn clear(&mut self) {
        for end in &mut self.ends {
            (end.tally, end.sent, end.arrived) = (Tally::default(), 0, 0);
        }
        self.known = true;
    }
}

/// The port of a station.
pub fn port_of(station: u8) -> String {
    format!("s{station}")
}

impl End {
    fn send(&mut self, destination: [u8; 6], dice: &mut Dice) {
        let layout =
            dice.pick(&[Layout::whole(), Layout::header_apart(), Layout::split(&[26, 40])]);
        let frames: Vec<_> = (0..BURST)
            .map(|_| {
                let words =
                    if dice.percent(20) { dice.between(150, 1100) } else { dice.between(6, 150) };
                let (tcp, v6) = (dice.percent(50), dice.percent(50));
                let open = dice.percent(50);
                let shape = match dice.below(4) {
                    0 => Shape::Plain,
                    1 if words > 200 => Shape::Large { tcp, v6, words: 150 },
                    _ => Shape::Whole { tcp, v6, open },
                };
                self.flow.frame(destination, shape, words as usize)
            })
            .collect();
        let sent = self.guest.send_all(0, &frames, &layout);
        assert_eq!(sent, BURST, "{}: room for a burst", self.port);
    }

    fn receive(&mut self, other: u8) {
        let features = self.guest.features();
        while let Some(received) = self.guest.queue(0).rx.recv() {
            self.tally.received += 1;
            self.tally.received_bytes += received.bytes.len() as u64;
            match self.checker.check(0, &received, features) {
                Ok(from) => self.arrived += u64::from(from == Some(other)),
                Err(error) => panic!("{}: {error}", self.port),
            }
        }
    }
}
