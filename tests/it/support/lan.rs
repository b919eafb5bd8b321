//! Fake guests on the ports of a switch.
//!
//! The switch completes a transmit buffer after it has delivered the frame, so once a sender's
//! buffers are all back, its frames are in the receivers' rings and in the counters: nothing here
//! waits for a frame that may not come.

use std::time::Duration;

use fakeguest::{Builder, Frame, Guest, Layout, Received};

use super::switch::Switch;

/// How long the switch may take for the frames of a test.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Settings of a guest on a port.
pub fn guest(switch: &Switch, port: &str) -> Builder {
    Guest::builder(switch.socket(port))
}

/// A guest with one queue pair and a Linux driver's features on a port.
pub fn attach(switch: &Switch, port: &str) -> Guest {
    attach_with(switch, port, 0)
}

/// The same with more features.
pub fn attach_with(switch: &Switch, port: &str, features: u64) -> Guest {
    guest(switch, port).with(features).attach().expect("a guest on the port")
}

/// Sends frames on queue 0, each in one buffer, and returns when the switch is done with them.
pub fn send(guest: &mut Guest, frames: &[Frame]) {
    send_as(guest, frames, &Layout::whole());
}

/// Sends frames in this layout and returns when the switch is done with them.
pub fn send_as(guest: &mut Guest, frames: &[Frame], layout: &Layout) {
    for frame in frames {
        guest.send(0, frame, layout);
    }
    assert!(guest.flush(0, PATIENCE), "the switch keeps transmit buffers");
}

/// What is in the receive ring of a queue.
pub fn arrived_on(guest: &mut Guest, queue: usize) -> Vec<Received> {
    std::iter::from_fn(|| guest.queue(queue).rx.recv()).collect()
}

/// What is in the receive ring of queue 0.
pub fn arrived(guest: &mut Guest) -> Vec<Received> {
    arrived_on(guest, 0)
}

/// The bytes of the frames in the receive ring of queue 0.
pub fn bytes_arrived(guest: &mut Guest) -> Vec<Vec<u8>> {
    arrived(guest).into_iter().map(|received| received.bytes).collect()
}

/// Receives exactly `frames` on queue 0.
#[track_caller]
pub fn receive(guest: &mut Guest, frames: &[Frame]) {
    for (n, frame) in frames.iter().enumerate() {
        let got = guest.recv(0, PATIENCE).unwrap_or_else(|| panic!("frame {n} is lost"));
        assert!(got.bytes == frame.bytes, "frame {n} is another one, or damaged");
    }
}
