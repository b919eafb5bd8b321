//! Real guests and their host on one switch: addresses, offloads, files that go from one to the
//! other, and what their kernels thought of the frames.
//!
//! Guest `n` (from 0) is at port `vm<n>`, 10.0.0.<n+1> and fd00::<n+1>; the host, in a namespace
//! of its own behind the TAP uplink, at 10.0.0.254 and fd00::fe.

use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use super::netns::{Netns, must};
use super::proc::Process;
use super::qemu::QemuGuest;
use super::switch::{Statistics, Switch};
use super::wait_for;

/// Name of the TAP device, and of its port.
pub const UPLINK: &str = "rs0";
/// Name of the port that `--uplink` makes.
pub const UPLINK_PORT: &str = "uplink";

/// For commands that take a moment.
const SHORT: Duration = Duration::from_secs(60);
/// For a file under TCG on a busy machine, in seconds per MiB beyond [`SHORT`].
const SECONDS_PER_MIB: u64 = 2;

/// Emulated processors are slow enough without those of another test.
static MACHINES: Mutex<()> = Mutex::new(());

/// The right to run machines; tests that boot guests take turns.
pub fn machines() -> MutexGuard<'static, ()> {
    // A test that failed holding it leaves nothing half done: its guests ended before.
    MACHINES.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Someone with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Station {
    /// The guest of this number.
    Guest(usize),
    /// The host.
    Host,
}

impl Station {
    /// The last part of its addresses.
    fn number(self) -> usize {
        match self {
            Station::Guest(index) => index + 1,
            Station::Host => 254,
        }
    }

    /// Its IPv4 address.
    pub fn ip4(self) -> String {
        format!("10.0.0.{}", self.number())
    }

    /// Its IPv6 address.
    pub fn ip6(self) -> String {
        format!("fd00::{:x}", self.number())
    }

    /// The port of the switch that it is behind.
    pub fn port(self) -> String {
        match self {
            Station::Guest(index) => port_of(index),
            Station::Host => UPLINK_PORT.to_owned(),
        }
    }

    /// Its network device, as it calls it.
    fn device(self) -> &'static str {
        match self {
            Station::Guest(_) => "eth0",
            Station::Host => UPLINK,
        }
    }
}

fn port_of(index: usize) -> String {
    format!("vm{index}")
}

/// Boots guest `index` on the socket of its port, with more `options` of `qemu-scripts/guest`.
pub fn boot(index: usize, socket: &std::path::Path, options: &[&str]) -> QemuGuest {
    let station = Station::Guest(index);
    let (ip4, ip6) = (format!("{}/24", station.ip4()), format!("{}/64", station.ip6()));
    let mac = format!("52:54:00:00:00:{:02x}", station.number());
    let mut all = vec!["--ip", &ip4, "--ip6", &ip6, "--mac", &mac];
    all.extend(options);
    QemuGuest::boot(&port_of(index), socket, &all)
}

/// Guests, switch and host.
#[derive(Debug)]
pub struct Lan {
    guests: Vec<QemuGuest>,
    /// The switch.
    pub switch: Switch,
    /// What serves the host's files.
    server: Option<Process>,
    /// The host's namespace.
    pub host: Netns,
    /// The host's files.
    dir: tempfile::TempDir,
}

impl Lan {
    /// Starts a switch and boots one guest for each of `options`, which `qemu-scripts/guest` gets.
    pub fn new(options: &[&[&str]]) -> Lan {
        let host = Netns::new();
        let ports = (0..options.len()).map(port_of);
        let builder = Switch::builder().netns(&host).uplink(UPLINK).upgradable();
        let switch = ports.fold(builder, |builder, port| builder.port(&port)).start();
        set_up_host(&host);
        let sockets = (0..options.len()).map(|index| switch.socket(&port_of(index)));
        let guests = thread::scope(|scope| {
            let boots: Vec<_> = sockets
                .zip(options)
                .enumerate()
                .map(|(index, (socket, options))| {
                    scope.spawn(move || boot(index, &socket, options))
                })
                .collect();
            boots.into_iter().map(|boot| boot.join().expect("a guest that boots")).collect()
        });
        let dir = tempfile::tempdir().expect("a directory");
        Lan { guests, switch, server: None, host, dir }
    }

    /// A guest.
    pub fn guest(&mut self, index: usize) -> &mut QemuGuest {
        &mut self.guests[index]
    }

    /// Two guests, the first one first.
    pub fn pair(&mut self, first: usize, second: usize) -> [&mut QemuGuest; 2] {
        self.guests.get_disjoint_mut([first, second]).expect("two guests")
    }

    /// Kills the QEMU of a guest, as a crash would.
    pub fn kill(&mut self, index: usize) {
        self.guests[index].process().kill();
    }

    /// Boots a new guest in the place of one.
    pub fn replace(&mut self, index: usize, options: &[&str]) {
        self.guests[index] = boot(index, &self.switch.socket(&port_of(index)), options);
    }

    /// Runs a command line with busybox's shell and tools; returns what it prints. It must
    /// succeed.
    pub fn run(&mut self, at: Station, line: &str) -> String {
        self.run_for(at, line, SHORT)
    }

    /// The same, with another time limit.
    pub fn run_for(&mut self, at: Station, line: &str, limit: Duration) -> String {
        match at {
            Station::Guest(index) => self.guests[index].run(line, limit),
            Station::Host => {
                let seconds = limit.as_secs().to_string();
                let mut command = self.host.command("timeout");
                // In the foreground: a process group of its own could be stopped by a terminal.
                command.args(["--foreground", "-s", "KILL", &seconds]);
                must(command.args(["busybox", "sh", "-c", line]))
            }
        }
    }

    /// 20 echo requests with each version of IP, all of which must be answered.
    pub fn ping(&mut self, from: Station, to: Station) {
        for (program, address) in [("ping", to.ip4()), ("ping6", to.ip6())] {
            // One frame, and several fragments.
            for size in [56, 4000] {
                let line = format!("{program} -q -c 20 -i 0.02 -W 30 -s {size} {address}");
                let output = self.run(from, &line);
                assert!(output.contains("20 packets received, 0% packet loss"), "{output}");
            }
        }
    }

    /// Sets the MTU everywhere.
    pub fn set_mtu(&mut self, mtu: u32) {
        let guests = (0..self.guests.len()).map(Station::Guest);
        for station in guests.chain([Station::Host]) {
            let device = station.device();
            self.run(station, &format!("ip link set {device} mtu {mtu}"));
        }
    }

    /// Switches all offloads that the station can switch, and checks that they are so.
    pub fn set_offloads(&mut self, at: Station, on: bool) {
        let state = if on { "on" } else { "off" };
        let device = at.device();
        // A TAP device has no GRO in hardware.
        let more = if at == Station::Host { "" } else { "rx X gro X rx-gro-hw X" };
        let set = format!("tx X sg X tso X gso X gro X {more}").replace('X', state);
        self.ethtool(at, &format!("-K {device} {set}"));
        let now = self.ethtool(at, &format!("-k {device}"));
        for feature in ["tcp-segmentation-offload", "generic-receive-offload"] {
            let wanted = format!("{feature}: {state}");
            assert!(now.contains(&wanted), "{at:?}: not {wanted}:\n{now}");
        }
    }

    fn ethtool(&mut self, at: Station, options: &str) -> String {
        match at {
            Station::Guest(_) => self.run(at, &format!("ethtool {options}")),
            Station::Host => self.host.run(&format!("ethtool {options}")),
        }
    }

    /// Starts serving files at a station: makes the directory for them.
    pub fn serve_files(&mut self, at: Station) {
        let dir = self.files_at(at);
        match at {
            Station::Guest(_) => {
                let mount = format!("mkdir {dir}; mount -t tmpfs -o size=90% tmpfs {dir}");
                self.run(at, &format!("{mount}; httpd -p 80 -h {dir}"));
            }
            Station::Host => {
                let mut command = self.host.command("busybox");
                command.args(["httpd", "-f", "-p", "80", "-h", &dir]);
                let log = self.dir.path().join("httpd.log");
                self.server = Some(Process::start("httpd", command, &log));
            }
        }
    }

    fn files_at(&self, at: Station) -> String {
        match at {
            Station::Guest(_) => "/files".to_owned(),
            Station::Host => self.dir.path().display().to_string(),
        }
    }

    /// Makes a file of random bytes at a station that serves files; returns its SHA-256.
    pub fn make_file(&mut self, at: Station, name: &str, mib: u64) -> String {
        let limit = transfer_limit(mib);
        let path = format!("{}/{name}", self.files_at(at));
        let make = format!("dd if=/dev/urandom of={path} bs=1M count={mib} 2>/dev/null");
        digest(&self.run_for(at, &format!("{make} && sha256sum {path}"), limit))
    }

    /// Adds a file of this machine's to those that the host serves.
    pub fn add_file(&mut self, name: &str, path: &str) {
        std::fs::copy(path, self.dir.path().join(name)).expect("room for a copy");
    }

    /// Fetches a file from a station over TCP; returns its SHA-256 as it arrived.
    pub fn fetch(&mut self, to: Station, address: &str, name: &str, mib: u64) -> String {
        let line = format!("wget -q -O - http://{address}/{name} | sha256sum");
        digest(&self.run_for(to, &line, transfer_limit(mib)))
    }

    /// Starts a TCP stream that goes on until it is ended. One at a time from a station.
    pub fn start_stream(&mut self, from: Station, to: Station, connections: u32) {
        let address = to.ip4();
        let iperf3 = format!("iperf3 -c {address} -P {connections} -t 86400");
        self.run(from, &format!("{iperf3} >/run/stream 2>&1 & echo $! >/run/stream.pid"));
    }

    /// Asserts that a stream from a guest is alive and met no trouble.
    pub fn assert_streaming(&mut self, from: Station) {
        self.run(from, "kill -0 $(cat /run/stream.pid) || { cat /run/stream; false; }");
        self.run(from, "! grep -i error /run/stream");
    }

    /// Ends a stream, which must have been alive.
    pub fn end_stream(&mut self, from: Station) {
        self.assert_streaming(from);
        let gone = "while kill -0 $(cat /run/stream.pid) 2>/dev/null; do sleep 0.1; done";
        self.run(from, &format!("kill -INT $(cat /run/stream.pid); {gone}"));
    }

    /// Waits until a station has received `bytes` more than now.
    pub fn wait_received(&mut self, at: Station, bytes: u64) {
        let line = format!("cat /sys/class/net/{}/statistics/rx_bytes", at.device());
        let mut count =
            || -> u64 { self.run(at, &line).trim().parse().expect("a number of bytes") };
        let wanted = count() + bytes;
        wait_for(&format!("{bytes} more bytes at {at:?}"), SHORT, || {
            (count() >= wanted).then_some(())
        });
    }

    /// A server on the host for one stream: a client that vanishes leaves it of no more use.
    pub fn stream_server(&self) -> Process {
        let mut command = self.host.command("iperf3");
        command.args(["-s", "--forceflush"]);
        let mut server = Process::start("iperf3", command, &self.dir.path().join("iperf3.log"));
        server.output_with("listening", 0, SHORT);
        server
    }

    /// Ends the switch in order.
    pub fn stop(self) {
        self.switch.stop();
    }

    /// Asserts that no kernel met a wrong checksum or a frame that it did not understand.
    pub fn assert_no_bad_frames(&mut self, what: &str) {
        let guests = (0..self.guests.len()).map(Station::Guest);
        for station in guests.chain([Station::Host]) {
            let line = "cat /proc/net/snmp /proc/net/netstat /proc/net/snmp6";
            let faults = checksum_errors(&self.run(station, line));
            assert!(faults.len() >= 6, "counters are missing: {faults:?}");
            let bad: Vec<_> = faults.iter().filter(|(_, count)| *count > 0).collect();
            assert!(bad.is_empty(), "{what}: {station:?} counted {bad:?}");
            let device = station.device();
            // Frames whose virtio-net header it refuses count as rx_frame_errors.
            let line = format!("cat /sys/class/net/{device}/statistics/rx_*errors");
            let errors = self.run(station, &line);
            let zeros = errors.lines().all(|count| count == "0");
            assert!(zeros, "{what}: {station:?} counted receive errors: {errors:?}");
        }
    }

    /// Statistics in which every frame is accounted for.
    pub fn balanced_statistics(&mut self) -> Statistics {
        self.switch.statistics_when(|statistics| statistics.unaccounted() == 0)
    }
}

/// Gives the host its addresses on the uplink.
pub fn set_up_host(host: &Netns) {
    let (ip4, ip6) = (Station::Host.ip4(), Station::Host.ip6());
    host.run(&format!("ip addr add {ip4}/24 dev {UPLINK}"));
    host.run(&format!("ip -6 addr add {ip6}/64 dev {UPLINK} nodad"));
    host.run(&format!("ip link set {UPLINK} up"));
}

fn transfer_limit(mib: u64) -> Duration {
    SHORT + Duration::from_secs(mib * SECONDS_PER_MIB)
}

/// The digest in the output of `sha256sum`.
fn digest(output: &str) -> String {
    let digest = output.split_whitespace().next().unwrap_or_default();
    assert_eq!(digest.len(), 64, "no digest: {output:?}");
    digest.to_owned()
}

/// The counters of wrong checksums, by name, in the tables of `/proc/net/snmp` and its like.
fn checksum_errors(tables: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for line in tables.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        // snmp6 has a name and its value on each line, the others a line of each.
        let pairs: Vec<(&str, &str)> = match words.as_slice() {
            &[name, value] if !name.ends_with(':') => vec![(name, value)],
            [group, values @ ..] if names.first() == Some(group) => {
                names.iter().skip(1).copied().zip(values.iter().copied()).collect()
            }
            _ => {
                names = words;
                continue;
            }
        };
        for (name, value) in pairs.into_iter().filter(|(name, _)| name.contains("InCsumErrors")) {
            let group = names.first().filter(|_| words.len() > 2).copied().unwrap_or_default();
            found.push((format!("{group}{name}"), value.parse().expect("a count")));
        }
    }
    found
}

#[test]
fn checksum_errors_are_found_in_both_kinds_of_tables() {
    let tables = "Tcp: InSegs InCsumErrors\nTcp: 5 2\nUdp: InCsumErrors MemErrors\nUdp: 3 4\n\
                  Udp6InDatagrams 7\nUdp6InCsumErrors\t1\n";
    let named = |name: &str, count| (name.to_owned(), count);
    let expected =
        [named("Tcp:InCsumErrors", 2), named("Udp:InCsumErrors", 3), named("Udp6InCsumErrors", 1)];
    assert_eq!(checksum_errors(tables), expected);
}
