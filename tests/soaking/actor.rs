//! What happens at one port: guests come and go, and strangers.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use fakeguest::protocol::{Acks, Connection};

use super::Options;
use super::acts::{self, Act, After};
use super::books::Tally;
use super::dice::Dice;
use super::guests::Life;

/// How long the switch may take for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One port and what its dice make of it.
pub struct Actor {
    pub station: u8,
    pub port: String,
    socket: PathBuf,
    seed: u64,
    dice: Dice,
    /// How many guests there were.
    lives: u32,
    pub life: Option<Life>,
    /// Those that died; the switch may not have noticed.
    dead: Vec<Life>,
    /// Connections of nobody in particular, which hold the port.
    strangers: Vec<UnixStream>,
    pub tally: Tally,
    /// It says what it does.
    shows: bool,
    /// What was done, and how often.
    pub done: BTreeMap<&'static str, u64>,
    /// A number that depends on all that was done, in order.
    pub schedule: u64,
}

impl Actor {
    /// A port whose station has this number.
    pub fn new(station: u8, port: String, socket: PathBuf, options: &Options) -> Actor {
        Actor {
            station,
            port,
            socket,
            seed: options.seed,
            shows: options.show,
            dice: Dice::new(options.seed, 0),
            lives: 0,
            life: None,
            dead: Vec::new(),
            strangers: Vec::new(),
            tally: Tally::default(),
            done: BTreeMap::new(),
            schedule: 0,
        }
    }

    /// Begins an epoch, whose schedule depends on its number and on the seed only, and on the port.
    pub fn begin(&mut self, epoch: u64) {
        self.dice = Dice::new(self.seed, epoch << 8 | u64::from(self.station));
    }

    /// Does one thing.
    pub fn step(&mut self) {
        let Some(mut life) = self.life.take() else {
            return self.step_without_guest();
        };
        self.tally.unknown |= life.wild;
        life.settle(self.station, &mut self.tally);
        // What it throws doesn't depend on how far the switch is.
        let mut dice = Dice::new(self.dice.next(), 0);
        let act = acts::choose(&life, &mut dice);
        self.note(act.name());
        match acts::perform(act, &mut life, self.station, &mut dice, &mut self.tally) {
            After::GoesOn => {
                life.settle(self.station, &mut self.tally);
                self.life = Some(life);
            }
            After::Leaves => {
                self.life = Some(life);
                self.leave();
            }
            After::Dies => self.dead.push(life.die()),
            // Nothing of it can be read.
            After::LostItsMemory => self.tally.unknown = true,
        }
    }

    fn note(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
        if self.shows {
            println!("{}: {what}", self.port);
        }
        let bytes = what.bytes().chain(self.dice.clone().next().to_le_bytes());
        let mix = |sum: u64, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        self.schedule = bytes.fold(self.schedule, mix);
    }

    /// Stops all rings in order and goes.
    fn leave(&mut self) {
        let Some(mut life) = self.life.take() else { return };
        if !life.mute {
            life.guest.stop().unwrap_or_else(|error| panic!("{}: stop: {error}", self.port));
            life.settle(self.station, &mut self.tally);
        }
        self.dead.push(life.die());
    }

    /// Ends the strangers' connections. A process that another thread is just starting may hold
    /// copies of them: to close them is not enough.
    fn send_away(&mut self) {
        for stranger in self.strangers.drain(..) {
            // Fails if the switch has closed it already.
            let _ = stranger.shutdown(Shutdown::Both);
        }
    }

    fn step_without_guest(&mut self) {
        if !self.strangers.is_empty() && self.dice.percent(70) {
            return self.note("hold");
        }
        self.send_away();
        let stranger = self.dice.weighted(&[
            (60, None),
            (6, Some("garbage")),
            (6, Some("half a message")),
            (6, Some("descriptors")),
            (6, Some("silence")),
        ]);
        self.note(stranger.unwrap_or("attach"));
        match stranger {
            None => self.attach(),
            Some(what) => self.knock(what),
        }
    }

    fn attach(&mut self) {
        self.lives += 1;
        let life = Life::begin(&self.socket, self.station, self.lives, &mut self.dice);
        // The port serves one frontend after the other.
        self.bury();
        self.tally.unknown |= life.wild;
        if self.shows {
            println!("{}: {}", self.port, life.describe());
        }
        self.life = Some(life);
    }

    /// Reads the rings of the dead for the last time: the switch is done with them.
    fn bury(&mut self) {
        for mut life in self.dead.drain(..) {
            life.settle(self.station, &mut self.tally);
            life.take_frames(self.station, &mut self.tally);
        }
    }

    /// Connects as somebody who is no guest.
    fn knock(&mut self, what: &str) {
        let stream = UnixStream::connect(&self.socket).expect("a listener");
        let connection = Connection::new(stream.try_clone().expect("a descriptor"), Acks::Some);
        let connection = connection.expect("a connection");
        // The switch may close before all of it is written.
        match what {
            "garbage" => {
                let bytes = self.dice.bytes(200);
                let _ = (&stream).write_all(&bytes);
                assert!(connection.closed_within(PATIENCE), "{}: garbage is endured", self.port);
            }
            "descriptors" => {
                let count = self.dice.pick(&[1, 8, 32, 33, 253]);
                acts::flood_of_descriptors(&connection, count);
                assert!(connection.closed_within(PATIENCE), "{}: so many descriptors", self.port);
            }
            "half a message" => {
                let length = self.dice.between(1, 19) as usize;
                let _ = (&stream).write_all(&acts::message()[..length]);
                self.strangers.push(stream);
            }
            _ => self.strangers.push(stream),
        }
    }

    /// Ends the epoch: whoever is there goes, and all that the switch did is counted.
    pub fn end(&mut self) {
        self.send_away();
        if self.dice.percent(50) {
            self.leave();
        } else {
            self.dead.extend(self.life.take().map(Life::die));
        }
        self.attend();
        self.bury();
    }

    /// Returns when the switch has dealt with all connections that were closed.
    fn attend(&mut self) {
        let stream = UnixStream::connect(&self.socket).expect("a listener");
        let connection = Connection::new(stream, Acks::Some).expect("a connection");
        connection.get_features().unwrap_or_else(|error| panic!("{}: {error}", self.port));
        self.strangers.push(connection.stream().try_clone().expect("a descriptor"));
        self.send_away();
    }

    /// Comes to rest for the end of the switch: a guest that can reconnect stays, all else goes.
    pub fn settle_down(&mut self) {
        self.send_away();
        let stays = |life: &Life| !life.wild && !life.mute;
        match self.life.take() {
            Some(mut life) if stays(&life) => {
                assert!(life.flush(self.station, &mut self.tally), "{}: not taken", self.port);
                self.life = Some(life);
            }
            other => {
                self.dead.extend(other.map(Life::die));
                self.attend();
                self.bury();
            }
        }
    }

    /// Has frames under way when the switch ends, if its rings are split: where a device was in a
    /// packed one, nobody knows after it was killed.
    pub fn last_words(&mut self) {
        if let Some(life) = self.life.as_mut().filter(|life| !life.is_packed()) {
            acts::perform(Act::Send, life, self.station, &mut self.dice, &mut self.tally);
        }
    }

    /// The switch is gone.
    pub fn orphaned(&mut self, killed: bool) {
        if let Some(life) = &mut self.life {
            life.settle(self.station, &mut self.tally);
            life.take_frames(self.station, &mut self.tally);
            if killed {
                life.checker.forget();
            }
        }
    }

    /// The switch is back: goes on with rings as they are.
    pub fn reconnect(&mut self) {
        self.tally = Tally::default();
        if let Some(life) = &mut self.life {
            life.accept_empty();
            life.guest.reconnect().unwrap_or_else(|error| panic!("{}: {error}", self.port));
            life.forget_extras();
            let flushed = life.flush(self.station, &mut self.tally);
            assert!(flushed, "{}: buffers are lost", self.port);
        }
    }
}
