//! Validates the mirrors: what they copy, and where the copies go.

use toml::Spanned;

use super::raw::RawMirror;
use super::validate::Check;
use super::{Directions, MAX_MIRRORS, MirrorSettings, PortKind, PortSettings};

/// Checks all mirrors, which are between `ports`.
pub(super) fn mirrors(
    check: &mut Check<'_>,
    raw: &[Spanned<RawMirror>],
    ports: &[PortSettings],
) -> Vec<MirrorSettings> {
    if let Some(surplus) = raw.get(MAX_MIRRORS) {
        let count = raw.len();
        check
            .report(surplus, &format!("there are {count} mirrors; expected at most {MAX_MIRRORS}"));
    }
    let mirrors = raw.iter().take(MAX_MIRRORS);
    let mirrors: Vec<_> = mirrors.filter_map(|raw| mirror(check, raw, ports)).collect();
    for (raw, mirror) in raw.iter().zip(&mirrors) {
        if mirrors.iter().any(|other| other.to == mirror.port) {
            let message =
                format!("port {:?} gets a mirror's copies, which aren't copied again", mirror.port);
            check.report(raw, &message);
        }
    }
    mirrors
}

fn mirror(
    check: &mut Check<'_>,
    raw: &Spanned<RawMirror>,
    ports: &[PortSettings],
) -> Option<MirrorSettings> {
    let fields = raw.as_ref();
    let port = port(check, raw, "port", fields.port.as_ref(), ports);
    let to = port_of_copies(check, raw, ports);
    let directions = check.choice("directions", fields.directions.as_ref(), &Directions::NAMES);
    let (port, to) = port.zip(to)?;
    if port == to {
        check.report(raw, &format!("port {port:?} is mirrored to itself; expected another port"));
    }
    Some(MirrorSettings { port, to, directions: directions.unwrap_or_default() })
}

/// The port under `to`.
fn port_of_copies(
    check: &mut Check<'_>,
    raw: &Spanned<RawMirror>,
    ports: &[PortSettings],
) -> Option<String> {
    let at = raw.as_ref().to.as_ref();
    let name = port(check, raw, "to", at, ports)?;
    let is_uplink = |port: &PortSettings| match &port.kind {
        PortKind::Tap(tap) => tap.uplink && port.name == name,
        PortKind::VhostUser(_) => false,
    };
    if let Some(at) = at.filter(|_| ports.iter().any(is_uplink)) {
        let message =
            format!("`to` is {name:?}, the uplink; expected a port that has no other use");
        check.report(at, &message);
    }
    Some(name)
}

/// The name of a port, under `key`.
fn port(
    check: &mut Check<'_>,
    mirror: &Spanned<RawMirror>,
    key: &str,
    at: Option<&Spanned<String>>,
    ports: &[PortSettings],
) -> Option<String> {
    let Some(at) = at else {
        check.report(mirror, &format!("this mirror has no `{key}`; expected the name of a port"));
        return None;
    };
    let name = at.as_ref();
    if ports.iter().any(|port| port.name == *name) {
        return Some(name.clone());
    }
    // One that was reported as faulty isn't among them, and both are worth to be said.
    check.report(at, &format!("`{key}` is {name:?}; expected the name of a port"));
    None
}
