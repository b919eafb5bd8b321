//! The command line, and what the guests and their frames are by it.

use std::io;
use std::path::PathBuf;

use fakeguest::frames::{Flow, HEADER_LEN};
use fakeguest::{Frame, Guest, Layout, Role, features};

/// Ethernet, IPv4 and TCP headers without options.
const HEADERS: usize = 54;
/// What a page holds of a frame's payload.
const PAGE: usize = 4096;
/// Entries of the rings of a guest that does nothing.
const IDLE_RING: u16 = 64;

/// What to play.
pub struct Options {
    /// Of the two guests, and of those that only listen.
    pub sockets: Vec<PathBuf>,
    role: Role,
    /// Entries of each ring.
    pub ring: u16,
    /// Bytes of a receive buffer.
    pub rx_buffer: usize,
    /// The longest frame, bytes.
    pub max_frame: usize,
    mtu: usize,
    /// Queue pairs of each guest.
    pub pairs: usize,
    /// Stations behind each guest.
    pub addresses: u32,
    huge_pages: bool,
    mergeable: bool,
    in_order: bool,
    packed: bool,
}

impl Options {
    /// Understands the words of a command line.
    pub fn parse(mut words: impl Iterator<Item = String>) -> crate::Result<Options> {
        let mut options = Options {
            sockets: Vec::new(),
            role: Role::Connect,
            ring: 1024,
            rx_buffer: 2048 + HEADER_LEN,
            max_frame: 9014,
            mtu: 9000,
            pairs: 1,
            addresses: 1,
            huge_pages: false,
            mergeable: true,
            in_order: false,
            packed: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--listen" => options.role = Role::Listen,
                "--ring" => options.ring = value()?.parse()?,
                "--rx-buffer" => options.rx_buffer = value()?.parse()?,
                "--max-frame" => options.max_frame = value()?.parse()?,
                "--mtu" => options.mtu = value()?.parse()?,
                "--pairs" => options.pairs = value()?.parse()?,
                "--addresses" => options.addresses = value()?.parse()?,
                "--huge-pages" => options.huge_pages = true,
                "--no-mergeable" => options.mergeable = false,
                "--in-order" => options.in_order = true,
                "--packed" => options.packed = true,
                _ if word.starts_with('-') => return Err(format!("{word} is unknown").into()),
                _ => options.sockets.push(PathBuf::from(word)),
            }
        }
        if options.sockets.len() < 2 {
            return Err("two sockets are needed at least".into());
        }
        if options.pairs == 0 || options.addresses == 0 {
            return Err("a guest has one queue pair and one address at least".into());
        }
        Ok(options)
    }

    /// A guest that sends and receives.
    pub fn attach(&self, socket: &PathBuf) -> io::Result<Guest> {
        let (mut with, mut without) = (0, 0);
        if self.in_order {
            with |= features::IN_ORDER;
        }
        if self.packed {
            with |= features::RING_PACKED;
        }
        if !self.mergeable {
            without |= features::MRG_RXBUF;
        }
        Guest::builder(socket)
            .role(self.role)
            .queue_pairs(self.pairs)
            .ring_size(self.ring)
            .with(with)
            .without(without)
            .rx_buffer(self.rx_buffer)
            .tx_slot(self.layout(self.max_frame, true).footprint(self.max_frame + HEADER_LEN))
            .huge_pages(self.huge_pages)
            .attach()
    }

    /// A guest that is there and does nothing.
    pub fn attach_idle(&self, socket: &PathBuf) -> io::Result<Guest> {
        let guest = Guest::builder(socket).role(self.role).ring_size(IDLE_RING);
        guest.rx_buffer(self.rx_buffer).tx_slot(2048).attach()
    }

    /// As Linux sends: in one descriptor what is short, else the headers and then page by page.
    pub fn layout(&self, size: usize, indirect: bool) -> Layout {
        if size <= PAGE {
            return Layout::whole();
        }
        let mut splits = vec![PAGE; size.div_ceil(PAGE)];
        splits[0] = HEADER_LEN + HEADERS;
        let layout = Layout::split(&splits);
        if indirect { layout.in_indirect_table() } else { layout }
    }

    /// A TCP segment of `size` bytes from one guest to the other; above the MTU one that is still
    /// to be cut. Each pair carries one connection, whose answers are sent on the same pair.
    pub fn frame(&self, from: u8, to: u8, pair: usize, size: usize) -> Frame {
        let mut flow = Flow::v4(from, to);
        flow.ports = (1000 + pair as u16, 2000 + pair as u16);
        if from > to {
            flow.ports = (flow.ports.1, flow.ports.0);
        }
        let frame = flow.tcp(1, &vec![0x5a; size - HEADERS]);
        if size > self.mtu + 14 { frame.segmentable((self.mtu - 40) as u16) } else { frame }
    }

    /// Destination and source of the frames from one guest to the other, in turn: each source once,
    /// in no order, so that neither look-up of a frame is helped by the one before it. None when
    /// there is nothing to vary.
    pub fn stations(&self, from: u8, to: u8) -> Option<Vec<[[u8; 6]; 2]>> {
        // Primes above any number of addresses.
        const STRIDES: [u64; 2] = [16_777_259, 33_554_467];
        let count = u64::from(self.addresses);
        let station = |guest: u8, index: u64| {
            let [_, a, b, c] = (index as u32).to_be_bytes();
            [2, 0, guest, a, b, c]
        };
        let pair = |step: u64| {
            let [to_index, from_index] = STRIDES.map(|stride| step * stride % count);
            [station(to, to_index), station(from, from_index)]
        };
        (count > 1).then(|| (0..count).map(pair).collect())
    }
}
