//! A process that wants to take over, and stops somewhere on the way: nothing is lost.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use fakeguest::frames::{Frame, mac};
use fakeguest::{Guest, Layout};

use super::super::{Opened, Switch};
use super::*;
use crate::config::Settings;
use crate::sys::sandbox::Sandbox;
use crate::sys::socket::connect;

const LONG: Duration = Duration::from_secs(60);

/// How far the other process comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Connects,
    Greets,
    Meets,
    IsReady,
    HasRings,
}

/// Says everything up to `last`, and returns the channel, with what was handed over in it.
fn come_as_far_as(last: Step, socket: &Path, ports: &[(String, PathBuf)]) -> Channel {
    let mut channel = Channel::new(connect(socket).unwrap(), LONG).unwrap();
    let deadline = Instant::now() + LONG;
    if last >= Step::Greets {
        let place = |path: &PathBuf| format!("vhost-user server {}", path.display());
        let ports = ports
            .iter()
            .map(|(name, path)| PortIdentity { name: name.clone(), place: place(path) });
        let (program, ports) = ("a test".to_owned(), ports.collect());
        let hello = FromNew::Hello { version: VERSION, program, pid: 1, ports, doors: Vec::new() };
        send(&channel, &hello, &[]).unwrap();
    }
    if last >= Step::Meets {
        while !matches!(receive(&mut channel, "all", deadline).unwrap(), FromOld::All) {}
    }
    if last >= Step::IsReady {
        send(&channel, &FromNew::Ready, &[]).unwrap();
    }
    if last >= Step::HasRings {
        let rings = receive(&mut channel, "rings", deadline).unwrap();
        let FromOld::Rings { running } = rings else { panic!("{rings:?}") };
        assert_eq!(running["a"], (3, 0), "both rings ran");
    }
    channel
}

/// Sends frames from one guest to the other and back until `done`; all arrive.
fn stream(a: &mut Guest, b: &mut Guest, done: &AtomicBool) {
    let mut number = 0;
    while !done.load(Ordering::Acquire) {
        for (from, to) in [(1, 2), (2, 1)] {
            let (sender, receiver) =
                if from == 1 { (&mut *a, &mut *b) } else { (&mut *b, &mut *a) };
            let frame = Frame::pattern(mac(to), mac(from), 200, number);
            sender.send(0, &frame, &Layout::whole());
            assert!(receiver.recv(0, LONG).expect("frames go on").bytes == frame.bytes);
            number += 1;
        }
    }
}

#[test]
fn whoever_stops_on_the_way_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let port = |name: &str| (name.to_owned(), dir.path().join(name));
    let ports = [port("a"), port("b")];
    let settings = Settings::from_args(&ports, None).unwrap();
    let socket = dir.path().join("upgrade");
    let server = UpgradeServer::new(&socket, None).unwrap();
    let switch =
        Switch::start(&settings, Opened::new(&settings).unwrap(), &Sandbox::none()).unwrap();
    let guest = |(_, path): &(String, PathBuf)| Guest::builder(path).attach().unwrap();
    let (mut a, mut b) = (guest(&ports[0]), guest(&ports[1]));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| server.serve(&switch, None));
        let streams = scope.spawn(|| stream(&mut a, &mut b, &done));
        let all = [Step::Connects, Step::Greets, Step::Meets, Step::IsReady, Step::HasRings];
        for step in all {
            drop(come_as_far_as(step, &socket, &ports));
        }
        // This one doesn't go away either, with everything in its hands.
        let silent = come_as_far_as(Step::HasRings, &socket, &ports);
        for bad in ["", "{}", "{\"message\":\"ready\"}", "\u{0}", "{\"message\":\"hello\"}"] {
            Channel::new(connect(&socket).unwrap(), LONG).unwrap().send(bad, &[]).unwrap();
        }
        let mut other = Channel::new(connect(&socket).unwrap(), LONG).unwrap();
        let (program, ports) = ("another".to_owned(), Vec::new());
        let hello =
            FromNew::Hello { version: VERSION + 1, program, pid: 1, ports, doors: Vec::new() };
        send(&other, &hello, &[]).unwrap();
        // Answered when the silent one's time is over.
        let answer = receive(&mut other, "welcome", Instant::now() + LONG).unwrap();
        assert!(matches!(answer, FromOld::Refused { .. }), "{answer:?}");
        drop(silent);
        done.store(true, Ordering::Release);
        streams.join().unwrap();
        server.stop();
        assert_eq!(serving.join().unwrap(), None);
    });
    assert!(a.sync().is_ok() && b.sync().is_ok(), "the connections are the same");
    let now = switch.statistics();
    assert!(now.ports.iter().all(|(_, totals)| totals.dropped() == 0), "{now:?}");
}
