//! The fake guest against a backend that nobody here wrote: DPDK's vhost library, in a
//! `dpdk-testpmd` that forwards frames between two sockets as they are.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fakeguest::layout::Piece;
use fakeguest::{Builder, Frame, Guest, Layout, Role, SetupOrder, features, frames};

const WAIT: Duration = Duration::from_secs(30);

/// A testpmd that connects port 0 with port 1. Ended by its pid on drop.
struct Testpmd {
    child: Child,
    dir: tempfile::TempDir,
}

impl Testpmd {
    fn start() -> Testpmd {
        Testpmd::with_ports(1, false)
    }

    fn with_ports(queues: u32, client: bool) -> Testpmd {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().expect("a directory");
        let client = u32::from(client);
        let port = |n: u32| {
            let socket = dir.path().join(format!("s{n}"));
            format!(
                "--vdev=net_vhost{n},iface={},queues={queues},client={client}",
                socket.display()
            )
        };
        let prefix = format!("fg{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let log = std::fs::File::create(dir.path().join("log")).expect("a log file");
        let arguments = format!(
            "--no-pci --no-huge --no-shconf --no-telemetry -m 256 --file-prefix {prefix} \
             --lcores 0@(0-1),1@(0-1) {} {} -- -i --forward-mode=io --auto-start --nb-cores=1 \
             --total-num-mbufs=8192 --max-pkt-len=9600 --rxq={queues} --txq={queues}",
            port(0),
            port(1)
        );
        let child = Command::new("dpdk-testpmd")
            .args(arguments.split_whitespace())
            .stdin(Stdio::piped()) // it ends with its input
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("dpdk-testpmd of Debian's package dpdk-dev");
        Testpmd { child, dir }
    }

    fn socket(&self, port: usize) -> PathBuf {
        self.dir.path().join(format!("s{port}"))
    }

    fn guest(&self, port: usize) -> Builder {
        Guest::builder(self.socket(port))
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let tail = log.lines().rev().take(30).collect::<Vec<_>>();
            tail.iter().rev().for_each(|line| eprintln!("testpmd: {line}"));
        }
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two guests whose link is up: frames sent before testpmd noticed the second one are dropped.
fn pair(a: Builder, b: Builder) -> (Guest, Guest) {
    let (mut a, mut b) = (a.attach().expect("guest a"), b.attach().expect("guest b"));
    link_up(&mut a, &mut b);
    (a, b)
}

/// Sends frames both ways until one has come through on each side.
fn link_up(a: &mut Guest, b: &mut Guest) {
    let hello = Frame::pattern(frames::mac(2), frames::mac(1), 60, 0);
    let deadline = Instant::now() + WAIT;
    let mut ready = [false; 2];
    while ready != [true; 2] {
        assert!(Instant::now() < deadline, "no frame gets through: {ready:?}");
        a.send(0, &hello, &Layout::whole());
        b.send(0, &hello, &Layout::whole());
        ready[1] |= b.recv(0, Duration::from_millis(50)).is_some();
        ready[0] |= a.recv(0, Duration::from_millis(50)).is_some();
    }
    for guest in [a, b] {
        assert!(guest.flush(0, WAIT), "sent frames are given back");
        while guest.recv(0, Duration::from_millis(100)).is_some() {}
    }
}

/// Sends each frame, waits for it on the other side, compares.
fn exchange(from: &mut Guest, to: &mut Guest, sizes: &[usize], layouts: &[Layout]) {
    for (at, &size) in sizes.iter().enumerate() {
        for layout in layouts {
            let frame = Frame::pattern(frames::mac(2), frames::mac(1), size, at as u32 + 1);
            from.send(0, &frame, layout);
            let got = to.recv(0, WAIT).unwrap_or_else(|| panic!("{size} bytes, {layout:?}: lost"));
            assert!(got.bytes == frame.bytes, "{size} bytes, {layout:?}: changed on the way");
        }
    }
    assert!(to.recv(0, Duration::from_millis(20)).is_none(), "a frame too many");
    assert!(to.queue(0).rx.gaps_intact(), "written past the end of a buffer");
    assert!(from.flush(0, WAIT), "sent frames are given back");
}

fn layouts() -> Vec<Layout> {
    let direct = [
        Layout::whole(),
        Layout::header_apart(),
        Layout::split(&[12, 14, 20]),
        Layout::split(&[26, 1, 1, 1]),
        Layout::split(&[64, 1000, 1000]),
    ];
    direct.iter().cloned().chain(direct.iter().cloned().map(Layout::in_indirect_table)).collect()
}

#[test]
fn mergeable_buffers_in_all_layouts() {
    let testpmd = Testpmd::start();
    let (mut a, mut b) = pair(testpmd.guest(0), testpmd.guest(1).rx_buffer(1526));
    assert_ne!(a.features() & features::MRG_RXBUF, 0);
    let sizes = [60, 64, 128, 500, 1514, 1515, 4000, 9000];
    exchange(&mut a, &mut b, &sizes, &layouts());
    exchange(&mut b, &mut a, &sizes, &layouts());

    let frame = Frame::pattern(frames::mac(2), frames::mac(1), 9000, 99);
    a.send(0, &frame, &Layout::whole());
    let got = b.recv(0, WAIT).expect("the frame");
    assert_eq!(got.buffers_used, 9012usize.div_ceil(1526));
}

#[test]
fn one_chain_per_frame() {
    let testpmd = Testpmd::start();
    let plain = |port| testpmd.guest(port).features(features::MINIMAL);
    let chain = Layout::split(&[12, 4084, 4096]);
    let (mut a, mut b) = pair(plain(0), plain(1).rx_buffer(12288).rx_layout(chain));
    assert_eq!(a.features() & !features::MINIMAL, 0);
    let direct: Vec<Layout> = layouts().into_iter().filter(|layout| !layout.indirect).collect();
    exchange(&mut a, &mut b, &[60, 1514, 4084, 4085, 9000], &direct);
    exchange(&mut b, &mut a, &[60, 1514, 9000], &direct);
}

#[test]
fn buffers_across_two_regions() {
    let testpmd = Testpmd::start();
    let regions = [(1 << 20, 64 << 20), (65 << 20, 64 << 20)];
    let guest = |port| testpmd.guest(port).regions(&regions);
    let (mut a, mut b) = pair(guest(0), guest(1));
    let addr = a.memory().across_boundary(700).expect("adjacent regions");
    let frame = Frame::pattern(frames::mac(2), frames::mac(1), 1514, 1);
    assert!(a.queue(0).tx.post_at(addr, &frame, &Layout::whole()));
    assert_eq!(b.recv(0, WAIT).map(|got| got.bytes), Some(frame.bytes));
}

#[test]
fn receive_buffers_posted_by_hand() {
    let testpmd = Testpmd::start();
    let (mut a, mut b) = pair(testpmd.guest(0), testpmd.guest(1));
    drop(b);
    b = testpmd.guest(1).manual_posting().attach().expect("guest b again");
    b.queue(0).rx.drop_idle();
    let addr = b.memory().alloc(4096, 64);
    let pieces = [Piece { addr, len: 100 }, Piece { addr: addr + 200, len: 2000 }];
    let frame = Frame::pattern(frames::mac(2), frames::mac(1), 1000, 1);
    assert!(b.queue(0).rx.post_pieces(&pieces, false));
    let deadline = Instant::now() + WAIT;
    let got = loop {
        assert!(Instant::now() < deadline, "nothing arrives");
        a.send(0, &frame, &Layout::whole()); // until testpmd has noticed the new guest
        if let Some(got) = b.recv(0, Duration::from_millis(50)) {
            break got;
        }
    };
    assert_eq!(got.bytes, frame.bytes);
    assert!(b.recv(0, Duration::from_millis(50)).is_none(), "there is no other buffer");
}

#[test]
fn cloud_hypervisor_order_and_no_event_index() {
    let testpmd = Testpmd::start();
    let guest =
        |port| testpmd.guest(port).order(SetupOrder::CloudHypervisor).without(features::EVENT_IDX);
    let (mut a, mut b) = pair(guest(0), guest(1));
    exchange(&mut a, &mut b, &[60, 1514, 9000], &layouts());
}

#[test]
fn stop_and_resume_and_reconnect() {
    let testpmd = Testpmd::start();
    let (mut a, mut b) = pair(testpmd.guest(0), testpmd.guest(1));
    let sent = a.ring(1).avail_index();
    let bases = a.stop().expect("bases");
    assert_eq!(bases[1], u32::from(sent), "all that was sent was taken");
    a.resume().expect("running again");
    b.reconnect().expect("attached again");
    link_up(&mut a, &mut b);
    exchange(&mut a, &mut b, &[700], &layouts());
}

#[test]
fn bursts_in_a_closed_loop_lose_nothing() {
    let testpmd = Testpmd::start();
    let size = |builder: Builder| builder.tx_slot(2048).rx_buffer(2048);
    let (mut a, mut b) = pair(size(testpmd.guest(0)), size(testpmd.guest(1)));
    let frame = Frame::pattern(frames::mac(2), frames::mac(1), 500, 1);
    a.queue(0).tx.load(&[frame], &Layout::whole()).expect("loaded");
    let (mut sent, mut received, mut bytes) = (0, 0, 0);
    let deadline = Instant::now() + WAIT;
    while received < 100_000 {
        assert!(Instant::now() < deadline, "{received} of {sent} arrived");
        let room = 128 - (sent - received);
        sent += a.send_burst(0, room.min(32).min(100_000 - sent));
        let burst = b.recv_burst(0, 64);
        received += burst.frames as usize;
        bytes += burst.bytes;
        if burst.frames == 0 {
            std::thread::yield_now();
        }
    }
    assert_eq!((sent, bytes), (100_000, 50_000_000));
}

#[test]
fn listening_with_two_queue_pairs() {
    let testpmd = Testpmd::with_ports(2, true);
    let guest = |port| testpmd.guest(port).role(Role::Listen).queue_pairs(2);
    // testpmd retries each socket every second, from a thread of its own.
    let (a, b) = (guest(0), guest(1));
    let a = std::thread::spawn(|| a.attach());
    let mut b = b.attach().expect("guest b");
    let mut a = a.join().expect("no panic").expect("guest a");
    link_up(&mut a, &mut b);
    let frame = Frame::pattern(frames::mac(2), frames::mac(1), 700, 5);
    a.send(1, &frame, &Layout::whole());
    let (queue, got) = b.recv_any(WAIT).expect("the frame");
    assert_eq!((queue, got.bytes), (1, frame.bytes), "io forwarding keeps the queue");
}

#[test]
fn pages_written_are_logged() {
    let testpmd = Testpmd::start();
    let (mut a, mut b) = pair(testpmd.guest(0), testpmd.guest(1));
    let log = b.start_log().expect("logging");
    log.take();
    exchange(&mut a, &mut b, &[3000], &[Layout::whole()]);
    let pages = log.take();
    let used_ring = b.ring(0).addresses().used / 4096;
    assert!(pages.contains(&used_ring), "the used ring's page {used_ring} is not in {pages:?}");
    assert!(pages.len() >= 2, "a buffer's page as well: {pages:?}");
    b.stop_log().expect("logging off");
}
