//! Settings of a network device by `ioctl`: MTU, up, bridge membership, what it is.
//!
//! A handful of requests on a datagram socket; netlink would bring a library and a protocol for
//! the same result. All act in the network namespace of the calling thread.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use vmm_sys_util::ioctl::ioctl_with_mut_ref;

/// The ioctl requests made here.
pub(super) const REQUESTS: [libc::c_ulong; 9] = [
    libc::SIOCGIFMTU,
    libc::SIOCSIFMTU,
    libc::SIOCGIFFLAGS,
    libc::SIOCSIFFLAGS,
    libc::SIOCGIFHWADDR,
    libc::SIOCGIFINDEX,
    libc::SIOCETHTOOL,
    SIOCDEVPRIVATE,
    SIOCBRADDIF,
];

/// Length of a device's name with its NUL (`IFNAMSIZ`).
const NAME_LEN: usize = libc::IFNAMSIZ;
/// linux/sockios.h: add a device to a bridge.
const SIOCBRADDIF: libc::c_ulong = 0x89a2;
/// linux/sockios.h: the first request that is the driver's own; the bridge reads arguments here.
const SIOCDEVPRIVATE: libc::c_ulong = 0x89f0;
/// linux/ethtool.h: name the driver.
const ETHTOOL_GDRVINFO: u32 = 3;
/// linux/ethtool.h: whether the device is up and has a carrier.
const ETHTOOL_GLINK: u32 = 10;
/// linux/if_bridge.h: list the interface indexes of the ports.
const BRCTL_GET_PORT_LIST: libc::c_ulong = 7;
/// net/bridge/br_private.h: the most ports a bridge can have (`BR_MAX_PORTS`).
const BRIDGE_PORTS_MAX: usize = 1024;

/// Whether the kernel takes `name` for a device, as it is: not as a pattern (`tap%d`).
pub(super) fn is_valid_name(name: &str) -> bool {
    let forbidden = |byte: u8| matches!(byte, b'/' | b':' | b'%') || !byte.is_ascii_graphic();
    (1..NAME_LEN).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.bytes().any(forbidden)
}

/// An `ifreq` for device `name`, the rest zero. A longer name is cut (callers check names first).
pub(super) fn request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data, all zeroes is a valid value of each of its members.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name[..NAME_LEN - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// `struct ethtool_drvinfo` of linux/ethtool.h.
#[repr(C)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    version: [u8; 32],
    fw_version: [u8; 32],
    bus_info: [u8; 32],
    erom_version: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

/// The driver of a device, and the bus it names: `("tun", "tap")`, `("bridge", "N/A")`.
pub(super) type Driver = (String, String);

/// A handle on the network device of one name, which need not exist.
pub(super) struct NetDevice {
    control: OwnedFd,
    name: String,
}

impl NetDevice {
    /// Opens a socket for requests about `name`.
    pub(super) fn new(name: &str) -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: socket just returned this descriptor, nobody else owns it.
        let control = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { control, name: name.to_owned() })
    }

    /// Largest packet in bytes, without the link-layer header.
    pub(super) fn mtu(&self) -> io::Result<u32> {
        let request = self.ask(libc::SIOCGIFMTU)?;
        // SAFETY: SIOCGIFMTU filled in this member.
        Ok(u32::try_from(unsafe { request.ifr_ifru.ifru_mtu }).unwrap_or(0))
    }

    /// Sets the MTU. `InvalidInput` when the device can't have it.
    pub(super) fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        let mut request = request(&self.name);
        request.ifr_ifru.ifru_mtu = libc::c_int::try_from(mtu).unwrap_or(libc::c_int::MAX);
        self.call(libc::SIOCSIFMTU, &mut request)
    }

    /// Brings the device up; nothing is written when it is.
    pub(super) fn set_up(&self) -> io::Result<()> {
        let mut request = self.ask(libc::SIOCGIFFLAGS)?;
        // SAFETY: SIOCGIFFLAGS filled in this member.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        let up = libc::IFF_UP as libc::c_short;
        if flags & up != 0 {
            return Ok(());
        }
        request.ifr_ifru.ifru_flags = flags | up;
        self.call(libc::SIOCSIFFLAGS, &mut request)
    }

    /// The Ethernet address.
    pub(super) fn mac(&self) -> io::Result<[u8; 6]> {
        let request = self.ask(libc::SIOCGIFHWADDR)?;
        // SAFETY: SIOCGIFHWADDR filled in this member.
        let address = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
        let [a, b, c, d, e, f, ..] = address.map(|byte| byte as u8);
        Ok([a, b, c, d, e, f])
    }

    /// The interface index. `ENODEV` when there is no such device.
    pub(super) fn index(&self) -> io::Result<libc::c_int> {
        let request = self.ask(libc::SIOCGIFINDEX)?;
        // SAFETY: SIOCGIFINDEX filled in this member.
        Ok(unsafe { request.ifr_ifru.ifru_ifindex })
    }

    /// What the device is. Read by ioctl because /sys shows the namespace that mounted it, which
    /// need not be ours.
    pub(super) fn driver(&self) -> io::Result<Driver> {
        let mut info = DriverInfo {
            cmd: ETHTOOL_GDRVINFO,
            driver: [0; 32],
            version: [0; 32],
            fw_version: [0; 32],
            bus_info: [0; 32],
            erom_version: [0; 32],
            reserved: [0; 12],
            counts: [0; 5],
        };
        let mut request = request(&self.name);
        request.ifr_ifru.ifru_data = (&raw mut info).cast();
        self.call(libc::SIOCETHTOOL, &mut request)?;
        Ok((text(&info.driver), text(&info.bus_info)))
    }

    /// Whether the device is up and has a carrier. A TAP has one while a process is attached to it.
    pub(super) fn has_link(&self) -> io::Result<bool> {
        // struct ethtool_value of linux/ethtool.h: the command, and the answer behind it.
        let mut value = [ETHTOOL_GLINK, 0];
        let mut request = request(&self.name);
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        self.call(libc::SIOCETHTOOL, &mut request)?;
        let [_, link] = value;
        Ok(link != 0)
    }

    /// Whether this bridge has the device of interface index `port`.
    pub(super) fn bridge_has(&self, port: libc::c_int) -> io::Result<bool> {
        let mut ports = [0 as libc::c_int; BRIDGE_PORTS_MAX];
        let mut arguments: [libc::c_ulong; 4] = [
            BRCTL_GET_PORT_LIST,
            ports.as_mut_ptr() as libc::c_ulong,
            BRIDGE_PORTS_MAX as libc::c_ulong,
            0,
        ];
        let mut request = request(&self.name);
        request.ifr_ifru.ifru_data = (&raw mut arguments).cast();
        self.call(SIOCDEVPRIVATE, &mut request)?;
        Ok(ports.contains(&port))
    }

    /// Adds the device of interface index `port` to this bridge. `ResourceBusy` when it has
    /// another master.
    pub(super) fn bridge_add(&self, port: libc::c_int) -> io::Result<()> {
        let mut request = request(&self.name);
        request.ifr_ifru.ifru_ifindex = port;
        self.call(SIOCBRADDIF, &mut request)
    }

    fn ask(&self, code: libc::c_ulong) -> io::Result<libc::ifreq> {
        let mut request = request(&self.name);
        self.call(code, &mut request)?;
        Ok(request)
    }

    /// `code` must be a request that takes an `ifreq`; memory that the `ifreq` points to must be
    /// as large as the request's definition says. Only this module makes them.
    fn call(&self, code: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: the kernel reads and writes one ifreq, which `request` borrows exclusively, and
        // what it points to, per this function's contract.
        match unsafe { ioctl_with_mut_ref(&self.control.as_raw_fd(), code, request) } {
            result if result < 0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::is_valid_name;

    #[test]
    fn names() {
        for good in ["a", "rs0", "vm-1.uplink_2", "123456789012345"] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["", ".", "..", "1234567890123456", "a/b", "a:b", "a b", "tap%d", "a\0b", "ä"] {
            assert!(!is_valid_name(bad), "{bad}");
        }
    }
}
