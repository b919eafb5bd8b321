//! Dirty logging as a migrating VMM does it. QEMU sets the log, then accepts LOG_ALL, then gives
//! the addresses of the *running* rings again; clearing LOG_ALL is the only way off. Cloud
//! Hypervisor begins in the same way, ends in the reverse order, and takes a new log for each pass.

use std::io;

use crate::features;
use crate::guest::Guest;
use crate::memory::DirtyBits;
use crate::setup::{SetupOrder, vring_addr};

impl Guest {
    /// Starts logging; the pages written from now on show up in what is returned.
    pub fn start_log(&mut self) -> io::Result<DirtyBits> {
        let log = self.next_log()?;
        self.connection.set_features(self.features | features::LOG_ALL)?;
        self.send_addresses(true)?;
        self.acknowledged()?;
        Ok(log)
    }

    /// Gives a new log; when it returns, nothing is marked in the one before any more.
    pub fn next_log(&self) -> io::Result<DirtyBits> {
        let end = self.memory.regions().iter().map(|region| region.guest_addr + region.size).max();
        let end = end.unwrap_or(0);
        let log = match self.settings.order {
            SetupOrder::Qemu => DirtyBits::new(end)?,
            SetupOrder::CloudHypervisor => DirtyBits::of_size((end - 1) / (4096 * 8) + 1)?,
        };
        self.connection.set_log_base(log.size(), log.file())?;
        Ok(log)
    }

    /// Stops logging.
    pub fn stop_log(&mut self) -> io::Result<()> {
        match self.settings.order {
            SetupOrder::Qemu => {
                self.connection.set_features(self.features)?;
                self.send_addresses(false)?;
            }
            SetupOrder::CloudHypervisor => {
                self.send_addresses(false)?;
                self.connection.set_features(self.features)?;
            }
        }
        self.acknowledged()
    }

    fn send_addresses(&self, log: bool) -> io::Result<()> {
        (0..2 * self.queues.len()).try_for_each(|ring| {
            let addr = vring_addr(&self.memory, self.ring(ring), log);
            self.connection.set_vring_addr(ring as u32, addr)
        })
    }
}
