//! What happens in the life of real guests, under traffic: their streams outlive it, or those of
//! others do.

use std::path::Path;
use std::time::Duration;

use crate::support::machines::{self, Station, machines};
use crate::support::qemu::QemuGuest;
use crate::support::stream::Stream;
use crate::support::switch::Switch;

const A: Station = Station::Guest(0);
const B: Station = Station::Guest(1);

/// For a command in a guest.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a verified stream that show that it runs.
const SOME: u64 = 1 << 20;
/// TCP ports of the verified streams.
const THERE: u16 = 7001;
const BACK: u16 = 7002;

/// Verified streams between two guests, one in each direction.
struct Streams {
    there: Stream,
    back: Stream,
}

impl Streams {
    fn start(a: &mut QemuGuest, b: &mut QemuGuest) -> Streams {
        let there = Stream::start(a, b, &B.ip4(), THERE);
        let back = Stream::start(b, a, &A.ip4(), BACK);
        Streams { there, back }
    }

    /// Both go on.
    fn go_on(&self, a: &mut QemuGuest, b: &mut QemuGuest) {
        self.there.wait_for_more(b, SOME);
        self.back.wait_for_more(a, SOME);
    }

    /// Nothing was lost or changed, and the connections were always the same.
    fn end(self, a: &mut QemuGuest, b: &mut QemuGuest) {
        let there = self.there.end(a, b);
        let back = self.back.end(b, a);
        println!("{there} and {back} bytes arrived as they were sent");
    }
}

#[test]
fn streams_outlive_restarts_of_the_switch_in_both_roles() {
    let _alone = machines();
    let mut switch = Switch::builder().port("vm0").dialled_port("vm1").start();
    let (socket, listens) = (switch.socket("vm0"), switch.socket("vm1"));
    let (mut a, mut b) = std::thread::scope(|scope| {
        let boot = |index, socket: &Path, options: &[&str]| machines::boot(index, socket, options);
        // QEMU as a server holds its machine back until the switch has connected.
        let b = scope.spawn(move || boot(1, &listens, &["--vhost-mode", "server"]));
        (boot(0, &socket, &["--device", "packed=on"]), b.join().expect("a guest that boots"))
    });
    let streams = Streams::start(&mut a, &mut b);
    // More than the streams take: full rings at the moment of the end.
    a.run(&format!("iperf3 -c {} -P 2 -t 86400 >/run/load 2>&1 &", B.ip4()), PATIENCE);
    for signal in ["TERM", "KILL", "TERM", "KILL", "KILL", "KILL"] {
        println!("SIG{signal}");
        switch.restart(signal);
        streams.go_on(&mut a, &mut b);
    }
    a.run("killall iperf3", PATIENCE);
    streams.end(&mut a, &mut b);
    let errors = "cat /sys/class/net/eth0/statistics/rx_*errors | sort -u";
    assert_eq!((a.run(errors, PATIENCE), b.run(errors, PATIENCE)), ("0\n".into(), "0\n".into()));
    let now = switch.statistics_when(|now| now.unaccounted() == 0);
    assert_eq!(now.port("vm0", "drop_bad_chain") + now.port("vm1", "drop_bad_chain"), 0);
    switch.stop();
}
