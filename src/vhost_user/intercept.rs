//! Messages that the `vhost` crate can't serve, answered here.
//!
//! QEMU sends SET_VRING_ENABLE before SET_FEATURES, which the crate refuses; SEND_RARP,
//! NET_SET_MTU and the status messages it does not know.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::message::{Header, Message, request};
use super::session::{Refusal, Session};

/// Whether this message is answered here.
pub(super) fn is_ours(header: &Header) -> bool {
    matches!(
        header.request,
        request::SET_VRING_ENABLE
            | request::SEND_RARP
            | request::NET_SET_MTU
            | request::SET_STATUS
            | request::GET_STATUS
    )
}

/// Follows a message and answers it if that is wanted.
pub(super) fn serve(
    mut stream: &UnixStream,
    message: &Message<'_>,
    session: &mut Session,
) -> io::Result<Result<(), Refusal>> {
    let header = &message.header;
    // All of ours have 8 bytes or none.
    let payload = message.payload().first_chunk().copied().unwrap_or_default();
    let result = follow(header, payload, session);
    let reply = match &result {
        Ok(reply @ Some(_)) => *reply,
        _ if header.needs_reply() && session.acknowledges() => Some(u64::from(result.is_err())),
        _ => None,
    };
    if let Some(value) = reply {
        stream.write_all(&header.reply(value))?;
    }
    Ok(result.map(drop))
}

/// Does what a message says. Returns the answer of those that ask for more than an acknowledgement.
fn follow(
    header: &Header,
    payload: [u8; 8],
    session: &mut Session,
) -> Result<Option<u64>, Refusal> {
    let value = u64::from_ne_bytes(payload);
    let [a, b, c, d, e, f, g, h] = payload;
    match header.request {
        request::SET_VRING_ENABLE => {
            let (index, state) = ([a, b, c, d], [e, f, g, h]);
            session.set_enabled(u32::from_ne_bytes(index), u32::from_ne_bytes(state))?;
        }
        request::SEND_RARP => {
            session.negotiated(VhostUserProtocolFeatures::RARP)?;
            session.announce([a, b, c, d, e, f]);
        }
        request::NET_SET_MTU => {
            session.negotiated(VhostUserProtocolFeatures::MTU)?;
            session.set_mtu(value)?;
        }
        request::SET_STATUS => {
            session.negotiated(VhostUserProtocolFeatures::STATUS)?;
            session.set_status(value)?;
        }
        request::GET_STATUS => {
            session.negotiated(VhostUserProtocolFeatures::STATUS)?;
            return Ok(Some(session.status()));
        }
        _ => return Err(Refusal::NotNegotiated),
    }
    Ok(None)
}
