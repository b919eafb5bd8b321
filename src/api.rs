//! What the API says: the types of `/v1`, which its server writes and its clients read.
//!
//! They are the specification, too: `docs/openapi.yaml` is made of them.

pub mod config;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The process that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Process {
    /// `ringswitch`.
    pub program: String,
    /// Its version.
    pub version: String,
    /// Its process number.
    pub pid: u32,
    /// For how long it has been the switch, seconds.
    pub uptime_seconds: u64,
}

/// A port of the switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// Its name in the configuration.
    pub name: String,
    /// What is attached there.
    pub kind: PortKind,
    /// The vhost-user socket, or the TAP device.
    pub place: String,
    /// Whether it leads to the rest of the network.
    pub uplink: bool,
    /// Whether frames can leave there: a guest's driver is up; of a TAP always.
    pub up: bool,
    /// Queue pairs that the guest receives on now, or queues of the TAP.
    pub queues: u32,
    /// Addresses that were learned there.
    pub addresses: u32,
    /// Counters by name (`docs/statistics.md`), since the process began.
    pub counters: BTreeMap<String, u64>,
    /// Frames dropped by reason (`docs/statistics.md`), since the process began. Reasons that never
    /// came up are left out.
    pub drops: BTreeMap<String, u64>,
    /// The queues by which frames leave there: those in use, and those that have counted something.
    #[serde(default)]
    pub egress_queues: Vec<Queue>,
}

/// A queue by which frames leave at a port: a guest's receive ring, or a queue of a TAP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Queue {
    /// Its number: that of the guest's queue pair, or of the TAP's queue.
    pub queue: u32,
    /// Frames that were delivered to it, since the process began.
    pub frames: u64,
    /// Frames that it didn't take, by reason, since the process began. Reasons that never came up are
    /// left out.
    pub drops: BTreeMap<String, u64>,
    /// A guest's ring, while it runs.
    pub ring: Option<ReceiveRing>,
}

impl Queue {
    /// All drops.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.values().sum()
    }
}

/// A receive ring that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReceiveRing {
    /// How it lies in the guest's memory.
    pub format: RingFormat,
    /// How many entries it has.
    pub entries: u32,
    /// Entries with buffers that the last burst left: 0 if the guest was too slow. Of a packed ring
    /// no more than those that were looked at in advance are known: 64 stands for 64 or more. None
    /// before the first burst.
    pub buffers: Option<u32>,
}

impl ReceiveRing {
    /// How many entries have buffers, in a few characters.
    #[must_use]
    pub fn free(&self) -> String {
        match (self.buffers, self.format) {
            (None, _) => "-".to_owned(),
            (Some(buffers @ 64..), RingFormat::Packed) => format!("{buffers}+"),
            (Some(buffers), _) => buffers.to_string(),
        }
    }
}

/// The formats of a virtqueue (virtio 1.2, sections 2.7 and 2.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RingFormat {
    /// Descriptors, available and used ring.
    Split,
    /// One ring.
    Packed,
}

impl std::fmt::Display for RingFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Split => "split",
            Self::Packed => "packed",
        })
    }
}

impl Port {
    /// A counter; 0 if there is none of that name.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or_default()
    }

    /// All drops.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.values().sum()
    }
}

/// The kinds of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PortKind {
    /// A guest's NIC.
    VhostUser,
    /// A TAP device of the host.
    Tap,
}

impl std::fmt::Display for PortKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::VhostUser => "vhost-user",
            Self::Tap => "tap",
        })
    }
}

/// A thread that moves frames.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Worker {
    /// Its number.
    pub worker: u32,
    /// Seconds in which it moved frames, since the process began.
    pub busy_seconds: f64,
    /// Counters by name (`docs/statistics.md`), since the process began.
    pub counters: BTreeMap<String, u64>,
    /// How long its frames were in the switch, since the process began.
    #[serde(default)]
    pub latency: Latency,
}

/// How long frames were in the switch: from when the worker began to read the burst that they are of,
/// to when that was delivered and its buffers were given back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Latency {
    /// The times of all frames, summed.
    pub sum_seconds: f64,
    /// How many frames took how long, the shortest first. Buckets without frames are left out; their
    /// limits are always the same.
    pub buckets: Vec<LatencyBucket>,
}

/// Frames that took longer than one limit, and no longer than another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LatencyBucket {
    /// The lower limit, ns.
    pub from_ns: u64,
    /// The upper limit, ns; none of the last bucket.
    pub upto_ns: Option<u64>,
    /// How many there were.
    pub frames: u64,
}

/// A station's address, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Mac {
    /// As in `52:54:00:12:34:56`.
    pub address: String,
    /// The port's name.
    pub port: String,
    /// When a frame of it was last seen, seconds ago; none if an operator gave it to the port.
    pub age_seconds: Option<u32>,
}

/// Where an address is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Station {
    /// The port's name.
    pub port: String,
}

/// What was forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Flushed {
    /// How many addresses.
    pub forgotten: u32,
}

/// What went from one port to another, since the process began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Flow {
    /// The port that it came from, by name.
    pub from: String,
    /// The port that it left by, by name.
    pub to: String,
    /// Frames that were delivered.
    pub frames: u64,
    /// Their bytes, as their senders sent them.
    pub bytes: u64,
    /// Frames that were to leave by the second port and were dropped there.
    pub dropped: u64,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogLevel {
    /// The least severe level that is logged.
    pub level: Level,
}

/// The levels of the log, the most severe first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Something doesn't work.
    Error,
    /// Somebody should look after something.
    Warn,
    /// What happens, as it should.
    Info,
    /// What helps to find a fault.
    Debug,
    /// Everything.
    Trace,
}

impl From<log::Level> for Level {
    fn from(level: log::Level) -> Self {
        match level {
            log::Level::Error => Self::Error,
            log::Level::Warn => Self::Warn,
            log::Level::Info => Self::Info,
            log::Level::Debug => Self::Debug,
            log::Level::Trace => Self::Trace,
        }
    }
}

impl From<Level> for log::Level {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::Error,
            Level::Warn => Self::Warn,
            Level::Info => Self::Info,
            Level::Debug => Self::Debug,
            Level::Trace => Self::Trace,
        }
    }
}

/// A frame whose way is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceRequest {
    /// The port that it would come from, by name.
    pub port: String,
    /// Its bytes in hex digits, from the destination address on.
    pub frame: String,
    /// Its virtio-net header; all zero unless said.
    #[serde(default)]
    pub header: TraceHeader,
}

/// What counts in a virtio-net header (virtio 1.2, 5.1.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TraceHeader {
    /// 1: the checksum is still to be computed.
    pub flags: u8,
    /// 0 for none; 1 and 4: TCP over IPv4 and IPv6; 5: UDP.
    pub gso_type: u8,
    /// Bytes of payload in each segment.
    pub gso_size: u16,
    /// Where the checksummed bytes start.
    pub csum_start: u16,
    /// Where the checksum is, from there.
    pub csum_offset: u16,
}

/// The way that a frame would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Trace {
    /// What is decided about it, in order.
    pub steps: Vec<TraceStep>,
    /// The ports that it would leave by, and what would become of it there.
    pub exits: Vec<TraceExit>,
    /// The reason for which it would go nowhere (`docs/statistics.md`).
    pub dropped: Option<String>,
    /// All that in a sentence.
    pub verdict: String,
}

/// A step on a frame's way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceStep {
    /// Which one.
    pub step: TraceStage,
    /// The port where it is taken, by name, if it is one.
    pub port: Option<String>,
    /// What was looked at.
    pub saw: String,
    /// What was decided.
    pub decision: String,
}

/// The steps on a frame's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TraceStage {
    /// A worker takes it from its port.
    Ingress,
    /// Its virtio-net header is checked.
    Sanitise,
    /// The address of its sender is learned.
    Learn,
    /// The port of its destination is looked up.
    LookUp,
    /// Whether its port may reach that of its destination.
    Rules,
    /// It goes to all ports that are up and may be reached.
    Flood,
    /// It leaves by a port, by one of its queues.
    Egress,
    /// It is converted for a receiver that doesn't take its offloads.
    Offload,
    /// Room for it is looked for.
    Room,
    /// A mirror copies it.
    Mirror,
}

impl std::fmt::Display for TraceStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Ingress => "ingress",
            Self::Sanitise => "sanitise",
            Self::Learn => "learn",
            Self::LookUp => "look-up",
            Self::Rules => "rules",
            Self::Flood => "flood",
            Self::Egress => "egress",
            Self::Offload => "offload",
            Self::Room => "room",
            Self::Mirror => "mirror",
        })
    }
}

/// A port that a frame would leave by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceExit {
    /// Its name.
    pub port: String,
    /// How many frames its receiver would get of it.
    pub frames: u32,
    /// The reason for which it would be dropped there.
    pub dropped: Option<String>,
}

/// A line of a live trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TraceLine {
    /// A frame, at one of the ports that it was to leave by, or one that went nowhere.
    Frame(TracedFrame),
    /// So many were left out so far, because a trace is a sample.
    LeftOut(u64),
}

/// What became of a frame, and when. Times are those of its burst, which a worker reads, decides about
/// and delivers as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TracedFrame {
    /// When a worker had read it, nanoseconds since 1970.
    pub time_ns: u64,
    /// The port that it came from, by name.
    pub from: String,
    /// The port that it was to leave by, if there was one.
    pub to: Option<String>,
    /// Its bytes.
    pub length: u32,
    /// The sender's MAC address.
    pub source: String,
    /// The receiver's MAC address.
    pub destination: String,
    /// Protocol, IP addresses and ports.
    pub summary: String,
    /// When it was decided where it goes, nanoseconds after `time_ns`.
    pub decided_ns: u64,
    /// When it was in the receiver's ring, or dropped; nanoseconds after `time_ns`.
    pub left_ns: u64,
    /// The reason for which it was dropped, if it was.
    pub dropped: Option<String>,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What is wrong, and what to do.
    pub error: String,
}
