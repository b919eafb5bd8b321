//! DPDK's `dpdk-testpmd` with virtio-user ports: a guest's driver that nobody here wrote, in a
//! process, attached to vhost-user sockets of the switch.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::proc::Process;
use super::{unique, wait_for};

const PROMPT: &str = "testpmd> ";
const PATIENCE: Duration = Duration::from_secs(60);

/// One virtio-user port.
#[derive(Clone, Debug)]
pub struct Port<'a> {
    /// The vhost-user socket, on which the switch listens.
    pub socket: &'a Path,
    /// Its MAC address.
    pub mac: &'a str,
    /// More devargs, such as `mrg_rxbuf=0,queues=2`.
    pub devargs: &'a str,
}

/// The driver's own counters of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PortCounters {
    pub rx_packets: u64,
    pub rx_missed: u64,
    pub rx_bytes: u64,
    pub rx_errors: u64,
    pub rx_nombuf: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_bytes: u64,
}

/// A running testpmd with a console.
#[derive(Debug)]
pub struct Testpmd {
    process: Process,
    _dir: tempfile::TempDir,
}

impl Testpmd {
    /// Starts it with these ports, stopped, at its prompt. `arguments` are testpmd's own, such as
    /// `--forward-mode=txonly`.
    pub fn start(ports: &[Port], arguments: &[&str]) -> Testpmd {
        let dir = tempfile::tempdir().expect("a directory");
        // Line by line, or its answers would wait in a buffer while its prompt is here already.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "dpdk-testpmd"]);
        // One lcore for the console, one to forward; the scheduler places both.
        command.args(["--lcores", "0@(0-1),1@(0-1)", "--no-pci", "--no-telemetry"]);
        // Without huge pages DPDK keeps its memory in a memfd, which is what vhost-user needs.
        command.args(["--no-huge", "--no-shconf", "-m", "256", "--file-prefix", &unique("rs")]);
        for (number, port) in ports.iter().enumerate() {
            let comma = if port.devargs.is_empty() { "" } else { "," };
            let (socket, mac) = (port.socket.display(), port.mac);
            let devargs = port.devargs;
            command.arg(format!(
                "--vdev=net_virtio_user{number},path={socket},mac={mac}{comma}{devargs}"
            ));
        }
        command
            .args(["--", "-i", "--nb-cores=1", "--total-num-mbufs=16384", "--mask-event=all"])
            .args(arguments);
        let mut process = Process::start("testpmd", command, &dir.path().join("log"));
        let at_prompt =
            |text: &str| text.contains("Checking link statuses") && text.ends_with(PROMPT);
        process.output_when("a prompt", 0, PATIENCE, at_prompt);
        Testpmd { process, _dir: dir }
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Types a command at the prompt; returns what is printed up to the next prompt.
    pub fn ask(&mut self, line: &str) -> String {
        let from = self.process.output().len();
        self.process.type_line(line);
        // The line is echoed behind the last prompt, so the next one is at the end.
        let answered = |text: &str| text.contains('\n') && text.ends_with(PROMPT);
        self.process.output_when("a prompt", from, PATIENCE, answered)
    }

    /// Waits until the link of every one of `ports` ports is up.
    pub fn wait_links_up(&mut self, ports: usize) {
        wait_for("link on every testpmd port", PATIENCE, || {
            let up = (0..ports).all(|port| {
                self.ask(&format!("show port info {port}")).contains("Link status: up")
            });
            up.then_some(())
        });
    }

    /// The counters of a port.
    pub fn counters(&mut self, port: usize) -> PortCounters {
        let text = self.ask(&format!("show port stats {port}"));
        let counter = |name: &str| {
            // "  RX-packets: 64    RX-missed: 0    RX-bytes:  4096"
            let (_, rest) = text.split_once(name).unwrap_or_else(|| panic!("no {name} in {text}"));
            let word = rest.trim_start_matches([':', ' ']).split_whitespace().next();
            word.and_then(|word| word.parse().ok())
                .unwrap_or_else(|| panic!("no number after {name} in {text}"))
        };
        PortCounters {
            rx_packets: counter("RX-packets"),
            rx_missed: counter("RX-missed"),
            rx_bytes: counter("RX-bytes"),
            rx_errors: counter("RX-errors"),
            rx_nombuf: counter("RX-nombuf"),
            tx_packets: counter("TX-packets"),
            tx_errors: counter("TX-errors"),
            tx_bytes: counter("TX-bytes"),
        }
    }
}
