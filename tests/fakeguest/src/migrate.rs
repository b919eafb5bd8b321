//! Dirty logging as a migrating VMM does it: QEMU sets the log, then accepts LOG_ALL, then gives
//! the addresses of the *running* rings again; clearing LOG_ALL is the only way off.

use std::io;

use crate::features;
use crate::guest::Guest;
use crate::memory::DirtyBits;
use crate::setup::vring_addr;

impl Guest {
    /// Starts logging; the pages written from now on show up in what is returned.
    pub fn start_log(&mut self) -> io::Result<DirtyBits> {
        let end = self.memory.regions().iter().map(|region| region.guest_addr + region.size).max();
        let log = DirtyBits::new(end.unwrap_or(0))?;
        self.connection.set_log_base(log.size(), log.file())?;
        self.set_logging(true)?;
        Ok(log)
    }

    /// Stops logging.
    pub fn stop_log(&mut self) -> io::Result<()> {
        self.set_logging(false)
    }

    fn set_logging(&mut self, on: bool) -> io::Result<()> {
        let log = if on { features::LOG_ALL } else { 0 };
        self.connection.set_features(self.features | log)?;
        for ring in 0..2 * self.queues.len() {
            let addr = vring_addr(&self.memory, self.ring(ring), on);
            self.connection.set_vring_addr(ring as u32, addr)?;
        }
        self.sync()
    }
}
