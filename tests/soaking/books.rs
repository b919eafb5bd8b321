//! Every frame is accounted for: what guests sent and received against what the switch counted.

use std::collections::BTreeMap;

use super::support::switch::Statistics;

/// What a port's guests saw since the last look, by the rings in their own memory.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Transmit buffers that came back.
    pub used: u64,
    /// Those of them that held no frame at all.
    pub bad_chains: u64,
    /// Those with a frame that was too short or too long.
    pub bad_lengths: u64,
    /// Those with a header that lied.
    pub bad_headers: u64,
    /// Frames received, and their bytes.
    pub received: u64,
    pub received_bytes: u64,
    /// Announcements that were asked for. The switch makes one of several that wait.
    pub announced: u64,
    /// A guest wrote over its rings or took its memory away: only the switch knows.
    pub unknown: bool,
}

/// A way from a guest that sends to one other guest only.
#[derive(Clone, Debug)]
pub struct Route {
    pub from: String,
    pub to: String,
    /// Frames sent, and frames that never came.
    pub sent: u64,
    pub lost: u64,
    /// The switch knows all the time where the receiver is.
    pub known: bool,
}

/// All tallies of an epoch.
#[derive(Clone, Debug, Default)]
pub struct Books {
    pub ports: BTreeMap<String, Tally>,
    pub routes: Vec<Route>,
    /// Frames that the kernel took by each TAP port.
    pub taps: Vec<(&'static str, u64)>,
}

impl Books {
    /// What doesn't agree with the switch, whose counters were `before` and are `now`.
    pub fn error(&self, before: &Statistics, now: &Statistics) -> Option<String> {
        let unaccounted = now.unaccounted();
        if unaccounted != 0 {
            return Some(format!("{unaccounted} frames are neither delivered nor dropped"));
        }
        let grown = |port: &str, counter: &str| grown(before, now, port, counter);
        for (port, tally) in self.ports.iter().filter(|(_, tally)| !tally.unknown) {
            let announced = grown(port, "ingress_frames").wrapping_sub(tally.used);
            if announced > tally.announced {
                return Some(format!("{port}: ingress_frames: {announced} more than {tally:?}"));
            }
            let converted = grown(port, "segmented_frames") > 0;
            let same = [
                ("drop_bad_chain", tally.bad_chains),
                ("drop_bad_length", tally.bad_lengths),
                ("drop_bad_vnet_header", tally.bad_headers),
                ("copied_bytes", tally.received_bytes),
                // A frame that was cut up counts once.
                ("egress_frames", tally.received),
            ];
            let same = &same[..if converted { 4 } else { 5 }];
            for (counter, seen) in same {
                let counted = grown(port, counter);
                if counted != *seen {
                    return Some(format!("{port}: {counter} is {counted}, but {tally:?}"));
                }
            }
        }
        for (port, taken) in &self.taps {
            let segments = grown(port, "segments") - grown(port, "segmented_frames");
            let counted = grown(port, "egress_frames") + segments;
            // Of a frame that was cut up and dropped, some segments may have been taken.
            let partly = segments > 0 && drops(before, now, port) > 0;
            if counted != *taken && !partly {
                return Some(format!("{port}: {counted} frames, but the kernel has {taken}"));
            }
        }
        self.routes.iter().find_map(|route| route.error(before, now))
    }
}

impl Route {
    /// All that was sent to the receiver, alone or with all others, was delivered or dropped there.
    fn error(&self, before: &Statistics, now: &Statistics) -> Option<String> {
        let grown = |port: &str, counter: &str| grown(before, now, port, counter);
        let elsewhere = grown(&self.from, "flooded_frames") + now.ingress_drops(&self.from)
            - before.ports.get(&self.from).map_or(0, |_| before.ingress_drops(&self.from));
        if self.known && elsewhere != 0 {
            return Some(format!("{elsewhere} frames of {} didn't go to {}", self.from, self.to));
        }
        let others = now.ports.keys().filter(|port| **port != self.to);
        let flooded: u64 = others.map(|port| grown(port, "flooded_frames")).sum();
        let drops = drops(before, now, &self.to);
        let (due, ended) =
            (self.sent - elsewhere + flooded, grown(&self.to, "egress_frames") + drops);
        if due != ended {
            return Some(format!("{due} frames were due at {}, but {ended} were counted", self.to));
        }
        // Flooded frames may be among the drops, too.
        (self.lost > drops).then(|| format!("{self:?}, but {drops} drops"))
    }
}

/// Frames that were dropped where they were to leave.
fn drops(before: &Statistics, now: &Statistics, port: &str) -> u64 {
    now.egress_drops(port) - before.ports.get(port).map_or(0, |_| before.egress_drops(port))
}

fn grown(before: &Statistics, now: &Statistics, port: &str, counter: &str) -> u64 {
    let old = before.ports.get(port).and_then(|counters| counters.get(counter)).unwrap_or(&0);
    now.port(port, counter) - old
}
