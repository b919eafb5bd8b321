//! A capture as an answer that doesn't end: pcapng, made of what the workers copied.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use hyper::body::Frame as BodyFrame;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption, InterfaceTsResolution,
};
use pcap_file::pcapng::blocks::interface_statistics::{
    InterfaceStatisticsBlock, InterfaceStatisticsOption,
};
use pcap_file::pcapng::blocks::opt_common::CommonOption;
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::pcapng::{PcapNgWriteError, PcapNgWriter};
use pcap_file::{DataLink, Endianness};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::sys::clock;
use crate::wire::filter::Filter;
use crate::worker::{Buffer, Capture, Fate, Record, Shared};

/// How often the workers' buffers are taken.
const TICK: Duration = Duration::from_millis(10);
/// Ticks between two statistics. They also show whether the client is still there.
const STATISTICS: u32 = 100;
/// In the flags of a packet block: it came in, it went out (pcapng, section 4.3.1).
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// A capture that runs, until it is dropped.
pub struct CaptureBody {
    shared: Arc<Shared>,
    capture: Arc<Capture>,
    spares: Vec<Buffer>,
    writer: PcapNgWriter<Vec<u8>>,
    /// By port: its interface in the file, if it is captured.
    interfaces: Vec<Option<u32>>,
    interval: Interval,
    ticks: u32,
}

impl CaptureBody {
    /// Begins to capture the ports of these indices. None if there are too many captures.
    pub fn begin(
        shared: &Arc<Shared>,
        ports: &[usize],
        filter: Filter,
        snaplen: u32,
    ) -> Result<Option<Self>, PcapNgWriteError> {
        let mut section =
            SectionHeaderBlock { endianness: Endianness::native(), ..Default::default() };
        let program = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
        section.options.push(SectionHeaderOption::UserApplication(program.into()));
        let mut writer = PcapNgWriter::with_section_header(Vec::new(), section)?;
        let mut interfaces = vec![None; shared.ports.len()];
        let mut wanted: Box<[bool]> = vec![false; shared.ports.len()].into();
        let chosen = ports.iter().zip(0..);
        for (port, number) in chosen {
            let Some(slot) = interfaces.get_mut(*port) else { continue };
            *slot = Some(number);
            wanted.iter_mut().skip(*port).take(1).for_each(|wanted| *wanted = true);
            let name = shared.ports.get(*port).map_or("", |port| &port.name);
            let mut block = InterfaceDescriptionBlock::new(DataLink::ETHERNET, snaplen);
            block.options = vec![
                InterfaceDescriptionOption::IfName(name.into()),
                InterfaceDescriptionOption::IfTsResol(InterfaceTsResolution::NANO),
            ];
            writer.write_pcapng_block(block)?;
        }
        let capture = Arc::new(Capture::new(wanted, filter, snaplen, shared.mailboxes.len()));
        if !shared.begin_capture(&capture) {
            return Ok(None);
        }
        let spares = capture.spares();
        let mut interval = interval(TICK);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shared = Arc::clone(shared);
        Ok(Some(Self { shared, capture, spares, writer, interfaces, interval, ticks: 0 }))
    }

    /// Writes what came since the last time.
    fn write(&mut self) -> Result<(), PcapNgWriteError> {
        let Self { capture, spares, writer, interfaces, shared, .. } = self;
        for record in capture.take(spares) {
            let interface = interfaces.get(usize::from(record.port)).copied().flatten();
            let Some(interface_id) = interface else { continue };
            let flags = if record.inbound { INBOUND } else { OUTBOUND };
            let comment = comment(shared, &record);
            writer.write_pcapng_block(EnhancedPacketBlock {
                interface_id,
                timestamp: Duration::from_nanos(record.ns),
                original_len: record.len,
                data: Cow::Borrowed(record.bytes),
                options: vec![
                    EnhancedPacketOption::Flags(flags),
                    EnhancedPacketOption::Common(CommonOption::Comment(comment.into())),
                ],
            })?;
        }
        if self.ticks.is_multiple_of(STATISTICS) {
            let missed = self.capture.missed();
            for interface_id in self.interfaces.iter().flatten() {
                self.writer.write_pcapng_block(InterfaceStatisticsBlock {
                    interface_id: *interface_id,
                    timestamp: Duration::from_nanos(clock::unix_ns()),
                    options: vec![InterfaceStatisticsOption::IsbOsDrop(missed)],
                })?;
            }
        }
        Ok(())
    }
}

/// What became of a frame, in words.
fn comment(shared: &Shared, record: &Record<'_>) -> String {
    let name = |port: u16| shared.ports.get(usize::from(port)).map_or("?", |port| &port.name);
    match (record.fate, record.inbound) {
        (Fate::Passed { peer }, true) => format!("to {}", name(peer)),
        (Fate::Passed { peer }, false) => format!("from {}", name(peer)),
        (Fate::Lost { peer, reason }, true) => {
            format!("to {}, dropped there: {reason}", name(peer))
        }
        (Fate::Lost { peer, reason }, false) => format!("from {}, dropped: {reason}", name(peer)),
        (Fate::Flooded { ports, lost: 0 }, _) => format!("to {ports} ports"),
        (Fate::Flooded { ports, lost }, _) => {
            format!("to {ports} ports, dropped at {lost} of them")
        }
        (Fate::Dropped { reason }, _) => format!("dropped: {reason}"),
    }
}

impl HttpBody for CaptureBody {
    type Data = Bytes;
    type Error = PcapNgWriteError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, PcapNgWriteError>>> {
        loop {
            ready!(self.interval.poll_tick(context));
            if let Err(error) = self.write() {
                return Poll::Ready(Some(Err(error)));
            }
            self.ticks = self.ticks.wrapping_add(1);
            let bytes = std::mem::take(self.writer.get_mut());
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(BodyFrame::data(bytes.into()))));
            }
        }
    }
}

impl Drop for CaptureBody {
    fn drop(&mut self) {
        self.shared.end_capture(&self.capture);
    }
}
