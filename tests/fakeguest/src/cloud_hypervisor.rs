//! What Cloud Hypervisor's vhost-user-net device says, message by message.
//!
//! Its messages are those of its sources of August 2026, for a backend without DEVICE_STATE and
//! INFLIGHT_SHMFD. From SET_PROTOCOL_FEATURES on, each message without a reply of its own asks for
//! an acknowledgement and waits for it.
//!
//! | event | messages |
//! |---|---|
//! | the device is made | SET_OWNER, GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM |
//! | the driver is ready (*activate*) | SET_FEATURES, SET_MEM_TABLE; NUM of all rings; ADDR, BASE, CALL, KICK of each; ENABLE of all |
//! | pause, resume | ENABLE of all: 0, 1 |
//! | the driver resets the device | ENABLE 0 and GET_VRING_BASE of each ring |
//! | the backend was away | SET_OWNER, GET_FEATURES, SET_PROTOCOL_FEATURES, *activate*; kicks for what waits, with IN_ORDER |
//! | migration begins | SET_LOG_BASE, SET_FEATURES with LOG_ALL, ADDR of each ring |
//! | each pass, and twice more after the pause | SET_LOG_BASE with a new file |
//! | migration fails | ENABLE 1 of all, ADDR of each ring, SET_FEATURES without LOG_ALL |
//! | the guest arrives (*restore*) | SET_OWNER, GET_FEATURES, SET_PROTOCOL_FEATURES, *activate*; ENABLE 1 of all |
//!
//! The base is the available index, but when the backend was away and the driver accepted IN_ORDER:
//! then it is the used index.

use std::io;
use std::os::fd::AsRawFd;

use crate::features::{IN_ORDER, protocol};
use crate::guest::Guest;
use crate::ring::Ring;
use crate::setup::vring_addr;

/// The protocol features that it knows of those that the fake guest can speak.
const PROTOCOL: u64 =
    protocol::MQ | protocol::REPLY_ACK | protocol::LOG_SHMFD | protocol::CONFIGURE_MEM_SLOTS;

/// Where a backend is told to go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Base {
    Available,
    Used,
}

impl Guest {
    pub(crate) fn create_and_activate(&mut self) -> io::Result<()> {
        self.connection.set_owner()?;
        self.offered = self.connection.get_features()?;
        self.set_format(self.settings.accepts(self.offered));
        if self.has_protocol_features() {
            let offered = self.connection.get_protocol_features()?;
            self.protocol_features = self.settings.accepts_protocol(offered, PROTOCOL);
            self.connection.set_protocol_features(self.protocol_features)?;
            // It takes what it gets for rings.
            self.check_queue_num(2 * self.queues.len())?;
        }
        self.activate(Base::Available)
    }

    /// The backend was away.
    pub(crate) fn reinitialise(&mut self) -> io::Result<()> {
        self.negotiate_as_before()?;
        if self.features & IN_ORDER == 0 {
            return self.activate(Base::Available);
        }
        self.activate(Base::Used)?;
        for ring in (0..2 * self.queues.len()).map(|index| self.ring(index)) {
            if ring.used_index() != ring.avail_index() {
                ring.kick_now();
            }
        }
        Ok(())
    }

    /// The guest came from another host.
    pub(crate) fn restore(&mut self) -> io::Result<()> {
        self.negotiate_as_before()?;
        self.activate(Base::Available)?;
        self.unpause()
    }

    /// Cloud Hypervisor's pause: all rings are disabled, and nothing else.
    pub fn pause(&self) -> io::Result<()> {
        self.enable_rings(0)
    }

    /// The end of [`Guest::pause`].
    pub fn unpause(&self) -> io::Result<()> {
        self.enable_rings(self.queues.len())
    }

    /// Stops the rings as Cloud Hypervisor does when the driver resets its device; returns their
    /// bases.
    pub fn reset_rings(&self) -> io::Result<Vec<u32>> {
        let stop = |ring| {
            self.connection.set_vring_enable(ring, false)?;
            self.connection.get_vring_base(ring)
        };
        (0..2 * self.queues.len() as u32).map(stop).collect()
    }

    /// The driver is ready after [`Guest::reset_rings`].
    pub fn activate_again(&self) -> io::Result<()> {
        self.activate(Base::Available)
    }

    fn negotiate_as_before(&mut self) -> io::Result<()> {
        self.connection.set_owner()?;
        self.connection.get_features()?;
        match self.has_protocol_features() {
            true => self.connection.set_protocol_features(self.protocol_features),
            false => Ok(()),
        }
    }

    fn activate(&self, from: Base) -> io::Result<()> {
        let connection = &self.connection;
        let rings = || (0..2 * self.queues.len()).map(|index| (index as u32, self.ring(index)));
        connection.set_features(self.features)?;
        connection.set_mem_table(self.memory.regions(), self.memory.file())?;
        for (index, ring) in rings() {
            connection.set_vring_num(index, ring.size().into())?;
        }
        for (index, ring) in rings() {
            connection.set_vring_addr(index, vring_addr(&self.memory, ring, false))?;
            let base = match ring {
                Ring::Split(ring) if from == Base::Available => ring.avail_index().into(),
                // It has no packed rings. If it had, this would be the only base that works.
                ring => ring.base(),
            };
            connection.set_vring_base(index, base)?;
            connection.set_vring_call(index, Some(ring.signals().call.as_raw_fd()))?;
            connection.set_vring_kick(index, Some(ring.signals().kick.as_raw_fd()))?;
        }
        match self.has_protocol_features() {
            true => self.enable_rings(self.queues.len()),
            false => Ok(()),
        }
    }
}
