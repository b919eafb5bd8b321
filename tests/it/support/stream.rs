//! A TCP stream between two guests that goes on until it is ended, and whose content is checked: both
//! ends compute a digest of all of it.

use std::time::Duration;

use super::qemu::QemuGuest;
use super::wait_for;

/// For a command, and for bytes that are to arrive.
const PATIENCE: Duration = Duration::from_secs(120);

/// A stream of random bytes. One connection: what breaks it shows at its end.
#[derive(Debug)]
pub struct Stream {
    port: u16,
}

impl Stream {
    /// Starts it, to the guest at `address`. Guests tell their streams apart by the TCP port.
    pub fn start(from: &mut QemuGuest, to: &mut QemuGuest, address: &str, port: u16) -> Stream {
        // Without input nc would close the connection in the other direction at once.
        let digest = format!("sh -c 'echo $$ >/run/{port}.pid; exec sha256sum' >/run/{port}.in");
        to.run(&format!("sleep 86400 | nc -l -p {port} | {digest} 2>&1 &"), PATIENCE);
        let listens = format!("netstat -ltn | grep -q ':{port} '");
        wait_for("listener", PATIENCE, || (to.try_run(&listens, PATIENCE).0 == 0).then_some(()));
        let random = format!("while [ -e /run/{port}.go ]; do head -c 65536 /dev/urandom; done");
        let fifo = format!("/run/{port}.fifo");
        from.run(
            &format!(
                "mkfifo {fifo}; touch /run/{port}.go; sha256sum <{fifo} >/run/{port}.out & \
                 {{ {random}; }} | tee {fifo} | nc {address} {port} >/run/{port}.log 2>&1 & \
                 echo $! >/run/{port}.nc"
            ),
            PATIENCE,
        );
        let stream = Stream { port };
        stream.wait_for_more(to, 1);
        stream
    }

    /// Bytes that have arrived.
    fn arrived(&self, to: &mut QemuGuest) -> u64 {
        let line = format!("grep rchar: /proc/$(cat /run/{}.pid)/io", self.port);
        let text = to.run(&line, PATIENCE);
        let count = text.split_whitespace().nth(1).and_then(|count| count.parse().ok());
        count.unwrap_or_else(|| panic!("no count: {text:?}"))
    }

    /// Waits until `bytes` more than now have arrived.
    pub fn wait_for_more(&self, to: &mut QemuGuest, bytes: u64) {
        let wanted = self.arrived(to) + bytes;
        wait_for("rest of the stream", PATIENCE, || (self.arrived(to) >= wanted).then_some(()));
    }

    /// Ends it. All that was sent must have arrived as it was. Returns how many bytes that was.
    pub fn end(self, from: &mut QemuGuest, to: &mut QemuGuest) -> u64 {
        let port = self.port;
        let gone = |pid: &str| format!("while kill -0 $(cat /run/{port}.{pid}) 2>/dev/null");
        let bytes = self.arrived(to);
        from.run(&format!("rm /run/{port}.go; {}; do sleep 0.1; done", gone("nc")), PATIENCE);
        to.run(&format!("{}; do sleep 0.1; done", gone("pid")), PATIENCE);
        let log = from.run(&format!("cat /run/{port}.log"), PATIENCE);
        assert_eq!(log, "", "the sender's trouble");
        let sent = from.run(&format!("cat /run/{port}.out"), PATIENCE);
        let received = to.run(&format!("cat /run/{port}.in"), PATIENCE);
        assert!(sent.len() > 64, "no digest: {sent:?}");
        assert_eq!(sent, received, "changed or lost on the way, after {bytes} bytes and more");
        bytes
    }
}
