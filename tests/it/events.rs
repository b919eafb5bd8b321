//! What happens in the life of real guests, under traffic: their streams outlive it, or those of
//! others do.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::machines::{self, Lan, Station, machines};
use crate::support::netns::must;
use crate::support::proc::Process;
use crate::support::qemu::QemuGuest;
use crate::support::stream::Stream;
use crate::support::switch::Switch;
use crate::support::wait_for;

const A: Station = Station::Guest(0);
const B: Station = Station::Guest(1);
const C: Station = Station::Guest(2);
use Station::Host;

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

/// One DIMM more for a guest, which puts it into use: its network buffers are there from now on,
/// since Linux takes memory above 4 GiB first.
fn plug_memory(guest: &mut QemuGuest, name: &str, mib: u64) {
    let total = |guest: &mut QemuGuest| -> u64 {
        let text = guest.run("grep MemTotal /proc/meminfo", PATIENCE);
        text.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a size")
    };
    let before = total(guest);
    let size = mib << 20;
    let backend = format!("\"qom-type\": \"memory-backend-memfd\", \"id\": \"{name}-mem\"");
    guest.qmp("object-add", &format!("{{{backend}, \"size\": {size}, \"share\": true}}"));
    let dimm =
        format!("{{\"driver\": \"pc-dimm\", \"id\": \"{name}\", \"memdev\": \"{name}-mem\"}}");
    guest.qmp("device_add", &dimm);
    let online = "for block in /sys/devices/system/memory/memory*; do \
                  [ $(cat $block/state) = online ] || echo online >$block/state; done";
    wait_for("memory", PATIENCE, || {
        guest.run(online, PATIENCE);
        (total(guest) >= before + mib * 1000).then_some(())
    });
}

#[test]
fn streams_outlive_what_happens_to_their_guests() {
    let _alone = machines();
    // As many pairs as a guest may reasonably have, of which few are used by few CPUs.
    let options: [&[&str]; 2] =
        [&["--queues", "8", "--cpus", "2", "--slots", "4", "--memory", "384"], &["--slots", "4"]];
    let mut lan = Lan::new(&options);
    let streams = {
        let [a, b] = lan.pair(0, 1);
        Streams::start(a, b)
    };
    for (of, other) in [(0, 1), (1, 0)] {
        println!("guest {of} stands still");
        lan.guest(of).qmp("stop", "{}");
        lan.ping(Station::Guest(other), Host);
        lan.guest(of).qmp("cont", "{}");
        lan.go_on(&streams);

        println!("link of guest {of} down and up");
        lan.guest(of).qmp("set_link", "{\"name\": \"net0\", \"up\": false}");
        let gone = format!("ping -q -c 2 -W 1 {}", Station::Guest(of).ip4());
        let (code, output) = lan.guest(other).try_run(&gone, PATIENCE);
        assert_eq!(code, 1, "a guest without a link answers: {output}");
        lan.ping(Station::Guest(other), Host);
        lan.guest(of).qmp("set_link", "{\"name\": \"net0\", \"up\": true}");
        lan.go_on(&streams);

        for mtu in [9000, 1280, 1500] {
            println!("MTU {mtu} in guest {of}");
            lan.run(Station::Guest(of), &format!("ip link set eth0 mtu {mtu}"));
            lan.go_on(&streams);
        }
        for dimm in ["dimm0", "dimm1"] {
            println!("{dimm} in guest {of}");
            plug_memory(lan.guest(of), dimm, 128);
            lan.go_on(&streams);
        }
    }
    let [a, b] = lan.pair(0, 1);
    streams.end(a, b);
    lan.ping(A, B);
    lan.assert_no_bad_frames("all that happened");
    let statistics = lan.balanced_statistics();
    for port in [A.port(), B.port()] {
        for drop in ["drop_bad_chain", "drop_bad_length", "drop_bad_vnet_header"] {
            assert_eq!(statistics.port(&port, drop), 0, "{port}: {drop}");
        }
    }
    lan.stop();
}

impl Lan {
    fn go_on(&mut self, streams: &Streams) {
        let [a, b] = self.pair(0, 1);
        streams.go_on(a, b);
    }
}

#[test]
fn a_guest_that_begins_anew_disturbs_no_other() {
    let _alone = machines();
    let mut lan = Lan::new(&[&[], &[], &["--memory", "384"]]);
    lan.serve_files(Host);
    let (kernel, initramfs) = image();
    lan.add_file("kernel", &kernel);
    lan.add_file("initramfs", &initramfs);
    let streams = {
        let [a, b] = lan.pair(0, 1);
        Streams::start(a, b)
    };
    for begins_anew in [bind_again, reset, reboot, kexec] {
        // Traffic from C and to it.
        let server = lan.stream_server();
        lan.start_stream(C, Host, 1);
        let mut ping = lan.host.command("ping");
        ping.args(["-q", "-i", "0.002", "-s", "1000", &C.ip4()]);
        let log = tempfile::NamedTempFile::new().expect("a file");
        let ping = Process::start("ping", ping, log.path());
        lan.wait_received(Host, 4 << 20);
        begins_anew(&mut lan);
        drop((ping, server));
        lan.ping(C, A);
        lan.ping(C, Host);
        lan.ping(B, C);
        lan.go_on(&streams);
    }
    let [a, b] = lan.pair(0, 1);
    streams.end(a, b);
    lan.assert_no_bad_frames("four beginnings");
    let statistics = lan.balanced_statistics();
    assert_eq!(statistics.port(&C.port(), "drop_bad_chain"), 0);
    lan.stop();
}

/// C's driver lets its device go, in the middle of a burst, and takes it again.
fn bind_again(lan: &mut Lan) {
    println!("driver unbound and bound");
    let device = lan.run(C, "basename $(readlink /sys/class/net/eth0/device)");
    let (device, driver) = (device.trim(), "/sys/bus/virtio/drivers/virtio_net");
    for _ in 0..3 {
        lan.run(C, &format!("echo {device} >{driver}/unbind; [ ! -e /sys/class/net/eth0 ]"));
        lan.run(C, &format!("echo {device} >{driver}/bind"));
        // Addresses that are added count at once.
        lan.run(C, "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set eth0 up");
    }
    let (ip4, ip6) = (C.ip4(), C.ip6());
    lan.run(C, &format!("ip addr add {ip4}/24 dev eth0; ip -6 addr add {ip6}/64 dev eth0"));
}

fn reboot(lan: &mut Lan) {
    println!("reboot");
    end_in_order(lan.guest(2), "reboot -f");
}

/// As the machine's button does: nobody ends anything in order.
fn reset(lan: &mut Lan) {
    println!("reset");
    lan.guest(2).reset();
}

/// C's kernel starts another one, which finds the device as the first one left it.
fn kexec(lan: &mut Lan) {
    println!("kexec");
    let from = format!("http://{}", Host.ip4());
    lan.run(C, &format!("cd /tmp; wget -q {from}/kernel {from}/initramfs"));
    lan.run(C, "cd /tmp; kexec -s -l kernel --initrd=initramfs --reuse-cmdline");
    end_in_order(lan.guest(2), "kexec -e");
}

/// Linux can hang when it resets a device that it is just sending on, with any backend (mended by its
/// commit 0d0eff39ceb3), so the interface goes down first, as with any orderly end.
fn end_in_order(guest: &mut QemuGuest, command: &str) {
    let line = format!("(sleep 0.1; ip link set eth0 down; {command}) >/dev/null 2>&1 &");
    guest.run(&line, PATIENCE);
    guest.wait_ready();
}

/// The paths of the guests' kernel and initramfs.
fn image() -> (String, String) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/qemu-scripts/image");
    let said = must(&mut Command::new(script));
    let mut lines = said.lines().map(str::to_owned);
    (lines.next().expect("a kernel"), lines.next().expect("an initramfs"))
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
