//! Frontends that come and go, and both roles.

use std::os::unix::net::UnixListener;

use crate::config::{SocketRole, VhostUserSettings};
use crate::sys::socket::SocketError;
use crate::vhost_user::{EndpointError, PortSocket};

use super::frontend::*;

/// Runs a test in a process of its own, where nobody else opens descriptors. Returns whether this
/// is that process.
fn alone(test: &str) -> bool {
    const MARK: &str = "RINGSWITCH_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--test-threads=1"])
        .env(MARK, "1")
        .status()
        .unwrap();
    assert!(status.success());
    false
}

#[derive(Debug, PartialEq, Eq)]
struct Resources {
    descriptors: usize,
    threads: usize,
    mappings: usize,
}

fn resources(memory: &str) -> Resources {
    let count = |directory: &str| std::fs::read_dir(directory).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    Resources {
        descriptors: count("/proc/self/fd"),
        threads: count("/proc/self/task"),
        mappings: maps.lines().filter(|line| line.contains(memory)).count(),
    }
}

#[test]
fn told_to_stop_it_ends_before_anybody_waits_for_it() {
    let mut port = Port::server();
    let mut frontend = port.connect();
    frontend.sync();
    port.endpoint.as_ref().unwrap().begin_to_stop();
    port.told.await_end();
    port.endpoint.take().unwrap().stop();
}

#[test]
fn nothing_is_left_of_fifty_frontends() {
    if !alone("vhost_user::tests::lifecycle::nothing_is_left_of_fifty_frontends") {
        return;
    }
    let port = Port::server();
    // Measured with a frontend attached: what the one before it had is gone by then.
    let measure = || {
        let mut frontend = port.connect();
        frontend.sync();
        port.told.take();
        let resources = resources("(deleted)");
        drop(frontend);
        port.told.await_end();
        resources
    };
    port.assert_serves();
    let before = measure();
    for round in 0..50 {
        let mut frontend = port.connect();
        frontend.negotiate(VERSION_1 | PROTOCOL);
        frontend.share_memory();
        for ring in 0..4 {
            frontend.start(ring);
            frontend.start(ring);
            frontend.enable(ring, 1);
        }
        frontend.sync();
        assert_eq!(port.running(), [true; 4], "round {round}");
        if round % 2 == 0 {
            frontend.raw(&[1, 2, 3]);
        }
        drop(frontend);
        port.told.await_end();
    }
    assert_eq!(measure(), before);
}

#[test]
fn a_second_frontend_is_turned_away() {
    let port = Port::server();
    let mut first = port.connect();
    first.sync();
    for _ in 0..3 {
        port.connect().assert_closed();
        first.sync();
    }
    drop(first);
    port.told.await_end();
    port.assert_serves();
}

#[test]
fn a_frontend_can_come_back_at_once() {
    let port = Port::server();
    for _ in 0..100 {
        // The old connection's end is never behind the new one's beginning.
        let mut frontend = port.connect();
        frontend.sync();
    }
}

#[test]
fn stopping_closes_the_connection_and_removes_the_socket() {
    let mut port = Port::server();
    let mut frontend = port.connect();
    frontend.negotiate(VERSION_1 | PROTOCOL);
    frontend.share_memory();
    frontend.start(0);
    frontend.enable(0, 1);
    frontend.sync();
    port.endpoint.take().unwrap().stop();
    assert_eq!(port.running(), [false; 4]);
    assert!(!port.path.exists());
    port.told.await_end();
    frontend.assert_closed();
}

#[test]
fn a_socket_in_use_is_refused_when_spawning() {
    let port = Port::server();
    let spawn = || {
        let settings = VhostUserSettings {
            socket: port.path.clone(),
            role: SocketRole::Server,
            owner: None,
            mode: None,
            queue_pairs: 1,
            mtu: None,
        };
        PortSocket::open(&settings)
    };
    let error = spawn().expect_err("the socket is in use");
    assert!(matches!(&error, EndpointError::Socket(SocketError::InUse(_))), "{error}");
    port.assert_serves();
}

#[test]
fn a_client_connects_when_somebody_listens_and_again() {
    let mut port = Port::new(SocketRole::Client);
    for _ in 0..3 {
        let listener = UnixListener::bind(&port.path).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut frontend = Frontend::over(stream);
        frontend.negotiate(VERSION_1 | PROTOCOL);
        frontend.share_memory();
        frontend.start(1);
        frontend.enable(1, 1);
        frontend.sync();
        assert_eq!(port.running(), [false, true, false, false]);
        drop(listener);
        std::fs::remove_file(&port.path).unwrap();
        drop(frontend);
        port.told.await_end();
    }
    // While it waits for the next attempt.
    port.endpoint.take().unwrap().stop();
    assert_eq!(port.running(), [false; 4]);
}
