//! The last stage: a learning bridge's decision (IEEE 802.1Q, 8.6 to 8.8).

use crate::frame::{BURST, DropReason, Frame, PortId, Verdict};
use crate::table::mac::{Address, Learned, MacTable};
use crate::wire::ethernet::{self, MacAddr};

/// 01-80-C2-00-00-01 to -0F: frames that never cross a bridge (802.1Q, table 8-1), such as pause
/// frames. 01-80-C2-00-00-00 passes, as through any bridge without spanning tree, so that the
/// bridges around see their loops.
const RESERVED: std::ops::RangeInclusive<u64> = 0x0180_c200_0001..=0x0180_c200_000f;

/// Learns where the frames came from and decides where they go: to the port of the destination,
/// to all ports when it is unknown or a group, never back. Returns whether some go to all ports.
///
/// `now` is in seconds of the table's clock.
#[inline]
pub fn forward(frames: &mut [Frame], macs: &MacTable, ingress: PortId, now: u32) -> bool {
    // Between two stations there is nothing to wait for: this costs two frames' addresses.
    let mixed = frames.first().map(Frame::addresses) != frames.last().map(Frame::addresses);
    let asked = if mixed { Some(ask(frames, macs)) } else { None };
    // Frames of a burst mostly have the same addresses: learned once, looked up once.
    let (mut last, mut verdict) = (None, Verdict::Flood);
    let mut floods = false;
    for (index, frame) in frames.iter_mut().enumerate() {
        if frame.verdict != Verdict::Flood {
            continue;
        }
        let addresses = frame.addresses();
        if addresses.is_none() || addresses != last {
            last = addresses;
            let known = asked.as_ref().and_then(|asked| asked.get(index).copied());
            let ends = known.unwrap_or_else(|| Ends::of(frame, macs));
            verdict = ends.decide(frame, macs, ingress, now);
            floods |= verdict == Verdict::Flood;
        }
        frame.verdict = verdict;
    }
    floods
}

/// Where the table has the two ends of a frame.
#[derive(Clone, Copy, Default)]
struct Ends {
    source: Address,
    destination: Address,
}

/// Starts loading what the table knows of a burst's addresses, so that the misses of a large table
/// are waited for together and not one after another.
#[inline]
fn ask(frames: &[Frame], macs: &MacTable) -> [Ends; BURST] {
    let mut asked = [Ends::default(); BURST];
    for (frame, asked) in frames.iter().zip(&mut asked) {
        *asked = Ends::of(frame, macs);
        macs.prefetch(asked.source);
        macs.prefetch(asked.destination);
    }
    asked
}

impl Ends {
    #[inline(always)]
    fn of(frame: &Frame, macs: &MacTable) -> Self {
        let address = |mac: Option<MacAddr>| macs.address(mac.unwrap_or_default().to_u64());
        Self {
            source: address(ethernet::src(frame.head())),
            destination: address(ethernet::dst(frame.head())),
        }
    }

    #[inline]
    fn decide(self, frame: &Frame, macs: &MacTable, ingress: PortId, now: u32) -> Verdict {
        let Some(destination) = frame.addresses().and_then(|_| ethernet::dst(frame.head())) else {
            return Verdict::Drop(DropReason::BadLength);
        };
        macs.learn_at(self.source, ingress.0, now);
        way(destination, ingress, || macs.lookup_at(self.destination, now))
    }
}

/// Where a frame goes; `look_up` tells the port of its destination, if that is a station.
#[inline]
fn way(destination: MacAddr, ingress: PortId, look_up: impl FnOnce() -> Option<u16>) -> Verdict {
    if destination.is_multicast() {
        if RESERVED.contains(&destination.to_u64()) {
            return Verdict::Drop(DropReason::ReservedAddress);
        }
        return Verdict::Flood;
    }
    match look_up() {
        Some(port) if port == ingress.0 => Verdict::Drop(DropReason::NoDestination),
        Some(port) => Verdict::To(PortId(port)),
        None => Verdict::Flood,
    }
}

/// What [`forward`] would do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// What it would learn of the source.
    pub learned: Learned,
    /// The port of the destination, if that is a station that is known.
    pub found: Option<PortId>,
    /// What it would decide.
    pub verdict: Verdict,
}

/// What [`forward`] would do with a frame from `source` to `destination`, without doing it: nothing is
/// learned. The other arguments are those of `forward`.
pub fn foresee(
    (source, destination): (MacAddr, MacAddr),
    macs: &MacTable,
    ingress: PortId,
    now: u32,
) -> Outlook {
    let learned = macs.would_learn(source.to_u64(), ingress.0, now);
    let here = matches!(learned, Learned::New | Learned::Refreshed | Learned::Moved { .. });
    let found = match source == destination && here {
        // It is learned before it is looked up.
        true => Some(ingress.0),
        false => macs.lookup(destination.to_u64(), now),
    };
    Outlook { learned, found: found.map(PortId), verdict: way(destination, ingress, || found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::mac::MacTableConfig;

    const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

    fn macs() -> MacTable {
        MacTable::new(&MacTableConfig { capacity: 64, ageing_secs: 300, seed: 1 }, 4)
    }

    fn frame(destination: [u8; 6], source: [u8; 6]) -> Frame {
        let mut bytes = [0; 60];
        bytes[..6].copy_from_slice(&destination);
        bytes[6..12].copy_from_slice(&source);
        let mut frame = Frame::default();
        frame.set_whole(&bytes);
        frame.verdict = Verdict::Flood;
        frame
    }

    fn verdict(macs: &MacTable, port: u16, destination: [u8; 6], source: [u8; 6]) -> Verdict {
        let mut frames = [frame(destination, source)];
        forward(&mut frames, macs, PortId(port), 10);
        frames[0].verdict
    }

    #[test]
    fn learns_and_answers_to_the_learned_port_and_follows_moves() {
        let macs = macs();
        assert_eq!(verdict(&macs, 0, B, A), Verdict::Flood, "unknown");
        assert_eq!(verdict(&macs, 1, A, B), Verdict::To(PortId(0)));
        assert_eq!(verdict(&macs, 0, B, A), Verdict::To(PortId(1)));
        assert_eq!(verdict(&macs, 2, A, B), Verdict::To(PortId(0)), "B moved to port 2");
        assert_eq!(verdict(&macs, 0, B, A), Verdict::To(PortId(2)));
    }

    #[test]
    fn never_sends_back_and_floods_groups_but_the_reserved() {
        let macs = macs();
        verdict(&macs, 0, B, A);
        let back = Verdict::Drop(DropReason::NoDestination);
        assert_eq!(verdict(&macs, 0, A, B), back, "A is behind the same port");
        assert_eq!(verdict(&macs, 1, [0xff; 6], B), Verdict::Flood);
        assert_eq!(verdict(&macs, 1, [1, 0, 0x5e, 0, 0, 1], B), Verdict::Flood);
        let group = |last| [1, 0x80, 0xc2, 0, 0, last];
        let reserved = Verdict::Drop(DropReason::ReservedAddress);
        assert_eq!(verdict(&macs, 1, group(1), B), reserved, "pause");
        assert_eq!(verdict(&macs, 1, group(0xf), B), reserved);
        assert_eq!(verdict(&macs, 1, group(0), B), Verdict::Flood, "spanning tree passes");
        assert_eq!(verdict(&macs, 1, group(0x10), B), Verdict::Flood);
    }

    #[test]
    fn what_is_foreseen_is_what_happens_and_foreseeing_changes_nothing() {
        let macs = macs();
        macs.set_port_limit(3, 1);
        let group = [1, 0, 0x5e, 0, 0, 1];
        let pause = [1, 0x80, 0xc2, 0, 0, 1];
        let c = [2, 0, 0, 0, 0, 0xc];
        for (port, destination, source, learned) in [
            (0, B, A, Learned::New),
            (0, B, A, Learned::Refreshed),
            (1, A, B, Learned::New),
            (0, B, A, Learned::Refreshed),
            (2, A, A, Learned::Moved { from: 0 }),
            (2, c, c, Learned::New),
            (1, group, B, Learned::Refreshed),
            (1, pause, B, Learned::Refreshed),
            (3, A, B, Learned::Moved { from: 1 }),
            (3, A, c, Learned::LimitReached),
            (3, c, c, Learned::LimitReached),
            (0, A, group, Learned::Ignored),
        ] {
            let before = (macs.len(), [A, B, c].map(|mac| macs.lookup(MacAddr(mac).to_u64(), 10)));
            let ends = (MacAddr(source), MacAddr(destination));
            let seen = foresee(ends, &macs, PortId(port), 10);
            let after = (macs.len(), [A, B, c].map(|mac| macs.lookup(MacAddr(mac).to_u64(), 10)));
            assert_eq!(before, after);
            assert_eq!(seen.learned, learned, "{ends:?} at {port}");
            assert_eq!(seen.verdict, verdict(&macs, port, destination, source), "{ends:?} {port}");
        }
    }

    #[test]
    fn frames_that_are_dropped_already_teach_nothing() {
        let macs = macs();
        let dropped = Verdict::Drop(DropReason::BadVnetHeader);
        let mut frames = [frame(B, A)];
        frames[0].verdict = dropped;
        forward(&mut frames, &macs, PortId(0), 10);
        assert_eq!((frames[0].verdict, macs.len()), (dropped, 0));
    }
}
