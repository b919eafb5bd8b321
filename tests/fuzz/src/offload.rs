//! Checksums and segmentation, against the plainest arithmetic.

use ringswitch::wire::checksum::Sum;
use ringswitch::wire::gso::{MAX_HEADERS, MAX_OUTPUTS, Plan};
use ringswitch::wire::offload::{self, Offloads};
use ringswitch::wire::vnet::{GSO_NONE, NEEDS_CSUM, VnetHeader};

use crate::frame::set;
use crate::input::Input;
use crate::packet::{Packet, damage, layout, sum};

/// Runs one input.
///
/// # Panics
///
/// When the switch is wrong.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    if input.u8().is_multiple_of(4) {
        return check_sum(&mut input);
    }
    let accepts = set(input.u8());
    let mut packet = Packet::from_input(&mut input);
    let damaged = damage(&mut packet, &mut input);
    let Packet { frame, vnet } = packet;
    let (head, len) = (&frame[..frame.len().min(MAX_HEADERS)], frame.len() as u32);
    let checked = offload::check(&vnet, head, len, Offloads::all());
    let Ok(checked) = checked else {
        assert!(damaged, "a good header is refused: {checked:?}");
        return;
    };
    assert!(damaged || checked == vnet, "{checked:?} of {vnet:?}");
    if checked.flags & NEEDS_CSUM == 0 || offload::for_receiver(&checked, accepts).is_some() {
        assert!(
            checked.flags & NEEDS_CSUM != 0 || Plan::new(head, &checked, len, accepts).is_err()
        );
        return;
    }
    let complete = !accepts.contains(Offloads::CSUM);
    let expected = reference(&frame, &checked, complete);
    let plan = Plan::new(head, &checked, len, accepts);
    assert_eq!(plan.is_ok(), expected.is_some(), "{plan:?} of {checked:?}");
    let (Ok(plan), Some(expected)) = (plan, expected) else { return };
    assert_eq!(plan.count() as usize, expected.len(), "how many frames");
    assert_eq!(plan.needs_payload_sum(), complete);
    for (index, expected) in (0..).zip(&expected) {
        let got = output(&plan, index, &frame);
        compare(&got, expected, &checked);
        if !damaged && complete {
            verify(&got.1);
        }
    }
}

/// A sum in pieces is the sum of the whole.
fn check_sum(input: &mut Input<'_>) {
    let cuts: [u8; 4] = std::array::from_fn(|_| input.u8());
    // Of the same bytes, as many as it takes to be as long as a frame.
    let mut bytes = input.rest().to_vec();
    while cuts[0] & 1 != 0 && (1..30_000).contains(&bytes.len()) {
        bytes.extend_from_within(..);
    }
    let (mut rest, mut at) = (&bytes[..], 0);
    let (mut running, mut combined) = (Sum::default(), Sum::default());
    for cut in cuts.map(|cut| usize::from(cut) * usize::from(cut)).into_iter().chain([usize::MAX]) {
        let (piece, later) = rest.split_at(cut.min(rest.len()));
        running.add(piece);
        let mut alone = Sum::default();
        alone.add(piece);
        combined.combine(alone, at % 2 != 0);
        (rest, at) = (later, at + piece.len());
    }
    for got in [running, combined] {
        assert_eq!(got.partial() % 0xffff, sum(&bytes), "the sum of {} bytes", bytes.len());
        assert_eq!(got.finish(), !got.partial());
        let zeros = bytes.iter().all(|byte| *byte == 0);
        assert_eq!(got.partial() == 0, zeros, "only zeros have the sum zero (RFC 1624)");
    }
}

/// A frame and its header, as a plan makes them.
fn output(plan: &Plan, index: u32, frame: &[u8]) -> (VnetHeader, Vec<u8>) {
    let range = plan.payload(index);
    let payload = &frame[range.start as usize..range.end as usize];
    let mut payload_sum = Sum::default();
    if plan.needs_payload_sum() {
        payload_sum.add(payload);
    }
    let mut headers = [0; MAX_HEADERS];
    let vnet = plan.write_header(index, payload_sum, &mut headers);
    (vnet, [&headers[..plan.header_len()], payload].concat())
}

/// What must come out: frames one by one, each with headers written anew. None: it can't be done.
fn reference(
    frame: &[u8],
    vnet: &VnetHeader,
    complete: bool,
) -> Option<Vec<(VnetHeader, Vec<u8>)>> {
    let start = usize::from(vnet.csum_start);
    let field = start + usize::from(vnet.csum_offset);
    let finish = |mut out: Vec<u8>| {
        if !complete {
            let (csum_start, csum_offset) = (vnet.csum_start, vnet.csum_offset);
            let flags = NEEDS_CSUM;
            return (VnetHeader { flags, csum_start, csum_offset, ..VnetHeader::default() }, out);
        }
        let mut checksum = !sum(&out[start..]);
        if checksum == 0 && vnet.csum_offset == 6 {
            checksum = 0xffff;
        }
        out[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        (VnetHeader::default(), out)
    };
    if vnet.gso_type == GSO_NONE {
        let reachable = field + 2 <= MAX_HEADERS;
        return reachable.then(|| vec![finish(frame.to_vec())]);
    }
    let at = layout(frame)?;
    let tcp = at.protocol == 6;
    let header = at.l4 + if tcp { usize::from(frame[at.l4 + 12] >> 4) * 4 } else { 8 };
    let (head, payload) = frame.split_at(header);
    let size = usize::from(vnet.gso_size);
    let mut chunks: Vec<&[u8]> = payload.chunks(size).collect();
    if chunks.is_empty() {
        chunks.push(&[]);
    }
    let longest = header - at.l3 + chunks[0].len();
    if chunks.len() > MAX_OUTPUTS as usize || longest > 65_535 {
        return None;
    }
    let last = chunks.len() - 1;
    let outputs = chunks.iter().enumerate().map(|(index, chunk)| {
        let mut out = [head, chunk].concat();
        let len = |from: usize| ((header - from + chunk.len()) as u16).to_be_bytes();
        let be16 = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        if at.v6 {
            out[at.l3 + 4..at.l3 + 6].copy_from_slice(&len(at.l3 + 40));
        } else {
            out[at.l3 + 2..at.l3 + 4].copy_from_slice(&len(at.l3));
            let id = be16(at.l3 + 4).wrapping_add(index as u16);
            out[at.l3 + 4..at.l3 + 6].copy_from_slice(&id.to_be_bytes());
            out[at.l3 + 10..at.l3 + 12].fill(0);
            let checksum = !sum(&out[at.l3..at.l4]);
            out[at.l3 + 10..at.l3 + 12].copy_from_slice(&checksum.to_be_bytes());
        }
        if tcp {
            let place = at.l4 + 4..at.l4 + 8;
            let first = u32::from_be_bytes(frame[place.clone()].try_into().expect("four bytes"));
            let sequence = first.wrapping_add((index * size) as u32);
            out[place].copy_from_slice(&sequence.to_be_bytes());
            if index != last {
                out[at.l4 + 13] &= !0x09; // FIN, PSH
            }
            if index != 0 {
                out[at.l4 + 13] &= !0x80; // CWR
            }
        } else {
            out[at.l4 + 4..at.l4 + 6].copy_from_slice(&len(at.l4));
        }
        // The pseudo header's sum has another length in it.
        let before = (frame.len() - at.l4) as u64;
        let after = u64::from(u16::from_be_bytes(len(at.l4)));
        let pseudo = (u64::from(be16(field)) + after + 0x1_fffe - before % 0xffff) % 0xffff;
        out[field..field + 2].copy_from_slice(&(pseudo as u16).to_be_bytes());
        finish(out)
    });
    Some(outputs.collect())
}

/// Two frames are the same, but that zero and 0xffff are one number in a checksum.
fn compare(got: &(VnetHeader, Vec<u8>), expected: &(VnetHeader, Vec<u8>), asked: &VnetHeader) {
    assert_eq!(got.0, expected.0, "the virtio-net header");
    let (mut a, mut b) = (got.1.clone(), expected.1.clone());
    let field = usize::from(asked.csum_start) + usize::from(asked.csum_offset);
    if asked.csum_offset == 6 && got.0.flags == 0 {
        assert_ne!(a[field..field + 2], [0, 0], "UDP without a checksum");
    }
    let mut fields = vec![field];
    fields.extend(layout(&b).filter(|at| !at.v6).map(|at| at.l3 + 10));
    for frame in [&mut a, &mut b] {
        for field in &fields {
            if frame[*field..field + 2] == [0xff, 0xff] {
                frame[*field..field + 2].fill(0);
            }
        }
    }
    if a != b {
        let at = a.iter().zip(&b).position(|(a, b)| a != b);
        panic!("a frame of {} bytes, should be {}; first at {at:?}", a.len(), b.len());
    }
}

/// A receiver finds all checksums and lengths right.
fn verify(frame: &[u8]) {
    let at = layout(frame).expect("an IP packet");
    let len = frame.len() - at.l4;
    let addresses = if at.v6 { at.l3 + 8..at.l3 + 40 } else { at.l3 + 12..at.l3 + 20 };
    let mut whole = frame[addresses].to_vec();
    whole.extend((len as u32).to_be_bytes());
    whole.extend([0, 0, 0, at.protocol]);
    whole.extend(&frame[at.l4..]);
    assert_eq!(sum(&whole), 0, "the transport checksum");
    if !at.v6 {
        assert_eq!(sum(&frame[at.l3..at.l4]), 0, "the header checksum");
    }
}
