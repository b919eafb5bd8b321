//! The books of the switch: every frame that came in is accounted for.

use super::switch::Statistics;

/// Drops that are counted where the frame came in; all others are counted where it would have
/// gone out.
const INGRESS_DROPS: [&str; 5] = [
    "drop_bad_chain",
    "drop_bad_length",
    "drop_bad_vnet_header",
    "drop_no_destination",
    "drop_reserved_address",
];

impl Statistics {
    /// Frames from `port` that ended there.
    pub fn ingress_drops(&self, port: &str) -> u64 {
        self.drops(port, true)
    }

    /// Frames for `port` that it didn't take.
    pub fn egress_drops(&self, port: &str) -> u64 {
        self.drops(port, false)
    }

    fn drops(&self, port: &str, ingress: bool) -> u64 {
        let named = self.ports[port].iter().filter(|(name, _)| {
            name.starts_with("drop_") && INGRESS_DROPS.contains(&name.as_str()) == ingress
        });
        named.map(|(_, count)| count).sum()
    }

    /// How many frames more were to go out than did or were dropped there, by the identities of
    /// `src/port/counters.rs`; 0 when the switch is quiet.
    pub fn unaccounted(&self) -> i64 {
        let of_port = |port: &String| {
            let stays = self.port(port, "flooded_frames") + self.ingress_drops(port);
            let sent_on = self.port(port, "ingress_frames") + self.port(port, "flooded_copies");
            let ended = self.port(port, "egress_frames") + self.egress_drops(port);
            sent_on as i64 - (stays + ended) as i64
        };
        self.ports.keys().map(of_port).sum()
    }

    /// Panics unless the frames that were sent on are the frames that were delivered or dropped
    /// at their egress, one by one. True whenever no frame is on its way.
    pub fn assert_balanced(&self) {
        for port in self.ports.keys() {
            let stays = self.port(port, "flooded_frames") + self.ingress_drops(port);
            let ingress = self.port(port, "ingress_frames");
            assert!(ingress >= stays, "{port}: {stays} of {ingress} frames: {self:?}");
        }
        assert_eq!(self.unaccounted(), 0, "frames sent on, delivered or dropped: {self:?}");
    }
}

#[test]
fn books_that_miss_a_frame_are_noticed() {
    let port = |pairs: &[(&str, u64)]| pairs.iter().map(|(k, v)| (k.to_string(), *v)).collect();
    let mut statistics = Statistics::default();
    statistics.ports.insert(
        "a".into(),
        port(&[
            ("ingress_frames", 10),
            ("flooded_frames", 2),
            ("flooded_copies", 4),
            ("drop_bad_chain", 1),
        ]),
    );
    let b = port(&[("egress_frames", 8), ("drop_rx_ring_full", 3)]);
    statistics.ports.insert("b".into(), b);
    statistics.assert_balanced();
    let more = statistics.ports.get_mut("b").unwrap();
    more.insert("drop_rx_ring_full".into(), 4);
    assert!(std::panic::catch_unwind(|| statistics.assert_balanced()).is_err());
}
