//! Tests of `tap`, each in a network namespace of its own. They need root and `ip`.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;

use super::*;
use crate::sys::poller::{Events, Poller, Trigger};

/// Runs `test` on a thread in a new network namespace, which ends with the thread.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        // SAFETY: no memory is passed; only this thread changes its namespace.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "needs root: {}", io::Error::last_os_error());
        test();
    })
    .join()
    .unwrap();
}

/// Runs `ip` with the words of `command` in this thread's namespace and returns its output.
fn ip(command: &str) -> String {
    let output = Command::new("ip").args(command.split_whitespace()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ip {command}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn open(name: &str) -> Result<Tap, TapError> {
    Tap::open(name, &TapOptions::default())
}

fn with(mtu: Option<u32>, bridge: Option<&str>) -> TapOptions {
    TapOptions { mtu, bridge: bridge.map(str::to_owned), queues: 1 }
}

fn several(name: &str, queues: usize) -> Result<Tap, TapError> {
    Tap::open(name, &TapOptions { queues, ..TapOptions::default() })
}

/// Waits for `wanted`: a process that another test is just starting holds copies of this process's
/// descriptors until its exec, and with them the device.
fn wait_for(what: &str, wanted: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !wanted() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Waits until nobody is attached to a device that stays.
fn free(name: &str) {
    wait_for("the device becomes free", || ip(&format!("link show {name}")).contains("state DOWN"));
}

/// The first queue.
fn queue(tap: &Tap) -> &TapQueue {
    &tap.queues()[0]
}

/// The next IPv4 frame, past the host's own IPv6 chatter.
fn read_ipv4(tap: &Tap) -> Vec<u8> {
    let (poller, mut events) = (Poller::new().unwrap(), Events::with_capacity(1));
    poller.add(queue(tap).as_fd(), 0, Trigger::Level).unwrap();
    let mut buf = vec![0xaa; READ_BUFFER_LEN];
    loop {
        let limit = std::time::Duration::from_secs(10);
        assert_eq!(poller.wait(&mut events, Some(limit)).unwrap(), 1, "no frame came");
        let length = queue(tap).read(&mut buf).unwrap();
        if buf[24..26] == [0x08, 0x00] {
            return buf[..length].to_vec();
        }
    }
}

#[test]
fn creates_configures_and_removes_a_device() {
    in_namespace(|| {
        let tap = Tap::open("rs0", &with(Some(9000), None)).unwrap();
        assert_eq!((tap.name(), tap.mtu()), ("rs0", 9000));
        let link = ip("-d link show rs0");
        assert!(link.contains("mtu 9000") && link.contains(",UP,LOWER_UP"), "{link}");
        assert!(link.contains("tun type tap pi off vnet_hdr on"), "{link}");
        let mac: Vec<String> = tap.mac().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(link.contains(&mac.join(":")), "{link}");
        drop(tap);
        assert!(!ip("link show").contains("rs0"), "not persistent");
        assert_eq!(open("rs0").unwrap().mtu(), 1500);
    });
}

#[test]
fn attaches_to_a_persistent_device() {
    in_namespace(|| {
        ip("tuntap add rs0 mode tap");
        drop(Tap::open("rs0", &with(Some(65_521), None)).unwrap());
        free("rs0");
        let tap = open("rs0").unwrap();
        assert_eq!(tap.mtu(), 65_521, "kept");
        assert!(ip("-d link show rs0").contains("vnet_hdr on"));
    });
}

#[test]
fn joins_a_bridge_once() {
    in_namespace(|| {
        ip("link add br0 type bridge");
        ip("tuntap add rs0 mode tap");
        for _ in 0..2 {
            let tap = Tap::open("rs0", &with(None, Some("br0"))).unwrap();
            assert!(ip("link show rs0").contains("master br0"));
            drop(tap);
            free("rs0");
        }
        ip("link add br1 type bridge");
        let error = Tap::open("rs0", &with(None, Some("br1"))).unwrap_err();
        assert!(matches!(error, TapError::OtherBridge { .. }), "{error}");
        let error = Tap::open("rs1", &with(None, Some("br2"))).unwrap_err();
        assert!(matches!(error, TapError::NoBridge { .. }), "{error}");
        let error = Tap::open("rs1", &with(None, Some("lo"))).unwrap_err();
        assert!(matches!(error, TapError::NotABridge { .. }), "{error}");
        assert!(!ip("link show").contains("rs1"), "a failed open leaves nothing");
    });
}

#[test]
fn the_stack_hands_over_offloads() {
    in_namespace(|| {
        let tap = open("rs0").unwrap();
        let mut none = [0; 64];
        ip("addr add 10.9.0.1/24 dev rs0");
        ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev rs0");
        let socket = UdpSocket::bind("10.9.0.1:0").unwrap();

        socket.send_to(b"one copy", "10.9.0.2:4789").unwrap();
        let frame = read_ipv4(&tap);
        assert_eq!(frame.len(), HEADER_LEN + 14 + 20 + 8 + 8);
        // flags NEEDS_CSUM, no GSO, csum_start 34 and csum_offset 6 little-endian, num_buffers 0.
        assert_eq!(frame[..2], [1, 0]);
        assert_eq!(frame[6..12], [34, 0, 6, 0, 0, 0]);
        assert_eq!(frame[12..18], [2, 0, 0, 0, 0, 2]);
        assert_eq!(frame[18..24], tap.mac());
        assert_eq!(frame[54..], *b"one copy");

        let payload: Vec<u8> = (0..40_000u32).map(|index| (index % 251) as u8).collect();
        let segment: libc::c_int = 1000;
        // SAFETY: UDP_SEGMENT reads one int.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                (&raw const segment).cast(),
                4,
            )
        };
        assert_eq!(result, 0);
        socket.send_to(&payload, "10.9.0.2:4789").unwrap();
        let frame = read_ipv4(&tap);
        if tap.has_uso() {
            // gso_type UDP_L4, gso_size 1000: the whole of it in one frame.
            assert_eq!((frame[1], &frame[4..6]), (5, &1000u16.to_le_bytes()[..]));
            assert_eq!(frame[54..], payload);
        } else {
            assert_eq!((frame[1], &frame[54..]), (0, &payload[..1000]));
        }
        ip("link set rs0 down");
        while queue(&tap).read(&mut none).is_ok() {}
        assert_eq!(queue(&tap).read(&mut none).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(queue(&tap).read(&mut none[..11]).is_err());
    });
}

#[test]
fn a_deleted_device_is_an_error_not_silence() {
    in_namespace(|| {
        let tap = open("rs0").unwrap();
        ip("link del rs0");
        let error = queue(&tap).read(&mut [0; 64]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADFD));
    });
}

#[test]
fn a_device_has_as_many_queues_as_it_can() {
    in_namespace(|| {
        let kind = |name: &str| ip(&format!("-d link show {name}")).contains(" multi_queue ");
        let tap = several("rs0", 3).unwrap();
        assert_eq!((tap.queues().len(), kind("rs0")), (3, true));
        let error = several("rs0", 2).unwrap_err();
        assert!(matches!(error, TapError::Busy { .. }), "{error}");
        let error = open("rs0").unwrap_err();
        assert!(matches!(error, TapError::Busy { .. }), "{error}");
        drop(tap);
        wait_for("it goes with its last queue", || !ip("link show").contains("rs0"));
        assert_eq!(several("rs0", 1).unwrap().queues().len(), 1);
        // What is there decides, whatever is asked for.
        ip("tuntap add name one mode tap");
        ip("tuntap add name many mode tap multi_queue");
        for _ in 0..2 {
            assert_eq!(several("one", 4).unwrap().queues().len(), 1);
            free("one");
            assert_eq!(several("many", 4).unwrap().queues().len(), 4);
            free("many");
            assert_eq!(several("many", 1).unwrap().queues().len(), 1);
            free("many");
        }
        assert!(matches!(several("rs0", 257).unwrap_err(), TapError::System { .. }));
        wait_for("a failed open leaves nothing", || !ip("link show").contains("rs0"));
    });
}

#[test]
fn answers_come_by_the_queue_that_the_flow_was_written_to() {
    in_namespace(|| {
        let tap = several("rs0", 4).unwrap();
        ip("link set rs0 address 02:00:00:00:09:01");
        ip("addr add 10.9.0.1/24 dev rs0");
        ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev rs0");
        let socket = UdpSocket::bind("10.9.0.1:7").unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let mut frame = vec![0; HEADER_LEN];
        frame.extend([2, 0, 0, 0, 9, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
        // 29 bytes of IPv4, UDP, from port 4000 to 7, one byte.
        frame.extend([0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0x66, 0xbc, 10, 9, 0, 2, 10, 9, 0, 1]);
        frame.extend([0x0f, 0xa0, 0, 7, 0, 9, 0, 0, b'?']);
        for queue in [2, 0, 3, 1, 2] {
            let queue = &tap.queues()[queue];
            assert_eq!(io::Write::write(&mut &queue.file, &frame).unwrap(), frame.len());
            let mut byte = [0];
            let (_, from) = socket.recv_from(&mut byte).unwrap();
            socket.send_to(b"!", from).unwrap();
            let mut answer = vec![0; READ_BUFFER_LEN];
            let is_answer = |bytes: &[u8]| bytes[24..26] == [8, 0] && bytes.last() == Some(&b'!');
            let found =
                std::iter::from_fn(|| queue.read(&mut answer).ok().map(|n| answer[..n].to_vec()))
                    .any(|bytes| is_answer(&bytes));
            assert!(found, "no answer in this queue");
        }
    });
}

#[test]
fn wrong_devices_are_named() {
    in_namespace(|| {
        ip("tuntap add tun0 mode tun");
        ip("link add veth0 type veth peer name veth1");
        let tap = open("rs0").unwrap();
        let messages: Vec<String> = ["tun0", "veth0", "lo", "rs0", "tap%d"]
            .iter()
            .map(|name| open(name).unwrap_err().to_string())
            .collect();
        for (message, part) in messages.iter().zip([
            "device tun0 exists and is a TUN device",
            "device veth0 exists and is a veth device",
            "device lo exists and is",
            "device rs0 is in use by another process",
            "\"tap%d\" cannot be the name",
        ]) {
            assert!(message.contains(part), "{message}");
        }
        drop(tap);
        for mtu in [67, 65_522, u32::MAX] {
            let error = Tap::open("rs0", &with(Some(mtu), None)).unwrap_err();
            assert!(matches!(error, TapError::Mtu { .. }), "{error}");
        }
    });
}

#[test]
fn without_privilege_only_a_prepared_device_opens() {
    in_namespace(|| {
        ip("link add br0 type bridge");
        ip("tuntap add rs0 mode tap user 65534 vnet_hdr");
        ip("link set rs0 mtu 9000 master br0 up");
        // SAFETY: no memory is passed; the raw call changes this thread only.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
        assert_eq!(result, 0);
        let tap = Tap::open("rs0", &with(Some(9000), Some("br0"))).unwrap();
        assert_eq!(tap.mtu(), 9000);
        drop(tap);
        for (name, options) in [("rs1", with(None, None)), ("rs0", with(Some(1500), None))] {
            let error = Tap::open(name, &options).unwrap_err();
            assert!(matches!(error, TapError::NotPermitted { .. }), "{error}");
        }
    });
}
