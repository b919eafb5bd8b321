//! A session as the messages that made it, for the process that takes our place.
//!
//! The other process follows them as it follows a frontend's: there is one way into a session, with
//! all its checks, and what two versions of this program say to each other is the specification's.
//! None of the messages asks for an acknowledgement.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVringAddrFlags};

use crate::mem::RegionSpec;
use crate::ring::RingState;
use crate::sys::socket::send;

use super::super::message::{Header, request};
use super::{Session, bit};

/// In SET_VRING_KICK, CALL and ERR: there is no descriptor (VHOST_USER_VRING_NOFD_MASK).
const NO_DESCRIPTOR: u64 = 1 << 8;

impl Session {
    /// Tells all but the rings, which go on.
    ///
    /// # Errors
    ///
    /// The other process is gone or doesn't read, or this one is out of descriptors.
    pub fn tell(&self, to: &UnixStream) -> io::Result<()> {
        let script = Script(to);
        if self.features_read {
            script.say(request::GET_FEATURES, &[], &[])?;
        }
        self.tell_memory(&script)?;
        script.number(request::SET_PROTOCOL_FEATURES, self.protocol_features, None)?;
        if self.features != 0 {
            script.number(request::SET_FEATURES, self.features, None)?;
        }
        if self.status != 0 {
            script.number(request::SET_STATUS, self.status.into(), None)?;
        }
        if let Some(log) = &self.log {
            let (file, size, offset) = log.source()?;
            let payload = [size, offset].map(u64::to_ne_bytes).concat();
            script.say(request::SET_LOG_BASE, &payload, &[file.as_raw_fd()])?;
        }
        Ok(())
    }

    /// One region at a time, whatever the frontend does: a table holds neither none nor more than
    /// 32 (the `vhost` crate's limit), and a session can have come to both.
    fn tell_memory(&self, script: &Script) -> io::Result<()> {
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        let by_slot = VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS.bits();
        script.number(request::SET_PROTOCOL_FEATURES, by_slot, None)?;
        memory.specs()?.iter().try_for_each(|region| script.region(region))
    }

    /// Takes the rings out of work and tells them. No worker may be at work: frames for this guest
    /// would be dropped. [`Self::resume`] has them go on. Returns those that ran, one bit for each.
    ///
    /// # Errors
    ///
    /// As [`Self::tell`].
    pub fn tell_rings(&mut self, to: &UnixStream) -> io::Result<u128> {
        let states: io::Result<Vec<RingState>> =
            self.queues.lock_all().iter_mut().map(|ring| ring.suspend()).collect();
        let (script, mut ran) = (Script(to), 0);
        for (index, state) in states?.into_iter().enumerate() {
            if state.ran {
                ran |= bit(index);
            }
            let kick = self.kicks.get(index).and_then(|kick| kick.as_ref()).map(AsRawFd::as_raw_fd);
            let enabled = self.enabled.get(index).is_some_and(|enabled| *enabled);
            script.ring(index as u32, &state, kick, enabled)?;
        }
        Ok(ran)
    }

    /// Puts the rings to work again.
    pub fn resume(&mut self) {
        self.change(|_| ());
    }

    /// The rings that have all they need, one bit for each.
    pub fn running(&self) -> u128 {
        self.running
    }
}

/// Sends messages as a frontend does.
struct Script<'a>(&'a UnixStream);

impl Script<'_> {
    fn say(&self, request: u32, payload: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
        let message = [&Header::request(request, payload.len() as u32), payload].concat();
        send(self.0, &message, descriptors)
    }

    fn number(&self, request: u32, value: u64, descriptor: Option<RawFd>) -> io::Result<()> {
        self.say(request, &value.to_ne_bytes(), descriptor.as_slice())
    }

    fn region(&self, region: &RegionSpec) -> io::Result<()> {
        let padding = 0;
        let fields =
            [padding, region.guest_addr, region.size, region.user_addr, region.mmap_offset];
        let payload = fields.map(u64::to_ne_bytes).concat();
        self.say(request::ADD_MEM_REG, &payload, &[region.file.as_raw_fd()])
    }

    /// A ring runs when its last message was followed, not earlier.
    fn ring(
        &self,
        index: u32,
        state: &RingState,
        kick: Option<RawFd>,
        enabled: bool,
    ) -> io::Result<()> {
        let pair = |value: u32| [index, value].map(u32::to_ne_bytes).concat();
        if let Some(size) = state.size {
            self.say(request::SET_VRING_NUM, &pair(size.into()), &[])?;
        }
        if let Some(base) = state.base {
            self.say(request::SET_VRING_BASE, &pair(base), &[])?;
        }
        if let Some(address) = &state.address {
            let logged = VhostUserVringAddrFlags::VHOST_VRING_F_LOG.bits();
            let flags = address.log_guest_addr.map_or(0, |_| logged);
            let log = address.log_guest_addr.unwrap_or(0);
            let addresses = [address.desc, address.used, address.avail, log];
            let payload = [pair(flags), addresses.map(u64::to_ne_bytes).concat()].concat();
            self.say(request::SET_VRING_ADDR, &payload, &[])?;
        }
        let number = u64::from(index);
        for (request, event) in
            [(request::SET_VRING_CALL, &state.call), (request::SET_VRING_ERR, &state.err)]
        {
            if let Some(event) = event {
                self.number(request, number, Some(event.as_raw_fd()))?;
            }
        }
        self.say(request::SET_VRING_ENABLE, &pair(enabled.into()), &[])?;
        match kick {
            _ if !state.started => Ok(()),
            None => self.number(request::SET_VRING_KICK, number | NO_DESCRIPTOR, None),
            some => self.number(request::SET_VRING_KICK, number, some),
        }
    }
}
