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

use crate::frame::PortId;
use crate::port::Port;
use crate::sys::clock;
use crate::wire::filter::Filter;
use crate::worker::{Buffer, Capture, Fate, Ports, Record, Shared};

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
    /// The ports; each one's place is its interface in the file.
    ports: Vec<Arc<Port>>,
    interval: Interval,
    ticks: u32,
}

impl CaptureBody {
    /// Begins to capture these ports. None if there are too many captures.
    pub fn begin(
        shared: &Arc<Shared>,
        ports: Vec<Arc<Port>>,
        filter: Filter,
        snaplen: u32,
    ) -> Result<Option<Self>, PcapNgWriteError> {
        let mut section =
            SectionHeaderBlock { endianness: Endianness::native(), ..Default::default() };
        let program = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
        section.options.push(SectionHeaderOption::UserApplication(program.into()));
        let mut writer = PcapNgWriter::with_section_header(Vec::new(), section)?;
        let places = ports.iter().map(|port| port.id.index() + 1).max().unwrap_or_default();
        let is_wanted = |index| ports.iter().any(|port| port.id.index() == index);
        let wanted = (0..places).map(is_wanted).collect();
        for port in &ports {
            let name = port.name.as_str();
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
        Ok(Some(Self { shared, capture, spares, writer, ports, interval, ticks: 0 }))
    }

    /// Writes what came since the last time.
    fn write(&mut self) -> Result<(), PcapNgWriteError> {
        let Self { capture, spares, writer, ports, shared, .. } = self;
        let now = shared.ports.now();
        for record in capture.take(spares) {
            // A port that was taken out has left its number to another one.
            let is_it = |port: &Port| {
                port.id.0 == record.port && now.get(port.id).is_some_and(|is| is.name == port.name)
            };
            let interface = ports.iter().zip(0..).find(|(port, _)| is_it(port));
            let Some((_, interface_id)) = interface else { continue };
            let flags = if record.inbound { INBOUND } else { OUTBOUND };
            let comment = comment(&now, &record);
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
            for (_, interface_id) in self.ports.iter().zip(0..) {
                self.writer.write_pcapng_block(InterfaceStatisticsBlock {
                    interface_id,
                    timestamp: Duration::from_nanos(clock::unix_ns()),
                    options: vec![InterfaceStatisticsOption::IsbOsDrop(missed)],
                })?;
            }
        }
        Ok(())
    }
}

/// What became of a frame, in words.
fn comment(ports: &Ports, record: &Record<'_>) -> String {
    let name = |port: u16| ports.get(PortId(port)).map_or("?", |port| &port.name);
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
