//! The guests of one port: how one is made, what it holds, how its rings are read.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::path::Path;
use std::time::{Duration, Instant};

use fakeguest::features::{self, protocol};
use fakeguest::memory::{DirtyBits, Region};
use fakeguest::{Builder, Guest, Layout, Memory, SetupOrder};

use super::actor::PATIENCE;
use super::books::Tally;
use super::dice::Dice;
use super::words::{Checker, Flow};

/// What is in a transmit buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A frame.
    Frame,
    /// A chain that breaks the rules.
    BadChain,
    /// Too little or too much.
    BadLength,
    /// A frame with a header that lies.
    BadHeader,
}

/// The sending side of a pair.
pub struct Sender {
    pub flow: Flow,
    /// What the switch has or will have of it, oldest first: it gives back in this order.
    pub posted: VecDeque<Kind>,
}

/// A guest, or what is left of it.
pub struct Life {
    pub guest: Guest,
    pub senders: Vec<Sender>,
    pub checker: Checker,
    /// Pairs that are enabled.
    pub enabled: usize,
    pub log: Option<DirtyBits>,
    /// Frames were received since logging began.
    pub logged: bool,
    /// It takes no frames out of its rings.
    pub hoards: bool,
    /// It is in the middle of a message, and says no more.
    pub mute: bool,
    /// It writes over its own rings.
    pub wild: bool,
    /// Memory besides that of the rings.
    pub spare: Vec<(Region, std::sync::Arc<Memory>)>,
    /// The most words of a frame.
    pub words: usize,
    /// The order of its messages.
    pub order: SetupOrder,
    /// Memory for what is no frame.
    pub scratch: u64,
}

impl Life {
    /// Attaches a guest of a kind that the dice choose.
    pub fn begin(socket: &Path, station: u8, number: u32, dice: &mut Dice) -> Life {
        let wild = dice.percent(6);
        let order = dice.pick(&[SetupOrder::Qemu, SetupOrder::Qemu, SetupOrder::CloudHypervisor]);
        let pairs = dice.pick(&[1, 1, 1, 2, 2, 4]);
        let slot = dice.pick(&[2048, 2048, 10_000, 20_000]);
        let mut builder = kind(Guest::builder(socket), pairs, slot, dice).order(order);
        if order == SetupOrder::CloudHypervisor {
            // It has each message acknowledged.
            builder = builder.protocol_features(protocol::ALL);
        }
        if wild {
            builder = builder.manual_posting();
        }
        let guest = builder.attach().unwrap_or_else(|error| panic!("guest {station}: {error}"));
        let sender =
            |queue| Sender { flow: Flow::new(station, number, queue), posted: VecDeque::new() };
        Life {
            senders: (0..pairs).map(sender).collect(),
            checker: Checker::default(),
            enabled: pairs,
            log: None,
            logged: false,
            hoards: false,
            mute: false,
            wild,
            spare: Vec::new(),
            words: (slot as usize - 300) / 8,
            order,
            scratch: guest.memory().alloc(4096, 64),
            guest,
        }
    }

    /// What kind of guest it is.
    pub fn describe(&self) -> String {
        format!(
            "{} pairs of {}, features {:#x}, {:?}{}{}",
            self.senders.len(),
            self.guest.ring(0).size(),
            self.guest.features(),
            self.order,
            if self.is_packed() { ", packed" } else { "" },
            if self.wild { ", wild" } else { "" },
        )
    }

    /// Whether a feature was negotiated.
    pub fn has(&self, feature: u64) -> bool {
        self.guest.features() & feature == feature
    }

    /// Whether a protocol feature was negotiated.
    pub fn speaks(&self, feature: u64) -> bool {
        self.has(features::PROTOCOL_FEATURES) && self.guest.protocol_features() & feature != 0
    }

    /// Whether its rings are packed.
    pub fn is_packed(&self) -> bool {
        self.has(features::RING_PACKED)
    }

    /// Takes back what the switch has used, and checks what has come.
    pub fn settle(&mut self, station: u8, tally: &mut Tally) {
        if self.wild {
            return;
        }
        for (queue, sender) in self.senders.iter_mut().enumerate() {
            for _ in 0..self.guest.queue(queue).tx.reclaim() {
                tally.used += 1;
                match sender.posted.pop_front().expect("a buffer that was posted") {
                    Kind::Frame => {}
                    Kind::BadChain => tally.bad_chains += 1,
                    Kind::BadLength => tally.bad_lengths += 1,
                    Kind::BadHeader => tally.bad_headers += 1,
                }
            }
        }
        if !self.hoards {
            self.take_frames(station, tally);
        }
    }

    /// Waits until the switch has taken what was sent; tells whether it did.
    pub fn flush(&mut self, station: u8, tally: &mut Tally) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.settle(station, tally);
            let queues = 0..self.senders.len();
            // Without an enabled ring none is looked at.
            if self.enabled == 0
                || queues.map(|q| self.guest.ring(2 * q + 1).in_flight()).sum::<u16>() == 0
            {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// From now on receive buffers may come back empty: what a killed switch had begun in a packed
    /// ring.
    pub fn accept_empty(&mut self) {
        (0..self.senders.len()).for_each(|queue| self.guest.queue(queue).rx.accept_empty());
    }

    /// Checks what has come, hoarded or not.
    pub fn take_frames(&mut self, station: u8, tally: &mut Tally) {
        if self.wild {
            return;
        }
        let features = self.guest.features();
        for queue in 0..self.senders.len() {
            while let Some(received) = self.guest.queue(queue).rx.recv() {
                tally.received += 1;
                tally.received_bytes += received.bytes.len() as u64;
                self.logged = true;
                if let Err(error) = self.checker.check(queue, &received, features) {
                    panic!("guest {station}, queue {queue}, {features:#x}: {error}");
                }
            }
        }
    }

    /// Closes the connection without a word. The memory is kept, to see what the switch did last.
    pub fn die(self) -> Life {
        // Fails if the switch has closed it already.
        let _ = self.guest.connection().stream().shutdown(Shutdown::Both);
        self
    }

    /// After a connection that knows of memory and rings only what [`Guest`] does.
    pub fn forget_extras(&mut self) {
        self.spare.clear();
        (self.log, self.mute, self.enabled) = (None, false, self.senders.len());
    }
}

/// What a guest can do, and how its rings and buffers are.
fn kind(builder: Builder, pairs: usize, slot: u64, dice: &mut Dice) -> Builder {
    let packed = dice.percent(40);
    let mut accepts = if dice.percent(15) { features::MINIMAL } else { features::LINUX };
    if dice.percent(40) {
        accepts &= !(dice.next() & features::OFFLOADS);
    }
    for (chance, feature) in
        [(30, features::EVENT_IDX), (40, features::MRG_RXBUF), (20, features::INDIRECT_DESC)]
    {
        if dice.percent(chance) {
            accepts &= !feature;
        }
    }
    if dice.percent(50) {
        accepts |= features::IN_ORDER;
    }
    if packed {
        accepts |= features::RING_PACKED;
    }
    if pairs == 1 && dice.percent(10) {
        accepts &= !features::PROTOCOL_FEATURES;
    }
    let mut messages = protocol::ALL;
    if dice.percent(20) {
        messages &= !protocol::CONFIGURE_MEM_SLOTS;
    }
    if dice.percent(20) {
        messages &= !protocol::REPLY_ACK;
    }
    let size = match (packed, slot > 10_000) {
        (_, true) => 64,
        (true, _) => dice.pick(&[16, 63, 100, 256]),
        (false, _) => dice.pick(&[16, 64, 128, 256]),
    };
    let buffer = match accepts & features::MRG_RXBUF {
        0 => dice.pick(&[13, 600, 1530, 1530, 9200]),
        _ => dice.pick(&[64, 512, 1526, 4096, 4096]),
    };
    let layout = dice.pick(&[Layout::whole(), Layout::whole(), Layout::split(&[12, 300])]);
    let indirect = accepts & features::INDIRECT_DESC != 0 && dice.percent(20);
    let layout = if indirect { layout.in_indirect_table() } else { layout };
    builder
        .features(accepts)
        .protocol_features(messages)
        .queue_pairs(pairs)
        .ring_size(size)
        .tx_slot(slot)
        .rx_buffer(buffer)
        .rx_layout(layout)
}
