//! Between whom frames go.

use ringswitch::api::{Port, PortKind};

/// Between whom frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Two guests of this host: the frames never leave it.
    Guests,
    /// One side is the uplink.
    Uplink,
    /// One side is a TAP device that isn't the uplink.
    Tap,
}

impl Way {
    /// Between the ports of these names.
    pub fn between(ports: &[Port], from: &str, to: &str) -> Self {
        let sides = || ports.iter().filter(|port| port.name == from || port.name == to);
        if sides().any(|port| port.uplink) {
            Self::Uplink
        } else if sides().any(|port| port.kind == PortKind::Tap) {
            Self::Tap
        } else {
            Self::Guests
        }
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Guests => "guests",
            Self::Uplink => "uplink",
            Self::Tap => "tap",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_uplink_goes_before_other_taps() {
        let port = |name: &str, kind, uplink| Port {
            name: name.to_owned(),
            kind,
            place: String::new(),
            uplink,
            up: true,
            queues: 1,
            addresses: 0,
            counters: BTreeMap::new(),
            drops: BTreeMap::new(),
            egress_queues: Vec::new(),
        };
        let ports = [
            port("a", PortKind::VhostUser, false),
            port("b", PortKind::VhostUser, false),
            port("tap", PortKind::Tap, false),
            port("up", PortKind::Tap, true),
        ];
        for (from, to, way) in [
            ("a", "b", Way::Guests),
            ("a", "tap", Way::Tap),
            ("up", "a", Way::Uplink),
            ("tap", "up", Way::Uplink),
        ] {
            assert_eq!(Way::between(&ports, from, to), way, "{from} {to}");
        }
    }
}
