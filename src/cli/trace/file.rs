//! Frames out of files that others captured.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use pcap_file::DataLink;
use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::{Block, PcapNgReader};
use ringswitch::frame::MAX_FRAME;

use super::frame::TraceError;

/// What a pcapng file begins with, in either byte order.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// Frame `number` of a pcap or pcapng file, counted from 1. What was cut off it becomes zeros.
pub fn frame(path: &Path, number: usize) -> Result<Vec<u8>, TraceError> {
    let failed = |error| TraceError::Open(path.to_owned(), error);
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let mut first = Vec::new();
    file.by_ref().take(PCAPNG.len() as u64).read_to_end(&mut first).map_err(failed)?;
    file.rewind().map_err(failed)?;
    let found = if first == PCAPNG { pcapng(file, number) } else { pcap(file, number) };
    match found.map_err(|error| TraceError::NotPcap(path.to_owned(), error))? {
        Found::Frame(frame) => Ok(frame),
        Found::OtherNetwork => Err(TraceError::NotEthernet { path: path.to_owned(), number }),
        Found::End(count) => Err(TraceError::NoFrame { path: path.to_owned(), count, number }),
    }
}

enum Found {
    Frame(Vec<u8>),
    OtherNetwork,
    /// The file has so many frames.
    End(usize),
}

impl Found {
    fn new(network: Option<DataLink>, data: &[u8], len: u32) -> Self {
        if network != Some(DataLink::ETHERNET) {
            return Self::OtherNetwork;
        }
        let mut frame = data.to_vec();
        // One that is too long stays too long.
        let len = len.min(MAX_FRAME + 1) as usize;
        frame.resize(len.max(data.len()), 0);
        Self::Frame(frame)
    }
}

fn pcap(file: impl Read, number: usize) -> anyhow::Result<Found> {
    let mut reader = PcapReader::new(file)?;
    let network = reader.header().datalink;
    let mut count = 0;
    while let Some(packet) = reader.next_packet() {
        let packet = packet?;
        count += 1;
        if count == number {
            return Ok(Found::new(Some(network), packet.data(), packet.orig_len()));
        }
    }
    Ok(Found::End(count))
}

fn pcapng(file: impl Read, number: usize) -> anyhow::Result<Found> {
    let mut reader = PcapNgReader::new(file)?;
    let mut count = 0;
    while let Some(block) = reader.next_block() {
        let (block, state) = block?;
        let network =
            |id: u32| state.interfaces().get(id as usize).map(|interface| interface.linktype);
        let (network, data, len) = match &block {
            Block::EnhancedPacket(block) => {
                (network(block.interface_id), &block.data, block.original_len)
            }
            Block::Packet(block) => {
                (network(block.interface_id.into()), &block.data, block.original_len)
            }
            Block::SimplePacket(block) => (network(0), &block.data, block.original_len),
            _ => continue,
        };
        count += 1;
        if count == number {
            return Ok(Found::new(network, data, len));
        }
    }
    Ok(Found::End(count))
}
