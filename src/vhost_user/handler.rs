//! The `vhost` crate's call-backs, as calls of the [`Session`].
//!
//! Only a translation. Messages that are answered elsewhere or were not offered do not get here
//! (`message`, `intercept`); their call-backs refuse.

use std::fs::File;
use std::io;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use crate::mem::{MAX_REGIONS, RegionSpec};
use crate::ring::RingAddress;

use super::features::OFFERED_PROTOCOL;
use super::session::{Refusal, Session};

/// Receives the crate's call-backs.
pub(super) struct Handler(pub Session);

/// The only error with which the crate answers NEED_REPLY and stays in step with the frontend.
fn refused(refusal: Refusal) -> Error {
    Error::ReqHandlerError(io::Error::other(refusal.to_string()))
}

fn unsupported<T>() -> Result<T> {
    Err(refused(Refusal::NotNegotiated))
}

fn spec(region: &VhostUserMemoryRegion, file: File) -> RegionSpec {
    RegionSpec {
        guest_addr: region.guest_phys_addr,
        size: region.memory_size,
        user_addr: region.user_addr,
        mmap_offset: region.mmap_offset,
        file,
    }
}

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.0.disable();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.0.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.0.features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.0.set_features(features).map_err(refused)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let specs = regions.iter().zip(files).map(|(region, file)| spec(region, file)).collect();
        self.0.set_memory(specs).map_err(refused)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.0.set_num(index, num).map_err(refused)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        let address = RingAddress {
            desc: descriptor,
            avail: available,
            used,
            log_guest_addr: logged.then_some(log),
        };
        self.0.set_address(index, address).map_err(refused)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.0.set_base(index, base).map_err(refused)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.0.stop(index).map_err(refused)?;
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.0.set_kick(index.into(), fd).map_err(refused)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.0.set_call(index.into(), fd).map_err(refused)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.0.set_err(index.into(), fd).map_err(refused)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(OFFERED_PROTOCOL)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.0.set_protocol_features(features).map_err(refused)
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.0.queue_num())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.0.set_enabled(index, enable.into()).map_err(refused)
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        unsupported()
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        unsupported()
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported()
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        unsupported()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        self.0.add_region(spec(region, fd)).map_err(refused)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.0
            .remove_region(region.guest_phys_addr, region.memory_size, region.user_addr)
            .map_err(refused)
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        self.0.set_log(file, log.mmap_size, log.mmap_offset).map_err(refused)
    }
}
