//! All of it on one switch: epochs, restarts, upgrades, and what must hold between them.

use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fakeguest::features;

use super::Options;
use super::actor::{Actor, PATIENCE};
use super::books::Books;
use super::dice::Dice;
use super::machine::{self, Control, Done, Files};
use super::stream::{self, Stream};
use super::support::Raise;
use super::support::machines::{UPLINK, set_up_host};
use super::support::netns::Netns;
use super::support::proc::{Holdings, holdings};
use super::support::switch::{Statistics, Switch};
use super::wild;

/// Numbers of the stations with streams, and what their rings are.
const STREAMS: [([u8; 2], u64); 2] = [([201, 202], 0), ([203, 204], features::RING_PACKED)];
/// A TAP device that goes down and up.
const SHAKY: &str = "rs1";
/// A port that comes and goes.
const SPARE: &str = "spare";
/// Threads that the guests share.
const THREADS: usize = 4;
/// Epochs of a switch's life: whether machines run meanwhile, and whether another process takes over.
/// The first one of each process is for warming up.
const LIFE: [(bool, bool); 7] = [
    (false, false),
    (true, false),
    (false, false),
    (true, true),
    (false, false),
    (false, false),
    (true, false),
];
/// What the allocator may keep beyond what it kept after the first epoch, KiB.
const SLACK_KIB: u64 = 2048;

/// Stacks that the C library keeps of threads that ended, each with its guard: of a worker or two, and
/// of a port that was added and removed.
const SLACK_MAPPINGS: usize = 8;

/// A running soak.
struct Scene<'a> {
    options: &'a Options,
    host: &'a Netns,
    switch: Switch,
    actors: Vec<Actor>,
    streams: Vec<Stream>,
    control: &'a Control,
    /// The counters at the end of the last epoch, and how much of the log was looked at.
    before: Statistics,
    read: usize,
    /// What processes counted that were upgraded, in this life of the switch.
    carried: Statistics,
    /// What the switch held after the first epoch of its life that ended without machines.
    held: Option<Holdings>,
    /// How often that was compared, in this life of the switch and in all.
    compared: u64,
    compared_ever: u64,
    /// Frames that each TAP device has taken, as the kernel counts them.
    taken: Vec<(&'static str, u64)>,
    epoch: u64,
    rounds: u64,
}

/// Plays until the time is over; panics when something is wrong.
pub fn play(options: &Options) {
    let host = Netns::new();
    let switch = start(options, &host);
    wild::GUESTS.store(options.guests, Ordering::Relaxed);
    let control = Control::default();
    let sockets: Vec<PathBuf> =
        (0..options.machines).map(|index| switch.socket(&machine_port(index))).collect();
    let files = Files::serve(&host);
    thread::scope(|scope| {
        let _stop = Raise(&control.stop);
        let machines: Vec<_> = (0..)
            .zip(&sockets)
            .map(|(index, socket)| {
                let (files, control) = (&files, &control);
                scope.spawn(move || machine::run(index, socket, files, control, options.seed))
            })
            .collect();
        let mut scene = Scene::new(options, &host, switch, &control);
        scene.run(|| machines.iter().any(|machine| machine.is_finished()));
        control.stop.store(true, Ordering::Relaxed);
        let done: Vec<Done> = machines
            .into_iter()
            .map(|machine| machine.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect();
        scene.end(&done);
    });
}

fn machine_port(index: u8) -> String {
    format!("vm{index}")
}

fn guest_port(station: u8) -> String {
    format!("g{station}")
}

fn start(options: &Options, host: &Netns) -> Switch {
    let taps = [(UPLINK, true), (SHAKY, false)].map(|(device, uplink)| {
        format!(
            "[[port]]\nname = \"{device}\"\ntype = \"tap\"\ndevice = \"{device}\"\n\
             uplink = {uplink}\n"
        )
    });
    let streams = STREAMS.into_iter().flat_map(|(stations, _)| stations).map(stream::port_of);
    let guests = (1..=options.guests).map(guest_port);
    let machines = (0..options.machines).map(machine_port);
    let builder = Switch::builder().netns(host);
    let builder = builder.settings(&format!("[workers]\ncount = 2\n{}", taps.concat()));
    let all = streams.chain(guests).chain(machines);
    let switch = all.fold(builder, |builder, port| builder.port(&port)).upgradable().api().start();
    set_up_taps(host);
    switch
}

/// Frames that each TAP device has taken.
fn taken(host: &Netns) -> Vec<(&'static str, u64)> {
    let count = |device| {
        let text = host.run(&format!("cat /sys/class/net/{device}/statistics/rx_packets"));
        (device, text.trim().parse().expect("a number"))
    };
    [UPLINK, SHAKY].map(count).to_vec()
}

fn set_up_taps(host: &Netns) {
    set_up_host(host);
    host.run(&format!("ip link set {SHAKY} up"));
}

impl<'a> Scene<'a> {
    fn new(options: &'a Options, host: &'a Netns, switch: Switch, control: &'a Control) -> Self {
        let seed = options.seed;
        let streams = STREAMS
            .into_iter()
            .map(|(stations, features)| Stream::attach(&switch, stations, features, seed))
            .collect();
        let actor = |station| {
            let port = guest_port(station);
            let socket = switch.socket(&port);
            Actor::new(station, port, socket, options)
        };
        let mut scene = Scene {
            options,
            host,
            actors: (1..=options.guests).map(actor).collect(),
            streams,
            switch,
            control,
            before: Statistics::default(),
            read: 0,
            carried: Statistics::default(),
            held: None,
            compared: 0,
            compared_ever: 0,
            taken: Vec::new(),
            epoch: 0,
            rounds: 0,
        };
        scene.look();
        scene
    }

    fn run(&mut self, machines_failed: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(self.options.secs);
        let mut killed = true;
        loop {
            for (at, (machines, upgrade)) in LIFE.into_iter().enumerate() {
                assert!(!machines_failed(), "a machine met trouble");
                let over = Instant::now() >= deadline && self.epoch >= self.options.epochs;
                self.control.on.store(machines && !over, Ordering::Relaxed);
                let last = at + 1 == LIFE.len() && !over;
                self.epoch(last, upgrade);
                if last {
                    self.restart(killed);
                    killed = !killed;
                } else {
                    self.account();
                }
                // One more epoch, if this one was for warming up.
                if over && self.compared > 0 && self.control.present.load(Ordering::Relaxed) == 0 {
                    return;
                }
            }
        }
    }

    /// All ports act, and streams go on meanwhile. If the guests are to `stay`, they do. If it is to
    /// `upgrade`, another process takes the switch's place in the middle of it.
    fn epoch(&mut self, stay: bool, upgrade: bool) {
        self.epoch += 1;
        let (epoch, acts) = (self.epoch, self.options.acts);
        let ended = AtomicBool::new(false);
        let share = self.actors.len().div_ceil(THREADS);
        let (pid, host) = (AtomicU32::new(self.switch.process().pid()), self.host);
        let dice = Dice::new(self.options.seed, epoch << 8);
        let mut meddler = Meddler {
            api: self.switch.api_socket(),
            spare: self.switch.socket(SPARE),
            dice: Dice::new(self.options.seed, epoch << 8 | 1),
        };
        thread::scope(|scope| {
            let raise = Raise(&ended);
            let streams: Vec<_> =
                self.streams.iter_mut().map(|stream| scope.spawn(|| stream.run(&ended))).collect();
            scope.spawn(|| shake(&pid, host, dice, &ended));
            scope.spawn(|| meddler.run(&ended));
            let threads: Vec<_> = self
                .actors
                .chunks_mut(share)
                .map(|actors| {
                    scope.spawn(move || {
                        actors.iter_mut().for_each(|actor| actor.begin(epoch));
                        for _ in 0..acts {
                            actors.iter_mut().for_each(Actor::step);
                        }
                        if !stay {
                            actors.iter_mut().for_each(Actor::end);
                        }
                    })
                })
                .collect();
            if upgrade {
                thread::sleep(Duration::from_millis(300)); // in the middle of it
                let old = Statistics::parse(&self.switch.upgrade());
                pid.store(self.switch.process().pid(), Ordering::Relaxed);
                add(&mut self.carried, &old);
                (self.held, self.compared) = (None, 0);
                println!("epoch {epoch}: upgraded");
            }
            threads.into_iter().for_each(|thread| {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            });
            drop(raise);
            for stream in streams {
                self.rounds += stream.join().unwrap_or_else(|panic| resume_unwind(panic));
            }
        });
    }

    /// Nothing moves any more: every frame is accounted for, and nothing of the dead is left.
    fn account(&mut self) {
        let quiet = self.control.busy.write();
        let deadline = Instant::now() + PATIENCE;
        let (now, taken) = loop {
            let (now, taken) = self.settled();
            self.streams.iter_mut().for_each(Stream::drain);
            let Some(error) = self.books(&taken).error(&self.before, &now) else {
                break (now, taken);
            };
            assert!(Instant::now() < deadline, "epoch {}: {error}", self.epoch);
        };
        drop(quiet);
        self.report(&now);
        (self.before, self.taken) = (now, taken);
        self.clear();
        self.read_log();
        if self.control.present.load(Ordering::Relaxed) == 0 {
            self.compare_holdings();
        }
    }

    /// Begins new books.
    fn look(&mut self) {
        loop {
            (self.before, self.taken) = self.settled();
            self.streams.iter_mut().for_each(Stream::drain);
            self.clear();
            // The host's kernel may say something at any time.
            if self.settled().0.ports == self.before.ports {
                return;
            }
        }
    }

    fn books(&self, taken: &[(&'static str, u64)]) -> Books {
        let mut books = Books::default();
        for actor in &self.actors {
            books.ports.insert(actor.port.clone(), actor.tally.clone());
        }
        self.streams.iter().for_each(|stream| stream.enter(&mut books));
        for ((port, now), (_, before)) in taken.iter().zip(&self.taken) {
            books.taps.push((port, now - before));
        }
        books
    }

    fn clear(&mut self) {
        self.actors.iter_mut().for_each(|actor| actor.tally = Default::default());
        self.streams.iter_mut().for_each(Stream::clear);
    }

    /// Counters that stand still, the switch's and the kernel's.
    fn settled(&mut self) -> (Statistics, Vec<(&'static str, u64)>) {
        let deadline = Instant::now() + PATIENCE;
        let mut last = (self.counters(), taken(self.host));
        loop {
            let now = (self.counters(), taken(self.host));
            if (&now.0.ports, &now.1) == (&last.0.ports, &last.1) {
                return now;
            }
            assert!(Instant::now() < deadline, "frames move though nobody sends");
            last = now;
        }
    }

    fn counters(&mut self) -> Statistics {
        let mut now = self.switch.statistics();
        add(&mut now, &self.carried);
        now
    }

    fn compare_holdings(&mut self) {
        let pid = self.switch.process().pid();
        let Some(before) = self.held else {
            thread::sleep(Duration::from_secs(1)); // connections that are just ending
            self.held = Some(holdings(pid));
            return;
        };
        self.compared += 1;
        self.compared_ever += 1;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = holdings(pid);
            let same = (now.fds, now.threads) == (before.fds, before.threads)
                && now.mappings <= before.mappings + SLACK_MAPPINGS
                && now.private_kib <= before.private_kib + SLACK_KIB;
            if same {
                return;
            }
            assert!(Instant::now() < deadline, "held before: {before:?}; held now: {now:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the switch in order or kills it, with frames under way, and starts it again: everybody
    /// reconnects, and goes on where they were.
    fn restart(&mut self, killed: bool) {
        let quiet = self.control.busy.write();
        self.actors.iter_mut().for_each(Actor::settle_down);
        self.settled();
        self.actors.iter_mut().for_each(Actor::last_words);
        let process = self.switch.process();
        let written = process.written();
        process.signal(if killed { "KILL" } else { "TERM" });
        let status = process.wait(PATIENCE);
        assert!(killed || status.success(), "the switch ended with {status}");
        let mut now = Statistics::parse(&process.output_after(written));
        add(&mut now, &std::mem::take(&mut self.carried));
        self.read_log();
        self.actors.iter_mut().for_each(|actor| actor.orphaned(killed));
        if killed {
            self.streams.iter_mut().for_each(Stream::orphaned);
        } else {
            self.streams.iter_mut().for_each(Stream::drain);
            // The TAP devices are gone, and what the kernel counted. Ports ended one by one: not all
            // of them got what was sent to all.
            let books = Books { routes: Vec::new(), ..self.books(&[]) };
            let error = books.error(&self.before, &now);
            assert_eq!(error, None, "at the end of the switch, in epoch {}", self.epoch);
            self.report(&now);
        }
        self.switch.start_again();
        set_up_taps(self.host);
        (self.held, self.compared) = (None, 0);
        self.streams.iter_mut().for_each(Stream::reconnect);
        self.look();
        self.actors.iter_mut().for_each(Actor::reconnect);
        drop(quiet);
        println!("epoch {}: {} and back", self.epoch, if killed { "killed" } else { "ended" });
    }

    /// The log tells of what frontends did, and of no trouble of the switch's own.
    fn read_log(&mut self) {
        let log = self.switch.process().output_after(self.read);
        self.read += log.len();
        for line in log.lines() {
            assert!(!is_trouble(line), "the switch's log says: {line}");
        }
    }

    fn report(&self, now: &Statistics) {
        let sum = |counter| -> u64 { now.ports.keys().map(|port| now.port(port, counter)).sum() };
        let guests = self.actors.iter().filter(|actor| !actor.tally.unknown).count();
        let schedule = self.actors.iter().fold(0, |sum, actor| sum ^ actor.schedule);
        println!(
            "epoch {}: {} frames in, {} out, {} dropped; books of {guests} of {} ports; \
             {} rounds of streams; {} KiB; schedule {schedule:016x}",
            self.epoch,
            sum("ingress_frames"),
            sum("egress_frames"),
            now.dropped(),
            self.actors.len(),
            self.rounds,
            self.held.map_or(0, |held| held.private_kib),
        );
    }

    /// Ends the switch in order.
    fn end(mut self, machines: &[Done]) {
        let mut acts = std::collections::BTreeMap::<_, u64>::new();
        for (name, count) in self.actors.iter().flat_map(|actor| &actor.done) {
            *acts.entry(name).or_default() += count;
        }
        println!("acts: {acts:?}\nmachines: {machines:?}");
        println!("holdings were compared {} times", self.compared_ever);
        println!("held: {:?}, at last {:?}", self.held, holdings(self.switch.process().pid()));
        drop(self.streams);
        self.switch.stop();
    }
}

/// Adds the counters of the ports.
fn add(to: &mut Statistics, more: &Statistics) {
    for (port, counters) in &more.ports {
        let port = to.ports.entry(port.clone()).or_default();
        for (name, count) in counters {
            *port.entry(name.clone()).or_default() += count;
        }
    }
}

/// Whether a line of the log is none that a frontend can bring about.
fn is_trouble(line: &str) -> bool {
    let warned = line.contains(" WARN ") && {
        let expected =
            ["disconnected: ", "refused ", "messages were not logged", "a second frontend"];
        let of_a_guest = line.contains("port g") || line.contains("port vm");
        !of_a_guest || !expected.iter().any(|text| line.contains(text))
    };
    line.contains("panicked") || line.contains(" ERROR ") || warned
}

/// Somebody who looks at the switch and changes what concerns nobody's books, while it may be upgraded.
struct Meddler {
    api: PathBuf,
    spare: PathBuf,
    dice: Dice,
}

impl Meddler {
    /// At the end all is as it was.
    fn run(&mut self, ended: &AtomicBool) {
        while !ended.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(self.dice.between(20, 300)));
            self.act();
        }
        let deadline = Instant::now() + PATIENCE;
        let all = ["set", "workers.count=2", "workers.mode=", "mac-table.ageing-seconds="];
        while !self.does(&all) || self.does(&["show", "port", SPARE]) {
            self.does(&["port", "remove", SPARE]);
            assert!(Instant::now() < deadline, "the settings can't be brought back");
        }
    }

    fn act(&mut self) {
        let socket = format!("socket={}", self.spare.display());
        let pairs = format!("queue-pairs={}", self.dice.between(1, 8));
        let workers = format!("workers.count={}", self.dice.between(1, 2));
        let mode = format!("workers.mode={}", self.dice.pick(&["poll", "adaptive"]));
        let port = format!("g{}", self.dice.between(1, 9));
        let what = self.dice.pick(&["ports", "flows", "macs", "workers", "drops", "config"]);
        match self.dice.below(8) {
            0 => self.does(&["show", what]),
            1 => self.does(&["port", "add", SPARE, &socket, &pairs, "isolated=true"]),
            2 => self.does(&["port", "set", SPARE, &pairs, "mac-limit=7"]),
            3 => self.does(&["port", "remove", SPARE]),
            4 => self.does(&["set", &workers, &mode]),
            5 => self.does(&["set", "mac-table.ageing-seconds=3000"]),
            6 => self.does(&["capture", &port, "-w", "/dev/null", "--seconds", "1"]),
            _ => self.does(&[
                "trace",
                &port,
                "arp",
                "10.0.0.1",
                "10.0.0.2",
                "--from",
                "02:00:00:00:00:01",
            ]),
        };
    }

    /// Whether the switch did it. It may have ended or been upgraded.
    fn does(&self, arguments: &[&str]) -> bool {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ringswitch"));
        let output = command.args(arguments).env("RINGSWITCH_API", &self.api).output();
        output.is_ok_and(|output| output.status.success())
    }
}

/// Sets a TAP device down and up, and asks the switch for its statistics, now and then.
fn shake(pid: &AtomicU32, host: &Netns, mut dice: Dice, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(dice.between(100, 1000)));
        if dice.percent(50) {
            let pid = pid.load(Ordering::Relaxed).to_string();
            // It may just have been upgraded.
            let _ = std::process::Command::new("kill").args(["-USR1", &pid]).output();
        } else {
            host.run(&format!("ip link set {SHAKY} down"));
            thread::sleep(Duration::from_millis(dice.below(200)));
            host.run(&format!("ip link set {SHAKY} up"));
        }
    }
}
