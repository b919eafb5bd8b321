//! TAP devices: the switch's door to the host, its containers and the physical network.
//!
//! Owns the device's descriptors. Reading a frame is here; writing gathers guest memory and is
//! `mem`'s (`writev(2)` over [`AsFd`]).
//!
//! # Theory of operation
//!
//! A [`Tap`] is a Linux TAP device (Linux `Documentation/networking/tuntap.rst`) with one queue or
//! several, each a descriptor of its own that can be used without regard to the others, and a
//! 12-byte `virtio_net_hdr_v1` (virtio 1.2, 5.1.6) before each frame, little-endian whatever the
//! host is, so a guest's header passes unconverted. All offloads are asked for: the host's stack
//! then hands over unfinished checksums and frames of up to 64 KiB, which cross to a guest whole.
//!
//! A device that doesn't exist is created and vanishes with the `Tap`; one that exists is attached
//! to and stays. What is already as wanted (MTU, up, bridge) isn't set again, so a device that an
//! administrator prepared needs no privilege here.
//!
//! Whether a device has one queue or several (`IFF_MULTI_QUEUE`) is decided when it is made, and
//! Linux lets no process attach as the other kind. So one that exists decides. It takes several
//! processes, too, if it has several queues: that a process is attached shows by its carrier.
//!
//! The kernel remembers by which queue a flow was written last, and hands over the flow's other
//! direction by the same one; flows that it didn't see are spread by their hash.
//!
//! A write fails with EIO while the device is down and any call with EBADFD once it was deleted:
//! the port's loss, not the switch's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use super::netdev::{self, NetDevice};
use super::privilege::NetAdmin;

/// Bytes of `virtio_net_hdr_v1` before each frame.
pub const HEADER_LEN: usize = 12;

/// A read buffer in which every frame fits: the header, an Ethernet header with two VLAN tags, and
/// the largest IP packet that GSO builds. A smaller buffer loses a frame's end silently.
pub const READ_BUFFER_LEN: usize = HEADER_LEN + 14 + 8 + 65_536;

const TUN_DEVICE: &str = "/dev/net/tun";

const OFFLOADS: libc::c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// UDP segmentation: Linux 6.2 and later; the kernel takes both or neither.
const USO: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// The ioctl requests made here.
pub(super) const REQUESTS: [libc::c_ulong; 4] = [
    libc::TUNSETIFF as libc::c_ulong,
    libc::TUNSETVNETHDRSZ as libc::c_ulong,
    libc::TUNSETVNETLE as libc::c_ulong,
    libc::TUNSETOFFLOAD as libc::c_ulong,
];

/// What to make of a device besides opening it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TapOptions {
    /// Queues, if the device can have several; at least one is opened, Linux allows 256.
    pub queues: usize,
    /// MTU in bytes, 68 to 65521; `None` leaves it (1500 for a new device).
    pub mtu: Option<u32>,
    /// A Linux bridge, which must exist, to add the device to.
    pub bridge: Option<String>,
}

/// Why a TAP device could not be opened, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it; fields are the device's name and the cause
pub enum TapError {
    #[error(
        "{name:?} cannot be the name of a network device: use 1 to 15 ASCII characters without \
         space, '/', ':' and '%'"
    )]
    InvalidName { name: String },
    #[error("cannot open {TUN_DEVICE} for device {name}: load the module with `modprobe tun`")]
    NoDriver { name: String, source: io::Error },
    #[error(
        "not permitted to {action} device {name}: needs CAP_NET_ADMIN; run as root, or prepare the \
         device beforehand with `ip tuntap add {name} mode tap user USER vnet_hdr`, `ip link set \
         {name} up`, and its MTU and bridge as configured"
    )]
    NotPermitted { name: String, action: &'static str, source: io::Error },
    #[error("device {name} is in use by another process: stop it, or choose another name")]
    Busy { name: String },
    #[error("device {name} exists and is {kind}, not a TAP device: choose another name")]
    NotATap { name: String, kind: String },
    #[error("device {name} cannot have an MTU of {mtu}: use 68 to 65521")]
    Mtu { name: String, mtu: u32, source: io::Error },
    #[error(
        "cannot add device {name} to bridge {bridge}, which does not exist: create it with `ip \
         link add {bridge} type bridge`"
    )]
    NoBridge { name: String, bridge: String },
    #[error("cannot add device {name} to {bridge}, which is not a Linux bridge")]
    NotABridge { name: String, bridge: String },
    #[error(
        "cannot add device {name} to bridge {bridge}: it belongs to another; free it with `ip link \
         set {name} nomaster`"
    )]
    OtherBridge { name: String, bridge: String },
    #[error("cannot {action} device {name}")]
    System { name: String, action: &'static str, source: io::Error },
}

/// An open TAP device. See the module's text.
#[derive(Debug)]
pub struct Tap {
    queues: Vec<TapQueue>,
    name: String,
    mac: [u8; 6],
    mtu: u32,
    has_uso: bool,
}

impl Tap {
    /// Creates device `name` or attaches to it, sets it up as `options` say, and brings it up, in
    /// the network namespace of the calling thread.
    ///
    /// # Errors
    /// See [`TapError`]. A device that this call created is gone again.
    pub fn open(name: &str, options: &TapOptions) -> Result<Self, TapError> {
        if !netdev::is_valid_name(name) {
            return Err(TapError::InvalidName { name: name.to_owned() });
        }
        let _right = NetAdmin::raise();
        let device = NetDevice::new(name).map_err(|source| classify(name, "configure", source))?;
        let (queues, has_uso) = open_queues(&device, name, options.queues)?;
        Self::set_up(&device, name, options, queues, has_uso)
    }

    /// Goes on with the queues of another process, at least one, which keep their number.
    ///
    /// # Errors
    /// See [`TapError`]. The device stays as long as the other process has it.
    pub fn inherit(
        name: &str,
        options: &TapOptions,
        queues: Vec<OwnedFd>,
    ) -> Result<Self, TapError> {
        let _right = NetAdmin::raise();
        let failed = |source| classify(name, "take over", source);
        let device = NetDevice::new(name).map_err(failed)?;
        let queues: Vec<_> =
            queues.into_iter().map(|fd| TapQueue { file: File::from(fd) }).collect();
        let first = queues.first().ok_or(io::ErrorKind::InvalidInput.into()).map_err(failed)?;
        let has_uso = set_headers(&first.file).map_err(failed)?;
        if device.index().is_err() {
            // It was moved to another network namespace, where it isn't ours to set up.
            let name = name.to_owned();
            return Ok(Self { queues, name, mac: [0; 6], mtu: 0, has_uso });
        }
        Self::set_up(&device, name, options, queues, has_uso)
    }

    /// Sets MTU and bridge of a device that is open.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn adjust(name: &str, options: &TapOptions) -> Result<(), TapError> {
        let _right = NetAdmin::raise();
        let device = NetDevice::new(name).map_err(|source| classify(name, "configure", source))?;
        configure(&device, name, options)
    }

    fn set_up(
        device: &NetDevice,
        name: &str,
        options: &TapOptions,
        queues: Vec<TapQueue>,
        has_uso: bool,
    ) -> Result<Self, TapError> {
        let failed = |action| move |source| classify(name, action, source);
        configure(device, name, options)?;
        device.set_up().map_err(failed("bring up"))?;
        let mac = device.mac().map_err(failed("read the address of"))?;
        let mtu = device.mtu().map_err(failed("read the MTU of"))?;
        Ok(Self { queues, name: name.to_owned(), mac, mtu, has_uso })
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The Ethernet address of the host's end when it was opened; zero if it was elsewhere then.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The MTU in bytes when it was opened; zero if it was elsewhere then.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Whether UDP segmentation (`VIRTIO_NET_HDR_GSO_UDP_L4`) may be handed to the device and may
    /// come from it. Checksums, TSO4, TSO6 and ECN always may.
    #[must_use]
    pub fn has_uso(&self) -> bool {
        self.has_uso
    }

    /// Its queues: one at least, and no more than were asked for.
    #[must_use]
    pub fn queues(&self) -> &[TapQueue] {
        &self.queues
    }
}

/// One queue of a TAP device.
#[derive(Debug)]
pub struct TapQueue {
    file: File,
}

impl TapQueue {
    /// Reads one frame with its [`HEADER_LEN`] bytes of header into `buf` and returns the length
    /// of both. `buf` should have [`READ_BUFFER_LEN`] bytes. The header's `num_buffers` is zero:
    /// not every kernel writes it, and it belongs to whoever fills a guest's buffers.
    ///
    /// # Errors
    /// `WouldBlock` when no frame waits, `InvalidInput` when `buf` has no room for the header,
    /// EBADFD (uncategorized) when the device was deleted.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let length = io::Read::read(&mut &self.file, buf)?;
        if let Some(num_buffers) = buf.get_mut(10..HEADER_LEN) {
            num_buffers.fill(0);
        }
        Ok(length)
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens up to `wanted` queues of device `name`. Tells whether it has USO.
fn open_queues(
    device: &NetDevice,
    name: &str,
    wanted: usize,
) -> Result<(Vec<TapQueue>, bool), TapError> {
    let is_tap = device.driver().is_ok_and(|(driver, bus)| driver == "tun" && bus == "tap");
    if is_tap && device.has_link().unwrap_or(false) {
        return Err(TapError::Busy { name: name.to_owned() });
    }
    let explain = |source| explain_attach(device, name, source);
    let file = open_driver(name)?;
    let mut several = wanted > 1;
    match attach(&file, name, several) {
        // There is one of the other kind.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            several = !several;
            attach(&file, name, several).map_err(explain)?;
        }
        result => result.map_err(explain)?,
    }
    let has_uso = set_headers(&file).map_err(|source| classify(name, "set offloads of", source))?;
    let mut queues = vec![TapQueue { file }];
    while several && queues.len() < wanted {
        let file = open_driver(name)?;
        attach(&file, name, several).map_err(|source| classify(name, "add a queue to", source))?;
        queues.push(TapQueue { file });
    }
    Ok((queues, has_uso))
}

/// Sets MTU and bridge.
fn configure(device: &NetDevice, name: &str, options: &TapOptions) -> Result<(), TapError> {
    if let Some(mtu) = options.mtu {
        set_mtu(device, name, mtu)?;
    }
    options.bridge.as_deref().map_or(Ok(()), |bridge| enslave(device, name, bridge))
}

/// A descriptor that isn't a queue yet.
fn open_driver(name: &str) -> Result<File, TapError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    options.open(TUN_DEVICE).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => classify(name, "create", source),
        _ => TapError::NoDriver { name: name.to_owned(), source },
    })
}

/// Makes `file` the queue of TAP device `name`, or one of its `several` queues.
fn attach(file: &File, name: &str, several: bool) -> io::Result<()> {
    let mut request = netdev::request(name);
    let kind = if several { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | kind;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which is borrowed exclusively.
    done(unsafe { ioctl_with_mut_ref(file, libc::TUNSETIFF as libc::c_ulong, &mut request) })
}

/// The kernel says EINVAL for several wrong kinds of device: find out which it is.
fn explain_attach(device: &NetDevice, name: &str, source: io::Error) -> TapError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EBUSY) => return TapError::Busy { name },
        Some(libc::EINVAL) => {}
        _ => return classify(&name, "create or attach to", source),
    }
    match device.driver() {
        Ok((driver, bus)) if driver == "tun" && bus == "tap" => {
            TapError::System { name, action: "attach to", source }
        }
        Ok((driver, bus)) if driver == "tun" && bus == "tun" => {
            TapError::NotATap { name, kind: "a TUN device (IP packets without Ethernet)".into() }
        }
        Ok((driver, _)) => TapError::NotATap { name, kind: format!("a {driver} device") },
        Err(_) if device.index().is_ok() => TapError::NotATap { name, kind: "another kind".into() },
        Err(_) => TapError::System { name, action: "create or attach to", source },
    }
}

/// Sets the header's size and byte order and asks for all offloads. Returns whether USO is there.
fn set_headers(file: &File) -> io::Result<bool> {
    let header_len = HEADER_LEN as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    done(unsafe { ioctl_with_ref(file, libc::TUNSETVNETHDRSZ as libc::c_ulong, &header_len) })?;
    let on: libc::c_int = 1;
    // SAFETY: TUNSETVNETLE reads one int.
    done(unsafe { ioctl_with_ref(file, libc::TUNSETVNETLE as libc::c_ulong, &on) })?;
    let set = |offloads: libc::c_uint| {
        // SAFETY: TUNSETOFFLOAD takes flags by value, no memory is passed.
        done(unsafe { ioctl_with_val(file, libc::TUNSETOFFLOAD as libc::c_ulong, offloads.into()) })
    };
    match set(OFFLOADS | USO) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => set(OFFLOADS).map(|()| false),
        result => result.map(|()| true),
    }
}

fn set_mtu(device: &NetDevice, name: &str, mtu: u32) -> Result<(), TapError> {
    if device.mtu().is_ok_and(|current| current == mtu) {
        return Ok(());
    }
    device.set_mtu(mtu).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidInput => TapError::Mtu { name: name.to_owned(), mtu, source },
        _ => classify(name, "set the MTU of", source),
    })
}

fn enslave(device: &NetDevice, name: &str, bridge: &str) -> Result<(), TapError> {
    let action = "add to its bridge the";
    let failed = |source| classify(name, action, source);
    let (name_of, bridge_of) = (|| name.to_owned(), || bridge.to_owned());
    if !netdev::is_valid_name(bridge) {
        return Err(TapError::NoBridge { name: name_of(), bridge: bridge_of() });
    }
    let bridge = NetDevice::new(bridge).map_err(failed)?;
    if bridge.index().is_err() {
        return Err(TapError::NoBridge { name: name_of(), bridge: bridge_of() });
    }
    // Before any request that only a bridge understands: other drivers have their own meaning.
    if !bridge.driver().is_ok_and(|(driver, _)| driver == "bridge") {
        return Err(TapError::NotABridge { name: name_of(), bridge: bridge_of() });
    }
    let port = device.index().map_err(failed)?;
    if bridge.bridge_has(port).is_ok_and(|member| member) {
        return Ok(());
    }
    bridge.bridge_add(port).map_err(|source| match source.kind() {
        io::ErrorKind::ResourceBusy => {
            TapError::OtherBridge { name: name_of(), bridge: bridge_of() }
        }
        _ => classify(name, action, source),
    })
}

fn classify(name: &str, action: &'static str, source: io::Error) -> TapError {
    let name = name.to_owned();
    match source.kind() {
        io::ErrorKind::PermissionDenied => TapError::NotPermitted { name, action, source },
        _ => TapError::System { name, action, source },
    }
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
#[path = "tap_tests.rs"]
mod tests;
