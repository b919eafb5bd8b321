//! How a guest is set up: its settings, and the order of messages of the VMM it plays.
//!
//! The order of QEMU 7.2 is here, mistakes included: it enables rings before it has accepted any
//! feature, and sends the memory once per queue pair. Cloud Hypervisor's is in
//! [`crate::cloud_hypervisor`].

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::features::{self, protocol};
use crate::guest::{Guest, QueuePair};
use crate::layout::Layout;
use crate::memory::Memory;
use crate::packed::PackedRing;
use crate::protocol::{Acks, Connection, VRING_LOG, VringAddr};
use crate::queue::{RxQueue, TxQueue, slots_footprint};
use crate::ring::Ring;
use crate::split::INDIRECT_MAX;

/// How long to wait for the backend to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Device status (virtio 1.2, section 2.1): ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK.
const STATUS_RUNNING: u64 = 0xf;

/// Which end of the socket the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It connects; the backend listens.
    Connect,
    /// It listens; the backend connects.
    Listen,
}

/// Whose order of messages to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupOrder {
    /// QEMU 7.2's.
    Qemu,
    /// Cloud Hypervisor's.
    CloudHypervisor,
}

/// The settings of a guest.
#[derive(Clone, Debug)]
pub struct Builder {
    pub(crate) path: PathBuf,
    pub(crate) role: Role,
    pub(crate) order: SetupOrder,
    queue_pairs: usize,
    ring_size: u16,
    features: u64,
    protocol_features: u64,
    rx_buffer: Option<usize>,
    rx_layout: Layout,
    tx_slot: u64,
    automatic: bool,
    regions: Option<Vec<(u64, u64)>>,
    huge_pages: bool,
    mtu: Option<u64>,
}

impl Builder {
    pub(crate) fn new(path: &Path) -> Builder {
        Builder {
            path: path.to_owned(),
            role: Role::Connect,
            order: SetupOrder::Qemu,
            queue_pairs: 1,
            ring_size: 256,
            features: features::LINUX,
            protocol_features: protocol::ALL,
            rx_buffer: None,
            rx_layout: Layout::whole(),
            tx_slot: 65536 + 64 * (INDIRECT_MAX as u64 + 1),
            automatic: true,
            regions: None,
            huge_pages: false,
            mtu: None,
        }
    }

    /// Connect (the default) or listen.
    pub fn role(self, role: Role) -> Builder {
        Builder { role, ..self }
    }

    /// Whose order of messages to follow; QEMU's by default.
    pub fn order(self, order: SetupOrder) -> Builder {
        Builder { order, ..self }
    }

    /// Number of queue pairs; 1 by default.
    pub fn queue_pairs(self, queue_pairs: usize) -> Builder {
        Builder { queue_pairs, ..self }
    }

    /// Entries of each ring, a power of two unless rings are packed; 256 by default.
    pub fn ring_size(self, ring_size: u16) -> Builder {
        Builder { ring_size, ..self }
    }

    /// Which features to accept if they are offered; [`features::LINUX`] by default.
    pub fn features(self, features: u64) -> Builder {
        Builder { features, ..self }
    }

    /// Accepts these as well.
    pub fn with(self, features: u64) -> Builder {
        Builder { features: self.features | features, ..self }
    }

    /// Accepts these not.
    pub fn without(self, features: u64) -> Builder {
        Builder { features: self.features & !features, ..self }
    }

    /// Which protocol features to accept if they are offered; all by default.
    pub fn protocol_features(self, protocol_features: u64) -> Builder {
        Builder { protocol_features, ..self }
    }

    /// Size in bytes of a receive buffer, virtio-net header included. By default 4096 with
    /// mergeable buffers, 65550 without.
    pub fn rx_buffer(self, bytes: usize) -> Builder {
        Builder { rx_buffer: Some(bytes), ..self }
    }

    /// How receive buffers are cut into descriptors.
    pub fn rx_layout(self, rx_layout: Layout) -> Builder {
        Builder { rx_layout, ..self }
    }

    /// Memory for one frame to send, gaps between its pieces included; 68 KiB by default.
    pub fn tx_slot(self, bytes: u64) -> Builder {
        Builder { tx_slot: bytes, ..self }
    }

    /// Receive buffers are posted by the test, not by themselves.
    pub fn manual_posting(self) -> Builder {
        Builder { automatic: false, ..self }
    }

    /// `(guest_addr, size)` of each memory region, which must hold rings and buffers. By default
    /// two of fitting size, with a hole up to 4 GiB between them, as a PC has.
    pub fn regions(self, regions: &[(u64, u64)]) -> Builder {
        Builder { regions: Some(regions.to_vec()), ..self }
    }

    /// Takes the memory from the host's huge pages of 2 MiB; such regions are multiples of that.
    pub fn huge_pages(self, huge_pages: bool) -> Builder {
        Builder { huge_pages, ..self }
    }

    /// Tells the backend this MTU.
    pub fn mtu(self, mtu: u64) -> Builder {
        Builder { mtu: Some(mtu), ..self }
    }

    /// Makes the guest, connects it to its backend and brings its device up.
    pub fn attach(self) -> io::Result<Guest> {
        let listener = match self.role {
            Role::Connect => None,
            Role::Listen => Some(UnixListener::bind(&self.path)?),
        };
        let regions = self.regions.clone().unwrap_or_else(|| self.default_regions());
        let memory = if self.huge_pages { Memory::huge(&regions) } else { Memory::new(&regions) }?;
        let mut queues = Vec::with_capacity(self.queue_pairs);
        for _ in 0..self.queue_pairs {
            let ring = || Ring::new(&memory, self.ring_size, self.features);
            let (size, layout) = (self.rx_buffer_size(), self.rx_layout.clone());
            queues.push(QueuePair {
                rx: RxQueue::new(ring()?, size, layout, self.automatic),
                tx: TxQueue::new(ring()?, self.tx_slot),
            });
        }
        let connection = self.connect(listener.as_ref())?;
        let mut guest = Guest::assemble(self, connection, listener, memory, queues);
        match guest.settings.order {
            SetupOrder::Qemu => guest.bring_up_as_qemu()?,
            SetupOrder::CloudHypervisor => guest.create_and_activate()?,
        }
        guest.first_post();
        Ok(guest)
    }

    /// Which of the features on offer to accept.
    pub(crate) fn accepts(&self, offered: u64) -> u64 {
        offered & self.features
    }

    /// Which of the protocol features on offer to accept, of those that the VMM knows.
    pub(crate) fn accepts_protocol(&self, offered: u64, known: u64) -> u64 {
        offered & known & self.protocol_features
    }

    pub(crate) fn posts_automatically(&self) -> bool {
        self.automatic
    }

    fn rx_buffer_size(&self) -> usize {
        let mergeable = self.features & features::MRG_RXBUF != 0;
        self.rx_buffer.unwrap_or(if mergeable { 4096 } else { 65550 })
    }

    fn default_regions(&self) -> Vec<(u64, u64)> {
        let size = self.ring_size;
        let ring = u64::from(size) * (INDIRECT_MAX as u64 * 16 + 26) + 4096;
        let rx = slots_footprint(size, self.rx_layout.footprint(self.rx_buffer_size()));
        let tx = slots_footprint(size, self.tx_slot);
        let need = (self.queue_pairs as u64 * (2 * ring + rx + tx)).next_multiple_of(4 << 20);
        // What doesn't fit in the first one goes to the second; unused memory costs nothing.
        vec![(0, need / 2 + (2 << 20)), (4 << 30, need + (2 << 20))]
    }

    /// Connects, waiting for the backend to appear.
    pub(crate) fn connect(&self, listener: Option<&UnixListener>) -> io::Result<Connection> {
        let stream = match listener {
            Some(listener) => {
                if !crate::wait::readable(listener, CONNECT_TIMEOUT) {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                listener.accept()?.0
            }
            None => connect_patiently(&self.path)?,
        };
        let acks = match self.order {
            SetupOrder::Qemu => Acks::Some,
            SetupOrder::CloudHypervisor => Acks::All,
        };
        Connection::new(stream, acks)
    }
}

fn connect_patiently(path: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        match UnixStream::connect(path) {
            Err(error)
                if Instant::now() < deadline
                    && matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    ) =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

impl Guest {
    /// Negotiates and starts all rings over a fresh connection.
    pub(crate) fn bring_up_as_qemu(&mut self) -> io::Result<()> {
        for pair in 0..self.queues.len() {
            self.negotiate(pair == 0)?;
            for ring in [2 * pair, 2 * pair + 1] {
                let signals = self.ring(ring).signals();
                let (call, err) = (signals.call.as_raw_fd(), signals.err.as_raw_fd());
                self.connection.set_vring_call(ring as u32, Some(call))?;
                self.connection.set_vring_err(ring as u32, Some(err))?;
            }
        }
        if self.has_protocol_features() {
            self.enable_rings(1)?; // before SET_FEATURES: this is how it is
        }
        for pair in 0..self.queues.len() {
            self.connection.set_features(self.features)?;
            self.send_memory()?;
            self.start_rings([2 * pair, 2 * pair + 1])?;
        }
        if self.has_protocol_features() {
            self.enable_rings(self.queues.len())?;
        }
        if self.protocol_features & protocol::STATUS != 0 {
            let status = self.connection.get_status()?;
            self.connection.set_status(status | STATUS_RUNNING)?;
        }
        self.sync()
    }

    /// Everything up to the choice of features. `first`: what is sent once per device.
    fn negotiate(&mut self, first: bool) -> io::Result<()> {
        self.offered = self.connection.get_features()?;
        self.set_format(self.settings.accepts(self.offered));
        if self.has_protocol_features() {
            let offered = self.connection.get_protocol_features()?;
            self.protocol_features = self.settings.accepts_protocol(offered, protocol::ALL);
            self.connection.set_protocol_features(self.protocol_features)?;
            if first {
                // QEMU takes what it gets for queue pairs.
                self.check_queue_num(self.queues.len())?;
            }
            if self.protocol_features & protocol::CONFIGURE_MEM_SLOTS != 0 {
                self.connection.get_max_mem_slots()?;
            }
        }
        if first {
            self.connection.set_owner()?;
            self.connection.get_features()?;
        }
        if let (Some(mtu), true) =
            (self.settings.mtu, self.protocol_features & protocol::NET_MTU != 0)
        {
            self.connection.net_set_mtu(mtu)?;
        }
        Ok(())
    }

    /// Asks how many queues there are, of which `need` are needed.
    pub(crate) fn check_queue_num(&self, need: usize) -> io::Result<()> {
        if self.protocol_features & protocol::MQ == 0 {
            return Ok(());
        }
        match self.connection.get_queue_num()? {
            count if count >= need as u64 => Ok(()),
            count => Err(io::Error::other(format!("{count} queues offered, {need} needed"))),
        }
    }

    fn send_memory(&self) -> io::Result<()> {
        if self.protocol_features & protocol::CONFIGURE_MEM_SLOTS == 0 {
            return self.connection.set_mem_table(self.memory.regions(), self.memory.file());
        }
        let mut regions = self.memory.regions().iter();
        regions.try_for_each(|region| self.connection.add_mem_reg(region, self.memory.file()))
    }

    /// Size, base, addresses and descriptors of these rings.
    fn start_rings(&self, rings: impl IntoIterator<Item = usize>) -> io::Result<()> {
        let connection = &self.connection;
        for index in rings {
            let (ring, at) = (self.ring(index), index as u32);
            let signals = ring.signals();
            connection.set_vring_num(at, ring.size().into())?;
            let base = match ring {
                Ring::Split(ring) => ring.used_index().into(),
                Ring::Packed(_) => self.stopped_at[index].unwrap_or(PackedRing::START),
            };
            connection.set_vring_base(at, base)?;
            connection.set_vring_addr(at, vring_addr(&self.memory, ring, false))?;
            connection.set_vring_kick(at, Some(signals.kick.as_raw_fd()))?;
            connection.set_vring_call(at, Some(signals.call.as_raw_fd()))?;
        }
        Ok(())
    }

    /// Starts stopped rings again where the device left them, memory as it was: QEMU's `cont`.
    pub fn resume(&self) -> io::Result<()> {
        self.start_rings(0..2 * self.queues.len())
    }

    /// Enables the rings of the first `pairs` pairs and disables the others: what `ethtool -L`
    /// in a guest comes to.
    pub fn enable_rings(&self, pairs: usize) -> io::Result<()> {
        (0..2 * self.queues.len())
            .try_for_each(|ring| self.connection.set_vring_enable(ring as u32, ring / 2 < pairs))
    }

    /// Decides anew which protocol features are in use. Returns when the backend knows.
    pub fn change_protocol_features(&mut self, features: u64) -> io::Result<()> {
        self.connection.set_protocol_features(features)?;
        self.protocol_features = features;
        self.sync()
    }

    /// Returns when the backend has dealt with everything sent so far: a round trip, for messages
    /// that nobody acknowledges.
    pub fn sync(&self) -> io::Result<()> {
        self.connection.get_features().map(drop)
    }

    /// The same, unless every message has an acknowledgement anyway.
    pub(crate) fn acknowledged(&self) -> io::Result<()> {
        match self.settings.order {
            SetupOrder::Qemu => self.sync(),
            SetupOrder::CloudHypervisor => Ok(()),
        }
    }

    pub(crate) fn has_protocol_features(&self) -> bool {
        self.features & features::PROTOCOL_FEATURES != 0
    }
}

/// The body of SET_VRING_ADDR for a ring.
pub(crate) fn vring_addr(memory: &Memory, ring: &Ring, log: bool) -> VringAddr {
    let addresses = ring.addresses();
    VringAddr {
        flags: if log { VRING_LOG } else { 0 },
        desc: memory.user_addr(addresses.desc),
        used: memory.user_addr(addresses.used),
        avail: memory.user_addr(addresses.avail),
        log: addresses.used,
    }
}
