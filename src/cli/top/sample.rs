//! What the switch says at one moment.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use ringswitch::api::{Flow, Port, Process, Worker};

use super::Event;
use crate::cli::client::{Client, ClientError};

/// Between the first two looks: there are no rates before the second one.
const FIRST: Duration = Duration::from_millis(300);
/// Between looks while nobody answers.
const RETRY: Duration = Duration::from_millis(500);

/// What the switch said, and when.
#[derive(Clone, Debug)]
pub struct Sample {
    pub at: Instant,
    pub process: Process,
    pub ports: Vec<Port>,
    pub workers: Vec<Worker>,
    pub flows: Vec<Flow>,
}

impl Sample {
    /// Asks for everything.
    pub fn ask(client: &Client) -> Result<Self, ClientError> {
        loop {
            let process: Process = client.get("/process")?;
            let ports = client.get("/ports")?;
            let workers = client.get("/workers")?;
            let flows = client.get("/flows")?;
            // Another process may have taken over in between; one sample is of one process.
            if client.get::<Process>("/process")?.pid == process.pid {
                return Ok(Self { at: Instant::now(), process, ports, workers, flows });
            }
        }
    }
}

/// Asks each `seconds`, or whatever comes by `intervals`, until nobody listens.
pub fn keep_asking(
    client: &Client,
    mut seconds: u32,
    intervals: &Receiver<u32>,
    events: &Sender<Event>,
) {
    let mut pause = FIRST;
    loop {
        match intervals.recv_timeout(pause) {
            Ok(other) => {
                seconds = other;
                pause = Duration::from_secs(seconds.into());
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let seen = Sample::ask(client);
        pause = if seen.is_ok() { Duration::from_secs(seconds.into()) } else { RETRY };
        if events.send(Event::Seen(Box::new(seen))).is_err() {
            return;
        }
    }
}
