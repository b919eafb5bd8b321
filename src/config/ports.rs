//! Validates the ports: the keys of each, and what must be unique among all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::raw::RawPort;
use super::validate::Check;
use super::{
    Isolation, MAX_PORTS, MAX_QUEUE_PAIRS, MAX_TAP_MTU, PortKind, PortSettings, SocketRole,
    TapSettings, VhostUserSettings,
};

/// The longest port name, in bytes.
const MAX_NAME: usize = 32;
/// The longest socket path: `sockaddr_un.sun_path` has 108 bytes, of which one ends it.
const MAX_SOCKET_PATH: usize = 107;
/// The longest interface name: Linux's `IFNAMSIZ` less the byte that ends it.
const MAX_DEVICE: usize = 15;
/// The smallest MTU: RFC 791 lets no link have less, and Linux refuses it.
const MIN_MTU: u16 = 68;
/// Queue pairs of a port that says nothing about them.
const DEFAULT_QUEUE_PAIRS: u16 = 8;

/// Checks all ports. `capacity` bounds their MAC limits.
pub(super) fn ports(
    check: &mut Check<'_>,
    raw: &[Spanned<RawPort>],
    capacity: usize,
) -> Vec<PortSettings> {
    if let Some(surplus) = raw.get(MAX_PORTS) {
        let count = raw.len();
        check.report(surplus, &format!("there are {count} ports; expected at most {MAX_PORTS}"));
    }
    let mut taken = Taken::default();
    let ports = raw.iter().take(MAX_PORTS);
    let ports: Vec<_> = ports.filter_map(|raw| port(check, &mut taken, raw, capacity)).collect();
    taken.bridges_are_no_ports(check, raw);
    ports
}

/// What a port has claimed for itself, and where it says so.
#[derive(Default)]
struct Taken {
    names: HashMap<String, Range<usize>>,
    sockets: HashMap<PathBuf, Range<usize>>,
    devices: HashMap<String, Range<usize>>,
    macs: HashMap<[u8; 6], Range<usize>>,
    uplink: Option<Range<usize>>,
}

impl Taken {
    fn bridges_are_no_ports(&self, check: &mut Check<'_>, raw: &[Spanned<RawPort>]) {
        for bridge in raw.iter().filter_map(|port| port.as_ref().bridge.as_ref()) {
            if let Some(span) = self.devices.get(bridge.as_ref()) {
                let message = format!(
                    "bridge {:?} is the TAP device of {}; expected a bridge",
                    bridge.as_ref(),
                    check.source.port_at(span)
                );
                check.report(bridge, &message);
            }
        }
    }
}

/// Claims `key` for the value `at`; reports who has it already.
fn claim<K: Eq + std::hash::Hash, T>(
    check: &mut Check<'_>,
    taken: &mut HashMap<K, Range<usize>>,
    what: &str,
    key: K,
    at: &Spanned<T>,
) where
    T: std::fmt::Debug,
{
    match taken.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(at.span());
        }
        Entry::Occupied(entry) => {
            let place = check.source.port_at(entry.get());
            let value = at.as_ref();
            let message =
                format!("{what} {value:?} is already taken by {place}; expected one of its own");
            check.report(at, &message);
        }
    }
}

fn port(
    check: &mut Check<'_>,
    taken: &mut Taken,
    raw: &Spanned<RawPort>,
    capacity: usize,
) -> Option<PortSettings> {
    #[derive(Clone, Copy)]
    enum Type {
        VhostUser,
        Tap,
    }
    let types = [("vhost-user", Type::VhostUser), ("tap", Type::Tap)];
    let fields = raw.as_ref();
    let name = name(check, taken, raw);
    let mac_limit = check.number("mac-limit", fields.mac_limit.as_ref(), 1..=capacity);
    if fields.r#type.is_none() {
        missing(check, raw, "type", "\"vhost-user\" or \"tap\"");
    }
    let kind = match check.choice("type", fields.r#type.as_ref(), &types)? {
        Type::VhostUser => {
            foreign(check, "a tap", &fields.device, "device");
            foreign(check, "a tap", &fields.bridge, "bridge");
            foreign(check, "a tap", &fields.uplink, "uplink");
            PortKind::VhostUser(vhost_user(check, taken, raw)?)
        }
        Type::Tap => {
            foreign(check, "a vhost-user", &fields.socket, "socket");
            foreign(check, "a vhost-user", &fields.role, "role");
            foreign(check, "a vhost-user", &fields.owner, "owner");
            foreign(check, "a vhost-user", &fields.mode, "mode");
            foreign(check, "a vhost-user", &fields.queue_pairs, "queue-pairs");
            PortKind::Tap(tap(check, taken, raw)?)
        }
    };
    let macs = macs(check, taken, raw);
    let isolation = isolation(check, raw);
    Some(PortSettings { name: name?, kind, mac_limit, macs, isolation })
}

/// The addresses under `macs`, of stations, no one twice.
fn macs(check: &mut Check<'_>, taken: &mut Taken, raw: &Spanned<RawPort>) -> Vec<[u8; 6]> {
    let list = raw.as_ref().macs.as_ref().map(Spanned::as_ref);
    let mut macs = Vec::new();
    for at in list.into_iter().flatten() {
        match mac(at.as_ref()) {
            Some(mac) => {
                claim(check, &mut taken.macs, "address", mac, at);
                macs.push(mac);
            }
            None => {
                let message = format!(
                    "`macs` has {:?}; expected addresses of stations, such as \"52:54:00:12:34:56\"",
                    at.as_ref()
                );
                check.report(at, &message);
            }
        }
    }
    macs
}

/// The address of a station: no group, not zero.
fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let digits = |part: &&str| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
        *byte = u8::from_str_radix(parts.next().filter(digits)?, 16).ok()?;
    }
    let [first, ..] = mac;
    (parts.next().is_none() && first & 1 == 0 && mac != [0; 6]).then_some(mac)
}

fn isolation(check: &mut Check<'_>, raw: &Spanned<RawPort>) -> Isolation {
    let RawPort { isolated, group, .. } = raw.as_ref();
    let isolated = isolated.as_ref().is_some_and(|at| *at.as_ref());
    let Some(at) = group else {
        return if isolated { Isolation::Isolated } else { Isolation::Open };
    };
    if isolated {
        check.report(at, "`group` is set on a port that is isolated; expected one of them");
    }
    let name = at.as_ref();
    if !is_name(name) {
        let expected = format!("1 to {MAX_NAME} of A-Z a-z 0-9 _ . -");
        check.report(at, &format!("`group` is {name:?}; expected {expected}"));
    }
    Isolation::Group(name.clone())
}

/// Whether ports and groups may be called so.
fn is_name(name: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"_.-".contains(&c);
    !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(allowed)
}

/// Reports a key that this type of port has to have.
fn missing(check: &mut Check<'_>, port: &Spanned<RawPort>, key: &str, expected: &str) {
    let named = match &port.as_ref().name {
        Some(name) => format!("port {:?}", name.as_ref()),
        None => "this port".to_owned(),
    };
    check.report(port, &format!("{named} has no `{key}`; expected {expected}"));
}

/// Reports a key that belongs to another type of port.
fn foreign<T>(check: &mut Check<'_>, owner: &str, value: &Option<Spanned<T>>, key: &str) {
    if let Some(value) = value {
        check.report(value, &format!("`{key}` is a setting of {owner} port; expected none here"));
    }
}

fn name(check: &mut Check<'_>, taken: &mut Taken, raw: &Spanned<RawPort>) -> Option<String> {
    let expected = format!("1 to {MAX_NAME} of A-Z a-z 0-9 _ . -");
    let Some(at) = &raw.as_ref().name else {
        missing(check, raw, "name", &expected);
        return None;
    };
    let name = at.as_ref();
    if !is_name(name) {
        check.report(at, &format!("port name {name:?} is not usable; expected {expected}"));
        return None;
    }
    claim(check, &mut taken.names, "port name", name.clone(), at);
    Some(name.clone())
}

fn vhost_user(
    check: &mut Check<'_>,
    taken: &mut Taken,
    raw: &Spanned<RawPort>,
) -> Option<VhostUserSettings> {
    let fields = raw.as_ref();
    let roles = [("server", SocketRole::Server), ("client", SocketRole::Client)];
    let role = check.choice("role", fields.role.as_ref(), &roles).unwrap_or(SocketRole::Server);
    let owner = fields.owner.as_ref().and_then(|at| check.account("owner", at));
    let mode = fields.mode.as_ref().and_then(|at| mode(check, at));
    if role == SocketRole::Client {
        for (at, key) in [(&fields.owner, "owner"), (&fields.mode, "mode")] {
            let Some(at) = at else { continue };
            let message = format!(
                "`{key}` is set, but with role = \"client\" the VMM makes the socket; expected \
                 no `{key}`, or role = \"server\""
            );
            check.report(at, &message);
        }
    }
    let pairs = fields.queue_pairs.as_ref();
    let queue_pairs = check.number("queue-pairs", pairs, 1..=MAX_QUEUE_PAIRS);
    let mtu = check.number("mtu", fields.mtu.as_ref(), MIN_MTU..=u16::MAX);
    Some(VhostUserSettings {
        socket: socket(check, taken, raw)?,
        role,
        owner,
        mode,
        queue_pairs: queue_pairs.unwrap_or(DEFAULT_QUEUE_PAIRS),
        mtu,
    })
}

fn socket(check: &mut Check<'_>, taken: &mut Taken, raw: &Spanned<RawPort>) -> Option<PathBuf> {
    let Some(at) = &raw.as_ref().socket else {
        missing(check, raw, "socket", "the absolute path of a UNIX socket");
        return None;
    };
    let path = socket_path(check, at)?;
    // `Path` compares by components, so `/run//a` and `/run/a` are one.
    claim(check, &mut taken.sockets, "socket", path.clone(), at);
    Some(path)
}

/// The path of a socket.
pub(super) fn socket_path(check: &mut Check<'_>, at: &Spanned<String>) -> Option<PathBuf> {
    let path = at.as_ref();
    let fault = if !path.starts_with('/') {
        "is not absolute"
    } else if path.len() > MAX_SOCKET_PATH {
        "is too long"
    } else if path.chars().any(char::is_control) {
        "has control characters"
    } else if Path::new(path).file_name().is_none() || path.ends_with('/') {
        "names no file"
    } else {
        return Some(PathBuf::from(path));
    };
    let message = format!(
        "socket {path:?} {fault}; expected an absolute path of at most {MAX_SOCKET_PATH} bytes"
    );
    check.report(at, &message);
    None
}

fn mode(check: &mut Check<'_>, at: &Spanned<String>) -> Option<u32> {
    let value = at.as_ref();
    // `from_str_radix` takes a sign, a file mode has none.
    let digits = (3..=4).contains(&value.len()) && value.bytes().all(|c| c.is_ascii_digit());
    let mode = u32::from_str_radix(value, 8).ok().filter(|mode| digits && *mode <= 0o777);
    if mode.is_none() {
        let message = format!(
            "`mode` is {value:?}; expected 3 octal digits, with or without a 0 before them: \"0660\""
        );
        check.report(at, &message);
    }
    mode
}

fn tap(check: &mut Check<'_>, taken: &mut Taken, raw: &Spanned<RawPort>) -> Option<TapSettings> {
    let fields = raw.as_ref();
    let mtu = check.number("mtu", fields.mtu.as_ref(), u32::from(MIN_MTU)..=MAX_TAP_MTU);
    let bridge = fields.bridge.as_ref().and_then(|at| interface(check, "bridge", at));
    let uplink = fields.uplink.as_ref().filter(|uplink| *uplink.as_ref());
    match (uplink, &taken.uplink) {
        (Some(second), Some(first)) => {
            let place = check.source.port_at(first);
            let message =
                format!("this is a second uplink beside {place}; expected `uplink` on one port");
            check.report(second, &message);
        }
        (Some(first), None) => taken.uplink = Some(first.span()),
        (None, _) => {}
    }
    let Some(at) = &fields.device else {
        missing(check, raw, "device", "the name of a TAP interface");
        return None;
    };
    let device = interface(check, "device", at)?;
    claim(check, &mut taken.devices, "device", device.clone(), at);
    Some(TapSettings { device, mtu, bridge, uplink: uplink.is_some() })
}

/// An interface name that Linux accepts. `%` is refused because the kernel would put a number in
/// its place and the interface would have another name than the file says.
fn interface(check: &mut Check<'_>, key: &str, at: &Spanned<String>) -> Option<String> {
    let name = at.as_ref();
    let allowed = |c: u8| c.is_ascii_graphic() && !b"/:%".contains(&c);
    let length = 1..=MAX_DEVICE;
    if length.contains(&name.len()) && name.bytes().all(allowed) && name != "." && name != ".." {
        return Some(name.clone());
    }
    let message = format!(
        "`{key}` is {name:?}, which can't be an interface; expected 1 to {MAX_DEVICE} printable \
         ASCII characters without / : % and spaces"
    );
    check.report(at, &message);
    None
}
