//! TAP ports, with real kernels behind them: each device is moved to a namespace of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use fakeguest::features as feature;
use fakeguest::frames::{Flow, Header, NEEDS_CSUM, checksum_error, mac, payload};
use fakeguest::host::{PacketSocket, within};
use fakeguest::{Frame, Guest};

use crate::support::lan::{PATIENCE, arrived, attach, guest, send};
use crate::support::netns::Netns;
use crate::support::switch::{Statistics, Switch};
use crate::support::wait_for;

/// The EtherType of [`Frame::pattern`].
const PATTERN: [u8; 2] = [0x88, 0xb5];

/// A TAP port as a table of the configuration.
fn tap(name: &str, more: &str) -> String {
    format!("\n[[port]]\nname = \"{name}\"\ntype = \"tap\"\ndevice = \"{name}\"\n{more}\n")
}

/// A namespace with the device `device`, which the switch made in `home`. Its addresses are
/// 10.9.0.`number` and fd00:9::`number`, its MAC address is 02:00:00:00:09:`number`.
fn host(home: &Netns, device: &str, number: u8) -> Netns {
    let netns = Netns::new();
    home.run(&format!("ip link set {device} netns {}", netns.name()));
    netns.run(&format!("ip link set {device} address 02:00:00:00:09:{number:02x}"));
    netns.run(&format!("ip addr add 10.9.0.{number}/24 dev {device}"));
    netns.run(&format!("ip addr add fd00:9::{number}/64 dev {device} nodad"));
    netns.run(&format!("ip link set {device} up"));
    netns
}

/// Switches IPv6 off for devices of a namespace: `all`, `default`, or one by name.
fn without_ipv6(netns: &Netns, device: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
    within(netns.name(), || std::fs::write(&path, "1"))
        .and_then(|written| written)
        .unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// A namespace whose kernel says nothing by itself.
fn quiet() -> Netns {
    let netns = Netns::new();
    without_ipv6(&netns, "all");
    without_ipv6(&netns, "default");
    netns
}

/// Checks that pings come back, all of them once the first did: a link that was just made may need
/// a moment for itself.
fn assert_pings(netns: &Netns, address: &str) {
    wait_for("answer to a ping", PATIENCE, || {
        let mut ping = netns.command("ping");
        let output = ping.args(["-n", "-c", "1", "-W", "1", address]).output().expect("ping");
        output.status.success().then_some(())
    });
    let text = netns.run(&format!("ping -n -c 3 -i 0.2 -W 10 {address}"));
    assert!(text.contains(" 0% packet loss"), "{text}");
}

/// Bytes in which a wrong place shows.
fn text(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Sends bytes over TCP from one namespace to `address` in the other, which must get the same.
fn transfer(from: &Netns, to: &Netns, address: &str, bytes: &[u8]) {
    let address: SocketAddr = address.parse().expect("an address with a port");
    let listener = within(to.name(), || TcpListener::bind(address))
        .and_then(|made| made)
        .expect("a listening socket");
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
            let mut received = Vec::with_capacity(bytes.len());
            stream.read_to_end(&mut received).expect("all of it");
            received
        });
        let mut stream = within(from.name(), || TcpStream::connect_timeout(&address, PATIENCE))
            .and_then(|made| made)
            .expect("a connection");
        stream.set_write_timeout(Some(PATIENCE)).expect("a time limit");
        stream.write_all(bytes).expect("all of it");
        drop(stream);
        let received = receiver.join().expect("a receiver that ends");
        assert_eq!(received.len(), bytes.len());
        assert!(received == bytes, "other bytes");
    });
}

/// Wrong checksums that the namespace's kernel has met.
fn checksum_errors(netns: &Netns) -> String {
    let snmp = netns.run("cat /proc/net/snmp");
    let column = |table: &str, name: &str| {
        let mut lines = snmp.lines().filter(|line| line.starts_with(table));
        let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
        let at = names.split(' ').position(|word| word == name).expect("such a column");
        values.split(' ').nth(at).expect("a value").to_owned()
    };
    format!("tcp {} udp {}", column("Tcp:", "InCsumErrors"), column("Udp:", "InCsumErrors"))
}

/// Two kernels with a TAP port each talk in every way, both ways.
fn two_kernels_talk(mtu: u32, workers: u32) {
    let home = quiet();
    let mtu_line = format!("mtu = {mtu}");
    let settings = format!("[workers]\ncount = {workers}\n")
        + &tap("t1", &mtu_line)
        + &tap("t2", &mtu_line)
        + &tap("up", &format!("{mtu_line}\nuplink = true"));
    let mut switch = Switch::builder().netns(&home).settings(&settings).start();
    let (one, two) = (host(&home, "t1", 1), host(&home, "t2", 2));
    assert!(one.run("ip link show t1").contains(&format!(" mtu {mtu} ")));
    let queues = one.run("ls /sys/class/net/t1/queues");
    assert_eq!(queues.matches("tx-").count(), workers as usize, "a queue for each worker");
    assert_pings(&one, "10.9.0.2");
    assert_pings(&two, "10.9.0.1");
    assert_pings(&one, "fd00:9::2");
    // The largest packet that isn't fragmented.
    one.run(&format!("ping -n -c 1 -W 10 -M do -s {} 10.9.0.2", mtu - 28));
    let bytes = text(4 << 20);
    let all = "tx on tso on gso on";
    let none = "tx off tso off gso off";
    for (of_one, of_two) in [(all, all), (none, all), (all, none), ("tso off gso off", "tso off")] {
        one.run(&format!("ethtool -K t1 {of_one}"));
        two.run(&format!("ethtool -K t2 {of_two}"));
        let before = switch.statistics();
        transfer(&one, &two, "10.9.0.2:5001", &bytes);
        let after = switch.statistics();
        transfer(&two, &one, "[fd00:9::1]:5002", &bytes);
        let count = |counter| after.port("t1", counter) - before.port("t1", counter);
        let longest = u64::from(mtu) + 14;
        if of_one == all {
            let average = count("ingress_bytes") / count("ingress_frames");
            assert!(average > longest, "frames of {average} bytes: GSO doesn't cross whole");
        } else {
            assert!(count("ingress_bytes") <= longest * count("ingress_frames"));
        }
    }
    assert_eq!(checksum_errors(&one), "tcp 0 udp 0");
    assert_eq!(checksum_errors(&two), "tcp 0 udp 0");
    let statistics = switch.statistics_when(balanced);
    for port in ["t1", "t2"] {
        assert_eq!(statistics.port(port, "segments"), 0, "TAPs take what TAPs send");
    }
    switch.stop();
}

/// Real kernels say something at any time: the books balance between two frames.
fn balanced(statistics: &Statistics) -> bool {
    std::panic::catch_unwind(|| statistics.assert_balanced()).is_ok()
}

#[test]
fn two_kernels_talk_with_an_mtu_of_1500() {
    two_kernels_talk(1500, 1);
}

#[test]
fn two_kernels_talk_with_an_mtu_of_9000_over_two_workers() {
    two_kernels_talk(9000, 2);
}

/// A switch in a quiet namespace with a TAP port `t1`, and a packet socket on its device.
fn packet_socket(more: &str) -> (Netns, Switch, PacketSocket) {
    let home = quiet();
    let settings = tap("t1", more);
    let switch = Switch::builder().netns(&home).settings(&settings).port("a").start();
    let socket = within(home.name(), || PacketSocket::open("t1"))
        .and_then(|made| made)
        .expect("a packet socket");
    (home, switch, socket)
}

/// The next frame that arrives at the guest.
fn next(guest: &mut Guest) -> fakeguest::Received {
    guest.recv(0, PATIENCE).expect("a frame")
}

#[test]
fn frames_of_every_size_cross_between_guest_and_tap() {
    let (_home, mut switch, socket) = packet_socket("mtu = 65521\nuplink = true");
    let mut a = attach(&switch, "a");
    let sizes = [14, 15, 60, 64, 127, 128, 129, 1514, 9014, 65_535];
    for (seed, size) in (0..).zip(sizes) {
        let out = Frame::pattern([0xff; 6], mac(1), size, seed);
        send(&mut a, std::slice::from_ref(&out));
        let got = socket.recv(PATTERN, PATIENCE).expect("a frame at the host");
        assert!(got == out.bytes, "{size} bytes out: {} came", got.len());
        let back = Frame::pattern(mac(1), mac(9), size, seed + 100);
        socket.send(&back.bytes).expect("a frame sent");
        let got = next(&mut a);
        assert!(got.bytes == back.bytes, "{size} bytes in: {} came", got.bytes.len());
        assert_eq!(got.header[..10], [0; 10]);
    }
    // More than one burst either way, in order.
    let many: Vec<Frame> = (0..200).map(|seed| Frame::pattern(mac(9), mac(1), 100, seed)).collect();
    send(&mut a, &many);
    for frame in &many {
        assert!(socket.recv(PATTERN, PATIENCE).expect("a frame") == frame.bytes);
    }
    for frame in &many {
        let mut back = frame.bytes.clone();
        back[..12].copy_from_slice(&Frame::pattern(mac(1), mac(9), 14, 0).bytes[..12]);
        socket.send(&back).expect("a frame sent");
    }
    for frame in &many {
        assert!(next(&mut a).bytes[12..] == frame.bytes[12..]);
    }
    let statistics = switch.statistics();
    statistics.assert_balanced();
    assert_eq!(statistics.dropped(), 0);
    switch.stop();
}

#[test]
fn all_frames_that_wait_on_a_tap_are_taken_at_once() {
    let (_home, mut switch, socket) = packet_socket("mtu = 65521");
    let mut a = guest(&switch, "a").ring_size(1024).tx_slot(2048).attach().expect("a guest");
    // Several bursts, long to copy: what is left behind one of them comes with no event.
    let frames: Vec<Frame> =
        (0..48).map(|seed| Frame::pattern(mac(1), mac(9), 65_000, seed)).collect();
    for _ in 0..5 {
        switch.process().signal("STOP");
        for frame in &frames {
            socket.send(&frame.bytes).expect("a frame sent");
        }
        switch.process().signal("CONT");
        for (number, frame) in frames.iter().enumerate() {
            let received = a.recv(0, PATIENCE).unwrap_or_else(|| panic!("no frame {number}"));
            assert!(received.bytes == frame.bytes, "frame {number}: other bytes");
        }
    }
    let statistics = switch.statistics();
    statistics.assert_balanced();
    assert_eq!(statistics.dropped(), 0);
    switch.stop();
}

#[test]
fn frames_with_offloads_reach_the_host_as_they_are() {
    let (_home, mut switch, socket) = packet_socket("mtu = 9000");
    let mut a = attach(&switch, "a");
    let (v4, v6) = (Flow::v4(1, 2), Flow::v6(1, 2));
    let frames = [
        (v4.udp(&text(1000)).open_checksum(), [8, 0]),
        (v6.tcp(1, &text(1001)).open_checksum(), [0x86, 0xdd]),
        (v4.tcp(1, &text(64_000)).segmentable(1448), [8, 0]),
        (v6.tcp(1, &text(64_000)).segmentable(1428), [0x86, 0xdd]),
        (v4.udp(&text(20_000)).segmentable(1400), [8, 0]),
    ];
    for (frame, ether_type) in &frames {
        send(&mut a, std::slice::from_ref(frame));
        let got = socket.recv(*ether_type, PATIENCE).expect("a frame at the host");
        assert!(got == frame.bytes, "{} of {} bytes came", got.len(), frame.bytes.len());
    }
    let statistics = switch.statistics();
    statistics.assert_balanced();
    assert_eq!(statistics.port("t1", "egress_frames"), 5);
    assert_eq!(statistics.dropped(), 0);
    switch.stop();
}

/// A switch with a kernel at 10.9.0.9 behind `t1`, a guest with these features at 10.9.0.1 behind
/// `a` whose address that kernel knows, and an echo socket there at port 7.
fn echo(features: u64) -> (Switch, Netns, Guest, UdpSocket) {
    let home = quiet();
    let switch = Switch::builder().netns(&home).settings(&tap("t1", "")).port("a").start();
    let netns = Netns::new();
    home.run(&format!("ip link set t1 netns {}", netns.name()));
    without_ipv6(&netns, "t1");
    netns.run("ip link set t1 address 02:00:00:00:00:09 up");
    netns.run("ip addr add 10.9.0.9/24 dev t1");
    netns.run("ip neigh add 10.9.0.1 lladdr 02:00:00:00:00:01 dev t1 nud permanent");
    let socket = within(netns.name(), || UdpSocket::bind("10.9.0.9:7"))
        .and_then(|made| made)
        .expect("a UDP socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let a = guest(&switch, "a").features(features).attach().expect("a guest");
    (switch, netns, a, socket)
}

/// The flow to the echo socket.
fn to_echo() -> Flow {
    let ip = |last| std::net::IpAddr::from([10, 9, 0, last]);
    Flow { ips: (ip(1), ip(9)), ports: (4000, 7), ..Flow::v4(1, 9) }
}

#[test]
fn the_kernel_accepts_the_checksums_and_guests_can_check_its_own() {
    let all = feature::LINUX;
    let none = feature::LINUX & !feature::OFFLOADS;
    for features in [all, none] {
        let (mut switch, netns, mut a, socket) = echo(features);
        let mut frames = vec![to_echo().udp(&text(3)), to_echo().udp(&text(1000))];
        if features == all {
            frames.push(to_echo().udp(&text(77)).open_checksum());
            frames.push(to_echo().udp(&text(1400)).open_checksum());
        }
        for frame in &frames {
            send(&mut a, std::slice::from_ref(frame));
            let mut datagram = [0; 2000];
            let (len, from) = socket.recv_from(&mut datagram).expect("a datagram");
            assert_eq!(Some(&datagram[..len]), payload(&frame.bytes));
            socket.send_to(&datagram[..len], from).expect("an echo");
            let received = next(&mut a);
            let mut header = Header::from_bytes(&received.header);
            header.num_buffers = 0;
            if features == none {
                assert_eq!(header, Header::default());
                assert_eq!(checksum_error(&received.bytes), None);
            } else {
                assert_eq!(
                    (header.flags, header.csum_start, header.csum_offset),
                    (NEEDS_CSUM, 34, 6)
                );
            }
            assert_eq!(payload(&received.bytes), payload(&frame.bytes));
        }
        assert_eq!(checksum_errors(&netns), "tcp 0 udp 0");
        // It does look.
        let mut wrong = to_echo().udp(b"wrong");
        wrong.bytes[40] ^= 1;
        send(&mut a, &[wrong]);
        wait_for("checksum error", PATIENCE, || {
            (checksum_errors(&netns) == "tcp 0 udp 1").then_some(())
        });
        let statistics = switch.statistics();
        let completed = if features == none { frames.len() as u64 } else { 0 };
        assert_eq!(statistics.port("a", "checksummed_frames"), completed);
        assert_eq!(statistics.dropped(), 0);
        switch.stop();
    }
}

#[test]
fn the_kernel_cuts_what_a_guest_leaves_uncut() {
    let (switch, _netns, mut a, socket) = echo(feature::LINUX);
    let whole = text(7001);
    send(&mut a, &[to_echo().udp(&whole).segmentable(1400)]);
    let mut joined = Vec::new();
    for part in whole.chunks(1400) {
        let mut datagram = [0; 2000];
        let len = socket.recv(&mut datagram).expect("a datagram");
        assert_eq!(len, part.len());
        joined.extend_from_slice(&datagram[..len]);
    }
    assert!(joined == whole, "other bytes");
    switch.stop();
}

#[test]
fn an_uplink_is_made_a_port_of_its_bridge() {
    let home = quiet();
    home.run("ip link add br0 type bridge");
    home.run("ip addr add 10.9.0.254/24 dev br0");
    home.run("ip link set br0 up");
    let settings = tap("t1", "") + &tap("up", "uplink = true\nbridge = \"br0\"");
    let switch = Switch::builder().netns(&home).settings(&settings).start();
    assert!(home.run("ip link show up").contains(" master br0 "));
    let one = host(&home, "t1", 1);
    assert_pings(&one, "10.9.0.254");
    assert_pings(&home, "10.9.0.1");
    switch.stop();
    assert!(!home.run("ip link").contains("up:"), "the device went with the switch");
}

/// Looks and sleeps of the worker while nothing is to be done for some time. A worker that spins
/// looks tens of thousands of times.
fn assert_idle(switch: &mut Switch) {
    let awake = |statistics: Statistics| {
        let worker = &statistics.workers["0"];
        worker["looks"] + worker["sleeps"]
    };
    let before = awake(switch.statistics());
    std::thread::sleep(Duration::from_millis(300));
    let count = awake(switch.statistics()) - before;
    assert!(count < 200, "{count} looks and sleeps of a worker without work");
}

#[test]
fn a_tap_that_goes_down_is_counted_and_works_again_when_it_is_up() {
    let (home, mut switch, socket) = packet_socket("");
    let mut a = attach(&switch, "a");
    let frames: Vec<Frame> =
        (0..8).map(|seed| Frame::pattern([0xff; 6], mac(1), 60, seed)).collect();
    let mut dropped = 0;
    for pair in frames.chunks(2) {
        home.run("ip link set t1 down");
        send(&mut a, &pair[..1]);
        dropped += 1;
        assert_eq!(switch.statistics().port("t1", "drop_tap_down"), dropped);
        assert_idle(&mut switch);
        home.run("ip link set t1 up");
        send(&mut a, &pair[1..]);
        assert_eq!(socket.recv(PATTERN, PATIENCE), Some(pair[1].bytes.clone()));
        let back = Frame::pattern(mac(1), mac(9), 60, 9);
        // A packet socket reports once that its device went down.
        wait_for("packet socket", PATIENCE, || socket.send(&back.bytes).ok());
        assert_eq!(next(&mut a).bytes, back.bytes);
    }
    let statistics = switch.statistics();
    statistics.assert_balanced();
    assert_eq!(statistics.dropped(), dropped);
    switch.stop();
}

#[test]
fn a_tap_that_is_deleted_takes_nothing_with_it() {
    let home = quiet();
    let mut switch =
        Switch::builder().netns(&home).settings(&tap("t1", "")).port("a").port("b").start();
    let (mut a, mut b) = (attach(&switch, "a"), attach(&switch, "b"));
    let frames: Vec<Frame> =
        (0..3).map(|seed| Frame::pattern([0xff; 6], mac(1), 60, seed)).collect();
    send(&mut a, &frames[..1]);
    home.run("ip link del t1");
    send(&mut a, &frames[1..]);
    assert_eq!(arrived(&mut b).len(), 3);
    assert_idle(&mut switch);
    let statistics = switch.statistics();
    statistics.assert_balanced();
    assert_eq!(statistics.port("t1", "egress_frames"), 1);
    assert_eq!(statistics.port("t1", "drop_tap_down"), 2);
    switch.stop();
}

#[test]
fn a_device_that_was_there_before_stays() {
    let home = quiet();
    home.run("ip tuntap add t1 mode tap vnet_hdr");
    home.run("ip link set t1 mtu 2000");
    let switch = Switch::builder().netns(&home).settings(&tap("t1", "")).port("a").start();
    let socket = within(home.name(), || PacketSocket::open("t1"))
        .and_then(|made| made)
        .expect("a packet socket");
    let mut a = attach(&switch, "a");
    let frame = Frame::pattern([0xff; 6], mac(1), 2014, 1);
    send(&mut a, std::slice::from_ref(&frame));
    assert_eq!(socket.recv(PATTERN, PATIENCE), Some(frame.bytes));
    switch.stop();
    assert!(home.run("ip link show t1").contains(" mtu 2000 "));
}
